"""Which versions a user means by a list of refs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isohub.comparison.sources import sources_of
from isohub.errors import ComparisonError, RefError
from tests.helpers.repos import make_repo

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def told(repo: str | os.PathLike[str], *refs: str | os.PathLike[str], **options: str) -> list[tuple[str, str]]:
    return [(one.label, str(one.ref)) for one in sources_of(repo, refs, **options)]


def test_refs_of_a_repository():
    """A branch, with slashes in it or not, a tag and a commit are refs of the repository."""
    assert told("owner/name", "v1", "feat/x", COMMIT) == [
        ("v1", "owner/name:v1"), ("feat/x", "owner/name:feat/x"), (COMMIT[:12], f"owner/name@{COMMIT}"),
    ]  # fmt: skip


def test_other_repositories():
    """A text with a colon is a whole repo text: a fork, or another host's."""
    assert told("owner/name", "v1", "fork/name:main", "git+https://example.org/x/y@v2") == [
        ("v1", "owner/name:v1"), ("fork/name:main", "fork/name:main"), ("x/y:v2", "git+https://example.org/x/y@v2"),
    ]  # fmt: skip


def test_source_counts_for_all():
    """Where plain names lie holds for the repository and for forks."""
    assert [text for _, text in told("a/b", "v1", "c/b:v1", source="codeberg")] == [
        "codeberg.org/a/b:v1", "codeberg.org/c/b:v1",
    ]  # fmt: skip


def test_folder_and_its_refs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Refs of a folder are those of its git repository, also from below its top, and one alone is held against it."""
    top = make_repo(tmp_path / "owner" / "repo", {"v1": {"models/hubconf.py": ""}})
    monkeypatch.chdir(top)

    assert told(top, "v1", ".") == [("v1", f"git+file://{top}@v1"), ("owner/repo (working tree)"[6:], f"file://{top}")]
    assert told(top / "models", "v1") == [
        ("v1", f"git+file://{top}@v1#subdirectory=models"), ("models (working tree)", f"file://{top}/models"),
    ]  # fmt: skip
    assert told("owner/name", Path(), "v1")[0][1] == f"file://{top}"


def test_labels_are_told_apart():
    """Two versions never have the same name in a report."""
    assert [label for label, _ in told("a/b", "v1", "v1", "v1")] == ["v1", "v1 #2", "v1 #3"]


def test_too_few_and_nonsense(tmp_path: Path):
    """Fewer than two versions, one text for a list, and refs of a folder without git are errors that say so."""
    with pytest.raises(ComparisonError, match="needs two versions, and got 1"):
        sources_of("owner/name", ["v1"])
    with pytest.raises(ComparisonError, match="takes a list of refs"):
        sources_of("owner/name", "v1")
    with pytest.raises(RefError, match="in no git repository"):
        sources_of(tmp_path, ["v1"])
