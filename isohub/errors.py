"""Every exception class of isohub.

::

    Exception
    └── IsohubError                 every error of ours, so that one `except` catches all
        ├── RefError                (ValueError) the repo text cannot be read
        ├── ResolveError            (ValueError) the repo has no such ref, or cannot be asked
        ├── FetchError              (OSError) the files of a commit, or weights, could not be brought
        │   ├── UnreachableError    the host gave no answer, or the network may not be used
        │   └── ArchiveError        the archive is not what it should be
        ├── HashMismatchError       (RuntimeError) a file was brought, and is not the one that was meant
        ├── LockError               isohub.lock does not have what is loaded, or has something else
        ├── UntrustedRepoError      nobody said that this repository's code may run
        ├── EntrypointError         (RuntimeError, LookupError) hubconf.py has no such entrypoint
        ├── MissingDependencyError  (RuntimeError) hubconf.py names packages that are not installed
        ├── RemoteError             the repository's code raised; carries the remote traceback
        ├── ArtifactError           (RuntimeError) a model cannot be had without its code, or its file not be read
        ├── ComparisonError         (ValueError) what to compare, or with which inputs, cannot be understood
        │   ├── ExpressionError     the text of fail_on cannot be read
        │   └── BisectError         between these two commits there is nothing to be found
        ├── WorkerError             the worker process, not the code in it, is the trouble
        │   ├── WorkerStartError    it never became ready
        │   ├── BrokenWorkerError   it died
        │   │   ├── RestartError    a new one could not be started in its place, or a model not be built again there
        │   │   └── LostObjectError something died with it that cannot be built again
        │   ├── WorkerTimeoutError  (TimeoutError) it did not answer in time, and was killed
        │   ├── WorkerClosedError   it was closed by this program
        │   └── ForeignProcessError the handle belongs to another process (this one is a fork)
        └── ProtocolError           something cannot cross the border between parent and worker
            ├── LocalProtocolError  (TypeError) what this program gave cannot cross
            └── RemoteProtocolError the worker sent nonsense, and was killed

`LocalProtocolError` and `RemoteProtocolError` split the blame as h11 does: the first is for the
caller to mend, the second means that the worker must not be believed any more.
"""

from __future__ import annotations

import errno
from datetime import datetime
from pathlib import Path

__all__ = [
    "ArchiveError", "ArtifactError", "BisectError", "BrokenWorkerError", "ComparisonError", "EntrypointError",
    "ExpressionError", "FetchError", "ForeignProcessError", "HashMismatchError", "IsohubError", "LocalProtocolError",
    "LockError", "LostObjectError", "MissingDependencyError", "ProtocolError", "RefError", "RemoteError",
    "RemoteProtocolError", "ResolveError", "RestartError", "UnreachableError", "UntrustedRepoError",
    "WorkerClosedError", "WorkerError", "WorkerStartError", "WorkerTimeoutError",
]  # fmt: skip


class IsohubError(Exception):
    """Base of every exception that isohub raises on its own account."""


class RefError(IsohubError, ValueError):
    """The text that names a repository cannot be read.

    Attributes:
        text: The text as it was given.
    """

    def __init__(self, message: str, *, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class ResolveError(IsohubError, ValueError):
    """A repository has no such ref, or could not be asked for its refs.

    Attributes:
        repo: The repository, as a text or URL.
        ref: The branch, tag or commit that was looked for; None for the default branch.
    """

    def __init__(self, message: str, *, repo: str = "", ref: str | None = None) -> None:
        super().__init__(message)
        self.repo = repo
        self.ref = ref


class FetchError(IsohubError, OSError):
    """Something could not be brought to this machine: a list of refs, the files of a commit, weights.

    Attributes:
        url: Where it was asked for.
        commit: The commit, 40 hexadecimal digits; None when none is known yet.
        status: The HTTP status of the answer; None when there was none.
        limit: How many requests the host allows in a while; None when it does not say.
        reset_at: When it allows more; None when it does not say.
        token_variable: The environment variable whose token this host would take; None when it has none.
    """

    def __init__(
        self,
        message: str,
        *,
        url: str = "",
        commit: str | None = None,
        status: int | None = None,
        limit: int | None = None,
        reset_at: datetime | None = None,
        token_variable: str | None = None,
    ) -> None:
        super().__init__(message)
        self.url = url
        self.commit = commit
        self.status = status
        self.limit = limit
        self.reset_at = reset_at
        self.token_variable = token_variable


class UnreachableError(FetchError):
    """The host gave no answer at all, or the network may not be used (`ISOHUB_OFFLINE=1`)."""


class ArchiveError(FetchError):
    """An archive is not what it should be, or would write outside of its folder. Nothing of it was kept."""


class HashMismatchError(IsohubError, RuntimeError):
    """A file came whole, and its SHA-256 does not begin as it should.

    Attributes:
        url: Where it came from.
        expected: How the hash should begin, hexadecimal.
        actual: The whole hash of what came.
    """

    def __init__(self, message: str, *, url: str = "", expected: str = "", actual: str = "") -> None:
        super().__init__(message)
        self.url = url
        self.expected = expected
        self.actual = actual


class LockError(IsohubError):
    """A load would differ from the lock file, or there is no such file, or it cannot be read.

    Attributes:
        expected: The commit or hash that is locked; `""` if nothing is.
        actual: What it is in truth; `""` if that is not known.
    """

    def __init__(self, message: str, *, expected: str = "", actual: str = "") -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class UntrustedRepoError(IsohubError):
    """A repository is not trusted: it was refused on the terminal, or there was no terminal to ask on.

    Attributes:
        repo: The repository, as it is named in the list of trusted ones, e.g. `"owner/name"`.
        commit: The commit that was to run; None if it is not known yet.
    """

    def __init__(self, message: str, *, repo: str = "", commit: str | None = None) -> None:
        super().__init__(message)
        self.repo = repo
        self.commit = commit


class EntrypointError(IsohubError, RuntimeError, LookupError):
    """`hubconf.py` has no callable of that name.

    Attributes:
        entrypoint: The name that was asked for.
        available: The entrypoints that there are.
    """

    def __init__(self, message: str, *, entrypoint: str = "", available: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.entrypoint = entrypoint
        self.available = available


class MissingDependencyError(IsohubError, RuntimeError):
    """`hubconf.py` lists packages in `dependencies` that cannot be imported.

    Attributes:
        names: The packages that are missing.
    """

    def __init__(self, message: str, *, names: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.names = names


class RemoteError(IsohubError):
    """The repository's code raised an exception in its worker.

    An exception of a builtin type arrives as that builtin type, with a `RemoteError` as its
    `__cause__`. A class of the repository's own arrives as a `RemoteError` that also derives from
    the nearest builtin base, so that `except ValueError` catches a repo's `ModelError(ValueError)`.

    Attributes:
        type_name: Qualified name of the exception's class in the worker, e.g. `"models.ModelError"`.
        message: Its text.
        remote_traceback: The traceback as the worker printed it, whole `__cause__` chain included.
    """

    def __init__(self, message: str = "", *, type_name: str = "", remote_traceback: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.message = message
        self.remote_traceback = remote_traceback


class ArtifactError(IsohubError, RuntimeError):
    """A model cannot be turned into TorchScript or an exported program, or a file of one cannot be read.

    Attributes:
        entrypoint: The entrypoint that made it; empty for a file.
        compiler: `"script"`, `"trace"` or `"export"`; empty for a file.
        compiler_message: What that said, in its own words.
    """

    def __init__(self, message: str, *, entrypoint: str = "", compiler: str = "", compiler_message: str = "") -> None:
        super().__init__(message)
        self.entrypoint = entrypoint
        self.compiler = compiler
        self.compiler_message = compiler_message


class ComparisonError(IsohubError, ValueError):
    """What to compare, or with which inputs, cannot be understood, or cannot be done."""


class ExpressionError(ComparisonError):
    """The text of `fail_on` cannot be read, or names a figure that there is not.

    Attributes:
        text: The text as it was given.
    """

    def __init__(self, message: str, *, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class BisectError(ComparisonError):
    """Between a good and a bad commit no first bad one can be found.

    Attributes:
        good, bad: The commits, each of 40 hexadecimal digits.
    """

    def __init__(self, message: str, *, good: str = "", bad: str = "") -> None:
        super().__init__(message)
        self.good = good
        self.bad = bad


class WorkerError(IsohubError):
    """The worker process failed, rather than the code that it runs.

    Attributes:
        worker: Which worker, e.g. `"owner/name@1a2b3c4 pid=812"`.
        stderr_tail: The last lines that it wrote to its stderr, oldest first.
    """

    def __init__(self, message: str, *, worker: str = "", stderr_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.worker = worker
        self.stderr_tail = stderr_tail


class WorkerStartError(WorkerError):
    """A worker, or the forkserver that workers come from, did not become ready."""


class BrokenWorkerError(WorkerError):
    """A worker process died while it was needed.

    Attributes:
        exit_code: What it exited with; None when a signal ended it, or when it is not known.
        signal: Name of the signal that ended it, e.g. `"SIGKILL"`; None when none did.
    """

    def __init__(
        self, message: str, *, worker: str = "", stderr_tail: tuple[str, ...] = (),
        exit_code: int | None = None, signal: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message, worker=worker, stderr_tail=stderr_tail)
        self.exit_code = exit_code
        self.signal = signal


class RestartError(BrokenWorkerError):
    """A worker died, and could not be replaced by a new one, or a model could not be built again in that.

    Attributes:
        entrypoint: The entrypoint that was to build it again; empty if it did not come to that.
        differences: Where the model that was built differs from the one that died.
        retry_after_s: After how many seconds a call will try again; None if the next one does.
    """

    def __init__(
        self,
        message: str,
        *,
        worker: str = "",
        stderr_tail: tuple[str, ...] = (),
        exit_code: int | None = None,
        signal: str | None = None,
        entrypoint: str = "",
        differences: tuple[str, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, worker=worker, stderr_tail=stderr_tail, exit_code=exit_code, signal=signal)
        self.entrypoint = entrypoint
        self.differences = differences
        self.retry_after_s = retry_after_s


class LostObjectError(BrokenWorkerError):
    """Something died with its worker, and cannot be built again: no load returned it as it was.

    Attributes:
        lost: What it was, e.g. `"a RemoteObject (generator)"`.
    """

    def __init__(
        self, message: str, *, worker: str = "", stderr_tail: tuple[str, ...] = (),
        exit_code: int | None = None, signal: str | None = None, lost: str = "",
    ) -> None:  # fmt: skip
        super().__init__(message, worker=worker, stderr_tail=stderr_tail, exit_code=exit_code, signal=signal)
        self.lost = lost


class WorkerTimeoutError(WorkerError, TimeoutError):
    """A worker did not answer before its deadline, and was killed; or a call did not even get its turn.

    Attributes:
        timeout_s: The time that it had, in seconds.
        killed: Whether the worker was killed. It was not if other threads' calls took all the time.
    """

    def __init__(
        self, message: str, *, worker: str = "", stderr_tail: tuple[str, ...] = (),
        timeout_s: float = 0.0, killed: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(message, worker=worker, stderr_tail=stderr_tail)
        self.timeout_s = timeout_s
        self.killed = killed


class WorkerClosedError(WorkerError):
    """The worker was closed by this program, and something of it was used afterwards."""


class ForeignProcessError(WorkerError):
    """A handle was used in a process other than the one that made it, such as after a fork."""


class ProtocolError(IsohubError):
    """Something cannot cross the border between this program and a worker."""


class LocalProtocolError(ProtocolError, TypeError):
    """What this side was asked to send cannot be sent; nothing was sent.

    Attributes:
        where: The place in the value, e.g. `"args[0]['mask']"`.
    """

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(message)
        self.where = where


class RemoteProtocolError(ProtocolError):
    """The other side sent something that no honest peer sends.

    The parent kills a worker that does this. Seen without an attack it is a fault of isohub: please
    report it with the repository and commit.
    """


def missing_hubconf(directory: Path) -> FileNotFoundError:
    """Return the error for a checkout without hubconf.py, worded alike in parent and worker.

    It ends as torch.hub's, and has the same `errno` and `filename`.
    """
    text = f"No hubconf.py in {directory}: No such file or directory"
    return FileNotFoundError(errno.ENOENT, text, str(directory / "hubconf.py"))
