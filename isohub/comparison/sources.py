"""Which versions are compared: refs of one repository, other repositories and forks, working trees."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from isohub.errors import ComparisonError, RefError
from isohub.refs import RepoRef

__all__ = ["Source", "at_ref", "sources_of"]

# Git forbids a colon in the name of a ref, and a ref that begins with a dot or a slash.
_WHOLE = re.compile(r"[^/]*:|git\+|git@|.*:")
_PATH = re.compile(r"\.{1,2}(/|$)|/|~")


@dataclass(frozen=True)
class Source:
    """One version to compare.

    Attributes:
        label: What it is called in a report; no two of one comparison have the same.
        ref: The repository with its ref, or a working tree.
    """

    label: str
    ref: RepoRef


def sources_of(
    repo: str | os.PathLike[str],
    refs: Sequence[str | os.PathLike[str]],
    *,
    source: str = "github",
    git_host: str | None = None,
) -> list[Source]:
    """Return the versions that a user means, in order.

    Args:
        repo: The repository that plain refs are refs of.
        refs: Each one a branch, tag or commit of `repo`; a whole repo text, which has a colon in it
            (`owner/fork:main`, `git+https://...`); or a folder (a `pathlib.Path`, or a text that begins with `.`,
            `/` or `~`), taken as it stands. If `repo` is a folder, one ref alone is compared with that folder.
        source: Where a plain `owner/name` lies, as in `isohub.load`.
        git_host: Another host, as in `isohub.load`.

    Raises:
        ComparisonError: There are fewer than two.
        RefError: One cannot be read.
    """
    if isinstance(refs, str | os.PathLike):
        raise ComparisonError(f"refs takes a list of refs, not one text: [{os.fspath(refs)!r}, ...]")
    base = RepoRef.parse(repo, source=source, git_host=git_host)
    chosen = [_read(base, ref, source, git_host) for ref in refs]
    if len(chosen) == 1 and base.is_local_tree and not chosen[0].ref.is_local_tree:
        chosen.append(Source(f"{base.label} (working tree)", base))
    if len(chosen) < 2:
        raise ComparisonError(
            f"a comparison needs two versions, and got {len(chosen)}: give two refs, or one ref of a folder"
        )
    return _told_apart(chosen)


def at_ref(base: RepoRef, ref: str) -> RepoRef:
    """Return a repository at another ref; for a folder, the git repository that it is part of.

    Raises:
        RefError: The folder is in no git repository.
    """
    commit = ref.lower() if re.fullmatch(r"[0-9a-fA-F]{40}", ref) else None
    if not base.is_local_tree:
        return replace(base, ref=None if commit else ref, commit=commit)
    folder = Path(base.url) / (base.subdirectory or "")
    top = next((parent for parent in (folder, *folder.parents) if (parent / ".git").exists()), None)
    if top is None:
        bare = (folder / "HEAD").is_file() and (folder / "objects").is_dir()
        if not bare:
            raise RefError(f"{ref!r} cannot be a ref of {folder}, which is in no git repository", text=ref)
        top = folder
    below = folder.relative_to(top).as_posix()
    found = RepoRef.parse(f"git+{top.as_uri()}")
    return replace(found, ref=None if commit else ref, commit=commit, subdirectory=None if below == "." else below)


def _read(base: RepoRef, ref: str | os.PathLike[str], source: str, git_host: str | None) -> Source:
    if not isinstance(ref, str) or _PATH.match(ref):
        folder = RepoRef.parse(Path(ref))
        return Source(f"{folder.label} (working tree)", folder)
    if _WHOLE.match(ref):
        whole = RepoRef.parse(ref, source="github" if source == "local" else source, git_host=git_host)
        return Source(f"{whole.label} (working tree)" if whole.is_local_tree else whole.label, whole)
    return Source(ref[:12] if re.fullmatch(r"[0-9a-fA-F]{40}", ref) else ref, at_ref(base, ref))


def _told_apart(chosen: list[Source]) -> list[Source]:
    told: list[Source] = []
    for one in chosen:
        taken = {other.label for other in told}
        label, number = one.label, 2
        while label in taken:
            label, number = f"{one.label} #{number}", number + 1
        told.append(Source(label, one.ref))
    return told
