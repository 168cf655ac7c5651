"""What published hub repositories do, each in a repository made up for it: found by running them."""

from __future__ import annotations

import importlib.util
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import isohub
from tests.helpers.repos import write_files

_PLACES_OF_BYTECODE = {
    "hubconf.py": """
        import wave

        import own

        def places():
            return wave.__cached__, getattr(own, "__cached__", None), own.__file__
    """,
    "own.py": "x = 1",
}


def test_a_checkout_keeps_its_own_bytecode_and_uses_that_of_installed_modules(repo_of: Callable[..., str]):
    """A new checkout compiles its own files, outside of itself, and nobody else's once more."""
    installed, own, file = isohub.load(repo_of(_PLACES_OF_BYTECODE), "places")

    assert importlib.util.cache_from_source(wave.__file__) == installed
    assert Path(own).is_file()
    assert not Path(own).is_relative_to(Path(file).parent)
    assert not (Path(file).parent / "__pycache__").exists()


def test_a_working_tree_has_no_bytecode_and_uses_that_of_installed_modules(tmp_path: Path, forkserver: int):
    """A working tree is compiled with each load and left as it was; installed modules are not."""
    write_files(tmp_path / "tree", _PLACES_OF_BYTECODE)

    installed, own, file = isohub.load(tmp_path / "tree", "places")

    assert importlib.util.cache_from_source(wave.__file__) == installed
    assert own is None
    assert {"hubconf.py", "own.py"} == {path.name for path in Path(file).parent.iterdir()}


def test_an_array_of_objects_crosses_by_value(repo_of: Callable[..., str]):
    """A detector's ragged boxes, an array of arrays, arrive as such, and go back as such."""
    repo = repo_of("""
        import numpy as np

        def boxes(faces):
            found = np.empty(len(faces), dtype=object)
            for i, count in enumerate(faces):
                found[i] = np.ones((count, 4), dtype="float32") * i if count else None
            return found, np.array([[1.5, "a"], [None, 2]], dtype=object), np.empty((0, 4), dtype=object)

        def same(boxes):
            return boxes.dtype == object and [type(box).__name__ for box in boxes]
    """)

    ragged, mixed, empty = isohub.load(repo, "boxes", [2, 0, 3])

    assert [None if box is None else box.shape for box in ragged] == [(2, 4), None, (3, 4)]
    assert (ragged[2] == 2).all()
    assert mixed.tolist() == [[1.5, "a"], [None, 2]]
    assert [np.dtype(object)] * 3 == [ragged.dtype, mixed.dtype, empty.dtype]
    assert empty.shape == (0, 4)
    assert isohub.load(repo, "same", ragged) == ["ndarray", "NoneType", "ndarray"]


def test_a_buffer_that_forward_replaces_is_seen_by_the_caller(repo_of: Callable[..., str]):
    """`self.steps = self.steps + 1` and `self.mean = new` in forward reach the state dict, and back."""
    repo = repo_of("""
        import torch

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("steps", torch.tensor(0))
                self.register_buffer("mean", torch.zeros(3))

            def forward(self, x):
                self.steps = self.steps + 1
                self.mean = self.mean * 0.5 + x
                return self.mean * self.steps

        def net():
            return Net()
    """)
    x = torch.tensor([1.0, 2.0, 4.0])
    model = isohub.load(repo, "net")

    model(x)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(x)
    model.load_state_dict({"steps": torch.tensor(9), "mean": torch.zeros(3)})

    torch.testing.assert_close(first, {"steps": torch.tensor(1), "mean": x})
    torch.testing.assert_close(model(x), x * 10)
    torch.testing.assert_close(dict(model.state_dict()), {"steps": torch.tensor(10), "mean": x})


def test_a_method_that_rebuilds_the_module_is_seen_by_the_caller(repo_of: Callable[..., str]):
    """Layers that a method of the repository's fuses, casts or unfreezes are so in the caller's module too."""
    repo = repo_of("""
        import torch

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.body = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
                self.head = torch.nn.Linear(2, 1)

            def forward(self, x):
                return self.head(self.body(x))

            def fuse(self):
                self.body = torch.nn.Linear(2, 2, bias=False)
                return self

            def widen(self):
                self.head.weight.data = torch.full((1, 2), 3.0)

        def net():
            return Net().eval()

        def double(model):
            model.double()
    """)
    model = isohub.load(repo, "net")

    fused = model.fuse()
    model.widen()
    model.train()

    assert fused is model
    assert list(model.state_dict()) == ["body.weight", "head.weight", "head.bias"]
    assert [name for name, _ in model.named_children()] == ["body", "head"]
    assert model.head.weight.tolist() == [[3.0, 3.0]]
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(7)
    assert model(torch.ones(2)).tolist() == [7.0]
    isohub.load(repo, "double", model)
    assert [parameter.dtype for parameter in model.parameters()] == [torch.float64] * 3


def test_lazy_parameters_are_seen_once_they_are_there(repo_of: Callable[..., str]):
    """The first forward gives a lazy layer its weights, for the caller as well."""
    repo = repo_of("""
        import torch

        def net():
            return torch.nn.Sequential(torch.nn.LazyLinear(2, bias=False))
    """)
    model = isohub.load(repo, "net")
    x = torch.ones(1, 3)

    y = model(x)

    assert model[0].weight.shape == (2, 3)
    torch.testing.assert_close(x @ model[0].weight.T, y, rtol=0, atol=0)
