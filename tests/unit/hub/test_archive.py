"""`archive.unpack`: real archives of git come as they are, and hostile ones are refused whole."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

import pytest

from isohub.errors import ArchiveError, FetchError
from isohub.hub import archive
from isohub.hub.archive import Limits
from tests.helpers.githost import archive_of
from tests.helpers.hostile_archives import HOSTILE, MAKERS, OUTSIDE, Entry, Maker, make_lying_zip, make_tar

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Maker:
    """Both kinds of archives, one after the other."""
    return MAKERS[request.param]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "deep" / "below" / "files"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_what_git_archives_comes_whole(repository, tmp_path: Path, files: Path, form: str) -> None:
    """Contents, executable bits, links, long and foreign names arrive, and the commit that the archive states."""
    long = "x" * 150 + "/" + "é" * 100
    (repository.path / "sub").mkdir()
    (repository.path / "sub" / "data").write_bytes(bytes(range(256)) * 1000)
    (repository.path / long).parent.mkdir()
    (repository.path / long).write_text("long")
    (repository.path / "run.sh").write_text("#!/bin/sh\n")
    (repository.path / "run.sh").chmod(0o755)
    (repository.path / "sub" / "link").symlink_to("../run.sh")
    (repository.path / "empty").write_text("")
    commit = repository.commit()
    file = tmp_path / "archive"
    file.write_bytes(archive_of(repository.path, commit, prefix="models-1", form=form))

    assert archive.unpack(file, files, commit=commit) == commit

    found = sorted(str(path.relative_to(files)) for path in files.rglob("*") if not path.is_dir())
    assert found == sorted(["empty", "hubconf.py", "run.sh", "sub/data", "sub/link", long])
    assert (files / "sub" / "data").read_bytes() == bytes(range(256)) * 1000
    assert os.access(files / "run.sh", os.X_OK)
    assert not os.access(files / "hubconf.py", os.X_OK)
    assert (files / "sub" / "link").readlink() == Path("../run.sh")


def test_another_commit_is_refused(make: Maker, tmp_path: Path, files: Path) -> None:
    """An archive that states another commit than was asked for is refused before anything is written."""
    file = make(tmp_path / "a", [("top/hubconf.py", "file", b"")], comment=b"f" * 40)

    with pytest.raises(ArchiveError, match=f"holds commit {'f' * 40}, and {COMMIT}"):
        archive.unpack(file, files, commit=COMMIT)

    assert list(files.iterdir()) == []


def test_no_stated_commit(make: Maker, tmp_path: Path, files: Path) -> None:
    """An archive that states no commit is taken, and None says so."""
    file = make(tmp_path / "a", [("top/hubconf.py", "file", b"x")])

    assert archive.unpack(file, files, commit=COMMIT) is None
    assert (files / "hubconf.py").read_bytes() == b"x"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archives(make: Maker, tmp_path: Path, files: Path, entries: list[Entry]) -> None:
    """An archive with a name, link or entry that may do harm is refused, and nothing outside its folder changes."""
    file = make(tmp_path / "a", entries)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(files)}

    with pytest.raises(ArchiveError) as caught:
        archive.unpack(file, files)

    assert isinstance(caught.value, FetchError)
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(files)} == before
    assert not OUTSIDE.exists()
    assert len(str(caught.value)) < 400


def test_hard_links_are_refused(tmp_path: Path, files: Path) -> None:
    """A hard link is refused, whether it leads out or not: git makes none."""
    for target in (b"../../etc/passwd", b"top/a"):
        file = make_tar(tmp_path / "a", [("top/a", "file", b"x"), ("top/b", "hardlink", target)])
        with pytest.raises(ArchiveError, match="hard link"):
            archive.unpack(file, files)
        for path in files.iterdir():
            path.unlink()


def test_bomb_by_declared_size(make: Maker, tmp_path: Path, files: Path) -> None:
    """An archive that declares to unpack to more than it may is refused before it fills the disk."""
    file = make(tmp_path / "a", [("top/big", "file", bytes(3_000_000))])

    with pytest.raises(ArchiveError, match="unpacks to more than the 1000000 bytes"):
        archive.unpack(file, files, limits=Limits(free_bytes=1_000_000, ratio=1))

    assert sum(path.stat().st_size for path in files.rglob("*")) == 0


def test_ratio_lets_ordinary_archives_through(make: Maker, tmp_path: Path, files: Path) -> None:
    """What does not unpack to many times its size may be large."""
    file = make(tmp_path / "a", [("top/big", "file", os.urandom(100_000))])

    archive.unpack(file, files, limits=Limits(free_bytes=1000, ratio=2))

    assert (files / "big").stat().st_size == 100_000


def test_bomb_by_real_size(tmp_path: Path, files: Path) -> None:
    """A zip whose entries lie about their size is refused, and writes no more than it declared."""
    file = make_lying_zip(tmp_path / "a", 10)

    with pytest.raises(ArchiveError):
        archive.unpack(file, files, limits=Limits(free_bytes=1_000_000, ratio=1))

    assert sum(path.stat().st_size for path in files.rglob("*")) <= 10


def test_bomb_in_a_header_of_a_tar(tmp_path: Path, files: Path) -> None:
    """A header that declares 100 MB, which tarfile would hold in memory, is refused unread."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 100 << 20
    with gzip.open(tmp_path / "a", "wb") as made:
        made.write(header.tobuf(tarfile.PAX_FORMAT) + bytes(1 << 20))

    with pytest.raises(ArchiveError, match="header of"):
        archive.unpack(tmp_path / "a", files)


def test_too_many_entries(make: Maker, tmp_path: Path, files: Path) -> None:
    """The number of entries has a limit of its own."""
    file = make(tmp_path / "a", [(f"top/{n}", "file", b"") for n in range(4)])

    with pytest.raises(ArchiveError, match="more than 3 entries"):
        archive.unpack(file, files, limits=Limits(entries=3))


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04 and no more", b"\x1f\x8b\x08 and no more"])
def test_not_an_archive(tmp_path: Path, files: Path, content: bytes) -> None:
    """What is no archive, or only begins like one, is refused."""
    (tmp_path / "a").write_bytes(content)

    with pytest.raises(ArchiveError):
        archive.unpack(tmp_path / "a", files)


def test_every_truncation_is_refused(make: Maker, tmp_path: Path, files: Path) -> None:
    """An archive that is cut at any place is refused, and never taken for a smaller one."""
    whole = make(tmp_path / "a", [("top/a", "file", os.urandom(300)), ("top/b", "file", b"b" * 3000)]).read_bytes()

    for end in range(0, len(whole), 7):
        (tmp_path / "cut").write_bytes(whole[:end])
        with pytest.raises(ArchiveError):
            archive.unpack(tmp_path / "cut", files)
        for path in files.iterdir():
            path.unlink()
