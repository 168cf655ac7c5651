"""From a repo text to files on disk, each step in its place: parse, resolve, trust, fetch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from isohub import trace
from isohub.errors import missing_hubconf
from isohub.hub import trust
from isohub.hub.cache import Cache
from isohub.hub.checkout import Checkout, Resolved
from isohub.hub.fetch import fetch
from isohub.hub.leases import GoneError
from isohub.hub.lock import using
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef

__all__ = ["Request"]

Taken = TypeVar("Taken")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for, and how to get it.

    Attributes:
        ref: The repository, parsed.
        trust_repo: True, False or `"check"`, as in torch.hub.
        force_reload: Whether to ask the host again and to check every file.
        skip_validation: Whether to take a commit that the repository's branches and tags cannot reach.
        verbose: Whether to say where the files come from.
        lock: A lock file to hold it against; None for that of `ISOHUB_LOCK`, if there is one.
        explicit_trust: Whether what its code makes is to run in this process; see `trust.require_explicit`.
    """

    ref: RepoRef
    trust_repo: bool | Literal["check"] = "check"
    force_reload: bool = False
    skip_validation: bool = False
    verbose: bool = True
    lock: str | os.PathLike[str] | None = None
    explicit_trust: bool = False

    def checkout(self) -> Checkout:
        """Return the files, of which hubconf.py is one.

        Raises:
            ResolveError: There is no such ref, or the repository cannot be asked.
            UntrustedRepoError: Its code may not run here.
            FetchError: The files cannot be brought.
            LockError: They are not those of the lock.
            FileNotFoundError: There is no hubconf.py.
        """
        cache = Cache()
        with trace.step("hub.checkout", repo=str(self.ref)), using(self.lock):
            resolved = resolve(self.ref, cache, force_reload=self.force_reload, skip_validation=self.skip_validation)
            decision = trust.decide(self.ref, resolved.commit, self.trust_repo)
            if self.explicit_trust:
                trust.require_explicit(decision, self.ref, resolved.commit)
            checkout = fetch(resolved, cache, force_reload=self.force_reload, verbose=self.verbose)
            # Only now: a repository that could not be had is not written down as trusted.
            trust.remember(decision)
        return self.take(checkout, _with_hubconf)[1]

    def take(self, checkout: Checkout, take: Callable[[Checkout], Taken]) -> tuple[Checkout, Taken]:
        """Do what needs a checkout in place, bringing its commit once more if it was removed since.

        Args:
            checkout: What `checkout` returned.
            take: Takes a lease on it, say; called again if it raises `GoneError`.

        Returns:
            The checkout, and what `take` returned.

        Raises:
            FetchError: The files cannot be brought again.
            LockError: They are not those of the lock.
            Exception: Whatever `take` raises.
        """
        try:
            return checkout, take(checkout)
        except GoneError:
            # The same commit, which is trusted already: what its ref stands for by now is another matter.
            folder = checkout.files if checkout.commit is None else None
            resolved = Resolved(repo=checkout.repo, commit=checkout.commit, ref_name=checkout.ref_name, folder=folder)
            with using(self.lock):
                checkout = fetch(resolved, Cache(), verbose=self.verbose)
            return checkout, take(checkout)


def _with_hubconf(checkout: Checkout) -> Checkout:
    if not (checkout.root / "hubconf.py").is_file():
        raise missing_hubconf(checkout.root) if checkout.files.is_dir() else GoneError.of(checkout)
    return checkout
