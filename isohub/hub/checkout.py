"""The two values that this layer hands on: `Resolved` (which commit) and `Checkout` (its files)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from isohub.hub import tree
from isohub.refs import RepoRef

__all__ = ["Checkout", "Resolved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A repository, and the commit that what the user wrote stands for at this moment.

    Attributes:
        repo: What the user wrote.
        commit: 40 hexadecimal digits; None for a working tree.
        ref_name: The branch or tag that was taken, by its real name, the default branch's included;
            None for a commit or a working tree.
        folder: A folder of torch.hub's own that stands in for the commit while its host is out of reach.
    """

    repo: RepoRef
    commit: str | None
    ref_name: str | None
    folder: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """The files of one commit, read-only; or a working tree, used where it stands.

    Attributes:
        repo: What the user wrote.
        commit: 40 hexadecimal digits; None for a working tree.
        ref_name: The branch or tag that was taken; None for a commit or a working tree.
        files: The top of the repository's files.
        tree_hash: SHA-256 of the files as they were fetched; None for a working tree.
        fetched_by: How they were fetched, `"archive"` or `"git"`; None for a working tree.
        fingerprint: What a working tree looked like, so that an edit changes it; None for a commit, and
            for a tree too big to look at.
        hub_folder: The private hub folder (`torch.hub.get_dir()`) of the workers of these files.
        cwd: A writable folder for workers to run in.
        pycache: Where bytecode may be kept; None for a working tree, whose bytecode might be stale.
    """

    repo: RepoRef
    commit: str | None
    ref_name: str | None
    files: Path
    tree_hash: str | None
    fetched_by: str | None
    fingerprint: str | None
    hub_folder: Path
    cwd: Path
    pycache: Path | None
    _unshared: str = field(default_factory=lambda: uuid4().hex, repr=False, compare=False)

    @property
    def root(self) -> Path:
        """The folder that holds hubconf.py and goes on sys.path."""
        return self.files / (self.repo.subdirectory or "")

    @property
    def key(self) -> str:
        """What a worker may be shared for: equal keys mean equal files, at equal places."""
        if self.commit is not None:
            return f"{self.repo.identity}@{self.commit}#{self.repo.subdirectory or ''}"
        return f"{self.root}@{self.fingerprint or self._unshared}"

    def link_names(self, names: Iterable[str]) -> None:
        """Make `names` lead to these files in the hub folder; other processes may do so at the same time."""
        # Relative within the cache, so that the cache can be moved or mounted elsewhere.
        target = "../files" if self.commit is not None else str(self.files)
        for name in names:
            tree.link(self.hub_folder / name, target)
