"""What a worker is given: `Isolation`, its environment, its path, its folders, and which loads share it."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub import Isolation
from isohub.errors import BrokenWorkerError, WorkerClosedError, WorkerStartError, WorkerTimeoutError
from tests.helpers.programs import Program, wait_for_end
from tests.helpers.repos import git, make_repo, url, write_files

RepoOf = Callable[..., str]

# What the worker sees, told by the repository itself.
TELL = """
    import os, sys
    import torch

    def environ():
        with open("/proc/self/environ", "rb") as file:
            started_with = file.read().decode()
        return dict(os.environ), started_with

    def place():
        return {"path": list(sys.path), "cwd": os.getcwd(), "argv": list(sys.argv), "root": os.path.dirname(__file__),
                "files": os.listdir(), "modules": sorted(sys.modules), "threads": torch.get_num_threads()}

    def net():
        torch.manual_seed(0)
        return torch.nn.Linear(2, 2)
"""


def test_setup_runs_before_hubconf(repo_of: RepoOf):
    """A shim that `setup` installs is there when hubconf.py is imported, and only in that worker."""
    repo = repo_of("""
        import old_package

        def version():
            return old_package.VERSION
    """)

    def setup() -> None:
        shim = types.ModuleType("old_package")
        shim.VERSION = version  # type: ignore[attr-defined]
        sys.modules["old_package"] = shim

    version = "1.0 of the closure"

    assert isohub.load(repo, "version", isolate=Isolation(setup=setup)) == "1.0 of the closure"
    assert "old_package" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="old_package"):
        isohub.load(repo, "version")


def test_setup_may_be_a_lambda(repo_of: RepoOf):
    """`setup` may be a lambda that holds values of its surroundings."""
    repo = repo_of("import torch\ndef dtype():\n    return torch.get_default_dtype()\n")
    dtype = torch.float64

    loaded = isohub.load(repo, "dtype", isolate=Isolation(setup=lambda: torch.set_default_dtype(dtype)))

    assert loaded is torch.float64
    assert torch.get_default_dtype() is torch.float32


def test_setup_sees_its_worker(repo_of: RepoOf):
    """`setup` runs when the worker's path, environment and folder are as they will be."""
    repo = repo_of({"hubconf.py": "import os\ndef seen():\n    return os.environ['SEEN']\n", "sibling.py": "X = 3"})

    def setup() -> None:
        import sibling  # type: ignore[import-not-found]

        os.environ["SEEN"] = f"{sibling.X} {os.environ['GIVEN']}"

    assert isohub.load(repo, "seen", isolate=Isolation(setup=setup, env={"GIVEN": "given"})) == "3 given"
    assert "SEEN" not in os.environ


def test_variables_are_given_and_taken(repo_of: RepoOf, monkeypatch: pytest.MonkeyPatch):
    """`env` adds, replaces and, with None, takes away; nothing of it is seen here."""
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("TZ", "UTC")
    repo = repo_of(TELL)

    plain, _ = isohub.load(repo, "environ")
    changed, _ = isohub.load(repo, "environ", isolate=Isolation(env={"MINE": "1", "LANG": "C", "TZ": None}))

    assert (plain["LANG"], plain["TZ"]) == ("C.UTF-8", "UTC")
    assert (changed["MINE"], changed["LANG"]) == ("1", "C")
    assert "TZ" not in changed
    assert plain.keys() - changed.keys() == {"TZ"}
    assert "MINE" not in os.environ


def test_nothing_else_of_the_program_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A worker sees neither the program's secrets nor its path, folder, command line or modules."""
    secrets = {"X_TOKEN": "s3cr3t-1", "GITHUB_TOKEN": "s3cr3t-2", "HF_TOKEN": "s3cr3t-3", "TORCH_API_KEY": "s3cr3t-4",
               "DATABASE_URL": "s3cr3t-5", "AWS_SECRET_ACCESS_KEY": "s3cr3t-6"}  # fmt: skip
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    repo = url(make_repo(tmp_path / "owner" / "repo", {"v1": {"hubconf.py": TELL}}), "v1")
    mine = tmp_path / "mine"
    write_files(mine, {
        "users_module.py": "",
        "program.py": f"""
            import json
            import isohub, users_module

            (environ, started_with), place = (isohub.load({repo!r}, name) for name in ("environ", "place"))
            print(json.dumps({{"environ": environ, "started_with": started_with, **place}}))
        """,
    })  # fmt: skip

    with closing(Program([str(mine / "program.py"), "--secret", "s3cr3t-7"], tmp_path / "cwd")) as program:
        seen = program.told()
        assert program.end() == (0, "", "")

    assert not secrets.keys() & seen["environ"].keys()
    assert "s3cr3t" not in str(seen)
    assert seen["environ"]["PATH"] == os.environ["PATH"]
    assert "PATH=" in seen["started_with"]
    assert seen["path"][0] == seen["root"]
    assert not {"", str(mine), str(tmp_path / "cwd")} & set(seen["path"])
    assert seen["cwd"] not in (str(tmp_path / "cwd"), str(mine), seen["root"])
    assert seen["files"] == []
    assert seen["argv"] == [f"{seen['root']}/hubconf.py"]
    assert not {"users_module", "isohub.api", "isohub.supervisor.worker"} & set(seen["modules"])


def test_path_holds_for_life(repo_of: RepoOf):
    """A module that forward imports late is found, long after the load."""
    repo = repo_of({
        "hubconf.py": """
            import torch

            class Net(torch.nn.Module):
                def forward(self, x):
                    from late.factor import FACTOR

                    return x * FACTOR

            def net():
                return Net()
        """,
        "late/factor.py": "FACTOR = 7",
    })  # fmt: skip
    model = isohub.load(repo, "net")
    isohub.load(repo, "net")

    assert model(torch.ones(2)).tolist() == [7.0, 7.0]


def test_threads(repo_of: RepoOf):
    """A worker has as many threads as torch has here, or as it was told."""
    repo = repo_of(TELL)

    assert isohub.load(repo, "place")["threads"] == torch.get_num_threads()
    assert isohub.load(repo, "place", isolate=Isolation(threads=1))["threads"] == 1
    assert isohub.load(repo, "place", isolate=Isolation(threads=3))["threads"] == 3


def test_hub_folder_leads_to_this_checkout(tmp_path: Path, forkserver: int):
    """Code that looks for itself in torch.hub's folder, under whatever ref, finds the ref that was loaded."""
    hubconf = """
        import os
        import torch

        def weights(entry):
            with open(os.path.join(torch.hub.get_dir(), entry, "files", "weights.txt")) as file:
                return file.read()

        def folder():
            return torch.hub.get_dir()
    """
    versions = {tag: {"hubconf.py": hubconf, "files/weights.txt": f"weights of {tag}"} for tag in ("v1", "v2")}
    repo = make_repo(tmp_path / "owner" / "repo", versions)

    for tag in ("v1", "v2"):
        for entry in (f"owner_repo_{tag}", "owner_repo_main", "owner_repo_master"):
            assert isohub.load(url(repo, tag), "weights", entry) == f"weights of {tag}"
    folders = [isohub.load(url(repo, tag), "folder") for tag in ("v1", "v2")]
    assert len({*folders, torch.hub.get_dir()}) == 3


def pid_of(repo: str, **settings: Any) -> int:
    return isohub.load(repo, "net", isolate=Isolation(**settings) if settings else True).isohub.pid


def test_same_commit_shares_a_worker(tmp_path: Path, forkserver: int):
    """Loads of one commit with equal settings share a worker, by whatever ref; another commit has another."""
    path = make_repo(tmp_path / "owner" / "repo", {"v1": {"hubconf.py": TELL}, "v2": {"hubconf.py": TELL + "\n"}})
    git(path, "tag", "same", "v1")

    first = pid_of(url(path, "v1"))

    assert first == pid_of(url(path, "v1"))
    assert first == pid_of(url(path, "same"))
    assert first == pid_of(url(path, git(path, "rev-parse", "v1")))
    assert first != pid_of(url(path, "v2"))
    assert len(isohub.workers()) == 2


def test_other_settings_have_another_worker(repo_of: RepoOf):
    """Each way of setting a worker up has a worker of its own, which the same settings find again."""
    repo = repo_of(TELL)

    def setup() -> None:
        pass

    ways: list[dict[str, Any]] = [{}, {"env": {"A": "1"}}, {"env": {"A": None}}, {"threads": 1}, {"setup": setup}]
    pids = [pid_of(repo, **way) for way in ways]

    assert len(set(pids)) == len(ways)
    assert pids == [pid_of(repo, **way) for way in ways]
    assert pids[0] == pid_of(repo, start_timeout_s=30)  # only how long to wait, not what to start


def test_dedicated_worker_is_ones_own(repo_of: RepoOf):
    """With `dedicated` every load has a new worker, which nobody else gets."""
    repo = repo_of(TELL)
    shared = pid_of(repo)

    one, two = pid_of(repo, dedicated=True), pid_of(repo, dedicated=True)

    assert len({shared, one, two}) == 3
    assert shared == pid_of(repo)


def test_timeout_is_each_calls(repo_of: RepoOf):
    """`timeout_s` is the time of one call: three that take half of it each are fine, one that hangs is killed."""
    repo = repo_of("""
        import threading
        import torch

        class Net(torch.nn.Module):
            def forward(self, x, wait_s):
                threading.Event().wait(wait_s)
                return x

        def net():
            return Net()
    """)
    model = isohub.load(repo, "net", isolate=Isolation(timeout_s=1.5))
    for _ in range(3):
        model(torch.ones(1), 0.6)

    with pytest.raises(WorkerTimeoutError, match=r"did not answer within 1\.5 s"):
        model(torch.ones(1), 1000.0)
    with pytest.raises(WorkerTimeoutError):
        model(torch.ones(1), 0.0)
    wait_for_end(model.isohub.pid)


def test_start_timeout_is_the_starts(repo_of: RepoOf):
    """`start_timeout_s` bounds how long a worker takes to become ready, and no call."""
    repo = repo_of(TELL)

    with pytest.raises(WorkerStartError, match="did not become ready"):
        isohub.load(repo, "net", isolate=Isolation(start_timeout_s=1e-6))
    assert isohub.workers() == []


def test_repo_ends_its_worker(repo_of: RepoOf):
    """The end of `with` ends the worker; its modules keep their weights, and refuse to be called."""
    repo = repo_of(TELL)
    with isohub.Repo(repo) as handle:
        model = handle.load("net")
        assert handle.list() == ["environ", "net", "place"]
        assert model(torch.ones(2)).shape == (2,)
        (worker,) = isohub.workers()

    wait_for_end(worker.pid)
    assert isohub.workers() == []
    assert model.weight.shape == (2, 2)
    with pytest.raises(WorkerClosedError, match="was closed"):
        model(torch.ones(2))


def test_repo_leaves_a_shared_worker(repo_of: RepoOf):
    """The end of `with` does not end a worker that others use."""
    repo = repo_of(TELL)
    outside = isohub.load(repo, "net")
    with isohub.Repo(repo) as one, isohub.Repo(repo) as two:
        inside = one.load("net")
        assert two.load("net").isohub.pid == inside.isohub.pid == outside.isohub.pid

    assert outside(torch.ones(2)).shape == (2,)


def test_repo_starts_again_after_a_crash(repo_of: RepoOf):
    """A handle whose worker died loads from a new one, and ends that at the end of `with`."""
    repo = repo_of(TELL)
    with isohub.Repo(repo) as handle:
        model = handle.load("net")
        isohub.workers()[0].kill()
        wait_for_end(model.isohub.pid)
        with pytest.raises(BrokenWorkerError, match="SIGKILL"):
            model(torch.ones(2))
        again = handle.load("net")
        assert torch.equal(again.weight, model.weight)
        assert again.isohub.pid != model.isohub.pid

    assert isohub.workers() == []


def test_edits_of_a_working_tree(tmp_path: Path, forkserver: int):
    """An edit is seen by the next load, also one of the same size at once, and not by a loaded model."""
    hubconf = """
        import torch
        from factor import FACTOR

        class Net(torch.nn.Module):
            def forward(self, x):
                return x * FACTOR

        def net():
            return Net()
    """
    write_files(tmp_path / "tree", {"hubconf.py": hubconf, "factor.py": "FACTOR = 2"})
    before = isohub.load(tmp_path / "tree", "net")
    same = isohub.load(tmp_path / "tree", "net")
    with isohub.Repo(tmp_path / "tree") as repo:
        assert repo.load("net")(torch.ones(1)).item() == 2.0
        write_files(tmp_path / "tree", {"factor.py": "FACTOR = 3"})
        assert repo.load("net")(torch.ones(1)).item() == 3.0

    after = isohub.load(str(tmp_path / "tree"), "net", source="local")

    assert before.isohub.pid == same.isohub.pid
    assert [before(torch.ones(1)).item(), after(torch.ones(1)).item(), same(torch.ones(1)).item()] == [2.0, 3.0, 2.0]
    assert sorted(path.name for path in (tmp_path / "tree").iterdir()) == ["factor.py", "hubconf.py"]
