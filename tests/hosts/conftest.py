"""A machine of its own for each test, and servers that speak GitHub's and GitLab's URLs, with real git."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from isohub.hub.cache import Cache
from isohub.hub.checkout import Checkout
from isohub.hub.fetch import fetch
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef
from tests.helpers.githost import Certificate, GitHost, make_certificate
from tests.helpers.repos import make_repo

CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO")
OTHERS = (
    *("GITHUB_TOKEN", "GITHUB_SERVER_URL", "GITLAB_TOKEN", "GITLAB_HOST", "CI_SERVER_URL", "NETRC"),
    *("ISOHUB_OFFLINE", "ISOHUB_REF_TTL_S"),
    *("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"),
)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's home, tokens, proxies and certificates out of the tests."""
    for name in (*CA_VARIABLES, *OTHERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    monkeypatch.setattr("isohub.hub.http._BACKOFF_S", 0.0)
    (tmp_path / "home").mkdir()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Three commits on main, tagged v1 to v3."""
    return make_repo(tmp_path / "srv" / "models", {f"v{n}": {"hubconf.py": f"VERSION = {n}\n"} for n in (1, 2, 3)})


@pytest.fixture
def host(repo: Path) -> Iterator[GitHost]:
    with GitHost() as running:
        running.add("owner/name", repo)
        yield running


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a git program."""
    # Not by PATH: the server in this process needs git.
    monkeypatch.setattr("isohub.hub.git.is_installed", lambda: False)


def load(
    host: GitHost,
    text: str,
    cache: Cache,
    *,
    force_reload: bool = False,
    skip_validation: bool = False,
    verbose: bool = True,
) -> Checkout:
    ref = RepoRef.parse(text, git_host=host.url)
    resolved = resolve(ref, cache, force_reload=force_reload, skip_validation=skip_validation)
    return fetch(resolved, cache, force_reload=force_reload, verbose=verbose)


def version(checkout: Checkout) -> str:
    return (checkout.root / "hubconf.py").read_text().strip()
