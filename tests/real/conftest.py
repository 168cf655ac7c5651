"""Published repositories, brought by pip: kept in pytest's cache folder, unpacked and put under git on the spot."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

import isohub
from tests.helpers.repos import make_repo, url
from tests.helpers.warm import WarmPython
from tests.real.cases import CASES

Versions = dict[str, Path]


@pytest.fixture(scope="session")
def bring(pytestconfig: pytest.Config) -> Callable[..., Path]:
    """A function that returns the unpacked files of a release, which pip downloads the first time."""
    folder = pytestconfig.cache.mkdir("published")

    def release(project: str, version: str, *, sdist: bool = False) -> Path:
        kept = folder / f"{project}-{version}"
        with filelock.FileLock(f"{kept}.lock"):
            if not kept.is_dir():
                fresh = folder / f"{project}-{version}.new"
                subprocess.run(["rm", "-rf", fresh], check=True)
                _unpack(_download(project, version, fresh, sdist=sdist), fresh / "files")
                (fresh / "files").rename(kept)
        return kept

    return release


def _download(project: str, version: str, folder: Path, *, sdist: bool) -> Path:
    """Have pip download a release; return the file."""
    # pip asks the build backend of an sdist for its name. Ours is installed, and serves theirs.
    kind = ["--no-binary=:all:", "--no-build-isolation"] if sdist else ["--only-binary=:all:"]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *kind,
        f"--dest={folder}", f"{project}=={version}",
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    if done.returncode != 0:
        pytest.fail(
            f"pip cannot download {project} {version}, which this test runs the code of; it needs a package index:\n"
            + done.stderr[-2000:],
            pytrace=False,
        )
    (file,) = folder.iterdir()
    return file


def _unpack(file: Path, folder: Path) -> None:
    """Unpack a wheel, or what is in the one top folder of an sdist."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(folder)
        return
    with tarfile.open(file) as sdist:
        sdist.extractall(file.parent / "sdist", filter="data")
    (top,) = (file.parent / "sdist").iterdir()
    top.rename(folder)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Versions]]:
    """A function that makes one git repository of several releases, each a tag, and a folder of each.

    The folders are what plain torch.hub loads.
    """

    def build(name: str, releases: dict[str, Path], hubconf: str | None = None) -> tuple[Path, Versions]:
        base = tmp_path_factory.mktemp("published")
        versions: dict[str, dict[str, str | bytes]] = {}
        for tag, files in releases.items():
            versions[tag] = {
                str(path.relative_to(files)): path.read_bytes()
                for path in files.rglob("*")
                if path.is_file() and ".dist-info" not in str(path)
            }
            if hubconf is not None:
                versions[tag]["hubconf.py"] = hubconf
        repo = make_repo(base / name, versions)
        folders = {}
        for tag in releases:
            folders[tag] = base / "folders" / tag
            subprocess.run(["git", "clone", "-q", "--branch", tag, repo, folders[tag]], check=True, capture_output=True)
        return repo, folders

    return build


@pytest.fixture
def plain_hub(tmp_path: Path, warm_python: WarmPython) -> Callable[..., list[list[Any]]]:
    """A function that uses folders by plain torch.hub: each group of them in one fresh process."""

    def run(case: str, arguments: dict[str, Any], *groups: list[Path]) -> list[list[Any]]:
        program = Path(__file__).with_name("plain_hub.py")
        running = []
        for number, folders in enumerate(groups):
            out = tmp_path / f"{number}.pt"
            torch.save(arguments, out.with_suffix(".arguments"))
            arguments_there = [str(one) for one in (program, case, out, *folders)]
            running.append((warm_python.start(arguments_there, cwd=tmp_path), out))
        for process, _ in running:
            told = process.communicate(timeout=100)
            assert process.returncode == 0, told
        results = [torch.load(out, weights_only=False) for _, out in running]
        assert not [result[0] for result in results if len(result) == 1 and isinstance(result[0], str)]
        return results

    return run


@pytest.fixture
def isolated(forkserver: int) -> Callable[..., list[Any]]:
    """A function that loads all refs at once, then uses each, and the first one once more."""

    def run(case_name: str, arguments: dict[str, Any], repo: Path, tags: list[str]) -> list[Any]:
        case = CASES[case_name]
        isolation = isohub.Isolation(setup=case.setup, threads=1)

        def loader(tag: str) -> Callable[..., Any]:
            return lambda entrypoint, **keywords: isohub.load(url(repo, tag), entrypoint, isolate=isolation, **keywords)

        loaded = [case.load(loader(tag)) for tag in tags]
        return [case.use(value, **arguments) for value in (*loaded, loaded[0])]

    return run
