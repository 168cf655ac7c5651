"""Tensors and modules, described in numbers, and the checks that those numbers must pass.

Every number here may come from a hostile worker. Python's integers do not overflow, so the checks are
plain arithmetic; torch itself would accept, for one, a stride-0 tensor of 2**40 elements.
"""

from __future__ import annotations

from isohub.errors import RemoteProtocolError
from isohub.wire.structs import Struct

__all__ = [
    "ALIGNMENT_BYTES", "DTYPES", "META", "NOWHERE", "OWN_STATE", "PAGED_BYTES", "Block", "ModuleNode", "ModuleSpec",
    "TensorSpec", "check_block", "check_spec", "places_of",
]  # fmt: skip

# What a module may do otherwise than `nn.Module`: its whole `load_state_dict`; the loading of its own tensors,
# always or where they are of an old format; something after the loading; the saving. `elsewhere` says that its
# tensors are on a device that only the worker can reach.
OWN_STATE = ("load_state_dict", "load", "load_old", "loaded", "save", "elsewhere")

META = -1  # the block of a tensor on the meta device
NOWHERE = -2  # the block of a tensor without elements

# Bytes an element, for every dtype that torch 2.13 has on the CPU.
DTYPES: dict[str, int] = {
    **dict.fromkeys(
        ["bool", "uint8", "int8", "bits8", "bits1x8", "bits2x4", "bits4x2", "float8_e4m3fn", "float8_e4m3fnuz",
         "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"], 1),
    **{f"{sign}{bits}": 1 for sign in ("int", "uint") for bits in range(1, 8)},
    **dict.fromkeys(["int16", "uint16", "float16", "bfloat16", "bits16"], 2),
    **dict.fromkeys(["int32", "uint32", "float32", "complex32"], 4),
    **dict.fromkeys(["int64", "uint64", "float64", "complex64"], 8),
    "complex128": 16,
}  # fmt: skip

# A cache line, and the alignment that torch's own CPU allocator gives (c10::gAlignment), so that
# vectorised kernels behave as they do on memory of torch's own.
ALIGNMENT_BYTES = 64
# A storage of so many bytes and more lies on pages of its own in a segment of weights, which can be replaced alone.
PAGED_BYTES = 64 << 10

MAX_DIMENSIONS = 64  # torch's own limit for strided CPU tensors
# An expanded tensor names more bytes than it has. Honest ones are masks and biases, expanded over batch
# and heads; beyond this a `.clone()` of a hostile one would eat the parent's memory.
MAX_EXPANDED_BYTES = 1 << 30
MAX_EXPANSION = 1024


class Block(Struct, array_like=True, frozen=True, gc=False):
    """A piece of a segment that holds one storage.

    Attributes:
        segment: Number of the segment.
        offset: Where the block begins in it, in bytes; a multiple of `ALIGNMENT_BYTES`.
        nbytes: Its length in bytes.
    """

    segment: int
    offset: int
    nbytes: int


class TensorSpec(Struct, array_like=True, frozen=True, gc=False):
    """A strided view of a block.

    Attributes:
        block: Place in `Payload.blocks`, `META` or `NOWHERE`; tensors of one block share their storage.
        dtype: Name of the dtype without `torch.`.
        shape: Sizes in elements.
        stride: Steps in elements.
        offset: Where the first element lies in the block, in bytes.
        requires_grad: Whether the tensor asked for gradients on the side that sent it.
    """

    block: int
    dtype: str
    shape: list[int]
    stride: list[int]
    offset: int
    requires_grad: bool = False


class ModuleNode(Struct, array_like=True, frozen=True, gc=False):
    """One module of a tree.

    Attributes:
        number: Its own, unique in the worker, by which it is known again wherever it has moved to.
        type_name: Qualified name of its class; shown, never looked up.
        training: Its mode.
        text: Its `extra_repr()`, or the whole `repr` where `own_repr` is true.
        own_repr: Whether its class has a `__repr__` of its own.
        parameters: (name, place in `Payload.tensors`, or -1 for None), in order of registration.
        buffers: (name, place or -1, persistent), in order of registration.
        children: (name, place in `ModuleSpec.nodes`, or -1 for None), in order of registration.
        protocols: What can be done with it, of `values.PROTOCOLS`.
        version: The version of its state dict's format, which goes into the metadata of one.
        torch_type: Qualified name of the nearest class of torch.nn that it is an instance of.
        own_state: What of its state dict it does itself, of `OWN_STATE`.
    """

    number: int
    type_name: str
    training: bool
    text: str
    own_repr: bool
    parameters: list[tuple[str, int]]
    buffers: list[tuple[str, int, bool]]
    children: list[tuple[str, int]]
    protocols: list[str]
    version: int = 1
    torch_type: str = ""
    own_state: list[str] = []


class ModuleSpec(Struct, array_like=True, frozen=True, gc=False):
    """A module tree: `nodes[0]` is the root, and a node may have several parents.

    The tensors of a tree are counted in this order, each once: the parameters of all nodes, then the
    buffers of all nodes.

    Attributes:
        handle: Number of the root among the worker's objects.
        nodes: Its modules.
        parted: Whether it was part of another tree that the parent has, and is a tree of its own now.
    """

    handle: int
    nodes: list[ModuleNode]
    parted: bool = False


def places_of(nodes: list[ModuleNode]) -> list[int]:
    """Return the places in `Payload.tensors` of a tree's tensors, in the order in which they are counted."""
    parameters = [place for node in nodes for _, place in node.parameters]
    buffers = [place for node in nodes for _, place, _ in node.buffers]
    return [place for place in dict.fromkeys(parameters + buffers) if place != -1]


def check_spec(spec: TensorSpec, blocks: list[Block]) -> None:
    """Check that `spec` stays inside its block.

    Raises:
        RemoteProtocolError: It does not, or a number in it makes no sense.
    """
    itemsize = DTYPES.get(spec.dtype)
    if itemsize is None:
        raise RemoteProtocolError(f"a tensor of unknown dtype {spec.dtype[:40]!r}")
    if len(spec.shape) != len(spec.stride) or len(spec.shape) > MAX_DIMENSIONS:
        raise RemoteProtocolError(f"a tensor of {len(spec.shape)} sizes and {len(spec.stride)} strides")
    if min(spec.shape, default=0) < 0 or min(spec.stride, default=0) < 0 or spec.offset < 0:
        raise RemoteProtocolError(f"a tensor with a negative size, stride or offset: {_shown(spec)}")
    numel, last = 1, 0
    for size, stride in zip(spec.shape, spec.stride, strict=True):
        numel *= size
        last += (size - 1) * stride
    if numel.bit_length() > 62 or last.bit_length() > 62:
        raise RemoteProtocolError(f"a tensor beyond 64-bit sizes: {_shown(spec)}")
    if spec.block == META or (spec.block == NOWHERE and not numel):
        return
    if not 0 <= spec.block < len(blocks):
        raise RemoteProtocolError(f"a tensor in block {spec.block} of {len(blocks)}")
    nbytes = blocks[spec.block].nbytes
    end = spec.offset + (last + 1) * itemsize if numel else spec.offset
    if spec.offset % itemsize or end > nbytes:
        raise RemoteProtocolError(f"a tensor that is unaligned or leaves its {nbytes} bytes: {_shown(spec)}")
    if numel * itemsize > max(MAX_EXPANDED_BYTES, MAX_EXPANSION * nbytes):
        raise RemoteProtocolError(f"a tensor expanded beyond all bounds: {_shown(spec)}")


def check_block(block: Block, segment_nbytes: int) -> None:
    """Check that `block` lies in a segment of `segment_nbytes` bytes.

    Raises:
        RemoteProtocolError: It does not, or is not aligned.
    """
    if block.offset < 0 or block.nbytes < 0 or block.offset % ALIGNMENT_BYTES:
        raise RemoteProtocolError(f"a block with offset {block.offset} and {block.nbytes} bytes")
    if block.offset + block.nbytes > segment_nbytes:
        raise RemoteProtocolError(
            f"a block that ends at byte {block.offset + block.nbytes} of a segment of {segment_nbytes}"
        )


def _shown(spec: TensorSpec) -> str:
    return f"{spec.dtype} {spec.shape[:8]} strides {spec.stride[:8]} offset {spec.offset}"
