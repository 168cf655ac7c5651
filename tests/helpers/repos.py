"""Real git repositories, made on the spot."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from textwrap import dedent

__all__ = ["git", "make_repo", "sample", "url", "write_files"]

_SAMPLES = Path(__file__).parent.parent / "repos"

_IDENTITY = {
    "GIT_AUTHOR_NAME": "Test", "GIT_AUTHOR_EMAIL": "test@example.invalid",
    "GIT_COMMITTER_NAME": "Test", "GIT_COMMITTER_EMAIL": "test@example.invalid",
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull,
}  # fmt: skip


def git(repo: Path, *args: str) -> str:
    """Run git in `repo` and return what it printed."""
    done = subprocess.run(
        ["git", *args], cwd=repo, env={**os.environ, **_IDENTITY}, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def write_files(folder: Path, files: dict[str, str | bytes]) -> None:
    """Write `files` (path -> content; texts are dedented) below `folder`."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(dedent(content).lstrip("\n"))


def make_repo(folder: Path, versions: dict[str, dict[str, str | bytes]]) -> Path:
    """Make a git repository with one commit and tag for each version, and return its path.

    A version's files replace all of those before it.
    """
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    for tag, files in versions.items():
        if any(folder.glob("[!.]*")):
            git(folder, "rm", "-rq", ".")
        write_files(folder, files)
        git(folder, "add", "--all", "--force")
        git(folder, "commit", "--quiet", "--message", tag)
        git(folder, "tag", tag)
    return folder


def url(repo: Path, ref: str | None = None) -> str:
    """Return the repo text of a repository on disk."""
    return f"git+file://{repo}" + (f"@{ref}" if ref else "")


def sample(name: str) -> dict[str, dict[str, str | bytes]]:
    """Return the versions of the sample repository `tests/repos/<name>`, as `make_repo` takes them."""
    return {version.name: _files(version) for version in sorted((_SAMPLES / name).iterdir())}


def _files(folder: Path) -> dict[str, str | bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
