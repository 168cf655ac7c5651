"""Named tuples, dataclasses and mapping-like outputs of a repository's own classes, by value.

The class itself stays in the worker, and nothing is ever looked up by its name. What arrives behaves as
its data does: by position, by name and by key, whichever the original allows.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

__all__ = ["DataRecord", "MappingRecord", "NamedRecord"]


class NamedRecord(tuple):  # type: ignore[type-arg]  # noqa: SLOT001 - it has attributes
    """A named tuple: unpacks, indexes, and has its fields as attributes.

    Attributes:
        type_name: Qualified name of the class in the worker.
    """

    _fields: tuple[str, ...]
    type_name: str

    def __new__(cls, type_name: str, names: list[str], members: list[Any]) -> NamedRecord:  # noqa: PYI034
        """Make the record of its names and members, in order."""
        record = super().__new__(cls, members)
        record._fields = tuple(names)
        record.type_name = type_name
        return record

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", ())
        if name in fields:
            return self[fields.index(name)]
        raise AttributeError(f"{self.__dict__.get('type_name', 'NamedRecord')} has no field {name!r}")

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={member!r}" for name, member in zip(self._fields, self, strict=False))
        return f"{_short(self.type_name)}({inner})"

    def __reduce__(self) -> tuple[object, ...]:
        return NamedRecord, (self.type_name, list(self._fields), list(self))

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=False))

    def _replace(self, **changes: Any) -> NamedRecord:
        unknown = changes.keys() - set(self._fields)
        if unknown:
            raise ValueError(f"{_short(self.type_name)} has no fields {sorted(unknown)}")
        return NamedRecord(self.type_name, list(self._fields), list({**self._asdict(), **changes}.values()))


class MappingRecord(OrderedDict):  # type: ignore[type-arg]
    """A mapping-like output, such as those of transformers: keys, attributes, and positions.

    Attributes:
        type_name: Qualified name of the class in the worker.
    """

    def __init__(self, type_name: str, names: list[str], members: list[Any]) -> None:
        super().__init__(zip(names, members, strict=True))
        self.__dict__["type_name"] = type_name

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return super().__getitem__(name)
        raise AttributeError(f"{self.__dict__.get('type_name', 'MappingRecord')} has no {name!r}")

    def __getitem__(self, key: Any) -> Any:
        return tuple(self.values())[key] if isinstance(key, int | slice) else super().__getitem__(key)

    def __repr__(self) -> str:
        return f"{_short(self.type_name)}({', '.join(f'{key}={value!r}' for key, value in self.items())})"

    def __reduce__(self) -> tuple[object, ...]:
        return MappingRecord, (self.type_name, list(self), list(self.values()))


class DataRecord:
    """A dataclass without methods of its own: its fields as attributes.

    Attributes:
        type_name: Qualified name of the class in the worker.
    """

    type_name: str

    def __init__(self, type_name: str, names: list[str], members: list[Any]) -> None:
        self.__dict__.update(zip(names, members, strict=True))
        self.__dict__["type_name"] = type_name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DataRecord) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = {name: value for name, value in self.__dict__.items() if name != "type_name"}
        return f"{_short(self.type_name)}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


def _short(type_name: str) -> str:
    return type_name.rpartition(".")[2]
