"""Trees of files: their hash, their names in the hub folder, and working trees used where they stand."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from isohub.errors import FetchError
from isohub.hub import tree
from isohub.hub.cache import Cache
from isohub.hub.checkout import Resolved
from isohub.refs import RepoRef
from tests.helpers.checkouts import COMMIT, RESOLVED, must_not_fetch, put_files

# ------------------------------------------------------------------------------------------ hash


def test_tree_hash_tells_trees_apart(tmp_path: Path) -> None:
    """The hash changes with a path, a byte, an executable bit or a link, and with nothing else."""

    def hash_of(change) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        put_files(folder)
        change(folder)
        return tree.tree_hash(folder)

    def retarget(folder: Path) -> None:
        (folder / "link").unlink()
        (folder / "link").symlink_to("hubconf.py")

    same = [
        hash_of(lambda folder: None),
        hash_of(lambda folder: os.utime(folder / "run", (1, 1))),
        hash_of(tree.make_read_only),
    ]
    different = [
        hash_of(lambda folder: (folder / "run").rename(folder / "run2")),
        hash_of(lambda folder: (folder / "run").write_text("#!/bin/zh\n")),
        hash_of(lambda folder: (folder / "run").chmod(0o644)),
        hash_of(lambda folder: (folder / "new").write_text("")),
        hash_of(retarget),
    ]

    assert len(set(same)) == 1
    assert len({*same, *different}) == 1 + len(different)


# ------------------------------------------------------------------------------------------ names in the hub folder


def test_names_lead_to_the_files(cache: Cache) -> None:
    """Names in the hub folder lead to the checkout's files, and making them twice is no error."""
    checkout = cache.checkout(RESOLVED, put_files)

    for _ in range(2):
        checkout.link_names(["srv_models_v1", "srv_models_main"])

    assert (checkout.hub_folder / "srv_models_main").readlink() == Path("../files")
    assert (checkout.hub_folder / "srv_models_v1" / "hubconf.py").read_text() == "import pkg\n"
    assert sorted(path.name for path in checkout.hub_folder.iterdir()) == [
        "checkpoints", "srv_models_main", "srv_models_v1"
    ]  # fmt: skip


def test_names_made_at_the_same_time(cache: Cache) -> None:
    """Eight threads that link the same names all succeed, and at no time is a name missing."""
    checkout = cache.checkout(RESOLVED, put_files)
    names = [f"srv_models_{number}" for number in range(20)]
    together = threading.Barrier(8)

    def link(_: int) -> None:
        together.wait()
        checkout.link_names(names)
        assert all((checkout.hub_folder / name / "hubconf.py").exists() for name in names)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(link, range(8)))

    assert sorted(path.name for path in checkout.hub_folder.iterdir()) == sorted(["checkpoints", *names])


def test_a_name_that_cannot_be_linked_is_logged(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """A folder in the place of a name, or a name too long for the disk, is a line in the log and no error."""
    checkout = cache.checkout(RESOLVED, put_files)
    (checkout.hub_folder / "taken").mkdir()

    checkout.link_names(["taken", "x" * 300, "fine"])

    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert (checkout.hub_folder / "taken").is_dir()
    assert sorted(path.name for path in checkout.hub_folder.iterdir()) == ["checkpoints", "fine", "taken"]


# ------------------------------------------------------------------------------------------ working trees


@pytest.fixture
def working_tree(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    put_files(folder)
    return folder


def open_tree(cache: Cache, folder: Path):
    return cache.checkout(Resolved(repo=RepoRef.parse(folder), commit=None, ref_name=None), must_not_fetch)


def test_working_tree_stays_in_place(cache: Cache, working_tree: Path) -> None:
    """A folder is used where it stands: nothing is copied, nothing is written into it."""
    before = tree.tree_hash(working_tree)

    checkout = open_tree(cache, working_tree)
    checkout.link_names(["o_work_main"])

    assert (checkout.files, checkout.commit, checkout.tree_hash, checkout.pycache) == (working_tree, None, None, None)
    assert checkout.hub_folder.parent.name.endswith("-work")
    assert (checkout.hub_folder / "o_work_main").readlink() == working_tree
    assert checkout.cwd.is_dir()
    assert tree.tree_hash(working_tree) == before
    assert os.access(working_tree / "hubconf.py", os.W_OK)


def test_an_edit_changes_the_key(cache: Cache, working_tree: Path) -> None:
    """A tree that is left alone has one key; an edit, a new file and a replaced file each change it."""
    (working_tree / "shared").symlink_to(working_tree / "pkg", target_is_directory=True)
    keys = [open_tree(cache, working_tree).key]
    assert open_tree(cache, working_tree).key == keys[0]

    (working_tree / "pkg" / "__init__.py").write_text("x = 1\n")
    keys.append(open_tree(cache, working_tree).key)
    (working_tree / "new.py").write_text("")
    keys.append(open_tree(cache, working_tree).key)
    status = (working_tree / "new.py").stat()
    (working_tree / "other").write_text("")
    os.utime(working_tree / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    (working_tree / "other").rename(working_tree / "new.py")
    keys.append(open_tree(cache, working_tree).key)

    assert len(set(keys)) == 4


def test_code_behind_a_link_counts(tmp_path: Path, working_tree: Path) -> None:
    """An edit of code that the tree holds only by a link changes the fingerprint, and loops of links end."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "net.py").write_text("")
    (outside / "back").symlink_to(outside)
    (working_tree / "models").symlink_to(outside)
    before = tree.fingerprint(working_tree)

    (outside / "net.py").write_text("x = 1\n")

    assert before is not None
    assert tree.fingerprint(working_tree) != before


def test_what_does_not_count(working_tree: Path) -> None:
    """Bytecode, hidden folders and links that lead nowhere do not change the fingerprint."""
    before = tree.fingerprint(working_tree)

    for name in (".git", "__pycache__", "pkg/__pycache__"):
        (working_tree / name).mkdir()
        (working_tree / name / "x").write_text("")
    (working_tree / "nowhere").symlink_to("missing")

    assert tree.fingerprint(working_tree) == before


def test_too_big_to_look_at(cache: Cache, working_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree with too many entries has no fingerprint, and no two of its checkouts share a worker."""
    monkeypatch.setattr(tree, "MAX_FINGERPRINT_ENTRIES", 4)

    checkout = open_tree(cache, working_tree)

    assert checkout.fingerprint is None
    assert checkout.key == checkout.key != open_tree(cache, working_tree).key


def test_a_tree_that_is_gone(cache: Cache, working_tree: Path) -> None:
    """A folder that vanished after it was named is an error that names it."""
    resolved = Resolved(repo=RepoRef.parse(working_tree), commit=None, ref_name=None)
    tree.remove(working_tree)

    with pytest.raises(FetchError, match="is gone"):
        cache.checkout(resolved, must_not_fetch)


def test_subdirectory_is_part_of_root_and_key(cache: Cache) -> None:
    """Two folders of one commit share its files, and have a root and a key each."""
    inner = RepoRef.parse("git+file:///srv/models.git@v1#subdirectory=pkg")
    first = cache.checkout(RESOLVED, put_files)
    second = cache.checkout(Resolved(repo=inner, commit=COMMIT, ref_name="v1"), must_not_fetch)

    assert first.files == second.files
    assert (first.root, second.root) == (first.files, first.files / "pkg")
    assert first.key != second.key
