"""The one table of places that repositories come from, and what each must be able to do.

A new place is a class with the three methods of `Host` and a line in `_HOSTS`; a server whose archives lie
under other URLs is a line in `https_host.STYLES`. Resolving, fetching and the cache know no place by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from isohub.errors import ResolveError
from isohub.hub.advertisement import Advertisement
from isohub.hub.git_checkout import Brought
from isohub.hub.git_hosts import GitFileHost, GitSshHost
from isohub.hub.https_host import HttpsHost
from isohub.refs import RepoRef

__all__ = ["Advertisement", "Brought", "Host", "host_of"]


class Host(Protocol):
    """A kind of place that repositories come from."""

    def advertise(self, repo: RepoRef) -> Advertisement:
        """Ask for all branches and tags, in one request."""
        ...

    def find_commits(self, repo: RepoRef, tips: Advertisement, prefix: str, scratch: Path) -> tuple[str, ...]:
        """Return the commits beginning with `prefix` that the branches, tags or HEAD can reach."""
        ...

    def bring(
        self, repo: RepoRef, commit: str, files: Path, scratch: Path, say: Callable[[str, Path], None]
    ) -> Brought:
        """Put the files of `commit` into the empty folder `files`, using `scratch` on the way.

        Args:
            repo: Which repository.
            commit: 40 hexadecimal digits.
            files: Where they go.
            scratch: A folder that is removed afterwards.
            say: Is told the URL and where the answer goes, before each download.

        Returns:
            What was brought, and what was not.
        """
        ...


_HOSTS: dict[str, Host] = {
    "file": GitFileHost(),
    "ssh": GitSshHost(),
    "https": HttpsHost(),
    "http": HttpsHost(),  # of this machine alone: isohub.servers sees to that
}


def host_of(repo: RepoRef) -> Host:
    """Return the place that `repo` comes from.

    Raises:
        ResolveError: Nothing here can reach it.
    """
    host = _HOSTS.get(repo.url.partition("://")[0])
    if host is None:
        raise ResolveError(f"Nothing here can reach {repo.url}", repo=str(repo), ref=repo.ref or repo.commit)
    return host
