"""Python values to `Value` and back, as far as no torch is needed for it.

Each side gives a `leaf` function for what this file does not know: tensors, arrays, handles, and on the
parent's side the last resort of cloudpickle.
"""

from __future__ import annotations

import base64
import datetime
import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

from isohub.errors import LocalProtocolError, RemoteProtocolError
from isohub.wire.values import Items, Pairs, Record, Scalar, Value

__all__ = ["MAX_DEPTH", "Where", "depth_of", "pack", "shown", "unpack"]

# Real outputs nest five or six deep. The cap keeps recursion far from the interpreter's limit on both
# sides and turns a list that holds itself into an error.
MAX_DEPTH = 100

# Those of numbers can be chosen: 100,000 with one hash would keep a set busy for minutes, and 1,000 do not matter.
MAX_ALIKE = 1000

# Longer bytes go through shared memory, like a tensor.
MAX_INLINE_BYTES = 1024

# JSON numbers beyond 64 bits are not read alike everywhere; such ints travel as text, a hexadecimal one,
# since that is read in linear time however long it is.
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1

# Types whose values are said as they are.
_PLAIN = frozenset((type(None), bool, int, float, str))

# The place of a value: a text, or the place of its container with what follows. It is only put together
# for an error: to format it for each value of each call would be a good part of a call's cost.
Where = str | tuple["Where", str, object]
Leaf = Callable[[Any, Where], Value]


def shown(where: Where) -> str:
    """Return a place as text, e.g. `"arguments[0]['mask']"`."""
    if isinstance(where, str):
        return where
    container, form, key = where
    return shown(container) + form.format(key)


def depth_of(where: Where) -> int:
    """Return how deep a place is nested."""
    return 0 if isinstance(where, str) else 1 + depth_of(where[0])


def pack(value: Any, leaf: Leaf, where: Where = "value", depth: int = 0) -> Value:
    """Say `value` in the closed set.

    Args:
        value: Anything.
        leaf: Called with what is not builtin and with its place; returns how to say it, or raises.
        where: The place of `value`, for errors.
        depth: How deep it is nested.

    Raises:
        LocalProtocolError: The value is nested too deep, or holds itself.
    """
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value if kind is not str or value.isascii() else _text(value)
    if kind is int:
        return value if _INT_MIN <= value <= _INT_MAX else Scalar("int", hex(value))
    if kind is float:
        return value if math.isfinite(value) else Scalar("float", repr(value))
    if depth >= MAX_DEPTH:
        raise LocalProtocolError(
            f"{shown(where):.300}: nested deeper than {MAX_DEPTH} levels, or a container that holds itself",
            where=shown(where),
        )
    if kind in _SEQUENCES:
        members = [pack(item, leaf, (where, "[{}]", i), depth + 1) for i, item in enumerate(value)]
        return Items(_SEQUENCES[kind], members)
    if kind is dict or kind is OrderedDict:
        keys = [pack(key, leaf, (where, " key {!r:.40}", key), depth + 1) for key in value]
        items = [pack(item, leaf, (where, "[{!r:.40}]", key), depth + 1) for key, item in value.items()]
        return Pairs("dict" if kind is dict else "odict", keys, items)
    if kind is slice or kind is range:
        numbers = [pack(n, leaf, where, depth + 1) for n in (value.start, value.stop, value.step)]
        return Items("slice" if kind is slice else "range", numbers)
    say = _SCALARS.get(kind)
    if say is not None and not (kind in (bytes, bytearray) and len(value) > MAX_INLINE_BYTES):
        return say(value)
    if isinstance(value, PurePath):
        # A relative path means this process's folder; the other process works in another.
        return Scalar("path", _encoded(str(Path(value).absolute())))
    return leaf(value, where)


def unpack(value: Value, leaf: Callable[[Any], Any], depth: int = 0) -> Any:
    """Make the Python value that `value` says.

    Args:
        value: A value as it was decoded.
        leaf: Called with every `TensorAt`, `Ref`, and the kinds of `Scalar` and `Items` that need more than
            the standard library, and with a `Record` or an array of objects and its members, made; returns
            what they stand for.
        depth: How deep it is nested.

    Raises:
        RemoteProtocolError: The value is nested too deep, or says something impossible.
    """
    if type(value) in _PLAIN:
        return value
    if depth >= MAX_DEPTH:
        raise RemoteProtocolError(f"a value nested deeper than {MAX_DEPTH} levels")
    try:
        if isinstance(value, Items):
            members = [unpack(item, leaf, depth + 1) for item in value.items]
            if value.kind == "objects":
                return leaf((value, members))
            if value.kind in ("set", "frozenset"):
                _check_hashes(members)
            return _FROM_ITEMS[value.kind](members) if value.kind in _FROM_ITEMS else leaf(value)
        if isinstance(value, Pairs):
            keys = [unpack(key, leaf, depth + 1) for key in value.keys]
            items = [unpack(item, leaf, depth + 1) for item in value.items]
            _check_hashes(keys)
            pairs = zip(keys, items, strict=True)
            return dict(pairs) if value.kind == "dict" else OrderedDict(pairs)
        if isinstance(value, Scalar) and value.kind in _FROM_TEXT:
            return _FROM_TEXT[value.kind](value.text)
        if isinstance(value, Record):
            return leaf((value, [unpack(item, leaf, depth + 1) for item in value.items]))
    except (ValueError, TypeError, OverflowError) as error:
        if isinstance(error, RemoteProtocolError):
            raise
        raise RemoteProtocolError(f"a {type(value).__name__} that says nothing: {str(error)[:200]}") from None
    return leaf(value)


def _check_hashes(members: list[Any]) -> None:
    """Check that so many members can be told apart in a time that grows with their number, and not with its square.

    Raises:
        RemoteProtocolError: Many different ones have one hash, as numbers can be chosen to have.
    """
    if len(members) > MAX_ALIKE and max(Counter(map(hash, members)).values()) > MAX_ALIKE:
        raise RemoteProtocolError(f"more than {MAX_ALIKE} members of a set or dict with one hash")


def _text(value: str) -> Value:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, such as a file name that is no UTF-8
        return Scalar("str", _encoded(value))
    return value


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()


def _decoded(text: str) -> str:
    return base64.b64decode(text, validate=True).decode("utf-8", "surrogatepass")


_SEQUENCES: dict[type, Any] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_FROM_ITEMS: dict[str, Callable[[list[Any]], Any]] = {
    "list": lambda items: items,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "slice": lambda items: slice(*items),
    "range": lambda items: range(*items),
}

_SCALARS: dict[type, Callable[[Any], Scalar]] = {
    complex: lambda value: Scalar("complex", repr(value)),
    type(...): lambda _: Scalar("ellipsis", ""),
    bytes: lambda value: Scalar("bytes", base64.b64encode(value).decode()),
    bytearray: lambda value: Scalar("bytearray", base64.b64encode(value).decode()),
    datetime.datetime: lambda value: Scalar("datetime", value.isoformat()),
    datetime.date: lambda value: Scalar("date", value.isoformat()),
    datetime.time: lambda value: Scalar("time", value.isoformat()),
    datetime.timedelta: lambda value: Scalar("timedelta", f"{value.days} {value.seconds} {value.microseconds}"),
}
_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "complex": complex,
    "str": _decoded,
    "ellipsis": lambda _: ...,
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "bytearray": lambda text: bytearray(base64.b64decode(text, validate=True)),
    "path": lambda text: Path(_decoded(text)),
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": lambda text: datetime.timedelta(*map(int, text.split(" "))),
}
