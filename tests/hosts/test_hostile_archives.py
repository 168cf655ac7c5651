"""Hostile archives from a server: each is refused, and the cache is as it was before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isohub.errors import ArchiveError
from isohub.hub import archive
from isohub.hub.archive import Limits
from isohub.hub.cache import Cache
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef
from tests.helpers.githost import GitHost
from tests.helpers.hostile_archives import HOSTILE, MAKERS, OUTSIDE, make_lying_zip
from tests.hosts.conftest import load, version

_OTHERS = {
    "hard link": [("top/a", "file", b"x"), ("top/b", "hardlink", b"top/a")],
    "hard link out": [("top/b", "hardlink", b"../../../../../../etc/passwd")],
    "bomb by declared size": [("top/big", "file", bytes(3_000_000))],
    "bomb by real size": [],
}
# A zip has no hard links, and a tar no second word on its sizes.
_NONE_SUCH = {("hard link", "zip"), ("hard link out", "zip"), ("bomb by real size", "tar")}
_KINDS = [(kind, form) for kind in HOSTILE | _OTHERS for form in MAKERS if (kind, form) not in _NONE_SUCH]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archives_leave_nothing(
    host: GitHost, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a hostile archive tries, nothing of it is left, the checkout of before works, and so does a retry."""
    monkeypatch.setattr(archive, "LIMITS", Limits(free_bytes=1_000_000, ratio=1))
    before = load(host, "owner/name:v1", cache)

    def everything() -> list[str]:
        return sorted(str(path) for path in tmp_path.rglob("*") if not path.is_relative_to(cache.root / "locks"))

    file = tmp_path / "archive"
    file.touch()
    resolve(RepoRef.parse("owner/name:v2", git_host=host.url), cache)  # which is remembered
    load(host, "owner/name:v1", cache)
    expected = everything()
    for kind, form in _KINDS:
        if kind == "bomb by real size":
            make_lying_zip(file)
        else:
            MAKERS[form](file, (HOSTILE | _OTHERS)[kind])
        host.misbehave("archive", body=file.read_bytes())

        with pytest.raises(ArchiveError):
            load(host, "owner/name:v2", cache)

        host.behave()
        assert everything() == expected, (kind, form)
        assert not os.path.lexists(OUTSIDE)
        assert load(host, "owner/name:v1", cache) == before
        assert version(before) == "VERSION = 1"
    assert host.count("/git-upload-pack$") == 0
    assert version(load(host, "owner/name:v2", cache)) == "VERSION = 2"
