"""What a user of torch.hub finds, through the public functions, 13 to 16: errors, trust, folders.

The number in a test's name is that of the point, as in `test_conformance.py`.
"""

from __future__ import annotations

import os
import pty
import sys
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import BrokenWorkerError, FetchError, RemoteError, UnreachableError, UntrustedRepoError
from tests.helpers.githost import GitHost
from tests.helpers.repos import make_repo, write_files
from tests.helpers.versions import SETTINGS, answer, raised, version_files

FAILING = """
    import os

    class ModelError(ValueError):
        pass

    def wrong(size):
        raise KeyError(f"no weights for {size}")

    def own():
        raise ModelError("not this model")

    def leave():
        raise SystemExit(3)

    def die():
        os._exit(7)

    def fine():
        return 1
"""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Versions 1 and 2 on main, tagged v1 and v2."""
    return make_repo(tmp_path / "srv" / "net", {f"v{value}": version_files(value) for value in (1, 2)})


@pytest.fixture
def host(tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch, forkserver: int) -> Iterator[GitHost]:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with GitHost() as server:
        server.add("owner/net", repo)
        yield server


def load(host: GitHost, text: str, **settings: Any) -> Any:
    return isohub.load(text, "net", git_host=host.url, **{"trust_repo": True, **settings})


# ------------------------------------------------------------------------------------------- 13. exceptions


def test_13_exceptions_of_the_entrypoint(repo_of: Callable[..., str], tmp_path: Path):
    """A builtin type and its text arrive as from torch.hub; a class of the repository's is its builtin base."""
    repo = repo_of(FAILING)
    write_files(tmp_path / "folder", {"hubconf.py": FAILING})
    theirs = raised(lambda: torch.hub.load(str(tmp_path / "folder"), "wrong", 50, source="local"))

    ours = raised(lambda: isohub.load(repo, "wrong", 50))
    own = raised(lambda: isohub.load(repo, "own"))

    assert (KeyError, str(theirs), theirs.args) == (type(ours), str(ours), ours.args)
    assert isinstance(ours.__cause__, RemoteError)
    assert "no weights for" in ours.__cause__.remote_traceback
    assert isinstance(own, RemoteError)
    assert isinstance(own, ValueError)
    assert (own.type_name, own.message) == ("hubconf.ModelError", "not this model")
    assert "in own" in own.remote_traceback


def test_13_ends_of_the_repository_end_nobody(repo_of: Callable[..., str]):
    """`SystemExit` in the repository is an ordinary exception here, `os._exit` a broken worker."""
    repo = repo_of(FAILING)

    left = raised(lambda: isohub.load(repo, "leave"))
    died = raised(lambda: isohub.load(repo, "die"))

    assert isinstance(left, RemoteError)
    assert left.type_name == "SystemExit"
    assert isinstance(died, BrokenWorkerError)
    assert isohub.load(repo, "fine") == 1


# ------------------------------------------------------------------------------------------------ 14. trust


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Have a terminal for stdin and stdout, and give its other end."""
    # Not a fixture: pytest sets the streams anew between a fixture and its test.
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    try:
        with (
            os.fdopen(theirs, "r", closefd=False) as stdin,
            os.fdopen(theirs, "w", closefd=False) as stdout,
            monkeypatch.context() as patch,
        ):
            patch.setattr(sys, "stdin", stdin)
            patch.setattr(sys, "stdout", stdout)
            yield ours
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("typed", ["y", "n", "maybe"])
def test_14_question_and_answers_are_those_of_torch_hub(host: GitHost, monkeypatch: pytest.MonkeyPatch, typed: str):
    """On a terminal the question is torch.hub's to the letter, and so is what each answer leads to."""
    write_files(Path(isohub.get_dir()) / "ada_models_main", version_files(6))
    monkeypatch.setenv("ISOHUB_OFFLINE", "1")
    shown, ends = [], []
    for hub in (torch.hub, isohub):
        with terminal(monkeypatch) as keys:
            os.write(keys, f"{typed}\n".encode())
            try:
                ends.append(answer(hub.load("ada/models:main", "net", trust_repo=False, verbose=False)))
            except Exception as error:
                ends.append(str(error))
            print(end="\0", flush=True)
            text = b""
            while not text.endswith(b"\0"):  # it may come in pieces
                text += os.read(keys, 10_000)
            shown.append(text.decode())

    assert shown[0] == shown[1]
    assert shown[0].startswith("The repository ada_models does not belong to the list of trusted repositories")
    assert ends[0] == ends[1]
    assert ends[0] == {"y": [6.0, 60.0], "n": "Untrusted repository.", "maybe": "Unrecognized response maybe."}[typed]


def test_14_a_yes_is_remembered(host: GitHost, monkeypatch: pytest.MonkeyPatch):
    """Who said yes on the terminal once is asked no more; without a terminal nobody is asked, and told the ways."""
    with terminal(monkeypatch) as keys:
        os.write(keys, b"y\n")
        assert answer(load(host, "owner/net:v1", trust_repo="check")) == [1.0, 10.0]
    monkeypatch.setattr(sys, "stdin", None)

    assert answer(load(host, "owner/net:v2", trust_repo="check")) == [2.0, 20.0]
    host.add("owner/other", make_repo(Path(os.environ["HOME"]) / "other", {"v1": version_files(3)}))
    with pytest.raises(UntrustedRepoError, match=r"isohub trust add .*ISOHUB_TRUST=.*trust_repo=True"):
        load(host, "owner/other:v1", trust_repo="check")


def test_14_list_is_written_after_the_fetch(host: GitHost):
    """The trust list has the repository once its files are here, and not before."""
    host.misbehave("/archive/|/git-upload-pack", status=404)
    with pytest.raises(FetchError):
        load(host, "owner/net:v1")
    assert host.count("/archive/") > 0
    assert not list(Path(isohub.get_dir()).glob("*trusted_list"))
    host.behave()

    load(host, "owner/net:v1")

    (trusted,) = Path(isohub.get_dir()).glob("*trusted_list")
    assert trusted.read_text().splitlines() == [f"{host.name}/owner/net"]


@pytest.mark.parametrize("value", ["chek", None, 1, "true"])
def test_14_other_values_are_refused(host: GitHost, value: object):
    """Only True, False and "check" say whether to trust: a misspelled word is an error, and trusts nobody."""
    with pytest.raises(ValueError, match="trust_repo"):
        load(host, "owner/net:v1", trust_repo=value)

    assert host.count("archive") == 0


# ------------------------------------------------------------------------------ 15 and 16. folders, offline


def test_15_folder_of_torch_hub(tmp_path: Path, host: GitHost, monkeypatch: pytest.MonkeyPatch):
    """`set_dir` > TORCH_HOME > XDG_CACHE_HOME > ~/.cache, torch.hub's folder each time, and checkouts go there."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    found = [isohub.get_dir()]
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/xdg")
    found.append(isohub.get_dir())
    monkeypatch.delenv("XDG_CACHE_HOME")
    found.append(isohub.get_dir())
    isohub.set_dir(Path("~/mine"))
    found.append(isohub.get_dir())

    assert found == [str(tmp_path / name) for name in ("torch-home/hub", "xdg/torch/hub", ".cache/torch/hub", "mine")]
    assert type(isohub.get_dir()) is str
    assert torch.hub.get_dir() == isohub.get_dir()
    load(host, "owner/net:v2")
    assert [path.is_relative_to(tmp_path / "mine") for path in (tmp_path / "mine").rglob("hubconf.py")] == [True]


def test_16_offline(host: GitHost, monkeypatch: pytest.MonkeyPatch):
    """Offline a cached ref and a cached default load and ask nobody; another ref is an error that names it."""
    load(host, "owner/net")
    load(host, "owner/net:v1")
    host.forget()
    monkeypatch.setenv("ISOHUB_OFFLINE", "1")

    assert [answer(load(host, text)) for text in ("owner/net", "owner/net:v1")] == [[2.0, 20.0], [1.0, 10.0]]
    with pytest.raises(UnreachableError, match=f"'v2'.*not in the cache {isohub.get_dir()}"):
        load(host, "owner/net:v2")
    assert host.requests == []
