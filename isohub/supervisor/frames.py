"""Frames as lines of text, for `ISOHUB_DEBUG=1`: what crosses the border, with tensors as shapes only.

::

    isohub 4711 > Request(verb='call', handle=1, payload=((float32[1, 3, 224, 224],), {})) 412 bytes
    isohub 4711 < Returned(payload=float32[1, 1000]) 187 bytes

Values of tensors, of bytes and of environment variables are not shown. What a worker sends is shown as Python
would write it, cut short, so that nothing in it can drive a terminal.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from isohub.wire import codec
from isohub.wire.messages import Payload
from isohub.wire.structs import Struct
from isohub.wire.values import Items, Pairs, Record, Ref, Scalar, TensorAt

__all__ = ["VARIABLE", "Frames", "shown"]

VARIABLE = "ISOHUB_DEBUG"
_OFF = ("", "0", "false", "no", "off")
_MOST_CHARACTERS = 60
_MOST_MEMBERS = 8
_MOST_DEPTH = 8
_MOST_LINE_CHARACTERS = 2000


class Frames:
    """Prints the frames of one worker to stderr, if `ISOHUB_DEBUG` is set.

    Args:
        pid: The worker's.
    """

    def __init__(self, pid: int) -> None:
        self.wanted = os.environ.get(VARIABLE, "").lower() not in _OFF
        self._pid = pid

    def sent(self, message: bytes, descriptors: int) -> None:
        """Tell of a frame to the worker."""
        self._tell(">", codec.decode_from_parent(message), len(message), descriptors)

    def received(self, message: Struct, nbytes: int) -> None:
        """Tell of a frame from the worker, which has passed its checks of types."""
        self._tell("<", message, nbytes, 0)

    def _tell(self, direction: str, message: Struct, nbytes: int, descriptors: int) -> None:
        along = f" and {descriptors} descriptors" if descriptors else ""
        # Telling must not change what is told of, whatever a worker sent and whatever became of stderr.
        with contextlib.suppress(Exception):
            text = shown(message)
            if len(text) > _MOST_LINE_CHARACTERS:
                text = f"{text[:_MOST_LINE_CHARACTERS]}..."
            sys.stderr.write(f"isohub {self._pid} {direction} {text} {nbytes} bytes{along}\n")
            sys.stderr.flush()


def shown(message: Struct) -> str:
    """Return a message as text."""
    return _struct(message, None, 0)


def _struct(value: Any, payload: Payload | None, depth: int) -> str:
    fields = []
    for name in value.__struct_fields__:
        one = getattr(value, name)
        if one in (None, "", 0, [], {}, ()):
            continue
        if isinstance(one, Payload):
            one = codec.whole(one)
            # By itself the value names tensors by their places only.
            text = _text(one.value, one, depth + 1)
            extra = [f"{len(one.modules)} module trees"] if one.modules else []
            extra += ["a graph"] if one.graph is not None else []
            text += f" with {' and '.join(extra)}" if extra else ""
        elif name == "environ" and isinstance(one, dict):
            text = f"<{len(one)} variables>"
        else:
            text = _text(one, payload, depth + 1)
        fields.append(f"{name}={text}")
    return f"{type(value).__name__}({', '.join(fields)})"


def _text(value: Any, payload: Payload | None, depth: int) -> str:
    if depth > _MOST_DEPTH:
        return "..."
    match value:
        case str():
            return repr(value) if len(value) <= _MOST_CHARACTERS else f"{value[:_MOST_CHARACTERS]!r}..."
        case bytes():
            return f"<{len(value)} bytes>"
        case int() if value.bit_length() > 64:  # Python refuses to write very long ones
            return "<a long int>"
        case TensorAt():
            return _tensor(value, payload)
        case Items() | Pairs() | Record():
            return _container(value, payload, depth)
        case Scalar(kind, text):
            return f"{kind}({text[:_MOST_CHARACTERS]!r})"
        case Ref():
            return f"<{_struct(value, None, depth)}>"
        case Struct():
            return _struct(value, payload, depth)
        case list() | tuple():
            return f"[{_members(value, payload, depth)}]"
        case dict():
            return f"<{len(value)} entries>"
        case _:
            return repr(value)


def _container(value: Items | Pairs | Record, payload: Payload | None, depth: int) -> str:
    if isinstance(value, Items):
        brackets = {"tuple": ("(", ")"), "list": ("[", "]"), "set": ("{", "}")}
        opening, closing = brackets.get(value.kind, (f"{value.kind}(", ")"))
        comma = "," if value.kind == "tuple" and len(value.items) == 1 else ""
        return f"{opening}{_members(value.items, payload, depth)}{comma}{closing}"
    pairs = zip(value.keys[:_MOST_MEMBERS], value.items, strict=False)
    told = [f"{_text(key, payload, depth + 1)}: {_text(one, payload, depth + 1)}" for key, one in pairs]
    inside = ", ".join([*told, *_more(value.keys)])
    return f"{value.type_name[:_MOST_CHARACTERS]!r}({inside})" if isinstance(value, Record) else f"{{{inside}}}"


def _members(values: Any, payload: Payload | None, depth: int) -> str:
    return ", ".join([*(_text(one, payload, depth + 1) for one in values[:_MOST_MEMBERS]), *_more(values)])


def _more(values: Any) -> list[str]:
    return [f"... {len(values) - _MOST_MEMBERS} more"] if len(values) > _MOST_MEMBERS else []


def _tensor(place: TensorAt, payload: Payload | None) -> str:
    specs = [] if payload is None else payload.tensors
    if not 0 <= place.index < len(specs):
        return f"<no tensor {place.index}>"
    spec = specs[place.index]
    # By repr: a hostile one is no name of a dtype.
    dtype = spec.dtype if spec.dtype.isidentifier() else repr(spec.dtype[:_MOST_CHARACTERS])
    shape = f"{dtype[:_MOST_CHARACTERS]}[{_members(spec.shape, payload, 0)}]"
    return shape if place.kind == "tensor" else f"<{place.kind} {shape}>"
