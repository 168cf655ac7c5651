"""Archives of a commit: unpacked only if everything in them stays in its folder and is a file, folder or link.

Both kinds that hosts give are read, zip and tar.gz. Both have one folder at their top, which is left out, and
say which commit they hold: the comment of the zip, or of the pax header that comes first.

Note [what is refused]: an archive is a list of names and contents by a stranger. A name may lead out of the
folder (`..`, an absolute path, a drive letter), directly or through a link that came before it; come twice, so
that the second writes through the first; or be too long for the disk. An entry may be a device or a hard link,
which git never makes. And a few kilobytes may unpack to terabytes, by what is declared or against it: sizes
are counted as they come. Any of these refuses the whole.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from isohub.errors import ArchiveError

__all__ = ["LIMITS", "Limits", "kind_of", "unpack"]

_BLOCK_BYTES = 1 << 17
_MAX_NAME_BYTES = 255  # of one part, on every common file system
_MAX_PATH_BYTES = 2048
_MAX_LINK_BYTES = 4096
# One read of tarfile's: a header that declares gigabytes is read whole, before anybody can look at it.
_MAX_TAR_READ_BYTES = 16 << 20
_DRIVE = re.compile(r"[A-Za-z]:")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much an archive may hold.

    Attributes:
        entries: Files, folders and links.
        total_bytes: Unpacked.
        free_bytes: Up to here its ratio does not matter.
        ratio: Unpacked bytes for each byte of the archive. Source code has 3 to 10.
    """

    entries: int = 500_000
    total_bytes: int = 8 << 30
    free_bytes: int = 256 << 20
    ratio: int = 200

    def bytes_of(self, archive_bytes: int) -> int:
        """Return what an archive of this size may unpack to."""
        return min(self.total_bytes, max(self.free_bytes, self.ratio * archive_bytes))


LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    name: str
    kind: Literal["file", "folder", "link"]
    size_bytes: int
    is_executable: bool
    open: Callable[[], IO[bytes]]
    target: str = ""  # of a link in a tar; a zip has it as the content


def kind_of(file: Path) -> Literal["zip", "tar"] | None:
    """Tell from its first bytes what kind of archive a file is; None if it is none."""
    with file.open("rb") as opened:
        start = opened.read(4)
    if start in {b"PK\x03\x04", b"PK\x05\x06"}:
        return "zip"
    return "tar" if start[:2] == b"\x1f\x8b" else None


def unpack(file: Path, files: Path, *, commit: str | None = None, limits: Limits | None = None) -> str | None:
    """Unpack an archive into the empty folder `files`, without the folder at its top.

    Args:
        file: A zip or tar.gz.
        files: Where its contents go. After an error something may be in it; whoever made it removes it.
        commit: What the archive must hold, if it says what it holds.
        limits: None for `LIMITS`.

    Returns:
        The commit that the archive states, or None if it states none.

    Raises:
        ArchiveError: It is no archive, is damaged, holds another commit, or would do harm: see the note.
        OSError: The disk is full, or cannot be written.
    """
    kind = kind_of(file)
    if kind is None:
        raise ArchiveError(f"{file.name} is neither a zip nor a tar.gz: it begins with {_beginning(file)!r}")
    limits = limits or LIMITS
    writer = _Writer(files, limits, limits.bytes_of(file.stat().st_size))
    with _damage_is_an_error(), (_zip if kind == "zip" else _tar)(file, writer) as (stated, entries):
        if commit is not None and stated is not None and stated != commit:
            raise ArchiveError(f"The archive holds commit {stated}, and {commit} was asked for", commit=commit)
        for entry in entries:
            writer.write(entry)
        if writer.top is None:
            raise ArchiveError("The archive is empty")
    return stated


class _Writer:
    """Writes entries into a folder, and refuses those that would do harm."""

    def __init__(self, files: Path, limits: Limits, max_bytes: int) -> None:
        self.top: str | None = None
        self.max_bytes = max_bytes
        self._files = files
        self._limits = limits
        self._bytes = 0
        self._count = 0
        self._folders = {""}
        self._others: set[str] = set()

    def write(self, entry: _Entry) -> None:
        self._count += 1
        if self._count > self._limits.entries:
            raise ArchiveError(f"The archive has more than {self._limits.entries} entries")
        path = self._path_of(entry)
        if entry.kind == "folder":
            self._make_folders(path, entry.name)
            return
        if not path:
            raise ArchiveError(f"The archive has no folder at its top, but {_shown(entry.name)}")
        self._make_folders(path.rpartition("/")[0], entry.name)
        if path in self._others or path in self._folders:
            raise ArchiveError(f"The archive has {_shown(entry.name)} twice")
        self._others.add(path)
        place = self._files / path
        if entry.kind == "link":
            place.symlink_to(self._target_of(entry, path))
        else:
            self._write_file(entry, place)

    def _path_of(self, entry: _Entry) -> str:
        """Return the path below the top folder, `""` for that folder itself."""
        name = entry.name
        shown = _shown(name)
        if name.startswith(("/", "\\")) or _DRIVE.match(name):
            raise ArchiveError(f"The archive has an absolute name: {shown}")
        if ".." in re.split(r"[/\\]", name):
            raise ArchiveError(f"The archive has a name that leads out of its folder: {shown}")
        parts = name.removesuffix("/").split("/")
        if any(part in {"", "."} or "\0" in part for part in parts):
            raise ArchiveError(f"The archive has a name that is none: {shown}")
        if len(os.fsencode(name)) > _MAX_PATH_BYTES or any(len(os.fsencode(p)) > _MAX_NAME_BYTES for p in parts):
            raise ArchiveError(f"The archive has a name that is too long: {shown}")
        self.top = self.top if self.top is not None else parts[0]
        if parts[0] != self.top:
            raise ArchiveError(f"The archive has two folders at its top, {_shown(self.top)} and {_shown(parts[0])}")
        path = "/".join(parts[1:])
        if _DRIVE.match(path):
            raise ArchiveError(f"The archive has a name with a drive letter: {shown}")
        return path

    def _make_folders(self, path: str, name: str) -> None:
        parts = path.split("/") if path else []
        for end in range(1, len(parts) + 1):
            folder = "/".join(parts[:end])
            if folder in self._others:  # a file; or a link, through which the next entry would be written
                raise ArchiveError(f"The archive has {_shown(name)} below something that is no folder")
            if folder not in self._folders:
                (self._files / folder).mkdir()
                self._folders.add(folder)

    def _target_of(self, entry: _Entry, path: str) -> str:
        target = entry.target
        if not target:
            with entry.open() as opened:
                target = os.fsdecode(opened.read(_MAX_LINK_BYTES + 1))
        if not target or "\0" in target or len(os.fsencode(target)) > _MAX_LINK_BYTES:
            raise ArchiveError(f"The archive has a link {_shown(entry.name)} to nothing that can be")
        lands = os.path.normpath(f"{path.rpartition('/')[0]}/./{target}" if "/" in path else target)
        if target.startswith(("/", "\\")) or _DRIVE.match(target) or lands.split("/")[0] == "..":
            raise ArchiveError(f"The archive has a link {_shown(entry.name)} that leads out of it, to {_shown(target)}")
        return target

    def _write_file(self, entry: _Entry, place: Path) -> None:
        # Declared, so that a bomb is refused before the disk is full; and counted, since that may be a lie.
        if self._bytes + entry.size_bytes > self.max_bytes:
            raise self._bomb()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(place, flags, 0o777 if entry.is_executable else 0o666)  # the umask has its say
        with os.fdopen(descriptor, "wb") as output, entry.open() as opened:
            while block := opened.read(_BLOCK_BYTES):
                self._bytes += len(block)
                if self._bytes > self.max_bytes:
                    raise self._bomb()
                output.write(block)

    def _bomb(self) -> ArchiveError:
        return ArchiveError(f"The archive unpacks to more than the {self.max_bytes} bytes that one of its size may")


_Opened = tuple[str | None, Iterator[_Entry]]


@contextmanager
def _zip(file: Path, writer: _Writer) -> Iterator[_Opened]:
    with zipfile.ZipFile(file) as archive:
        declared = sum(info.file_size for info in archive.infolist())
        if declared > writer.max_bytes:
            raise writer._bomb()

        def entries() -> Iterator[_Entry]:
            for info in archive.infolist():
                # `orig_filename`, since `filename` ends at a NUL.
                mode = info.external_attr >> 16 if info.create_system == 3 else 0
                kind = _kind_of_mode(mode, info.orig_filename)
                yield _Entry(
                    name=info.orig_filename,
                    kind=kind,
                    size_bytes=info.file_size,
                    is_executable=bool(mode & stat.S_IXUSR),
                    open=lambda info=info: archive.open(info),  # type: ignore[misc]
                )

        yield _commit_in(archive.comment.decode("ascii", "replace")), entries()


def _kind_of_mode(mode: int, name: str) -> Literal["file", "folder", "link"]:
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        return "link"
    if kind == stat.S_IFDIR or (not kind and name.endswith("/")):
        return "folder"
    if kind in {0, stat.S_IFREG} and not name.endswith("/"):
        return "file"
    raise ArchiveError(f"The archive has {_shown(name)}, which is no file, folder or link")


@contextmanager
def _tar(file: Path, writer: _Writer) -> Iterator[_Opened]:
    with gzip.open(file, "rb") as unpacked:
        # Headers and padding count too: 2 kB for an entry is more than git's need.
        counted = _Counted(unpacked, writer.max_bytes + 2048 * LIMITS.entries)
        # Not tarfile.open, which may put a stream of its own in between.
        with tarfile.TarFile(fileobj=counted, mode="r") as archive:  # type: ignore[arg-type]
            first = archive.next()

            def entries() -> Iterator[_Entry]:
                member = first
                while member is not None:
                    yield _tar_entry(archive, member)
                    archive.members.clear()  # type: ignore[attr-defined]  # else they pile up
                    member = archive.next()
                while counted.read(_BLOCK_BYTES):  # to the end, where the checksum is: it may have been cut short
                    pass

            yield _commit_in(archive.pax_headers.get("comment", "")), entries()


def _tar_entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> _Entry:
    kind: Literal["file", "folder", "link"]
    if member.isreg() and not member.issparse():
        kind = "file"
    elif member.isdir():
        kind = "folder"
    elif member.issym():
        kind = "link"
    else:
        what = "a hard link" if member.islnk() else "no file, folder or link"
        raise ArchiveError(f"The archive has {_shown(member.name)}, which is {what}")

    def opened() -> IO[bytes]:
        content = archive.extractfile(member)
        assert content is not None, "a file has content"
        return content

    return _Entry(
        name=member.name,
        kind=kind,
        size_bytes=member.size,
        is_executable=bool(member.mode & stat.S_IXUSR),
        open=opened,
        target=member.linkname if kind == "link" else "",
    )


class _Counted:
    """A stream that ends in an error when too much is read from it, at once or in all."""

    def __init__(self, stream: gzip.GzipFile, max_bytes: int) -> None:
        self._stream = stream
        self._place = 0
        self._max_bytes = max_bytes

    def read(self, nbytes: int) -> bytes:
        if nbytes > _MAX_TAR_READ_BYTES:
            raise ArchiveError(f"The archive has a header of {nbytes} bytes")
        block = self._stream.read(nbytes)
        self._place += len(block)
        if self._place > self._max_bytes:
            raise ArchiveError("The archive unpacks to more than one of its size may")
        return block

    def tell(self) -> int:
        return self._place

    def seek(self, place: int) -> int:
        while self._place < place and self.read(min(_BLOCK_BYTES, place - self._place)):
            pass
        if self._place > place:
            raise ArchiveError("The archive's entries do not follow each other")
        return self._place


@contextmanager
def _damage_is_an_error() -> Iterator[None]:
    damage = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, struct.error, NotImplementedError)
    try:
        yield
    except ArchiveError:
        raise
    except (*damage, RuntimeError, ValueError) as error:  # encrypted; bytes that are no text
        raise ArchiveError(f"The archive is damaged: {error}") from error
    except OSError as error:
        if error.errno is None:  # gzip's own BadGzipFile
            raise ArchiveError(f"The archive is damaged: {error}") from error
        raise


def _commit_in(comment: str) -> str | None:
    stated = comment.strip().lower()
    return stated if _COMMIT.fullmatch(stated) else None


def _beginning(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(40).decode("ascii", "replace")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}…")
