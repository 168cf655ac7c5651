"""The cache: one folder for each commit, which is whole or not there.

::

    <hub_dir>/isohub/
      checkouts/<host>/<owner>/<name>/<commit>/     host is file-<hash of the URL> for this machine's
        files/        the files, read-only
        isohub.json   what it is; written last
        hub/          the private hub folder of this commit's workers
        cwd/          where they run
        pycache/      their bytecode
      refs/<host>/<owner>/<name>/<ref>.json         what a ref stood for: see ref_memory.py
      trees/<hash of the path>-<name>/{hub,cwd}/    the same for working trees, whose files stay in place
      locks/          a lock for each checkout that was ever made; they stay
      tmp/            checkouts in the making: see scratch.py

Note [whole or not there]: a checkout is put together in tmp/ and moved into place by one rename, so that a
process which is killed at any instant leaves a folder in tmp/ and nothing else. What is in place is still
held against its isohub.json before each use, because people tidy up, and try things out: number of files, bytes,
and times of change. Where the times alone differ each byte is read, since a copy of the cache may have new ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from isohub.errors import FetchError
from isohub.hub import tree
from isohub.hub.checkout import Checkout, Resolved
from isohub.hub.ref_memory import RefMemory
from isohub.hub.scratch import scratch

__all__ = ["Cache", "hub_dir"]

_logger = logging.getLogger("isohub.hub")

_METADATA = "isohub.json"
# Filelock's own 0.05 s would add up to that to a load that waits for another process's fetch.
_POLL_INTERVAL_S = 0.01


def hub_dir() -> Path:
    """Return what `torch.hub.get_dir()` returns, without importing torch.

    A folder set with `torch.hub.set_dir` > `$TORCH_HOME/hub` > `$XDG_CACHE_HOME/torch/hub` >
    `~/.cache/torch/hub`.
    """
    chosen = getattr(sys.modules.get("torch.hub"), "_hub_dir", None)
    if chosen is not None:
        return Path(chosen)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    home = os.environ.get("TORCH_HOME", str(cache / "torch"))
    # Path.expanduser raises where there is no home directory; torch, and this, take "~" as it is then.
    return Path(os.path.expanduser(home)) / "hub"  # noqa: PTH111


class Cache:
    """The checkouts on this machine. It holds no state but its folder: many may use one folder at once.

    Args:
        root: Its folder; None for `<hub_dir>/isohub`. It is made when something is put into it.

    Attributes:
        root: Its folder.
        refs: What refs stood for when their hosts were asked.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(hub_dir() / "isohub" if root is None else root).expanduser().absolute()
        self.refs = RefMemory(self.root)

    def __repr__(self) -> str:
        return f"<Cache {self.root}>"

    def has(self, resolved: Resolved) -> bool:
        """Tell whether a commit was put here. `find` says whether it is whole as well."""
        return resolved.commit is not None and (self._folder_of(resolved) / _METADATA).is_file()

    def find(self, resolved: Resolved) -> Checkout | None:
        """Return the checkout of a commit if it is here and whole, else None."""
        folder = self._folder_of(resolved)
        try:
            metadata = json.loads((folder / _METADATA).read_bytes())
            expected = (resolved.repo.identity, resolved.commit, metadata["file_count"], metadata["size_bytes"])
            *measured, times_hash = tree.look(folder / "files")
            if (metadata["identity"], metadata["commit"], *measured) != expected:
                return None
            found, fetched_by = str(metadata["tree_hash"]), metadata.get("fetched_by")
            if metadata.get("times_hash") != times_hash:
                if tree.tree_hash(folder / "files") != found:
                    return None
                self._note_times(folder, metadata, times_hash)
        except (OSError, ValueError, KeyError, TypeError):  # not there, cut short, or edited by somebody
            return None
        pycache = folder / "pycache"
        return self._open(
            folder, resolved, files=folder / "files", tree_hash=found, fetched_by=fetched_by, pycache=pycache
        )

    def checkout(
        self, resolved: Resolved, fetch_into: Callable[[Path], tuple[str, str] | None], *, verify: bool = False
    ) -> Checkout:
        """Return the files of a commit, bringing them if they are not here; or a working tree as it is.

        Threads and processes that ask for one commit at once wait for each other, and one of them fetches.

        Args:
            resolved: Which commit.
            fetch_into: Puts the files into the empty folder that it is given, and may return the URL that they
                are from, and the way that they came. If it raises, nothing stays.
            verify: Whether to look at each byte of what is here, and bring it again if one is not as it was.

        Raises:
            FetchError: A working tree is gone.
            OSError: The cache cannot be written.
        """
        if resolved.repo.is_local_tree or resolved.folder is not None:
            return self._working_tree(resolved)
        found = self.find(resolved)
        if found and verify and tree.tree_hash(found.files) != found.tree_hash:
            self._distrust(found)
            found = None
        if found:
            return found
        folder = self._folder_of(resolved)
        with self._lock(folder):
            found = self.find(resolved)  # another process may have brought it while this one waited
            if found is None:
                self._discard(folder)
                self._store(folder, resolved, fetch_into)
                found = self.find(resolved)
        if found is None:
            raise FetchError(
                f"The checkout in {folder} changed right after it was made: what else writes there?",
                url=resolved.repo.url,
                commit=resolved.commit,
            )
        return found

    def scratch(self) -> AbstractContextManager[Path]:
        """Make a temporary folder on the cache's disk, which is removed even if this process is killed."""
        return scratch(self.root / "tmp")

    def _note_times(self, folder: Path, metadata: dict[str, Any], times_hash: str) -> None:
        """Write down the times of files that were found to be sound, so that they need not be read next time."""
        try:
            with self.scratch() as temporary:
                noted = temporary / _METADATA
                noted.write_text(_text_of({**metadata, "times_hash": times_hash}), encoding="utf-8")
                noted.replace(folder / _METADATA)
        except OSError as error:  # a cache that may only be read: they are read each time
            _logger.debug("cannot note the times of %s: %s", folder, error)

    def _folder_of(self, resolved: Resolved) -> Path:
        repo, commit = resolved.repo, resolved.commit
        assert commit is not None, "a working tree has no checkout"
        # Quoted, so that an owner "group/sub" is one folder and ":" of a port no separator of paths.
        host = repo.host or f"file-{_short_hash(repo.url)}"
        parts = (quote(os.fsencode(part), safe="") for part in (host, repo.owner, repo.name))
        return self.root.joinpath("checkouts", *parts, commit)

    def _lock(self, folder: Path) -> FileLock:
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(
            locks / f"{folder.name}-{_short_hash(str(folder.relative_to(self.root)))}.lock",
            poll_interval=_POLL_INTERVAL_S,
        )

    def _distrust(self, checkout: Checkout) -> None:
        """See to it that nobody takes a checkout for whole any more."""
        folder = checkout.files.parent
        with self._lock(folder):
            (folder / _METADATA).unlink(missing_ok=True)

    def _discard(self, folder: Path) -> None:
        if os.path.lexists(folder):
            _logger.warning("The checkout in %s is damaged: it is fetched again", folder)
            with self.scratch() as aside:
                folder.rename(aside / "damaged")

    def _store(self, folder: Path, resolved: Resolved, fetch_into: Callable[[Path], tuple[str, str] | None]) -> None:
        with self.scratch() as temporary:
            staging = temporary / "checkout"
            files = staging / "files"
            files.mkdir(parents=True)
            source, fetched_by = fetch_into(files) or (resolved.repo.url, None)
            tree.make_read_only(files)
            file_count, size_bytes, times_hash = tree.look(files)
            metadata = {
                "identity": resolved.repo.identity,
                "url": resolved.repo.url,
                "fetched_from": source,
                "fetched_by": fetched_by,
                "owner": resolved.repo.owner,
                "name": resolved.repo.name,
                "commit": resolved.commit,
                "fetched_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "file_count": file_count,
                "size_bytes": size_bytes,
                "tree_hash": tree.tree_hash(files),
                "times_hash": times_hash,
            }
            (staging / _METADATA).write_text(_text_of(metadata), encoding="utf-8")
            folder.parent.mkdir(parents=True, exist_ok=True)
            staging.rename(folder)

    def _working_tree(self, resolved: Resolved) -> Checkout:
        files = resolved.folder or Path(resolved.repo.url)
        if not files.is_dir():
            raise FetchError(f"The folder {str(files)!r} is gone", url=resolved.repo.url)
        # The name is for people who look into the cache; 50 characters are at most 200 bytes.
        folder = self.root / "trees" / f"{_short_hash(str(files.resolve()))}-{files.name[:50]}"
        return self._open(folder, resolved, files=files, fingerprint=tree.fingerprint(files))

    def _open(
        self,
        folder: Path,
        resolved: Resolved,
        *,
        files: Path,
        tree_hash: str | None = None,
        fetched_by: str | None = None,
        fingerprint: str | None = None,
        pycache: Path | None = None,
    ) -> Checkout:
        hub, cwd = folder / "hub", folder / "cwd"
        for needed in (hub, cwd, *([pycache] if pycache else [])):
            needed.mkdir(parents=True, exist_ok=True)
        self._share_checkpoints(hub)
        return Checkout(
            repo=resolved.repo,
            commit=resolved.commit,
            ref_name=resolved.ref_name,
            files=files,
            tree_hash=tree_hash,
            fetched_by=fetched_by,
            fingerprint=fingerprint,
            hub_folder=hub,
            cwd=cwd,
            pycache=pycache,
        )

    def _share_checkpoints(self, hub: Path) -> None:
        # The target must exist: torch's load_state_dict_from_url fails on a link that leads nowhere.
        checkpoints = (hub_dir() / "checkpoints").absolute()
        try:
            checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _logger.warning("cannot make %s: %s", checkpoints, error)
            return
        tree.link(hub / "checkpoints", str(checkpoints))


def _text_of(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata, indent=2) + "\n"


def _short_hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]
