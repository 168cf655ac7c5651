"""Metadata in files: those that this process writes, and those that the repository's code writes in a worker."""

from __future__ import annotations

import json
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import isohub
from isohub.telemetry.inspection import inspect_file
from isohub.telemetry.metadata import NAMES, Metadata
from tests.helpers.repos import make_repo, url

SAVES = """
    import io
    import torch
    from safetensors.torch import save_file, save
    from torch.export import save as export_save

    class Net(torch.nn.Linear):
        def write(self, path):
            torch.jit.script(torch.nn.Linear(2, 2)).save(path)

    def net(*args, **kwargs):
        return Net(2, 2)

    def other():
        return Net(2, 2)

    def module_method(path):
        torch.jit.script(Net.__mro__[1](2, 2)).save(path)

    def jit_save(path):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path, {"notes.txt": "mine"})

    def to_buffer(path):
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
        open(path, "wb").write(buffer.getvalue())

    def function(path):
        torch.jit.save(torch.jit.script(add), path)

    def add(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    def exported(path):
        program = torch.export.export(torch.nn.Linear(2, 2), (torch.rand(2, 2),))
        export_save(program, path, extra_files={"notes.txt": "mine"})

    def tensors(path):
        save_file({"a": torch.ones(2)}, path, metadata={"format": "pt"})

    def tensors_by_place(path):
        open(path, "wb").write(save({"a": torch.ones(2)}, None))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repo(tmp_path_factory.mktemp("metadata") / "owner" / "repo", {"v1": {"hubconf.py": SAVES}})


@pytest.fixture(scope="module")
def repo(folder: Path) -> str:
    return url(folder, "v1")


@pytest.fixture
def no_hook() -> Iterator[None]:
    before = isohub.set_metadata_hook(None)
    yield
    isohub.set_metadata_hook(before)


@pytest.mark.parametrize(
    ("entry", "extra"),
    [
        ("module_method", {}),
        ("jit_save", {"notes.txt": "mine"}),
        ("to_buffer", {}),
        ("function", {}),
        pytest.param("exported", {"notes.txt": "mine"}, marks=pytest.mark.slow),
        ("tensors", {"format": "pt"}),
        ("tensors_by_place", {}),
    ],
)
def test_what_the_repository_saves(folder: Path, forkserver: int, tmp_path: Path, entry: str, extra: dict[str, str]):
    """A file that an entrypoint writes in its worker says which commit and entrypoint, beside what it said before."""
    path = tmp_path / "file.pt2"
    isohub.load(url(folder, "v1"), entry, str(path))

    found = inspect_file(path)
    commit = subprocess.check_output(["git", "rev-parse", "v1"], cwd=folder, text=True).strip()
    assert set(NAMES) == found.metadata.keys()
    known = {"repo": "owner/repo", "ref": "v1", "commit": commit, "entrypoint": entry, "torch": str(torch.__version__)}
    assert known == {name: found.metadata[name] for name in known}
    assert {"args": [str(path)], "kwargs": {}} == json.loads(found.metadata["arguments"])
    assert extra == found.extra


def test_saved_after_the_load(repo: str, forkserver: int, tmp_path: Path):
    """What a method of a model writes names the entrypoint as long as the worker has run only one."""
    first = isohub.load(repo, "net")
    first.write(str(tmp_path / "one"))
    isohub.load(repo, "other")
    first.write(str(tmp_path / "two"))

    one, two = (inspect_file(tmp_path / name).metadata for name in ("one", "two"))
    assert one["entrypoint"] == "net"
    assert {"entrypoint", "arguments"} == one.keys() - two.keys()
    assert one["commit"] == two["commit"]


def test_script_module_says_where_it_comes_from(repo: str, forkserver: int, tmp_path: Path):
    """However a ScriptModule is saved, its file has the metadata that the object tells."""
    script = isohub.load(repo, "net", 1, name="x", returns="torchscript")
    ways: dict[str, Callable[[Path], Any]] = {
        "isohub.save": lambda path: isohub.save(script, path),
        "save": script.save,
        "torch.jit.save": lambda path: torch.jit.save(script, path, _extra_files={"notes.txt": "mine"}),
        "bytes": lambda path: path.write_bytes(script.save_to_buffer()),
    }

    for name, save in ways.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            save(tmp_path / name)
            again = torch.jit.load(tmp_path / name)
        found = inspect_file(tmp_path / name)
        assert script.isohub.fields() == found.metadata, name
        assert ({"notes.txt": "mine"} if name == "torch.jit.save" else {}) == found.extra
        assert torch.equal(script.weight, again.weight)
    assert isinstance(script.isohub, Metadata)
    assert script.isohub.arguments == '{"args": [1], "kwargs": {"name": "x"}}'
    assert script.isohub.tree_hash is not None


def test_weights_as_safetensors(repo_of: Callable[..., str], tmp_path: Path):
    """A state dict is written as safetensors that their own library reads, whatever dtypes and layouts it has."""
    repo = repo_of("""
        import torch
        def weights():
            torch.manual_seed(0)
            base = torch.randn(4, 6)
            model = torch.nn.Module()
            for name, value in {
                "flag": torch.tensor([True]), "base": base, "turned": base.t(), "row": base[1],
                "scalar": torch.tensor(2.5),
                "empty": torch.empty(0, 3), "halves": base.half(), "brain": base.bfloat16(), "long": torch.arange(3),
                "wave": torch.randn(2, dtype=torch.complex64).conj(), "small": torch.arange(3, dtype=torch.uint8),
            }.items():
                model.register_buffer(name, value)
            return model
    """)
    state = isohub.load(repo, "weights", returns="state_dict")
    isohub.save(state, tmp_path / "weights.safetensors")

    again = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert state.keys() == again.keys()
    assert [name for name, value in state.items() if not torch.equal(value, again[name])] == []
    assert {name: value.dtype for name, value in state.items()} == {name: value.dtype for name, value in again.items()}
    found = inspect_file(tmp_path / "weights.safetensors")
    assert state.isohub.fields() == found.metadata
    assert next(entry.shape for entry in found.tensors if entry.name == "base") == [4, 6]


def test_file_is_whole_or_not_there(tmp_path: Path):
    """What cannot be saved leaves the file that was there, and no other."""
    (tmp_path / "x.safetensors").write_text("before")

    with pytest.raises(TypeError, match=r"isohub\.save takes"):
        isohub.save(torch.nn.Linear(1, 1), tmp_path / "x.safetensors")
    with pytest.raises(TypeError, match="'a': a safetensors file has no place"):
        isohub.save({"a": torch.eye(2).to_sparse()}, tmp_path / "x.safetensors")

    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_text() == "before"


def test_hook_adds_fields(repo: str, forkserver: int, no_hook: None, tmp_path: Path):
    """The fields of the hook are on artifacts and in what the worker writes; it is told what isohub knows."""
    told: list[dict[str, str]] = []

    def hook(fields: Any) -> dict[str, str]:
        told.append(dict(fields))
        return {"team": "vision"}

    assert isohub.set_metadata_hook(hook) is None
    script = isohub.load(repo, "net", returns="torchscript")
    isohub.load(repo, "to_buffer", str(tmp_path / "file"))

    assert script.isohub.extra == {"team": "vision"}
    assert inspect_file(tmp_path / "file").metadata["team"] == "vision"
    assert [fields["entrypoint"] for fields in told] == ["net", "to_buffer"]
    assert isohub.set_metadata_hook(None) is hook


@pytest.mark.parametrize(
    ("added", "error"),
    [({"commit": "mine"}, ValueError), ({"team": 3}, TypeError), ("team", TypeError), (None, TypeError)],
)
def test_hook_that_returns_something_else(repo: str, forkserver: int, no_hook: None, added: Any, error: type):
    """A hook cannot overwrite isohub's fields, nor add what is no text; the load ends in an error."""
    isohub.set_metadata_hook(lambda fields: added)

    with pytest.raises(error, match="metadata hook"):
        isohub.load(repo, "net")
