"""`isohub cache`: what it prints, what it removes, and how it ends."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import isohub
from isohub.cli.quantities import seconds_of, size_of
from isohub.hub.cache import Cache
from isohub.hub.checkout import Checkout
from isohub.hub.fetch import fetch
from isohub.hub.resolve import resolve
from isohub.hub.weights import fetch_weights
from isohub.refs import RepoRef
from tests.helpers.cli import invoke, run
from tests.helpers.fileserver import FileServer, file_server
from tests.helpers.repos import git, make_repo, url

HUBCONF = """
    import torch

    def net():
        return torch.nn.Linear(2, 2)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub folder of the test's own."""
    for name in ("ISOHUB_LOCK", "ISOHUB_LOCK_WRITE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home" / "hub"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Two commits, tagged v1 and v2."""
    return make_repo(tmp_path / "srv" / "models", {"v1": {"hubconf.py": HUBCONF}, "v2": {"hubconf.py": HUBCONF * 2}})


def put(repo: Path, ref: str) -> Checkout:
    return fetch(resolve(RepoRef.parse(url(repo, ref))), Cache())


def document(*arguments: str) -> Any:
    done = invoke("cache", *arguments, "--json")
    return json.loads(done.stdout)


def test_dir(home: Path) -> None:
    """`dir` prints the folder alone, for use in scripts, and works in a program of its own."""
    assert run("cache", "dir").stdout == f"{home}/isohub\n"
    assert document("dir") == {"dir": f"{home}/isohub", "weights": f"{home}/isohub/weights"}


def test_ls_shows_sizes_ages_and_refs(repo: Path, server: FileServer, home: Path) -> None:
    """`ls` has a line for each checkout and each file of weights, and their sum."""
    checkout = put(repo, "v1")
    Cache().refs.note(checkout.repo, "main", str(checkout.commit), "main")
    weights = server.put("/net.pth", b"#" * 1500)
    fetch_weights(weights, progress=False)

    lines = [re.split(r"\s{2,}", line.strip()) for line in invoke("cache", "ls").stdout.splitlines()]
    listed = document("ls")

    [row] = [line for line in lines if line[0] == f"git+file://{repo}"]
    assert row[1] == str(checkout.commit)[:7]
    assert row[-2:] == ["now", "now"]
    [row] = [line for line in lines if line[0] == weights]
    assert row[2:] == ["1.5 kB", "now", "now"]
    assert lines[-1][0].startswith("1 checkouts, 1 weights, ")
    [one] = listed["checkouts"]
    assert (one["commit"], one["is_leased"], one["tree_hash"]) == (checkout.commit, False, checkout.tree_hash)
    assert [one["path"] for one in listed["weights"]] == [str(fetch_weights(weights))]
    assert listed["size_bytes"] == sum(one["size_bytes"] for one in (*listed["checkouts"], *listed["weights"]))


def test_verify_ends_with_1_if_something_is_damaged(repo: Path) -> None:
    """A cache that is sound is 0; a changed byte is told with its commit, and is 1."""
    checkout = put(repo, "v1")
    sound = invoke("cache", "verify")
    file = checkout.files / "hubconf.py"
    file.chmod(0o644)
    file.write_text(file.read_text().replace("Linear", "linear"))

    damaged = invoke("cache", "verify")
    told = document("verify")

    assert (sound.exit_code, sound.stdout) == (0, "1 checked, 0 damaged\n")
    assert damaged.exit_code == 1
    assert damaged.stdout.splitlines()[0].startswith(f"git+file://{repo}@{checkout.commit} is damaged: the files have")
    assert (told["checked"], [one["commit"] for one in told["damaged"]]) == (1, [checkout.commit])


def test_rm_removes_what_is_named(repo: Path) -> None:
    """`rm` takes a ref's commit alone, or the beginning of one, and `--dry-run` takes nothing."""
    first, second = put(repo, "v1"), put(repo, "v2")

    dry = invoke("cache", "rm", url(repo, "v1"), "--dry-run")
    assert first.files.is_dir()
    done = invoke("cache", "rm", url(repo, "v1"))

    assert dry.stdout.splitlines()[0].startswith(f"git+file://{repo}@{first.commit} would be removed, ")
    assert (done.exit_code, first.files.exists(), second.files.exists()) == (0, False, True)
    assert [one["commit"] for one in document("rm", str(second.commit)[:6])["removed"]] == [second.commit]
    assert not second.files.exists()


def test_rm_tells_what_it_cannot_find() -> None:
    """A name that is not in the cache is told, and is 1; neither a name nor --all is 2, and so are both."""
    missing = invoke("cache", "rm", "owner/name")

    assert (missing.exit_code, missing.stdout.splitlines()[0]) == (1, "owner/name is not in the cache")
    assert [invoke("cache", "rm", *more).exit_code for more in ((), ("owner/name", "--all"))] == [2, 2]
    assert invoke("cache", "rm", "nor").stderr.startswith("error: 'nor' names no repository")


@pytest.mark.usefixtures("forkserver")
def test_worker_keeps_its_checkout(repo: Path) -> None:
    """While a worker lives neither `rm --all` nor `prune` of another process takes its files; afterwards they do."""
    with isohub.Repo(url(repo, "v1")) as opened:
        opened.load("net")
        files = opened.checkout.files
        removed = run("cache", "rm", "--all")
        pruned = run("cache", "prune", "--max-size", "0", "--json")
        assert opened.load("net").weight.shape == (2, 2)
        [listed] = document("ls")["checkouts"]
    after = invoke("cache", "rm", "--all")

    label = f"git+file://{repo}@{opened.commit}"
    assert removed.returncode == 1
    assert f"{label} stays, it is in use" in removed.stdout.splitlines()
    assert [one["commit"] for one in json.loads(pruned.stdout)["in_use"]] == [opened.commit]
    assert listed["is_leased"] is True
    assert (after.exit_code, files.exists()) == (0, False)


@pytest.mark.usefixtures("forkserver")
def test_killed_worker_gives_its_checkout_free(repo: Path) -> None:
    """The lease of a worker that was killed ends as soon as its parent has noticed."""
    with isohub.Repo(url(repo, "v1")) as opened:
        opened.load("net")
        [worker] = isohub.workers()
        worker.kill()
        with pytest.raises(isohub.errors.BrokenWorkerError):
            worker.request("list")

        assert [one["is_leased"] for one in document("ls")["checkouts"]] == [False]


def test_prune_by_age(repo: Path) -> None:
    """`--max-age` takes what was not used for so long; without limits nothing that is whole goes."""
    first, second = put(repo, "v1"), put(repo, "v2")
    note = first.files.parent / "isohub.json"
    note.write_text(re.sub(r"20\d\d-", "2020-", note.read_text()))
    os.utime(first.files.parent.with_name(f"{first.commit}.lease"), (1.6e9, 1.6e9))

    nothing = document("prune")
    dry = document("prune", "--max-age", "30d", "--dry-run")
    assert first.files.exists()
    done = document("prune", "--max-age", "30d")

    assert nothing["removed"] == []
    assert [one["commit"] for one in dry["removed"]] == [one["commit"] for one in done["removed"]] == [first.commit]
    assert (first.files.exists(), second.files.exists()) == (False, True)


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (seconds_of, "30d", 30 * 86_400),
        (seconds_of, "1.5h", 5400),
        (seconds_of, "2 W", 1_209_600),
        (size_of, "10GB", 10**10),
        (size_of, "1.5GiB", 3 * 2**29),
        (size_of, "700k", 700_000),
        (size_of, "0", 0),
    ],
)
def test_quantities(read: Callable[[str], float], text: str, expected: float) -> None:
    """Ages and sizes are read as people write them."""
    assert read(text) == expected


@pytest.mark.parametrize("option", [("--max-age", "30"), ("--max-age", "-1d"), ("--max-size", "10XB")])
def test_unreadable_quantity_removes_nothing(repo: Path, option: tuple[str, str]) -> None:
    """An age without a unit, or a size that is none, is an error of the command line."""
    checkout = put(repo, "v1")

    assert invoke("cache", "prune", *option).exit_code == 2
    assert checkout.files.is_dir()
    assert git(repo, "rev-parse", "v1") == checkout.commit
