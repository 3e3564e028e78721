"""Chapters as plain notebooks for Colab: `python -m normlib.book.notebooks` writes them next to the chapters."""
