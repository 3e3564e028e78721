"""The settings of one trial, and a trial's way to say that training diverged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from normlib.errors import unknown


class Diverged(Exception):  # noqa: N818 - a measurement, not an error
    """A trial's way to say that training diverged, with what was measured until then.

    Args:
        reason: what diverged and when ("loss is not finite at step 120").
        table: the columns to record, if any.
    """

    def __init__(self, reason: str, **table: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.table = table


class Config(Mapping[str, Any]):
    """The settings of one trial, read as attributes, plus the device it runs on (which is no setting)."""

    def __init__(self, values: Mapping[str, Any], device: str = "cpu") -> None:
        self._values = dict(values)
        self.device = device
        self.notes: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise unknown("setting", name, self._values, "Declare it in vary or in each preset.") from None

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def note(self, name: str, value: Any) -> None:
        """Put something that the record should hold beside the table, such as the digest of the data that was used."""
        self.notes[name] = value


RESERVED = frozenset({"seed", "status", "device", "notes", *dir(Config)})
