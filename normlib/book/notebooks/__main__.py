"""`python -m normlib.book.notebooks [--check]`."""

import sys

from normlib.book.notebooks.export import main

sys.exit(main())
