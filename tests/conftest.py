"""Fixtures for all tests. Workers are real; the forkserver is shared by the tests of one pytest process."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.leaks import holdings
from tests.helpers.repos import make_repo, url
from tests.helpers.warm import WarmPython
from tests.helpers.warm import warm_python as running_warm_python


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the tests out of the user's cache."""
    home = tmp_path_factory.mktemp("torch-home")
    before = os.environ.get("TORCH_HOME")
    os.environ["TORCH_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["TORCH_HOME"]
    else:
        os.environ["TORCH_HOME"] = before
    api = sys.modules.get("isohub.api")
    if api is not None:
        api.shutdown()
        assert not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()


@pytest.fixture(scope="session")
def forkserver() -> int:
    """Process id of the forkserver, warm: everything that happens once has happened."""
    import torch

    torch.rand(64, 64) @ torch.rand(64, 64)
    return _forkserver_and_thread()


@pytest.fixture(scope="session")
def warm_python(own_cache: Path) -> Iterator[WarmPython]:
    """Start programs in an interpreter that has imported torch, where how they begin is not what is tested."""
    with running_warm_python() as python:
        yield python


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let neither process wait for threads that other programs keep from running: workers follow."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


_modules_passed_over = 0


def _collect() -> None:
    """Collect garbage, and pass over what imports made from now on.

    That stays, and to look through all of it (a quarter of a second once torch has imported its compiler, which it
    does late) around each test would take longer than most tests.
    """
    global _modules_passed_over  # noqa: PLW0603 - as the collector's own list of what it passes over
    if len(sys.modules) < _modules_passed_over + 50:
        gc.collect()
        return
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    _modules_passed_over = len(sys.modules)


def _forkserver_and_thread() -> int:
    """Start what all workers share, if a test before has ended it."""
    from isohub import api

    api._registry.warm_up()
    api._registry._background.watch()
    pid = api._registry.forkserver_pid
    assert pid is not None
    return pid


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, a descriptor, a mapping or a thread behind.

    A test that uses workers asks for the `forkserver` fixture (or one that does), which is then part of
    what was there before.
    """
    if "forkserver" in request.fixturenames:
        request.getfixturevalue("forkserver")
        _forkserver_and_thread()
    _collect()
    before = holdings()
    yield
    api = sys.modules.get("isohub.api")
    if api is not None:
        for worker in api.workers():
            worker.close()
        api.leases.let_go()  # as `isohub.shutdown` does, which would end the forkserver as well
    gc.collect()
    left = holdings().more_than(before)
    deadline = time.monotonic() + 2
    while left and time.monotonic() < deadline:  # a thread that is just ending
        left = holdings().more_than(before)
    assert not left, f"left behind: {left}"


@pytest.fixture
def repo_of(tmp_path: Path, forkserver: int) -> Callable[..., str]:
    """A function that makes a repository of one version and returns its repo text."""
    count = iter(range(1000))

    def build(files: dict[str, str | bytes] | str) -> str:
        if isinstance(files, str):
            files = {"hubconf.py": files}
        return url(make_repo(tmp_path / f"owner{next(count)}" / "repo", {"v1": files}), "v1")

    return build
