"""What is in the cache: listed, found, verified, removed and pruned; never what is in use."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from isohub.errors import RefError
from isohub.hub import removal
from isohub.hub.cache import Cache
from isohub.hub.checkout import Checkout, Resolved
from isohub.hub.fetch import fetch
from isohub.hub.inventory import CachedCheckout, Inventory
from isohub.hub.leases import Lease
from isohub.hub.resolve import resolve
from isohub.hub.weight_store import WeightStore
from isohub.refs import RepoRef
from tests.helpers.fileserver import FileServer
from tests.unit.hub.conftest import GitRepository

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "0123" + "89abcdef" * 4 + "0123"
DAY = 86_400


@pytest.fixture
def inventory(cache: Cache) -> Inventory:
    return Inventory(cache)


def put(cache: Cache, text: str, commit: str = COMMIT, *, size_bytes: int = 10) -> Checkout:
    """Put a checkout into the cache, as if it had been fetched."""
    resolved = Resolved(repo=RepoRef.parse(text), commit=commit, ref_name=None)

    def fetch_into(files: Path) -> None:
        (files / "hubconf.py").write_bytes(b"#" * size_bytes)

    return cache.checkout(resolved, fetch_into)


def set_age(folder: Path, age_s: float) -> None:
    """Make something of the cache look as if it was brought, and used last, so long ago."""
    moment = datetime.now(timezone.utc) - timedelta(seconds=age_s)
    note = folder / "isohub.json"
    found = next(one for one in note.read_text().split('"') if one.startswith("20") and "T" in one)
    note.write_text(note.read_text().replace(found, moment.isoformat()))
    stamp = folder.with_name(f"{folder.name}.lease")
    stamp.touch()
    os.utime(stamp, (moment.timestamp(), moment.timestamp()))


def labels(items: object) -> list[str]:
    return [item.label for item in items]


# -------------------------------------------------------------------------------------------------- listing


def test_empty_cache_has_nothing(inventory: Inventory) -> None:
    """A cache that was never used lists nothing, has nothing to prune, and is not made by looking."""
    assert inventory.items() == []
    assert removal.prune(inventory, max_age_s=0, max_size_bytes=0).removed == []
    assert not inventory.cache.root.exists()


def test_checkouts_are_listed_with_what_is_known(inventory: Inventory, cache: Cache) -> None:
    """A checkout has its names, commit, refs, size and times, and those of this machine have no host."""
    checkout = put(cache, "git.example.com:8443/group/sub/net:main", size_bytes=1000)
    local = put(cache, "git+file:///srv/models.git@v1")
    for ref in ("main", None):
        cache.refs.note(checkout.repo, ref, COMMIT, "main")
    cache.refs.note(checkout.repo, "dev", OTHER, "dev")

    here, there = inventory.checkouts()

    assert (there.host, there.owner, there.name, there.commit) == (
        "git.example.com:8443", "group/sub", "net", COMMIT
    )  # fmt: skip
    assert set(there.refs) == {"main", None}
    assert there.size_bytes >= 1000
    assert there.tree_hash == checkout.tree_hash
    assert not there.is_leased
    assert there.label == f"git.example.com:8443/group/sub/net@{COMMIT}"
    assert (here.host, here.owner, here.name) == ("", "srv", "models")
    assert here.label == f"git+file:///srv/models.git@{COMMIT}"
    assert here.folder == local.files.parent


def test_times_and_leases(inventory: Inventory, cache: Cache) -> None:
    """When it was used last comes from its stamp, when it was fetched from its description; a lease shows."""
    checkout = put(cache, "owner/name")
    set_age(checkout.files.parent, 3 * DAY)
    before = inventory.checkouts()[0]
    with Lease.acquire(checkout):
        during = inventory.checkouts()[0]

    now = datetime.now(timezone.utc)
    assert (now - before.used_at).days == (now - before.fetched_at).days == 3
    assert (now - during.used_at).days == 0
    assert (before.is_leased, during.is_leased) == (False, True)


def test_weights_are_listed(inventory: Inventory, server: FileServer, tmp_path: Path) -> None:
    """Weights have URL, hash and size; those that lie elsewhere take no room in the store."""
    one, two = server.put("/a.pth", b"one"), server.put("/b.pth", b"three")
    store = inventory.store
    store.fetch(one, progress=False)
    store.fetch_to(two, tmp_path / "b.pth", progress=False)

    kept, elsewhere = inventory.weights()

    assert (kept.url, kept.size_bytes, kept.sha256) == (one, 3, hashlib.sha256(b"one").hexdigest())
    assert (elsewhere.url, elsewhere.size_bytes, kept.is_elsewhere, elsewhere.is_elsewhere) == (two, 0, False, True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("owner/name", [0, 1]),
        ("github.com/owner/name", [0, 1]),
        ("git+https://github.com/owner/name.git", [0, 1]),
        ("owner/name:main", [1]),
        ("owner/name:0123", [0, 1]),
        (f"owner/name@{OTHER}", [1]),
        ("0123", [0, 1, 2]),
        (COMMIT[:10].upper(), [0, 2]),
        ("gitlab.com/owner/name", [2]),
        ("owner/other", []),
        ("ffff", []),
    ],
)
def test_texts_find_what_they_name(inventory: Inventory, cache: Cache, text: str, found: list[int]) -> None:
    """Repo texts with and without a ref, host/owner/name and beginnings of commits find just what they name."""
    items = [("owner/name", COMMIT), ("owner/name", OTHER), ("gitlab.com/owner/name", COMMIT)]
    folders = [put(cache, name, commit).files.parent for name, commit in items]
    cache.refs.note(RepoRef.parse("owner/name"), "main", OTHER, "main")

    assert {item.folder for item in inventory.matching(text)} == {folders[number] for number in found}


def test_ref_of_this_machine_is_looked_up(repository: GitRepository, cache: Cache, inventory: Inventory) -> None:
    """A ref of a repository on this machine names the commit that it stands for now."""
    text = f"git+{repository.url}"
    first = fetch(resolve(RepoRef.parse(text)), cache)
    repository.commit(hubconf__py="VERSION = 2\n")
    second = fetch(resolve(RepoRef.parse(text)), cache)

    assert [item.folder for item in inventory.matching(f"{text}@main")] == [second.files.parent]
    assert {item.folder for item in inventory.matching(text)} == {first.files.parent, second.files.parent}


def test_weights_are_found_by_url_and_hash(inventory: Inventory, server: FileServer) -> None:
    """Weights are named by their URL or the beginning of their hash; a folder or nonsense names nothing."""
    url = server.put("/a.pth", b"one")
    inventory.store.fetch(url, progress=False)

    assert labels(inventory.matching(url)) == [url]
    assert labels(inventory.matching(hashlib.sha256(b"one").hexdigest()[:8])) == [url]
    for text in ("nor", "file:///"):
        with pytest.raises(RefError):
            inventory.matching(text)


# --------------------------------------------------------------------------------------------------- verify


def test_verify_finds_every_kind_of_damage(inventory: Inventory, cache: Cache, server: FileServer) -> None:
    """A byte that changed, a file that is gone and a description that cannot be read are found, and nothing else."""
    texts = ["owner/sound", "owner/byte", "owner/gone", "owner/note"]
    sound, byte, gone, note = (put(cache, text) for text in texts)
    urls = [server.put(f"/{name}.pth", name.encode()) for name in ("sound", "byte", "gone")]
    paths = [inventory.store.fetch(url, progress=False) for url in urls]
    for path in (byte.files / "hubconf.py", paths[1]):
        path.chmod(0o644)
        path.write_bytes(b"!" * path.stat().st_size)
    gone.files.chmod(0o755)
    (gone.files / "hubconf.py").unlink()
    paths[2].unlink()
    (note.files.parent / "isohub.json").write_text("{")

    found = {one.item.folder: one.reason for one in inventory.verify()}

    assert set(found) == {
        byte.files.parent, gone.files.parent, note.files.parent, paths[1].parent, paths[2].parent
    }  # fmt: skip
    assert f"instead of {sound.tree_hash}" in found[byte.files.parent]
    assert found[note.files.parent] == "isohub.json is gone, or cannot be read"


# -------------------------------------------------------------------------------------------------- removal


def test_removed_is_gone_with_its_refs(inventory: Inventory, cache: Cache) -> None:
    """A removed checkout leaves no folder, no stamp, nothing in tmp/ and no ref that stands for it."""
    one, two = put(cache, "owner/name", COMMIT), put(cache, "owner/name", OTHER)
    for ref, commit in (("main", COMMIT), ("dev", OTHER)):
        cache.refs.note(one.repo, ref, commit, ref)
    [item] = inventory.matching(COMMIT)

    done = removal.remove(inventory, [item])

    assert (labels(done.removed), done.kept, done.freed_bytes) == ([f"owner/name@{COMMIT}"], [], item.size_bytes)
    assert [path.name for path in two.files.parents[1].iterdir() if path.is_dir()] == [OTHER]
    assert not one.files.parent.with_name(f"{COMMIT}.lease").exists()
    assert [remembered.ref for remembered in cache.refs.all()] == ["dev"]
    assert [path.name for path in (cache.root / "tmp").iterdir()] == ["sweep"]


def test_leased_is_never_removed(inventory: Inventory, cache: Cache) -> None:
    """What a worker uses survives `remove` and every `prune`, and is removed as soon as it is free."""
    checkout = put(cache, "owner/name")
    set_age(checkout.files.parent, 100 * DAY)
    stale = inventory.items()  # looked at before the lease, as by a process that is slower
    with Lease.acquire(checkout):
        named = removal.remove(inventory, stale)
        pruned = removal.prune(inventory, max_age_s=0, max_size_bytes=0)
        assert (checkout.files / "hubconf.py").is_file()
    after = removal.remove(inventory, inventory.items())

    assert (named.removed, labels(named.kept)) == ([], [f"owner/name@{COMMIT}"])
    assert (pruned.removed, labels(pruned.kept)) == ([], [f"owner/name@{COMMIT}"])
    assert labels(after.removed) == [f"owner/name@{COMMIT}"]


def test_prune_by_age_and_size(inventory: Inventory, cache: Cache, server: FileServer) -> None:
    """By age goes what was not used for longer; by size what was used longest ago, until the rest fits."""
    for number, age in enumerate((40, 20, 10, 0)):
        set_age(put(cache, f"owner/n{number}", size_bytes=100_000).files.parent, age * DAY)
    url = server.put("/a.pth", b"#" * 100_000)
    path = inventory.store.fetch(url, progress=False)
    set_age(path.parent, 15 * DAY)

    first = removal.prune(inventory, max_age_s=30 * DAY, dry_run=True)
    assert len(inventory.items()) == 5
    second = removal.prune(inventory, max_age_s=30 * DAY)
    third = removal.prune(inventory, max_size_bytes=250_000)

    assert labels(first.removed) == labels(second.removed) == [f"owner/n0@{COMMIT}"]
    assert labels(third.removed) == [f"owner/n1@{COMMIT}", url]
    assert labels(inventory.items()) == [f"owner/n2@{COMMIT}", f"owner/n3@{COMMIT}"]
    assert not path.exists()
    assert first.freed_bytes == second.freed_bytes >= 100_000


def test_what_was_used_meanwhile_is_not_pruned(inventory: Inventory, cache: Cache) -> None:
    """A checkout that was used after it was looked at is no longer the oldest."""
    checkout = put(cache, "owner/name")
    set_age(checkout.files.parent, 40 * DAY)
    [item] = inventory.items()
    Lease.acquire(checkout).close()

    assert not removal._remove(inventory, item, is_oldest=True)
    assert checkout.files.is_dir()


def test_prune_leaves_weights_elsewhere(inventory: Inventory, server: FileServer, tmp_path: Path) -> None:
    """Files that a user had put into a folder of their own are nobody's to prune, nor is their record."""
    url = server.put("/a.pth", b"one")
    inventory.store.fetch_to(url, tmp_path / "a.pth", progress=False)

    removal.prune(inventory, max_age_s=0, max_size_bytes=0)

    assert (tmp_path / "a.pth").read_bytes() == b"one"
    assert labels(inventory.weights()) == [url]


def test_prune_takes_what_the_dead_left(inventory: Inventory, cache: Cache) -> None:
    """Temporary folders of killed processes and downloads that broke off a day ago go; those of the living stay."""
    script = """
import os, signal, sys
from isohub.hub.cache import Cache
with Cache(sys.argv[1]).scratch() as folder:
    (folder / "half").write_bytes(bytes(5000))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, str(cache.root)], check=False)
    partials = [inventory.store.root / "files" / (digit * 32) / "partial" for digit in "ab"]
    for partial in partials:
        partial.parent.mkdir(parents=True)
        partial.write_bytes(bytes(70))
    (inventory.store.root / "locks").mkdir()
    old = datetime.now(timezone.utc).timestamp() - 2 * DAY
    os.utime(partials[0], (old, old))
    tree = cache.root / "trees" / "0123456789ab-models"
    (tree / "hub").mkdir(parents=True)
    set_age_of_tree = tree.with_name(f"{tree.name}.lease")
    set_age_of_tree.touch()
    os.utime(set_age_of_tree, (old, old))
    orphan = cache.root / "checkouts" / "h" / "o" / "n" / f"{COMMIT}.lease"
    orphan.parent.mkdir(parents=True)
    orphan.touch()

    expected = removal.prune(inventory, max_age_s=DAY, dry_run=True)
    assert partials[0].exists()
    done = removal.prune(inventory, max_age_s=DAY)

    assert sorted(done.leftovers) == sorted(expected.leftovers)
    assert [path for path in done.leftovers if path.parent != cache.root / "tmp"] == [partials[0], tree]
    assert done.freed_bytes == expected.freed_bytes == 5070
    assert [path.exists() for path in (*partials, tree, orphan)] == [False, True, False, False]
    assert [path.name for path in (cache.root / "tmp").iterdir()] == ["sweep"]


def test_two_who_remove_at_once(inventory: Inventory, cache: Cache) -> None:
    """What another process has removed is gone, and no error."""
    put(cache, "owner/name")
    items = inventory.items()

    first, second = removal.remove(inventory, items), removal.remove(inventory, items)

    assert (len(first.removed), len(second.removed)) == (1, 1)
    assert isinstance(items[0], CachedCheckout)
    assert inventory.items() == []


def test_store_of_the_usual_place(hub_home: Path, make_repository: Callable[..., GitRepository]) -> None:
    """Without arguments it looks where loads put things."""
    repository = make_repository()
    repository.commit(hubconf__py="")
    fetch(resolve(RepoRef.parse(f"git+{repository.url}")), Cache())

    assert len(Inventory().items()) == 1
    assert Inventory().store.root == WeightStore().root == hub_home / "hub" / "isohub" / "weights"
