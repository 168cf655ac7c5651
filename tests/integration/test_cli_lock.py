"""`isohub lock` and `isohub prefetch`: what they write and bring, and what is refused afterwards."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub.cli.lock import _with
from isohub.errors import LockError
from isohub.hub.lock import Lock, LockedRepo, LockedWeights
from isohub.hub.uses import Recorded
from isohub.refs import RepoRef
from tests.helpers.cli import invoke
from tests.helpers.fileserver import FileServer, file_server
from tests.helpers.githost import GitHost
from tests.helpers.repos import git, make_repo, url, write_files
from tests.helpers.warm import WarmPython

HUBCONF = """
    import torch

    VERSION = {version}

    def net(pretrained=False, scale=1.0):
        model = torch.nn.Linear(2, 1, bias=False)
        if pretrained:
            state = torch.hub.load_state_dict_from_url("{weights}", progress=False)
            model.load_state_dict(state)
        return model

    def version():
        return VERSION
"""


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub folder, a home and a current folder of the test's own."""
    for name in ("ISOHUB_LOCK", "ISOHUB_LOCK_WRITE", "ISOHUB_OFFLINE", "ISOHUB_REF_TTL_S", "GITHUB_TOKEN", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


def saved(value: float) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.full((1, 2), value)}, file)
    return file.getvalue()


@pytest.fixture
def weights(server: FileServer) -> str:
    """URL of the weights that `net(pretrained=True)` loads."""
    return server.put("/net.pth", saved(2.0))


@pytest.fixture
def repo(tmp_path: Path, weights: str) -> Path:
    """A repository with one commit, on main."""
    return make_repo(tmp_path / "srv" / "models", {"v1": {"hubconf.py": HUBCONF.format(version=1, weights=weights)}})


def commit(repo: Path, version: int, weights: str = "") -> str:
    write_files(repo, {"hubconf.py": HUBCONF.format(version=version, weights=weights)})
    git(repo, "commit", "--quiet", "--all", "--message", f"version {version}")
    return git(repo, "rev-parse", "HEAD")


def lock(*arguments: str) -> Any:
    done = invoke("lock", *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


# ----------------------------------------------------------------------------------------------------- lock


def test_lock_keeps_and_updates(repo: Path) -> None:
    """What is locked stays locked when its branch moves, until --update; without REPO that is for all."""
    text, first = url(repo, "main"), git(repo, "rev-parse", "HEAD")
    new = invoke("lock", text)
    second = commit(repo, 2)
    kept = lock(text)["repos"]
    updated = lock("--update")["repos"]
    third = commit(repo, 3)
    named = lock(text, "--update", "-o", "other.lock")["repos"]

    assert new.stdout == f"{text}  {first[:7]}  locked\n"
    assert [(one["commit"], one["was"]) for one in (*kept, *updated, *named)] == [
        (first, first), (second, first), (third, None)
    ]  # fmt: skip
    assert [entry.commit for entry in Lock.read("isohub.lock").repos] == [second]
    assert [entry.commit for entry in Lock.read("other.lock").repos] == [third]


def test_lock_says_what_cannot_be_locked(tmp_path: Path) -> None:
    """A folder has no commit; nothing to lock is an error of the command line; neither writes a file."""
    write_files(tmp_path / "tree", {"hubconf.py": ""})

    folder = invoke("lock", str(tmp_path / "tree"))
    nothing = invoke("lock")

    assert (folder.exit_code, nothing.exit_code) == (1, 2)
    assert folder.stderr.startswith("error: tree is a folder, and has no commit")
    assert not Path("isohub.lock").exists()


@pytest.mark.usefixtures("forkserver")
def test_weights_of_an_entrypoint_are_locked(repo: Path, weights: str) -> None:
    """With --entry the weights that it downloads in its worker come into the lock, under the ref that was named."""
    text = url(repo, "main")

    [told] = lock(text, "--entry", "net", "--kwarg", "pretrained=true", "--kwarg", "scale=0.5")["repos"]

    body = saved(2.0)
    expected = {"url": weights, "sha256": hashlib.sha256(body).hexdigest(), "size_bytes": len(body)}
    assert told["weights"] == [expected]
    document = json.loads(Path("isohub.lock").read_text())
    assert [(one["repo"], one["ref"], one["weights"]) for one in document["repos"]] == [
        (url(repo), "main", [expected])
    ]  # fmt: skip
    assert document["weights"] == []


@pytest.mark.usefixtures("forkserver")
def test_load_that_differs_is_refused(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `ISOHUB_LOCK` a branch that moved, a ref and a repository that are not in the lock do not run."""
    text, first = url(repo, "main"), git(repo, "rev-parse", "HEAD")
    lock(text)
    monkeypatch.setenv("ISOHUB_LOCK", "isohub.lock")
    with isohub.Repo(text) as opened:
        assert opened.load("version") == 1
    second = commit(repo, 2)

    with pytest.raises(LockError, match=r"`isohub lock --update git\+file") as raised:
        isohub.load(text, "version")
    told = invoke("load", text, "version")
    pinned = isohub.load(f"{url(repo)}@{first}", "version")
    lock("--update")
    updated = isohub.load(text, "version")

    assert (raised.value.expected, raised.value.actual) == (first, second)
    assert (told.exit_code, told.stderr.splitlines()[0]) == (1, f"error: {raised.value}")
    assert (pinned, updated) == (1, 2)


@pytest.mark.usefixtures("forkserver")
def test_weights_that_differ_are_refused(repo: Path, weights: str, server: FileServer) -> None:
    """A worker is not handed weights with another content than the locked ones, nor any that are not locked."""
    text = url(repo, "main")
    lock(text, "-o", "without.lock")
    lock(text, "--entry", "net", "--kwarg", "pretrained=true")
    same = isohub.load(text, "net", pretrained=True)
    shutil.rmtree(Path(isohub.get_dir(), "isohub", "weights"))
    server.put("/net.pth", saved(3.0))

    def refusal(file: str) -> LockError:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ISOHUB_LOCK", file)
            with pytest.raises(LockError, match="Refused by the lock file") as raised:
                isohub.load(text, "net", pretrained=True)
        return raised.value

    locked, actual = (hashlib.sha256(saved(value)).hexdigest() for value in (2.0, 3.0))
    other, missing = refusal("isohub.lock"), refusal("without.lock")
    assert same.weight.tolist() == [[2.0, 2.0]]
    assert f"and are locked to {locked}" in str(other)
    assert f"The weights {weights} are not in it" in str(missing)
    assert [(one.expected, one.actual) for one in (other, missing)] == [(locked, actual), ("", actual)]


def test_program_locks_what_it_uses(
    repo: Path, weights: str, warm_python: WarmPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ISOHUB_LOCK_WRITE` makes a lock of a run of a program as it is, which the next run keeps to."""
    script = "import isohub, sys; print(isohub.load(sys.argv[1], 'net', pretrained=True).weight.tolist())"
    arguments = ["-c", script, url(repo, "main")]
    monkeypatch.setenv("ISOHUB_LOCK_WRITE", "isohub.lock")
    assert warm_python.run(arguments).returncode == 0
    monkeypatch.delenv("ISOHUB_LOCK_WRITE")
    monkeypatch.setenv("ISOHUB_LOCK", "isohub.lock")

    done = warm_python.run(arguments)

    assert (done.returncode, done.stdout) == (0, "[[2.0, 2.0]]\n")
    [entry] = Lock.read("isohub.lock").repos
    assert (str(entry.asked), [one.url for one in entry.weights]) == (url(repo, "main"), [weights])


def test_repositories_that_an_entrypoint_loads_are_locked() -> None:
    """What the code of a repository loads of others is locked by its own name; its own pinned load is not once more."""
    first, second = "1" * 40, "2" * 40
    own, other = RepoRef.parse("owner/name:main"), RepoRef.parse("other/net:v1")
    recorded = Recorded(
        repos=[
            LockedRepo.of(repo, commit, "a" * 64)
            for repo, commit in ((own, first), (RepoRef.parse(f"owner/name@{first}"), first), (other, second))
        ],
        weights=[(LockedWeights(url="https://example.org/net.pth", sha256="b" * 64, size_bytes=1), other)],
    )

    entries = _with(Lock(), own, recorded).repos

    assert [(str(entry.asked), entry.commit, len(entry.weights)) for entry in entries] == [
        ("other/net:v1", second, 0),
        ("owner/name:main", first, 1),
    ]


# ------------------------------------------------------------------------------------------------- prefetch


@pytest.fixture
def host(repo: Path) -> Iterator[GitHost]:
    with GitHost() as running:
        running.add("owner/name", repo)
        yield running


@pytest.mark.usefixtures("forkserver")
def test_prefetched_is_all_that_an_offline_machine_needs(
    host: GitHost, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `prefetch` with an entrypoint the same load works without a network."""
    text = f"{host.url}/owner/name:main"
    monkeypatch.setenv("ISOHUB_TRUST", f"{host.name}/owner/*")

    done = invoke("prefetch", text, "--entry", "net", "--kwarg", "pretrained=true", "--json")
    host.forget()
    monkeypatch.setenv("ISOHUB_OFFLINE", "1")
    model = isohub.load(text, "net", pretrained=True, verbose=False)

    assert json.loads(done.stdout)["repos"] == [{"repo": text, "commit": git(repo, "rev-parse", "HEAD")}]
    assert model.weight.tolist() == [[2.0, 2.0]]
    assert host.count() == 0


@pytest.mark.usefixtures("forkserver")
def test_prefetch_brings_what_is_locked(
    host: GitHost, repo: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine the locked commit and weights come, though the branch has moved; then it works offline."""
    text = f"{host.url}/owner/name:main"
    monkeypatch.setenv("ISOHUB_TRUST", f"{host.name}/owner/*")
    [locked] = lock(text, "--entry", "net", "--kwarg", "pretrained=true")["repos"]
    commit(repo, 2, weights)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "another-machine"))
    monkeypatch.setenv("ISOHUB_LOCK", "isohub.lock")
    with pytest.raises(LockError, match="stands for commit"):
        isohub.Repo(text, verbose=False)

    done = invoke("prefetch", "--lock", "isohub.lock", "--json")
    monkeypatch.setenv("ISOHUB_OFFLINE", "1")
    with isohub.Repo(text, verbose=False) as opened:
        values = opened.load("net", pretrained=True).weight.tolist()
        version = opened.load("version")

    assert json.loads(done.stdout)["repos"] == [{"repo": text, "commit": locked["commit"]}]
    assert (opened.commit, version, values) == (locked["commit"], 1, [[2.0, 2.0]])


def test_prefetch_refuses_what_is_not_locked(repo: Path) -> None:
    """With a lock only what is in it can be named; without one and without a repository there is nothing to do."""
    lock(url(repo, "main"))
    commit(repo, 2)

    moved = invoke("prefetch", url(repo, "HEAD"), "--lock", "isohub.lock")
    nothing = invoke("prefetch")

    assert (moved.exit_code, nothing.exit_code) == (1, 2)
    assert moved.stderr.startswith("error: Refused by the lock file 'isohub.lock': HEAD of ")
