"""`isohub export` and `isohub inspect`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch

import isohub
from tests.helpers.artifact_repo import HUBCONF
from tests.helpers.cli import PROGRAM, invoke
from tests.helpers.repos import make_repo, url

pytestmark = pytest.mark.usefixtures("forkserver")
X = torch.arange(8.0).reshape(2, 4)


class Evil:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cli-export") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": HUBCONF}}), "v1")


def test_torchscript(repo: str, tmp_path: Path):
    """`export -o x.pt` writes TorchScript that computes the same, and `inspect` shows where it comes from."""
    path = tmp_path / "net.pt"
    done = invoke("export", repo, "net", "--arg", "3.5", "-o", str(path))
    shown = invoke("inspect", str(path))
    told = json.loads(invoke("inspect", str(path), "--json").stdout)

    assert [done.exit_code, done.stdout] == [
        0, f"{path}: torchscript of net of {repo}, {path.stat().st_size:,} bytes\n",
    ]  # fmt: skip
    assert [told["format"], told["metadata"]["entrypoint"]] == ["torchscript", "net"]
    assert told["metadata"]["arguments"] == '{"args": [3.5], "kwargs": {}}'
    assert f"commit      {told['metadata']['commit']}\n" in shown.stdout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.load(path)
    assert script.frozen.tolist() == [3.5] * 3
    with torch.no_grad():
        assert torch.equal(isohub.load(repo, "net", 3.5)(X), script(X))


def test_traced(repo: str, tmp_path: Path):
    """`--input` has a module traced that the compiler refuses to script, which is an error without it."""
    path = tmp_path / "net.ts"
    failed = invoke("export", repo, "branches", "-o", str(path))
    assert failed.exit_code == 1
    assert "Compiled functions can't take variable number of arguments" in failed.stderr
    assert list(tmp_path.iterdir()) == []

    done = invoke("export", repo, "branches", "-o", str(path), "--input", "2x4", "--json")

    report = json.loads(done.stdout)
    assert [report["file"], report["format"], report["entrypoint"]] == [str(path), "torchscript", "branches"]
    assert report["nbytes"] == path.stat().st_size


def test_weights(repo: str, tmp_path: Path):
    """`export -o x.safetensors` writes the state dict, and `inspect` lists its tensors."""
    path = tmp_path / "net.safetensors"
    done = invoke("export", repo, "net", "-o", str(path))
    told = json.loads(invoke("inspect", str(path), "--json").stdout)
    shown = invoke("inspect", str(path)).stdout

    assert done.exit_code == 0
    state = isohub.load(repo, "net", returns="state_dict")
    again = safetensors.torch.load_file(path)
    assert state.keys() == again.keys() == {entry["name"] for entry in told["tensors"]}
    assert [name for name in state if not torch.equal(state[name], again[name])] == []
    assert f"{len(state)} tensors\n" in shown
    assert "frozen                    F32 [3]\n" in shown


@pytest.mark.slow
def test_exported_program(repo: str, tmp_path: Path):
    """`export -o x.pt2 --input` writes an exported program with an open batch."""
    path = tmp_path / "net.pt2"
    done = invoke("export", repo, "branches", "-o", str(path), "--input", "2x4:float32")

    assert done.exit_code == 0, done.stderr
    told = json.loads(invoke("inspect", str(path), "--json").stdout)
    assert [told["format"], told["metadata"]["entrypoint"], told["torch"]] == [
        "export", "branches", str(torch.__version__),
    ]  # fmt: skip
    program = torch.export.load(path).module()
    with torch.no_grad():
        x = torch.rand(5, 4)
        assert torch.equal(isohub.load(repo, "branches")(x), program(x))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-o", "x.onnx"), "--format does"),
        (("-o", "x"), "--format does"),
        (("-o", "x.pt2"), "needs one"),
        (("-o", "x.safetensors", "--input", "2x2"), "need none"),
        (("-o", "x.pt", "--input", "2,2"), "is not SHAPE"),
        ((), "--output"),
    ],
)
def test_command_lines_that_make_no_sense(repo: str, tmp_path: Path, arguments: tuple[str, ...], words: str):
    """A command line that says too little or contradicts itself is a usage error, and writes nothing."""
    done = invoke("export", repo, "net", *arguments)

    assert done.exit_code == 2
    assert words in done.stderr
    assert isohub.workers() == []


def test_dtype_that_does_not_exist(repo: str, tmp_path: Path):
    """A dtype that torch has not is an error that names it."""
    done = invoke("export", repo, "net", "-o", str(tmp_path / "x.pt"), "--input", "2x4:float31")

    assert [done.exit_code, "float31" in done.stderr, list(tmp_path.iterdir())] == [1, True, []]


def test_inspect_a_strangers_file(tmp_path: Path):
    """`inspect` shows what loading a stranger's file would import, and runs none of it; it needs no torch."""
    evil = tmp_path / "evil.pt"
    torch.save(Evil(str(tmp_path / "made")), evil)

    done = subprocess.run(
        [sys.executable, "-X", "importtime", *PROGRAM[1:], "inspect", str(evil)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "It has no metadata of isohub's." in done.stdout
    assert "  posix.mkdir\n" in done.stdout
    assert not (tmp_path / "made").exists()
    modules = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert set() == modules & {"torch", "numpy"}


def test_inspect_shows_no_lines_of_the_file_as_its_own(tmp_path: Path):
    """A text in a file cannot drive the terminal, nor look like a line of the report."""
    header = json.dumps({"__metadata__": {"isohub.repo": "x\ncommit  1234\x1b[2J"}}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)

    done = invoke("inspect", str(tmp_path / "x"))

    assert "repo  x\\ncommit  1234?[2J\n" in done.stdout


@pytest.mark.parametrize("content", [None, b"PK\x03\x04 and no more"], ids=["missing", "damaged"])
def test_inspect_what_cannot_be_read(tmp_path: Path, content: bytes | None):
    """A file that is not there or is damaged is one line of error and exit code 1."""
    if content is not None:
        (tmp_path / "x").write_bytes(content)

    done = invoke("inspect", str(tmp_path / "x"))

    assert [done.exit_code, done.stdout, len(done.stderr.splitlines())] == [1, "", 1]
    assert str(tmp_path / "x") in done.stderr
