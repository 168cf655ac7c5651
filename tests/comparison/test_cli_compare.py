"""`isohub compare` and `isohub bisect` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from isohub.demo.repository import IMAGES_FILE
from tests.helpers.cli import invoke, run
from tests.helpers.histories import History
from tests.helpers.warm import WarmPython

pytestmark = pytest.mark.usefixtures("forkserver", "one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with the demo's images, as its models take them."""
    path = tmp_path_factory.mktemp("inputs") / "images.pt"
    loaded = torch.load(IMAGES_FILE, weights_only=True)
    torch.save({"images": loaded["images"][:50].float()}, path)
    return f"{path}#images"


def test_program(digits: Path, images: str, warm_python: WarmPython):
    """The program prints a table that fits one screen and leads with the verdict, and leaves nothing behind."""
    arguments = ["compare", str(digits), "digits", "--ref", "v1", "--ref", "v2", "--input", images]
    done = run(*arguments, "--check", "outputs", python=warm_python)
    lines = done.stdout.splitlines()

    assert [done.returncode, done.stderr] == [0, ""]
    assert lines[0].startswith("≠ v2 against v1: other outputs, up to ")
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("condition", "code", "told"),
    [
        ("max_abs > 1000", 0, ""),
        ("max_abs > 1e-4 or top1_agreement < 0.99", 1, "failed: v2: max_abs ("),
        ("latency_ratio > 1", 1, "failed: v2: latency_ratio is not known of what was compared\n"),
    ],
)
def test_gate(digits: Path, images: str, condition: str, code: int, told: str):
    """--fail-on decides the exit code, and the reason is on stderr and in the JSON."""
    done = invoke(
        "compare", str(digits), "digits", "--ref", "v1", "--ref", "v2", "--input", images, "--check", "outputs",
        "--json", "--fail-on", condition,
    )  # fmt: skip
    document = json.loads(done.stdout)

    assert done.exit_code == code
    assert done.stderr.startswith(told)
    assert bool(document["failures"]) == bool(code)
    assert document["fail_on"] == condition


def test_condition_is_read_first(tmp_path: Path):
    """A condition that cannot be read is an error before anything is fetched or loaded."""
    done = invoke("compare", "nobody/nothing", "net", "--ref", "a", "--ref", "b", "--fail-on", "max_abs >")

    assert done.exit_code == 1
    assert done.stderr.startswith("error: fail_on: 'max_abs >' cannot be read")


def test_broken_version_fails_the_command(history: History):
    """A version that does not load is shown as such, and the exit code is 1 without any condition."""
    refs = ["--ref", history.named["first"], "--ref", history.named["break"]]
    done = invoke("compare", f"git+file://{history.folder}", "net", *refs, "--random", "float32[2,16]")

    assert done.exit_code == 1
    assert "broken. ModuleNotFoundError" in done.stdout
    assert done.stderr.endswith("broken\n")


def test_markdown(digits: Path, images: str):
    """--markdown is a comment: a heading, the verdict in bold, a table, and the code in a fence, folded away."""
    arguments = ["--ref", "v1", "--ref", "v2", "--input", images, "--check", "outputs", "--check", "code", "--markdown"]
    done = invoke("compare", str(digits), "digits", *arguments)
    lines = done.stdout.splitlines()

    assert lines[0] == "## digits: v2 against v1"
    assert lines[2].startswith("**≠ v2 against v1: other outputs")
    assert "| commit | f116f7c695 | f70ade43a0 |" in lines
    assert lines.count("```diff") == lines.count("```") == 1
    assert lines.count("</details>") == 2


def test_working_tree_alone(history: History):
    """One ref of a folder is compared with the folder as it stands."""
    done = invoke(
        "compare", str(history.folder), "net", "--ref", history.named["rename"], "--random", "float32[2,16]", "--json",
        "--check", "outputs",
    )  # fmt: skip
    document = json.loads(done.stdout)

    assert [version["commit"] for version in document["versions"]] == [history.named["rename"], None]
    assert document["pairs"][0]["kind"] == "different"


def test_bisect(history: History):
    """`isohub bisect` names the commit, its author and subject, its diff, and how many loads it took."""
    done = invoke(
        "bisect", f"git+file://{history.folder}", "net", "--good", history.named["first"], "--bad", "main",
        "--random", "float32[2,16]", "--jobs", "1", "--no-cache",
    )  # fmt: skip
    lines = done.stdout.splitlines()

    assert done.exit_code == 0, done.stderr
    assert lines[:3] == [
        f"{history.named['activation']} is the first bad commit", "Author: Ada Example <ada@example.invalid>",
        "Date:   2023-11-14T22:39:20+00:00",
    ]  # fmt: skip
    assert "    activation" in lines
    assert any(line.startswith("+") and "GELU" in line for line in lines)
    assert lines[-1] == "64 commits, 8 loads, 0 skipped, 0 known from before."


def test_bisect_that_finds_nothing_to_find(history: History):
    """A bad commit that is no different ends in an error with exit code 1."""
    done = invoke(
        "bisect", f"git+file://{history.folder}", "net", "--good", history.named["first"], "--bad",
        history.named["rename"], "--random", "float32[2,16]",
    )  # fmt: skip

    assert done.exit_code == 1
    assert "is no different" in done.stderr
