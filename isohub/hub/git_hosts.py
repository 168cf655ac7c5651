"""Repositories that the `git` program speaks to: those of this machine, and those behind ssh."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import final
from urllib.parse import unquote_to_bytes

from isohub.errors import FetchError, ResolveError
from isohub.hub import git
from isohub.hub.advertisement import Advertisement, NotGitError, read_ls_remote
from isohub.hub.git_checkout import UPLOAD_PACK, Brought, allowed, checkout
from isohub.refs import RepoRef

__all__ = ["GitFileHost", "GitSshHost", "advertise", "bring", "find_commits"]

# Names and commits alone; whoever waits for a dead network should not wait for ten minutes.
_LIST_TIMEOUT_S = 60.0


@final
class GitFileHost:
    """A git repository on this machine, bare or with a working tree: `git+file:///path`."""

    def advertise(self, repo: RepoRef) -> Advertisement:
        """See `Host`."""
        _git_folder(repo)
        try:
            return read_ls_remote(_ask(repo, "ls-remote", "--symref", UPLOAD_PACK, "--", repo.url))
        except NotGitError as error:
            raise ResolveError(f"Cannot read {repo.url}: {error}", repo=repo.url, ref=repo.ref) from error

    def find_commits(self, repo: RepoRef, tips: Advertisement, prefix: str, scratch: Path) -> tuple[str, ...]:  # noqa: ARG002
        """See `Host`."""
        # Asked of the repository itself, since a copy of its history would have to be fetched whole: a fetch
        # without trees (--filter) from a shallow clone makes git 2.39 start itself without end.
        # Branches and tags only: a mirror of GitHub has the commits of forks under refs/pull.
        wanted = ["--branches", "--tags", *(["HEAD"] if tips.head else [])]
        place = ["-c", "protocol.allow=never", f"--git-dir={_git_folder(repo)}"]
        commits = _ask(repo, *place, "rev-list", *wanted, "--").split()
        return tuple(commit for commit in commits if commit.startswith(prefix))

    def bring(
        self, repo: RepoRef, commit: str, files: Path, scratch: Path, say: Callable[[str, Path], None]
    ) -> Brought:
        """See `Host`."""
        return bring(repo, commit, files, scratch, say)


@final
class GitSshHost:
    """A git repository behind ssh, with the user's own keys and settings: `git+ssh://git@host/path`."""

    def advertise(self, repo: RepoRef) -> Advertisement:
        """See `Host`."""
        return advertise(repo)

    def find_commits(self, repo: RepoRef, tips: Advertisement, prefix: str, scratch: Path) -> tuple[str, ...]:
        """See `Host`."""
        return find_commits(repo, tips, prefix, scratch)

    def bring(
        self, repo: RepoRef, commit: str, files: Path, scratch: Path, say: Callable[[str, Path], None]
    ) -> Brought:
        """See `Host`."""
        return bring(repo, commit, files, scratch, say)


def advertise(repo: RepoRef) -> Advertisement:
    """Ask another machine for all branches and tags by `git ls-remote`.

    Raises:
        FetchError: It cannot be asked.
    """
    args = [*allowed(repo.url), "ls-remote", "--symref", "--", repo.url]
    try:
        return read_ls_remote(git.run(args, timeout_s=_LIST_TIMEOUT_S, remote=repo.url))
    except git.GitError as error:
        raise git.unreadable(repo.url, error) from error
    except NotGitError as error:
        raise FetchError(f"{repo.url} cannot be read: {error}", url=repo.url) from error


def find_commits(repo: RepoRef, tips: Advertisement, prefix: str, scratch: Path) -> tuple[str, ...]:
    """Fetch the history of branches and tags, without its files, and look through it.

    Raises:
        FetchError: It cannot be fetched.
    """
    store = [f"--git-dir={scratch / 'history'}"]
    git.run(["init", "--quiet", "--bare", "--template=", "--", str(scratch / "history")])
    # Commits alone. A server that knows no filter sends all, which is slow and no less right.
    options = ["--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--filter=tree:0"]
    refs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
    refs += ["+HEAD:refs/isohub/HEAD"] if tips.head else []
    try:
        git.run([*allowed(repo.url), *store, "fetch", *options, "--", repo.url, *refs], remote=repo.url)
        commits = git.run(["-c", "protocol.allow=never", *store, "rev-list", "--all", "--"]).split()
    except git.GitError as error:
        raise git.unreadable(repo.url, error) from error
    return tuple(commit for commit in commits if commit.startswith(prefix))


def bring(repo: RepoRef, commit: str, files: Path, scratch: Path, say: Callable[[str, Path], None]) -> Brought:
    """Put the files of a commit into a folder by `git fetch`.

    Raises:
        FetchError: They cannot be fetched.
    """
    if repo.is_remote:
        say(repo.url, files)
    try:
        return Brought(url=repo.url, way="git", submodules=checkout(repo.url, commit, files, scratch))
    except git.GitError as error:
        raise git.unreadable(repo.url, error) from error


def _ask(repo: RepoRef, *args: str) -> str:
    try:
        return git.run(args)
    except git.GitError as error:
        raise ResolveError(f"Cannot read {repo.url}: {error}", repo=repo.url, ref=repo.ref) from error


def _git_folder(repo: RepoRef) -> Path:
    """Return the folder with the refs and objects; the places are tried in the order of git's own."""
    path = os.fsdecode(unquote_to_bytes(repo.url.removeprefix("file://")))
    for place in (Path(path, ".git"), Path(path), Path(f"{path}.git", ".git"), Path(f"{path}.git")):
        if place.is_file() or (place / "HEAD").is_file():  # a linked working tree has a file .git
            return place
    if not Path(path).exists():
        raise ResolveError(f"There is no folder {path!r}", repo=repo.url, ref=repo.ref)
    raise ResolveError(
        f"{path!r} is not a git repository. To load it as a plain folder give it as a pathlib.Path, or with "
        'source="local"',
        repo=repo.url,
        ref=repo.ref,
    )
