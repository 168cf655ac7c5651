"""The lists of trusted repositories on disk, and `Entry`, one line of them. See Note [one line, one repository]."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

from filelock import FileLock

from isohub.errors import RefError
from isohub.refs import RepoRef

__all__ = ["GITHUB", "Entry", "add", "entries", "remove"]

_logger = getLogger("isohub.hub")

GITHUB = "github.com"
_TORCH_LIST = "trusted_list"
_OWN_LIST = "isohub_trusted_list"
_FORMS = "owner/name, owner/name@<commit of 40 hex digits>, host/owner/name, host/owner/name@<commit>"
_TEXT = re.compile(r"(?P<path>[^@\s]+)(?:@(?P<commit>[0-9a-fA-F]{40}))?")
# What `quote` leaves as it is or makes. An owner or name with anything else is written percent-encoded.
_PART = re.compile(r"(?!\.\.?$)(?:[\w.~-]|%[0-9A-F]{2})+", re.ASCII)
_SCP = re.compile(r"(?:git\+)?[\w.-]+@[^/]+:")
_HOST = re.compile(r"[\w.-]+(?::\d+)?|\[[0-9a-f:]+\](?::\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A repository that is trusted, or one commit of it, or (in ISOHUB_TRUST) all below an owner or host.

    Attributes:
        host: Host name, with its port if it has one.
        path: `owner/name`, percent-encoded; it ends in `*` for all that begins so.
        commit: 40 hexadecimal digits; None for every commit.
    """

    host: str
    path: str
    commit: str | None = None

    @classmethod
    def of(cls, repo: RepoRef) -> Entry:
        """Return the entry for all commits of a repository."""
        # Encoded, so that no name of a repository can be read as a pattern, a commit or a second line.
        return cls(host=repo.host, path=quote(os.fsencode(f"{repo.owner}/{repo.name}"), safe="/"))

    @classmethod
    def parse(cls, text: str, *, pattern: bool = False) -> Entry:
        """Read what `str` makes, or what a user wrote.

        Args:
            text: One of `owner/name`, `host/owner/name`, or a URL (`git+https://...`, `https://...`,
                `git@host:...`), with or without `@commit`. Two parts are on github.com, unless the first has
                a dot or a port, as no owner there can.
            pattern: Whether the last part may be `*`.

        Raises:
            RefError: It is none of these, or names a branch or tag, which may move.
        """
        if "://" in text or _SCP.match(text):
            return cls._of_url(text)
        match = _TEXT.fullmatch(text)
        parts = match["path"].split("/") if match else []
        has_host = len(parts) > 2 or (len(parts) == 2 and _looks_like_host(parts[0]))
        host = parts.pop(0).lower() if has_host else GITHUB
        stars = int(pattern and len(parts) > int(not has_host) and parts[-1] == "*")
        named = parts[: len(parts) - stars]
        if match is None or not _HOST.fullmatch(host) or not all(map(_PART.fullmatch, named)):
            raise _cannot_read(text, pattern=pattern)
        if len(parts) < 2 and not stars:
            raise _cannot_read(text, pattern=pattern)
        return cls(host=host, path="/".join(parts), commit=match["commit"] and match["commit"].lower())

    @classmethod
    def _of_url(cls, text: str) -> Entry:
        repo = RepoRef.parse(text)
        if repo.ref is not None or not repo.host:
            raise _cannot_read(text, pattern=False)
        entry = cls.of(repo)
        return cls(host=entry.host, path=entry.path, commit=repo.commit)

    def __str__(self) -> str:
        """Return the shortest text that `parse` reads back as the same."""
        is_short = self.host == GITHUB and self.path.count("/") == 1 and not _looks_like_host(self.path)
        return self._full if not is_short else self._full.removeprefix(f"{GITHUB}/")

    def covers(self, repo: RepoRef, commit: str | None) -> bool:
        """Return whether this entry trusts `commit` of a repository."""
        return self.includes(replace(Entry.of(repo), commit=commit))

    def includes(self, other: Entry) -> bool:
        """Return whether what `other` names is trusted by this entry already."""
        if other.host != self.host or self.commit not in (None, other.commit):
            return False
        if self.path.endswith("*"):
            return other.path.startswith(self.path.removesuffix("*"))
        return other.path == self.path

    @property
    def _full(self) -> str:
        return f"{self.host}/{self.path}" + (f"@{self.commit}" if self.commit else "")

    @property
    def _torch_line(self) -> str | None:
        """The line that stands for this in torch.hub's list; None if no line there is this one's alone."""
        owner, _, name = self.path.partition("/")
        if self.host != GITHUB or self.commit or "_" in owner or "/" in name or "%" in self.path:
            return None
        return f"{owner}_{name}"


def entries(folder: Path) -> tuple[Entry, ...]:
    """Return what both lists in a hub folder hold, in their order."""
    found: dict[Entry, None] = {}
    for line in _lines(folder / _TORCH_LIST):
        owner, underscore, name = line.partition("_")
        if underscore and _PART.fullmatch(owner) and _PART.fullmatch(name):
            found[Entry(host=GITHUB, path=f"{owner}/{name}")] = None
    for line in _lines(folder / _OWN_LIST):
        try:
            found[Entry.parse(line)] = None
        except RefError as error:
            _logger.warning("a line of %s is left out: %s", folder / _OWN_LIST, error)
    return tuple(found)


def add(entry: Entry, folder: Path) -> bool:
    """Write an entry down in the list that can hold it; return whether it is new.

    Raises:
        OSError: The list cannot be written.
    """
    line = entry._torch_line
    name, line = (_OWN_LIST, entry._full) if line is None else (_TORCH_LIST, line)
    with _locked(folder):
        if line in _lines(folder / name):
            return False
        # Added at the end in one write, as torch.hub does: it knows no locks, and a line that it adds at
        # the same time would be lost if the file were made anew.
        with (folder / name).open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            start = b"\n" if file.read(1) not in (b"", b"\n") else b""
            file.write(start + os.fsencode(line) + b"\n")
        return True


def remove(entry: Entry, folder: Path) -> tuple[Entry, ...]:
    """Take an entry out of the lists, and with a repository all of its commits; return what was there.

    Raises:
        OSError: A list cannot be written.
    """

    def is_meant(one: Entry) -> bool:
        return one == entry or (entry.commit is None and (one.host, one.path) == (entry.host, entry.path))

    with _locked(folder):
        gone = tuple(filter(is_meant, entries(folder)))
        lines = {one._full for one in gone} | {one._torch_line for one in gone} | {str(one) for one in gone}
        for name in (_TORCH_LIST, _OWN_LIST) if gone else ():
            kept = [line for line in _lines(folder / name) if line not in lines]
            if kept != _lines(folder / name):
                _write(folder / name, kept)
        return gone


def _looks_like_host(text: str) -> bool:
    owner = text.partition("/")[0]
    return "." in owner or ":" in owner


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return [line for line in (os.fsdecode(raw).strip() for raw in content.split(b"\n")) if line]


def _write(path: Path, lines: list[str]) -> None:
    real = path.resolve()  # a link stays one
    temporary = real.with_name(f".{real.name}.{uuid4().hex}")
    try:
        temporary.write_bytes(b"".join(os.fsencode(line) + b"\n" for line in lines))
        temporary.chmod(real.stat().st_mode & 0o777)
        temporary.replace(real)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    locks = folder / "isohub" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / "trust.lock", poll_interval=0.01):
        yield


def _cannot_read(text: str, *, pattern: bool) -> RefError:
    patterns = ", owner/* or host/*" if pattern else ""
    return RefError(f"{text!r} names no repository or commit to trust. Allowed: {_FORMS}{patterns}", text=text)
