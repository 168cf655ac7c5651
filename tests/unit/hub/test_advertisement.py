"""The list of refs that a git server sends over HTTP: read whole, or refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from isohub.hub.advertisement import Advertisement, NotGitError, read_ls_remote, read_packets

SERVICE = b"001e# service=git-upload-pack\n0000"


def packet(text: bytes) -> bytes:
    return f"{len(text) + 4:04x}".encode() + text


def answer(*lines: bytes) -> bytes:
    return SERVICE + b"".join(map(packet, lines)) + b"0000"


def advertised(path: Path, protocol: str = "") -> bytes:
    """What git itself sends for a repository."""
    command = ["git", "upload-pack", "--stateless-rpc", "--http-backend-info-refs", str(path)]
    return SERVICE + subprocess.run(command, env={"GIT_PROTOCOL": protocol}, check=True, capture_output=True).stdout


@pytest.mark.parametrize("protocol", ["", "version=1"])
def test_reads_what_git_sends(repository, protocol: str) -> None:
    """The answer of git itself, in protocol 0 and 1, tells as much as `git ls-remote` does."""
    repository.git("tag", "--annotate", "full", "--message", "x")
    repository.git("branch", "feat/x@é")
    repository.commit("second")
    repository.git("update-ref", "refs/pull/1/head", "HEAD")

    found = read_packets(advertised(repository.path, protocol))

    assert found == read_ls_remote(repository.git("ls-remote", "--symref", ".") + "\n")
    assert (found.default_branch, sorted(found.branches), list(found.tags)) == ("main", ["feat/x@é", "main"], ["full"])
    assert found.tags["full"] == found.branches["feat/x@é"] != found.head


def test_every_truncation_is_refused(repository) -> None:
    """An answer that is cut at any place is never taken for a shorter list."""
    whole = advertised(repository.path)

    for end in range(len(whole)):
        with pytest.raises(NotGitError):
            read_packets(whole[:end])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cut short"),
        (b"<!DOCTYPE html>", "packets"),
        (packet(b"# service=git-receive-pack\n") + b"0000" + b"0000", "begin"),
        (SERVICE + b"0003", "cut short"),
        (SERVICE + b"-001", "packets"),
        (SERVICE + b"ffff" + b"x" * 100, "cut short"),
        (answer(b"ERR no access\n"), "the server says: 'no access'"),
        (answer(b"a" * 64 + b" HEAD\0object-format=sha256\n"), "SHA-256"),
        (answer(b"../../etc refs/heads/main\0x\n"), "is no commit"),
    ],
)
def test_what_no_honest_server_sends(body: bytes, message: str) -> None:
    """Anything else is refused, each in its own words."""
    with pytest.raises(NotGitError, match=message):
        read_packets(body)


def test_empty_repository() -> None:
    """A repository without refs has an empty advertisement."""
    assert read_packets(answer(b"0" * 40 + b" capabilities^{}\0agent=git\n")) == Advertisement()


def test_detached_head() -> None:
    """Where HEAD is at a commit there is no default branch."""
    found = read_packets(answer(b"1" * 40 + b" HEAD\0agent=git\n", b"2" * 40 + b" refs/heads/x\n"))

    assert found == Advertisement(head="1" * 40, branches={"x": "2" * 40})
