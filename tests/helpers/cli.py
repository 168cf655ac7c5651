"""Running isohub's command line: as a program of its own, or within this process where a start is too dear."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from typer.testing import CliRunner, Result

from isohub.cli.main import app
from tests.helpers.warm import WarmPython

__all__ = ["PROGRAM", "invoke", "nothing_left", "run"]

PROGRAM = (sys.executable, "-m", "isohub")
_PR_SET_CHILD_SUBREAPER = 36


def run(*arguments: str, python: WarmPython | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the real program, without a terminal; forked from `python`, if that is given."""
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "ISOHUB_DEBUG")}
    if python is not None:
        return python.run(["-m", "isohub", *arguments], env={**environment, **env})
    return subprocess.run(
        [*PROGRAM, *arguments], env={**environment, **env}, capture_output=True, text=True, check=False, timeout=110
    )


def invoke(*arguments: str, **env: str) -> Result:
    """Run a command in this process, with workers from the forkserver that is there."""
    return CliRunner().invoke(app, arguments, env={"ISOHUB_DEBUG": None, **env})


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail if a program that the body ran leaves a process behind: orphans come to this process meanwhile."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    before = _children()
    try:
        yield
        left = [Path(f"/proc/{pid}/stat").read_text() for pid in _children() - before]
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert left == []


def _children() -> set[int]:
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
