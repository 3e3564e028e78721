"""The command line: `normlib run | list | show | claims | data | bench`. It reads arguments and prints what the library answers."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normlib.errors import NormlibError, unknown

PRESET_NAMES = ("quick", "laptop", "full")
BENCHES = {"layers": "notes.speed", "weights": "notes.standardization_cost"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when all was done, 1 when trials failed or are left to do, 2 when the input could not be used, 130 on Ctrl-C.
    """
    warnings.showwarning = _print_warning
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except NormlibError as error:
        print(f"normlib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("normlib: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"normlib: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="normlib", description=__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run what has no fresh record yet")
    run.add_argument("studies", nargs="*", metavar="STUDY", help="a study's id, or a source (lecun1998) for all of its studies")
    run.add_argument("--pending", action="store_true", help="every study that lacks fresh records at this preset")
    run.add_argument("--preset", default="quick", help="quick, laptop or full (default: quick)")
    run.add_argument("--device", help="cpu or cuda (default: the best there is; quick runs on the CPU)")
    run.add_argument("--seeds", type=int, help="number of seeds (default: the preset's own)")
    run.add_argument("--workers", type=int, help="number of processes (default: one per core; quick runs in this process)")
    run.add_argument("--budget", help="start no trial after this long, such as 90s, 20m or 2h")
    run.set_defaults(command=_run)

    listing = commands.add_parser("list", help="every study, with the records there are")
    listing.set_defaults(command=_list)

    show = commands.add_parser("show", help="one study: its figure, records and verdicts")
    show.add_argument("study", metavar="STUDY")
    show.add_argument("--preset", help="which records (default: the best there are)")
    show.add_argument("--out", type=Path, metavar="FILE", help="write the figure (.svg, .png, .pdf)")
    show.set_defaults(command=_show)

    claims = commands.add_parser("claims", help="every claim with its verdict")
    claims.add_argument("studies", nargs="*", metavar="STUDY")
    claims.set_defaults(command=_claims)

    data = commands.add_parser("data", help="where each data set is found; with a name, fetch it")
    data.add_argument("name", nargs="?")
    data.set_defaults(command=_data)

    bench = commands.add_parser("bench", help="time what the library adds, against what people use today")
    bench.add_argument("what", nargs="?", choices=BENCHES, default="layers")
    bench.add_argument("--preset", choices=PRESET_NAMES, default="laptop", help="sizes and repetitions (default: laptop)")
    bench.add_argument("--device", default="cpu")
    bench.set_defaults(command=_bench)

    for command in (run, listing, show, claims):
        command.add_argument("--results", type=Path, metavar="FOLDER", help="the folder of records (default: $NORMLIB_RESULTS)")
    return parser


def _version() -> str:
    from normlib import __version__

    return f"normlib {__version__}"


def _chosen(names: Sequence[str]) -> list[str]:
    """Expand sources to their studies and check every name before anything runs."""
    from normlib.studies import STUDIES

    chosen: list[str] = []
    for name in names:
        matches = [s for s in STUDIES if s == name or s.partition(".")[0] == name]
        if not matches:
            raise unknown("study", name, STUDIES, STUDIES.hint)
        chosen += [m for m in matches if m not in chosen]
    return chosen


def _run(options: argparse.Namespace) -> int:
    from normlib.lab import Store, run
    from normlib.studies import STUDIES, get_study

    if options.preset not in PRESET_NAMES:
        raise unknown("preset", options.preset, PRESET_NAMES)
    if not options.studies and not options.pending:
        raise NormlibError("name at least one study (`normlib list` shows them), or pass --pending for all that lack records")
    store = Store.default(options.results)
    deadline = time.monotonic() + _seconds(options.budget) if options.budget is not None else None
    ids = _chosen(options.studies or list(STUDIES))
    ids = [i for i in ids if options.preset in get_study(i).presets()] if options.pending else ids
    status = 0
    for study_id in ids:
        outcome = run(
            get_study(study_id),
            options.preset,
            store=store,
            device=options.device,
            seeds=options.seeds,
            workers=options.workers,
            deadline=deadline,
            progress=sys.stderr.isatty(),
        )
        print(_told(outcome), flush=True)
        if outcome.interrupted:
            return 130
        status = max(status, 1 if outcome.failures or outcome.left else 0)
    return status


def _told(outcome: Any) -> str:
    parts = [f"{outcome.ran} run", f"{outcome.skipped} there already"]
    if outcome.diverged:
        parts.append(f"{outcome.diverged} diverged")
    if outcome.left:
        parts.append(f"{outcome.left} left; run the same command again to go on")
    lines = [f"{outcome.study} {outcome.preset}: " + ", ".join(parts)]
    return "\n".join(lines + [f"  failed: {reason}" for reason in outcome.failures])


def _seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text[:-1]) * units[text[-1]]
        if not 0 < seconds < float("inf"):
            raise ValueError
        return seconds
    except (KeyError, ValueError, IndexError):
        raise NormlibError(f"--budget {text!r} is no duration; write a number with a unit, such as 90s, 20m or 2h") from None


def _list(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from normlib.lab import PRESETS, Store
    from normlib.studies import STUDIES, get_study

    store = Store.default(options.results)
    table = Table("study", "title", *PRESETS, box=None, header_style="bold")
    for study_id in STUDIES:
        study = get_study(study_id)
        cells = []
        for preset in PRESETS:
            if preset not in study.presets():
                cells.append("–")
                continue
            records = [r for r in store.read(study_id, preset) if r.status != "failed"]
            fresh = sum(study.is_fresh(r) for r in records)
            stale = f" +{len(records) - fresh} stale" if len(records) > fresh else ""
            cells.append(f"{fresh}/{len(study.trials(preset))}{stale}")
        table.add_row(study_id, study.title, *cells)
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)
    return 0


def _show(options: argparse.Namespace) -> int:
    from normlib.lab import Store
    from normlib.lab.results import best_records, provenance_line
    from normlib.studies import get_study

    study = get_study(options.study)
    found = best_records(study, Store.default(options.results), options.preset)
    drawing = found.drawing()
    if options.out:
        try:
            if not options.out.suffix:
                raise ValueError("the name needs an ending, such as .svg")
            drawing.figure.savefig(options.out)
        except (OSError, ValueError) as error:
            raise NormlibError(f"the figure could not be written to {options.out}: {error}") from error
    print(f"{study.id}: {study.title}\n\n{drawing.caption}\n\n{provenance_line(found)}\n")
    for claim, judgement in found.judge():
        print(f"  {judgement.verdict.value:>18}  {claim.statement}\n{'':20}  {judgement}. {judgement.note}".rstrip())
    return 0


def _claims(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from normlib.lab import Store
    from normlib.lab.results import ledger
    from normlib.studies import STUDIES, get_study

    rows = ledger(Store.default(options.results), map(get_study, _chosen(options.studies or list(STUDIES))))
    table = Table("claim", "statement", "measured", "verdict", box=None, header_style="bold")
    for row in rows:
        table.add_row(row.claim.id, row.claim.statement, str(row.judgement or "–"), row.verdict)
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)
    return 0


def _data(options: argparse.Namespace) -> int:
    from normlib import data

    if options.name:
        found = data.fetch(options.name)
        print(found)
        return 0
    print(data.describe())
    return 0


def _bench(options: argparse.Namespace) -> int:
    """Measure on this machine, whatever records there are, and print what was measured."""
    from rich.console import Console
    from rich.table import Table

    from normlib.lab import Store, number, run
    from normlib.studies import get_study

    study = get_study(BENCHES[options.what])
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        outcome = run(study, options.preset, store=store, device=options.device, seeds=1, progress=sys.stderr.isatty())
        rows = [{**{f: r.config[f] for f in study.vary}, **r.table} for r in store.read(study.id, options.preset)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        values = (row.get(name, "–") for name in columns)
        table.add_row(*(number(v) if isinstance(v, float) else str(v) for v in values))
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)
    print(_told(outcome))
    return 130 if outcome.interrupted else 1 if outcome.failures else 0
