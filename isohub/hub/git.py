"""The one place that runs the `git` program.

What comes out depends on the arguments alone: no configuration, attributes, hooks or templates of the
user or the system, no variable of a git hook that this process may run in.

Talking to another machine is the exception, and only that: there the user's own git knows the way in, by
credential helpers, ssh, proxies and certificates. Over https it waits no longer than `http` for a server that has
fallen silent. A token of the environment goes before these; it is handed
on by a variable, since anybody can read the arguments of a program, and as a credential, which git gives to
the named host alone.

Such a git may wait for a server without end, so it must not outlive this process, not even one that is killed:
a shell holds it on a leash, a pipe whose other end is here, and kills it with its helpers when that end closes.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from isohub.errors import FetchError, UnreachableError
from isohub.hub import http
from isohub.hub.tokens import token_of

__all__ = ["DEFAULT_TIMEOUT_S", "GitError", "is_installed", "run", "unreadable"]

# Ten minutes bring 600 MB over a line of 1 MB/s; a git that hangs on a dead network disk ends at last.
DEFAULT_TIMEOUT_S = 600.0

_WAITING_EVERY_S = 0.25
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


# What a user sets for the way to a server. The rest of git's variables is about some other repository.
_KEPT_FOR_REMOTES = re.compile(
    r"GIT_(ASKPASS|SSH|SSH_COMMAND|SSH_VARIANT|SSL_\w+|HTTP_\w+|PROXY_\w+|CONFIG_(GLOBAL|SYSTEM|NOSYSTEM|COUNT|KEY_\d+|"
    r"VALUE_\d+)|TRACE\w*)"
)
# `$0` is the pipe, `$@` git. The watcher is waited for, since not every container has someone who does it later.
_LEASH = """
{ read -r _ <"$0"; kill -KILL 0; } &
"$@"
status=$?
{ kill -KILL $!; wait $!; } 2>/dev/null
exit $status
"""
_TOKEN_VARIABLE = "ISOHUB_GIT_TOKEN"  # noqa: S105 - the name of a variable


_NO_ANSWER = re.compile(
    r"Could not resolve host|Failed to connect|Couldn't connect|Connection (timed out|refused)|No route to host|"
    r"Network is unreachable|Could not resolve hostname|Name or service not known|Operation t(imed out|oo slow)|"
    r"Empty reply"
)


class GitError(FetchError):
    """`git` ran and failed.

    Attributes:
        stderr: What it said, without control characters, shortened to its end.
    """

    def __init__(self, message: str, *, stderr: str) -> None:
        super().__init__(message)
        self.stderr = stderr


def is_installed() -> bool:
    """Tell whether there is a `git` program."""
    return shutil.which("git") is not None


def run(
    args: Sequence[str],
    cwd: Path | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    *,
    remote: str | None = None,
    stdin: bytes = b"",
    stdout: IO[bytes] | None = None,
    waiting: Callable[[], None] | None = None,
) -> str:
    """Run `git` and return its stdout; bytes that are not UTF-8 come as surrogate escapes.

    Args:
        args: The subcommand and its arguments. Never put a ref's name here unless `--` stands before it.
        cwd: Where it runs; None for the current folder.
        timeout_s: Seconds after which git, with all that it started, is killed.
        remote: The URL on another machine that it talks to; then the user's own settings count.
        stdin: What it reads.
        stdout: Where its output goes, if it is not wanted as a text.
        waiting: Called now and then while it runs.

    Raises:
        GitError: It failed or took too long.
        FetchError: There is no `git` program.
    """
    with _started(args, cwd, remote, stdout) as process:
        try:
            printed, stderr = _communicate(process, stdin, timeout_s, waiting)
        except subprocess.TimeoutExpired as error:
            _kill_session(process)
            raise GitError(f"git {_verb(args)} took longer than {timeout_s:g} s", stderr="") from error
        except BaseException:  # Ctrl-C: git is in a session of its own and did not get it
            _kill_session(process)
            raise
    if process.returncode != 0:
        said = _clean(stderr)
        raise GitError(f"git {_verb(args)} failed: {said or f'exit code {process.returncode}'}", stderr=said)
    return (printed or b"").decode("utf-8", "surrogateescape")


def _communicate(
    process: subprocess.Popen[bytes], stdin: bytes, timeout_s: float, waiting: Callable[[], None] | None
) -> tuple[bytes | None, bytes]:
    end_s = time.monotonic() + timeout_s
    given: bytes | None = stdin
    while True:
        left_s = end_s - time.monotonic()
        try:
            return process.communicate(given, timeout=left_s if waiting is None else min(left_s, _WAITING_EVERY_S))
        except subprocess.TimeoutExpired:
            if waiting is None or time.monotonic() >= end_s:
                raise
            given = None  # it goes on with what it was given first
            waiting()


def unreadable(url: str, error: GitError) -> FetchError:
    """Return the error for a repository that git cannot read: unreachable, if git says that nobody answered."""
    kind = UnreachableError if _NO_ANSWER.search(error.stderr) else FetchError
    return kind(f"Cannot read {url}: {_meaning(url, error.stderr)}{error}", url=url)


def _meaning(url: str, stderr: str) -> str:
    """Return what ssh's refusals mean, and what to do about them, since it would ask and nobody is there to answer."""
    if not url.startswith("ssh://"):
        return ""
    server = urlsplit(url).netloc
    host, _, port = server.rpartition("@")[2].partition(":")
    login = f"ssh -T{f' -p {port}' if port else ''} {server.removesuffix(f':{port}')}"
    if "IDENTIFICATION HAS CHANGED" in stderr:
        known = f"'[{host}]:{port}'" if port else host
        return (
            f"{host} shows another key than the one that ssh knows of it, so it may be another machine. Ask who "
            f"runs it; if its key was replaced, forget the old one by `ssh-keygen -R {known}`, and see that "
            f"`{login}` shows the new one. "
        )
    if "Host key verification failed" in stderr or "host key is known" in stderr:
        return (
            f"ssh does not know {host}, and nobody is asked here whether its key is right. Log in once by `{login}`, "
            "compare the key that it shows, and say yes. "
        )
    if "Permission denied (" in stderr:
        return (
            f"{host} lets none of your keys in. See that `{login}` works without a question: give the host your public "
            "key, name the private one in ~/.ssh/config, and let ssh-agent hold it if it has a passphrase. "
        )
    return ""


@contextmanager
def _started(
    args: Sequence[str], cwd: Path | None, remote: str | None, stdout: IO[bytes] | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start git for the body, on a leash if it talks to another machine."""
    if remote is None:
        with _start(["git", *_arguments(args)], cwd, _environment(), stdout) as process:
            yield process
        return
    watched, held = os.pipe()
    try:
        try:
            command = ["/bin/sh", "-c", _LEASH, f"/proc/self/fd/{watched}", "git", *_arguments(args)]
            process = _start(command, cwd, _environment_for(remote), stdout, pass_fds=(watched,))
        finally:
            os.close(watched)
        with process:
            yield process
    finally:
        os.close(held)


def _start(
    command: list[str],
    cwd: Path | None,
    environment: dict[str, str],
    stdout: IO[bytes] | None,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    if not is_installed():
        raise FetchError("The git program was not found on PATH. Install git, or load a plain folder (a pathlib.Path)")
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.PIPE,  # and not the user's terminal: nobody is asked for a password
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
        start_new_session=True,  # so that its helpers (upload-pack, index-pack) can be killed with it
    )


def _arguments(args: Sequence[str]) -> list[str]:
    return [*(part for setting in _SETTINGS for part in ("-c", setting)), *args]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | _VARIABLES


def _environment_for(remote: str) -> dict[str, str]:
    """Return an environment in which the user's own configuration counts, and the token of that host first."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or _KEPT_FOR_REMOTES.fullmatch(name)
    }
    kept |= {name: value for name, value in _VARIABLES.items() if not name.startswith("GIT_CONFIG_")}
    # Git itself waits for a silent server without end.
    kept.setdefault("GIT_HTTP_LOW_SPEED_LIMIT", "1")
    kept.setdefault("GIT_HTTP_LOW_SPEED_TIME", f"{http.READ_TIMEOUT_S:.0f}")
    if bundle := http.ca_bundle():
        kept.setdefault("GIT_SSL_CAPATH" if Path(bundle).is_dir() else "GIT_SSL_CAINFO", bundle)
    parts = urlsplit(remote)
    token = token_of(parts.netloc) if parts.scheme in {"https", "http"} else None
    if token is not None:
        key = f"credential.{parts.scheme}://{parts.netloc}.helper"
        answer = f'echo "username={token.user}"; echo "password=${_TOKEN_VARIABLE}"'
        # The empty one takes back the user's helpers, or git would have them keep the token.
        settings = ["", f'!f() {{ test "$1" = get && {{ {answer}; }}; }}; f']
        count = int(kept.get("GIT_CONFIG_COUNT") or 0)
        for number, value in enumerate(settings, count):
            kept |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        kept |= {"GIT_CONFIG_COUNT": str(count + len(settings)), _TOKEN_VARIABLE: token.value}
    return kept


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    # Not yet waited for, so its id, which is its session's too, cannot belong to another process by now.
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)


def _verb(args: Sequence[str]) -> str:
    settings = {place + 1 for place, arg in enumerate(args) if arg == "-c"}
    return next((arg for place, arg in enumerate(args) if not arg.startswith("-") and place not in settings), "")


def _clean(stderr: bytes) -> str:
    return _CONTROL.sub("", stderr.decode("utf-8", "replace")).strip()[-_MAX_STDERR_CHARS:]
