"""From a commit to its files on this machine: `fetch`."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import replace
from pathlib import Path

from isohub import trace
from isohub.errors import FetchError
from isohub.hub import hosts, tree
from isohub.hub.cache import Cache
from isohub.hub.checkout import Checkout, Resolved

__all__ = ["fetch"]

_logger = logging.getLogger("isohub.hub")


def fetch(resolved: Resolved, cache: Cache) -> Checkout:
    """Return the files of a commit from the cache, bringing them first if they are not there.

    A commit that the cache has costs no git and no network. A working tree is used where it stands.

    Raises:
        FetchError: The files cannot be brought, lead out of their folder by a link, or cannot be kept.
    """

    def fetch_into(files: Path) -> None:
        _bring(resolved, files, cache)

    with trace.step("hub.fetch", repo=str(resolved.repo), commit=resolved.commit):
        try:
            checkout = cache.checkout(resolved, fetch_into)
        except FetchError:
            raise
        except OSError as error:
            raise FetchError(
                f"Cannot keep {resolved.repo.label} in the cache {cache.root}: {error}. "
                "The variable TORCH_HOME, or torch.hub.set_dir, puts the cache elsewhere",
                url=resolved.repo.url,
                commit=resolved.commit,
            ) from error
        if not checkout.root.is_dir():
            raise FetchError(
                f"{resolved.repo.label} has no folder {resolved.repo.subdirectory!r}",
                url=resolved.repo.url,
                commit=resolved.commit,
            )
        checkout.link_names(_hub_names(resolved))
        return checkout


def _hub_names(resolved: Resolved) -> tuple[str, ...]:
    # As asked for, and by the branch that was found: torch.hub would name its folder after either.
    found = replace(resolved.repo, ref=resolved.ref_name, commit=None)
    return resolved.repo.hub_folder_names + found.hub_folder_names


def _bring(resolved: Resolved, files: Path, cache: Cache) -> None:
    repo, commit = resolved.repo, resolved.commit
    assert commit is not None, "a working tree is not fetched"
    _logger.info("Fetching %s: commit %s of %s", repo.label, commit, repo.url)
    with cache.scratch() as scratch:
        try:
            submodules = hosts.host_of(repo).bring(repo, commit, files, scratch)
        except FetchError as error:
            message = f"Cannot fetch {commit} of {repo.url}: {error}"
            raise FetchError(message, url=repo.url, commit=commit) from error
    _refuse_escapes(resolved, files)
    if submodules:
        shown = ", ".join(map(repr, submodules))
        warnings.warn(
            f"{repo.label} has submodules, which are not fetched: their folders stay empty: {shown}",
            UserWarning,
            stacklevel=2,
        )


def _refuse_escapes(resolved: Resolved, files: Path) -> None:
    """Refuse links that lead out of `files`.

    Both ways of reading a link count. By its text alone `a/../../x` leaves the folder; and where `p/q` is a
    link to the top, `p/q/../x` does so although its text does not.
    """
    top = os.path.realpath(files)
    for path, entry in tree.files_of(files):
        if not entry.is_symlink():
            continue
        target = str(Path(entry.path).readlink())
        by_text = os.path.normpath(Path(path).parent / target)
        real = os.path.realpath(entry.path)
        if Path(target).is_absolute() or by_text.split("/")[0] == ".." or not Path(real).is_relative_to(top):
            raise FetchError(
                f"{resolved.repo.label} is refused: its link {path!r} leads out of it, to {target!r}",
                url=resolved.repo.url,
                commit=resolved.commit,
            )
