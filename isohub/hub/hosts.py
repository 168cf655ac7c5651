"""The one table of places that repositories come from, and what each must be able to do.

A new place (GitHub's archives, GitLab, git over https) is a class with the three methods of `Host` and a
line in `_HOSTS`; resolving, fetching and the cache know no place by name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, final
from urllib.parse import unquote_to_bytes

from isohub.errors import ResolveError
from isohub.hub import git
from isohub.refs import RepoRef

__all__ = ["Advertisement", "Host", "host_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """What a repository tells about itself in one answer.

    Attributes:
        head: The commit that HEAD stands for; None if there is none.
        default_branch: The branch that HEAD points at; None if it points at a commit.
        branches: Commit of each branch, by name.
        tags: Commit of each tag, by name; an annotated tag counts as the commit that it marks.
    """

    head: str | None = None
    default_branch: str | None = None
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Host(Protocol):
    """A kind of place that repositories come from."""

    def advertise(self, repo: RepoRef) -> Advertisement:
        """Ask for all branches and tags, in one request."""
        ...

    def find_commits(self, repo: RepoRef, tips: Advertisement, prefix: str) -> tuple[str, ...]:
        """Return the commits beginning with `prefix` that the branches, tags or HEAD can reach."""
        ...

    def bring(self, repo: RepoRef, commit: str, files: Path, scratch: Path) -> tuple[str, ...]:
        """Put the files of `commit` into the empty folder `files`, using `scratch` on the way.

        Returns:
            Paths of submodules, whose files do not come along.
        """
        ...


def host_of(repo: RepoRef) -> Host:
    """Return the place that `repo` comes from.

    Raises:
        ResolveError: This version cannot reach it.
    """
    scheme = repo.url.partition("://")[0]
    host = _HOSTS.get((repo.kind, scheme))
    if host is None:
        is_here = Path(repo.owner, repo.name).is_dir()
        hint = f' The folder {repo.owner}/{repo.name} is here: source="local" takes it.' if is_here else ""
        raise ResolveError(
            f"{repo} lies on {repo.host}, and this version loads from this machine only. Clone it "
            f"(git clone {repo.url}) and load git+file:///path/to/clone@ref, or the folder itself as a "
            f"pathlib.Path.{hint}",
            repo=str(repo),
            ref=repo.ref or repo.commit,
        )
    return host


# upload-pack, the side of git that reads the repository, is started by git without the `-c` settings of ours:
# - safe.directory: a repository may belong to another user, such as one of /srv that all may read. Git
#   refuses those because their configuration could name programs to run; upload-pack runs none, but ...
# - protocol.allow: ... before git 2.45 that of a partial clone fetches what is missing, with such programs.
# - uploadpack.allowAnySHA1InWant: a commit is asked for by its hash, and need not be a tip.
_UPLOAD_PACK = (
    "--upload-pack=git -c 'safe.directory=*' -c protocol.allow=never -c uploadpack.allowAnySHA1InWant=true upload-pack"
)


@final
class GitFileHost:
    """A git repository on this machine, bare or with a working tree: `git+file:///path`."""

    def advertise(self, repo: RepoRef) -> Advertisement:
        """See `Host`."""
        _git_folder(repo)
        return _read_advertisement(_ask(repo, "ls-remote", "--symref", _UPLOAD_PACK, "--", repo.url))

    def find_commits(self, repo: RepoRef, tips: Advertisement, prefix: str) -> tuple[str, ...]:
        """See `Host`."""
        # Asked of the repository itself, since a copy of its history would have to be fetched whole: a fetch
        # without trees (--filter) from a shallow clone makes git 2.39 start itself without end.
        # Branches and tags only: a mirror of GitHub has the commits of forks under refs/pull.
        wanted = ["--branches", "--tags", *(["HEAD"] if tips.head else [])]
        place = ["-c", "protocol.allow=never", f"--git-dir={_git_folder(repo)}"]
        commits = _ask(repo, *place, "rev-list", *wanted, "--").split()
        return tuple(commit for commit in commits if commit.startswith(prefix))

    def bring(self, repo: RepoRef, commit: str, files: Path, scratch: Path) -> tuple[str, ...]:
        """See `Host`."""
        store = scratch / "git"
        git.run(["init", "--quiet", "--bare", "--template=", "--", str(store)])
        in_store = [f"--git-dir={store}", f"--work-tree={files}"]
        shallow = ["--depth=1", "--no-tags", "--no-recurse-submodules"]
        git.run([*in_store, "fetch", "--quiet", *shallow, _UPLOAD_PACK, "--", repo.url, commit], cwd=files)
        git.run([*in_store, "checkout", "--quiet", "--force", "--detach", commit, "--"], cwd=files)
        entries = git.run([*in_store, "ls-tree", "-r", "-z", "--full-tree", commit], cwd=files).split("\0")
        return tuple(entry.partition("\t")[2] for entry in entries if entry.startswith("160000 "))


_HOSTS: dict[tuple[str, str], Host] = {("git", "file"): GitFileHost()}


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


def _read_advertisement(text: str) -> Advertisement:
    head: str | None = None
    default_branch: str | None = None
    branches: dict[str, str] = {}
    tags: dict[str, str] = {}
    # Not splitlines(): a ref's name may hold a line break of Unicode's.
    for line in filter(None, text.split("\n")):
        value, _, name = line.partition("\t")
        if name == "HEAD" and value.startswith("ref: "):
            default_branch = value.removeprefix("ref: refs/heads/")
        elif name == "HEAD":
            head = value
        elif name.startswith("refs/heads/"):
            branches[name.removeprefix("refs/heads/")] = value
        elif name.startswith("refs/tags/"):
            # An annotated tag comes twice, the second time peeled: `v1`, then `v1^{}`.
            tags[name.removeprefix("refs/tags/").removesuffix("^{}")] = value
    return Advertisement(head=head, default_branch=default_branch, branches=branches, tags=tags)
