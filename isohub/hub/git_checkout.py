"""The files of a commit by way of git: shallow, with submodules, and with what Git LFS keeps elsewhere."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urljoin, urlsplit

from isohub.errors import FetchError
from isohub.hub import git, tree
from isohub.hub.progress import Progress
from isohub.servers import is_loopback

__all__ = ["Brought", "allowed", "checkout", "missing_submodules", "pointers", "resolve_pointers"]

_logger = logging.getLogger("isohub.hub")

_MAX_DEPTH = 5  # of submodules in submodules: a repository can have itself as one
_MAX_SUBMODULES = 200
_LFS = b"version https://git-lfs.github.com/spec/v1\n"
_MAX_POINTER_BYTES = 1024  # gitattributes of LFS say so
_PATH = re.compile(r'^\s*path\s*=\s*"?(.*?)"?\s*$', re.MULTILINE)

# upload-pack, the side of git that reads the repository, is started by git without the `-c` settings of ours:
# - safe.directory: a repository may belong to another user, such as one of /srv that all may read. Git
#   refuses those because their configuration could name programs to run; upload-pack runs none, but ...
# - protocol.allow: ... before git 2.45 that of a partial clone fetches what is missing, with such programs.
# - uploadpack.allowAnySHA1InWant: a commit is asked for by its hash, and need not be a tip.
UPLOAD_PACK = (
    "--upload-pack=git -c 'safe.directory=*' -c protocol.allow=never -c uploadpack.allowAnySHA1InWant=true upload-pack"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """Where the files of a commit came from, and what did not come along.

    Attributes:
        url: Where they came from.
        way: How: an archive is what its server says, and what git brings is held against the commit.
        submodules: Paths of submodules whose folders are empty.
        pointers: Paths of Git LFS pointers in place of the files that they stand for.
    """

    url: str
    way: Literal["archive", "git"]
    submodules: tuple[str, ...] = ()
    pointers: tuple[str, ...] = ()


def allowed(url: str) -> list[str]:
    """Return the settings with which git speaks the protocol of `url`, and no other."""
    scheme = url.partition("://")[0]
    # One redirected from https may not end at plain http, nor a submodule of a stranger's in a folder of ours.
    schemes = {"file": ["file"], "http": ["http", "https"]}.get(scheme, ["https", "ssh"])
    return [part for name in ("", *schemes) for part in ("-c", _allow(name))]


def _allow(scheme: str) -> str:
    return f"protocol.{scheme}.allow=always" if scheme else "protocol.allow=never"


def remote_of(url: str) -> str | None:
    """Return `url` if it lies on another machine, as `git.run` takes it."""
    return None if url.startswith("file://") else url


def upload_pack(url: str) -> list[str]:
    """Return the arguments that start the other side, where it is this machine's."""
    return [UPLOAD_PACK] if url.startswith("file://") else []


def checkout(url: str, commit: str, files: Path, scratch: Path, *, depth: int = 0) -> tuple[str, ...]:
    """Put the files of a commit into the empty folder `files`, submodules included.

    Returns:
        Paths of the submodules that could not be brought.

    Raises:
        FetchError: The commit cannot be brought.
    """
    store = scratch / f"git-{depth}-{len(os.listdir(scratch))}"  # noqa: PTH208
    git.run(["init", "--quiet", "--bare", "--template=", "--", str(store)])
    in_store = [f"--git-dir={store}", f"--work-tree={files}"]
    with _progress(url, store) as waiting:
        _fetch(in_store, url, commit, files, waiting)
    git.run([*in_store, "checkout", "--quiet", "--force", "--detach", commit, "--"], cwd=files)
    entries = git.run([*in_store, "ls-tree", "-r", "-z", "--full-tree", commit], cwd=files).split("\0")
    modules = {entry.partition("\t")[2]: entry.split()[2] for entry in entries if entry.startswith("160000 ")}
    if not modules:
        return ()
    urls = _urls_of_submodules(files)
    missing: list[str] = []
    for path, module_commit in modules.items():
        try:
            full = _absolute(url, urls.get(path, ""))
            missing += _submodule(full, module_commit, files, path, scratch=scratch, depth=depth)
        except FetchError as error:
            _logger.warning("The submodule %r of %s cannot be fetched: %s", path, url, error)
            tree.empty(files / path)
            missing.append(path)
    return tuple(missing)


@contextmanager
def _progress(url: str, store: Path) -> Iterator[Callable[[], None]]:
    """Yield what tells, whenever it is called, how much git has brought into `store`."""
    with Progress(url.rpartition("/")[2]) as bar:

        def tell() -> None:
            with suppress(OSError):  # a temporary file that has just got its name
                bar.stands_at(tree.measure(store)[1], None)  # of how much, git alone knows

        yield tell


def _fetch(in_store: list[str], url: str, commit: str, files: Path, waiting: Callable[[], None]) -> None:
    options = ["--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head"]
    fetch = [*allowed(url), *in_store, "fetch", *options]
    try:
        command = [*fetch, "--depth=1", *upload_pack(url), "--", url, commit]
        git.run(command, cwd=files, remote=remote_of(url), waiting=waiting)
    except git.GitError as error:
        if not re.search(r"not our ref|unadvertised object|no such remote ref|dumb http", error.stderr):
            raise
        if remote_of(url) is None:
            raise
        # A server that gives only what has a name: all names are fetched, and the commit is among their past.
        refs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
        git.run([*fetch, "--", url, *refs], cwd=files, remote=url, waiting=waiting)


def _submodule(url: str | None, commit: str, files: Path, path: str, *, scratch: Path, depth: int) -> list[str]:
    place = files / path
    is_inside = Path(os.path.realpath(place)).is_relative_to(os.path.realpath(files))
    if url is None or not is_inside or depth >= _MAX_DEPTH or len(os.listdir(scratch)) > _MAX_SUBMODULES:  # noqa: PTH208
        return [path]
    place.mkdir(parents=True, exist_ok=True)
    return [f"{path}/{name}" for name in checkout(url, commit, place, scratch, depth=depth + 1)]


def _absolute(parent_url: str, url: str) -> str | None:
    """Return the URL of a submodule; None if one of a server leads to this machine, or by a way that is not ours."""
    scp = re.fullmatch(r"([\w.-]+@[\w.-]+):(?!//)([^:]+)", url)
    if scp:
        url = f"ssh://{scp[1]}/{scp[2].lstrip('/')}"
    if url.startswith(("./", "../")):
        scheme = parent_url.partition("://")[0]
        # urljoin knows no ssh and joins file: as it should; the parent is a folder.
        joined = urljoin(f"https{parent_url.rstrip('/').removeprefix(scheme)}/", url)
        url = scheme + joined.removeprefix("https")
    elif url.startswith("/"):
        url = f"file://{url}"
    parts = urlsplit(url)
    if parts.scheme == "http":
        return url if is_loopback(parts.netloc) and parent_url.startswith(("http://", "file://")) else None
    if parts.scheme == "file":
        return url if parent_url.startswith("file://") else None
    return url if parts.scheme in {"https", "ssh"} else None


def _urls_of_submodules(files: Path) -> dict[str, str]:
    if not (files / ".gitmodules").is_file() or (files / ".gitmodules").is_symlink():
        return {}
    listing = ["config", "--null", "--file", str(files / ".gitmodules"), "--get-regexp", r"^submodule\..*\.(path|url)$"]
    try:
        pairs = [entry.partition("\n") for entry in git.run(listing, cwd=files).split("\0") if entry]
    except git.GitError as error:  # it has none, or cannot be read
        _logger.warning("%s: %s", files / ".gitmodules", error)
        return {}
    # submodule.<name>.path: the name may hold dots
    values = {key: value for key, _, value in pairs}
    return {
        value.rstrip("/"): values[f"{key.removesuffix('.path')}.url"]
        for key, value in values.items()
        if key.endswith(".path") and f"{key.removesuffix('.path')}.url" in values
    }


def missing_submodules(files: Path) -> tuple[str, ...]:
    """Return the paths of submodules that an archive names, in whose place it has empty folders at best."""
    try:
        text = (files / ".gitmodules").read_text("utf-8", "replace")
    except OSError:
        return ()
    inside = [path for path in _PATH.findall(text) if not {"", ".", ".."} & set(path.split("/"))]
    return tuple(path for path in inside if not (files / path).is_dir() or not any((files / path).iterdir()))


def pointers(files: Path) -> tuple[str, ...]:
    """Return the paths of Git LFS pointers among `files`."""
    found = []
    for path, entry in tree.files_of(files):
        if entry.is_symlink() or not len(_LFS) < entry.stat(follow_symlinks=False).st_size < _MAX_POINTER_BYTES:
            continue
        with Path(entry.path).open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                found.append(path)
    return tuple(sorted(found))


def resolve_pointers(url: str, files: Path, found: tuple[str, ...], scratch: Path) -> tuple[str, ...]:
    """Put in place of Git LFS pointers what they stand for, if there is a `git lfs`.

    Returns:
        The pointers that are left.
    """
    if not found or shutil.which("git-lfs") is None or not url.startswith(("https://", "http://")):
        return found
    store = scratch / "lfs"
    git.run(["init", "--quiet", "--bare", "--template=", "--", str(store)])
    # The repository's own .lfsconfig could name another server: this setting goes before it.
    server = f"lfs.url={url.removesuffix('.git')}.git/info/lfs"
    # Of its own accord it tries eight times, for half a minute a file.
    smudge = ["-c", server, "-c", "lfs.transfer.maxRetries=2", f"--git-dir={store}", "lfs", "smudge"]
    with _progress(url, store) as waiting:
        content = scratch / "content"
        return tuple(path for path in found if not _resolve_pointer(smudge, url, files / path, content, waiting))


def _resolve_pointer(smudge: list[str], url: str, place: Path, content: Path, waiting: Callable[[], None]) -> bool:
    pointer = place.read_bytes()
    try:
        with content.open("wb") as output:
            git.run(smudge, cwd=content.parent, remote=url, stdin=pointer, stdout=output, waiting=waiting)
    except git.GitError as error:
        _logger.warning("Git LFS cannot bring %s: %s", place.name, error)
        return False
    with content.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:  # it gives the pointer back where it may not ask, or knows no answer
            return False
    content.chmod(place.stat().st_mode & 0o777)
    content.replace(place)
    return True
