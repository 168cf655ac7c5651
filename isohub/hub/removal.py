"""Removing from the cache: what was named, or what is oldest; never what a live worker uses.

Note [one at a time, whole]: a checkout is moved to tmp/ by one rename while its lease and its lock are held, so
that nobody ever sees half of it; what is in tmp/ is removed by whoever comes next, should this process die.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from isohub.hub import leases, tree
from isohub.hub.inventory import CachedCheckout, CachedWeights, Inventory, Item
from isohub.hub.scratch import sweep

__all__ = ["Removal", "prune", "remove"]

# A download that broke off and that nobody went on with for a day will not be gone on with.
_PARTIAL_AGE = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What was removed, or would be.

    Attributes:
        removed: The items.
        kept: What was to go, and stays because a live worker uses it.
        leftovers: Temporary folders of processes that died, downloads that broke off, and the like.
        freed_bytes: Size of all that is gone.
    """

    removed: list[Item] = field(default_factory=list)
    kept: list[Item] = field(default_factory=list)
    leftovers: list[Path] = field(default_factory=list)
    freed_bytes: int = 0


def remove(inventory: Inventory, items: Iterable[Item], *, dry_run: bool = False) -> Removal:
    """Remove items, unless a live worker uses them.

    Args:
        inventory: Where they are.
        items: Which.
        dry_run: Whether to leave all in place, and only say what would be done.

    Raises:
        OSError: The cache cannot be written.
    """
    removed: list[Item] = []
    kept: list[Item] = []
    for item in items:
        is_gone = not item.is_leased if dry_run else _remove(inventory, item)
        (removed if is_gone else kept).append(item)
    return Removal(removed=removed, kept=kept, freed_bytes=sum(item.size_bytes for item in removed))


def prune(
    inventory: Inventory,
    *,
    max_age_s: float | None = None,
    max_size_bytes: int | None = None,
    dry_run: bool = False,
) -> Removal:
    """Remove what was not used for long, then what was used longest ago until the rest is small enough.

    What is in use counts to the size. Temporary folders of dead processes go in any case.

    Args:
        inventory: Where to look.
        max_age_s: How long ago something may have been used; None for ever.
        max_size_bytes: How big the rest may be; None for no limit.
        dry_run: Whether to leave all in place, and only say what would be done.

    Raises:
        OSError: The cache cannot be written.
    """
    now = datetime.now(timezone.utc)
    leftovers, freed_bytes = _leftovers(inventory, now, max_age_s, dry_run=dry_run)
    items = [item for item in inventory.items() if not (isinstance(item, CachedWeights) and item.is_elsewhere)]
    total_bytes = sum(item.size_bytes for item in items)
    removed: list[Item] = []
    kept: list[Item] = []
    for item in sorted(items, key=lambda item: item.used_at):
        is_old = max_age_s is not None and (now - item.used_at).total_seconds() > max_age_s
        is_too_much = max_size_bytes is not None and total_bytes > max_size_bytes and item.size_bytes > 0
        if not (is_old or is_too_much):
            continue
        is_gone = not item.is_leased if dry_run else _remove(inventory, item, is_oldest=True)
        (removed if is_gone else kept).append(item)
        if is_gone:
            total_bytes -= item.size_bytes
            freed_bytes += item.size_bytes
    return Removal(removed=removed, kept=kept, leftovers=leftovers, freed_bytes=freed_bytes)


def _remove(inventory: Inventory, item: Item, *, is_oldest: bool = False) -> bool:
    """Remove an item; return whether it is gone. With `is_oldest` not one that was used since it was looked at."""
    if isinstance(item, CachedWeights):
        if is_oldest and _was_used_since(item):
            return False
        inventory.store.remove(item.record)
        _forget_stamp(item.folder)
        return True
    cache = inventory.cache
    with cache._lock(item.folder), leases.vacated(item.folder) as is_free:
        if not is_free or (is_oldest and _was_used_since(item)):
            return False
        with cache.scratch() as aside, suppress(FileNotFoundError):  # removed by another process
            item.folder.rename(aside / "removed")
    _forget_refs(inventory, item)
    return True


def _was_used_since(item: Item) -> bool:
    return (leases.used_at(item.folder) or item.used_at) > item.used_at


def _forget_refs(inventory: Inventory, item: CachedCheckout) -> None:
    place = item.folder.parent.relative_to(inventory.cache.root / "checkouts")
    for file, remembered in inventory.cache.refs.at(place):
        if remembered.commit == item.commit:
            file.unlink(missing_ok=True)


def _forget_stamp(folder: Path) -> None:
    folder.with_name(f"{folder.name}{leases.SUFFIX}").unlink(missing_ok=True)


def _leftovers(
    inventory: Inventory, now: datetime, max_age_s: float | None, *, dry_run: bool
) -> tuple[list[Path], int]:
    found = [*_stale_partials(inventory, now), *_stale_trees(inventory, now, max_age_s)]
    size_bytes = sum(_size_of(path) for path in found)
    if not dry_run:
        found = [path for path in found if _remove_leftover(inventory, path)]
    root = inventory.cache.root
    temporary = sweep(root / "tmp", dry_run=True)
    size_bytes += sum(_size_of(path) for path in temporary)
    if not dry_run:
        sweep(root / "tmp")
        _remove_orphans(root)
    return [*found, *temporary], size_bytes


def _stale_partials(inventory: Inventory, now: datetime) -> list[Path]:
    return [path for path in inventory.store.partials() if _age(path, now) > _PARTIAL_AGE]


def _stale_trees(inventory: Inventory, now: datetime, max_age_s: float | None) -> list[Path]:
    """Return the folders beside working trees (not these themselves) that were not used for long."""
    if max_age_s is None:
        return []
    folders = [path for path in sorted((inventory.cache.root / "trees").glob("*")) if path.is_dir()]
    limit = timedelta(seconds=max_age_s)
    return [path for path in folders if now - (leases.used_at(path) or now) > limit and not leases.is_leased(path)]


def _remove_leftover(inventory: Inventory, path: Path) -> bool:
    if path.is_dir():
        with leases.vacated(path) as is_free:
            if is_free:
                tree.remove(path)
            return is_free
    try:
        # The lock of its URL: whoever downloads has it.
        with FileLock(inventory.store.root / "locks" / f"{path.parent.name}.lock").acquire(blocking=False):
            path.with_name(f"{path.name}.json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    except (Timeout, FileNotFoundError):
        return False
    return True


def _remove_orphans(root: Path) -> None:
    """Remove the stamps of checkouts that are gone."""
    for file in (root / "checkouts").glob(f"*/*/*/*{leases.SUFFIX}"):
        folder = file.with_name(file.name.removesuffix(leases.SUFFIX))
        if not folder.exists():
            with leases.vacated(folder):
                pass  # it takes the file with it


def _age(path: Path, now: datetime) -> timedelta:
    try:
        return now - datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    except OSError:
        return timedelta(0)


def _size_of(path: Path) -> int:
    try:
        return tree.measure(path)[1] if path.is_dir() else path.stat().st_size
    except OSError:
        return 0
