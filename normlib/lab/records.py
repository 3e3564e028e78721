"""Records: what one trial measured, one JSON line each, in `results/<study>/<preset>.jsonl`.

A line is appended under a lock and synced to disk before the next trial counts as done. A torn last line (a machine that died
in mid-write) is reported and dropped; a damaged line is reported and skipped; neither is ever used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from normlib.errors import NormlibError
from normlib.lab.provenance import checkout

SCHEMA = 1
DIGITS = 5


class RecordWarning(UserWarning):
    """A line of a record file that could not be used, with its place and the reason."""


@dataclass(frozen=True)
class Record:
    """One trial: what was asked, by which code, on which machine, and what came out.

    `table` holds columns: lists of one length, or single values that stand for every row. `code` is the digest of the code
    that the trial reached, `key` names study, preset, configuration, seed and code together.
    """

    study: str
    preset: str
    config: dict[str, Any]
    seed: int
    code: str
    status: str
    reason: str | None
    table: dict[str, Any]
    device: str
    dtype: str
    start: str
    seconds: float
    peak_mb: float
    commit: str | None = None
    dirty: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def key(self) -> str:
        """Name the trial: equal for two runs of the same configuration, seed and code, wherever they ran."""
        return record_key(self.study, self.preset, self.config, self.seed, self.code)

    def to_line(self) -> str:
        """Write the record as one line of JSON that ends with its own checksum."""
        body = {"key": self.key, **asdict(self)}
        body["table"] = pack_table(self.table)
        body["peak_mb"] = _pack(self.peak_mb)
        try:
            text = _canonical(body)
        except (TypeError, ValueError) as error:
            raise NormlibError(f"the notes of {self.study} cannot be recorded: {error}; use plain numbers and text") from error
        return _canonical({**body, "check": _checksum(text)}) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Record:
        """Read a line back.

        Raises:
            ValueError: the line is no JSON object, its checksum does not fit, or its schema is newer than this code's.
        """
        body = json.loads(line)
        if not isinstance(body, dict) or "check" not in body:
            raise ValueError("it is not a record (no checksum)")
        if body.get("schema", 0) > SCHEMA:
            raise ValueError(f"it has schema {body['schema']}, this normlib reads up to {SCHEMA}: update normlib")
        check = body.pop("check")
        if check != _checksum(_canonical(body)):
            raise ValueError("its checksum does not fit its content: it was changed after it was written")
        body.pop("key")
        body["table"] = {name: _unpack(column) for name, column in body["table"].items()}
        body["peak_mb"] = _unpack(body["peak_mb"])
        return cls(**body)


def record_key(study: str, preset: str, config: Mapping[str, Any], seed: int, code: str) -> str:
    """Hash what makes two trials the same trial."""
    try:
        text = _canonical({"study": study, "preset": preset, "config": dict(config), "seed": seed, "code": code})
    except (TypeError, ValueError) as error:
        raise NormlibError(f"a setting of {study} cannot be recorded: {error}; use numbers, text, or lists of them") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def pack_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the columns of a trial into the form in which they are recorded.

    Raises:
        NormlibError: a column holds what JSON has no word for.
    """
    return {str(name): _pack(column) for name, column in table.items()}


def _pack(value: Any) -> Any:
    """Round to five significant digits; write what JSON has no number for as text or null."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_pack(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        return float(f"{value:.{DIGITS}g}")
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise NormlibError(
        f"a trial returned {type(value).__name__} {value!r} in a column; use numbers, text, or arrays of them (.tolist())"
    )


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if value is None:
        return math.nan
    return {"inf": math.inf, "-inf": -math.inf}.get(value, value) if isinstance(value, str) else value


class Store:
    """A folder of records that grows, over folders that are only read.

    Args:
        folder: where new records go; made when the first one comes.
        fallbacks: folders that are read as well, such as the records that came with the package.
    """

    def __init__(self, folder: Path | str, fallbacks: Iterable[Path | str] = ()) -> None:
        self.folder = Path(folder)
        self.fallbacks = [Path(f) for f in fallbacks if Path(f) != self.folder]

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
        newest: dict[str, Record] = {}
        for folder in [*reversed(self.fallbacks), self.folder]:
            for record in _read_file(folder / study / f"{preset}.jsonl"):
                newest[record.key] = record
        return list(newest.values())

    def append(self, record: Record) -> bool:
        """Add a record, durably.

        Returns:
            False if a finished record of the same key is there already (then nothing is written).

        Raises:
            NormlibError: the line could not be written whole (disk full, no permission); the file is as it was before.
        """
        path = self.path(record.study, record.preset)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if any(r.key == record.key and r.status != "failed" for r in _read_file(path)):
                    return False
                _append_line(path, record.to_line())
        except OSError as error:
            raise NormlibError(
                f"the record of {record.study} could not be written to {path}: {error}. Nothing was half-written; "
                "free some space or choose another folder with --results, then run the same command again."
            ) from error
        return True

    def drop(self, study: str, preset: str, unwanted: Callable[[Record], bool]) -> None:
        """Write the growing file anew without some records, in one step; lines that cannot be read stay as they are."""
        path = self.path(study, preset)
        if not path.is_file():
            return
        with FileLock(f"{path}.lock"):
            lines = path.read_bytes()[: _whole_size(path)].splitlines(keepends=True)
            kept = [line for line in lines if (record := _readable(line)) is None or not unwanted(record)]
            if len(kept) == len(lines):
                return
            fresh = path.with_suffix(".tmp")
            try:
                with fresh.open("wb") as file:
                    file.writelines(kept)
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(path)
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
    return root / "results" if root else Path(__file__).resolve().parents[1] / "_records"


def _readable(line: bytes) -> Record | None:
    try:
        return Record.from_line(line.decode("utf-8"))
    except (ValueError, TypeError, KeyError):
        return None


def _read_file(path: Path) -> list[Record]:
    try:
        if not path.is_file():
            return []
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise NormlibError(f"the records in {path} could not be read: {error}") from error
    records = []
    torn = lines.pop()
    if torn:
        warnings.warn(f"{path}: the last line is torn ({len(torn)} bytes); it is not used", RecordWarning, stacklevel=3)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_line(line.decode("utf-8")))
        except (ValueError, TypeError, KeyError) as error:
            warnings.warn(f"{path}:{number}: skipped, {error}", RecordWarning, stacklevel=3)
    return records


def _append_line(path: Path, line: str) -> None:
    # Unbuffered: what a full disk refused must not stay in a buffer and be written when the file is closed.
    with path.open("ab", buffering=0) as file:
        size = _whole_size(path)
        rest = line.encode("utf-8")
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
    content = path.read_bytes()
    return content.rfind(b"\n") + 1
