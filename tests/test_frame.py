"""The frame: one place for the repository's address, lower bounds only, commands that the README names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_the_address_of_the_repository_stands_in_one_place() -> None:
    address = re.search(r"url: https://github\.com/(\S+)", (ROOT / "_config.yml").read_text())
    assert address
    holders = [
        p for p in tracked() if p.suffix not in (".png", ".ipynb") and address[1] in p.read_text(encoding="utf-8", errors="ignore")
    ]
    assert [str(p.relative_to(ROOT)) for p in holders if "tests" not in p.parts] == ["_config.yml"]


def test_the_library_declares_lower_bounds_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert all(re.fullmatch(r"[a-z-]+>=[\d.]+", need) for need in project["dependencies"])
    assert not {"jupyter-book", "myst-nb", "ipython", "ipykernel", "torchvision"} & {
        need.split(">")[0] for need in project["dependencies"]
    }


def test_the_build_environment_is_pinned_and_has_one_torch() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.\-]+==[\w.]+", line) for line in lines)
    assert [line for line in lines if line.startswith("torch")] == ["torch==2.13.0"]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_commands_and_files_that_documents_name_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make (\w+)`?", text)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    for command in set(re.findall(r"normlib (run|list|show|claims|data|bench)\b", text)):
        done = subprocess.run([sys.executable, "-m", "normlib", command, "--help"], capture_output=True, check=False)
        assert done.returncode == 0, command


def test_importing_the_package_is_light() -> None:
    code = "import sys, normlib; print([m for m in ('torch', 'pandas', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_source_that_the_code_names_is_in_the_bibliography() -> None:
    keys = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))
    cited: set[str] = set()
    for path in (ROOT / "normlib").rglob("*.py"):
        for line in re.findall(r"Source: (.*)", path.read_text(encoding="utf-8")):
            cited |= set(re.findall(r"`([a-z]+\d+[a-z]*)`", line))
    assert len(cited) > 20 and cited <= keys, cited - keys
