"""The one place that runs the `git` program, with an environment that holds nothing of the caller's git.

What comes out depends on the arguments alone: no configuration, attributes, hooks or templates of the
user or the system, no variable of a git hook that this process may run in.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from isohub.errors import FetchError

__all__ = ["DEFAULT_TIMEOUT_S", "GitError", "run"]

# Ten minutes bring 600 MB over a line of 1 MB/s; a git that hangs on a dead network disk ends at last.
DEFAULT_TIMEOUT_S = 600.0

_MAX_STDERR_CHARS = 2000
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")

# `-c` is passed on to the git programs that git starts, apart from upload-pack: see hosts.py.
_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.attributesFile=/dev/null",  # it has a default place, which is read without any configuration
    "core.autocrlf=false",
    "core.fsmonitor=false",
    "protocol.ext.allow=never",  # ext:: URLs run a command
    "advice.detachedHead=false",
    "gc.auto=0",
    "maintenance.auto=false",
)

_VARIABLES = {
    "LC_ALL": "C",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_NO_LAZY_FETCH": "1",  # git 2.45: a partial clone fetches nothing on its own
    "GIT_NO_REPLACE_OBJECTS": "1",  # a commit is what its hash says, not what refs/replace says
    "GIT_TERMINAL_PROMPT": "0",
}


class GitError(FetchError):
    """`git` ran and failed.

    Attributes:
        stderr: What it said, without control characters, shortened to its end.
    """

    def __init__(self, message: str, *, stderr: str) -> None:
        super().__init__(message)
        self.stderr = stderr


def run(args: Sequence[str], cwd: Path | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> str:
    """Run `git` and return its stdout; bytes that are not UTF-8 come as surrogate escapes.

    Args:
        args: The subcommand and its arguments. Never put a ref's name here unless `--` stands before it.
        cwd: Where it runs; None for the current folder.
        timeout_s: Seconds after which git, with all that it started, is killed.

    Raises:
        GitError: It failed or took too long.
        FetchError: There is no `git` program.
    """
    process = _start(args, cwd)
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            _kill_session(process)
            raise GitError(f"git {_verb(args)} took longer than {timeout_s:g} s", stderr="") from error
        except BaseException:  # Ctrl-C: git is in a session of its own and did not get it
            _kill_session(process)
            raise
    if process.returncode != 0:
        said = _clean(stderr)
        raise GitError(f"git {_verb(args)} failed: {said or f'exit code {process.returncode}'}", stderr=said)
    return stdout.decode("utf-8", "surrogateescape")


def _start(args: Sequence[str], cwd: Path | None) -> subprocess.Popen[bytes]:
    settings = [part for setting in _SETTINGS for part in ("-c", setting)]
    try:
        return subprocess.Popen(
            ["git", *settings, *args],
            cwd=cwd,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that its helpers (upload-pack, index-pack) can be killed with it
        )
    except FileNotFoundError as error:
        if cwd is not None and not cwd.is_dir():
            raise
        raise FetchError(
            "The git program was not found on PATH. Install git, or load a plain folder (a pathlib.Path)"
        ) from error


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | _VARIABLES


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    # Not yet waited for, so its id, which is its session's too, cannot belong to another process by now.
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)


def _verb(args: Sequence[str]) -> str:
    return next((arg for arg in args if not arg.startswith("-")), "")


def _clean(stderr: bytes) -> str:
    return _CONTROL.sub("", stderr.decode("utf-8", "replace")).strip()[-_MAX_STDERR_CHARS:]
