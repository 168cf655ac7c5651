"""Files of models, whoever made them, read without loading them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from isohub.errors import ArtifactError
from isohub.telemetry.inspection import TensorEntry, inspect_file


class Payload:
    """What a hostile pickle would do when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}; exit 1",)


def script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path, _extra_files={"a.txt": "text", "b.bin": b"\xff"})


def test_torchscript(tmp_path: Path):
    """TorchScript is told apart, and its extra files are shown as far as they are text."""
    script(tmp_path / "x.pt")

    found = inspect_file(tmp_path / "x.pt")
    assert found.format == "torchscript"
    assert found.extra == {"a.txt": "text", "b.bin": "(1 bytes that are no text)"}
    assert found.metadata == {}
    assert found.nbytes == (tmp_path / "x.pt").stat().st_size


@pytest.mark.slow
def test_exported_program(tmp_path: Path):
    """An exported program tells its tensors and the torch that wrote it."""
    program = torch.export.export(torch.nn.Linear(2, 3), (torch.rand(2, 2),))
    torch.export.save(program, tmp_path / "x.pt2")

    found = inspect_file(tmp_path / "x.pt2")
    assert [found.format, found.torch] == ["export", str(torch.__version__)]
    assert found.tensors == [TensorEntry("weight", "float32", [3, 2]), TensorEntry("bias", "float32", [3])]


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
def test_torch_save_lists_what_loading_would_import(tmp_path: Path, new: bool):
    """What torch.save wrote is never unpickled: it tells what a load of it would import."""
    value = {"state": OrderedDict(a=torch.zeros(2)), "evil": Payload(tmp_path / "was-here")}
    torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=new)

    found = inspect_file(tmp_path / "x.pt")
    assert found.format == ("torch.save" if new else "pickle")
    assert {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "posix.system"} <= set(found.imports)
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int):
    """What a pickle imports is found in each protocol, also what it imports twice."""
    (tmp_path / "x.pkl").write_bytes(
        pickle.dumps(
            [Payload(tmp_path / "was-here"), OrderedDict(), OrderedDict(), ["posix", "other", Path("/")]], protocol
        )
    )

    found = inspect_file(tmp_path / "x.pkl")
    names = {name for name in found.imports if not name.startswith("pathlib")}
    assert names == {"posix.system", "collections.OrderedDict"}


def test_safetensors(tmp_path: Path):
    """The header of a safetensors file is shown, with isohub's own fields apart."""
    header = {
        "__metadata__": {"format": "pt", "isohub.commit": "abc"},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }
    write_safetensors(tmp_path / "x", header, bytes(8))

    found = inspect_file(tmp_path / "x")
    assert found.format == "safetensors"
    assert [found.metadata, found.extra] == [{"commit": "abc"}, {"format": "pt"}]
    assert found.tensors == [TensorEntry("w", "F32", [2])]


def test_other_files(tmp_path: Path):
    """A file of another kind is of an unknown format, and one that is not there, or is no file, an OSError."""
    for name, data in (
        ("text", b"hello"),
        ("empty", b""),
        ("short", b"PK"),
        ("png", b"\x89PNG\r\n\x1a\n{" + bytes(99)),
    ):
        (tmp_path / name).write_bytes(data)
        assert inspect_file(tmp_path / name).format == "unknown", name
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a/b", "c")
    assert inspect_file(tmp_path / "zip").format == "zip"
    os.mkfifo(tmp_path / "pipe")
    for name in ("nothing", ".", "pipe"):
        with pytest.raises(FileNotFoundError):
            inspect_file(tmp_path / name)


def test_every_way_to_be_cut_short(tmp_path: Path):
    """A file that ends too early is told of as far as it goes, or is one clear error."""
    script(tmp_path / "script")
    torch.save({"a": torch.zeros(3)}, tmp_path / "saved")
    torch.save({"a": torch.zeros(3)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    write_safetensors(tmp_path / "tensors", {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8))

    for name in ("script", "saved", "old", "tensors"):
        data = (tmp_path / name).read_bytes()
        for end in range(0, len(data), 1 + len(data) // 97):
            (tmp_path / "cut").write_bytes(data[:end])
            with contextlib.suppress(ArtifactError):
                assert inspect_file(tmp_path / "cut").nbytes == end


@pytest.mark.parametrize(
    "header",
    [b"[" * 100_000, b"{" * 100_000, b'{"w": 3}', b'{"w": {"dtype": "F32", "shape": [-1]}}', b'{"__metadata__": 3}',
     b'{"w": {"dtype": "F32", "shape": 7}}', b'{"\xff": {}}'],
    ids=["deep", "objects", "no entry", "a size below zero", "no texts", "no shape", "no text"],
)  # fmt: skip
def test_hostile_headers(tmp_path: Path, header: bytes):
    """A header of nonsense is an error, and no crash."""
    data = b"{" + header[1:] if header[:1] != b"{" else header
    (tmp_path / "x").write_bytes(len(data).to_bytes(8, "little") + data)

    with pytest.raises(ArtifactError, match="cannot be read"):
        inspect_file(tmp_path / "x")


def test_entry_that_is_a_bomb(tmp_path: Path):
    """A piece that unpacks to gigabytes is read up to a limit."""
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(100 << 20))
        archive.writestr("x/extra/long.txt", b"a" * (100 << 20))

    with pytest.raises(ArtifactError, match="has more than"):
        inspect_file(tmp_path / "x")


def test_nothing_of_a_file_is_written_to_the_terminal(tmp_path: Path):
    """An error that quotes from a file has its control characters escaped."""
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("x/archive_format", "pt2")
        archive.writestr("x/data/weights/\x1b[2J_weights_config.json", json.dumps({"config": {"\x1b[2J": {}}}))

    with pytest.raises(ArtifactError) as caught:
        inspect_file(tmp_path / "x")
    assert "\x1b" not in str(caught.value)


def write_safetensors(path: Path, header: dict[str, Any], data: bytes) -> None:
    head = json.dumps(header).encode()
    buffer = io.BytesIO()
    buffer.write(len(head).to_bytes(8, "little") + head + data)
    path.write_bytes(buffer.getvalue())
