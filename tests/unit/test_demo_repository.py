"""The demo: a repository of two versions that torch.hub cannot hold in one process."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from isohub.demo import plain_torch_hub, repository
from isohub.errors import IsohubError
from tests.helpers.warm import WarmPython

# Another processor may round a sum differently and so tip one image of the 450 to either side.
ONE_IMAGE = 1.5 / 450


def git(path: Path, *arguments: str) -> str:
    """Return what a git command prints, run in `path` without anyone's configuration."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(
        ["git", *arguments], cwd=path, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def load_with_torch_hub(python: WarmPython, *checkouts: Path) -> list[dict[str, Any]]:
    """Return the report of `plain_torch_hub.py` on these checkouts, from a process of its own."""
    done = python.run([plain_torch_hub.__file__, *map(str, checkouts), str(repository.IMAGES_FILE)])
    assert done.returncode == 0, done.stderr
    report: list[dict[str, Any]] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's repository."""
    return repository.make_repository(tmp_path_factory.mktemp("demo") / "digits")


@pytest.fixture(scope="module")
def checkouts(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of each version, in a folder of its own."""
    folder = tmp_path_factory.mktemp("checkouts")
    for tag in ("v1", "v2"):
        git(folder, "clone", "--quiet", "-c", "advice.detachedHead=false", "--branch", tag, str(demo), tag)
    return {tag: folder / tag for tag in ("v1", "v2")}


class TestMakeRepository:
    """`make_repository()`."""

    def test_tags(self, demo: Path) -> None:
        """Two commits follow each other on `main`, each with a tag."""
        assert git(demo, "tag", "--list").split() == ["v1", "v2"]
        assert git(demo, "symbolic-ref", "HEAD") == "refs/heads/main"
        assert git(demo, "rev-list", "main").split() == git(demo, "rev-parse", "v2", "v1").split()

    def test_working_tree(self, demo: Path) -> None:
        """The working tree is version 2's, with nothing left to commit."""
        assert git(demo, "status", "--porcelain") == ""
        assert git(demo, "rev-parse", "HEAD") == git(demo, "rev-parse", "v2")

    def test_reproducible(self, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The commits have the same ids whatever the caller's git settings, hooks and variables are."""
        hook = tmp_path / "hooks" / "pre-commit"
        hook.parent.mkdir()
        hook.write_text("#!/bin/sh\nexit 1\n")
        hook.chmod(0o755)
        settings = tmp_path / "gitconfig"
        settings.write_text(f"[core]\n\thooksPath = {hook.parent}\n[commit]\n\tgpgSign = true\n")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
        monkeypatch.setenv("GIT_AUTHOR_DATE", "2001-01-01T00:00:00+00:00")
        monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))

        again = repository.make_repository(tmp_path / "again")

        assert git(again, "rev-parse", "v1", "v2") == git(demo, "rev-parse", "v1", "v2")
        assert not (tmp_path / "elsewhere").exists()

    def test_no_home(self, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No home folder is needed."""
        for name in ("HOME", "XDG_CONFIG_HOME", "USER", "LOGNAME"):
            monkeypatch.delenv(name, raising=False)

        again = repository.make_repository(tmp_path / "again")

        assert git(again, "rev-parse", "v2") == git(demo, "rev-parse", "v2")

    def test_files(self, demo: Path) -> None:
        """Only the files of the hub repository are committed."""
        modules = ["model/__init__.py", "model/network.py", "model/preprocess.py"]

        for tag in ("v1", "v2"):
            files = git(demo, "ls-tree", "-r", "--name-only", tag).split()
            assert files == ["hubconf.py", *modules, "weights.pt"]

    def test_relative_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A relative path is taken from the current folder, and an absolute one is returned."""
        monkeypatch.chdir(tmp_path)

        assert repository.make_repository(Path("here")) == tmp_path / "here"

    def test_folder_not_empty(self, tmp_path: Path) -> None:
        """A folder with something in it is left alone."""
        (tmp_path / "mine").write_text("")

        with pytest.raises(FileExistsError, match="not empty"):
            repository.make_repository(tmp_path)

        assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]

    def test_no_git(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a git program the error says what to install, and nothing is made."""
        monkeypatch.setenv("PATH", str(tmp_path))

        with pytest.raises(IsohubError, match="install git"):
            repository.make_repository(tmp_path / "digits")

        assert not (tmp_path / "digits").exists()

    def test_git_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """When git fails, the error says at what, and what git wrote."""
        program = tmp_path / "git"
        program.write_text("#!/bin/sh\necho 'fatal: the disk is full' >&2\nexit 128\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

        with pytest.raises(IsohubError, match=r"git init failed .* exit code 128: fatal: the disk is full"):
            repository.make_repository(tmp_path / "digits")


class TestVersions:
    """The two versions of the hub repository."""

    def test_same_names_different_code(self, checkouts: dict[str, Path]) -> None:
        """The modules have the same names in both versions, and different contents."""
        modules = {
            tag: sorted(str(file.relative_to(folder)) for file in folder.glob("model/*.py"))
            for tag, folder in checkouts.items()
        }

        assert modules["v1"] == modules["v2"]
        for name in ("model/network.py", "model/preprocess.py", "weights.pt"):
            assert (checkouts["v1"] / name).read_bytes() != (checkouts["v2"] / name).read_bytes()

    def test_weights_are_interchangeable(self, checkouts: dict[str, Path]) -> None:
        """The weights of both versions have the same names and shapes, so that mixing them up is silent."""
        import torch

        shapes = {}
        for tag, folder in checkouts.items():
            state = torch.load(folder / "weights.pt", weights_only=True)
            shapes[tag] = {name: tensor.shape for name, tensor in state.items()}

        assert shapes["v1"] == shapes["v2"]

    @pytest.mark.parametrize("tag", ["v1", "v2"])
    def test_alone(self, warm_python: WarmPython, checkouts: dict[str, Path], tag: str) -> None:
        """In a process of its own, each version reads as well as stated."""
        (only,) = load_with_torch_hub(warm_python, checkouts[tag])

        assert only["accuracy"] == pytest.approx(repository.ACCURACY[tag], abs=ONE_IMAGE)
        assert Path(only["source"]) == checkouts[tag] / "model" / "network.py"

    @pytest.mark.parametrize("order", [("v1", "v2"), ("v2", "v1")], ids=" then ".join)
    def test_torch_hub_mixes_them_up(
        self, warm_python: WarmPython, checkouts: dict[str, Path], order: tuple[str, str]
    ) -> None:
        """In one process, torch.hub silently runs the first version's code for the second one."""
        first, second = load_with_torch_hub(warm_python, *(checkouts[tag] for tag in order))

        assert first["accuracy"] == pytest.approx(repository.ACCURACY[order[0]], abs=ONE_IMAGE)
        assert second["accuracy"] < repository.ACCURACY[order[1]] - 0.2
        assert Path(second["source"]) == checkouts[order[0]] / "model" / "network.py"

    def test_nothing_written(self, warm_python: WarmPython, checkouts: dict[str, Path]) -> None:
        """The script leaves the checkouts as they were."""
        load_with_torch_hub(warm_python, checkouts["v1"])

        assert not list(checkouts["v1"].rglob("__pycache__"))


class TestTestImages:
    """`test_images()`."""

    def test_raw_pixels(self) -> None:
        """The images are raw: float32, from 0 to 16, with a label from 0 to 9 for each."""
        import torch

        images, labels = repository.test_images()

        assert images.shape == (450, 1, 8, 8)
        assert images.dtype == torch.float32
        assert (images.min().item(), images.max().item()) == (0.0, 16.0)
        assert labels.shape == (450,)
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) == set(range(10))
