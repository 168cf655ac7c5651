"""Inputs, as a user writes them: in a program and on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from isohub.comparison.files import read_inputs
from isohub.comparison.inputs import Call, Inputs, random_input
from isohub.errors import ComparisonError

X = torch.arange(12.0).reshape(4, 3)


def calls(given: object) -> list[Call]:
    return list(Inputs(given))


def test_one_call():
    """A tensor is the one argument, a tuple are all positional ones, and a dict all keyword ones."""
    assert [(call.args, call.kwargs) for call in calls(X)] == [((X,), {})]
    assert [(call.args, call.kwargs) for call in calls((1, 2))] == [((1, 2), {})]
    assert [(call.args, call.kwargs) for call in calls({"a": 1})] == [((), {"a": 1})]
    assert calls(None) == []


def test_stream():
    """Whatever else can be iterated over is a stream of such calls."""
    assert [call.args for call in calls(iter([(1,), (2, 3)]))] == [(1,), (2, 3)]
    assert [dict(call.kwargs) for call in calls([{"a": 1}])] == [{"a": 1}]


def test_data_loader_gives_samples_and_not_labels():
    """Of what a DataLoader makes of pairs, the samples alone go to the model, and they are counted."""
    loader = DataLoader(TensorDataset(X, torch.arange(4)), batch_size=3)
    found = calls(loader)

    assert [tuple(call.args[0].shape) for call in found] == [(3, 3), (1, 3)]
    assert [call.samples for call in found] == [3, 1]
    assert Inputs(loader).count == 2


@pytest.mark.parametrize("given", ["text", 3, b"bytes"])
def test_nonsense_is_refused(given: object):
    """What is no input is an error that says what would be one."""
    with pytest.raises(ComparisonError, match="inputs takes a tensor"):
        Inputs(given)


def test_digest_tells_inputs_apart():
    """Equal inputs have equal digests, and a changed value, name or shape another."""
    digests = [
        Inputs(given).digest()
        for given in ((X, X.clone()), (X, X + 0), (X, X + 1), {"x": X}, {"y": X}, X, X.reshape(3, 4), [X], [X, X])
    ]

    assert digests[0] == digests[1]
    assert len(set(digests)) == 7  # one input, and a stream of it alone, are the same calls


def test_random_inputs():
    """Random inputs have the dtype, shape and bound that was asked for, and follow from the seed."""
    whole = random_input("int64[1000] < 50")

    assert random_input("float32[2,3]", 1).shape == (2, 3)
    assert random_input("bfloat16[2]").dtype is torch.bfloat16
    assert (int(whole.min()), int(whole.max())) == (0, 49)
    assert torch.equal(random_input("float32[5]", 3), random_input("float32[5]", 3))
    assert not torch.equal(random_input("float32[5]", 3), random_input("float32[5]", 4))
    assert random_input("bool[]").shape == ()


@pytest.mark.parametrize("text", ["float32", "float99[2]", "float32[2", "float32[-1]", "uint8[2]<257", "int64[2]<0"])
def test_random_inputs_that_cannot_be_read(text: str):
    """A text that is no random input is an error that names it."""
    with pytest.raises(ComparisonError, match=text.partition("[")[0]):
        random_input(text)


def test_files_of_tensors(tmp_path: Path):
    """Every kind of file gives the tensors that were written, and #KEY one of them."""
    torch.save(X, tmp_path / "x.pt")
    np.save(tmp_path / "x.npy", X.numpy())
    np.savez(tmp_path / "x.npz", x=X.numpy())
    save_file({"x": X}, tmp_path / "x.safetensors")

    for name in ("x.pt", "x.npy", "x.npz#x", "x.safetensors#x"):
        (call,) = read_inputs([str(tmp_path / name)], [])
        assert torch.equal(call.args[0], X)
    (call,) = read_inputs([str(tmp_path / "x.npz")], [])
    assert list(call.kwargs) == ["x"]


def test_named_files_and_random_numbers(tmp_path: Path):
    """Several inputs make one call: those with a name by keyword, the others in their order, random ones last."""
    torch.save(X, tmp_path / "x.pt")
    (call,) = read_inputs([f"mask={tmp_path / 'x.pt'}", str(tmp_path / "x.pt")], ["float32[2]", "y=bool[1]"], seed=5)

    assert [tuple(value.shape) for value in call.args] == [(4, 3), (2,)]
    assert {name: tuple(value.shape) for name, value in call.kwargs.items()} == {"mask": (4, 3), "y": (1,)}
    assert torch.equal(call.args[1], random_input("float32[2]", 5))


def test_images(tmp_path: Path):
    """An image is float32 from 0 to 1, of one channel if it is grey; a folder's go through in batches of one size."""
    for number in range(5):
        Image.new("RGB", (4, 3), (255, 0, 51 * number)).save(tmp_path / f"{number}.png")
    Image.new("L", (2, 2), 255).save(tmp_path / "9.png")

    (grey,) = read_inputs([str(tmp_path / "9.png")], [])
    batches = list(read_inputs([str(tmp_path)], [], batch_size=2))

    assert (grey.args[0].shape, float(grey.args[0].max())) == ((1, 1, 2, 2), 1.0)
    assert [tuple(call.args[0].shape) for call in batches] == [(2, 3, 3, 4), (2, 3, 3, 4), (1, 3, 3, 4), (1, 1, 2, 2)]
    assert batches[1].args[0][1, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.6])


def test_folder_beside_other_inputs(tmp_path: Path):
    """Each file of a folder goes with the other inputs beside it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        torch.save(torch.full((1,), float(number)), folder / f"{number}.pt")
    found = list(read_inputs([f"x={folder}"], ["float32[2]"]))

    assert [call.kwargs["x"].item() for call in found] == [0.0, 1.0, 2.0]
    assert all(torch.equal(call.args[0], found[0].args[0]) for call in found)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pt", b"no tensors", "cannot be read as tensors"),
        ("x.npy", b"no array", "cannot be read as tensors"),
        ("x.png", b"no image", "cannot be read as an image"),
        ("x.doc", b"", "unknown kind of file"),
        (None, None, "There is no input file"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str | None, content: bytes | None, message: str):
    """A file that is not there, is damaged, or of an unknown kind is an error that names it."""
    path = tmp_path / (name or "missing.pt")
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ComparisonError, match=message):
        read_inputs([str(path)], [])


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("ran",))


@pytest.mark.parametrize("name", ["x.pt", "x.npy"])
def test_file_with_code_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]):
    """Nothing in a file of inputs runs."""
    if name == "x.pt":
        torch.save(Evil(), tmp_path / name)
    else:
        np.save(tmp_path / name, np.array([Evil()], dtype=object), allow_pickle=True)

    with pytest.raises(ComparisonError, match="cannot be read as tensors"):
        read_inputs([str(tmp_path / name)], [])
    assert capsys.readouterr().out == ""
