"""How a data set is put together: which files, with which content, decoded by which function."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from normlib.data.arrays import Arrays
from normlib.data.errors import DamagedDataError

GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class DataFile:
    """One published file and what its content must be.

    Attributes:
        name: the file's name; a `.gz` at its end may be missing on disk where `unpack` is set.
        size: bytes of the content that `sha256` covers.
        sha256: digest of the content: of the unpacked bytes if `unpack`, else of the file itself.
        md5: MD5 of the file as its owner publishes it, for readers who compare by hand.
        unpack: whether gzip is only a wrapping. Packages and mirrors compress anew, with other headers, so that
            only the unpacked bytes can be compared.
    """

    name: str
    size: int
    sha256: str
    md5: str = ""
    unpack: bool = True

    def find(self, folder: Path) -> Path | None:
        """Return where this file lies in `folder`, or None."""
        names = [self.name, self.name.removesuffix(".gz")] if self.unpack else [self.name]
        return next((folder / name for name in names if (folder / name).is_file()), None)

    def read(self, path: Path, origin: str = "") -> bytes:
        """Return the content of `path` after comparing it with the digest.

        Args:
            path: the file to read.
            origin: what to call it in an error if not by its path, such as the URL that it came from.

        Raises:
            DamagedDataError: naming the file, the digest that was expected and the one that was found.
        """
        where, content = origin or str(path), path.read_bytes()
        if self.unpack and content.startswith(GZIP_MAGIC):
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError, zlib.error) as problem:
                raise self._damaged(where, f"{len(content)} bytes that do not unpack ({problem})", content) from problem
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise self._damaged(where, f"{len(content)} bytes", content)
        return content

    def _damaged(self, where: str, found: str, content: bytes) -> DamagedDataError:
        published = f" The owner publishes the MD5 {self.md5} for {self.name}." if self.md5 else ""
        return DamagedDataError(
            f"{where} is damaged or is another file, and was not used.\n"
            f"  expected sha256 {self.sha256} ({self.size} bytes{', unpacked' if self.unpack else ''})\n"
            f"  found    sha256 {hashlib.sha256(content).hexdigest()} ({found})\n"
            f"Remove the file and get it again.{published}"
        )


@dataclass(frozen=True)
class Recipe:
    """What the registry holds for a data set.

    Attributes:
        name: the name in the registry; also the folder and the stem of an npz.
        classes: number of classes; 0 if only the labels tell.
        decode: from the contents of `files`, in their order, to the arrays.
        files: the published files; none for a set that comes with a dependency.
        url: address that the files' names are appended to.
        package: Debian package that installs the files under the system's data folder.
        digest: `content_digest` of the official set, where it is known.
        levels: the pixel value that becomes 1.0.
    """

    name: str
    classes: int = 0
    decode: Callable[[list[bytes]], Arrays] | None = None
    files: tuple[DataFile, ...] = ()
    url: str = ""
    package: str = ""
    digest: str = ""
    levels: int = 255
