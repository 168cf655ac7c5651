"""From a server to a running model: trust, one download, no request for what is here, weights, nested loads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import isohub
from isohub.errors import LockError, UntrustedRepoError
from isohub.hub.lock import Lock
from tests.helpers.fileserver import FileServer, file_server
from tests.helpers.githost import GitHost
from tests.helpers.repos import make_repo

NET = """
    import torch

    def net(url=None, **kwargs):
        model = torch.nn.Linear(2, 1)
        torch.nn.init.constant_(model.weight, {value})
        if url is not None:
            model.load_state_dict(torch.hub.load_state_dict_from_url(url, **kwargs))
        return model

    def nested(repo):
        return torch.hub.load(repo, "net", trust_repo=True)

    def itself():
        return torch.hub.load("owner/net:main", "net")
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forkserver: int) -> Iterator[GitHost]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    with GitHost() as server:
        versions = {tag: {"hubconf.py": NET.format(value=value)} for tag, value in (("v1", 1), ("v2", 2))}
        server.add("owner/net", make_repo(tmp_path / "net", versions))
        server.add("owner/other", make_repo(tmp_path / "other", {"v1": {"hubconf.py": NET.format(value=7)}}))
        yield server


@pytest.fixture
def files(host: GitHost) -> Iterator[FileServer]:
    with file_server() as server:
        yield server


def weight(model: torch.nn.Module) -> float:
    return float(model.weight.detach().flatten()[0])


def test_two_refs_of_a_server_at_once(host: GitHost):
    """Two refs of one repository on a server are fetched once each, and answer with their own code."""
    repo = f"{host.url}/owner/net"

    first, second = (isohub.load(f"{repo}:{tag}", "net", trust_repo=True) for tag in ("v1", "v2"))

    assert [weight(first), weight(second)] == [1.0, 2.0]
    assert first.isohub.commit != second.isohub.commit
    host.forget()
    assert weight(isohub.load(f"{repo}:v1", "net")) == 1.0
    assert isohub.list(f"{repo}@{second.isohub.commit}") == ["itself", "nested", "net"]
    assert host.requests == []


def test_untrusted_repository_does_not_run(host: GitHost):
    """Without a terminal and without trust nothing is run, and nothing is written down as trusted."""
    with pytest.raises(UntrustedRepoError, match="trust"):
        isohub.load(f"{host.url}/owner/net:v1", "net")

    assert isohub.workers() == []
    assert not list(Path(isohub.get_dir()).glob("*trusted_list"))


def test_torchscript_is_for_trust_in_so_many_words(host: GitHost):
    """A repository of another machine gives TorchScript when it is trusted, and from then on."""
    repo = f"{host.url}/owner/net:v1"

    with pytest.raises(UntrustedRepoError, match="trust"):
        isohub.load(repo, "net", returns="torchscript")
    assert isohub.workers() == []

    script = isohub.load(repo, "net", returns="torchscript", trust_repo=True)
    assert weight(script) == 1.0
    assert (script.isohub.repo, script.isohub.ref) == ("owner/net", "v1")
    assert weight(isohub.load(repo, "net", returns="torchscript")) == 1.0


def test_lock_refuses_another_commit(host: GitHost, tmp_path: Path):
    """With a lock, a load of another commit than the locked one is refused."""
    path = tmp_path / "isohub.lock"
    Lock().write(path)

    with pytest.raises(LockError):
        isohub.Repo(f"{host.url}/owner/net:v1", trust_repo=True, lock=path)


def test_weights_of_one_base_name_never_meet(host: GitHost, files: FileServer):
    """Weights come through this process: once for each URL, and by their URL, whatever their base name."""
    urls = [files.put(f"/{folder}/model.pth", saved(value)) for folder, value in (("a", 3.0), ("b", 4.0))]
    repo = isohub.Repo(f"{host.url}/owner/net:v1", trust_repo=True)

    first, second, again = (repo.load("net", url) for url in (*urls, urls[0]))

    assert [weight(first), weight(second), weight(again)] == [3.0, 4.0, 3.0]
    assert len(files.requests) == 2


def test_missing_weights_are_torch_hubs_error(host: GitHost, files: FileServer):
    """A file that is not there is an error of the network, which code written for torch.hub catches."""
    repo = isohub.Repo(f"{host.url}/owner/net:v1", trust_repo=True)

    with pytest.raises(OSError, match="404"):
        repo.load("net", f"http://{files.netloc}/nothing.pth")

    assert weight(repo.load("net")) == 1.0


def test_nested_loads(host: GitHost):
    """A torch.hub.load in an entrypoint gets the other repository, and for its own name its own files."""
    repo = isohub.Repo(f"{host.url}/owner/net:v2", trust_repo=True)

    assert weight(repo.load("itself")) == 2.0
    with pytest.raises(OSError, match=r"example-that-is-not-there|Cannot|cannot"):
        repo.load("nested", "example-that-is-not-there/nor-this:v1")


def saved(value: float) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.full((1, 2), value), "bias": torch.zeros(1)}, buffer)
    return buffer.getvalue()
