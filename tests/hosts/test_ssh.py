"""Repositories behind ssh: a real sshd, with keys and settings of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache as once
from pathlib import Path

import pytest

from isohub.errors import FetchError, UnreachableError
from isohub.hub.cache import Cache
from isohub.hub.checkout import Checkout
from isohub.hub.fetch import fetch
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef
from tests.helpers.repos import git, make_repo
from tests.helpers.sshd import SshServer, has_sshd
from tests.helpers.system_programs import HOW_TO_GET, find_program
from tests.hosts.conftest import version

_has_sshd = once(has_sshd)


class Client:
    """What a user has in ~/.ssh, in a folder of the test's."""

    def __init__(self, folder: Path, server: SshServer) -> None:
        self.known_hosts = folder / "known_hosts"
        self.settings = folder / "settings"
        folder.mkdir()
        self.server = server
        self.use(server.key)
        self.know(server.host_key)

    def use(self, key: Path) -> None:
        """Have this key, and a short name for the server."""
        self.settings.write_text(
            f"Host models.corp\n  HostName 127.0.0.1\n  Port {self.server.port}\n"
            f"Host *\n  IdentityFile {key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
        )

    def know(self, *keys: str) -> None:
        """Know these keys of the server, under both of its names."""
        self.known_hosts.write_text("".join(f"[127.0.0.1]:{self.server.port} {key}\n" for key in keys))


@pytest.fixture
def server() -> Iterator[SshServer]:
    if not _has_sshd():
        pytest.skip(f"there is no sshd with libnss_wrapper, and ssh: {HOW_TO_GET}")
    with SshServer() as running:
        repo = make_repo(
            running.folder / "srv" / "owner" / "name.git",
            {f"v{n}": {"hubconf.py": f"VERSION = {n}\n"} for n in (1, 2, 3)},
        )
        git(repo, "tag", "--delete", "v2")  # reached by main alone
        running.give(running.folder / "srv")
        yield running


@pytest.fixture
def client(server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client(tmp_path / "client", server)
    # -F: the settings in this, and none of the user's or the system's.
    monkeypatch.setenv("GIT_SSH_COMMAND", f"{find_program('ssh')} -F {made.settings}")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return made


def load_text(text: str, cache: Cache) -> Checkout:
    return fetch(resolve(RepoRef.parse(text), cache), cache)


def test_private_repository_by_key(client: Client, cache: Cache) -> None:
    """With the key of its user a repository is loaded by a URL with a port: tag, default branch, and older commit."""
    url = f"git+ssh://git@127.0.0.1:{client.server.port}/owner/name.git"
    older = git(client.server.folder / "srv" / "owner" / "name.git", "-c", "safe.directory=*", "rev-parse", "main~1")

    assert version(load_text(f"{url}@v1", cache)) == "VERSION = 1"
    assert version(load_text(url, cache)) == "VERSION = 3"
    assert version(load_text(f"{url}@{older}", cache)) == "VERSION = 2"
    assert version(load_text(f"{url}@{older[:10]}", cache)) == "VERSION = 2"


@pytest.mark.parametrize(
    "text",
    ["git@models.corp:owner/name.git", "me@models.corp:srv/owner/name.git", "git+git@models.corp:owner/name.git"],
)
def test_short_form(client: Client, cache: Cache, text: str) -> None:
    """The short form of ssh's is loaded by the name, port and key that ssh's settings have for it."""
    assert version(load_text(f"{text}@v1", cache)) == "VERSION = 1"


def test_protocol_ssh(client: Client, cache: Cache) -> None:
    """A plain name with `protocol="SSH"` is loaded from the server that is named, and then from the cache."""
    ref = RepoRef.parse("owner/name:v1", protocol="SSH", git_host=f"127.0.0.1:{client.server.port}")

    assert version(fetch(resolve(ref, cache), cache)) == "VERSION = 1"
    client.use(client.server.other_key)  # which would not be let in
    assert version(fetch(resolve(ref, cache), cache)) == "VERSION = 1"


def test_key_that_is_not_let_in(client: Client, cache: Cache) -> None:
    """An unknown key is an error with the URL and the way to be let in; nothing is kept."""
    client.use(client.server.other_key)
    port = client.server.port

    with pytest.raises(
        FetchError, match=rf"none of your keys.*`ssh -T -p {port} git@127\.0\.0\.1`.*ssh-agent"
    ) as caught:
        load_text(f"git+ssh://git@127.0.0.1:{port}/owner/name.git@v1", cache)

    assert not isinstance(caught.value, UnreachableError)
    assert caught.value.url == f"ssh://git@127.0.0.1:{port}/owner/name.git"
    assert not (cache.root / "checkouts").exists()


def test_host_that_is_not_known(client: Client, cache: Cache) -> None:
    """A server whose key ssh does not know is refused, and the error says how to get to know it."""
    client.know()

    with pytest.raises(FetchError, match=r"does not know models\.corp.*`ssh -T git@models\.corp`.*compare the key"):
        load_text("git@models.corp:owner/name.git@v1", cache)

    assert client.known_hosts.read_text() == ""


def test_host_whose_key_has_changed(client: Client, cache: Cache) -> None:
    """A server that shows another key than it did is refused, and the error says what that may mean."""
    client.know(" ".join(client.server.other_key.with_suffix(".pub").read_text().split()[:2]))
    port = client.server.port
    before = client.known_hosts.read_text()

    with pytest.raises(FetchError, match=rf"may be another machine.*`ssh-keygen -R '\[127\.0\.0\.1\]:{port}'`"):
        load_text(f"git+ssh://git@127.0.0.1:{port}/owner/name.git", cache)

    assert client.known_hosts.read_text() == before


def test_no_server(client: Client, cache: Cache) -> None:
    """Where nobody listens, the error says that the host is out of reach, and gives no advice about keys."""
    with pytest.raises(UnreachableError, match="Connection refused") as caught:
        load_text("git+ssh://git@127.0.0.1:1/owner/name.git", cache)

    assert "keys" not in str(caught.value)


def test_repository_that_is_not_there(client: Client, cache: Cache) -> None:
    """A repository that the server does not have is an error with git's own words, and no advice about keys."""
    with pytest.raises(FetchError, match="does not appear to be a git repository") as caught:
        load_text("git@models.corp:owner/nothing.git", cache)

    assert "keys" not in str(caught.value)


_ASKS = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
assert os.open("/dev/tty", os.O_RDWR) > 0
from isohub.errors import FetchError
from isohub.hub.cache import Cache
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef
try:
    resolve(RepoRef.parse(sys.argv[1]), Cache(sys.argv[2]))
except FetchError as error:
    print("refused")
"""


@pytest.mark.parametrize("trouble", ["unknown host", "unknown key", "key with a passphrase"])
def test_nobody_is_asked(client: Client, cache: Cache, tmp_path: Path, trouble: str) -> None:
    """On a terminal, too, ssh asks nothing: an unknown host, and a key with a passphrase, are errors at once."""
    if trouble == "unknown host":
        client.know()
    elif trouble == "unknown key":
        client.use(client.server.other_key)
    else:
        locked = tmp_path / "locked"
        locked.write_bytes(client.server.key.read_bytes())
        locked.chmod(0o600)
        change = [str(find_program("ssh-keygen")), "-q", "-p", "-N", "passphrase", "-f", str(locked)]
        subprocess.run(change, check=True, capture_output=True)
        client.use(locked)
    terminal, its_end = os.openpty()
    try:
        start = [sys.executable, "-c", _ASKS, "git@models.corp:owner/name.git", str(cache.root)]
        done = subprocess.run(
            start, stdin=its_end, capture_output=True, text=True, start_new_session=True, timeout=60, check=True
        )
        os.set_blocking(terminal, False)
        with pytest.raises(BlockingIOError):  # nothing was written there
            os.read(terminal, 1)
    finally:
        os.close(terminal)
        os.close(its_end)

    assert done.stdout == "refused\n"
