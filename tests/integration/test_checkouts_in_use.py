"""What this process uses of the cache stays there; what was removed since it was fetched is brought once more."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import isohub
from isohub import trace
from isohub.hub.cache import Cache
from isohub.hub.services import Services
from isohub.wire.messages import FilesAt, NeedFiles
from tests.helpers.cli import invoke
from tests.helpers.programs import Program
from tests.helpers.repos import git, make_repo, url, write_files
from tests.helpers.warm import WarmPython

VERSION = """
    def version():
        return {value}
"""
IN_PROCESS = """
import json, sys
import isohub
print(json.dumps(isohub.load({repo!r}, "version", isolate=False)))
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub folder of the test's own."""
    for name in ("ISOHUB_LOCK", "ISOHUB_LOCK_WRITE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return make_repo(tmp_path / "srv" / "models", {"v1": {"hubconf.py": VERSION.format(value=1)}})


def commit(repo: Path, value: int) -> None:
    """Let main go on by one commit."""
    write_files(repo, {"hubconf.py": VERSION.format(value=value)})
    git(repo, "commit", "--quiet", "--all", "--message", f"version {value}")


def remove_all() -> int:
    """Remove every checkout that nobody uses, as another process would; return how many are left."""
    invoke("cache", "rm", "--all")
    return len(list((Cache().root / "checkouts").glob("*/*/*/*/files")))


@contextmanager
def removing_after(name: str) -> Iterator[list[str]]:
    """Remove every checkout right after the first step of that name; what was removed is told."""
    removed: list[str] = []

    def listener(step: trace.Step) -> None:
        if step.name == name and step.state == "complete" and not removed:
            removed.append(step.name)
            assert remove_all() == 0

    trace.add_listener(listener)
    try:
        yield removed
    finally:
        trace.remove_listener(listener)


# -------------------------------------------------------------------------------------------- in this process


def test_load_in_process_keeps_its_checkout_until_shutdown(repo: Path):
    """What `isolate=False` has imported from stays in the cache, and `shutdown` gives it free."""
    assert isohub.load(url(repo, "v1"), "version", isolate=False) == 1
    assert remove_all() == 1

    isohub.shutdown()

    assert remove_all() == 0


def test_death_gives_free_what_a_load_in_process_keeps(repo: Path, warm_python: WarmPython, tmp_path: Path):
    """The checkout of a program that loaded with `isolate=False` stays until that is killed."""
    program = Program(["-c", IN_PROCESS.format(repo=url(repo, "v1"))], tmp_path / "program", python=warm_python)
    try:
        assert program.told() == 1
        assert remove_all() == 1
        program.send(signal.SIGKILL)
        program.end()
    finally:
        program.close()

    assert remove_all() == 0


def test_folder_in_process_is_not_leased(tmp_path: Path):
    """A folder that is loaded from with `isolate=False` costs no descriptor: it is not in the cache."""
    write_files(tmp_path / "tree", {"hubconf.py": VERSION.format(value=3)})
    before = sorted(path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink())

    assert isohub.load(tmp_path / "tree", "version", isolate=False) == 3

    assert before == sorted(path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink())


# ------------------------------------------------------------------------------------------- removed meanwhile


@pytest.mark.usefixtures("forkserver")
@pytest.mark.parametrize("isolate", [True, False])
def test_removed_before_its_use_is_brought_again(repo: Path, isolate: bool):
    """A checkout that is removed after its fetch comes again, of the same commit although its branch has moved."""
    opened = isohub.Repo(url(repo, "main"), isolate=isolate)
    before = opened.commit
    commit(repo, 2)
    assert remove_all() == 0

    assert opened.load("version") == 1

    assert opened.commit == before
    assert opened.checkout.files.is_dir()
    assert remove_all() == 1
    opened.close()


@pytest.mark.usefixtures("forkserver")
def test_removed_while_it_is_looked_at_is_brought_again(repo: Path):
    """A checkout that is removed right after its fetch is not taken for one without hubconf.py."""
    with removing_after("hub.fetch") as removed:
        assert isohub.load(url(repo, "v1"), "version") == 1

    assert removed == ["hub.fetch"]


@pytest.mark.usefixtures("forkserver")
def test_failed_lease_leaves_no_worker(repo: Path):
    """A checkout that is gone for good is an error, and no worker is left that never started."""
    opened = isohub.Repo(url(repo, "v1"))
    assert remove_all() == 0
    repo.rename(repo.with_name("moved"))

    with pytest.raises(isohub.errors.FetchError, match="models"):
        opened.load("version")

    assert isohub.workers() == []


def test_nested_checkout_that_is_removed_is_brought_again(repo: Path):
    """What a worker's code asks for is brought again if it is removed before it is leased for the worker."""
    services = Services("owner/name")
    with removing_after("hub.checkout") as removed:
        answer = services.files(NeedFiles(what="checkout", name=url(repo, "v1")))

    assert isinstance(answer, FilesAt)
    assert removed == ["hub.checkout"]
    assert remove_all() == 1
    services.close()
    assert remove_all() == 0
