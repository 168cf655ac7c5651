"""Certificates, refusals, limits and troubles of servers: what is told, tried again, and never used."""

from __future__ import annotations

import shutil
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

from isohub.errors import ArchiveError, FetchError, UnreachableError
from isohub.hub.cache import Cache
from isohub.hub.fetch import fetch
from isohub.hub.http import MAX_RETRY_AFTER_S
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef
from tests.helpers.githost import Certificate, GitHost
from tests.helpers.repos import git
from tests.hosts.conftest import load, version

# -------------------------------------------------------------------------------------- TLS and refusals


def test_https_with_a_ca_of_ones_own(
    repo: Path, cache: Cache, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with a certificate that nobody knows is refused, and loaded from once its CA is named."""
    with GitHost(certificate=certificate) as host:
        host.add("owner/name", repo)
        with pytest.raises(FetchError, match=r"cannot be trusted.*SSL_CERT_FILE") as caught:
            load(host, "owner/name", cache)
        assert not isinstance(caught.value, UnreachableError)

        for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            monkeypatch.setenv(variable, str(certificate.ca))
            ref = RepoRef.parse("owner/name:v1", git_host=host.name)
            assert ref.url.startswith("https://")
            assert version(fetch(resolve(ref, cache), cache)) == "VERSION = 1"
            shutil.rmtree(cache.root / "refs")
            monkeypatch.delenv(variable)


def test_git_uses_the_same_ca(
    repo: Path, cache: Cache, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where git fetches, it trusts the CA that the variable names."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.ca))
    with GitHost((), certificate=certificate) as host:
        host.add("owner/name", repo)

        assert version(load(host, "owner/name:v1", cache)) == "VERSION = 1"


@pytest.mark.parametrize("name", ["owner/nothing", "owner/private"])
def test_unknown_or_private(host: GitHost, repo: Path, cache: Cache, name: str) -> None:
    """A repository that is not there, or not for everybody, is one FetchError with URL, status and a way in."""
    host.add("owner/private", repo, token="secret")

    with pytest.raises(FetchError, match="no such repository, or it is private") as caught:
        load(host, name, cache)

    assert (caught.value.status, caught.value.url) == (401, f"{host.url}/{name}.git/info/refs?service=git-upload-pack")
    assert not (cache.root / "checkouts").exists()


@pytest.mark.parametrize("path", ["info/refs", "archive"])
@pytest.mark.parametrize("status", [403, 429])
@pytest.mark.usefixtures("no_git")
def test_rate_limit(host: GitHost, cache: Cache, monkeypatch: pytest.MonkeyPatch, path: str, status: int) -> None:
    """A rate limit is told with its size, its end and the variable to set, and is not waited for."""
    monkeypatch.setenv("GITHUB_SERVER_URL", host.url)
    headers = {"X-RateLimit-Limit": "60", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1900000000"}
    host.misbehave(path, status=status, headers={**headers, "Retry-After": "7200"})

    with pytest.raises(
        FetchError, match=r"rate limit of 60 requests.*2030-03-17T17:46:40\+00:00.*GITHUB_TOKEN"
    ) as caught:
        load(host, "owner/name", cache)

    error = caught.value
    assert (error.status, error.limit, error.token_variable) == (status, 60, "GITHUB_TOKEN")
    assert error.reset_at == datetime.fromtimestamp(1_900_000_000, timezone.utc)
    assert host.count(path) == 1


def test_git_where_archives_are_limited(host: GitHost, cache: Cache) -> None:
    """Where archives are refused for the moment, git brings the files."""
    host.misbehave("archive", status=429)

    assert version(load(host, "owner/name:v1", cache)) == "VERSION = 1"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("path", ["info/refs", "archive"])
def test_trouble_that_passes(host: GitHost, cache: Cache, path: str, status: int) -> None:
    """A server that is in trouble is asked again."""
    host.misbehave(path, status=status, times=2)

    assert version(load(host, "owner/name:v1", cache)) == "VERSION = 1"


def test_trouble_that_stays(host: GitHost, cache: Cache, no_git: None) -> None:
    """A server that stays in trouble is given up, nothing is left behind, and a later load succeeds."""
    host.misbehave("archive", status=503)

    with pytest.raises(FetchError, match="answers 503") as caught:
        load(host, "owner/name:v1", cache)
    host.behave()

    assert caught.value.status == 503
    assert not list(cache.root.rglob("hubconf.py"))
    assert version(load(host, "owner/name:v1", cache)) == "VERSION = 1"


def test_retry_after_is_bounded() -> None:
    """However long a server asks to wait, a retry does not wait longer than the bound."""
    from isohub.hub.http import _session

    with _session("archive") as session:
        retry = session.get_adapter("https://x").max_retries

        told = SimpleNamespace(headers={"Retry-After": "86400"})
        assert retry.get_retry_after(told) == MAX_RETRY_AFTER_S


@pytest.mark.parametrize("cut_at", [0, 10, 200])
@pytest.mark.parametrize("path", ["info/refs", "archive"])
def test_cut_bodies(host: GitHost, cache: Cache, path: str, cut_at: int) -> None:
    """A body that ends before its Content-Length is asked for again; if it always does, nothing of it is used."""
    host.misbehave(path, cut_at=cut_at, times=2)
    assert version(load(host, "owner/name:v1", cache)) == "VERSION = 1"

    host.misbehave(f"{path}|git-upload-pack", cut_at=cut_at)
    with pytest.raises(FetchError, match="broke off every time"):
        load(host, "owner/name:v2", cache)
    host.behave()

    assert version(load(host, "owner/name:v2", cache)) == "VERSION = 2"


def test_cut_advertisement_without_a_length(host: GitHost, cache: Cache) -> None:
    """A list of refs that is cut at the end of a packet is not taken for a shorter list."""
    host.misbehave("info/refs", change=lambda body: body[:-4])

    # What git is asked for instead is cut as well.
    with pytest.raises(FetchError, match="cut short"):
        load(host, "owner/name:v1", cache)


def test_not_git(host: GitHost, cache: Cache) -> None:
    """A page in place of a list of refs, or of an archive, is refused."""
    host.misbehave("info/refs", body=b"<!DOCTYPE html>", headers={"Content-Type": "text/html"}, times=3)
    with pytest.raises(FetchError, match="no list of refs"):
        load(host, "owner/name:v1", cache)
    host.behave()

    host.misbehave("archive", body=b"<!DOCTYPE html>")
    host.misbehave("name/git-upload-pack$", status=500)
    with pytest.raises(FetchError, match="no archive"):
        load(host, "owner/name:v1", cache)
    assert not list(cache.root.rglob("hubconf.py"))


def test_archive_of_another_commit(host: GitHost, repo: Path, cache: Cache) -> None:
    """An archive that states another commit than the one resolved is refused, and git does not hide it."""
    from tests.helpers.githost import archive_of

    host.misbehave("archive", body=archive_of(repo, "v2", prefix="name"))

    with pytest.raises(ArchiveError, match="holds commit") as caught:
        load(host, "owner/name:v1", cache)

    assert caught.value.commit == git(repo, "rev-parse", "v1")
    assert not list(cache.root.rglob("hubconf.py"))


def test_hostile_archive_leaves_nothing(host: GitHost, repo: Path, cache: Cache, tmp_path: Path) -> None:
    """A hostile archive leaves nothing behind, the checkout of before stays, and a retry works."""
    import io
    import zipfile

    before = load(host, "owner/name:v1", cache)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("name/hubconf.py", "VERSION = 'evil'")
        archive.writestr("name/../../../../evil", "x")
    host.misbehave("archive", body=made.getvalue())

    with pytest.raises(ArchiveError, match="leads out"):
        load(host, "owner/name:v2", cache)
    host.behave()

    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]
    assert [path.name for path in (cache.root / "tmp").iterdir()] == ["sweep"]
    assert version(load(host, "owner/name:v1", cache)) == version(before) == "VERSION = 1"
    assert version(load(host, "owner/name:v2", cache)) == "VERSION = 2"
