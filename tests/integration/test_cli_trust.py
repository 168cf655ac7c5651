"""`isohub trust`: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from isohub.cli import trust
from isohub.hub.trust import OWNERS

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub folder of the test's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("ISOHUB_TRUST", raising=False)
    return tmp_path / "hub"


def run(*args: str) -> Result:
    app = typer.Typer()
    trust.add_to(app)
    return CliRunner().invoke(app, ["trust", *args])


def test_added_is_listed_and_removed(home: Path) -> None:
    """`add` writes, `ls` shows it and by what it is trusted, `rm` takes it away."""
    added = run("add", "ada/models", f"gitlab.com/eve/net@{COMMIT}")
    again = run("add", "ada/models")
    listed = run("ls")
    removed = run("rm", "ada/models")

    assert added.stdout.splitlines() == [
        "ada/models is trusted from now on",
        f"gitlab.com/eve/net@{COMMIT} is trusted from now on",
    ]
    assert again.stdout == "ada/models was trusted already\n"
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert rows == [
        *[[f"{owner}/*", "torch.hub"] for owner in OWNERS],
        ["ada/models", "list"],
        [f"gitlab.com/eve/net@{COMMIT}", "list"],
    ]
    assert removed.stdout == "ada/models is taken off the list\n"
    assert (home / "trusted_list").read_text() == ""


def test_json(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --json each command prints one document."""
    monkeypatch.setenv("ISOHUB_TRUST", "corp/*")

    added = json.loads(run("add", "--json", "corp/models", "corp/models").stdout)
    listed = json.loads(run("ls", "--json").stdout)
    removed = json.loads(run("rm", "--json", "corp/models").stdout)

    assert added == {"added": ["corp/models"], "already_there": []}
    assert listed["hub_dir"] == str(home)
    assert listed["trusted"][len(OWNERS) :] == [
        {"trusted": "corp/*", "by": "ISOHUB_TRUST"},
        {"trusted": "corp/models", "by": "list"},
    ]
    assert removed == {"removed": ["corp/models"], "not_there": [], "still_trusted_by": {"corp/models": "corp/*"}}


def test_what_is_trusted_otherwise_is_told(home: Path) -> None:
    """Removing a commit says so if its repository is trusted as a whole, and an unknown one is a failure."""
    run("add", "ada/models", f"ada/models@{COMMIT}")

    removed = run("rm", f"ada/models@{COMMIT}")
    missing = run("rm", "nobody/nothing")

    assert removed.stdout.splitlines() == [
        f"ada/models@{COMMIT} is taken off the list",
        f"ada/models@{COMMIT} is trusted still, by ada/models",
    ]
    assert (missing.exit_code, missing.stdout) == (1, "nobody/nothing was not in the list\n")


@pytest.mark.parametrize("text", ["ada/models:v1", "ada/*", "nobody"])
def test_unreadable_name_writes_nothing(home: Path, text: str) -> None:
    """A name that cannot be trusted is one message and exit code 1, and nothing before it is written."""
    done = run("add", "ada/models", text)

    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {text!r} names no repository or commit to trust")
    assert not home.exists()
