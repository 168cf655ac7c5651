"""What is in the cache: checkouts and weights, how big, how old, of which refs, in use or not, intact or not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import unquote

from isohub.errors import RefError
from isohub.hub import leases, tree
from isohub.hub.cache import Cache
from isohub.hub.resolve import resolve
from isohub.hub.weight_record import NOTE, Weights
from isohub.hub.weight_store import WeightStore
from isohub.refs import RepoRef

__all__ = ["CachedCheckout", "CachedWeights", "Damage", "Inventory", "Item"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HEX = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedCheckout:
    """The files of one commit.

    Attributes:
        host: Host name; `""` for a repository of this machine.
        owner: Its owner.
        name: Its name.
        commit: 40 hexadecimal digits.
        identity: What it is of: `host/owner/name`, or the URL of a repository of this machine.
        refs: The refs that stood for this commit when their host was asked; None stands for the default branch.
        size_bytes: Of all that the cache keeps for it, bytecode included.
        fetched_at: When it was brought.
        used_at: When it was used last, as far as is known.
        is_leased: Whether a live worker uses it.
        tree_hash: SHA-256 of its files as they were fetched; None if its description is damaged.
        folder: Where it lies.
    """

    host: str
    owner: str
    name: str
    commit: str
    identity: str
    refs: tuple[str | None, ...]
    size_bytes: int
    fetched_at: datetime
    used_at: datetime
    is_leased: bool
    tree_hash: str | None
    folder: Path

    @property
    def label(self) -> str:
        """A name for it that people know, and that `Inventory.matching` finds."""
        return f"{self.repo}@{self.commit}"

    @property
    def repo(self) -> str:
        """The repository as a repo text."""
        return self.identity.removeprefix("github.com/") if self.host else f"git+{self.identity}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedWeights:
    """One file of weights.

    Attributes:
        url: Where it came from, without user and password.
        sha256: Hash of its content.
        size_bytes: What it takes in the store; 0 if it lies elsewhere, in a `model_dir` say.
        fetched_at: When it was brought or found.
        used_at: When it was used last, as far as is known.
        is_leased: False: it can be removed while it is in use, whoever has it open keeps it.
        folder: Where its description lies.
        record: All that is known of it.
    """

    url: str
    sha256: str
    size_bytes: int
    fetched_at: datetime
    used_at: datetime
    is_leased: bool
    folder: Path
    record: Weights

    @property
    def label(self) -> str:
        """A name for it that people know, and that `Inventory.matching` finds."""
        return self.url

    @property
    def is_elsewhere(self) -> bool:
        """Whether the store has no file of its own, and what it knows of lies where it was put."""
        return self.size_bytes == 0 and self.record.path() is not None


Item = CachedCheckout | CachedWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Something that is not as it was fetched.

    Attributes:
        item: What.
        reason: In which way.
    """

    item: Item
    reason: str


class Inventory:
    """Looks at a cache folder. It holds no state: each call looks anew.

    Args:
        cache: The checkouts; None for the usual place.
        store: The weights; None for those of the cache.
    """

    def __init__(self, cache: Cache | None = None, store: WeightStore | None = None) -> None:
        self.cache = cache or Cache()
        self.store = store or WeightStore(self.cache.root / "weights")

    def items(self) -> list[Item]:
        """Return all checkouts, then all weights."""
        return [*self.checkouts(), *self.weights()]

    def checkouts(self) -> list[CachedCheckout]:
        """Return the checkouts, by host, owner, name and commit."""
        folders = sorted((self.cache.root / "checkouts").glob("*/*/*/*"))
        found = (self._checkout(folder) for folder in folders if _COMMIT.fullmatch(folder.name))
        return [*filter(None, found)]

    def weights(self) -> list[CachedWeights]:
        """Return the weights, by URL."""
        return [found for record in self.store.all() if (found := _weights(record)) is not None]

    def verify(self, items: Iterable[Item] | None = None) -> Iterator[Damage]:
        """Read every byte, and yield what is not as it was fetched, as it is found.

        Args:
            items: What to look at; None for all.
        """
        for item in self.items() if items is None else items:
            reason = self._damage_of(item)
            # What was removed while it was read is not damaged.
            if reason is not None and item.folder.is_dir():
                yield Damage(item=item, reason=reason)

    def matching(self, text: str) -> list[Item]:
        """Return what a text stands for.

        Args:
            text: A repo text, with or without ref or commit; `host/owner/name`; the beginning (four digits or
                more) of a commit or of the SHA-256 of weights; the URL of weights.

        Raises:
            RefError: It is none of these.
            ResolveError, FetchError: A ref of a repository of this machine cannot be looked up.
        """
        items = self.items()
        found = [item for item in items if isinstance(item, CachedWeights) and item.url == text]
        if found:
            return [*found]
        if _HEX.fullmatch(text.lower()):
            return [item for item in items if _digits(item).startswith(text.lower())]
        repo = RepoRef.parse(text)
        if repo.is_local_tree:
            raise RefError(f"{text!r} is a folder, which is used where it stands and not kept in the cache", text=text)
        checkouts = [item for item in items if isinstance(item, CachedCheckout) and item.identity == repo.identity]
        return [item for item in checkouts if self._stands_for(repo, item)]

    def _stands_for(self, repo: RepoRef, item: CachedCheckout) -> bool:
        wanted = (repo.commit or repo.ref or "").lower()
        if not wanted:
            return True
        if item.commit == wanted or (_HEX.fullmatch(wanted) and item.commit.startswith(wanted)):
            return True
        if repo.is_remote:
            return repo.ref is not None and repo.ref in item.refs
        # Nothing is remembered of a repository of this machine: it is asked.
        return repo.ref is not None and resolve(repo, self.cache).commit == item.commit

    def _checkout(self, folder: Path) -> CachedCheckout | None:
        place = folder.parent.relative_to(self.cache.root / "checkouts")
        host, owner, name = (unquote(part) for part in place.parts)
        try:
            changed_at = datetime.fromtimestamp(folder.stat().st_mtime, timezone.utc)
            size_bytes = tree.measure(folder)[1]
        except OSError:  # removed just now
            return None
        identity, fetched_at, tree_hash = "", changed_at, None
        try:
            note = json.loads((folder / NOTE).read_bytes())
            identity, tree_hash = str(note["identity"]), str(note["tree_hash"])
            fetched_at = datetime.fromisoformat(note["fetched_at"])
        except (OSError, ValueError, KeyError, TypeError):  # damaged, and still something that takes room
            pass
        is_here = host.startswith("file-") and "." not in host
        return CachedCheckout(
            host="" if is_here else host,
            owner=owner,
            name=name,
            commit=folder.name,
            identity=identity or f"{host}/{owner}/{name}",
            refs=tuple(found.ref for _, found in self.cache.refs.at(place) if found.commit == folder.name),
            size_bytes=size_bytes,
            fetched_at=fetched_at,
            used_at=max(fetched_at, leases.used_at(folder) or fetched_at),
            is_leased=leases.is_leased(folder),
            tree_hash=tree_hash,
            folder=folder,
        )

    def _damage_of(self, item: Item) -> str | None:
        try:
            if isinstance(item, CachedCheckout):
                return self._damage_of_checkout(item)
            path = item.record.path()
            if path is None:
                # Of a file elsewhere that is not there any more nothing was promised.
                return None if item.record.file is None else "the file is gone, or has another size"
            return None if self.store.is_intact(item.record) else f"{path} has another content"
        except OSError as error:
            return str(error)

    def _damage_of_checkout(self, item: CachedCheckout) -> str | None:
        if item.tree_hash is None:
            return f"{NOTE} is gone, or cannot be read"
        actual = tree.tree_hash(item.folder / "files")
        return None if actual == item.tree_hash else f"the files have the hash {actual} instead of {item.tree_hash}"


def _weights(record: Weights) -> CachedWeights | None:
    try:
        fetched_at = datetime.fromisoformat(record.fetched_at)
        own = record.folder / record.file if record.file else None
        size_bytes = own.stat().st_size if own is not None and own.is_file() else 0
    except (OSError, ValueError):
        return None
    return CachedWeights(
        url=record.url,
        sha256=record.sha256,
        size_bytes=size_bytes,
        fetched_at=fetched_at,
        used_at=max(fetched_at, leases.used_at(record.folder) or fetched_at),
        is_leased=False,
        folder=record.folder,
        record=record,
    )


def _digits(item: Item) -> str:
    return item.commit if isinstance(item, CachedCheckout) else item.sha256
