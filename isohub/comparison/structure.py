"""Two module trees, and what hubconf.py says of the entrypoint: how they differ."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isohub.comparison.answers import clean
from isohub.model.module import IsolatedModule

__all__ = ["ModuleChange", "StructureDifference", "compare_structures", "tree_of"]

_MAX_MODULES = 20_000
_MAX_TEXT = 300


@dataclass(frozen=True, kw_only=True)
class ModuleChange:
    """A module that is another kind, or has other settings, than in the baseline.

    Attributes:
        name: Its name in the baseline.
        before: Its class and settings there.
        after: Those in the other version.
    """

    name: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class StructureDifference:
    """How two module trees, and two entrypoints, differ.

    Attributes:
        modules: How many modules each tree has.
        added: Names of modules that only the other has.
        removed: Names that only the baseline has.
        renamed: Pairs of names, the old and the new; found by the entries of the state dict that moved.
        changed: Modules of another kind or with other settings.
        diff: The two trees as a unified diff.
        signatures: Of the entrypoint, with its defaults.
        docstring_diff: The two docstrings as a unified diff; empty if they are the same.
        dependencies: What hubconf.py says of them, in each.
        training: The mode that each came in; None for what is no module.
    """

    modules: tuple[int, int]
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    changed: list[ModuleChange] = field(default_factory=list)
    diff: list[str] = field(default_factory=list)
    signatures: tuple[str, str] = ("", "")
    docstring_diff: list[str] = field(default_factory=list)
    dependencies: tuple[list[str], list[str]] = ((), ())  # type: ignore[assignment]
    training: tuple[bool | None, bool | None] = (None, None)

    @property
    def is_tree_equal(self) -> bool:
        """Whether the trees are the same, names included."""
        return not self.diff

    @property
    def is_tree_renamed(self) -> bool:
        """Whether the trees differ in names at most."""
        return not (self.added or self.removed or self.changed)


def tree_of(module: IsolatedModule | None) -> dict[str, str]:
    """Return the class and settings of each module of a tree, by name."""
    found: dict[str, str] = {}
    if module is None:
        return found
    for name, part in module.named_modules():
        if len(found) >= _MAX_MODULES:
            break
        text = type(part).__name__
        if isinstance(part, IsolatedModule):
            # One with a `__repr__` of its own tells all in that.
            node = part._isohub_node
            text = node.text if node.own_repr else f"{part._get_name()}({part.extra_repr()})"
        found[clean(name, _MAX_TEXT)] = clean(" ".join(text.split()), _MAX_TEXT)
    return found


def compare_structures(
    one: Mapping[str, str],
    other: Mapping[str, str],
    facts: tuple[Mapping[str, Any], Mapping[str, Any]],
    renames: Mapping[str, str],
) -> StructureDifference:
    """Compare two trees as `tree_of` returns them, and the facts of two entrypoints.

    Args:
        one: The baseline's tree.
        other: The other's.
        facts: What `Subject.facts` has, of both.
        renames: Which names of the baseline's are which of the other's.
    """
    renamed = [
        (old, new)
        for old, new in renames.items()
        if old in one and new in other and old not in other and new not in one
    ]
    here = dict(renamed)
    partners = {name: here.get(name, name) for name in one}
    came = set(other) - set(partners.values())
    first, second = facts
    return StructureDifference(
        modules=(len(one), len(other)),
        added=[name for name in other if name in came],
        removed=[name for name in one if partners[name] not in other],
        renamed=renamed,
        changed=[
            ModuleChange(name=name, before=text, after=other[partners[name]])
            for name, text in one.items()
            if partners[name] in other and other[partners[name]] != text
        ],
        diff=_diff(_lines(one), _lines(other)),
        signatures=(first.get("signature", ""), second.get("signature", "")),
        docstring_diff=_diff(first.get("docstring", "").splitlines(), second.get("docstring", "").splitlines()),
        dependencies=(list(first.get("dependencies", [])), list(second.get("dependencies", []))),
        training=(first.get("training"), second.get("training")),
    )


def _lines(tree: Mapping[str, str]) -> list[str]:
    return [f"{'  ' * (name.count('.') + 1 if name else 0)}{name or '(root)'}: {text}" for name, text in tree.items()]


def _diff(one: list[str], other: list[str]) -> list[str]:
    return [line for line in difflib.unified_diff(one, other, lineterm="", n=2) if not line.startswith(("---", "+++"))]
