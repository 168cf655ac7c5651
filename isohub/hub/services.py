"""What this process fetches on behalf of a worker: weights, and checkouts of other repositories."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

from isohub.errors import FetchError, HashMismatchError, IsohubError, ResolveError
from isohub.hub.download import without_user
from isohub.hub.leases import Lease
from isohub.hub.pipeline import Request
from isohub.hub.weight_store import WeightStore, hash_of
from isohub.hub.weights import fetch_weights, named_hash
from isohub.refs import RepoRef
from isohub.wire.messages import FilesAt, NeedFiles, Refused

__all__ = ["Services"]

_MAX_TEXT = 8192  # more than any server takes as a URL
_MAX_REFUSED = 1000  # that are remembered in one exchange; its request can end in a late one only


class Services:
    """Fetches for one worker, and keeps what it fetched in the cache as long as that lives.

    Args:
        repo: The repository whose code asks, for the records.
    """

    def __init__(self, repo: str) -> None:
        self._repo = repo
        self._leases: dict[Path, Lease] = {}
        self._unchecked: set[str] = set()
        self._refused: dict[int, Exception] = {}
        self._count = 0

    def close(self) -> None:
        """Let go of the checkouts that were fetched: the worker whose code uses them has ended."""
        self._refused.clear()
        while self._leases:
            self._leases.popitem()[1].close()

    def refused(self, number: int) -> Exception | None:
        """Return the error of a refusal since the last call, and forget all of them.

        Args:
            number: What the worker says; None is returned for one that never was, or was in an earlier request.
        """
        error = self._refused.get(number)
        self._refused.clear()
        return error

    def files(self, need: NeedFiles) -> FilesAt | Refused:
        """Fetch what a worker asks for, and say where it lies or why it cannot be had."""
        try:
            _check(need)
            return FilesAt(str(self._weights(need) if need.what == "weights" else self._checkout(need)))
        except HashMismatchError as error:
            return self._refuse("RuntimeError", error)
        except (FetchError, ResolveError, OSError) as error:
            # torch.hub's own error where the network fails; code catches it.
            return self._refuse("URLError", error)
        except (IsohubError, ValueError, Warning) as error:  # a warning that the user has made an error
            return self._refuse("ValueError", error)

    def _refuse(self, kind: Literal["URLError", "RuntimeError", "ValueError"], error: Exception) -> Refused:
        # The worker may never see the fields of an error of ours, nor need its word be taken for them later.
        self._count += 1
        self._refused[self._count] = error
        if len(self._refused) > _MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        return Refused(kind, str(error), self._count)

    def _weights(self, need: NeedFiles) -> Path:
        # A user's own call is refused where no name tells a hash. Published code calls so, and means no harm:
        # torch.hub checks nothing then, and this neither, or that code would not run here.
        checks_nothing = need.check_hash and not need.hash_prefix and named_hash(need.name, need.file_name) is None
        path = fetch_weights(
            need.name,
            need.hash_prefix or None,
            need.check_hash and not checks_nothing,
            need.file_name or None,
            repo=self._repo,
            is_told=True,
        )
        if checks_nothing and need.name not in self._unchecked:
            self._unchecked.add(need.name)
            found = WeightStore().find(need.name)
            sha256 = hash_of(path) if found is None else found.sha256
            warnings.warn(
                f"{self._repo} asks for check_hash=True, and nothing was checked: no hash is in the name of the file "
                f"that it wants, {without_user(need.name)}. It has the SHA-256 {sha256}, to which "
                "`isohub lock REPO --entry NAME` pins it",
                UserWarning,
                stacklevel=2,
            )
        return path

    def _checkout(self, need: NeedFiles) -> Path:
        request = Request(ref=RepoRef.parse(need.name), trust_repo=need.trust)
        checkout, lease = request.take(request.checkout(), Lease.acquire)
        if checkout.root in self._leases:
            lease.close()  # one descriptor a checkout, however often the code asks
        else:
            self._leases[checkout.root] = lease
        return checkout.root


def _check(need: NeedFiles) -> None:
    """Refuse texts of a worker's that could drive the user's terminal: they are in lines and errors shown there."""
    for text in (need.name, need.hash_prefix, need.file_name):
        if not text.isprintable() or len(text) > _MAX_TEXT:
            raise ValueError(f"{text!r:.200} names nothing that could be fetched")
