"""The command `diff`: two sets of records side by side."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlib.cli.common import Commands, add_command, add_results, add_studies, chosen_presets, chosen_studies, print_table
from normlib.errors import NormlibError

if TYPE_CHECKING:
    from normlib.lab import Record
    from normlib.lab.reading.differences import Comparison, Difference

Reader = Callable[[str, str], list["Record"]]


def declare(commands: Commands) -> None:
    """Add this module's command."""
    parser = add_command(commands, "diff", diff, "two sets of records side by side, column by column and claim by claim")
    parser.add_argument("first", metavar="A", help="a folder of records or a bundle; a device or a version with the options below")
    parser.add_argument("second", metavar="B")
    add_studies(parser)
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--devices", action="store_true", help="A and B are parts of names of devices, such as Xeon and H200")
    side.add_argument("--versions", action="store_true", help="A and B are commits, or `fresh` and `stale`")
    parser.add_argument("--preset", help="only this preset")
    parser.add_argument("--json", action="store_true", help="print every difference for machines")
    add_results(parser)


def diff(options: argparse.Namespace) -> int:
    """Print what differs between two sets of records."""
    from normlib.lab.reading.differences import compare
    from normlib.studies import get_study

    studies = [get_study(name) for name in chosen_studies(options.studies)]
    presets = chosen_presets(options.preset)
    readers = [reader_of(name, options) for name in (options.first, options.second)]
    found = []
    for study in studies:
        for preset in (p for p in presets if p in study.presets()):
            first, second = (read(study.id, preset) for read in readers)
            if first or second:
                found.append(compare(study, preset, first, second))
    if not any(comparison.matched for comparison in found):
        raise NormlibError(
            f"{options.first} and {options.second} have no trial in common (the same study, preset, configuration and seed); "
            "name folders or bundles, or pass --devices or --versions to compare records of one folder"
        )
    print(as_json(found)) if options.json else print_comparisons(found)
    return 0


def reader_of(name: str, options: argparse.Namespace) -> Reader:
    """Open one side: a function from study and preset to records."""
    from normlib.lab import Store
    from normlib.studies import get_study

    store = Store.default(options.results)
    if options.devices:
        return lambda study, preset: [r for r in store.history(study, preset) if name.lower() in r.device.lower()]
    if options.versions:
        if name in ("fresh", "stale"):
            return lambda s, p: [r for r in store.history(s, p) if get_study(s).is_fresh(r) == (name == "fresh")]
        return lambda study, preset: [r for r in store.history(study, preset) if (r.commit or "").startswith(name)]
    path = Path(name).expanduser()
    if path.is_dir():
        return Store(path).history
    if not path.exists():
        raise NormlibError(f"{name} is no folder of records and no bundle: there is no such file")
    return _reader_of_bundle(path)


def _reader_of_bundle(path: Path) -> Reader:
    from normlib.lab.exchange.intake import summary
    from normlib.lab.exchange.unpacking import read_bundle

    bundle = read_bundle(path)
    if bundle.findings:
        raise NormlibError("\n  ".join([f"{path} is not as it was written:", *summary(bundle.findings)]))
    return lambda study, preset: [r for r in bundle.records if (r.study, r.preset) == (study, preset)]


def print_comparisons(found: list[Comparison]) -> None:
    """Print each column that is not the same, at the configuration where it differs most, then the verdicts that change."""
    from rich.table import Table

    table = Table("study", "preset", "trials", "column", "difference", "largest", "outcome", box=None, header_style="bold")
    for comparison in found:
        alone = [f"{n} only in {side}" for n, side in ((comparison.only_first, "A"), (comparison.only_second, "B")) if n]
        trials = ", ".join([str(comparison.matched), *alone])
        columns: dict[str, list[Difference]] = {}
        for difference in comparison.differences:
            columns.setdefault(difference.column, []).append(difference)
        unlike = {name: rows for name, rows in columns.items() if any(d.outcome != "same" for d in rows)}
        for name, rows in unlike.items():
            table.add_row(comparison.study, comparison.preset, trials, name, *_cells(rows))
        if len(columns) > len(unlike) or not columns:
            count = f"{len(columns) - len(unlike)}{' more' if unlike else ''} columns" if columns else "–"
            table.add_row(comparison.study, comparison.preset, trials, count, "–", "–", "same" if columns else "–")
    print_table(table, width=200)
    changed = [pair for comparison in found for pair in comparison.verdicts if pair.changed]
    print(f"\n{len(changed)} of {sum(len(c.verdicts) for c in found)} verdicts change" + (":" if changed else ""))
    for pair in changed:
        print(f"  {pair.claim}: {pair.first or 'records incomplete'} → {pair.second or 'records incomplete'}")


def _cells(rows: list[Difference]) -> tuple[str, str, str]:
    worst = max(rows, key=lambda d: math.inf if math.isnan(d.relative) else abs(d.relative))
    interval = "" if worst.low is None or worst.high is None else f" [{percent(worst.low)}, {percent(worst.high)}]"
    outcomes: dict[str, int] = {}
    for row in rows:
        outcomes[row.outcome] = outcomes.get(row.outcome, 0) + 1
    words = [name if count == len(rows) else f"{count} {name}" for name, count in outcomes.items()]
    largest = max((d.largest for d in rows if not math.isnan(d.largest)), default=math.nan)
    return percent(worst.relative) + interval, percent(largest), ", ".join(words)


def percent(value: float) -> str:
    """Write a relative difference as a reader would.

    Example:
        >>> percent(-0.0312), percent(float("nan"))
        ('−3.12 %', 'unlike')
    """
    from normlib.lab import number

    return "unlike" if math.isnan(value) else f"{number(100 * value)} %"


def as_json(found: list[Comparison]) -> str:
    """Write everything for machines: strict JSON, with texts for numbers that it has no word for."""
    from dataclasses import asdict

    body = [{**asdict(c), "verdicts": [{**asdict(pair), "changed": pair.changed} for pair in c.verdicts]} for c in found]
    return json.dumps(_strict(body), indent=1, ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
