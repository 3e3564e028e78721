"""Commands that measure: `run`, which adds records, and `bench`, which adds none."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from normlib.cli.common import (
    PRESET_NAMES,
    Commands,
    add_command,
    add_results,
    add_studies,
    chosen_presets,
    chosen_studies,
    is_terminal,
    print_table,
    seconds,
)
from normlib.errors import NormlibError

if TYPE_CHECKING:
    from normlib.lab import Outcome, Record

BENCHES = {"layers": "notes.speed", "weights": "notes.standardization_cost", "seeds": "notes.seeds_together"}


def declare(commands: Commands) -> None:
    """Add this module's commands."""
    declare_run(commands)
    declare_bench(commands)


def declare_run(commands: Commands) -> None:
    """Add `run`."""
    parser = add_command(commands, "run", run, "run what has no fresh record yet")
    add_studies(parser)
    parser.add_argument("--pending", action="store_true", help="every study that has this preset, what the book lacks most first")
    parser.add_argument("--preset", default="quick", help="quick, laptop or full (default: quick)")
    parser.add_argument("--device", help="cpu or cuda (default: the best there is; quick runs on the CPU)")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: the preset's own)")
    parser.add_argument("--workers", type=int, help="number of processes (default: one per core; quick runs in this process)")
    parser.add_argument("--cluster", metavar="ADDRESS", help="a Dask scheduler's address, such as tcp://10.0.0.1:8786")
    parser.add_argument("--budget", help="start no trial after this long, such as 90s, 20m or 2h")
    parser.add_argument("--time-limit", help="give up a trial after this long, and record it as failed")
    add_results(parser)


def declare_bench(commands: Commands) -> None:
    """Add `bench`."""
    parser = add_command(commands, "bench", bench, "time what the library adds, against what people use today")
    parser.add_argument(
        "what", nargs="?", choices=[*BENCHES, "lab"], default="layers", help="what to time (lab: the engine itself)"
    )
    parser.add_argument("--preset", choices=PRESET_NAMES, default="laptop", help="sizes and repetitions (default: laptop)")
    parser.add_argument("--device", default="cpu")


def run(options: argparse.Namespace) -> int:
    """Run what is missing, study by study."""
    from normlib import lab
    from normlib.lab.reading.survey import most_wanted, survey
    from normlib.studies import get_study

    chosen_presets(options.preset)
    if not options.studies and not options.pending:
        raise NormlibError("name at least one study (`normlib list` shows them), or pass --pending for all that lack records")
    store = lab.Store.default(options.results)
    deadline = time.monotonic() + seconds(options.budget, "--budget") if options.budget is not None else None
    limit = seconds(options.time_limit, "--time-limit") if options.time_limit is not None else None
    ids = chosen_studies(options.studies)
    if options.pending:
        ids = most_wanted(survey(map(get_study, ids), store, PRESET_NAMES), options.preset)
    status, waiting = 0, [(study_id, not options.pending) for study_id in ids]
    while waiting:
        study_id, wait = waiting.pop(0)
        outcome = lab.run(
            get_study(study_id),
            options.preset,
            store=store,
            device=options.device,
            seeds=options.seeds,
            workers=options.workers,
            cluster=options.cluster,
            time_limit=limit,
            deadline=deadline,
            progress=is_terminal(sys.stderr),
            wait_for_others=wait,
        )
        if outcome.busy and not wait:  # another process has it: take the others first, so that two processes share the work
            waiting.append((study_id, True))
            continue
        print(told(outcome), flush=True)
        if outcome.interrupted:
            return 130
        status = max(status, 1 if outcome.failures or outcome.left else 0)
    return status


def told(outcome: Outcome) -> str:
    """Say what a run did, one line and one more for each failure."""
    parts = [f"{outcome.ran} run", f"{outcome.skipped} there already"]
    if outcome.diverged:
        parts.append(f"{outcome.diverged} diverged")
    if outcome.busy:
        parts.append("another process is running it")
    elif outcome.left:
        parts.append(f"{outcome.left} left; run the same command again to go on")
    lines = [f"{outcome.study} {outcome.preset}: " + ", ".join(parts)]
    return "\n".join(lines + [f"  failed: {reason}" for reason in outcome.failures])


def bench(options: argparse.Namespace) -> int:
    """Measure on this machine, whatever records there are, and print what was measured."""
    from normlib import lab
    from normlib.studies import get_study

    if options.what == "lab":
        from normlib.lab.running.benchmark import lab_costs

        columns = lab_costs()
        _print_rows([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
        return 0
    study = get_study(BENCHES[options.what])
    with tempfile.TemporaryDirectory() as folder:
        store = lab.Store(Path(folder))
        outcome = lab.run(study, options.preset, store=store, device=options.device, seeds=1, progress=is_terminal(sys.stderr))
        records = store.read(study.id, options.preset)
    _print_rows([row for record in records for row in _rows(record, study.vary)])
    print(told(outcome))
    return 130 if outcome.interrupted else 1 if outcome.failures else 0


def _rows(record: Record, factors: Iterable[str]) -> list[dict[str, object]]:
    """Lay out a record: one row, or as many as its columns are long."""
    rows = max((len(v) for v in record.table.values() if isinstance(v, list)), default=1)
    table = {name: value if isinstance(value, list) else [value] * rows for name, value in record.table.items()}
    settings = {name: record.config[name] for name in factors}
    return [{**settings, **{name: column[i] for name, column in table.items()}} for i in range(rows)]


def _print_rows(rows: Sequence[Mapping[str, object]]) -> None:
    from rich.table import Table

    from normlib import lab

    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        values = (row.get(name, "–") for name in columns)
        table.add_row(*(lab.number(v) if isinstance(v, float) else str(v) for v in values))
    print_table(table)
