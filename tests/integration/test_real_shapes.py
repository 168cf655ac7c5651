"""What published hub repositories do, each in a repository made up for it: found by running them."""

from __future__ import annotations

import importlib.util
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np

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
