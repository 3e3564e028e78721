"""Every generated notebook runs from top to bottom outside the checkout, with the built wheel and its dependencies alone."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "chapters").glob("*.ipynb"))
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
print(sum(len(cell.get("outputs", [])) for cell in notebook.cells))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment that holds the wheel, its dependencies, and what runs a notebook."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    needed = [str(wheel), "ipykernel", "nbclient"]
    command = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "requirements.txt"), *needed]
    subprocess.run(command, check=True, capture_output=True)
    return python


@pytest.mark.slow
def test_the_wheel_holds_the_records_and_the_config(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    committed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert {f"normlib/_records/{name.removeprefix('results/')}" for name in committed} <= set(names)
    assert "normlib/_book/_config.yml" in names and "normlib/py.typed" in names
    assert not [name for name in names if name.endswith(("quick.jsonl", ".lock"))]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_outside_the_checkout(notebook: Path, clean_python: Path, tmp_path: Path) -> None:
    listed = subprocess.run(
        [str(clean_python), "-m", "pip", "list"], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    assert "jupyter-book" not in listed and "myst-nb" not in listed
    script = tmp_path / "execute.py"
    script.write_text(EXECUTE)
    kept = {name: os.environ[name] for name in ("PATH", "NORMLIB_DATA", "LANG") if name in os.environ}
    environment = {**kept, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data"), "JUPYTER_PLATFORM_DIRS": "1"}
    done = subprocess.run(
        [str(clean_python), str(script), str(notebook)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) > 0
