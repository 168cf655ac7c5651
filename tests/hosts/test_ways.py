"""The way to a server: proxies, silence, redirects, and certificates of files that lie elsewhere."""

from __future__ import annotations

import logging
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from isohub.errors import FetchError, UnreachableError
from isohub.hub import download, http, progress
from isohub.hub.cache import Cache
from isohub.hub.fetch import fetch
from isohub.hub.git import _environment_for
from isohub.hub.resolve import resolve
from isohub.hub.weights import fetch_weights
from isohub.refs import RepoRef
from tests.helpers.githost import Certificate, GitHost
from tests.helpers.repos import git, write_files
from tests.helpers.waiting import until
from tests.hosts.conftest import load, version


@pytest.mark.parametrize("makes", [("github",), ()], ids=["archive", "git"])
def test_proxy(repo: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, makes: tuple[str, ...]) -> None:
    """Refs, files and weights come through the proxy that the environment names, unless it exempts their host."""
    ref = RepoRef.parse("owner/name:v1", git_host="http://models.localhost:1")
    with GitHost(makes) as proxy:
        proxy.add("owner/name", repo)
        proxy.misbehave("/model.pth", body=b"weights")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "models.localhost")
        monkeypatch.setenv("http_proxy", proxy.url)  # git knows this one in small letters alone
        with pytest.raises(UnreachableError):
            resolve(ref, cache)
        assert proxy.requests == []

        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name)
        assert version(fetch(resolve(ref, cache), cache)) == "VERSION = 1"
        assert fetch_weights("http://models.localhost:1/model.pth").read_bytes() == b"weights"

        assert all(request.path.startswith("http://models.localhost:1/") for request in proxy.requests)
        assert (proxy.count("/git-upload-pack$") == 0) == bool(makes)


def test_time_limits() -> None:
    """Connecting may take 10 s, and a server may be silent for 60 s, whatever is asked for."""
    assert (http.CONNECT_TIMEOUT_S, http.READ_TIMEOUT_S) == (10.0, 60.0)
    assert (download.CONNECT_TIMEOUT_S, download.READ_TIMEOUT_S) == (10.0, 60.0)


@pytest.mark.usefixtures("no_git")
def test_silent_servers(host: GitHost, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that falls silent, for refs, an archive or weights, is one that does not answer."""
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(download, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(download, "_BACKOFF_S", 0.0)
    go_on = threading.Event()
    for path in ("info/refs", "archive"):
        host.misbehave(path, wait_for=go_on)
        with pytest.raises(UnreachableError, match=r"does not answer.*timed out"):
            load(host, "owner/name:v1", cache)
        host.behave()
    host.misbehave("/model.pth", body=b"weights", wait_for=go_on)
    with pytest.raises(UnreachableError, match="timed out"):
        fetch_weights(f"{host.url}/model.pth")
    go_on.set()

    assert version(load(host, "owner/name:v1", cache)) == "VERSION = 1"
    assert fetch_weights(f"{host.url}/model.pth").read_bytes() == b"weights"


def test_silent_server_of_git(repo: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git, too, gives up on a server that falls silent, unless the user gives it other limits."""
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 1.0)
    go_on = threading.Event()
    with GitHost(()) as host:
        host.add("owner/name", repo)
        host.misbehave("/git-upload-pack$", hold_at=0, wait_for=go_on)
        with pytest.raises(FetchError, match="no such repository") as caught:  # what was said of the archive
            load(host, "owner/name:v1", cache)
        go_on.set()

        assert isinstance(caught.value.__cause__, UnreachableError)
        assert "Operation too slow" in str(caught.value.__cause__)
        assert version(load(host, "owner/name:v1", cache)) == "VERSION = 1"
    monkeypatch.setenv("GIT_HTTP_LOW_SPEED_TIME", "600")
    assert _environment_for("https://models.corp/owner/name")["GIT_HTTP_LOW_SPEED_TIME"] == "600"


def test_progress_of_git(
    repo: Path, cache: Cache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While git brings what takes longer, the log says how much has come."""
    caplog.set_level(logging.INFO, "isohub.hub")
    write_files(repo, {"large": os.urandom(3_000_000)} | {f"small/{number}": f"{number}" for number in range(120)})
    git(repo, "add", "--all")
    git(repo, "commit", "--quiet", "--message", "large")
    monkeypatch.setattr(progress, "SHOWN_AFTER_S", 0.0)
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    go_on = threading.Event()
    with GitHost(()) as host, ThreadPoolExecutor(1) as pool:
        host.add("owner/name", repo)
        # The longer of two answers, with the files. Of less than 100 objects git would make nothing before it has all.
        host.misbehave("/git-upload-pack$", hold_at=2_500_000, wait_for=go_on)
        loading = pool.submit(load, host, "owner/name", cache)
        try:
            until(lambda: any(re.fullmatch(r"name: [2-3]\.\d MB", line) for line in list(caplog.messages)))
            assert not loading.done()
        finally:
            go_on.set()

        assert (loading.result(60).files / "large").stat().st_size == 3_000_000


@pytest.mark.usefixtures("no_git")
def test_redirect_to_plain_http(
    host: GitHost, repo: Path, cache: Cache, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect from https to plain http, or to plain http on another machine, is refused: refs, files, weights."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.ca))
    with GitHost(certificate=certificate) as secure:
        secure.add("owner/name", repo)
        for path in ("info/refs", "archive"):
            secure.misbehave(path, redirect=host.url + "{path}")
            with pytest.raises(FetchError, match="leads to plain http"):
                load(secure, "owner/name:v1", cache)
            secure.behave()
            host.misbehave(path, redirect="http://models.invalid{path}")
            with pytest.raises(FetchError, match=r"leads to plain http, on models\.invalid"):
                load(host, "owner/name:v1", cache)
            assert host.count() == {"info/refs": 1, "archive": 3}[path]
            host.behave()
        host.misbehave("/model.pth", body=b"weights")
        secure.misbehave("/model.pth", redirect=host.url + "{path}")
        with pytest.raises(FetchError, match="leads to plain http"):
            fetch_weights(f"{secure.url}/model.pth")


def test_weights_of_a_server_with_a_ca_of_ones_own(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights come from a server with a certificate that nobody knows once its CA is named, and not before."""
    with GitHost(certificate=certificate) as host:
        url = f"{host.url}/model.pth"
        host.misbehave("/model.pth", body=b"weights")
        with pytest.raises(FetchError, match=r"cannot be trusted.*SSL_CERT_FILE") as caught:
            fetch_weights(url)
        assert (type(caught.value), caught.value.url, host.count()) == (FetchError, url, 0)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.ca))

        assert fetch_weights(url).read_bytes() == b"weights"
