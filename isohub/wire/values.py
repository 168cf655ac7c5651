"""What can be said of one value: None, bool, int, float, str, and these structs.

The set is closed: there is no struct that names a type to build or a function to call. A value of any
other kind stays where it is and is spoken of by a `Ref`.
"""

from __future__ import annotations

from typing import Literal

from isohub.wire.structs import Struct

__all__ = ["MAX_HANDLES", "Items", "Pairs", "Record", "Ref", "Scalar", "TensorAt", "Value"]


# Objects, module trees and graphs of one worker that the parent may hold at a time. Each costs the parent about a
# kilobyte, and one message could name a million.
MAX_HANDLES = 1 << 16


class Items(Struct, array_like=True, tag="i", frozen=True, gc=False):
    """A sequence or set.

    Attributes:
        kind: Which; a `slice` or a `range` has its three numbers as items, and `objects`, a NumPy array of
            Python objects, its shape before them.
        items: The members, in order.
    """

    kind: Literal["list", "tuple", "set", "frozenset", "size", "slice", "range", "objects"]
    items: list[Value]


class Pairs(Struct, array_like=True, tag="d", frozen=True, gc=False):
    """A dict or OrderedDict: keys and values in turn."""

    kind: Literal["dict", "odict"]
    keys: list[Value]
    items: list[Value]


class Record(Struct, array_like=True, tag="r", frozen=True, gc=False):
    """A namedtuple, a dataclass without methods, or a mapping-like output, by value.

    Attributes:
        kind: Which of them.
        type_name: Name of the class in the worker. The parent shows it and looks nothing up by it; when the
            record is handed back, the worker finds the class among those of the records that it sent.
        keys: The names of the fields.
        items: Their values.
    """

    kind: Literal["namedtuple", "dataclass", "mapping"]
    type_name: str
    keys: list[str]
    items: list[Value]


class Scalar(Struct, array_like=True, tag="c", frozen=True, gc=False):
    """A small value that JSON cannot say; `text` is read by a function that belongs to `kind`."""

    kind: Literal[
        "int", "float", "complex", "str", "bytes", "bytearray", "ellipsis", "path",
        "datetime", "date", "time", "timedelta", "dtype", "device", "layout", "memory_format", "npdtype",
    ]  # fmt: skip
    text: str


class TensorAt(Struct, array_like=True, tag="T", frozen=True, gc=False):
    """A tensor of this payload, or something else that travels as one.

    Attributes:
        index: Place in `Payload.tensors`.
        kind: `bytes` and `pickle` are 1-D uint8; `pickle` goes from parent to worker only.
        detail: For `array` and `npscalar` the NumPy type (`"float32"`, `"datetime64[s]"`); else empty.
    """

    index: int
    kind: Literal["tensor", "parameter", "array", "npscalar", "bytes", "bytearray", "pickle"]
    detail: str = ""


class Ref(Struct, array_like=True, tag="o", frozen=True, gc=False):
    """Something that lives in the worker.

    Attributes:
        kind: An object, a bound method (`name`) of an object, a module (the one that `path` leads to in the
            tree of the module `handle`), or a parameter (`name`) of such a module.
        handle: Number of the object in the worker's table.
        path: Dotted path of a sub-module; empty for the object itself.
        name: Name of the method or parameter.
        type_name: Qualified name of its class; shown, never looked up.
        protocols: What can be done with it, of `PROTOCOLS`.
    """

    kind: Literal["object", "method", "module", "parameter"]
    handle: int
    path: str = ""
    name: str = ""
    type_name: str = ""
    protocols: list[str] = []


Value = None | bool | int | float | str | Items | Pairs | Record | Scalar | TensorAt | Ref

# What Python can do with an object by its type alone; a proxy gets just the methods that fit.
PROTOCOLS = (
    "call", "len", "iter", "next", "getitem", "setitem", "delitem", "contains", "with", "bool", "eq", "hash",
)  # fmt: skip
