"""Resolving refs at servers: branches, tags, commits and forks, and what is still known when offline."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from isohub.errors import ResolveError, UnreachableError
from isohub.hub.cache import Cache
from isohub.hub.fetch import fetch
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef
from tests.helpers.githost import GitHost
from tests.helpers.repos import git
from tests.hosts.conftest import load, version

# ---------------------------------------------------------------------------------------- 3, 4, 5. refs


def test_default_branch_is_the_real_one(host: GitHost, repo: Path, cache: Cache) -> None:
    """Without a ref the branch that HEAD points at is taken, whatever it is called."""
    git(repo, "branch", "--move", "main", "trunk")
    git(repo, "branch", "main", "v1")

    checkout = load(host, "owner/name", cache)

    assert (checkout.ref_name, version(checkout)) == ("trunk", "VERSION = 3")


def test_annotated_tags_are_peeled(host: GitHost, repo: Path, cache: Cache) -> None:
    """A tag object counts as the commit that it marks."""
    git(repo, "tag", "--annotate", "full", "v2", "--message", "x")

    assert load(host, "owner/name:full", cache).commit == git(repo, "rev-parse", "v2")


def test_empty_repository(host: GitHost, tmp_path: Path, cache: Cache) -> None:
    """A repository without commits says so."""
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "--quiet")
    host.add("owner/empty", tmp_path / "empty")

    with pytest.raises(ResolveError, match="no commits yet"):
        load(host, "owner/empty", cache)


@pytest.mark.parametrize("length", [40, 8])
def test_commits_below_the_tips(host: GitHost, repo: Path, cache: Cache, length: int) -> None:
    """A full or short commit that is no tip is found in the history, and loaded again without a request."""
    git(repo, "tag", "--delete", "v2")
    commit = git(repo, "rev-parse", "main~1")

    for _ in range(2):
        checkout = load(host, f"owner/name:{commit[:length]}", cache)
        assert (checkout.commit, version(checkout)) == (commit, "VERSION = 2")
        before = host.count()
    load(host, f"owner/name@{commit}", cache)
    assert host.count() == before
    assert list((cache.root / "tmp").glob("*/")) == []


def forked(repo: Path) -> str:
    """Put a commit into the repository that no branch or tag reaches, as GitHub does for forks."""
    git(repo, "checkout", "--quiet", "--detach")
    (repo / "hubconf.py").write_text("VERSION = 'fork'\n")
    git(repo, "commit", "--quiet", "--all", "--message", "fork")
    commit = git(repo, "rev-parse", "HEAD")
    git(repo, "update-ref", "refs/pull/1/head", commit)
    git(repo, "checkout", "--quiet", "main")
    return commit


def test_a_forks_commit_is_refused(host: GitHost, repo: Path, cache: Cache) -> None:
    """A commit of a fork's is refused in torch.hub's words, unless `skip_validation` takes it."""
    commit = forked(repo)

    with pytest.raises(ValueError, match="Cannot find") as caught:
        load(host, f"owner/name:{commit}", cache)

    assert str(caught.value) == (
        f"Cannot find {commit} in {host.url}/owner/name. If it's a commit from a forked repo, please call "
        "hub.load() with forked repo directly."
    )
    assert version(load(host, f"owner/name:{commit}", cache, skip_validation=True)) == "VERSION = 'fork'"


def test_without_git_what_cannot_be_told_is_said(host: GitHost, repo: Path, cache: Cache, no_git: None) -> None:
    """Without git, refs and tips work, and an older commit is taken on trust only."""
    git(repo, "tag", "--delete", "v2")
    commit = git(repo, "rev-parse", "main~1")

    assert version(load(host, "owner/name:v1", cache)) == "VERSION = 1"
    assert version(load(host, f"owner/name:{git(repo, 'rev-parse', 'main')[:8]}", cache)) == "VERSION = 3"
    with pytest.raises(ResolveError, match=r"cannot be told without the git program.*skip_validation=True"):
        load(host, f"owner/name:{commit}", cache)
    assert version(load(host, f"owner/name:{commit}", cache, skip_validation=True)) == "VERSION = 2"


@pytest.mark.filterwarnings("default")
def test_a_tag_and_a_branch_of_one_name(host: GitHost, repo: Path, cache: Cache) -> None:
    """A branch goes before a tag of its name, with torch.hub's warning."""
    git(repo, "branch", "v1", "v2")

    with pytest.warns(
        UserWarning, match=r"^The ref v1 is ambiguous\. Perhaps it is both a tag and a branch in the repo\?"
    ):
        assert version(load(host, "owner/name:v1", cache)) == "VERSION = 2"
    assert version(load(host, "owner/name:refs/tags/v1", cache)) == "VERSION = 1"


# -------------------------------------------------------------------------------------------- 16. offline


def test_offline_makes_no_request(host: GitHost, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `ISOHUB_OFFLINE=1` cached refs, the cached default and a cached commit load; nothing is asked."""
    commit = load(host, "owner/name", cache).commit
    load(host, "owner/name:v1", cache)
    host.forget()
    monkeypatch.setenv("ISOHUB_OFFLINE", "1")
    monkeypatch.setenv("ISOHUB_REF_TTL_S", "0")

    assert version(load(host, "owner/name", cache)) == "VERSION = 3"
    assert version(load(host, "owner/name:main", cache)) == "VERSION = 3"
    assert version(load(host, "owner/name:v1", cache)) == "VERSION = 1"
    assert version(load(host, f"owner/name@{commit}", cache)) == "VERSION = 3"
    for text, missing in [("owner/name:v2", "the ref 'v2'"), (f"owner/name@{'1' * 40}", f"commit {'1' * 40}"),
                          ("owner/other", "the default branch")]:  # fmt: skip
        with pytest.raises(UnreachableError, match=f"{missing}.*not in the cache {re.escape(str(cache.root))}"):
            load(host, text, cache)
    with pytest.raises(UnreachableError, match="ISOHUB_OFFLINE"):
        load(host, "owner/name:v1", cache, force_reload=True)
    assert host.count() == 0


def test_host_that_is_gone(repo: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nobody answers any more, what is in the cache loads, and the rest says what is missing."""
    with GitHost() as host:
        host.add("owner/name", repo)
        load(host, "owner/name:v1", cache)
    monkeypatch.setenv("ISOHUB_REF_TTL_S", "0")

    assert version(load(host, "owner/name:v1", cache)) == "VERSION = 1"
    with pytest.raises(UnreachableError, match=f"does not answer.*'v2'.*{re.escape(str(cache.root))}"):
        load(host, "owner/name:v2", cache)


def test_commit_that_was_resolved_and_not_fetched(host: GitHost, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that is known and not cached is an error that names it, the cache and the variable, when offline."""
    resolved = resolve(RepoRef.parse("owner/name:v1", git_host=host.url), cache)
    monkeypatch.setenv("ISOHUB_OFFLINE", "true")

    with pytest.raises(UnreachableError, match=f"Commit {resolved.commit}.*not in the cache.*ISOHUB_OFFLINE"):
        fetch(resolved, cache)


@pytest.mark.parametrize(
    ("text", "folder"),
    [("o/n", "o_n_master"), ("o/n:feat/x", "o_n_feat_x"), (f"o/n@{'1' * 40}", f"o_n_{'1' * 40}")],
)
@pytest.mark.parametrize("setting", ["ISOHUB_OFFLINE=1", "HTTPS_PROXY=http://127.0.0.1:9"])
def test_folders_of_torch_hub(  # noqa: PLR0917 - three fixtures, three parameters
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, folder: str, setting: str
) -> None:
    """A folder that torch.hub made is used, and not written to, when GitHub cannot be asked."""
    place = tmp_path / "torch-home" / "hub" / folder
    place.mkdir(parents=True)
    (place / "hubconf.py").write_text("VERSION = 'old'\n")
    before = sorted(place.rglob("*"))
    monkeypatch.setenv(*setting.split("=", 1))

    checkout = fetch(resolve(RepoRef.parse(text), cache), cache)

    assert (checkout.files, checkout.commit, version(checkout)) == (place, None, "VERSION = 'old'")
    assert sorted(place.rglob("*")) == before


def test_folders_of_torch_hub_are_githubs(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of torch.hub's does not stand in for a repository of another host."""
    (tmp_path / "torch-home" / "hub" / "o_n_main").mkdir(parents=True)
    monkeypatch.setenv("ISOHUB_OFFLINE", "1")

    with pytest.raises(UnreachableError):
        resolve(RepoRef.parse("o/n", source="gitlab"), cache)
