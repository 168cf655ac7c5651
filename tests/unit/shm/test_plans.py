"""Call plans: what has one comes out as without one, and everything else is left to the long way."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from isohub.shm.arena import Arena
from isohub.shm.plans import MAX_PLANS, MISSING, Plans
from isohub.shm.residents import Residents
from isohub.shm.segment import Segment, create_memfd
from isohub.shm.watch import Watch
from isohub.wire import codec, structs
from isohub.wire.messages import Payload
from isohub.wire.specs import Block


class Ends:
    """Both ends of a border in one process: what one writes the other reads."""

    def __init__(self) -> None:
        self.segments: dict[int, Segment] = {}
        self.arena = Arena(self._grow)
        self.residents = Residents()
        self.sender, self.receiver = Plans(), Plans()
        self.watch = Watch()

    def _grow(self, nbytes: int) -> Segment:
        fd = create_memfd(nbytes)
        number = len(self.segments) + 1
        self.segments[number] = Segment(number, fd, nbytes)
        os.close(fd)
        return self.segments[number]

    def write(self, value: Any) -> Payload | None:
        # The first of a form has no plan.
        found = self.sender.write(value, self.arena, self.residents)
        return self.sender.write(value, self.arena, self.residents) if found is None else found

    def send(self, value: Any) -> Any:
        payload = self.write(value)
        assert payload is not None
        self.receiver.learn(payload.form, codec.whole(payload))
        return self.receiver.read(payload, self.segments.get, self.watch)


PLAIN: dict[str, Callable[[], Any]] = {
    "a tensor": lambda: torch.arange(6.0).reshape(2, 3),
    "a number in a tensor": lambda: torch.tensor(3),
    "arguments": lambda: ((torch.ones(2, 3), None, True), {"mask": torch.ones(4, dtype=torch.bool), "mode": "max"}),
    "lists and dicts": lambda: {"a": [torch.zeros(1), torch.ones(2, dtype=torch.bfloat16)], "b": (), "é": "ü"},
    "False and not None": lambda: [torch.ones(1, dtype=torch.uint8), False, None, ""],
    "one element along an axis": lambda: torch.ones(1, 3, 1),
    "numbers": lambda: [torch.ones(1), 16_000, -1, 0.5, 1e300, (1 << 53) - 1],
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_value_comes_out_as_it_went_in(name: str):
    """A value that has a plan arrives with the same containers, dtypes, shapes, strides and numbers, each time."""
    ends = Ends()
    for _ in range(3):
        value = PLAIN[name]()

        found = ends.send(value)

        assert shape_of(value) == shape_of(found)
        assert not any(tensor._is_view() for tensor in tree_leaves(found) if isinstance(tensor, torch.Tensor))


def shape_of(value: Any) -> Any:
    """Return what can be compared of a value."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.stride(), value.requires_grad, value.tolist()
    if isinstance(value, dict):
        return {key: shape_of(member) for key, member in value.items()}
    return (type(value), [shape_of(member) for member in value]) if isinstance(value, list | tuple) else value


def resized() -> torch.Tensor:
    tensor = torch.ones(8)
    tensor.untyped_storage().resize_(4)
    return tensor


def overlapping() -> list[torch.Tensor]:
    tensor = torch.ones(8)
    return [tensor[:4], tensor[4:]]


def looping() -> list[Any]:
    value: list[Any] = [torch.ones(1)]
    value.append(value)
    return value


OTHERS: dict[str, Callable[[], Any]] = {
    "a gradient": lambda: torch.ones(2, requires_grad=True),
    "a parameter": lambda: torch.nn.Parameter(torch.ones(2), requires_grad=False),
    "a transposed view": lambda: torch.ones(2, 3).t(),
    "a stride that chooses a memory format": lambda: torch.ones(16).as_strided((1, 1, 4, 4), (16, 1, 4, 1)),
    "elements apart": lambda: torch.ones(8)[::2],
    "nothing": lambda: torch.ones(0, 3),
    "a complex one": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    "the negative of an imaginary part": lambda: torch.ones(2, dtype=torch.complex64).conj().imag,
    "on meta": lambda: torch.ones(2, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    "memory cut short": resized,
    "two over one memory": overlapping,
    "one twice": lambda: [one := torch.ones(2), one],
    "a number that JSON rounds": lambda: (torch.ones(1), 1 << 53),
    "an infinite number": lambda: (torch.ones(1), float("inf")),
    "no number": lambda: (torch.ones(1), float("nan")),
    "a key that is no text": lambda: {1: torch.ones(1)},
    "a set": lambda: {1, 2},
    "an object": lambda: (torch.ones(1), object()),
    "a list that holds itself": looping,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_plain_has_no_plan(name: str):
    """Whatever a plan would not carry exactly has none, and nothing is allocated for it."""
    ends = Ends()
    assert ends.write(OTHERS[name]()) is None
    assert "0 blocks" in repr(ends.arena)


def test_first_of_a_form_has_no_plan():
    """A plan is made for a form that comes again, so that a counter among the arguments makes none with each call."""
    ends = Ends()
    found = [ends.sender.write((torch.ones(1), n), ends.arena, ends.residents) for n in (0, 1, 2, 1, 0)]

    assert [payload is not None for payload in found] == [False, False, False, True, True]


def test_equal_numbers_of_other_kinds_are_told_apart():
    """1, 1.0 and True, and 0.0 and -0.0, each arrive as what they are, though Python finds them equal."""
    ends = Ends()
    values = [True, 1, 1.0, False, 0, 0.0, -0.0, "1"]

    found = [ends.send((torch.ones(1), value))[1] for value in values]

    assert [(type(value), repr(value)) for value in values] == [(type(value), repr(value)) for value in found]


def test_weights_are_not_copied():
    """A tensor that lies in shared memory already has no plan: it goes as what it is."""
    ends = Ends()
    weights = ends._grow(1 << 20)
    ends.residents.add(weights)

    assert ends.write(torch.frombuffer(weights.view(0, 64), dtype=torch.uint8)) is None


def test_block_is_given_back_when_its_tensor_dies():
    """The block of a tensor is told to be free once the tensor is gone, and not before."""
    ends = Ends()
    found = ends.send(torch.ones(4))
    assert ends.watch.take() == []

    del found
    gc.collect()

    assert ends.watch.take() == [(1, 0)]


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param([], id="fewer"),
        pytest.param([Block(1, 0, 16), Block(1, 64, 16)], id="more"),
        pytest.param([Block(1, 0, 8)], id="smaller"),
        pytest.param([Block(1, 0, 32)], id="larger"),
        pytest.param([Block(9, 0, 16)], id="nowhere"),
    ],
)
def test_blocks_that_do_not_fit_go_the_long_way(blocks: list[Block]):
    """A known form with other blocks than it tells of is not read by its plan, whose sizes are of before."""
    ends = Ends()
    payload = ends.write(torch.ones(4))
    assert payload is not None
    ends.receiver.learn(payload.form, codec.whole(payload))

    assert ends.receiver.read(structs.replace(payload, blocks=blocks), ends.segments.get, ends.watch) is MISSING


def test_plans_do_not_grow_without_end():
    """However many forms there are, so many are kept, and each arrives as it is."""
    ends = Ends()
    for size in range(1, 3 * MAX_PLANS):
        assert (size,) == ends.send(torch.ones(size)).shape

    assert max(len(ends.sender._written), len(ends.receiver._read)) <= MAX_PLANS
