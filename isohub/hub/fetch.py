"""From a commit to its files on this machine: `fetch`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from isohub import trace
from isohub.errors import FetchError, UnreachableError
from isohub.hub import git, git_checkout, git_hosts, hosts, tree, uses
from isohub.hub.cache import Cache
from isohub.hub.checkout import Checkout, Resolved
from isohub.hub.http import is_offline
from isohub.hub.leases import GoneError
from isohub.hub.lock import LockedRepo

__all__ = ["fetch"]

_logger = logging.getLogger("isohub.hub")

_MAX_SHOWN = 20


def fetch(resolved: Resolved, cache: Cache, *, force_reload: bool = False, verbose: bool = True) -> Checkout:
    """Return the files of a commit from the cache, bringing them first if they are not there.

    A commit that the cache has costs no git and no network. A working tree is used where it stands.

    Args:
        resolved: Which commit.
        cache: Where it is kept.
        force_reload: Whether to look at each byte of a commit that is there, and to bring it again if one is
            not as it was fetched.
        verbose: Whether to say, as torch.hub does, that a repository of another machine comes from the cache.

    Raises:
        FetchError: The files cannot be brought, lead out of their folder by a link, or cannot be kept.
        UnreachableError: Their host does not answer, or may not be asked.
        ArchiveError: Their archive would do harm.
        LockError: The lock has another commit, or other files.
    """
    was_here = True

    def fetch_into(files: Path) -> tuple[str, str]:
        nonlocal was_here
        was_here = False
        return _bring(resolved, files, cache, locked)

    with trace.step("hub.fetch", repo=str(resolved.repo), commit=resolved.commit) as step:
        locked = uses.expect(resolved)
        try:
            checkout = cache.checkout(resolved, fetch_into, verify=force_reload)
        except FetchError:
            raise
        except OSError as error:
            raise FetchError(
                f"Cannot keep {resolved.repo.label} in the cache {cache.root}: {error}. "
                "The variable TORCH_HOME, or torch.hub.set_dir, puts the cache elsewhere",
                url=resolved.repo.url,
                commit=resolved.commit,
            ) from error
        if not checkout.files.is_dir():
            raise GoneError.of(checkout)
        if not checkout.root.is_dir():
            raise FetchError(
                f"{resolved.repo.label} has no folder {resolved.repo.subdirectory!r}",
                url=resolved.repo.url,
                commit=resolved.commit,
            )
        step.fields.update(was_cached=was_here)
        if was_here and resolved.repo.is_remote:
            _say(f"Using cache found in {checkout.files}", sys.stderr if verbose else None)
        checkout.link_names(_hub_names(resolved))
        uses.checkout(checkout)
        return checkout


def _say(text: str, stream: TextIO | None) -> None:
    """Say what torch.hub says, on the stream that it uses; and in the log."""
    _logger.info("%s", text)
    if stream is not None:
        stream.write(f"{text}\n")
        stream.flush()


def _say_download(url: str, place: Path) -> None:
    # torch.hub says this on stdout, whatever `verbose` is.
    _say(f'Downloading: "{url}" to {place}', sys.stdout)


def _hub_names(resolved: Resolved) -> tuple[str, ...]:
    # As asked for, and by the branch that was found: torch.hub would name its folder after either.
    found = replace(resolved.repo, ref=resolved.ref_name, commit=None)
    return resolved.repo.hub_folder_names + found.hub_folder_names


def _bring(resolved: Resolved, files: Path, cache: Cache, locked: LockedRepo | None) -> tuple[str, str]:
    repo, commit = resolved.repo, resolved.commit
    assert commit is not None, "a working tree is not fetched"
    missing = f"Commit {commit} of {repo.url} is not in the cache {cache.root}"
    if repo.is_remote and is_offline():
        raise UnreachableError(f"{missing}, and ISOHUB_OFFLINE forbids the network", url=repo.url, commit=commit)
    _logger.info("Fetching %s: commit %s of %s", repo.label, commit, repo.url)
    with cache.scratch() as scratch:
        try:
            # Nothing else could be held against a hash of what git brought.
            by_git = locked is not None and locked.fetched_by == "git" and git.is_installed()
            bring = git_hosts.bring if by_git else hosts.host_of(repo).bring
            brought = bring(repo, commit, files, scratch, _say_download)
            _refuse_escapes(resolved, files)
            found = git_checkout.pointers(files)
            pointers = git_checkout.resolve_pointers(repo.url, files, found, scratch)
        except UnreachableError as error:
            raise UnreachableError(f"{missing}, and {error}", url=error.url, commit=commit) from error
        except FetchError as error:
            error.url, error.commit = error.url or repo.url, commit
            raise
    _warn_of(f"{repo.label} has submodules, which are not fetched: their folders stay empty", brought.submodules)
    _warn_of(
        f"{repo.label} has files that Git LFS keeps elsewhere, and pointers in their place; git lfs is not "
        "installed, or cannot bring them",
        pointers,
    )
    return brought.url, brought.way


def _warn_of(text: str, paths: tuple[str, ...]) -> None:
    if paths:
        more = f" and {len(paths) - _MAX_SHOWN} more" if len(paths) > _MAX_SHOWN else ""
        warnings.warn(f"{text}: {', '.join(map(repr, paths[:_MAX_SHOWN]))}{more}", UserWarning, stacklevel=3)


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
