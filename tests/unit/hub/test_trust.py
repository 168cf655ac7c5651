"""Trust: torch.hub's question, answers and file; and nobody is asked where nobody can answer."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from isohub.errors import RefError, UntrustedRepoError
from isohub.hub import trust, trust_list
from isohub.hub.trust import decide, remember, require_explicit
from isohub.hub.trust_list import Entry
from isohub.refs import RepoRef

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
REPO = RepoRef.parse("ada/models:v1")


def is_trusted(text: str, folder: Path, commit: str = COMMIT) -> bool:
    """Return whether a repository may run without a question."""
    try:
        decide(RepoRef.parse(text), commit, "check", folder)
    except UntrustedRepoError:
        return False
    return True


# ------------------------------------------------------------------------------------------ without a terminal


def test_nobody_is_asked_without_a_terminal(folder: Path) -> None:
    """An unknown repository is refused, and the error has every way to trust it."""
    with pytest.raises(UntrustedRepoError) as caught:
        decide(REPO, COMMIT, "check", folder)

    assert (caught.value.repo, caught.value.commit) == ("ada/models", COMMIT)
    for way in (
        "isohub trust add ada/models,",
        f"isohub trust add ada/models@{COMMIT}",
        "ISOHUB_TRUST=ada/models",
        "trust_repo=True",
    ):
        assert way in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("value", [None, 1, 0, "always", "True", "", "CHECK"], ids=repr)
@pytest.mark.parametrize("text", ["ada/models", "git+file:///srv/models.git"])
def test_other_values_are_refused(folder: Path, value, text: str) -> None:
    """Only True, False and "check" say anything; torch.hub takes whatever else for True."""
    with pytest.raises(ValueError, match='takes True, False or "check"'):
        decide(RepoRef.parse(text), COMMIT, value, folder)


def test_own_repositories_need_no_trust(folder: Path, tmp_path: Path) -> None:
    """Folders and repositories of this machine are the user's own."""
    for text in (tmp_path, "git+file:///srv/models.git@v1"):
        for value in ("check", True, False):
            decision = decide(RepoRef.parse(text), None, value, folder)
            remember(decision)
            assert decision.reason == "own"
    assert list(folder.iterdir()) == []


def test_true_is_remembered_after_the_fetch(folder: Path) -> None:
    """`trust_repo=True` writes torch.hub's line, when told that the files are here and not before."""
    decision = decide(REPO, COMMIT, True, folder)
    assert not is_trusted("ada/models", folder)
    assert not (folder / "trusted_list").exists()

    remember(decision)
    remember(decide(REPO, COMMIT, True, folder))

    assert (folder / "trusted_list").read_text() == "ada_models\n"
    assert is_trusted("ada/models:other", folder, OTHER)


def test_false_asks_even_for_a_trusted_one(folder: Path) -> None:
    """`trust_repo=False` asks each time, so that without a terminal it is refused; the error says so."""
    remember(decide(REPO, COMMIT, True, folder))

    with pytest.raises(UntrustedRepoError, match="trusted already"):
        decide(REPO, COMMIT, False, folder)


@pytest.mark.parametrize("owner", torch.hub._TRUSTED_REPO_OWNERS)
def test_builtin_owners_are_those_of_torch_hub(folder: Path, owner: str) -> None:
    """The owners that torch.hub trusts are trusted on github.com alone."""
    assert torch.hub._TRUSTED_REPO_OWNERS == trust.OWNERS
    assert is_trusted(f"{owner}/x", folder)
    assert not is_trusted(f"gitlab.com/{owner}/x", folder)


def test_list_of_torch_hub_counts(folder: Path) -> None:
    """What torch.hub has written is trusted; also a folder that an older one has fetched."""
    (folder / "trusted_list").write_text("bob_net\n\nada_big_models")
    (folder / "eve_net_feat_x").mkdir()
    (folder / "eve_old_main").mkdir()

    assert is_trusted("bob/net", folder)
    assert is_trusted("ada/big_models:v1", folder)
    assert is_trusted("eve/net:feat/x", folder)
    assert is_trusted("eve/old", folder)
    assert not is_trusted("eve/net:v2", folder)
    assert not is_trusted("eve/net", folder)


def test_no_repository_is_taken_for_another(folder: Path) -> None:
    """Lines that look alike in torch.hub's file, and names alike on other hosts, do not trust each other."""
    (folder / "trusted_list").write_text("a_b_c\n")

    assert is_trusted("a/b_c", folder)
    assert not is_trusted("a_b/c", folder)
    assert not is_trusted("gitlab.com/a/b_c", folder)
    assert not is_trusted("git+https://github.com:8443/a/b_c", folder)
    assert is_trusted("git+https://github.com/a/b_c.git", folder)
    assert is_trusted("git+ssh://git@github.com/a/b_c.git@v1", folder)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("gitlab.com/ada/models", "gitlab.com/ada/models", id="another host"),
        pytest.param("ada_corp/models", "github.com/ada_corp/models", id="an owner with an underscore"),
        pytest.param("git+https://h:1/g/sub/m.git", "h:1/g/sub/m", id="a port and a subgroup"),
        pytest.param("git+https://h/a%20b/%2A", "h/a%20b/%2A", id="names with a meaning"),
        pytest.param(f"git+https://h/a/b%40{COMMIT}", f"h/a/b%40{COMMIT}", id="a name like a commit"),
    ],
)
def test_other_repositories_have_a_file_of_their_own(folder: Path, text: str, line: str) -> None:
    """What torch.hub's file cannot say stands in another, unmistakably."""
    remember(decide(RepoRef.parse(text), COMMIT, True, folder))

    assert (folder / "isohub_trusted_list").read_text() == f"{line}\n"
    assert not (folder / "trusted_list").exists()
    assert is_trusted(text, folder)
    assert not is_trusted("git+https://h/a/b", folder)


def test_single_commits_are_trusted(folder: Path) -> None:
    """A commit may be trusted alone: no other commit of the repository is."""
    trust_list.add(Entry.parse(f"ada/models@{COMMIT}"), folder)

    assert is_trusted("ada/models", folder, COMMIT)
    assert not is_trusted("ada/models", folder, OTHER)
    with pytest.raises(UntrustedRepoError):
        decide(REPO, None, "check", folder)
    assert (folder / "isohub_trusted_list").read_text() == f"github.com/ada/models@{COMMIT}\n"


@pytest.mark.parametrize(
    ("value", "trusted", "untrusted"),
    [
        ("ada/models", "ada/models", "ada/models2"),
        ("x/y, ada/*", "ada/models", "adam/models"),
        ("git.example.org/ada/models", "git+https://git.example.org/ada/models.git", "ada/models"),
        ("git.example.org:8443/*", "git+https://git.example.org:8443/a/b/c", "git+https://git.example.org/a/b/c"),
        ("git.example.org/group/*", "git+https://git.example.org/group/sub/m", "git+https://git.example.org/groups/m"),
        (f"ada/models@{COMMIT}", "ada/models", "ada/other"),
    ],
)
def test_environment_trusts(folder: Path, monkeypatch: pytest.MonkeyPatch, value, trusted, untrusted) -> None:
    """ISOHUB_TRUST trusts repositories, owners and hosts, and writes nothing down."""
    monkeypatch.setenv("ISOHUB_TRUST", value)

    decision = decide(RepoRef.parse(trusted), COMMIT, "check", folder)
    remember(decision)

    assert decision.reason == "environment"
    assert not is_trusted(untrusted, folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("value", ["*", "ada", "*/models", "ada/m*", "ada/models:v1", "ada/..", "ada/models@0123"])
def test_unreadable_environment_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A setting that trusts nobody, or everybody, by mistake is told of."""
    monkeypatch.setenv("ISOHUB_TRUST", value)

    with pytest.raises(RefError, match="ISOHUB_TRUST"):
        decide(REPO, COMMIT, "check", folder)


def test_unwritable_list_does_not_fail_the_load(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When the list cannot be written the load goes on, with a warning."""
    (folder / "trusted_list").mkdir()
    decision = trust.Decision(reason="argument", entry=Entry.of(REPO), folder=folder)

    remember(decision)

    assert "cannot write down that ada/models is trusted" in caplog.text


# ------------------------------------------------------------------------------------------ on a terminal

ASK = """
import sys
from isohub.hub.trust import decide, remember, require_explicit
from isohub.refs import RepoRef
value = {"False": False, "check": "check"}[sys.argv[2]]
try:
    decision = decide(RepoRef.parse("ada/models"), None, value, sys.argv[1])
    remember(decision)
    sys.stderr.write(f"trusted: {decision.reason}")
except Exception as error:
    sys.stderr.write(f"{type(error).__name__}: {error}")
"""
TORCH = """
import sys, torch
torch.hub.set_dir(sys.argv[1])
value = {"False": False, "check": "check"}[sys.argv[2]]
try:
    torch.hub._check_repo_is_trusted("ada", "models", "ada_models_main", value)
    sys.stderr.write("trusted: answer")
except Exception as error:
    sys.stderr.write(f"{type(error).__name__}: {error}")
"""


def on_terminal(script: str, folder: Path, typed: bytes, value: str = "check") -> tuple[str, str]:
    """Run a script on a terminal where `typed` is typed; return what the terminal showed, and stderr."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", script, str(folder), value]
    shown = b""
    try:
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, start_new_session=True)
        os.close(theirs)
        os.write(ours, typed)
        told = process.stderr.read().decode()
        process.stderr.close()
        process.wait()
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # all of it was read
                break
            if not chunk:
                break
            shown += chunk
    finally:
        os.close(ours)
    return shown.decode(), told


QUESTION = (
    "The repository ada_models does not belong to the list of trusted repositories and as such cannot be downloaded. "
    "Do you trust this repository and wish to add it to the trusted list of repositories (y/N)?"
)


@pytest.mark.parametrize(
    ("typed", "told", "lines"),
    [
        (b"y\n", "trusted: answer", "ada_models\n"),
        (b"YES\n", "trusted: answer", "ada_models\n"),
        (b"n\n", "UntrustedRepoError: Untrusted repository.", None),
        (b"\n", "UntrustedRepoError: Untrusted repository.", None),
        (b"\x04", "UntrustedRepoError: Untrusted repository.", None),
        (b"maybe\n", "ValueError: Unrecognized response maybe.", None),
    ],
    ids=["y", "YES", "n", "enter", "Ctrl-D", "maybe"],
)
def test_terminal_is_asked(folder: Path, typed: bytes, told: str, lines: str | None) -> None:
    """On a terminal the question and the meaning of the answers are torch.hub's."""
    shown, actual = on_terminal(ASK, folder, typed)

    assert QUESTION in shown
    assert told == actual
    written = folder / "trusted_list"
    assert lines == (written.read_text() if written.exists() else None)


def test_question_is_that_of_torch_hub(folder: Path) -> None:
    """torch.hub itself asks the same, and writes the same line."""
    shown, told = on_terminal(TORCH, folder, b"y\n")

    assert QUESTION in shown + told
    assert told.endswith("trusted: answer")
    assert (folder / "trusted_list").read_text() == "ada_models\n"


def test_false_asks_on_a_terminal(folder: Path) -> None:
    """`trust_repo=False` asks although it is trusted, and says so after a yes."""
    (folder / "trusted_list").write_text("ada_models\n")

    shown, told = on_terminal(ASK, folder, b"y\n", "False")

    assert QUESTION in shown
    assert "The repository is already trusted." in shown
    assert told == "trusted: answer"
    assert (folder / "trusted_list").read_text() == "ada_models\n"


def test_threads_are_asked_nothing_without_a_terminal(folder: Path) -> None:
    """Threads that load at once are all refused, and none hangs."""
    barrier = threading.Barrier(4)

    def ask(_: int) -> str:
        barrier.wait(10)
        try:
            decide(REPO, COMMIT, "check", folder)
        except UntrustedRepoError as error:
            return type(error).__name__
        return "trusted"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == ["UntrustedRepoError"] * 4


# ---------------------------------------------------------------------------- code that is to run in this process


@pytest.mark.parametrize("text", ["pytorch/vision:main", "ada/models:v1"], ids=["owner", "folder"])
def test_what_torch_hub_lets_through_is_not_explicit(folder: Path, monkeypatch, text: str) -> None:
    """torch.hub's owners and folders may run in a worker; for this process somebody has to say it."""
    (folder / "ada_models_v1").mkdir()
    repo = RepoRef.parse(text)
    name = f"{repo.owner}/{repo.name}"

    with pytest.raises(UntrustedRepoError) as caught:
        require_explicit(decide(repo, COMMIT, "check", folder), repo, COMMIT)

    assert (caught.value.repo, caught.value.commit) == (name, COMMIT)
    for way in (f"isohub trust add {name}", f"ISOHUB_TRUST={name}", "trust_repo=True"):
        assert way in str(caught.value)
    require_explicit(decide(repo, COMMIT, True, folder), repo, COMMIT)
    monkeypatch.setenv("ISOHUB_TRUST", f"{name}@{COMMIT}")
    require_explicit(decide(repo, COMMIT, "check", folder), repo, COMMIT)
    with pytest.raises(UntrustedRepoError):
        require_explicit(decide(repo, OTHER, "check", folder), repo, OTHER)
    monkeypatch.delenv("ISOHUB_TRUST")
    trust_list.add(Entry.parse(name), folder)
    require_explicit(decide(repo, OTHER, "check", folder), repo, OTHER)


def test_own_repositories_are_explicit(folder: Path, tmp_path: Path) -> None:
    """What is this machine's own may make what runs in this process."""
    for repo in (RepoRef.parse(tmp_path), RepoRef.parse("git+file:///srv/models.git@v1")):
        decision = decide(repo, None, "check", folder)
        assert decision.reason == "own"
        require_explicit(decision, repo)  # raises where it is not
