"""What a worker may take, held by the kernel, and told to whoever meets it."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from pathlib import Path

__all__ = ["hold", "notes"]

_NO_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "can't start new thread", "failed to map segment")
_held: dict[str, int] = {}


def hold(memory_bytes: int | None, open_files: int | None, threads: int) -> None:
    """Limit this process, and those that it starts.

    Args:
        memory_bytes: What it may take beside what it has now; None for no limit.
        open_files: Descriptors that it may have open; None for no other limit than now.
        threads: How many it is going to have for torch.
    """
    if memory_bytes is not None:
        # RLIMIT_DATA counts private memory that can be written to, since Linux 4.7: not the address space that
        # torch reserves and shared memory takes up, which RLIMIT_AS would. A stack counts with its full size.
        _hold(resource.RLIMIT_DATA, _private_bytes() + threads * _stack_bytes() + memory_bytes)
        _held["memory_bytes"] = memory_bytes
    if open_files is not None:
        _hold(resource.RLIMIT_NOFILE, open_files)
        _held["open_files"] = open_files


def notes(error: BaseException) -> list[str]:
    """Return what to say of limits to whoever gets `error`, which may come of one."""
    return [
        f"The worker has a limit, Isolation({name}={value}): raise it, or leave it out."
        for name, value in _held.items()
        if any(_MET[name](one) for one in _chain(error))
    ]


def _memory_met(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # torch's allocator raises a RuntimeError, an import an ImportError.
    if not isinstance(error, RuntimeError | ImportError):
        return False
    said = [argument for argument in error.args if type(argument) is str]
    return any(text in one for text in _NO_MEMORY for one in said)


def _files_met(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EMFILE


_MET = {"memory_bytes": _memory_met, "open_files": _files_met}


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that led to it."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _hold(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _private_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0


def _stack_bytes() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return 8 << 20 if soft == resource.RLIM_INFINITY else soft
