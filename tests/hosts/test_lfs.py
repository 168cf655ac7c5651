"""Files that Git LFS keeps elsewhere, brought by the real git-lfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isohub.hub.cache import Cache
from tests.helpers.githost import GitHost
from tests.helpers.repos import make_repo
from tests.helpers.system_programs import HOW_TO_GET, find_program
from tests.hosts.conftest import load

WEIGHTS, MORE = os.urandom(100_000), b"more"


@pytest.fixture
def large(host: GitHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GitHost:
    """A server that has a repository with two files of Git LFS's, and git-lfs on PATH."""
    program = find_program("git-lfs")
    if program is None:
        pytest.skip(f"there is no git-lfs: {HOW_TO_GET}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git-lfs").symlink_to(program)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    files = {
        "hubconf.py": "",
        ".gitattributes": "*.pt filter=lfs diff=lfs merge=lfs -text\n",
        # Another server than the one that the repository is from: it is not asked.
        ".lfsconfig": "[lfs]\n\turl = http://127.0.0.1:1/\n",
        "w/net.pt": host.keep_large(WEIGHTS),
        "more.pt": host.keep_large(MORE),
    }
    host.add("owner/large", make_repo(tmp_path / "large", {"v1": files}))
    return host


@pytest.mark.parametrize("makes", [("github",), ()], ids=["archive", "git"])
def test_files_of_git_lfs_are_brought(
    large: GitHost, cache: Cache, monkeypatch: pytest.MonkeyPatch, makes: tuple[str, ...]
) -> None:
    """With git-lfs, what comes is the files and not their pointers, by archive and by git."""
    monkeypatch.setattr(large, "makes", makes)

    checkout = load(large, "owner/large:v1", cache)

    assert (checkout.files / "w" / "net.pt").read_bytes() == WEIGHTS
    assert (checkout.files / "more.pt").read_bytes() == MORE


def test_private_files_of_git_lfs_are_brought(
    large: GitHost, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token that opens a repository opens its large files."""
    large.add("owner/large", tmp_path / "large", token="s3cret")
    monkeypatch.setenv("GITHUB_SERVER_URL", large.url)
    monkeypatch.setenv("GITHUB_TOKEN", "s3cret")

    checkout = load(large, "owner/large:v1", cache)

    assert (checkout.files / "w" / "net.pt").read_bytes() == WEIGHTS


@pytest.mark.parametrize("trouble", ["gone", "changed", "cut"])
def test_files_that_git_lfs_cannot_bring_are_told_of(large: GitHost, cache: Cache, trouble: str) -> None:
    """A file that the server does not have, or has another in its place, stays a pointer and is named."""
    (oid,) = (oid for oid, content in large.large.items() if content == WEIGHTS)
    if trouble == "gone":
        del large.large[oid]
    elif trouble == "changed":
        large.large[oid] = bytes(len(WEIGHTS))
    else:
        large.misbehave(f"objects/{oid}", cut_at=50_000)

    with pytest.warns(UserWarning, match=r"Git LFS.*: 'w/net.pt'$"):
        checkout = load(large, "owner/large:v1", cache)

    assert (checkout.files / "w" / "net.pt").read_text().splitlines()[1] == f"oid sha256:{oid}"
    assert (checkout.files / "more.pt").read_bytes() == MORE
