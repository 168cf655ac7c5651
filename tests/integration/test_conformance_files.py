"""What a user of torch.hub finds, through the public functions, 17 to 24: files, processes.

The number in a test's name is that of the point, as in `test_conformance.py`.
"""

from __future__ import annotations

import io
import logging
import os
import random
import stat
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import ArchiveError
from tests.helpers.fileserver import FileServer, file_server
from tests.helpers.githost import GitHost
from tests.helpers.repos import git, make_repo, write_files
from tests.helpers.versions import SETTINGS, answer, raised, version_files

WORKING = """
    import os
    import sys

    import torch

    sys.path.insert(0, os.path.join(os.path.dirname(__file__), "src"))


    class Net(torch.nn.Module):
        def forward(self, x):
            import lazily

            print("looking", flush=True)
            return x * lazily.FACTOR

        def many(self, count):
            return torch.arange(count)


    def net():
        return Net()


    def beside():
        return torch.load(os.path.join(os.path.dirname(__file__), "weights.pt"))


    def nested(folder):
        return torch.hub.load(folder, "net", source="local")
"""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Versions 1 and 2 on main, tagged v1 and v2."""
    return make_repo(tmp_path / "srv" / "net", {f"v{value}": version_files(value) for value in (1, 2)})


@pytest.fixture
def host(tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch, forkserver: int) -> Iterator[GitHost]:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with GitHost() as server:
        server.add("owner/net", repo)
        yield server


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    with file_server() as server:
        yield server


def load(host: GitHost, text: str, **settings: Any) -> Any:
    return isohub.load(text, "net", git_host=host.url, **{"trust_repo": True, **settings})


def saved(value: float) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.full((1,), value)}, buffer)
    return buffer.getvalue()


def value_of(state: dict[str, Any]) -> float:
    return float(state["weight"][0])


# ------------------------------------------------------------------------------------ 17 to 19. files


def test_17_hostile_archive(host: GitHost, tmp_path: Path):
    """An archive that leads out of its folder is refused and leaves nothing; what was there works, as does a retry."""

    def poisoned(body: bytes) -> bytes:
        packed = io.BytesIO(body)
        with zipfile.ZipFile(packed, "a") as archive:
            archive.writestr("../../evil.py", "")
        return packed.getvalue()

    load(host, "owner/net:v1")
    before = sorted(tmp_path.rglob("hubconf.py"))
    host.misbehave("archive", change=poisoned)

    with pytest.raises(ArchiveError, match=r"evil\.py"):
        load(host, "owner/net:v2")

    assert list(tmp_path.rglob("evil.py")) == []
    assert sorted(tmp_path.rglob("hubconf.py")) == before
    assert answer(load(host, "owner/net:v1")) == [1.0, 10.0]
    host.behave()
    assert answer(load(host, "owner/net:v2")) == [2.0, 20.0]


def test_18_downloads(files: FileServer, tmp_path: Path):
    """A short body is gone on with, permissions are the umask's, and a wrong hash is torch.hub's error."""
    body, place = bytes(range(256)) * 100, tmp_path / "file"
    address = files.put("/file", body, cuts=[1000])

    isohub.download_url_to_file(address, place, progress=False)

    assert place.read_bytes() == body
    assert files.ranges() == [None, "bytes=1000-"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(place.stat().st_mode) == 0o666 & ~umask
    theirs, ours = (
        raised(lambda hub=hub: hub.download_url_to_file(address, str(place), "deadbeef", progress=False))
        for hub in (torch.hub, isohub)
    )
    assert isinstance(ours, RuntimeError)
    assert str(theirs) == str(ours) == f'invalid hash value (expected "deadbeef", got "{sha256(body).hexdigest()}")'
    assert place.read_bytes() == body
    with pytest.raises(ValueError, match="hash"):
        isohub.load_state_dict_from_url(address, check_hash=True)


def test_18_urls_of_one_base_name(files: FileServer):
    """Two URLs with one base name give their own weights; each is downloaded once."""
    first, second = (files.put(f"/{folder}/model.pth", saved(value)) for folder, value in (("a", 1.0), ("b", 2.0)))

    values = [value_of(isohub.load_state_dict_from_url(url, progress=False)) for url in (first, second, first)]

    assert values == [1.0, 2.0, 1.0]
    assert files.count() == {"/a/model.pth": 1, "/b/model.pth": 1}


def test_19_files_of_torch_hub_are_taken_when_they_prove_themselves(files: FileServer):
    """What torch.hub downloaded is used where the name holds its hash, and downloaded anew where it does not."""
    proven, unproven = saved(1.0), saved(2.0)
    name = f"model-{sha256(proven).hexdigest()[:8]}.pth"
    addresses = files.put(f"/{name}", proven), files.put("/model.pth", unproven)
    folder = Path(isohub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(proven)
    (folder / "model.pth").write_bytes(saved(3.0))

    values = [value_of(isohub.load_state_dict_from_url(url, progress=False)) for url in addresses]

    assert values == [1.0, 2.0]
    assert files.count() == {"/model.pth": 1}


# ----------------------------------------------------------------------------- 20 to 24. processes


def test_20_parent_is_unchanged(host: GitHost, repo: Path):
    """A load and a call change nothing here, and the generator stands where a load in process leaves it."""

    def state() -> dict[str, object]:
        return {
            "modules": set(sys.modules), "path": list(sys.path), "environ": dict(os.environ), "cwd": Path.cwd(),
            "dtype": torch.get_default_dtype(), "threads": torch.get_num_threads(), "random": random.getstate(),
            "warnings": list(warnings.filters), "logging": list(logging.root.handlers),
        }  # fmt: skip

    load(host, "owner/net:v1")(torch.ones(2))
    before = state()
    answer(load(host, "owner/net:v2"))
    assert state() == before
    hubconf = "import torch\n\ndef net(): return torch.nn.Linear(3, 2)\n"
    (repo / "hubconf.py").write_text(hubconf)
    git(repo, "commit", "--quiet", "--all", "--message", "draws")
    torch.manual_seed(5)
    theirs = torch.hub.load(str(repo), "net", source="local")
    expected = torch.get_rng_state()
    torch.manual_seed(5)
    ours = load(host, "owner/net:main")
    assert torch.equal(theirs.weight, ours.weight)
    assert torch.equal(expected, torch.get_rng_state())


def test_21_refs_answer_with_their_own_code(host: GitHost):
    """Two refs, loaded in both orders and called in turns from four threads, answer with their own code."""
    expected = {"v1": [1.0, 10.0], "v2": [2.0, 20.0]}
    together = threading.Barrier(4)

    def work(number: int) -> list[bool]:
        together.wait(30)
        refs = sorted(expected, reverse=bool(number % 2))
        models = {ref: load(host, f"owner/net:{ref}", verbose=False) for ref in refs}
        return [answer(models[ref]) == expected[ref] for _ in range(10) for ref in refs]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(work, range(4)))

    assert answers == [[True] * 20] * 4
    assert host.count("archive") == 2


def test_23_ways_to_name_a_folder(tmp_path: Path, host: GitHost, monkeypatch: pytest.MonkeyPatch):
    """A folder may be relative, absolute, with a slash at the end, `.`, below `~`, or a Path; edits count anew."""
    folder = tmp_path / "models"
    write_files(folder, version_files(1))
    monkeypatch.chdir(tmp_path)
    names = ["models", str(folder), f"{folder}/", "~/models", folder, Path("models")]

    answers = [answer(isohub.load(name, "net", source="local")) for name in names]
    monkeypatch.chdir(folder)
    old = isohub.load(".", "net", source="local")
    write_files(folder, version_files(2))

    assert [*answers, answer(old)] == [[1.0, 10.0]] * 7
    assert answer(isohub.load(".", "net", source="local")) == [2.0, 20.0]
    assert answer(old) == [1.0, 10.0]


def test_24_what_repositories_do(tmp_path: Path, host: GitHost, capsys: pytest.CaptureFixture[str]):
    """Imports in forward, sys.path, files beside hubconf.py, print, big outputs, nested loads: all work in a worker."""
    files: dict[str, str | bytes] = {
        "hubconf.py": WORKING, "src/lazily.py": "FACTOR = 3\n", "weights.pt": saved(8.0),
    }  # fmt: skip
    host.add("owner/working", make_repo(tmp_path / "srv" / "working", {"v1": files}))
    write_files(tmp_path / "nested", version_files(4))
    repo = isohub.Repo("owner/working:v1", git_host=host.url, trust_repo=True)

    model = repo.load("net")

    assert answer(model) == [3.0, 30.0]
    assert "looking\n" in capsys.readouterr().out
    assert torch.equal(model.many(4_000_000), torch.arange(4_000_000))
    assert value_of(repo.load("beside")) == 8.0
    assert answer(repo.load("nested", str(tmp_path / "nested"))) == [4.0, 40.0]
    assert "lazily" not in sys.modules


# --------------------------------------------------------------------------------------- what is here is fast


def test_cached_pinned_load_asks_nobody_and_list_is_quick(host: GitHost, repo: Path):
    """A pinned commit that is here loads with no request, and `list` answers in 100 ms with a warm worker."""
    commit = git(repo, "rev-parse", "v1")
    text = f"{host.url}/owner/net@{commit}"
    load(host, "owner/net:v1")
    for worker in isohub.workers():
        worker.close()
    host.forget()

    def timed() -> float:
        start = time.perf_counter()
        assert isohub.list(text, trust_repo=True, verbose=False) == ["Net", "net", "nothing_said"]
        return time.perf_counter() - start

    cold_s = timed()  # with a worker to be forked: 20 ms on a machine of two cores
    assert answer(isohub.load(text, "net", trust_repo=True)) == [1.0, 10.0]
    warm_s = sorted(timed() for _ in range(5))[2]

    assert host.requests == []
    assert warm_s < 0.1, f"{warm_s * 1e3:.0f} ms with a warm worker, {cold_s * 1e3:.0f} ms with a cold one"
