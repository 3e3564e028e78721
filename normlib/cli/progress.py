"""The command `status`: where each study stands, and what would be run next."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from normlib.cli.common import Commands, add_command, add_results, add_studies, chosen_presets, chosen_studies, print_table

if TYPE_CHECKING:
    from normlib.lab.reading.survey import Standing

COUNTS = ("wanted", "fresh", "stale", "failed", "missing", "diverged", "other")


def declare(commands: Commands) -> None:
    """Add this module's command."""
    parser = add_command(commands, "status", status, "how far each study is, on which devices, and what would be run next")
    add_studies(parser)
    parser.add_argument("--preset", help="only this preset")
    parser.add_argument("--device", metavar="NAME", help="only records of devices with this in their name, such as H200")
    parser.add_argument("--json", action="store_true", help="print it for machines")
    add_results(parser)


def status(options: argparse.Namespace) -> int:
    """Print where studies stand."""
    from normlib.lab import Store
    from normlib.lab.reading.survey import survey
    from normlib.studies import get_study

    presets = chosen_presets(options.preset)
    studies = [get_study(name) for name in chosen_studies(options.studies)]
    store = Store.default(options.results)
    rows = survey(studies, store, presets, options.device)
    follow = next_runs(survey(studies, store, chosen_presets(None)), presets)  # a fresh record of any device is not run again
    print(as_json(rows, follow)) if options.json else print_status(rows, follow)
    return 0


def next_runs(standings: list[Standing], presets: list[str]) -> list[str]:
    """List the commands that would bring records up to date, the most wanted first, preset by preset."""
    from normlib.lab.reading.survey import most_wanted

    left = {(row.study, row.preset) for row in standings if row.left}
    return [
        f"normlib run {study} --preset {preset}"
        for preset in presets
        for study in most_wanted(standings, preset)
        if (study, preset) in left
    ]


def as_json(rows: list[Standing], follow: list[str]) -> str:
    """Write everything for machines."""
    from dataclasses import asdict

    body = {"studies": [{**asdict(row), "left": row.left} for row in rows], "total": totals(rows), "next": follow}
    return json.dumps(body, indent=1, ensure_ascii=False)


def totals(rows: list[Standing]) -> dict[str, float]:
    """Add up the counts and the seconds of all rows."""
    counts: dict[str, float] = {name: sum(getattr(row, name) for row in rows) for name in COUNTS}
    return {**counts, "seconds": round(sum(row.seconds for row in rows), 3)}


def print_status(rows: list[Standing], follow: list[str]) -> None:
    """Print everything for readers."""
    from rich.table import Table

    from normlib.lab.reading.results import duration

    table = Table("study", "preset", box=None, header_style="bold")
    for name in (*COUNTS, "time"):
        table.add_column(name, justify="right")
    table.add_column("devices")
    for row in rows:
        counts = [str(getattr(row, name) or "·") for name in COUNTS]
        devices = "; ".join(f"{name} ({number})" if len(row.devices) > 1 else name for name, number in row.devices.items())
        table.add_row(row.study, row.preset, *counts, duration(row.seconds) if row.fresh else "·", devices)
    total = totals(rows)
    table.add_row("total", "", *(str(total[name]) for name in COUNTS), duration(total["seconds"]), style="bold")
    print_table(table, width=180)
    if follow:
        more = f" ({len(follow) - 1} more after it)" if len(follow) > 1 else ""
        print(f"\nnext: {follow[0]}{more}")
    else:
        print("\nevery trial has a fresh record")
