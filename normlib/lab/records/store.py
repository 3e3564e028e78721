"""Records: what one trial measured, one JSON line each, in `results/<study>/<preset>.jsonl`.

A line is appended under a lock and synced to disk before the next trial counts as done. A torn last line (a machine that died
in mid-write) is reported and dropped; a damaged line is reported and skipped; neither is ever used.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock

from normlib.errors import NormlibError
from normlib.lab.code.provenance import checkout
from normlib.lab.records.record import UNUSABLE, Record

Stamp = tuple[int, int, int] | None


class RecordWarning(UserWarning):
    """A line of a record file that could not be used, with its place and the reason."""


class Store:
    """A folder of records that grows, over folders that are only read.

    Args:
        folder: where new records go; made when the first one comes.
        fallbacks: folders that are read as well, such as the records that came with the package.

    Relative paths are relative to where the process is now, also after a trial has gone elsewhere (`os.chdir`).
    """

    def __init__(self, folder: Path | str, fallbacks: Iterable[Path | str] = ()) -> None:
        self.folder = Path(folder).absolute()
        self.fallbacks = [path for path in (Path(f).absolute() for f in fallbacks) if path != self.folder]
        self._known: dict[Path, tuple[Stamp, set[str]]] = {}

    @classmethod
    def default(cls, folder: Path | str | None = None) -> Store:
        """Open the folder given, else `$NORMLIB_RESULTS`, else the checkout's `results`, else the user's own data folder."""
        shipped = committed_results()
        chosen = folder or os.environ.get("NORMLIB_RESULTS")
        if chosen:
            return cls(Path(chosen).expanduser(), [shipped])
        if checkout() is not None:
            return cls(shipped)
        home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        return cls(Path(home) / "normlib" / "results", [shipped])

    def path(self, study: str, preset: str) -> Path:
        """Return the file that new records of this study and preset go to."""
        return self.folder / study / f"{preset}.jsonl"

    def read(self, study: str, preset: str) -> list[Record]:
        """Read every usable record, the newest of each key; what could not be used is reported by a `RecordWarning`."""
        return list({record.key: record for record in self.history(study, preset)}.values())

    def history(self, study: str, preset: str) -> list[Record]:
        """Read every usable record, also those that a later one of the same key replaced; the growing folder comes last."""
        folders = [*reversed(self.fallbacks), self.folder]
        return [record for folder in folders for _, record in read_lines(folder / study / f"{preset}.jsonl")]

    def append(self, record: Record) -> bool:
        """Add a record, durably.

        Returns:
            False if a finished record of the same key is there already (then nothing is written).

        Raises:
            NormlibError: the line could not be written whole (disk full, no permission); the file is as it was before.
        """
        return self.append_all([record])[0]

    def append_all(self, records: Iterable[Record]) -> list[bool]:
        """Add many records, durably: each file is locked, read and synced once.

        Returns:
            For each record, whether it was written: not if a finished record of the same key is there, or came before it.

        Raises:
            NormlibError: the lines of a file could not be written whole; that file is as it was before, the files of the
                studies before it in the list have theirs. Or a record cannot be written as a line; nothing was written.
        """
        records = list(records)
        lines = [record.to_line() for record in records]  # before anything is written
        added = [False] * len(records)
        places: dict[Path, list[int]] = {}
        for place, record in enumerate(records):
            places.setdefault(self.path(record.study, record.preset), []).append(place)
        for path, group in places.items():
            for place, written in zip(group, self._append_to(path, [(records[i], lines[i]) for i in group]), strict=True):
                added[place] = written
        return added

    def _append_to(self, path: Path, records: list[tuple[Record, str]]) -> list[bool]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                there = self._finished(path)
                added: list[bool] = []
                lines: list[str] = []
                finished: set[str] = set()
                for record, line in records:
                    added.append(record.key not in there and record.key not in finished)
                    if added[-1]:
                        lines.append(line)
                        finished |= {record.key} if record.status != "failed" else set()
                if lines:
                    _append_bytes(path, "".join(lines).encode("utf-8"))
                    there |= finished
                    self._known[path] = (_stamp(path), there)
        except OSError as error:
            what = "record" if len(records) == 1 else f"{len(records)} records"
            raise NormlibError(
                f"the {what} of {records[0][0].study} could not be written to {path}: {error}. Nothing was half-written; "
                "free some space or choose another folder with --results, then run the same command again."
            ) from error
        return added

    def _finished(self, path: Path) -> set[str]:
        """Return the keys of the finished trials in a file; it is read only if something changed it since this store did."""
        stamp = _stamp(path)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            known = (stamp, {record.key for _, record in read_lines(path) if record.status != "failed"})
            self._known[path] = known
        return known[1]

    def drop(self, study: str, preset: str, unwanted: Callable[[Record], bool]) -> None:
        """Write the growing file anew without some records, in one step; lines that cannot be read stay as they are.

        Without such records nothing is touched, so that a folder may be read-only.

        Raises:
            NormlibError: the file could not be read or written anew; it is as it was.
        """
        path = self.path(study, preset)
        try:
            if not path.is_file() or _without(path, unwanted) is None:
                return
            with FileLock(f"{path}.lock"):
                if (kept := _without(path, unwanted)) is not None:  # another process may have dropped them since
                    _write_anew(path, kept)
        except OSError as error:
            raise NormlibError(f"{path} could not be written anew: {error}; it is as it was") from error

    def files(self) -> Iterator[Path]:
        """List the record files in reach, each study and preset once, the growing folder first."""
        seen = set()
        for folder in [self.folder, *self.fallbacks]:
            for path in sorted(folder.glob("*/*.jsonl")):
                if (name := path.relative_to(folder)) not in seen:
                    seen.add(name)
                    yield path


def committed_results() -> Path:
    """Return the folder of the records that came with the code: the checkout's, or the package's own copy."""
    root = checkout()
    return root / "results" if root else Path(__file__).resolve().parents[2] / "_records"


def _readable(line: bytes) -> Record | None:
    try:
        return Record.from_line(line.decode("utf-8"))
    except UNUSABLE:
        return None


def _without(path: Path, unwanted: Callable[[Record], bool]) -> list[bytes] | None:
    """Return the whole lines of a file without some records; None if it has no such record."""
    lines = path.read_bytes()[: _whole_size(path)].splitlines(keepends=True)
    kept = [line for line in lines if (record := _readable(line)) is None or not unwanted(record)]
    return None if len(kept) == len(lines) else kept


def _write_anew(path: Path, lines: list[bytes]) -> None:
    target = path.resolve()  # a link stays one
    fresh = target.with_suffix(".tmp")
    try:
        with fresh.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def read_lines(path: Path) -> list[tuple[bytes, Record]]:
    """Read the usable lines of a file, as bytes without the line end and as records; the others are reported and skipped."""
    try:
        if not path.is_file():
            return []
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise NormlibError(f"the records in {path} could not be read: {error}") from error
    found = []
    torn = lines.pop()
    if torn:
        warnings.warn(f"{path}: the last line is torn ({len(torn)} bytes); it is not used", RecordWarning, stacklevel=3)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append((line, Record.from_line(line.decode("utf-8"))))
        except UNUSABLE as error:
            warnings.warn(f"{path}:{number}: skipped, {error}", RecordWarning, stacklevel=3)
    return found


def _append_bytes(path: Path, lines: bytes) -> None:
    # Unbuffered: what a full disk refused must not stay in a buffer and be written when the file is closed.
    with path.open("ab", buffering=0) as file:
        size = _whole_size(path)
        rest = lines
        try:
            file.truncate(size)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, size)
            raise


def _whole_size(path: Path) -> int:
    """Return the number of bytes up to the last line end: what follows it is torn."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return 0
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return size
    return path.read_bytes().rfind(b"\n") + 1


def _stamp(path: Path) -> Stamp:
    """Tell one state of a file from another without reading it."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns
