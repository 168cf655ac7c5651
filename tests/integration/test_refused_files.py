"""What a worker's code wants from the network and is refused: torch.hub's errors there, isohub's own here."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import isohub
from isohub.errors import HashMismatchError, LockError, RemoteError, UnreachableError, UntrustedRepoError
from isohub.hub.lock import Lock
from isohub.hub.uses import recording
from tests.helpers.fileserver import FileServer, file_server
from tests.helpers.repos import make_repo, url, write_files

HUBCONF = """
    import torch

    kept = []

    def state(url, **keywords):
        return torch.hub.load_state_dict_from_url(url, progress=False, **keywords)

    def nested(repo):
        return torch.hub.load(repo, "net", trust_repo=False)

    def seen(url):
        try:
            state(url)
        except Exception as error:
            kept.append(error)
            return [kind.__name__ for kind in type(error).__mro__], str(error)

    def again():
        raise kept[-1]

    def wrapped(url):
        try:
            state(url)
        except ValueError as error:
            raise KeyError("no weights") from error

    def copied(url):
        try:
            state(url)
        except ValueError as error:
            text = str(error)
        raise ValueError(text)
"""


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo_of: Callable[..., str]) -> str:
    for name in ("ISOHUB_LOCK", "ISOHUB_LOCK_WRITE", "ISOHUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    return repo_of(HUBCONF)


@pytest.fixture
def lock(repo: str, tmp_path: Path) -> Path:
    """A lock with the repository, and no weights."""
    with recording() as recorded:
        isohub.Repo(repo)
    path = tmp_path / "isohub.lock"
    recorded.added_to(Lock()).write(path)
    return path


def put(server: FileServer, name: str, value: float) -> tuple[str, str]:
    """Return the URL and the SHA-256 of a file of weights."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.full((1,), value)}, buffer)
    return server.put(f"/{name}", buffer.getvalue()), hashlib.sha256(buffer.getvalue()).hexdigest()


def test_lock_error_arrives_as_itself(repo: str, lock: Path, server: FileServer):
    """Weights that the lock refuses end in the parent's own LockError, with its fields and the worker's traceback."""
    address, sha256 = put(server, "net.pth", 1.0)

    with isohub.Repo(repo, lock=lock) as opened, pytest.raises(LockError, match=r"net\.pth are not in it") as raised:
        opened.load("state", address)

    error = raised.value
    assert (error.expected, error.actual) == ("", sha256)
    assert isinstance(error.__cause__, RemoteError)
    assert "in state" in error.__cause__.remote_traceback


def test_hash_mismatch_arrives_as_itself(repo: str, server: FileServer):
    """A file with another hash than its name says is a HashMismatchError with its fields, and a RuntimeError."""
    address, sha256 = put(server, "net-0123abcd.pth", 1.0)

    with pytest.raises(HashMismatchError, match="invalid hash value") as raised:
        isohub.load(repo, "state", address, check_hash=True)

    assert (raised.value.url, raised.value.expected, raised.value.actual) == (address, "0123abcd", sha256)


def test_check_hash_without_a_hash_is_taken_from_a_repository(repo: str, server: FileServer):
    """Published code that asks for a check that no name allows loads as with torch.hub; the user is warned here."""
    address, sha256 = put(server, "net.pth", 5.0)

    with pytest.warns(UserWarning, match=sha256):
        state = isohub.load(repo, "state", address, check_hash=True)

    assert state["weight"].tolist() == [5.0]
    with pytest.raises(ValueError, match="holds none"):
        isohub.load_state_dict_from_url(address, check_hash=True)


def test_network_error_arrives_as_itself(repo: str, server: FileServer, monkeypatch: pytest.MonkeyPatch):
    """A file that cannot be had is a FetchError with its URL and why."""
    address, _ = put(server, "net.pth", 1.0)
    monkeypatch.setenv("ISOHUB_OFFLINE", "1")

    with pytest.raises(UnreachableError, match="ISOHUB_OFFLINE") as raised:
        isohub.load(repo, "state", address)

    assert raised.value.url == address
    assert isinstance(raised.value.__cause__, RemoteError)


def test_code_in_the_worker_sees_torch_hubs_errors(
    repo: str, lock: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
):
    """The repository's code may catch a refusal, which is of a kind that torch.hub raises, and go on."""
    address, _ = put(server, "net.pth", 1.0)
    with isohub.Repo(repo, lock=lock) as opened:
        locked, text = opened.load("seen", address)
    monkeypatch.setenv("ISOHUB_OFFLINE", "1")
    unreachable, _ = isohub.load(repo, "seen", f"{address}.other")

    assert (locked[0], unreachable[:2]) == ("ValueError", ["URLError", "OSError"])
    assert text.startswith("Refused by the lock file")


def test_untrusted_nested_repository_arrives_as_itself(repo: str, monkeypatch: pytest.MonkeyPatch):
    """A repository that the worker's code loads, and nobody trusts, is an UntrustedRepoError with its fields."""
    # A folder of torch.hub's stands in for the server, which may not be asked.
    write_files(Path(isohub.get_dir(), "nobody_nothing_v1"), {"hubconf.py": ""})
    monkeypatch.setenv("ISOHUB_OFFLINE", "1")

    with pytest.raises(UntrustedRepoError) as raised:
        isohub.load(repo, "nested", "nobody/nothing:v1")

    assert raised.value.repo == "nobody/nothing"


@pytest.mark.parametrize(("entry", "kind"), [("wrapped", KeyError), ("copied", ValueError)])
def test_exception_of_the_code_is_its_own(repo: str, lock: Path, server: FileServer, entry: str, kind: type[Exception]):
    """What the repository's code makes of a refusal is its own exception, whatever its text says."""
    address, _ = put(server, "net.pth", 1.0)

    with isohub.Repo(repo, lock=lock) as opened, pytest.raises(kind) as raised:
        opened.load(entry, address)

    assert type(raised.value) is kind
    assert "are not in it" in str(raised.value.__cause__)


def test_refusal_of_an_earlier_request_is_the_codes_own(repo: str, lock: Path, server: FileServer):
    """A refusal that the code kept and raises in a later request arrives as what the code raised."""
    address, _ = put(server, "net.pth", 1.0)
    with isohub.Repo(repo, lock=lock) as opened:
        opened.load("seen", address)

        with pytest.raises(ValueError, match="are not in it") as raised:
            opened.load("again")

    assert type(raised.value) is ValueError


def test_nested_load_without_a_ref_asks_nobody_from_the_worker(
    tmp_path: Path, forkserver: int, monkeypatch: pytest.MonkeyPatch
):
    """`torch.hub.load("owner/name")` in a worker takes its own files for its own name, and asks the parent else."""
    hubconf = """
        import torch

        def unasked(*_, **__):
            raise AssertionError("the worker itself asked the network")

        torch.hub.urlopen = unasked

        def value():
            return 7

        def own():
            return torch.hub.load("owner/models", "value", trust_repo=True)

        def other():
            return torch.hub.load("some/other", "value", trust_repo=False)
    """
    folder = make_repo(tmp_path / "owner" / "models", {"v1": {"hubconf.py": hubconf}})
    repo = isohub.Repo(url(folder, "v1"))

    with repo:
        assert repo.load("own") == 7
        monkeypatch.setenv("ISOHUB_OFFLINE", "1")
        with pytest.raises(UnreachableError, match="ISOHUB_OFFLINE"):
            repo.load("other")
