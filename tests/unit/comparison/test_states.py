"""Two state dicts, and what became of their entries."""

from __future__ import annotations

import torch

from isohub.comparison.states import compare_states, renames_of


def test_equal_states():
    """Equal state dicts have no difference, whatever the order of their entries."""
    one = {"a.weight": torch.arange(4.0), "a.bias": torch.zeros(2)}
    found = compare_states(one, dict(reversed([(name, tensor.clone()) for name, tensor in one.items()])))

    assert (found.is_equal, found.same, found.entries, found.nbytes) == (True, 2, (2, 2), (24, 24))


def test_each_kind_of_change():
    """What came, went, has another shape, dtype or other values is told apart, with norms."""
    one = {"same": torch.ones(2), "gone": torch.full((3,), 7.0), "shape": torch.ones(2), "dtype": torch.ones(2),
           "values": torch.tensor([3.0, 4.0])}  # fmt: skip
    other = {"same": torch.ones(2), "new": torch.full((3,), 8.0), "shape": torch.ones(1, 2),
             "values": torch.tensor([3.0, 0.0]), "dtype": torch.ones(2).double()}  # fmt: skip

    found = compare_states(one, other)

    assert (found.added, found.removed, found.moved, found.same) == (["new"], ["gone"], [], 1)
    assert [(change.name, change.shapes) for change in found.reshaped] == [("shape", ([2], [1, 2]))]
    assert [(change.name, change.dtypes) for change in found.retyped] == [("dtype", ("float32", "float64"))]
    assert [(change.name, change.max_abs, change.norms) for change in found.changed] == [("values", 4.0, (5.0, 3.0))]
    assert found.changed[0].norm_of_difference == 4.0
    assert not found.is_renamed


def test_moved_entries_are_found_by_content():
    """Entries with the same content under another name have moved; of several the one with the nearest name."""
    zeros = torch.zeros(3)
    one = {"body.0.weight": torch.arange(6.0), "body.0.bias": zeros, "body.2.bias": zeros, "head.bias": zeros}
    other = {"trunk.0.weight": torch.arange(6.0), "trunk.2.bias": zeros, "trunk.0.bias": zeros, "head.bias": zeros}

    found = compare_states(one, other)

    assert found.moved == [
        ("body.0.weight", "trunk.0.weight"), ("body.0.bias", "trunk.0.bias"), ("body.2.bias", "trunk.2.bias"),
    ]  # fmt: skip
    assert (found.is_renamed, found.is_equal, found.added, found.removed) == (True, False, [], [])
    assert renames_of(found.moved) == {"body.0": "trunk.0", "body.2": "trunk.2", "body": "trunk"}
    assert renames_of(found.moved, ["", "body", "body.1", "head"])["body.1"] == "trunk.1"


def test_equal_bytes_of_another_dtype_have_not_moved():
    """The same bytes under another dtype or shape are another content."""
    found = compare_states({"a": torch.zeros(4)}, {"b": torch.zeros(4, dtype=torch.int32), "c": torch.zeros(2, 2)})

    assert (found.moved, found.added, found.removed) == ([], ["b", "c"], ["a"])


def test_extra_state_counts_by_its_text():
    """An entry that is no tensor is the same if it reads the same."""
    found = compare_states({"x": {"a": 1}, "y": "old"}, {"x": {"a": 1}, "y": "new"})

    assert (found.same, [change.name for change in found.changed]) == (1, ["y"])
