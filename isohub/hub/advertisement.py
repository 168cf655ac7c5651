"""`Advertisement`: what a repository tells about itself in one answer, and the two ways of reading it.

::

    read_packets       info/refs?service=git-upload-pack over HTTP, git's protocol 0 and 1: gitprotocol-http(5)
    read_ls_remote     the lines of `git ls-remote --symref`
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

__all__ = ["Advertisement", "NotGitError", "read_ls_remote", "read_packets"]

_HEX = frozenset(b"0123456789abcdefABCDEF")
_HEADS, _TAGS = "refs/heads/", "refs/tags/"
# What an empty repository sends in place of a first ref, to have a place for its capabilities.
_NO_REFS = "capabilities^{}"


class NotGitError(ValueError):
    """An answer is not what a git server sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """What a repository tells about itself in one answer.

    Attributes:
        head: The commit that HEAD stands for; None if there is none.
        default_branch: The branch that HEAD points at; None if it points at a commit.
        branches: Commit of each branch, by name.
        tags: Commit of each tag, by name; an annotated tag counts as the commit that it marks.
    """

    head: str | None = None
    default_branch: str | None = None
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def read_packets(body: bytes) -> Advertisement:
    """Read the answer of a git server that speaks HTTP.

    Raises:
        NotGitError: It is none, or it is cut short.
    """
    packets = _packets(body)
    if not packets or not packets[0].startswith(b"# service=git-upload-pack"):
        raise NotGitError("it does not begin as git's answers do")
    # Of a server that was asked for protocol 1 the first line says so.
    lines = [packet for packet in packets[1:] if packet != b"version 1"]
    first, _, capabilities = lines[0].partition(b"\0") if lines else (b"", b"", b"")
    if first.startswith(b"ERR "):
        raise NotGitError(f"the server says: {_text(first[4:])!r}")
    refs = [_text(line) for line in (first, *lines[1:]) if line and not line.startswith(b"shallow ")]
    head = next(
        (_text(item[12:]) for item in capabilities.split(b" ") if item.startswith(b"symref=HEAD:")),
        None,
    )
    return _collect([line.partition(" ") for line in refs], head)


def read_ls_remote(text: str) -> Advertisement:
    """Read what `git ls-remote --symref` prints."""
    head: str | None = None
    refs = []
    # Not splitlines(): a ref's name may hold a line break of Unicode's.
    for line in filter(None, text.split("\n")):
        value, tab, name = line.partition("\t")
        if value.startswith("ref: "):  # a clone has some below refs/remotes too
            head = value.removeprefix("ref: ") if name == "HEAD" else head
        else:
            refs.append((value, tab, name))
    return _collect(refs, head)


def _collect(refs: list[tuple[str, str, str]], target: str | None) -> Advertisement:
    head: str | None = None
    branches: dict[str, str] = {}
    tags: dict[str, str] = {}
    for commit, _, name in refs:
        if len(commit) != 40 or not _HEX.issuperset(commit.encode("utf-8", "replace")):
            if len(commit) == 64 and _HEX.issuperset(commit.encode("utf-8", "replace")):
                raise NotGitError("the repository uses SHA-256 for its commits, which isohub cannot read yet")
            raise NotGitError(f"{commit[:80]!r} is no commit")
        if name == "HEAD":
            head = commit
        elif name.startswith(_HEADS):
            branches[name.removeprefix(_HEADS)] = commit
        elif name.startswith(_TAGS):
            # An annotated tag comes twice, the second time peeled: `v1`, then `v1^{}`.
            tags[name.removeprefix(_TAGS).removesuffix("^{}")] = commit
        elif name == _NO_REFS:
            return Advertisement()
    default = target.removeprefix(_HEADS) if target and target.startswith(_HEADS) else None
    return Advertisement(head=head, default_branch=default, branches=branches, tags=tags)


def _packets(body: bytes) -> list[bytes]:
    """Split `body` into the contents of its packets: four hexadecimal digits, the length with them, and the rest."""
    packets: list[bytes] = []
    place, flushes = 0, 0
    while place < len(body):
        digits = body[place : place + 4]
        if len(digits) != 4 or not _HEX.issuperset(digits):
            raise NotGitError("it does not consist of git's packets")
        length = int(digits, 16)
        if length == 0:  # the first ends the service's name, the second the list
            flushes += 1
            place += 4
            continue
        if length < 4 or place + length > len(body):
            raise NotGitError("it is cut short")
        packets.append(body[place + 4 : place + length].removesuffix(b"\n"))
        place += length
    if flushes < 2:
        raise NotGitError("it is cut short")
    return packets


def _text(raw: bytes) -> str:
    return os.fsdecode(raw)
