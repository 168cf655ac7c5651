"""`fetch`: the files of a commit, from a real git repository into the cache."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from isohub import trace
from isohub.errors import FetchError
from isohub.hub import git
from isohub.hub.cache import Cache
from isohub.hub.checkout import Checkout
from isohub.hub.fetch import fetch
from isohub.hub.resolve import Resolved, resolve
from isohub.refs import RepoRef


def load(repository, cache: Cache, ending: str = "") -> Checkout:
    return fetch(resolve(RepoRef.parse(f"git+{repository.url}{ending}")), cache)


def test_files_come_as_they_were_committed(repository, cache: Cache) -> None:
    """Contents, executable bits and links arrive, and nothing of git's own."""
    (repository.path / "sub").mkdir()
    (repository.path / "sub" / "data").write_bytes(bytes(range(256)))
    (repository.path / "run.sh").write_text("#!/bin/sh\n")
    (repository.path / "run.sh").chmod(0o755)
    (repository.path / "link").symlink_to("sub/data")
    (repository.path / "nowhere").symlink_to("sub/missing")
    commit = repository.commit()

    checkout = load(repository, cache)

    assert sorted(path.name for path in checkout.root.iterdir()) == [
        "hubconf.py", "link", "nowhere", "run.sh", "sub"
    ]  # fmt: skip
    assert (checkout.files / "link").read_bytes() == bytes(range(256))
    assert (checkout.files / "nowhere").readlink() == Path("sub/missing")
    assert os.access(checkout.files / "run.sh", os.X_OK)
    assert (checkout.commit, checkout.ref_name) == (commit, "main")


def test_two_refs_have_files_each(repository, cache: Cache) -> None:
    """Branches, a tag and an old commit of one repository lie side by side, and one commit lies there once."""
    old = repository.git("rev-parse", "HEAD")
    repository.git("tag", "v1")
    repository.git("checkout", "--quiet", "-b", "feat/x")
    repository.commit(hubconf__py="VERSION = 2\n")
    repository.commit(hubconf__py="VERSION = 3\n")

    texts = {
        ending: (load(repository, cache, ending).files / "hubconf.py").read_text()
        for ending in ("@main", "@feat/x", "@v1", f"@{old}")
    }

    assert texts == {
        "@main": "VERSION = 1\n",
        "@feat/x": "VERSION = 3\n",
        "@v1": "VERSION = 1\n",
        f"@{old}": "VERSION = 1\n",
    }
    assert load(repository, cache, "@v1").files == load(repository, cache, "@main").files
    assert load(repository, cache, "@v1").key == load(repository, cache, "@main").key


def test_commit_deep_in_the_history(repository, cache: Cache) -> None:
    """A commit that is no tip is fetched by its hash."""
    middle = repository.commit(hubconf__py="VERSION = 2\n")
    repository.commit(hubconf__py="VERSION = 3\n")

    checkout = load(repository, cache, f"@{middle[:9]}")

    assert checkout.commit == middle
    assert (checkout.files / "hubconf.py").read_text() == "VERSION = 2\n"


def test_known_commit_needs_no_git(repository, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that the cache has is found without running git."""
    resolved = resolve(RepoRef.parse(f"git+{repository.url}"))
    first = fetch(resolved, cache)
    monkeypatch.setattr(git, "run", lambda *args, **more: pytest.fail(f"git was run: {args}"))

    assert fetch(resolved, cache) == first


def test_a_moved_branch_is_seen(repository, cache: Cache) -> None:
    """A branch that moved gives its new files, and the checkout of before stays as it was."""
    before = load(repository, cache)
    repository.commit(hubconf__py="VERSION = 2\n")

    after = load(repository, cache)

    assert (after.files / "hubconf.py").read_text() == "VERSION = 2\n"
    assert (before.files / "hubconf.py").read_text() == "VERSION = 1\n"
    assert before.tree_hash != after.tree_hash


def test_hub_folder_has_torch_hubs_names(repository, cache: Cache) -> None:
    """The names that torch.hub would use, and those of the default branch, lead to this checkout."""
    repository.git("branch", "--move", "main", "trunk")

    checkout = load(repository, cache)

    names = sorted(path.name for path in checkout.hub_folder.iterdir())
    assert names == ["checkpoints", "srv_models_main", "srv_models_master", "srv_models_trunk"]
    assert (checkout.hub_folder / "srv_models_master" / "hubconf.py").read_text() == "VERSION = 1\n"


@pytest.mark.parametrize(
    "links",
    [
        {"bad": "/etc/passwd"},
        {"bad": "../outside"},
        {"sub/bad": "../../outside"},
        {"bad": "sub/../../models/hubconf.py"},
        {"sub/top": "..", "bad": "sub/top/../outside"},
    ],
)
def test_links_that_lead_out_are_refused(repository, cache: Cache, links: dict[str, str]) -> None:
    """A link that leaves the repository, by its text or through another link, stops the fetch for good."""
    (repository.path / "sub").mkdir()
    for name, target in links.items():
        (repository.path / name).symlink_to(target)
    repository.commit()

    for _ in range(2):
        with pytest.raises(FetchError, match=r"bad' leads out of it"):
            load(repository, cache)
    assert not list((cache.root).rglob("hubconf.py"))


def test_submodules_come_along(repository, make_repository, cache: Cache) -> None:
    """Submodules come with the files, those of submodules too, at the commits that are recorded."""
    inner, middle = make_repository("inner"), make_repository("middle")
    inner.commit(file="inner")
    middle.git("submodule", "--quiet", "add", "../inner", "deep")
    recorded = middle.commit(file="middle")
    repository.git("submodule", "--quiet", "add", middle.url, "third party/middle")
    repository.commit()
    middle.commit(file="later")

    checkout = load(repository, cache)

    place = checkout.files / "third party" / "middle"
    assert (place / "file").read_text() == "middle"
    assert (place / "deep" / "file").read_text() == "inner"
    assert recorded != middle.git("rev-parse", "HEAD")


def test_submodules_that_cannot_come_are_told_of(repository, make_repository, cache: Cache) -> None:
    """A submodule whose repository is gone is an empty folder, and a warning names it."""
    other = make_repository("other")
    other.commit("x", file="x")
    repository.git("submodule", "--quiet", "add", other.url, "third party/other")
    repository.commit()
    shutil.rmtree(other.path)

    with pytest.warns(UserWarning, match=r"srv/models has submodules.*'third party/other'"):
        checkout = load(repository, cache)

    assert list((checkout.files / "third party" / "other").iterdir()) == []


def test_git_lfs_pointers_are_told_of(repository, cache: Cache) -> None:
    """A file that is a Git LFS pointer is named in a warning; one that merely speaks of LFS is not."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    repository.commit(weights__pt=pointer, notes__md=f"See {pointer}")

    with pytest.warns(UserWarning, match=r"Git LFS.*: 'weights.pt'$"):
        load(repository, cache)


def test_subdirectory(repository, cache: Cache) -> None:
    """`#subdirectory=` names the folder with hubconf.py, and one that does not exist is an error."""
    (repository.path / "hub").mkdir()
    (repository.path / "hub" / "hubconf.py").write_text("INNER = True\n")
    repository.commit()

    checkout = load(repository, cache, "@main#subdirectory=hub")

    assert (checkout.root / "hubconf.py").read_text() == "INNER = True\n"
    with pytest.raises(FetchError, match="has no folder 'nope'"):
        load(repository, cache, "#subdirectory=nope")


def test_git_settings_do_not_change_the_files(
    repository, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line ends, attributes, filters, templates and hooks of the user's git have no say in what is checked out."""
    (tmp_path / "attributes").mkdir()
    (tmp_path / "git").mkdir()
    (tmp_path / "git" / "attributes").write_text("*.py text eol=crlf filter=shout\n")
    (tmp_path / ".gitconfig").write_text(
        '[core]\n\tautocrlf = true\n[filter "shout"]\n\tsmudge = tr a-z A-Z\n\trequired = true\n'
    )
    (tmp_path / "template" / "hooks").mkdir(parents=True)
    hook = tmp_path / "template" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(tmp_path / "template"))

    checkout = load(repository, cache)

    assert (checkout.files / "hubconf.py").read_bytes() == b"VERSION = 1\n"
    assert not (tmp_path / "hooked").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repository to another user")
def test_repository_of_another_user(repository, cache: Cache) -> None:
    """A repository that belongs to somebody else can be fetched from."""
    for path in (repository.path, *repository.path.rglob("*")):
        os.chown(path, 12345, 12345)

    assert (load(repository, cache).files / "hubconf.py").exists()


def test_from_a_shallow_clone(repository, cache: Cache, tmp_path: Path) -> None:
    """A shallow clone, as a build server makes them, can be fetched from."""
    repository.commit(hubconf__py="VERSION = 2\n")
    repository.git("clone", "--quiet", "--depth=1", repository.url, str(tmp_path / "shallow"))

    checkout = fetch(resolve(RepoRef.parse(f"git+file://{tmp_path}/shallow")), cache)

    assert (checkout.files / "hubconf.py").read_text() == "VERSION = 2\n"


def test_commit_that_is_gone(repository, cache: Cache) -> None:
    """A commit that vanished between resolving and fetching is an error with URL and commit; nothing stays."""
    gone = Resolved(repo=RepoRef.parse(f"git+{repository.url}"), commit="1" * 40, ref_name=None)

    with pytest.raises(FetchError, match="not our ref") as caught:
        fetch(gone, cache)

    assert (caught.value.url, caught.value.commit) == (repository.url, "1" * 40)
    assert not list(cache.root.rglob("files"))


def test_cache_that_cannot_be_written(repository, tmp_path: Path) -> None:
    """A cache folder that cannot be made is a FetchError that says how to have it elsewhere."""
    (tmp_path / "file").write_text("")

    with pytest.raises(FetchError, match="TORCH_HOME") as caught:
        load(repository, Cache(tmp_path / "file" / "cache"))

    assert isinstance(caught.value, OSError)


def test_working_tree_is_used_in_place(repository, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder comes back as it stands, with its uncommitted edits, and without git."""
    (repository.path / "hubconf.py").write_text("VERSION = 'edited'\n")
    monkeypatch.setattr(git, "run", lambda *args, **more: pytest.fail(f"git was run: {args}"))

    checkout = fetch(resolve(RepoRef.parse(repository.path)), cache)

    assert checkout.root == repository.path
    assert (checkout.hub_folder / "srv_models_main" / "hubconf.py").read_text() == "VERSION = 'edited'\n"


def test_steps_and_log(repository, cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """Resolving and fetching are steps that listeners hear of; only a real fetch is a line in the log."""
    heard: list[tuple[str, str]] = []

    def listener(step: trace.Step) -> None:
        heard.append((step.name, step.state))

    trace.add_listener(listener)
    caplog.set_level(logging.INFO, "isohub.hub")
    try:
        load(repository, cache)
        load(repository, cache)
    finally:
        trace.remove_listener(listener)

    assert heard == 2 * [
        ("hub.resolve", "started"), ("hub.resolve", "complete"), ("hub.fetch", "started"), ("hub.fetch", "complete")
    ]  # fmt: skip
    assert [record.message.split(":")[0] for record in caplog.records] == ["Fetching srv/models"]


def test_threads_fetch_once(repository, cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """Eight threads that load one commit with a cold cache make one fetch, and all have its files."""
    caplog.set_level(logging.INFO, "isohub.hub")
    together = threading.Barrier(8)

    def work(_: int) -> str:
        together.wait()
        return (load(repository, cache).files / "hubconf.py").read_text()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(8))) == {"VERSION = 1\n"}

    assert len(caplog.records) == 1


def test_processes_fetch_once(repository, make_repository, cache: Cache) -> None:
    """Eight processes that load two commits each with a cold cache make two fetches, and none fails."""
    other = make_repository("other")
    other.commit(hubconf__py="VERSION = 'other'\n")
    script = """
import logging, sys
from isohub.hub.cache import Cache
from isohub.hub.fetch import fetch
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef
root, *urls = sys.argv[1:]
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
print("ready", flush=True)
sys.stdin.readline()
for url in urls:
    checkout = fetch(resolve(RepoRef.parse("git+" + url)), Cache(root))
    print((checkout.root / "hubconf.py").read_text(), end="")
"""
    urls = [repository.url, other.url]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(cache.root), *(urls if number % 2 else reversed(urls))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:  # all at once
        child.stdin.write("\n")
        child.stdin.flush()

    lines = [line for child in children for line in child.communicate()[0].splitlines()]

    assert [child.returncode for child in children] == [0] * 8
    assert lines.count("VERSION = 1") == lines.count("VERSION = 'other'") == 8
    assert len([line for line in lines if line.startswith("Fetching")]) == 2
