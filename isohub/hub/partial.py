"""A file in the making, which another process can finish: `PartialFile`.

::

    <path>         the bytes so far
    <path>.json    which version of which URL they are the beginning of; only if they are to be kept

The note is written before the first byte, and taken away before the bytes are thrown away: whenever the
process dies, what the note tells of the bytes is true.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Downloaded", "PartialFile"]


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What a file holds that was brought.

    Attributes:
        sha256: Of all of it, hexadecimal.
        size_bytes: Its size.
    """

    sha256: str
    size_bytes: int


class PartialFile:
    """The bytes so far, and what tells that more bytes are of the same version. Close it.

    Args:
        url: Where they come from.
        path: Where they are put; nobody else may write there meanwhile.
        is_kept: Whether they outlive this process, for another to go on.

    Attributes:
        size_bytes: How much has come.
        total_bytes: How much it will be; None if the server did not say.
        validator: The server's name for the version; None if it has none, and then nothing can be resumed.
        was_resumed: Whether the bytes are of more than one answer.
    """

    def __init__(self, url: str, path: Path, *, is_kept: bool) -> None:
        self._url_hash = hashlib.sha256(url.encode()).hexdigest()
        self._path = path
        self._note = path.with_name(f"{path.name}.json") if is_kept else None
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        self.total_bytes: int | None = None
        self.validator: str | None = None
        self.was_resumed = False
        self._file = path.open("ab+")
        self._take_up()

    @property
    def sha256(self) -> str:
        """Hash of the bytes so far."""
        return self._digest.hexdigest()

    @property
    def is_whole(self) -> bool:
        """Whether no more bytes are to come, as far as the server said."""
        return self.size_bytes == self.total_bytes

    def start(self, validator: str | None, total_bytes: int | None) -> None:
        """Throw away what came, for another answer from its beginning."""
        # In this order, so that at no instant the note tells of a version that the bytes are not of.
        if self._note is not None:
            self._note.unlink(missing_ok=True)
        self._file.truncate(0)
        self._digest = hashlib.sha256()
        self.size_bytes, self.total_bytes, self.validator = 0, total_bytes, validator
        self.was_resumed = False
        if self._note is not None and validator is not None:
            note = {"url_sha256": self._url_hash, "validator": validator, "total_bytes": total_bytes}
            temporary = self._note.with_name(f"{self._note.name}.new")
            temporary.write_text(json.dumps(note), encoding="utf-8")
            temporary.replace(self._note)

    def write(self, chunk: bytes) -> None:
        """Add what came next."""
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size_bytes += len(chunk)

    def finish(self) -> Downloaded:
        """See to it that the bytes are on the disk."""
        self._file.flush()
        # Or a power cut after the rename could leave a file of the right name and size without its content.
        os.fsync(self._file.fileno())
        return Downloaded(self.sha256, self.size_bytes)

    def forget(self) -> None:
        """Remove it."""
        if self._note is not None:
            self._note.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._file.close()

    def _take_up(self) -> None:
        """Go on with what an earlier call left, if it is the beginning of the same."""
        try:
            if self._note is None:
                raise ValueError("nothing is kept")
            note = json.loads(self._note.read_bytes())
            validator, total_bytes = note["validator"], note["total_bytes"]
            is_note = isinstance(validator, str) and (total_bytes is None or isinstance(total_bytes, int))
            if note["url_sha256"] != self._url_hash or not is_note:
                raise ValueError("of another URL")
        except (OSError, ValueError, KeyError, TypeError):
            self.start(None, None)
            return
        self._file.seek(0)
        while chunk := self._file.read(1 << 20):
            self._digest.update(chunk)
            self.size_bytes += len(chunk)
        self.validator, self.total_bytes = validator, total_bytes
        if total_bytes is not None and self.size_bytes > total_bytes:
            self.start(None, None)
        self.was_resumed = self.size_bytes > 0
