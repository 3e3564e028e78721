"""One record, and the line of JSON that holds it with its own checksum."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from normlib.errors import NormlibError

SCHEMA = 1
DIGITS = 5
UNUSABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading a line that is no record may raise."""


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
