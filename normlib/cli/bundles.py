"""Commands for records that travel: `export` writes a bundle, `import` verifies one and takes its records in."""

from __future__ import annotations

import argparse
from pathlib import Path

from normlib.cli.common import Commands, add_command, add_results, add_studies, chosen_presets, chosen_studies, tell


def declare(commands: Commands) -> None:
    """Add this module's commands."""
    declare_export(commands)
    declare_import(commands)


def declare_export(commands: Commands) -> None:
    """Add `export`."""
    parser = add_command(commands, "export", export_bundle, "write records into one file, to hand them over")
    parser.add_argument("file", type=Path, metavar="FILE", help="the bundle to write, such as records.zip")
    add_studies(parser)
    parser.add_argument("--preset", help="only records of this preset")
    add_results(parser)


def declare_import(commands: Commands) -> None:
    """Add `import`."""
    parser = add_command(commands, "import", import_bundle, "verify a bundle of records and take in what is new")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--keep-sound", action="store_true", help="take the sound records of a bundle that is damaged in part")
    parser.add_argument("--stale", action="store_true", help="take records of other code than there is here as well")
    add_results(parser)


def export_bundle(options: argparse.Namespace) -> int:
    """Write the records of the folder into one file."""
    from normlib.lab import Store
    from normlib.lab.exchange.bundles import write_bundle

    studies, presets = chosen_studies(options.studies), chosen_presets(options.preset)
    manifest = write_bundle(options.file, Store.default(options.results), studies, presets)
    for member in manifest.members:
        print(f"{member.study} {member.preset}: {member.lines} records")
    print(f"{options.file}: {manifest.lines} records, {options.file.stat().st_size / 1e3:,.0f} kB")
    return 0


def import_bundle(options: argparse.Namespace) -> int:
    """Verify a bundle, append what is new, and name the rest with its place; 1 if something was refused."""
    from normlib.lab import Store
    from normlib.lab.exchange.intake import REFUSED, summary, take
    from normlib.studies import STUDIES

    found = take(options.file, Store.default(options.results), STUDIES, keep_sound=options.keep_sound, stale=options.stale)
    for text in summary(found.findings):
        tell(f"  {text}")
    left = {fault: found.count(fault) for fault in ("duplicate", "stale", *REFUSED)}
    words = {"duplicate": "there already"}
    parts = [f"{len(found.taken)} taken", *(f"{count} {words.get(fault, fault)}" for fault, count in left.items() if count)]
    print(f"{options.file}: {', '.join(parts)}")
    return 1 if any(left[fault] for fault in REFUSED) else 0
