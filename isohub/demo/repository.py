"""The demo as a git repository: what `isohub demo` and the tests load from, and what they measure with."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from isohub.errors import IsohubError

if TYPE_CHECKING:
    import torch

__all__ = ["ACCURACY", "IMAGES_FILE", "make_repository", "test_images"]

_DIGITS = Path(__file__).resolve().parent / "digits"

IMAGES_FILE = _DIGITS / "test_images.pt"
"""The test images: `{"images": (450, 1, 8, 8) uint8, "labels": (450,) uint8}`, written by `torch.save`."""

ACCURACY: Mapping[str, float] = MappingProxyType({"v1": 423 / 450, "v2": 442 / 450})
"""The share of the test images that each version reads right, as `tools/train_demo.py` measured it."""

# All that a commit's id depends on, apart from the files, is fixed, so that the ids are alike everywhere.
_NAME = "isohub demo"
_EMAIL = "demo@isohub.invalid"
_VERSIONS = (
    ("v1", "2025-01-15T12:00:00+00:00", "Read digits with two convolutions"),
    ("v2", "2025-06-15T12:00:00+00:00", "Normalise each image, and add a way round the second convolution"),
)


def make_repository(path: str | os.PathLike[str]) -> Path:
    """Make the demo's git repository: branch `main` with two commits, and a tag, `v1` and `v2`, on each.

    Nothing of the caller's git is used but the program: no configuration, no hooks, no `GIT_*` variables. The
    same files give the same commit ids on every machine.

    Args:
        path: The folder to make it in; made when missing, and else it must be empty.

    Returns:
        The absolute path of the repository's working tree, with `v2` checked out.

    Raises:
        FileExistsError: `path` is a file, or a folder with something in it.
        IsohubError: There is no `git` program, or it failed.
    """
    git = shutil.which("git")
    if git is None:
        raise IsohubError("The demo needs the git program, and PATH has none: install git and try again.")
    path = Path(path).absolute()
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise FileExistsError(f"The demo's repository needs an empty folder, and {path} is not empty.")
    # Without a template: the machine's own may bring hooks and ignored files.
    _run_git(git, path, "init", "--quiet", "--template=")
    # `init --initial-branch` would need git 2.28.
    _run_git(git, path, "symbolic-ref", "HEAD", "refs/heads/main")
    for tag, date, message in _VERSIONS:
        # --ignore-unmatch: before the first commit there is nothing to remove.
        _run_git(git, path, "rm", "-r", "--quiet", "--ignore-unmatch", ".")
        _copy_files(_DIGITS / tag, path)
        _run_git(git, path, "add", "--all", "--force", ".")
        _run_git(git, path, "commit", "--quiet", "--message", message, date=date)
        _run_git(git, path, "tag", tag)
    return path


def test_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the test images, `(450, 1, 8, 8)` float32 with values 0 to 16, and labels, `(450,)` int64."""
    # Here and not at the top: making a repository needs no torch, which takes seconds to import.
    import torch

    # Our own file, from our own package: no worker wrote it.
    loaded = torch.load(IMAGES_FILE, map_location="cpu", weights_only=True)  # noqa: TID251
    return loaded["images"].float(), loaded["labels"].long()


# pytest would take the public name for a test wherever a test module imports it.
test_images.__test__ = False  # type: ignore[attr-defined]


def _copy_files(source: Path, target: Path) -> None:
    """Copy the files of `source` into `target`, without byte code that someone's import left there."""
    for file in sorted(source.rglob("*")):
        if file.is_dir() or file.parent.name == "__pycache__":
            continue
        copy = target / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        # Contents alone. With the times, which an installer may set alike on all files, git could take the
        # weights of v2, which have v1's size, for v1's; an executable bit would change the commit's id.
        shutil.copyfile(file, copy)


def _run_git(git: str, path: Path, *arguments: str, date: str = "") -> None:
    """Run one git command in `path`, apart from the caller's git settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        # Git before 2.32 does not know GIT_CONFIG_GLOBAL, and looks in these two folders.
        "HOME": os.devnull,
        "XDG_CONFIG_HOME": os.devnull,
        # Git means to make SHA-256 its default.
        "GIT_DEFAULT_HASH": "sha1",
        "GIT_AUTHOR_NAME": _NAME,
        "GIT_AUTHOR_EMAIL": _EMAIL,
        "GIT_AUTHOR_DATE": date,
        "GIT_COMMITTER_NAME": _NAME,
        "GIT_COMMITTER_EMAIL": _EMAIL,
        "GIT_COMMITTER_DATE": date,
        "LC_ALL": "C",
    }
    done = subprocess.run(
        [git, *arguments],
        cwd=path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise IsohubError(
            f"git {arguments[0]} failed in {path} with exit code {done.returncode}: {done.stderr.strip()}"
        )
