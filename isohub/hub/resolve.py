"""From what the user wrote to one commit: `resolve`."""

from __future__ import annotations

import difflib
import re
import warnings

from isohub import trace
from isohub.errors import ResolveError
from isohub.hub import hosts
from isohub.hub.checkout import Resolved
from isohub.hub.hosts import Advertisement
from isohub.refs import RepoRef

__all__ = ["Resolved", "resolve"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HEX = re.compile(r"[0-9a-f]{4,40}")  # git itself takes no shorter ones
_MAX_CANDIDATES = 10


def resolve(ref: RepoRef) -> Resolved:
    """Find the commit that `ref` stands for now.

    Branches go before tags, and both before short commits; 40 hexadecimal digits are always a commit, so
    that no branch can be named to stand in for a pinned one. `refs/heads/x` and `refs/tags/x` say which.

    Raises:
        ResolveError: The repository cannot be read, or has no such ref or commit.
        FetchError: There is no git program.
    """
    if ref.is_local_tree:
        return Resolved(repo=ref, commit=None, ref_name=None)
    with trace.step("hub.resolve", repo=str(ref)) as step:
        tips = hosts.host_of(ref).advertise(ref)
        commit, name = _choose(ref, tips)
        step.fields.update(commit=commit, ref_name=name)
        return Resolved(repo=ref, commit=commit, ref_name=name)


def _choose(repo: RepoRef, tips: Advertisement) -> tuple[str, str | None]:
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
        return _by_commit(repo, wanted, tips), None
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


def _by_commit(repo: RepoRef, wanted: str, tips: Advertisement) -> str:
    prefix = wanted.lower()
    shown = {*tips.branches.values(), *tips.tags.values(), *([tips.head] if tips.head else [])}
    # A tip is found without another question; only an older commit needs the history.
    found = sorted(commit for commit in shown if commit.startswith(prefix))
    if not found:
        found = sorted(hosts.host_of(repo).find_commits(repo, tips, prefix))
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
