"""Where the book lives: its repository, its pages and its notebooks, all derived from one URL in `_config.yml`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from normlib.errors import NormlibError
from normlib.lab.code.provenance import checkout

CONFIG = "_config.yml"
PACKAGED = Path(__file__).resolve().parents[1] / "_book"
GITHUB = re.compile(r"https://github\.com/(?P<owner>[\w.-]+)/(?P<name>[\w.-]+?)(?:\.git)?/?")


@dataclass(frozen=True)
class Site:
    """The addresses of a book whose source is on GitHub.

    Example:
        >>> site = Site("https://github.com/me/notes", title="Notes", author="Me")
        >>> site.page_url("chapters/1-origins")
        'https://me.github.io/notes/chapters/1-origins.html'
        >>> site.code_url("normlib/errors.py", "1a2b3c4", (1, 9))
        'https://github.com/me/notes/blob/1a2b3c4/normlib/errors.py#L1-L9'
    """

    repository: str
    title: str
    author: str
    branch: str = "main"
    base_url: str = ""

    def __post_init__(self) -> None:
        if not GITHUB.fullmatch(self.repository):
            raise NormlibError(
                f"the repository URL is {self.repository!r}, which is not one of GitHub; links to code and Colab need "
                f"https://github.com/OWNER/NAME. Mend repository.url in {CONFIG}."
            )
        owner, name = self._parts()
        object.__setattr__(self, "repository", f"https://github.com/{owner}/{name}")
        object.__setattr__(self, "base_url", (self.base_url or f"https://{owner}.github.io/{name}").rstrip("/") + "/")

    @classmethod
    def read(cls, root: Path | None = None) -> Site:
        """Read the `_config.yml` of a checkout, or the copy inside an installed package.

        Args:
            root: the folder of `_config.yml`; by default that of the checkout in use, else the packaged copy.

        Raises:
            NormlibError: the file or one of its keys is missing, or the repository is not on GitHub.
        """
        path = (root or checkout() or PACKAGED) / CONFIG
        if not path.is_file():
            raise NormlibError(
                f"there is no {path}; the addresses of the book stand in it. Run from a checkout, or install normlib anew."
            )
        config = _load(path)
        for section in ("repository", "html"):
            if not isinstance(config.get(section, {}), dict):
                raise NormlibError(f"{path}: the key {section!r} holds {config[section]!r}; expected a mapping")
        repository = config.get("repository", {})
        missing = [key for key in ("title", "author") if not config.get(key)] + ["repository.url"] * (not repository.get("url"))
        if missing:
            raise NormlibError(f"{path} lacks {', '.join(missing)}; add what is missing, the book derives its links from it")
        return cls(
            repository=str(repository["url"]),
            title=str(config["title"]),
            author=str(config["author"]),
            branch=str(repository.get("branch") or "main"),
            base_url=str(config.get("html", {}).get("baseurl") or ""),
        )

    def code_url(self, path: str, commit: str, lines: tuple[int, int] | None = None) -> str:
        """Return the link to a file at a commit, and to a range of its lines, first and last included."""
        return f"{self.repository}/blob/{quote(commit)}/{quote(path)}" + (f"#L{lines[0]}-L{lines[1]}" if lines else "")

    def raw_url(self, path: str, commit: str) -> str:
        """Return the link to the bytes of a file at a commit: what an image in a notebook needs."""
        return "https://raw.githubusercontent.com/{}/{}/".format(*self._parts()) + f"{quote(commit)}/{quote(path)}"

    def colab_url(self, notebook: str, commit: str) -> str:
        """Return the link that opens a notebook of the repository in Colab."""
        return "https://colab.research.google.com/github/{}/{}/blob/".format(*self._parts()) + f"{quote(commit)}/{quote(notebook)}"

    def page_url(self, docname: str) -> str:
        """Return the link to a page, named as Sphinx does: its path without the suffix."""
        return f"{self.base_url}{quote(docname)}.html"

    def install_requirement(self, commit: str) -> str:
        """Return what pip installs to get the package of a commit, tag or branch."""
        return f"normlib @ git+{self.repository}@{commit}"

    def _parts(self) -> tuple[str, str]:
        match = GITHUB.fullmatch(self.repository)
        assert match  # __post_init__ has seen to it
        return match["owner"], match["name"]


def _load(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise NormlibError(f"reading {path} needs PyYAML; install it with: pip install 'normlib[book]'") from error
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise NormlibError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise NormlibError(f"{path} holds {type(config).__name__}, expected keys such as title, author and repository")
    return config
