"""Fixtures of the hub tests: a home of their own, and real git repositories and file servers made on the spot."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isohub.hub import download
from isohub.hub.cache import Cache
from tests.helpers.fileserver import FileServer, file_server


class GitRepository:
    """A git repository on disk that a test commits to."""

    def __init__(self, path: Path, *, bare: bool = False) -> None:
        self.path = path
        self.url = path.as_uri()
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main", *(["--bare"] if bare else []))

    def git(self, *args: str, text: str | None = None) -> str:
        """Run git in the repository, with `text` as its input, and return what it prints."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "protocol.file.allow=always"]
        done = subprocess.run(
            ["git", *who, *args],
            cwd=self.path,
            input=text,
            env=environment | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def commit(self, message: str = "change", **files: str) -> str:
        """Write `files` (`__` in a name stands for a dot), commit everything, and return the commit."""
        for name, text in files.items():
            (self.path / name.replace("__", ".")).write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def hub_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the tests out of the real hub folder."""
    home = tmp_path / "torch home"
    monkeypatch.setenv("TORCH_HOME", str(home))
    return home


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def make_repository(tmp_path: Path) -> Callable[..., GitRepository]:
    def make(name: str = "models", *, bare: bool = False) -> GitRepository:
        return GitRepository(tmp_path / "srv" / name, bare=bare)

    return make


@pytest.fixture
def repository(make_repository: Callable[..., GitRepository]) -> GitRepository:
    """A repository with hubconf.py on main."""
    made = make_repository()
    made.commit("first", hubconf__py="VERSION = 1\n")
    return made


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for next to nothing between two tries."""
    monkeypatch.setattr(download, "_BACKOFF_S", 0.001)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub folder, and no variable that trusts anybody."""
    monkeypatch.delenv("ISOHUB_TRUST", raising=False)
    made = tmp_path / "hub"
    made.mkdir()
    return made
