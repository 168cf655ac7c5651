"""What is known of one file of weights: `Weights`; and what its URL and name tell."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

__all__ = ["NOTE", "Weights", "base_name", "hash_in", "hash_of"]

NOTE = "isohub.json"
# torch.hub's convention asks for eight digits or more. Fewer are the version of model-1.0.pth.
_HASH = re.compile(r"-([a-f0-9]{8,64})\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One file of weights, as its isohub.json tells of it.

    Attributes:
        url: Where it came from, without user and password.
        url_sha256: Hash of the whole URL.
        sha256: Hash of the content.
        size_bytes: Its size.
        fetched_at: When it was brought or found, in ISO 8601, UTC.
        file: Its name in the store; None if it lies elsewhere only.
        places: Where else it lies: paths, each with its time of change in nanoseconds.
        repos: Which repositories asked for it.
        folder: Where its isohub.json lies.
        mtime_ns: Time of change of the file in the store.
    """

    url: str
    url_sha256: str
    sha256: str
    size_bytes: int
    fetched_at: str
    file: str | None
    places: dict[str, int]
    repos: tuple[str, ...]
    folder: Path
    mtime_ns: int = 0

    @classmethod
    def read(cls, folder: Path) -> Weights | None:
        """Return what a folder of the store tells of; None if it tells of nothing that can be believed."""
        try:
            note = json.loads((folder / NOTE).read_bytes())
            file, places = note["file"], note["places"]
            is_plain = file is None or (isinstance(file, str) and file == Path(file).name)
            if note["sha256"] != folder.name or not is_plain or not isinstance(places, dict):
                return None
            return cls(**{**note, "repos": tuple(note["repos"]), "folder": folder})
        except (OSError, ValueError, KeyError, TypeError):  # not there, or edited by somebody
            return None

    def save(self) -> None:
        """Write it down, in one step."""
        note = asdict(self)
        del note["folder"]
        temporary = self.folder / f".{uuid4().hex}"
        temporary.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.folder / NOTE)

    def path(self) -> Path | None:
        """Return where the file is, if it is still there and of the right size; else None."""
        own = self.folder / self.file if self.file else None
        if own is not None and _size_of(own) == self.size_bytes:
            return own
        return next((Path(place) for place in self.places if self.is_at(Path(place))), None)

    def is_untouched(self, path: Path) -> bool:
        """Return whether nobody wrote to what `path` returned, as far as its time of change tells."""
        try:
            return path.parent != self.folder or path.stat().st_mtime_ns == self.mtime_ns
        except OSError:
            return False

    def is_at(self, place: Path) -> bool:
        """Return whether the file at a place outside of the store is this one, unchanged."""
        try:
            status = place.stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size_bytes, self.places.get(str(place)))


def base_name(url: str) -> str:
    """Return the last part of a URL's path, if it can be the name of a file; else `weights`."""
    name = urlsplit(url).path.rpartition("/")[2]
    can_be = name not in {"", ".", "..", NOTE} and name.isprintable() and len(os.fsencode(name)) <= 200
    return name if can_be else "weights"


def hash_in(name: str) -> str | None:
    """Return `bfd8deac` for `resnet18-bfd8deac.pth`; None for a name without eight such digits."""
    match = _HASH.search(name)
    return match[1] if match else None


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
