"""A worker gets no more than it may have, and whoever meets a limit is told which."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import BrokenWorkerError, LocalProtocolError, RemoteProtocolError
from isohub.wire.values import MAX_HANDLES

RepoOf = Callable[..., str]
HUBCONF = """
    import ctypes
    import os
    import subprocess
    import sys
    import torch

    class Net(torch.nn.Module):
        def __init__(self, nbytes=12):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(nbytes // 4))

        def tensor(self, nbytes):
            return torch.ones(nbytes // 4).sum().item()

        def result(self, nbytes):
            return torch.ones(nbytes // 4)

        def python(self, nbytes):
            return len(bytearray(nbytes))

        def wrapped(self, nbytes):
            try:
                self.tensor(nbytes)
            except RuntimeError as error:
                raise ValueError("no such size") from error

        def native(self, nbytes):
            libc = ctypes.CDLL(None)
            libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
            if not libc.malloc(nbytes):
                libc.abort()

        def child(self, nbytes):
            done = subprocess.run([sys.executable, "-c", f"bytearray({nbytes})"], capture_output=True, text=True)
            return done.stderr.strip().rpartition("\\n")[2]

        def files(self, count):
            files = [open(os.devnull) for _ in range(count)]
            return len(files)

        def other_error(self):
            raise OSError(2, "no such file")

    def net(nbytes=12):
        return Net(nbytes)

    class Thing:
        pass

    def things(count):
        return [Thing() for _ in range(count)]

    def too_many(count):
        from isohub.worker import objects
        objects.MAX_HANDLES = 1 << 40
        return things(count)

    def flood(nbytes, line):
        text = b"x" * (line - 1) + (b"\\n" if line else b"")
        for _ in range(nbytes // len(text)):
            os.write(2, text)
        return nbytes
"""
MEMORY_BYTES = 256 << 20
LIMIT = f"Isolation(memory_bytes={MEMORY_BYTES})"


@pytest.fixture
def repo(repo_of: RepoOf) -> str:
    return repo_of(HUBCONF)


def load(repo: str, *args: Any, **limits: int) -> Any:
    return isohub.load(repo, "net", *args, isolate=isohub.Isolation(**limits))


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


@pytest.mark.parametrize(("how", "kind"), [("tensor", RuntimeError), ("python", MemoryError), ("wrapped", ValueError)])
def test_memory(repo: str, how: str, kind: type[Exception]):
    """What goes over the limit is an exception that names it, and the worker goes on with what is below."""
    model = load(repo, memory_bytes=MEMORY_BYTES)
    with pytest.raises(kind) as caught:
        getattr(model, how)(2 * MEMORY_BYTES)

    assert LIMIT in notes(caught.value)
    assert model.python(MEMORY_BYTES // 2) == MEMORY_BYTES // 2
    assert model.tensor(MEMORY_BYTES // 2) == MEMORY_BYTES // 8


def test_memory_is_not_limited_by_itself(repo: str):
    """Without a limit a worker takes as much as another one may not."""
    assert load(repo).python(2 * MEMORY_BYTES) == 2 * MEMORY_BYTES


def test_shared_memory(repo: str):
    """Weights and results that together do not fit into the limit are a MemoryError that names it."""
    with pytest.raises(MemoryError) as caught:
        load(repo, 48 << 20, memory_bytes=64 << 20).result(24 << 20)

    assert "Isolation(memory_bytes=67108864)" in str(caught.value)


def test_death_by_memory(repo: str):
    """A worker whose native code dies for want of memory is told of with its limit."""
    model = load(repo, memory_bytes=MEMORY_BYTES)
    with pytest.raises(BrokenWorkerError, match="SIGABRT") as caught:
        model.native(2 * MEMORY_BYTES)

    assert LIMIT in str(caught.value)


def test_memory_of_what_it_starts(repo: str):
    """A process that the repository starts has the limit as well."""
    limited, free = load(repo, memory_bytes=MEMORY_BYTES), load(repo)

    assert [limited.child(1 << 30), free.child(1 << 30)] == ["MemoryError", ""]


def test_open_files(repo: str):
    """One file too many is an OSError that names the limit."""
    model = load(repo, open_files=64)
    with pytest.raises(OSError, match="Too many open files") as caught:
        model.files(64)

    assert "Isolation(open_files=64)" in notes(caught.value)
    assert model.files(10) == 10


def test_other_errors_speak_of_no_limit(repo: str):
    """An error that has nothing to do with a limit does not name it."""
    model = load(repo, memory_bytes=MEMORY_BYTES, open_files=64)
    with pytest.raises(FileNotFoundError) as caught:
        model.other_error()

    assert notes(caught.value) == ""


def test_workers_of_other_limits_are_others(repo: str):
    """Loads of one commit share a worker only with those of the same limits."""
    pids = [load(repo, **limits).isohub.pid for limits in ({}, {"open_files": 64}, {"memory_bytes": MEMORY_BYTES}, {})]

    assert pids[0] == pids[3]
    assert len(set(pids)) == 3


def test_handles_are_released(repo: str):
    """Objects that nobody here holds any more are gone from the worker, so that any number may come and go."""
    count = MAX_HANDLES // 3 + 1
    for _ in range(3):
        things = isohub.load(repo, "things", count)
        assert len({id(thing) for thing in things}) == count
        del things


def test_too_many_handles(repo: str):
    """A result with more objects than can be held is an error here, and the worker goes on."""
    with pytest.raises(LocalProtocolError, match=f"more than {MAX_HANDLES} objects"):
        isohub.load(repo, "things", MAX_HANDLES + 1)

    assert len(isohub.load(repo, "things", 3)) == 3


def test_worker_that_sends_too_many_handles(repo: str):
    """A worker that sends more handles than it may is killed."""
    with pytest.raises(RemoteProtocolError, match="handles"):
        isohub.load(repo, "too_many", MAX_HANDLES + 1)

    assert len(isohub.load(repo, "things", 3)) == 3


@pytest.mark.parametrize("line", [100, 1 << 20], ids=["short lines", "no lines"])
def test_flood_takes_no_memory_here(repo: str, line: int):
    """A hundred megabytes of output are read to the end, and this process keeps the last lines only."""
    isohub.list(repo)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = peak_bytes()

    assert isohub.load(repo, "flood", 100 << 20, line, verbose=False) == 100 << 20

    assert peak_bytes() - before < 8 << 20


def peak_bytes() -> int:
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def test_result_within_the_limit(repo: str):
    """A result that fits comes as ever."""
    result = load(repo, memory_bytes=64 << 20).result(16 << 20)

    assert torch.equal(torch.ones(4 << 20), result)
