"""Weights by their URL: torch.hub's `load_state_dict_from_url`, and `fetch_weights` underneath it."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

from isohub.errors import FetchError, HashMismatchError
from isohub.hub import download
from isohub.hub.cache import hub_dir
from isohub.hub.weight_record import base_name, hash_in, hash_of
from isohub.hub.weight_store import WeightStore

__all__ = ["fetch_weights", "load_state_dict_from_url", "named_hash"]

_logger = logging.getLogger("isohub.hub")


def load_state_dict_from_url(  # noqa: PLR0917 - torch.hub's signature
    url: str,
    model_dir: str | os.PathLike[str] | None = None,
    map_location: Any = None,
    progress: bool = True,
    check_hash: bool = False,
    file_name: str | None = None,
    weights_only: bool = False,
) -> Any:
    """Return what `torch.load` makes of the file at a URL, downloading it unless it is here.

    The arguments are those of `torch.hub.load_state_dict_from_url`. As there the file is loaded in this
    process: only load what you trust, or with `weights_only=True`. Unlike there the file is known by its
    URL and not by its base name, so that the first of two `model.pth` is never taken for the second.

    Args:
        url: Where the file lies: `https:`, `http:` or `file:`.
        model_dir: A folder to put the file into; without one it goes to isohub's store.
        map_location: As in `torch.load`.
        progress: Whether to draw a bar if it takes longer than a second and stderr is a terminal.
        check_hash: Whether the SHA-256 must begin with the hash in the name, as in
            `resnet18-bfd8deac.pth`.
        file_name: The name in `model_dir`, instead of the URL's.
        weights_only: As in `torch.load`.

    Raises:
        FetchError: It cannot be had.
        HashMismatchError: (a RuntimeError) It has another hash.
        ValueError: `check_hash` was asked for, and no name has a hash of eight digits or more.
        Exception: Whatever `torch.load` raises.
    """
    if os.environ.get("TORCH_MODEL_ZOO"):
        warnings.warn("TORCH_MODEL_ZOO is deprecated, please use env TORCH_HOME instead", stacklevel=2)
    if model_dir is None:
        path = fetch_weights(url, check_hash=check_hash, file_name=file_name, progress=progress, is_told=True)
    else:
        folder = Path(os.path.expanduser(model_dir))  # noqa: PTH111 - Path.expanduser raises where there is no home
        folder.mkdir(parents=True, exist_ok=True)
        expected = _expected(url, None, check_hash=check_hash, file_name=file_name)
        target = folder / (base_name(url) if file_name is None else file_name)
        path = WeightStore().fetch_to(url, target, expected, progress=progress, tell=lambda place: _tell(url, place))
    return _load(path, map_location=map_location, weights_only=weights_only)


def fetch_weights(
    url: str,
    hash_prefix: str | None = None,
    check_hash: bool = False,
    file_name: str | None = None,
    *,
    repo: str | None = None,
    progress: bool = True,
    is_told: bool = False,
) -> Path:
    """Return the file of a URL on this machine, downloading it unless it is here. It is read-only.

    Threads and processes that ask for one URL at once wait for each other, and one of them downloads. What
    torch.hub put into its `checkpoints` is used if its hash proves that it is of this URL. A `file:` URL
    names a file of this machine, which is returned as it is.

    Args:
        url: Where it lies.
        hash_prefix: How its SHA-256 must begin, hexadecimal.
        check_hash: Whether it must begin with the hash in the name, if there is no `hash_prefix`.
        file_name: The name that torch.hub would give it, instead of the URL's.
        repo: Which repository asks for it, for the records.
        progress: Whether to draw a bar.
        is_told: Whether to print torch.hub's line before a download.

    Raises:
        FetchError: It cannot be had.
        HashMismatchError: (a RuntimeError) It has another hash.
        ValueError: `check_hash` was asked for, and no name has a hash of eight digits or more.
        OSError: The store cannot be written.
    """
    expected = _expected(url, hash_prefix, check_hash=check_hash, file_name=file_name)
    path = download.file_of(url)
    if path is not None:
        return _local(url, path, expected)
    names = dict.fromkeys(name for name in (file_name, base_name(url)) if name and name == Path(name).name)
    return WeightStore().fetch(
        url,
        expected,
        known_as=tuple(hub_dir() / "checkpoints" / name for name in names),
        repo=repo,
        progress=progress,
        tell=(lambda place: _tell(url, place)) if is_told else None,
    )


def named_hash(url: str, file_name: str | None) -> str | None:
    """Return how the SHA-256 of a file begins by its name, or the URL's; None if neither tells."""
    return hash_in(file_name or "") or hash_in(base_name(url))


def _expected(url: str, hash_prefix: str | None, *, check_hash: bool, file_name: str | None) -> str | None:
    if hash_prefix is not None or not check_hash:
        return hash_prefix
    found = named_hash(url, file_name)
    if found is None:
        name = base_name(url) if file_name is None else file_name
        raise ValueError(
            f"check_hash=True needs a name that holds the first eight or more digits of the file's SHA-256, as "
            f"in resnet18-bfd8deac.pth; {name!r} holds none. Nothing could be checked"
        )
    return found


def _local(url: str, path: Path, expected: str | None) -> Path:
    if not path.is_file():
        raise FetchError(f"There is no file {str(path)!r}, which {url!r} names", url=url)
    if expected is not None:
        actual = hash_of(path)
        if not actual.startswith(expected):
            text = f'invalid hash value (expected "{expected}", got "{actual}")'
            raise HashMismatchError(text, url=url, expected=expected, actual=actual)
    return path


def _tell(url: str, place: Path) -> None:
    sys.stdout.write(f'Downloading: "{download.without_user(url)}" to {place}\n')


def _load(path: Path, *, map_location: Any, weights_only: bool) -> Any:
    import torch

    if not _is_legacy_zip(path):
        # In the caller's process: it is the user who asks for this file, by torch.hub's name for loading it
        # here. What a repository asks for is loaded in its worker.
        return torch.load(path, map_location=map_location, weights_only=weights_only)  # noqa: TID251
    warnings.warn(
        "Falling back to the old format < 1.6. This support will be deprecated in favor of default zipfile format "
        "introduced in 1.6. Please redo torch.save() to save it in the new zipfile format.",
        category=FutureWarning,
        stacklevel=3,
    )
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryFile() as unpacked:
        with archive.open(archive.infolist()[0]) as packed:
            shutil.copyfileobj(packed, unpacked)
        unpacked.seek(0)
        return torch.load(unpacked, map_location=map_location, weights_only=weights_only)  # noqa: TID251 - as above


def _is_legacy_zip(path: Path) -> bool:
    """Return whether this is a zip file of one file: how people packed weights before torch 1.6."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    return len(members) == 1 and not members[0].is_dir()
