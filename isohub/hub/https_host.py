"""Servers that speak https: GitHub, GitLab and their like, and any other that git can be fetched from.

Refs come from git's own list over HTTP (`info/refs`), which needs no git program, knows no limit of requests
and is the same everywhere. Files come as an archive, which every kind of server has under URLs of its own, or
by git: where there is no archive, and where it would be incomplete (submodules).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final
from urllib.parse import quote

from isohub.errors import ArchiveError, FetchError, ResolveError, UnreachableError
from isohub.hub import archive, git, git_hosts, http, tree
from isohub.hub.advertisement import Advertisement, NotGitError, read_packets
from isohub.hub.git_checkout import Brought, missing_submodules
from isohub.refs import RepoRef

__all__ = ["STYLES", "HttpsHost", "Style", "archive_urls"]

_logger = logging.getLogger("isohub.hub")

# pytorch/pytorch, with all its pull requests, has 40 MB.
_MAX_REFS_BYTES = 256 << 20
_MAX_ARCHIVE_BYTES = 4 << 30
_GIT_TYPE = "application/x-git-upload-pack-advertisement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """Where servers of one make have the archive of a commit.

    Attributes:
        path: What comes after the URL of the repository.
        marks: A server with one of these in its name is taken for one of them.
    """

    path: str
    marks: tuple[str, ...]


# The first is GitHub's, and Gitea's and Forgejo's; a server that cannot be told by its name is tried with each.
STYLES = (
    Style(path="archive/{commit}.zip", marks=("github", "gitea", "forgejo", "codeberg")),
    Style(path="-/archive/{commit}/{name}-{commit}.zip", marks=("gitlab",)),
    Style(path="get/{commit}.zip", marks=("bitbucket",)),
    Style(path="repository/archive/{commit}.zip", marks=("gitee",)),
)


@final
class HttpsHost:
    """A server that speaks https, or plain http on this machine."""

    def advertise(self, repo: RepoRef) -> Advertisement:
        """See `Host`."""
        # GitLab leads to the name with .git, and some servers know no other. A URL of the user's stays as it is.
        ending = ".git" if repo.kind == "hub" else ""
        url = f"{repo.url}{ending}/info/refs?service=git-upload-pack"
        try:
            body, content_type = http.read(url, max_bytes=_MAX_REFS_BYTES, purpose="git")
            if content_type != _GIT_TYPE:
                raise NotGitError(f"it is of type {content_type!r}")
            return read_packets(body)
        except NotGitError as error:
            return self._advertise_by_git(repo, FetchError(f"{url} is no list of refs of git's: {error}", url=url))
        except UnreachableError:
            raise
        except FetchError as error:
            # What a credential helper knows may open what is closed to us.
            if error.status not in {401, 403, 404}:
                raise
            return self._advertise_by_git(repo, error)

    def _advertise_by_git(self, repo: RepoRef, error: FetchError) -> Advertisement:
        if not git.is_installed():
            raise error
        try:
            tips = git_hosts.advertise(repo)
        except FetchError as second:
            _logger.debug("git cannot read %s either: %s", repo.url, second)
            raise error from second
        if tips == Advertisement():  # what git makes of a web page: no refs
            raise error
        return tips

    def find_commits(self, repo: RepoRef, tips: Advertisement, prefix: str, scratch: Path) -> tuple[str, ...]:
        """See `Host`."""
        if not git.is_installed():
            raise ResolveError(
                f"{prefix} is no tip of a branch or tag of {repo.url}. Whether they reach it, or it is from a fork, "
                "cannot be told without the git program, which was not found on PATH: install git, or take a full "
                "commit on trust with skip_validation=True",
                repo=repo.url,
                ref=prefix,
            )
        return git_hosts.find_commits(repo, tips, prefix, scratch)

    def bring(
        self, repo: RepoRef, commit: str, files: Path, scratch: Path, say: Callable[[str, Path], None]
    ) -> Brought:
        """See `Host`."""
        by_git = git.is_installed()
        if by_git and repo.kind == "git" and _style_of(repo.host) is None:
            # A git URL of a server that may know nothing else: cgit, gitolite, a plain web server.
            return git_hosts.bring(repo, commit, files, scratch, say)
        try:
            url = self._by_archive(repo, commit, files, scratch, say)
        except ArchiveError:
            raise
        except FetchError as error:
            # Archives often come from another server, with troubles and limits of its own.
            if not by_git:
                raise
            _logger.info("No archive of %s, which is fetched by git: %s", repo.url, error)
            try:
                return git_hosts.bring(repo, commit, files, scratch, say)
            except FetchError as second:
                raise error from second
        first = Brought(url=url, way="archive", submodules=missing_submodules(files))
        if not first.submodules or not by_git:
            return first
        complete = scratch / "complete"
        complete.mkdir()
        try:
            brought = git_hosts.bring(repo, commit, complete, scratch, say)
        except FetchError as error:
            _logger.warning("The submodules of %s cannot be fetched: %s", repo.url, error)
            return first
        tree.empty(files)
        for path in complete.iterdir():
            path.rename(files / path.name)
        return brought

    def _by_archive(
        self, repo: RepoRef, commit: str, files: Path, scratch: Path, say: Callable[[str, Path], None]
    ) -> str:
        """Bring the archive from the first of its possible URLs that has one, and return that."""
        file = scratch / "archive"
        refused: FetchError | None = None
        for url in archive_urls(repo, commit):
            try:
                http.download(url, file, max_bytes=_MAX_ARCHIVE_BYTES, started=partial(say, url, file))
            except FetchError as error:
                if error.status not in {404, 406}:
                    raise
                refused = refused or error
                continue
            if archive.kind_of(file) is None:  # such as a page to log in on
                refused = refused or FetchError(f"{url} answers with something that is no archive", url=url)
                continue
            _unpack(file, files, url, commit)
            return url
        assert refused is not None, "there is at least one URL"
        raise refused


def archive_urls(repo: RepoRef, commit: str) -> list[str]:
    """Return where the archive of a commit may be, the likeliest first."""
    style = _style_of(repo.host)
    name = quote(repo.name, safe="")
    top = repo.url.removesuffix(".git")
    styles = STYLES if style is None else (style,)
    return [f"{top}/{each.path.format(commit=commit, name=name)}" for each in styles]


def _style_of(host: str) -> Style | None:
    return next((style for style in STYLES if any(mark in host for mark in style.marks)), None)


def _unpack(file: Path, files: Path, url: str, commit: str) -> None:
    try:
        stated = archive.unpack(file, files, commit=commit)
    except ArchiveError as error:
        raise ArchiveError(f"{error} ({url})", url=url, commit=commit) from error
    if stated is None:
        _logger.info("The archive %s does not say which commit it holds", url)
