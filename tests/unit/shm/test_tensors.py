from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from isohub.errors import RemoteProtocolError
from isohub.shm.arena import Arena
from isohub.shm.segment import Segment, create_memfd
from isohub.shm.tensors import Residents, TensorReader, TensorWriter, name_of_dtype, why_not
from isohub.shm.watch import Watch
from isohub.wire.specs import DTYPES, META, NOWHERE, Block, TensorSpec


class Sides:
    """A writer's arena, and a reader's own mapping of the same memory."""

    def __init__(self) -> None:
        self.theirs: dict[int, Segment] = {}
        self.arena = Arena(self._grow)
        self.residents = Residents()
        self.watch = Watch()

    def segment(self, nbytes: int) -> Segment:
        number = len(self.theirs) + 1
        fd = create_memfd(nbytes)
        try:
            self.theirs[number] = Segment(number, fd, nbytes)
            return Segment(number, fd, nbytes)
        finally:
            os.close(fd)

    def _grow(self, nbytes: int) -> Segment:
        return self.segment(nbytes)

    def write(self, *tensors: Tensor) -> tuple[list[Block], list[TensorSpec]]:
        writer = TensorWriter(self.arena, self.residents)
        assert list(range(len(tensors))) == [writer.add(tensor) for tensor in tensors]
        return writer.finish()

    def read(self, blocks: list[Block], specs: list[TensorSpec]) -> list[Tensor]:
        reader = TensorReader(blocks, specs, self.theirs.get, self.watch)
        return [reader[index] for index in range(len(specs))]

    def cross(self, *tensors: Tensor) -> list[Tensor]:
        return self.read(*self.write(*tensors))


@pytest.fixture
def sides() -> Iterator[Sides]:
    made = Sides()
    yield made
    vars(made).clear()  # pytest keeps the object itself until everything else is torn down


def base(count: int = 24) -> Tensor:
    return torch.arange(float(count))


ZOO: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "plain": lambda: (base().reshape(4, 6),),
    "0-d": lambda: (torch.tensor(3.5),),
    "0-d inside": lambda: (base()[7],),
    "empty": lambda: (torch.empty(0, 5),),
    "empty inside": lambda: (base()[9:9],),
    "transposed": lambda: (base().reshape(4, 6).t(),),
    "strided holes": lambda: (base()[1::5],),
    "columns": lambda: (base().reshape(4, 6)[:, 2:4],),
    "channels last": lambda: (base().reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),),
    "expanded": lambda: (torch.tensor([[1.0], [2.0]]).expand(2, 50),),
    "expanded scalar": lambda: (torch.tensor(2.0).expand(3, 3),),
    "overlapping windows": lambda: (base().unfold(0, 4, 2),),
    "shared": lambda: (one := base(), one[:], one.reshape(4, 6)),
    "half shared": lambda: (one := base(), one[12:], one[:18]),
    "apart in one storage": lambda: ((one := base())[:3], one[20:]),
    "nested ranges": lambda: ((one := base()), one[2:4], one[22:]),
    "two dtypes over one storage": lambda: ((one := base()), one.view(torch.uint8)[5:50], one.view(torch.int16)),
    "odd offset": lambda: (torch.arange(100, dtype=torch.uint8)[67:71],),
    "odd offsets that share": lambda: ((one := torch.arange(200, dtype=torch.uint8))[67:171], one[99:180]),
    "meta": lambda: (torch.empty(3, 1 << 40, device="meta"), torch.empty(2, 3, device="meta").t()),
    "bool": lambda: (torch.tensor([True, False, True]),),
    "conjugated": lambda: (torch.tensor([1 + 2j, 3 - 4j]).conj(),),
    "negated": lambda: (torch.tensor([1 + 2j, 3 - 4j]).conj().imag,),
    "a large one": lambda: (torch.arange(600_000.0)[5:],),
    "all kinds at once": lambda: (base(), torch.empty(0), torch.empty(2, device="meta"), torch.tensor(1), base(3)),
}  # fmt: skip


def geometry(tensors: Any) -> list[Any]:
    return [(t.dtype, t.shape, t.stride(), t.device.type) for t in tensors]


def shares(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", ZOO)
def test_geometry_crosses(sides: Sides, name: str):
    """A tensor has the same values, dtype, sizes and strides on the other side."""
    tensors = ZOO[name]()

    crossed = sides.cross(*tensors)

    assert geometry(t.resolve_conj().resolve_neg() for t in tensors) == geometry(crossed)
    for before, after in zip(tensors, crossed, strict=True):
        assert before.device.type == "meta" or torch.equal(before, after)


@pytest.mark.parametrize("name", ["shared", "half shared", "nested ranges", "odd offsets that share"])
def test_overlap_crosses(sides: Sides, name: str):
    """Tensors that see the same elements go on doing so: what one writes the other reads."""
    tensors = ZOO[name]()
    crossed = sides.cross(*tensors)

    for group in (tensors, crossed):
        group[0].zero_()
    assert all(torch.equal(before, after) for before, after in zip(tensors, crossed, strict=True))
    assert all(shares(crossed[0], after) for after in crossed)


def test_tensors_apart_cost_what_they_are(sides: Sides):
    """Two ends of one large storage do not bring along what lies between them."""
    one = torch.zeros(1_000_000)

    blocks, _ = sides.write(one[:3], one[-3:])

    assert len(blocks) == 2
    assert sum(block.nbytes for block in blocks) < 300


def test_expanded_costs_one_row(sides: Sides):
    """An expanded tensor is sent as the elements that it has."""
    (block,), (spec,) = sides.write(torch.ones(4).expand(1000, 4))

    assert (block.nbytes, spec.shape, spec.stride) == (16, [1000, 4], [0, 1])


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [name for name in DTYPES if hasattr(torch, name)])
def test_every_dtype_crosses(sides: Sides, dtype: str):
    """Each dtype that torch has arrives as itself, bit for bit."""
    kind = getattr(torch, dtype)
    raw = torch.arange(64, dtype=torch.uint8) % 2
    tensor = torch.empty(0, dtype=kind).set_(raw.untyped_storage(), 0, (64 // kind.itemsize,), (1,))

    (crossed,) = sides.cross(tensor)

    assert crossed.dtype is kind
    assert name_of_dtype(kind) == dtype
    assert bytes(raw.tolist()) == bytes(crossed.untyped_storage().tolist()[:64])


@pytest.mark.parametrize("kind", ["tensor", "parameter"])
@pytest.mark.parametrize("wants", [True, False], ids=["gradients", "none"])
def test_spec_tells_of_gradients(sides: Sides, kind: str, wants: bool):
    """Whether a tensor asked for gradients is told; the tensor itself arrives without."""
    tensor = torch.ones(2, requires_grad=wants)
    _, (spec,) = written = sides.write(torch.nn.Parameter(tensor.detach(), wants) if kind == "parameter" else tensor)

    assert spec.requires_grad is wants
    assert not sides.read(*written)[0].requires_grad


def test_one_object_is_one_tensor(sides: Sides):
    """The same tensor added twice is sent once, and made once."""
    writer = TensorWriter(sides.arena, sides.residents)
    tensor = base()

    assert [writer.add(tensor), writer.add(base()), writer.add(tensor)] == [0, 1, 0]
    reader = TensorReader(*writer.finish(), sides.theirs.get, sides.watch)
    assert reader[0] is reader[0]
    assert reader[0] is not reader[1]


def test_resident_is_not_copied(sides: Sides):
    """A tensor that lies in a segment of weights crosses as a reference to it."""
    ours = sides.segment(4096)
    sides.residents.add(ours)
    here = TensorReader(
        [Block(ours.number, 128, 256)], [TensorSpec(0, "float32", [8, 8], [8, 1], 0)], {1: ours}.get, sides.watch
    )[0]
    here.copy_(base(64).reshape(8, 8))

    blocks, specs = sides.write(here.t(), here[3])
    there, row = sides.read(blocks, specs)

    assert [Block(1, 128, 256)] == blocks
    assert repr(sides.arena) == "<Arena 0 blocks, 0 of 0 bytes>"
    assert torch.equal(here.t(), there)
    here[3] = -1
    assert row.tolist() == [-1] * 8


def test_copy_is_a_copy(sides: Sides):
    """What the caller does to an argument afterwards does not reach the other side."""
    tensor = base(3)
    (crossed,) = sides.cross(tensor)

    tensor.zero_()

    assert crossed.tolist() == [0.0, 1.0, 2.0]


def test_blocks_die_with_their_last_tensor(sides: Sides):
    """A block is told to be free when nothing looks into it any more, once, and not before."""
    blocks, specs = sides.write(base(), torch.ones(3))
    first, second = sides.read(blocks, specs)
    assert sides.watch.take() == []

    part = first[3:5]
    del first
    gc.collect()
    assert sides.watch.take() == []
    del part, second
    gc.collect()

    assert sorted((block.segment, block.offset) for block in blocks) == sorted(sides.watch.take())
    assert sides.watch.take() == []


def test_steady_state_takes_no_more_memory(sides: Sides):
    """Calls of one kind find their blocks where the call before left them."""
    places = set()
    for _ in range(20):
        blocks, specs = sides.write(base(1000), torch.ones(3))
        crossed = sides.read(blocks, specs)
        places.add(tuple(blocks))
        del crossed
        gc.collect()
        for segment, offset in sides.watch.take():
            sides.arena.release(segment, offset)

    assert len(places) == 1
    assert len(sides.theirs) == 1


def test_failed_writer_gives_back(sides: Sides):
    """When the memory for one tensor cannot be had, the blocks of the others are free again."""
    arena = Arena(lambda nbytes: sides.segment(nbytes) if nbytes < 1 << 26 else (_ for _ in ()).throw(MemoryError()))
    writer = TensorWriter(arena, sides.residents)
    for tensor in (base(), torch.empty(1 << 25), base()):
        writer.add(tensor)

    with pytest.raises(MemoryError):
        writer.finish()

    assert repr(arena).startswith("<Arena 0 blocks, 0 of ")


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        pytest.param(lambda: torch.eye(3).to_sparse(), "its layout is torch.sparse_coo", id="sparse"),
        pytest.param(lambda: torch.quantize_per_tensor(base(3), 0.1, 0, torch.quint8), "its dtype is torch.quint8",
                     id="quantized"),
        pytest.param(lambda: torch.nested.nested_tensor([base(2), base(3)], layout=torch.jagged), "", id="nested"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_lie_in_shared_memory(tensor: Callable[[], Tensor], reason: str):
    """A tensor that is more than strided bytes on the CPU says why it cannot cross."""
    told = why_not(tensor())

    assert told is not None
    assert reason in told


def hostile(block: int = 0, dtype: str = "float32", shape: Any = (4,), stride: Any = (1,), offset: int = 0):
    return TensorSpec(block, dtype, list(shape), list(stride), offset)


@pytest.mark.parametrize(
    ("block", "spec"),
    [
        pytest.param(Block(1, 0, 64), hostile(shape=[2**62], stride=[4]), id="sizes that overflow"),
        pytest.param(Block(1, 0, 64), hostile(shape=[2], stride=[2**63 - 1]), id="stride that overflows"),
        pytest.param(Block(1, 0, 64), hostile(shape=[-1]), id="negative size"),
        pytest.param(Block(1, 0, 64), hostile(stride=[-1], offset=32), id="negative stride"),
        pytest.param(Block(1, 64, 64), hostile(offset=-64), id="negative offset"),
        pytest.param(Block(1, 0, 64), hostile(offset=2), id="unaligned"),
        pytest.param(Block(1, 0, 64), hostile(shape=[1] * 65, stride=[1] * 65), id="65 dimensions"),
        pytest.param(Block(1, 0, 64), hostile(dtype="quint8"), id="unknown dtype"),
        pytest.param(Block(1, 0, 64), hostile(dtype="Tensor"), id="an attribute of torch that is no dtype"),
        pytest.param(Block(1, 0, 64), hostile(shape=[2**40], stride=[0]), id="expanded to 2**40"),
        pytest.param(Block(1, 0, 64), hostile(offset=52), id="offset past the block"),
        pytest.param(Block(1, 0, 64), hostile(shape=[17]), id="past the block, inside the segment"),
        pytest.param(Block(1, 0, 64), hostile(block=1), id="no such block"),
        pytest.param(Block(1, 0, 64), hostile(block=-3), id="block -3"),
        pytest.param(Block(1, 0, 64), hostile(block=NOWHERE), id="elements nowhere"),
        pytest.param(Block(1, 0, 64), hostile(block=META, shape=[2**63]), id="meta without end"),
        pytest.param(Block(2, 0, 64), hostile(), id="no such segment"),
        pytest.param(Block(0, 0, 64), hostile(), id="segment 0"),
        pytest.param(Block(1, 4096, 64), hostile(), id="block after the segment"),
        pytest.param(Block(1, 4032, 128), hostile(), id="block that leaves the segment"),
        pytest.param(Block(1, 32, 64), hostile(), id="unaligned block"),
        pytest.param(Block(1, -64, 64), hostile(), id="negative block"),
    ],
)
def test_hostile_spec_is_refused(sides: Sides, block: Block, spec: TensorSpec):
    """A number that leads out of the worker's own memory is refused, and the block is not kept."""
    sides.segment(4096)

    with pytest.raises(RemoteProtocolError):
        sides.read([block], [spec])

    gc.collect()
    assert len(sides.watch._alive) == 0


@pytest.mark.parametrize("index", [-1, 1, 2**70])
def test_index_without_tensor_is_refused(sides: Sides, index: int):
    """A value that speaks of a tensor that did not come is nonsense."""
    reader = TensorReader(*sides.write(base()), sides.theirs.get, sides.watch)

    with pytest.raises(RemoteProtocolError, match="of 1"):
        reader[index]
