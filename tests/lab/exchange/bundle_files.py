"""Bundles taken apart, changed and put together again."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

from normlib.lab.exchange.bundles import MANIFEST
from normlib.lab.records.record import _canonical, _checksum

Members = dict[str, bytes]
NAME = "records/toy.record/quick.jsonl"
DATE = "2026-01-02T03:04:05+00:00"


def members_of(bundle: Path) -> Members:
    with zipfile.ZipFile(bundle) as file:
        return {name: file.read(name) for name in file.namelist()}


def pack(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def resealed(members: Members) -> Members:
    """Make the manifest fit the members again, as someone would who changes records on purpose."""
    manifest = json.loads(members[MANIFEST])
    for member in manifest["members"]:
        member["sha256"] = hashlib.sha256(members[member["name"]]).hexdigest()
    return {**members, MANIFEST: json.dumps(manifest).encode()}


def forged(line: bytes, **changes: Any) -> bytes:
    """Change a line and give it the checksum that fits."""
    body = {**json.loads(line), **changes}
    body.pop("check")
    return _canonical({**body, "check": _checksum(_canonical(body))}).encode()


def manifest(**changes: Any) -> bytes:
    body = {"bundle": 1, "normlib": "0", "commit": None, "dirty": False, "created": DATE, "members": [], **changes}
    return json.dumps({name: value for name, value in body.items() if value != "gone"}).encode()
