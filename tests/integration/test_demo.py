"""`isohub demo`: its figures, its text, and that nothing of it is kept."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
import torch

from tests.helpers.cli import invoke, nothing_left, run
from tests.helpers.warm import WarmPython


def test_json(forkserver: int):
    """With isohub each version has its own accuracy; torch.hub runs the second one with the first one's code."""
    before = torch.hub._hub_dir

    done = invoke("demo", "--json")

    found = json.loads(done.stdout)
    one_image = 1.5 / found["images"]  # another processor may tip one
    assert [version["accuracy"] for version in found["isohub"]] == pytest.approx([423 / 450, 442 / 450], abs=one_image)
    assert [version["accuracy"] for version in found["torch_hub"]] == pytest.approx(
        [423 / 450, 301 / 450], abs=one_image
    )
    assert [version["source"] for version in found["torch_hub"]] == ["v1:model/network.py"] * 2
    assert 0.9 < found["agreement"] < 1
    assert len({version["worker_pid"] for version in found["isohub"]} - {os.getpid()}) == 2
    assert all(version[time] > 0 for version in found["isohub"] for time in ("call_one_s", "call_all_s"))
    assert all(0 < version["private_bytes"] < version["proportional_bytes"] for version in found["isohub"])
    assert torch.hub._hub_dir == before


def test_text(tmp_path: Path, warm_python: WarmPython):
    """The text fits 80 columns and has no colour codes; no process, temporary file or cache entry is left."""
    temporary, home = tmp_path / "tmp", tmp_path / "home"
    temporary.mkdir()

    with nothing_left():
        done = run("demo", python=warm_python, TMPDIR=str(temporary), TORCH_HOME=str(home))

    assert [done.returncode, done.stderr] == [0, ""]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout
    rows = [line.split()[3::2] for line in done.stdout.splitlines() if line.startswith("images read right")]
    assert rows == [["94.0", "98.2"], ["94.0", "66.9"]]
    assert "torch.hub ran v1's code as v2" in done.stdout.splitlines()[-1]
    assert list(temporary.iterdir()) == []
    assert not home.exists()


def test_error_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forkserver: int):
    """A demo that fails says why in one message, and leaves nothing in the temporary folder."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "tmp").mkdir()
    git = tmp_path / "bin" / "git"
    git.write_text("#!/bin/sh\necho no space left >&2\nexit 3\n")
    git.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))

    done = invoke("demo", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    assert [done.exit_code, done.stdout] == [1, ""]
    assert done.stderr.startswith("error: git init failed in ")
    assert done.stderr.endswith("with exit code 3: no space left\n")
    assert list((tmp_path / "tmp").iterdir()) == []
