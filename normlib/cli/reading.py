"""Commands that read records and measure nothing: `list`, `show`, `claims`; and `data`, which tells where data sets are."""

from __future__ import annotations

import argparse
from pathlib import Path

from normlib.cli.common import Commands, add_command, add_results, add_studies, chosen_studies, print_table
from normlib.errors import NormlibError


def declare(commands: Commands) -> None:
    """Add this module's commands."""
    declare_list(commands)
    declare_show(commands)
    declare_claims(commands)
    declare_data(commands)


def declare_list(commands: Commands) -> None:
    """Add `list`."""
    add_results(add_command(commands, "list", list_studies, "every study, with the records there are"))


def declare_show(commands: Commands) -> None:
    """Add `show`."""
    parser = add_command(commands, "show", show, "one study: its figure, records and verdicts")
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument("--preset", help="which records (default: the best there are)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figure (.svg, .png, .pdf)")
    add_results(parser)


def declare_claims(commands: Commands) -> None:
    """Add `claims`."""
    parser = add_command(commands, "claims", claims, "every claim with its verdict")
    add_studies(parser)
    add_results(parser)


def declare_data(commands: Commands) -> None:
    """Add `data`."""
    parser = add_command(commands, "data", data, "where each data set is found; with a name, fetch it")
    parser.add_argument("name", nargs="?")


def list_studies(options: argparse.Namespace) -> int:
    """Print every study with the number of records at each preset."""
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
    print_table(table)
    return 0


def show(options: argparse.Namespace) -> int:
    """Print one study's caption, provenance and verdicts; write its figure where asked."""
    from normlib.lab import Store
    from normlib.lab.reading.results import best_records, provenance_line
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


def claims(options: argparse.Namespace) -> int:
    """Print the ledger of claims."""
    from rich.table import Table

    from normlib.lab import Store
    from normlib.lab.reading.results import ledger
    from normlib.studies import get_study

    rows = ledger(Store.default(options.results), map(get_study, chosen_studies(options.studies)))
    table = Table("claim", "statement", "measured", "verdict", box=None, header_style="bold")
    for row in rows:
        table.add_row(row.claim.id, row.claim.statement, str(row.judgement or "–"), row.verdict)
    print_table(table, width=200)
    return 0


def data(options: argparse.Namespace) -> int:
    """Print where data sets are found, or fetch one."""
    from normlib import data

    print(data.fetch(options.name) if options.name else data.describe())
    return 0
