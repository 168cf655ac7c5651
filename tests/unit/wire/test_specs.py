from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from isohub.errors import RemoteProtocolError
from isohub.wire.specs import DTYPES, META, NOWHERE, Block, TensorSpec, check_block, check_spec

BLOCKS = [Block(1, 0, 64), Block(1, 64, 0)]


def spec(shape: list[int], stride: list[int], *, offset: int = 0, dtype: str = "float32", block: int = 0) -> TensorSpec:
    return TensorSpec(block, dtype, shape, stride, offset)


@pytest.mark.parametrize(
    "good",
    [
        pytest.param(spec([16], [1]), id="fills the block"),
        pytest.param(spec([15], [1], offset=4), id="ends with the block"),
        pytest.param(spec([4, 4], [1, 4]), id="transposed"),
        pytest.param(spec([], []), id="0-d"),
        pytest.param(spec([], [], offset=60), id="0-d at the end"),
        pytest.param(spec([0], [1], offset=64), id="empty at the end"),
        pytest.param(spec([0, 1 << 40], [1, 1]), id="empty with one large size"),
        pytest.param(spec([1000, 16], [0, 1]), id="expanded"),
        pytest.param(spec([1] * 64, [1] * 64), id="64 dimensions"),
        pytest.param(spec([1, 1], [1 << 60, 1]), id="a large stride that is never taken"),
        pytest.param(spec([1 << 40], [1], block=META), id="meta"),
        pytest.param(spec([3, 0], [1, 1], block=NOWHERE), id="nowhere"),
        pytest.param(spec([0], [1], block=1), id="empty block"),
        pytest.param(spec([4], [1], dtype="complex128"), id="widest dtype"),
    ],
)
def test_spec_inside_its_block(good: TensorSpec):
    """What stays inside its block is let through."""
    check_spec(good, BLOCKS)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param(spec([17], [1]), "leaves its 64 bytes", id="one element past the end"),
        pytest.param(spec([16], [1], offset=4), "leaves its 64 bytes", id="shifted past the end"),
        pytest.param(spec([2], [16]), "leaves its 64 bytes", id="one step past the end"),
        pytest.param(spec([], [], offset=64), "leaves its 64 bytes", id="0-d past the end"),
        pytest.param(spec([0], [1], offset=128), "leaves its 64 bytes", id="empty past the end"),
        pytest.param(spec([1], [1], offset=2), "unaligned", id="unaligned"),
        pytest.param(spec([2], [1], dtype="complex128", offset=8), "unaligned", id="unaligned for its dtype"),
        pytest.param(spec([-1], [1]), "negative", id="negative size"),
        pytest.param(spec([2], [-1], offset=4), "negative", id="negative stride"),
        pytest.param(spec([1], [1], offset=-4), "negative", id="negative offset"),
        pytest.param(spec([2, 2], [1]), "2 sizes and 1 strides", id="stride too few"),
        pytest.param(spec([1] * 65, [1] * 65), "65 sizes", id="65 dimensions"),
        pytest.param(spec([1], [1], dtype="float33"), "unknown dtype 'float33'", id="unknown dtype"),
        pytest.param(spec([1], [1], dtype="float32\x1b[2J" * 99), "unknown dtype", id="long dtype"),
        pytest.param(spec([1 << 40], [0]), "expanded beyond all bounds", id="expanded to 2**40"),
        pytest.param(spec([1 << 40, 1 << 40], [0, 0]), "beyond 64-bit", id="expanded to 2**80"),
        pytest.param(spec([2], [1 << 62]), "beyond 64-bit", id="a step of 2**62"),
        pytest.param(spec([1 << 32, 1 << 32], [1 << 32, 1]), "beyond 64-bit", id="2**64 elements"),
        pytest.param(spec([1 << 63], [1], block=META), "beyond 64-bit", id="meta of 2**63"),
        pytest.param(spec([1], [1], block=2), "block 2 of 2", id="no such block"),
        pytest.param(spec([1], [1], block=-3), "block -3 of 2", id="negative block"),
        pytest.param(spec([1], [1], block=NOWHERE), "block -2 of 2", id="elements nowhere"),
        pytest.param(spec([1], [1], block=1), "leaves its 0 bytes", id="elements in an empty block"),
    ],
)
def test_spec_outside_its_block(bad: TensorSpec, message: str):
    """A number that makes no sense is the worker's nonsense, told in a short text."""
    with pytest.raises(RemoteProtocolError, match=message) as caught:
        check_spec(bad, BLOCKS)

    assert len(str(caught.value)) < 600


sizes = st.lists(st.tuples(st.integers(0, 5) | st.integers(0, 2**63 - 1), st.integers(0, 9)), max_size=4)


@given(sizes, st.integers(0, 80), st.sampled_from(["uint8", "int16", "float32", "complex128"]))
@example([(16, 1)], 0, "float32")
@example([(17, 1)], 0, "float32")
@example([(0, 1)], 64, "float32")
def test_what_passes_lies_inside(steps: list[tuple[int, int]], offset: int, dtype: str):
    """The check agrees with a count of every byte that the tensor touches."""
    shape, stride = [size for size, _ in steps], [step for _, step in steps]
    itemsize = getattr(torch, dtype).itemsize
    last = sum((size - 1) * step for size, step in steps)
    inside = offset + (last + 1) * itemsize <= 64 if 0 not in shape else offset <= 64
    fits_64_bits = max(math.prod(shape).bit_length(), last.bit_length()) <= 62
    said = spec(shape, stride, offset=offset, dtype=dtype)
    if offset % itemsize == 0 and inside and fits_64_bits and math.prod(shape) * itemsize <= 1 << 30:
        check_spec(said, BLOCKS)
    else:
        with pytest.raises(RemoteProtocolError):
            check_spec(said, BLOCKS)


def test_expansion_is_bounded_by_memory():
    """A large block may be seen 1024 times, which masks need, and no more."""
    big = [Block(1, 0, 4 << 20)]

    check_spec(spec([1024, 1 << 20], [0, 1]), big)
    with pytest.raises(RemoteProtocolError, match="expanded beyond all bounds"):
        check_spec(spec([1025, 1 << 20], [0, 1]), big)


@pytest.mark.parametrize("block", [Block(1, 0, 128), Block(1, 128, 0), Block(1, 64, 64), Block(1, 0, 1)])
def test_block_inside_its_segment(block: Block):
    """What stays inside its segment is let through."""
    check_block(block, 128)


@pytest.mark.parametrize(
    "block",
    [Block(1, 0, 129), Block(1, 128, 1), Block(1, 192, 0), Block(1, -64, 64), Block(1, 64, -64), Block(1, 32, 1),
     Block(1, 1 << 62, 1 << 62)],
    ids=["too long", "after the end", "empty after the end", "negative offset", "negative size", "unaligned", "huge"],
)  # fmt: skip
def test_block_outside_its_segment(block: Block):
    """What leaves its segment, or is not aligned, is the worker's nonsense."""
    with pytest.raises(RemoteProtocolError, match="a block"):
        check_block(block, 128)


def test_itemsizes_are_torchs():
    """For each dtype that torch here has, the table tells torch's own number of bytes."""
    known = {name: getattr(torch, name).itemsize for name in DTYPES if hasattr(torch, name)}

    assert known == {name: DTYPES[name] for name in known}
    assert {"float32", "bfloat16", "complex128", "bool", "uint16", "float8_e4m3fn"} <= known.keys()
