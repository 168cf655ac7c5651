"""Two state dicts: what was added, removed, moved to another name, and what has other values."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from isohub.comparison.answers import clean
from isohub.comparison.numbers import Difference, Tolerance
from isohub.shm.tensors import bytes_of

__all__ = ["StateChange", "StateDifference", "compare_states", "renames_of"]


@dataclass(frozen=True, kw_only=True)
class StateChange:
    """One entry that both have, and that is not the same.

    Attributes:
        name: Its name.
        shapes: In the baseline and in the other.
        dtypes: The same.
        max_abs: Greatest difference of its values; None where the shapes differ.
        norms: Of the baseline's values and of the other's; None where the shapes differ.
        norm_of_difference: None where the shapes differ.
    """

    name: str
    shapes: tuple[list[int], list[int]]
    dtypes: tuple[str, str]
    max_abs: float | None
    norms: tuple[float, float] | None
    norm_of_difference: float | None


@dataclass(frozen=True, kw_only=True)
class StateDifference:
    """How two state dicts differ.

    Attributes:
        entries: How many each has.
        nbytes: Their bytes.
        same: How many entries are the same in both.
        added: Names that only the other has.
        removed: Names that only the baseline has.
        moved: Pairs of names, the old and the new, whose contents are the same.
        reshaped: Entries with another shape.
        retyped: Entries with another dtype.
        changed: Entries of equal shape with other values; those of another dtype are compared as well.
    """

    entries: tuple[int, int]
    nbytes: tuple[int, int]
    same: int
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    moved: list[tuple[str, str]] = field(default_factory=list)
    reshaped: list[StateChange] = field(default_factory=list)
    retyped: list[StateChange] = field(default_factory=list)
    changed: list[StateChange] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Whether both have the same names with the same values."""
        return self.is_renamed and not self.moved

    @property
    def is_renamed(self) -> bool:
        """Whether they differ in names at most."""
        return not (self.added or self.removed or self.reshaped or self.retyped or self.changed)


def compare_states(one: Mapping[str, Any], other: Mapping[str, Any]) -> StateDifference:
    """Compare two state dicts; what is no tensor in them counts by its text."""
    one = {clean(str(name), 500): value for name, value in one.items()}
    other = {clean(str(name), 500): value for name, value in other.items()}
    removed = [name for name in one if name not in other]
    added = [name for name in other if name not in one]
    moved = _moved(one, other, removed, added)
    old, new = {pair[0] for pair in moved}, {pair[1] for pair in moved}
    reshaped, retyped, changed, same = [], [], [], 0
    for name in one.keys() & other.keys():
        change = _change(name, one[name], other[name])
        if change is None:
            same += 1
        elif change.shapes[0] != change.shapes[1]:
            reshaped.append(change)
        else:
            if change.dtypes[0] != change.dtypes[1]:
                retyped.append(change)
            if change.max_abs != 0.0:
                changed.append(change)
    order = {name: place for place, name in enumerate(one)}
    for changes in (reshaped, retyped, changed):
        changes.sort(key=lambda change: order[change.name])
    return StateDifference(
        entries=(len(one), len(other)),
        nbytes=(_nbytes(one), _nbytes(other)),
        same=same,
        added=[name for name in added if name not in new],
        removed=[name for name in removed if name not in old],
        moved=moved,
        reshaped=reshaped,
        retyped=retyped,
        changed=changed,
    )


def renames_of(moved: list[tuple[str, str]], names: Iterable[str] = ()) -> dict[str, str]:
    """Return which modules have which new names, as far as their entries in the state dict tell.

    Args:
        moved: Pairs of names of entries, the old and the new.
        names: Further modules, such as those without entries: one within a module that moved has moved with it.
    """
    renames: dict[str, str] = {}
    for old, new in moved:
        old_parts, new_parts = old.split("."), new.split(".")
        # From the end: body.0.weight -> trunk.conv.weight has moved body.0 to trunk.conv, and body to trunk.
        while old_parts and new_parts and old_parts[-1] == new_parts[-1]:
            old_parts.pop()
            new_parts.pop()
            if old_parts and new_parts:
                renames.setdefault(".".join(old_parts), ".".join(new_parts))
        while len(old_parts) > 1 and len(old_parts) == len(new_parts):
            old_parts.pop()
            new_parts.pop()
            renames.setdefault(".".join(old_parts), ".".join(new_parts))
    for name in names:
        owner, _, last = name.rpartition(".")
        # In the order of the tree the owner comes before.
        if name not in renames and owner in renames:
            renames[name] = f"{renames[owner]}.{last}"
    return {old: new for old, new in renames.items() if old != new}


def _change(name: str, one: Any, other: Any) -> StateChange | None:
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        if repr(one) == repr(other):
            return None
        kinds = (type(one).__name__, type(other).__name__)
        return StateChange(name=name, shapes=([], []), dtypes=kinds, max_abs=None, norms=None, norm_of_difference=None)
    difference = Difference(name, Tolerance())
    difference.add(one, other)
    numbers = difference.result()
    if numbers.is_equal:
        return None
    is_comparable = not numbers.shape_changes
    return StateChange(
        name=name,
        shapes=numbers.shapes,
        dtypes=numbers.dtypes,
        max_abs=numbers.max_abs if is_comparable else None,
        norms=numbers.norms if is_comparable else None,
        norm_of_difference=numbers.norm_of_difference if is_comparable else None,
    )


def _moved(
    one: Mapping[str, Any], other: Mapping[str, Any], removed: list[str], added: list[str]
) -> list[tuple[str, str]]:
    """Pair names that went with names that came, where the contents are the same."""
    waiting: dict[bytes, list[str]] = defaultdict(list)
    for name in added:
        waiting[_content(other[name])].append(name)
    pairs = []
    for name in removed:
        names = waiting.get(_content(one[name]), [])
        if names:
            # Of many with the same content (zeros, counters) the one whose name ends most alike, then the first.
            best = max(names, key=lambda new: _common_end(name, new))
            names.remove(best)
            pairs.append((name, best))
    return pairs


def _common_end(one: str, other: str) -> int:
    count = 0
    for left, right in zip(reversed(one.split(".")), reversed(other.split(".")), strict=False):
        if left != right:
            break
        count += 1
    return count


def _content(value: Any) -> bytes:
    if not isinstance(value, torch.Tensor):
        return repr(value).encode("utf-8", "replace")
    tensor = value.detach().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    if tensor.numel():
        digest.update(bytes_of(tensor))
    return digest.digest()


def _nbytes(state: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))
