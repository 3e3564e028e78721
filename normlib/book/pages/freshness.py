"""What a page depends on: the code its cells reach, the records it shows, the packages that draw it.

MyST-NB keeps the outputs of a page as long as its cells stay the same; it does not see the library behind them. So each page
gets a folder of outputs named by a digest of all that its outputs depend on. A study that is edited re-runs the pages that
show it, and no other.
"""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
from importlib import metadata
from pathlib import Path

from normlib.lab.code.digest import source_digest
from normlib.lab.records import committed_results
from normlib.studies import STUDIES

CELL = re.compile(r"^(?P<fence>`{3,})\{code-cell\}[^\n]*\n(?P<body>.*?)^(?P=fence)\s*$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"\A(---\n.*?\n---\n|(:[\w-]+:[^\n]*\n)+)", re.DOTALL)
OVERVIEWS = ("scoreboard", "claims_table", "figures_table")
DRAWING_PACKAGES = ("torch", "numpy", "matplotlib", "seaborn", "pandas", "scipy")
KEPT = 3


def cells_of(text: str) -> str:
    """Return the code of a page, its cells one after the other, without their options and magics."""
    bodies = (OPTION.sub("", match["body"]) for match in CELL.finditer(text))
    lines = (line for body in bodies for line in body.splitlines() if not line.lstrip().startswith(("%", "!")))
    return "\n".join(lines)


def is_overview(text: str) -> bool:
    """Tell whether a page gathers what the other pages show, so that it has to be read after them."""
    return any(isinstance(node, ast.Name) and node.id in OVERVIEWS for node in ast.walk(ast.parse(cells_of(text))))


def studies_of(code: str) -> list[str]:
    """List the studies that the code names."""
    tree = ast.parse(code)
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return [study for study in STUDIES if study in texts]


def page_digest(text: str) -> str | None:
    """Digest what the outputs of a page depend on, or None if it has no code."""
    code = cells_of(text)
    if not code.strip():
        return None
    studies = studies_of(code)
    parts = [source_digest(code, studies)]
    for study in studies:
        for path in sorted((committed_results() / study).glob("*.jsonl")):
            if path.stem != "quick":
                parts.append(hashlib.sha256(path.read_bytes()).hexdigest())
    parts += [f"{name}={metadata.version(name)}" for name in DRAWING_PACKAGES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def cache_folder(root: Path, docname: str, digest: str) -> Path:
    """Return the folder for the outputs of a page at this digest, and drop the oldest of the page's other folders."""
    home = root / docname.replace("/", "-")
    folder = home / digest
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()
    for old in sorted(home.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(old)
    return folder
