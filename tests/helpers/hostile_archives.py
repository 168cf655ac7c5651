"""Archives that may do harm, and what makes archives of any entries."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["HOSTILE", "MAKERS", "OUTSIDE", "Entry", "Maker", "make_lying_zip", "make_tar", "make_zip"]

# Its name, its kind as in the tables below, and its content or where it leads.
Entry = tuple[str, str, bytes]

_ZIP_MODES = {"file": stat.S_IFREG | 0o644, "link": stat.S_IFLNK | 0o777, "folder": stat.S_IFDIR | 0o755,
              "device": stat.S_IFCHR | 0o666, "fifo": stat.S_IFIFO | 0o666}  # fmt: skip
_TAR_TYPES = {"file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE,
              "device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE}  # fmt: skip


def make_zip(path: Path, entries: list[Entry], comment: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, kind, content in entries:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, _ZIP_MODES[kind] << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(info, content)
        made.comment = comment
    return path


def make_tar(path: Path, entries: list[Entry], comment: bytes = b"") -> Path:
    headers = {"comment": comment.decode()} if comment else {}
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, pax_headers=headers) as made:
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.type = _TAR_TYPES[kind]
            if kind == "file":
                info.size = len(content)
            elif kind in {"link", "hardlink"}:
                info.linkname = os.fsdecode(content)
            made.addfile(info, io.BytesIO(content))
    return path


MAKERS = {"zip": make_zip, "tar": make_tar}
Maker = Callable[..., Path]

OUTSIDE = Path(tempfile.gettempdir()) / f"evil-{os.getpid()}"
HOSTILE: dict[str, list[Entry]] = {
    "traversal": [("top/../../evil", "file", b"x")],
    "traversal at the top": [("../evil", "file", b"x")],
    "traversal with backslashes": [("top/..\\..\\evil", "file", b"x")],
    "absolute": [(str(OUTSIDE), "file", b"x")],
    "absolute with a backslash": [("\\evil", "file", b"x")],
    "drive letter": [("C:/evil", "file", b"x")],
    "drive letter below the top": [("top/C:/evil", "file", b"x")],
    "link out": [("top/bad", "link", b"../../evil")],
    "link out, absolute": [("top/bad", "link", b"/etc/passwd")],
    "link out from a folder": [("top/sub/bad", "link", b"../../outside")],
    "link out through itself": [("top/bad", "link", b"sub/../../evil")],
    "write through a link": [("top/a", "link", b"sub"), ("top/a/evil", "file", b"x")],
    "file as a folder": [("top/a", "file", b"x"), ("top/a/b", "file", b"x")],
    "folder as a file": [("top/a/b", "file", b"x"), ("top/a", "file", b"x")],
    "duplicate": [("top/a", "file", b"1"), ("top/a", "file", b"2")],
    "link, then a file of its name": [("top/a", "link", b"b"), ("top/a", "file", b"2")],
    "device": [("top/device", "device", b"")],
    "fifo": [("top/fifo", "fifo", b"")],
    "name of 300": [("top/" + "x" * 300, "file", b"x")],
    "path of 3000": [("top/" + "x/" * 1500 + "x", "file", b"x")],
    "two tops": [("top/a", "file", b"x"), ("other/a", "file", b"x")],
    "no top": [("hubconf.py", "file", b"x")],
    "empty part": [("top//a", "file", b"x")],
    "dot": [("top/./a", "file", b"x")],
    "nothing": [],
}  # fmt: skip


def make_lying_zip(path: Path, declared_bytes: int = 10) -> Path:
    """Make a zip of 3 MB that declares to be small."""
    raw = make_zip(path, [("top/big", "file", bytes(3_000_000))]).read_bytes()
    size = (3_000_000).to_bytes(4, "little")
    assert raw.count(size) == 2
    path.write_bytes(raw.replace(size, declared_bytes.to_bytes(4, "little")))
    return path
