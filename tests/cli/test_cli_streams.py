"""The command line where the standard streams are closed or refuse what is written."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from normlib.cli.common import is_terminal

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def shell(command: str, folder: Path) -> tuple[int, str, str]:
    """Run the command line in a shell, with its redirections."""
    text = f"{shlex.quote(sys.executable)} -m normlib {command}"
    environment = {**os.environ, "NORMLIB_RESULTS": str(folder)}
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", ["status lecun1998.rates", "claims lecun1998.rates"])
def test_a_closed_output_is_no_error(tmp_path: Path, command: str) -> None:
    assert shell(f"{command} >&-", tmp_path) == (0, "", "")


def test_a_message_does_not_go_to_the_output_where_there_is_no_other_place(tmp_path: Path) -> None:
    assert shell("show nobody2020 2>&-", tmp_path) == (2, "", "")
    assert shell("show nobody2020 <&- >&- 2>&-", tmp_path) == (2, "", "")


@needs_full
@pytest.mark.parametrize("command", ["status lecun1998.rates", "status lecun1998.rates --json"])
def test_an_output_that_is_full_is_one_message(tmp_path: Path, command: str) -> None:
    message = "normlib: the command could not go on: [Errno 28] No space left on device\n"
    assert shell(f"{command} >/dev/full", tmp_path) == (2, "", message)


@needs_full
def test_a_message_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    assert shell("show nobody2020 2>/dev/full", tmp_path) == (2, "", "")


def test_a_pipe_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m normlib status lecun1998.rates --json"
    text = f"{{ sleep 0.1; {command}; echo $? >&2; }} | true"
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False)
    assert done.stderr == "0\n"


def test_a_stream_that_is_closed_or_none_is_no_terminal() -> None:
    closed = io.StringIO()
    closed.close()
    assert [is_terminal(stream) for stream in (None, closed, io.StringIO())] == [False] * 3
    main, terminal = os.openpty()
    with os.fdopen(main, "rb"), os.fdopen(terminal, "w") as stream:
        assert is_terminal(stream)
