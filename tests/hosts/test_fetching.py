"""Fetching from servers: a commit is downloaded once, for all who ask and under all its names."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from isohub.hub.cache import Cache
from isohub.hub.fetch import fetch
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef
from tests.helpers.githost import GitHost
from tests.helpers.programs import processes_with
from tests.helpers.repos import git
from tests.helpers.waiting import until
from tests.hosts.conftest import load, version

# ----------------------------------------------------------------------------------------- 1. one download


def test_second_load_makes_no_request(host: GitHost, cache: Cache) -> None:
    """A cold load makes two requests, refs and archive; the second load of a branch or the default makes none."""
    assert version(load(host, "owner/name:main", cache)) == "VERSION = 3"
    assert [request.path.split("/")[3] for request in host.requests] == ["info", "archive"]

    assert version(load(host, "owner/name:main", cache)) == "VERSION = 3"
    assert version(load(host, "owner/name", cache)) == "VERSION = 3"
    assert host.count() == 2


def test_messages_of_torch_hub(
    host: GitHost, cache: Cache, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The first load says on stdout what it downloads, the second on stderr that it need not; the log has both."""
    caplog.set_level(logging.INFO, "isohub.hub")

    checkout = load(host, "owner/name:v1", cache)
    first = capfd.readouterr()
    load(host, "owner/name:v1", cache)
    second = capfd.readouterr()
    load(host, "owner/name:v1", cache, verbose=False)

    url = f"{host.url}/owner/name/archive/{checkout.commit}.zip"
    assert re.fullmatch(f'Downloading: "{re.escape(url)}" to /.*/archive\n', first.out)
    assert (first.err, second.out) == ("", "")
    assert second.err == f"Using cache found in {checkout.files}\n"
    assert capfd.readouterr() == ("", "")
    assert second.err.strip() in caplog.messages
    assert first.out.strip() in caplog.messages


def test_force_reload_asks_again(host: GitHost, repo: Path, cache: Cache) -> None:
    """A branch that moved is seen with `force_reload`, and not without."""
    load(host, "owner/name:main", cache)
    (repo / "hubconf.py").write_text("VERSION = 4\n")
    git(repo, "commit", "--quiet", "--all", "--message", "four")

    assert version(load(host, "owner/name:main", cache)) == "VERSION = 3"
    assert version(load(host, "owner/name:main", cache, force_reload=True)) == "VERSION = 4"
    assert version(load(host, "owner/name:main", cache)) == "VERSION = 4"
    assert host.count("info/refs") == 2


def test_force_reload_mends_a_checkout(host: GitHost, cache: Cache) -> None:
    """A file that somebody changed to another of its size is found by `force_reload`, and brought again."""
    checkout = load(host, "owner/name:v1", cache)
    place = checkout.files / "hubconf.py"
    place.chmod(0o644)
    place.write_text("VERSION = 9\n")

    assert version(load(host, "owner/name:v1", cache, force_reload=True)) == "VERSION = 1"
    assert host.count("archive") == 2


@pytest.mark.parametrize(("ttl_s", "requests"), [("3600", 1), ("0", 2), ("", 1)])
def test_a_ref_is_remembered_for_a_while(
    host: GitHost, cache: Cache, monkeypatch: pytest.MonkeyPatch, ttl_s: str, requests: int
) -> None:
    """`ISOHUB_REF_TTL_S` says after how many seconds a branch is asked for again."""
    monkeypatch.setenv("ISOHUB_REF_TTL_S", ttl_s)

    load(host, "owner/name:main", cache)
    load(host, "owner/name:main", cache)

    assert host.count("info/refs") == requests


def test_ttl_that_is_no_number(host: GitHost, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that cannot be read is an error that names the variable."""
    load(host, "owner/name", cache)
    monkeypatch.setenv("ISOHUB_REF_TTL_S", "soon")

    with pytest.raises(ValueError, match="ISOHUB_REF_TTL_S='soon'"):
        load(host, "owner/name", cache)


def test_one_commit_by_two_names_is_fetched_once(host: GitHost, cache: Cache) -> None:
    """A commit is one checkout however its repository is written."""
    first = load(host, "owner/name:main", cache)
    second = fetch(resolve(RepoRef.parse(f"git+{host.url}/owner/name.git@v3"), cache), cache)

    assert (second.files, second.key) == (first.files, first.key)
    assert host.count("archive") == 1


def test_refs_that_torch_hub_mixes_up(host: GitHost, repo: Path, cache: Cache) -> None:
    """`feat/x` and `feat_x` are two refs, as are `o/r:dev_x` and `o/r_dev:x`."""
    for number, (name, ref) in enumerate([("o/r", "feat/x"), ("o/r", "feat_x"), ("o/r", "dev_x"), ("o/r_dev", "x")]):
        git(repo, "checkout", "--quiet", "-B", ref)
        (repo / "hubconf.py").write_text(f"VERSION = 10{number}\n")
        git(repo, "commit", "--quiet", "--all", "--message", ref)
        host.add(name, repo)

    names = ["o/r:feat/x", "o/r:feat_x", "o/r:dev_x", "o/r_dev:x"]
    assert [version(load(host, name, cache)) for name in names] == [f"VERSION = 10{n}" for n in range(4)]
    assert [version(load(host, name, cache)) for name in names] == [f"VERSION = 10{n}" for n in range(4)]


def test_what_is_remembered_is_not_mixed_up(host: GitHost, repo: Path, cache: Cache) -> None:
    """A pinned commit is that commit, whatever is remembered of the default branch and other refs."""
    load(host, "owner/name", cache)
    old = git(repo, "rev-parse", "v1")

    assert load(host, f"owner/name@{old}", cache).commit == old
    assert version(load(host, "owner/name", cache)) == "VERSION = 3"
    assert version(load(host, "owner/name:v2", cache)) == "VERSION = 2"


# ------------------------------------------------------------------------------------------- many at once


def test_threads_download_once(host: GitHost, cache: Cache) -> None:
    """Eight threads that load one ref with a cold cache download it once."""
    together = threading.Barrier(8)
    seen: list[str] = []

    def work() -> None:
        together.wait()
        seen.append(version(load(host, "owner/name:v2", cache)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert seen == ["VERSION = 2"] * 8
    assert host.count("archive") == 1


_LOADS = """
import sys, threading
from isohub.hub.cache import Cache
from isohub.hub.fetch import fetch
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef
host, root = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
answers = []
def work(ref):
    checkout = fetch(resolve(RepoRef.parse(f"owner/name:{ref}", git_host=host), Cache(root)), Cache(root))
    answers.append((ref, (checkout.files / "hubconf.py").read_text().strip()))
threads = [threading.Thread(target=work, args=(f"v{number}",)) for number in (1, 2, 3, 1)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sorted(answers))
"""


def test_processes_in_trouble(host: GitHost, cache: Cache) -> None:
    """Processes and threads with a cold cache, at a server in trouble: no failure, one whole archive a commit.

    One of them is killed while it fetches; nothing that it left is used.
    """
    held = threading.Event()
    stuck = host.misbehave("archive", wait_for=held, times=1)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _LOADS, host.url, str(cache.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    victim, *others = children
    victim.stdin.write("\n")
    victim.stdin.flush()
    until(lambda: stuck.times == 0)  # its request is there, and held
    victim.kill()
    victim.communicate()
    host.misbehave("archive", cut_at=100, times=2)
    host.misbehave("info/refs", status=502, times=2)
    held.set()

    for child in others:
        child.stdin.write("\n")
        child.stdin.flush()
    printed = [child.communicate()[0].splitlines()[-1] for child in others]

    expected = [("v1", "VERSION = 1"), ("v1", "VERSION = 1"), ("v2", "VERSION = 2"), ("v3", "VERSION = 3")]
    assert printed == [str(expected)] * 3
    assert [child.returncode for child in others] == [0] * 3
    assert len(list((cache.root / "checkouts").glob("*/*/*/*/isohub.json"))) == 3


def test_git_ends_with_its_program(host: GitHost, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A git that waits for a server ends when the program that started it is killed, and what it left is swept."""
    monkeypatch.setattr(host, "makes", ())
    monkeypatch.setenv("ISOHUB_TEST_MARK", str(cache.root))
    held = threading.Event()
    stuck = host.misbehave("/git-upload-pack$", hold_at=100, wait_for=held)
    child = subprocess.Popen(
        [sys.executable, "-c", _LOADS, host.url, str(cache.root)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    with child:
        child.stdin.write(b"\n")
        child.stdin.flush()
        stuck.held.get(timeout=30)
        assert len(processes_with(f"ISOHUB_TEST_MARK={cache.root}")) > 1
        child.kill()
    assert len(list((cache.root / "tmp").iterdir())) > 1

    until(lambda: not processes_with(f"ISOHUB_TEST_MARK={cache.root}"))
    host.behave()
    held.set()

    assert version(load(host, "owner/name:v1", cache)) == "VERSION = 1"
    assert [path.name for path in (cache.root / "tmp").iterdir()] == ["sweep"]
