"""torch.hub's functions inside a worker: what they fetch comes through the parent.

So there is one download for all workers and processes, one store that tells two files of one name apart,
one policy of trust and networks, and no token of the user's in the repository's reach.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils import model_zoo

from isohub.wire.messages import NeedFiles

__all__ = ["take_over"]


def take_over(need: Callable[[NeedFiles], Path]) -> None:
    """Put functions that ask the parent in the place of torch.hub's, before anybody imports those by name.

    Args:
        need: Asks the parent for files; raises what torch.hub would.
    """
    plain_load = torch.hub.load_state_dict_from_url

    def download_url_to_file(
        url: str,
        dst: Any,
        hash_prefix: str | None = None,
        progress: bool = True,  # noqa: ARG001 - the parent draws the bar
    ) -> None:
        """Put the file of `url` at `dst`; see `torch.hub.download_url_to_file`."""
        path = need(NeedFiles(what="weights", name=url, hash_prefix=hash_prefix or ""))
        _copy(path, Path(dst).expanduser())

    def load_state_dict_from_url(  # noqa: PLR0917 - torch.hub's signature
        url: str,
        model_dir: Any = None,
        map_location: Any = None,
        progress: bool = True,
        check_hash: bool = False,
        file_name: str | None = None,
        weights_only: bool = False,
    ) -> Any:
        """Load the file of `url`; see `torch.hub.load_state_dict_from_url`."""
        rest = {"map_location": map_location, "progress": progress, "weights_only": weights_only}
        if model_dir is not None and not _is_checkpoints(model_dir):
            return plain_load(url, model_dir, check_hash=check_hash, file_name=file_name, **rest)
        path = need(NeedFiles(what="weights", name=url, check_hash=check_hash, file_name=file_name or ""))
        # It finds its file there, and downloads nothing.
        return plain_load(url, str(path.parent), file_name=path.name, **rest)

    def checkout(github: str, _force_reload: object, trust_repo: Any, *_: object, **__: object) -> str:
        """Return the folder of another repository; its own refs lead to its own files, as in the hub folder."""
        repo, colon, ref = github.partition(":")
        owner, name = repo.split("/")
        # torch.hub would ask GitHub from here which of the two is the default branch; the parent knows better.
        for possible in [ref] if colon else ["main", "master"]:
            own = Path(torch.hub.get_dir()) / f"{owner}_{name}_{possible}".replace("/", "_")
            if own.is_dir():
                return str(own)
        trust: bool | Literal["check"] = trust_repo if isinstance(trust_repo, bool) else "check"
        return str(need(NeedFiles(what="checkout", name=github, trust=trust)))

    torch.hub.download_url_to_file = download_url_to_file
    torch.hub.load_state_dict_from_url = load_state_dict_from_url
    torch.hub._get_cache_or_reload = checkout  # type: ignore[assignment]
    # An alias from before torch.hub; both are the same function there.
    model_zoo.load_url = load_state_dict_from_url  # type: ignore[attr-defined]


def _is_checkpoints(folder: Any) -> bool:
    """Return whether `folder` is where torch.hub puts files by their base name, which meet there."""
    return bool(os.path.realpath(folder) == os.path.realpath(Path(torch.hub.get_dir(), "checkpoints")))


def _copy(source: Path, target: Path) -> None:
    """Copy into place by a rename, so that nobody sees half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        umask = os.umask(0)
        os.umask(umask)
        with source.open("rb") as reader, os.fdopen(fd, "wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
