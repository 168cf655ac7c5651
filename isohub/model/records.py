"""Named tuples, dataclasses and mapping-like outputs of a repository's own classes, by value.

The class itself stays in the worker, and nothing is ever looked up by its name here. What arrives behaves
as its data does: by position, by name and by key, whichever the original allows. Handed back to its worker,
it becomes one of its class again.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from isohub.errors import RemoteProtocolError
from isohub.wire.texts import clean
from isohub.wire.values import Record

__all__ = ["DataRecord", "MappingRecord", "NamedRecord", "make_record", "parts_of"]


class NamedRecord(tuple):  # type: ignore[type-arg]  # noqa: SLOT001 - it has attributes
    """A named tuple: unpacks, indexes, and has its fields as attributes."""

    _fields: tuple[str, ...]
    _isohub_type: str

    def __new__(cls, type_name: str, names: list[str], members: list[Any]) -> NamedRecord:  # noqa: PYI034
        """Make the record of its names and members, in order."""
        record = super().__new__(cls, members)
        # There a field called `count` comes before the method of tuples, as it does in a named tuple.
        record.__dict__.update(zip(names, members, strict=True))
        record.__dict__.update(_fields=tuple(names), _isohub_type=type_name)
        return record

    def __repr__(self) -> str:
        inner = ", ".join(f"{clean(name)}={member!r}" for name, member in zip(self._fields, self, strict=True))
        return f"{_short(self._isohub_type)}({inner})"

    def __reduce__(self) -> tuple[object, ...]:
        return NamedRecord, (self._isohub_type, list(self._fields), list(self))

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def _replace(self, **changes: Any) -> NamedRecord:
        unknown = changes.keys() - set(self._fields)
        if unknown:
            raise ValueError(f"{_short(self._isohub_type)} has no fields {sorted(unknown)}")
        return NamedRecord(self._isohub_type, list(self._fields), list({**self._asdict(), **changes}.values()))


class MappingRecord(OrderedDict):  # type: ignore[type-arg]
    """A mapping-like output, such as those of transformers: keys, attributes, and positions."""

    _isohub_type: str

    def __init__(self, type_name: str, names: list[str], members: list[Any]) -> None:
        super().__init__(zip(names, members, strict=True))
        self.__dict__["_isohub_type"] = type_name

    def __getattr__(self, name: str) -> Any:
        # Python looks `__deepcopy__` and its like up on its own; a key is never meant.
        if name in self and not _is_special(name):
            return super().__getitem__(name)
        raise AttributeError(f"{self.__dict__.get('_isohub_type', 'MappingRecord')} has no {name!r}")

    def __getitem__(self, key: Any) -> Any:
        return tuple(self.values())[key] if isinstance(key, int | slice) else super().__getitem__(key)

    def __repr__(self) -> str:
        return f"{_short(self._isohub_type)}({', '.join(f'{clean(key)}={value!r}' for key, value in self.items())})"

    def __reduce__(self) -> tuple[object, ...]:
        return MappingRecord, (self._isohub_type, list(self), list(self.values()))


class DataRecord:
    """A dataclass without methods of its own: its fields as attributes."""

    _isohub_type: str

    def __init__(self, type_name: str, names: list[str], members: list[Any]) -> None:
        self.__dict__.update(zip(names, members, strict=True))
        self.__dict__["_isohub_type"] = type_name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DataRecord) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        inner = ", ".join(f"{clean(name)}={value!r}" for name, value in self._isohub_fields().items())
        return f"{_short(self._isohub_type)}({inner})"

    def _isohub_fields(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_isohub_type"}


def make_record(record: Record, members: list[Any]) -> NamedRecord | MappingRecord | DataRecord:
    """Return a record that a worker sent.

    Raises:
        RemoteProtocolError: A field is named like a special method, which Python would call.
    """
    if record.kind == "mapping":
        return MappingRecord(record.type_name, record.keys, members)
    for name in record.keys:
        if _is_special(name):
            raise RemoteProtocolError(f"a record with a field {name[:100]!r}")
    return (NamedRecord if record.kind == "namedtuple" else DataRecord)(record.type_name, record.keys, members)


def parts_of(value: object) -> tuple[Record, list[Any]] | None:
    """Take a record apart, its members unsaid; None for what is no record."""
    if isinstance(value, NamedRecord):
        return Record("namedtuple", value._isohub_type, list(value._fields), []), list(value)
    if isinstance(value, MappingRecord):
        return Record("mapping", value._isohub_type, list(value), []), list(value.values())
    if isinstance(value, DataRecord):
        fields = value._isohub_fields()
        return Record("dataclass", value._isohub_type, list(fields), []), list(fields.values())
    return None


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _short(type_name: str) -> str:
    return clean(type_name.rpartition(".")[2], 500)
