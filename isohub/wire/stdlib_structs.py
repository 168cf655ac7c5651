"""`Struct` and its JSON where msgspec is not installed; chosen by `isohub.wire.structs`.

It knows what the messages are made of, and no more: structs as arrays or as tagged objects, unions of
structs told apart by their tags, None, bool, int, float, str, bytes, list, tuple and dict. It writes the
bytes that msgspec writes. It reads without checking types, since only a worker reads with it, and only
what its own parent wrote.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from base64 import b64decode, b64encode
from dataclasses import replace
from json.encoder import encode_basestring
from types import NoneType, UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

__all__ = ["Struct", "decode_as", "encode", "replace"]


class Struct:
    """A dataclass that takes msgspec's class keywords."""

    _array_like: ClassVar[bool]
    _tag: ClassVar[str | None]
    _omit_defaults: ClassVar[bool]

    def __init_subclass__(
        cls,
        *,
        array_like: bool = False,
        tag: str | bool | None = None,
        frozen: bool = False,
        gc: bool = True,
        kw_only: bool = False,
        omit_defaults: bool = False,
    ) -> None:
        super().__init_subclass__()
        cls._array_like = array_like
        cls._tag = cls.__name__ if tag is True else tag or None
        cls._omit_defaults = omit_defaults
        for name, default in list(vars(cls).items()):
            if type(default) in (list, dict) and not name.startswith("_"):  # one of its own for each struct
                setattr(cls, name, dataclasses.field(default_factory=type(default)))
        dataclasses.dataclass(frozen=frozen, kw_only=kw_only)(cls)


class _Decoder:
    def __init__(self, kind: object) -> None:
        self._kind = kind

    def decode(self, data: bytes | memoryview | str) -> object:
        return _read(self._kind, json.loads(data if isinstance(data, str) else bytes(data)))


def decode_as(kind: object) -> _Decoder:
    """Return a decoder of JSON for `kind`, a Struct class or a union of them."""
    return _Decoder(kind)


def encode(message: Struct) -> bytes:
    """Return `message` as JSON, byte for byte as msgspec writes it."""
    return _json(message).encode()


def _json(value: Any) -> str:
    if isinstance(value, Struct):
        return _struct_json(value)
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, bytes):
        return f'"{b64encode(value).decode()}"'
    if isinstance(value, float):
        return _float_json(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_json, value))}]"
    if isinstance(value, dict):
        return _object_json(value)
    return json.dumps(value)  # None, a bool or an int


def _struct_json(struct: Struct) -> str:
    kind: Any = type(struct)
    members = {name: getattr(struct, name) for name in _fields(kind)}
    if kind._array_like:
        return _json([*([kind._tag] if kind._tag else []), *members.values()])
    if kind._omit_defaults:
        members = {name: value for name, value in members.items() if not _is_default(kind, name, value)}
    return _object_json({"type": kind._tag, **members} if kind._tag else members)


def _object_json(members: dict[str, Any]) -> str:
    return "{" + ",".join(f"{encode_basestring(name)}:{_json(value)}" for name, value in members.items()) + "}"


def _is_default(kind: Any, name: str, value: object) -> bool:
    # As msgspec: the very object that is the default, or an empty list or dict where each struct has its own.
    field = _fields(kind)[name]
    return value is field.default or (field.default_factory in (list, dict) and not value)


def _float_json(value: float) -> str:
    if not math.isfinite(value):
        return "null"
    mantissa, e, exponent = repr(value).partition("e")
    if not e:
        return mantissa
    if exponent == "-05":  # Python's first number with an exponent is msgspec's last one without
        sign = "-" if value < 0 else ""
        return f"{sign}0.0000{mantissa.lstrip('-').replace('.', '')}"
    return f"{mantissa}e{int(exponent)}"


def _read(kind: Any, raw: Any) -> Any:
    """Return what `raw`, as `json` read it, says where `kind` is expected."""
    if raw is None:
        return None
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _read_union([option for option in inner if option is not NoneType], raw)
    if origin is list:
        return [_read(inner[0], item) for item in raw]
    if origin is tuple:
        return tuple(_read(part, item) for part, item in zip(inner, raw, strict=True))
    if kind is bytes:
        return b64decode(raw)
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _read_struct(kind, raw)
    return raw


def _read_union(options: list[Any], raw: Any) -> Any:
    if len(options) == 1:
        return _read(options[0], raw)
    if not isinstance(raw, list | dict):
        return raw
    tag = raw[0] if isinstance(raw, list) else raw["type"]
    return _read(next(option for option in options if getattr(option, "_tag", None) == tag), raw)


def _read_struct(kind: Any, raw: Any) -> Struct:
    hints = _hints(kind)
    if kind._array_like:
        raw = dict(zip(hints, raw[1:] if kind._tag else raw, strict=True))
    return kind(**{name: _read(hint, raw[name]) for name, hint in hints.items() if name in raw})  # type: ignore[no-any-return]


@functools.cache
def _fields(kind: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(kind)}


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    # Made when first asked for, since a kind of value may hold kinds that are defined below it.
    hints = get_type_hints(kind)
    return {name: hints[name] for name in _fields(kind)}
