"""Named tuples, dataclasses and mapping-like values, taken apart and put together again."""

from __future__ import annotations

import dataclasses
from typing import Any

from isohub.wire.values import Record

__all__ = ["Records", "has_own", "type_name"]


class Records:
    """The classes of the records that the parent was sent, by name, so that one handed back is what it was.

    A name leads to nothing but these classes: the parent may have it from another worker.
    """

    def __init__(self) -> None:
        self._classes: dict[str, type[Any]] = {}

    def parts(self, value: Any) -> tuple[Record, list[Any]] | None:
        """Take `value` apart, its members unsaid; None for what does not cross by value as a record."""
        found = _parts(value)
        if found is None:
            return None
        kind, names, members = found
        name = type_name(value)
        self._classes[name] = type(value)
        return Record(kind, name, names, []), members

    def make(self, record: Record, members: list[Any]) -> Any:
        """Return the record that the parent hands back; plain data, if its class was never sent from here."""
        kind = self._classes.get(record.type_name)
        items = dict(zip(record.keys, members, strict=True))
        made = None if kind is None else _make(kind, record, items)
        if made is not None:
            return made
        return tuple(members) if record.kind == "namedtuple" else items


def type_name(value: object) -> str:
    """Return the qualified name of the class of `value`."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def has_own(value: object) -> bool:
    """Return whether the class adds public methods or properties: then the object is more than its data."""
    builtin = (object, str, bytes, float, int)
    for kind in type(value).__mro__:
        if kind in builtin:
            continue
        for name, member in vars(kind).items():
            if not name.startswith("_") and (callable(member) or isinstance(member, property | classmethod)):
                return True
    return False


def _parts(value: Any) -> tuple[Any, list[str], list[Any]] | None:
    """Return kind, names and members."""
    fields = getattr(type(value), "_fields", None)
    if isinstance(value, tuple) and isinstance(fields, tuple):
        return "namedtuple", list(fields), list(value)
    if isinstance(value, tuple) and type(value).__module__ == "torch.return_types":
        names = [name for name in dir(value) if not name.startswith("_") and name not in ("count", "index")]
        names = [name for name in names if not name.startswith("n_") and not callable(getattr(value, name))]
        names.sort(key=lambda name: next(i for i, member in enumerate(value) if member is getattr(value, name)))
        return "namedtuple", names, list(value)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return "mapping", list(value), list(dict.values(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not has_own(value):
        # `__post_init__` may have set more than the fields; a generic class leaves `__orig_class__`.
        names = [field.name for field in dataclasses.fields(value)]
        more = [name for name in getattr(value, "__dict__", ()) if name not in names and not name.startswith("__")]
        return "dataclass", [*names, *more], [getattr(value, name) for name in (*names, *more)]
    return None


def _make(kind: type[Any], record: Record, items: dict[str, Any]) -> Any:
    """Return a `kind` of these items, without its code where that can be; None if it cannot be made of them."""
    if record.kind == "mapping":
        return _mapping(kind, items)
    if record.kind == "dataclass":
        made = object.__new__(kind)
        for name, member in items.items():
            object.__setattr__(made, name, member)  # it may be frozen
        return made
    if not hasattr(kind, "_fields"):
        return kind(items.values())  # one of torch.return_types, which takes a sequence
    # Another class may have had the same name.
    return tuple.__new__(kind, items.values()) if list(kind._fields) == record.keys else None


def _mapping(kind: type[Any], items: dict[str, Any]) -> Any:
    try:
        # The outputs of transformers are dataclasses as well; anything else is made as a dict is.
        made: Any = kind(**items) if dataclasses.is_dataclass(kind) else kind(items)
        same = list(made) == list(items) and all(made[name] is member for name, member in items.items())
    except Exception:  # noqa: BLE001 - its `__init__` takes something else
        return None
    return made if same else None
