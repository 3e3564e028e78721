"""A study: factors, a trial, a drawing, claims; declared in one place, run and judged by the lab."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from normlib.errors import NormlibError, unknown
from normlib.lab.claims import Claim, Judgement
from normlib.lab.code.digest import code_digest
from normlib.lab.config import RESERVED, Config
from normlib.lab.records import Record
from normlib.lab.style import STYLE
from normlib.lab.table import table_of

PRESETS = ("quick", "laptop", "full")
KINDS = ("exact", "init", "train", "timing")
Table = Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """A figure with the two texts that belong to it.

    Args:
        figure: the Matplotlib figure.
        caption: what it shows to be so; Markdown with math; numbers in it come from the table.
        alt: what is drawn, for a reader who cannot see it; at most 250 characters.
    """

    figure: Figure
    caption: str
    alt: str

    def __post_init__(self) -> None:
        for name in ("caption", "alt"):
            if not getattr(self, name).strip():
                raise NormlibError(f"a drawing needs a text for {name!r}: pass Drawing(figure, caption=..., alt=...)")
        if len(self.alt) > 250:
            raise NormlibError(f"the alt text has {len(self.alt)} characters; say what is drawn in at most 250")


@dataclass
class Study:
    """A question put to a network: what varies, what is measured, what is drawn, what is claimed.

    Args:
        id: BibTeX key of the source, a dot, and the item ("lecun1998.rates").
        item: what it regenerates in the source ("Figs 6, 9-12").
        title: the finding or the question, in one line.
        kind: "exact" (an identity, checked to float tolerance), "init" (networks before training), "train", "timing" (seconds
            and bytes: trials run one after the other with every core, and a seed is a repetition).
        vary: the factors, each with its levels; every combination is one trial.
        quick: settings of the preset for 2 CPU cores and 10 seconds; a list under the name of a factor replaces its levels.
        laptop: settings for 2 CPU cores and 10 minutes.
        full: settings for one GPU, or None where a larger run has nothing to add.
        seeds: number of seeds per preset.

    Raises:
        NormlibError: a malformed id, an unknown kind, a factor without levels, a preset without a number of seeds, or a
            setting whose name is taken ("seed", "status", "device", the methods of a mapping).
    """

    id: str
    item: str
    title: str
    kind: str
    vary: Mapping[str, list[Any]]
    quick: Mapping[str, Any]
    laptop: Mapping[str, Any]
    full: Mapping[str, Any] | None
    seeds: Mapping[str, int] = field(default_factory=lambda: {"quick": 1, "laptop": 3, "full": 5})
    claims: list[Claim] = field(default_factory=list)

    instances: ClassVar[dict[str, Study]] = {}

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+\.[\w-]+", self.id):
            raise NormlibError(f"study id {self.id!r} must be a BibTeX key, a dot and an item, such as 'lecun1998.rates'")
        if self.kind not in KINDS:
            raise unknown("kind of study", self.kind, KINDS)
        for where, settings in {"vary": self.vary, **{preset: getattr(self, preset) for preset in self.presets()}}.items():
            for name, levels in settings.items():
                if name in RESERVED:
                    raise NormlibError(f"{self.id}: {where} has a setting named {name!r}, which means something else; rename it")
                if name in self.vary and (not isinstance(levels, list) or not levels):
                    raise NormlibError(f"{self.id}: factor {name!r} needs a list of levels in {where}, got {levels!r}")
        missing = [preset for preset in self.presets() if preset not in self.seeds]
        if missing:
            raise NormlibError(f"{self.id}: seeds has no number for {', '.join(missing)}")
        self._trial: Callable[..., Any] | None = None
        self.takes_seeds = False
        self._draw: Callable[[pd.DataFrame], Drawing] | None = None
        Study.instances[self.id] = self

    @property
    def source(self) -> str:
        """The BibTeX key of what the study regenerates."""
        return self.id.partition(".")[0]

    @property
    def module(self) -> str:
        """The module that declares the study, importable by a worker."""
        return self._function("trial").__module__

    def presets(self) -> list[str]:
        """Return the presets that the study has."""
        return [name for name in PRESETS if getattr(self, name) is not None]

    # -- declaring -------------------------------------------------------------------------------------------------

    def trial(self, function: Callable[..., Table]) -> Callable[..., Table]:
        """Declare the measurement: `function(config, seed)` returns columns (lists of one length, or single values)."""
        self._trial = function
        return function

    def trial_of_seeds(self, function: Callable[..., list[Table]]) -> Callable[..., list[Table]]:
        """Declare a measurement of many seeds in one go: `function(config, seeds)` returns one table for each seed.

        On a GPU the engine hands over all seeds of a configuration that are missing, elsewhere one at a time: launches are what
        small networks wait for on a GPU, and cores on a CPU. The random generators are seeded with the first seed only, so
        the function draws what depends on a seed from that seed itself. A seed that diverges is part of its table; `Diverged`
        would stop them all.
        """
        self.takes_seeds, self._trial = True, function
        return function

    def draw(self, function: Callable[[pd.DataFrame], Drawing]) -> Callable[[pd.DataFrame], Drawing]:
        """Declare the drawing: `function(table)` returns a `Drawing`; it measures nothing."""
        self._draw = function
        return function

    def claim(
        self, slug: str, statement: str, *, criterion: str, by: str | None = None
    ) -> Callable[[Callable[[pd.DataFrame], Judgement]], Callable[[pd.DataFrame], Judgement]]:
        """Declare a claim: `function(table)` returns a `Judgement`.

        Args:
            slug: short name, unique in the study; part of the claim's stable link.
            statement: what is claimed, in our own words.
            criterion: what would count as reproduced, fixed before any run.
            by: BibTeX key of who claims it; the study's own source if not given.
        """

        def declare(function: Callable[[pd.DataFrame], Judgement]) -> Callable[[pd.DataFrame], Judgement]:
            if any(claim.slug == slug for claim in self.claims):
                raise NormlibError(f"{self.id} has two claims named {slug!r}; choose another slug")
            self.claims.append(Claim(self.id, slug, statement, criterion, by or self.source, function))
            return function

        return declare

    @property
    def trial_function(self) -> Callable[..., Table]:
        """The function that measures."""
        return self._function("trial")

    # -- what there is to run --------------------------------------------------------------------------------------

    def configurations(self, preset: str) -> list[dict[str, Any]]:
        """List every combination of the factors' levels with the settings of a preset.

        Raises:
            UnknownNameError: the study has no such preset; the message names those it has.
        """
        if preset not in self.presets():
            raise unknown(f"preset of {self.id}", preset, self.presets())
        settings = dict(getattr(self, preset))
        factors = {name: settings.pop(name, levels) for name, levels in self.vary.items()}
        combinations = itertools.product(*factors.values())
        return [{**settings, **dict(zip(factors, levels, strict=True))} for levels in combinations]

    def trials(self, preset: str, seeds: int | None = None) -> list[tuple[dict[str, Any], int]]:
        """List the trials of a preset as pairs of configuration and seed, seed by seed."""
        configurations = self.configurations(preset)
        return [(c, seed) for seed in range(seeds or self.seeds[preset]) for c in configurations]

    def code(self, config: Mapping[str, Any]) -> str:
        """Digest the code that a trial of this configuration reaches."""
        names = tuple(sorted(set(_strings(list(config.values())))))
        if names not in self._codes:
            self._codes[names] = code_digest([self._function("trial")], names)
        return self._codes[names]

    @property
    def _codes(self) -> dict[tuple[str, ...], str]:
        return self.__dict__.setdefault("_code_cache", {})

    def is_fresh(self, record: Record) -> bool:
        """Tell whether the record was measured by the code as it is now, at settings that its preset still has."""
        return record.code == self.code(record.config) and _canonical(record.config) in self._settings(record.preset)

    def _settings(self, preset: str) -> set[str]:
        cache: dict[str, set[str]] = self.__dict__.setdefault("_settings_cache", {})
        if preset not in cache:
            cache[preset] = set(map(_canonical, self.configurations(preset))) if preset in self.presets() else set()
        return cache[preset]

    # -- what came out ---------------------------------------------------------------------------------------------

    def measure(self, config: Config, seeds: Sequence[int]) -> list[Table]:
        """Run the trial itself and return one table for each seed: one seed, or several if the trial takes them together.

        Raises:
            NormlibError: several seeds for a trial that takes one, or another number of tables than of seeds.
        """
        function = self._function("trial")
        if not self.takes_seeds:
            if len(seeds) != 1:
                raise NormlibError(f"{self.id} takes one seed at a time, got {list(seeds)}; declare it with @….trial_of_seeds")
            return [function(config, seeds[0])]
        tables = list(function(config, list(seeds)))
        if len(tables) != len(seeds):
            raise NormlibError(f"{self.id} returned {len(tables)} tables for {len(seeds)} seeds; return one for each, in order")
        return tables

    def drawing(self, records: Iterable[Record]) -> Drawing:
        """Draw the records of one preset."""
        with mpl.rc_context(STYLE):
            return self._function("draw")(table_of(records))

    def judge(self, records: Iterable[Record]) -> list[tuple[Claim, Judgement]]:
        """Judge each claim by the records of one preset."""
        table = table_of(records)
        return [(claim, claim.function(table)) for claim in self.claims]

    def _function(self, name: str) -> Callable[..., Any]:
        function = getattr(self, f"_{name}")
        if function is None:
            raise NormlibError(f"{self.id} has no {name} yet: decorate a function with @….{name}")
        return function


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(dict(config), sort_keys=True)


def _strings(value: Any) -> Iterator[str]:
    """List the texts in a setting, also within lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
