# Every target sets up .venv by itself; when it is there, that costs nothing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BOOK := $(BIN)/jupyter-book build . -n -W --keep-going

.PHONY: help book serve test check format sync records screenshot bench clean
help:
	@echo "make book     build the book into _build/html"
	@echo "make test     run every test"
	@echo "make check    lint, types, import contracts, notebooks in sync (under a minute)"
	@echo "make records  measure what has no fresh laptop record (minutes to hours)"
	@echo "make bench    time the normalizers against torch.nn"
	@echo "make serve    serve the built book on http://localhost:8000"
	@echo "make sync     regenerate the notebooks next to the chapters"
	@echo "make screenshot  take the README's picture from the built book (needs Chromium)"
	@echo "make clean    remove everything that was built"

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "the book is built with Python 3.11 or newer; pass PYTHON=python3.x"'
	@echo "setting up .venv (a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

book: $(READY)
	@$(BOOK)
	@echo
	@echo "The book is built. Open $(CURDIR)/_build/html/index.html in a browser, or run 'make serve'."

serve: $(READY)
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory _build/html

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/interrogate -c pyproject.toml normlib
	$(BIN)/python -m normlib.book.notebooks --check

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

sync: $(READY)
	$(BIN)/python -m normlib.book.notebooks

records: $(READY)
	$(BIN)/normlib run --pending --preset laptop

screenshot: book
	$(BIN)/python docs/screenshot.py

bench: $(READY)
	$(BIN)/normlib bench

clean:
	rm -rf .venv _build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache results/*/quick.jsonl results/*/*.lock
