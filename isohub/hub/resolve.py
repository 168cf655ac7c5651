"""From what the user wrote to one commit: `resolve`.

Who lies on another machine is asked as little as can be: a pinned commit that is in the cache is asked for by
nobody, and a ref that was asked for before is remembered (see `ref_memory`). A host that does not answer is
no obstacle for what is in the cache; the last resort is a folder that torch.hub itself left behind.
"""

from __future__ import annotations

import difflib
import logging
import re
import warnings
from pathlib import Path

from isohub import trace
from isohub.errors import FetchError, ResolveError, UnreachableError
from isohub.hub import hosts
from isohub.hub.cache import Cache, hub_dir
from isohub.hub.checkout import Resolved
from isohub.hub.hosts import Advertisement
from isohub.hub.http import is_offline
from isohub.refs import RepoRef
from isohub.servers import SOURCES

__all__ = ["Resolved", "resolve"]

_logger = logging.getLogger("isohub.hub")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HEX = re.compile(r"[0-9a-f]{4,40}")  # git itself takes no shorter ones
_MAX_CANDIDATES = 10


def resolve(
    ref: RepoRef, cache: Cache | None = None, *, force_reload: bool = False, skip_validation: bool = False
) -> Resolved:
    """Find the commit that `ref` stands for.

    Branches go before tags, and both before short commits; 40 hexadecimal digits are always a commit, so
    that no branch can be named to stand in for a pinned one. `refs/heads/x` and `refs/tags/x` say which.
    Repositories of this machine are looked at each time.

    Args:
        ref: What the user wrote.
        cache: Where refs are remembered, and checkouts looked for; None for the usual place.
        force_reload: Whether to ask the host, whatever is remembered.
        skip_validation: Whether to take a full commit that no branch or tag reaches, such as a fork's.

    Raises:
        ResolveError: The repository has no such ref or commit.
        FetchError: The repository cannot be read, or there is no git program and one is needed.
        UnreachableError: The host does not answer or may not be asked, and the cache has no answer either.
    """
    if ref.is_local_tree:
        return Resolved(repo=ref, commit=None, ref_name=None)
    with trace.step("hub.resolve", repo=str(ref)) as step:
        resolved = _resolve(ref, cache or Cache(), force_reload=force_reload, skip_validation=skip_validation)
        step.fields.update(commit=resolved.commit, ref_name=resolved.ref_name)
        return resolved


def _resolve(repo: RepoRef, cache: Cache, *, force_reload: bool, skip_validation: bool) -> Resolved:
    pinned = _pinned(repo)
    if repo.is_remote and pinned is not None and (skip_validation or (cache.has(pinned) and not force_reload)):
        return pinned
    if not repo.is_remote:
        return _ask(repo, cache)[0]
    remembered = cache.refs.find(repo)
    known = Resolved(repo=repo, commit=remembered.commit, ref_name=remembered.ref_name) if remembered else pinned
    if known is not None and not cache.has(known):
        known = None
    if known is not None and remembered is not None and not force_reload and not remembered.is_expired:
        return known
    try:
        if is_offline():
            raise UnreachableError(f"ISOHUB_OFFLINE forbids to ask {repo.host}", url=repo.url)
        resolved, tips = _ask(repo, cache)
    except FetchError as error:
        if force_reload or not _is_passing(error):
            raise
        return _without_host(repo, cache, known, error)
    _remember(resolved, tips, cache)
    return resolved


def _pinned(repo: RepoRef) -> Resolved | None:
    wanted = (repo.commit or repo.ref or "").lower()
    return Resolved(repo=repo, commit=wanted, ref_name=None) if _COMMIT.fullmatch(wanted) else None


def _ask(repo: RepoRef, cache: Cache) -> tuple[Resolved, Advertisement]:
    tips = hosts.host_of(repo).advertise(repo)
    commit, name = _choose(repo, tips, cache)
    return Resolved(repo=repo, commit=commit, ref_name=name), tips


def _remember(resolved: Resolved, tips: Advertisement, cache: Cache) -> None:
    repo, name = resolved.repo, resolved.ref_name
    if resolved.commit is None or repo.commit is not None:
        return
    # The default branch is the same by its name and without one, and was told of in the same answer.
    is_default = name is not None and name == tips.default_branch and name not in tips.tags
    for ref in {repo.ref} | ({None, name} if is_default and repo.ref in {None, name} else set()):
        cache.refs.note(repo, ref, resolved.commit, name)


def _is_passing(error: FetchError) -> bool:
    """Tell whether the host might answer later: it is out of reach, in trouble, or wants to be left alone."""
    is_limit = error.status == 429 or (error.status == 403 and error.reset_at is not None)
    return isinstance(error, UnreachableError) or is_limit or (error.status or 0) >= 500


def _without_host(repo: RepoRef, cache: Cache, known: Resolved | None, error: FetchError) -> Resolved:
    if known is not None:
        _logger.warning("%s: %s. What is in the cache is used", repo.label, error)
        return known
    if not isinstance(error, UnreachableError):
        raise error
    if folder := _folder_of_torch_hub(repo):
        _logger.warning("%s: %s. The folder of torch.hub's is used: %s", repo.label, error, folder)
        return Resolved(repo=repo, commit=None, ref_name=repo.ref, folder=folder)
    missing = f"commit {repo.commit}" if repo.commit else f"the ref {repo.ref!r}" if repo.ref else "the default branch"
    raise UnreachableError(
        f"{error}; and {missing} of {repo.url} is not in the cache {cache.root}", url=repo.url, commit=repo.commit
    ) from error


def _folder_of_torch_hub(repo: RepoRef) -> Path | None:
    """Return the folder where torch.hub itself would look for this ref; it knows no host but GitHub."""
    if repo.host != SOURCES["github"]:
        return None
    wanted = repo.ref or repo.commit
    for ref in [wanted] if wanted else ["main", "master"]:
        folder = hub_dir() / f"{repo.owner}_{repo.name}_{ref.replace('/', '_')}"
        if folder.is_dir():
            return folder.absolute()
    return None


def _choose(repo: RepoRef, tips: Advertisement, cache: Cache) -> tuple[str, str | None]:
    if not (tips.branches or tips.tags or tips.head):
        raise ResolveError(f"The repository {repo.url} has no commits yet", repo=repo.url, ref=repo.ref)
    wanted = repo.commit or repo.ref
    if wanted is None or wanted == "HEAD":
        if tips.head is None:
            known = ", ".join([*tips.branches, *tips.tags][:_MAX_CANDIDATES])
            raise ResolveError(f"{repo.url} has no default branch with commits. Name a ref: {known}", repo=repo.url)
        return tips.head, tips.default_branch
    if not _COMMIT.fullmatch(wanted.lower()) and (named := _by_name(wanted, tips)):
        return named
    if _HEX.fullmatch(wanted.lower()):
        return _by_commit(repo, wanted, tips, cache), None
    raise _unknown(repo, wanted, tips)


def _by_name(wanted: str, tips: Advertisement) -> tuple[str, str] | None:
    if wanted in tips.branches and wanted in tips.tags:
        warnings.warn(
            f"The ref {wanted} is ambiguous. Perhaps it is both a tag and a branch in the repo? "
            f"The branch is taken; refs/tags/{wanted} is the tag.",
            UserWarning,
            stacklevel=2,
        )
    for prefix, names in (
        ("", tips.branches),
        ("", tips.tags),
        ("refs/heads/", tips.branches),
        ("refs/tags/", tips.tags),
    ):
        name = wanted.removeprefix(prefix)
        if wanted.startswith(prefix) and name in names:
            return names[name], name
    return None


def _by_commit(repo: RepoRef, wanted: str, tips: Advertisement, cache: Cache) -> str:
    prefix = wanted.lower()
    shown = {*tips.branches.values(), *tips.tags.values(), *([tips.head] if tips.head else [])}
    # A tip is found without another question; only an older commit needs the history.
    found = sorted(commit for commit in shown if commit.startswith(prefix))
    if not found:
        with cache.scratch() as scratch:
            found = sorted(hosts.host_of(repo).find_commits(repo, tips, prefix, scratch))
    if not found:
        raise ResolveError(
            f"Cannot find {wanted} in {repo.url}. If it's a commit from a forked repo, please call "
            "hub.load() with forked repo directly.",
            repo=repo.url,
            ref=wanted,
        )
    if len(found) > 1:
        message = f"The short commit {wanted} is ambiguous in {repo.url}: {_shortened(found)}"
        raise ResolveError(message, repo=repo.url, ref=wanted)
    return found[0]


def _unknown(repo: RepoRef, wanted: str, tips: Advertisement) -> ResolveError:
    names = [*tips.branches, *tips.tags]
    near = difflib.get_close_matches(wanted, names, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return ResolveError(
        f"{repo.url} has no branch, tag or commit {wanted!r}.{hint} "
        f"It has {len(tips.branches)} branches and {len(tips.tags)} tags.",
        repo=repo.url,
        ref=wanted,
    )


def _shortened(commits: list[str]) -> str:
    more = len(commits) - _MAX_CANDIDATES
    return ", ".join(commits[:_MAX_CANDIDATES]) + (f" and {more} more" if more > 0 else "")
