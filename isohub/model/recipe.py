"""How what a load returned is made again: what a pickle of a module or of an object in a worker consists of.

A pickle holds no code and no object of the repository's, only how they came to be: the repository at its commit,
the entrypoint and its arguments, where in the result the thing was, and for a module its state.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from isohub.errors import LocalProtocolError
from isohub.model.journal import Build, Part
from isohub.model.weights import Weights
from isohub.options import Isolation
from isohub.refs import RepoRef

if TYPE_CHECKING:
    from isohub.model.module import IsolatedModule

__all__ = [
    "OURS", "Origin", "Recipe", "inherit", "members_of", "note_attribute", "reduce_module", "reduce_object", "remember",
    "undrawn",
]  # fmt: skip

# What a mirror has from the worker's module. All else in it (hooks, above all) was put there on this side.
_MIRRORED = frozenset(
    ("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_version")
)  # fmt: skip

# The key of a hook of isohub's own among those of a mirror.
OURS = "isohub"

# What a module looks like: by path, its class, its own text, and its parameters with their shapes.
_Looks = dict[str, tuple[str, str, tuple[tuple[str, tuple[int, ...] | None], ...]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """One load. All that came from it shares one recipe, so that one pickle of several loads once.

    Attributes:
        load: Follows a recipe: called with the other attributes but the last, in order;
            returns a tuple of the result alone.
        ref: The repository at its commit; without one, for a working tree.
        ref_name: The branch or tag that was taken.
        call: Name of the entrypoint, its positional and its keyword arguments.
        isolation: The worker's settings.
        build: How it is done again in a new worker, if it is.
    """

    load: Callable[..., tuple[Any]]
    ref: RepoRef
    ref_name: str | None
    call: tuple[str, tuple[Any, ...], dict[str, Any]]
    isolation: Isolation
    build: Build | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return self.load, (self.ref, self.ref_name, self.call, self.isolation)


@dataclass(kw_only=True)
class Origin:
    """Where one handle of a worker's comes from.

    Attributes:
        recipe: The load.
        place: Indices and keys that lead to it in the result.
        path: The sub-module of what is there; empty for itself.
        looks: What the module looked like when it came.
        attributes: What was set on it from here since, by path and name.
    """

    recipe: Recipe
    place: tuple[Any, ...]
    path: str = ""
    looks: _Looks = field(default_factory=dict)
    attributes: dict[tuple[str, str], Any] = field(default_factory=dict)


def remember(result: Any, recipe: Recipe, place: tuple[Any, ...] = ()) -> None:
    """Have each module and object in the result of a load know how it came."""
    if _is_proxy(result):
        lease = result._isohub_lease
        if lease.origin is None and not result._isohub_path:
            looks = _looks(result) if "_isohub_tree" in getattr(result, "__dict__", ()) else {}
            lease.origin = Origin(recipe=recipe, place=place, looks=looks)
            if recipe.build is not None:
                lease.part = Part(lease, recipe.build, place)
    elif isinstance(result, list | tuple):
        for index, member in enumerate(result):
            remember(member, recipe, (*place, index))
    elif isinstance(result, dict):
        for key, member in result.items():
            remember(member, recipe, (*place, key))


def inherit(original: IsolatedModule, duplicate: IsolatedModule) -> None:
    """Have a copy know how its original came. Its recipe is one of its own: two loads, in one pickle too."""
    origin: Origin | None = original._isohub_lease.origin
    duplicate._isohub_tree.entrypoint = original._isohub_tree.entrypoint
    if origin is None:
        return
    start = original._isohub_path
    duplicate._isohub_lease.origin = Origin(
        recipe=replace(origin.recipe),
        place=origin.place,
        path=_joined(origin.path, start),
        looks=_below(origin.looks, start),
        attributes={
            (_relative(path, start), name): value
            for (path, name), value in origin.attributes.items()
            if _is_below(path, start)
        },
    )


def members_of(module: IsolatedModule) -> dict[str, Any]:
    """Return what was put into a mirror on this side: hooks, and what belongs to them."""
    return {
        name: value
        for name, value in module.__dict__.items()
        if name not in _MIRRORED and not name.startswith("_isohub")
    }


def note_attribute(proxy: Any, name: str, value: object) -> None:
    """Remember that an attribute was set from here: it is part of the state."""
    origin: Origin | None = proxy._isohub_lease.origin
    if origin is not None:
        origin.attributes[proxy._isohub_path, name] = value


def undrawn() -> AbstractContextManager[None]:
    """Leave torch's random generator as it was: to read a pickle of a plain module draws no numbers.

    Those of Python and NumPy are the worker's own, and the ones here never move.
    """
    return torch.random.fork_rng(devices=[])


def reduce_object(proxy: Any) -> tuple[Any, ...]:
    """Return what pickle needs to make an object in a worker again.

    Raises:
        LocalProtocolError: There is no recipe.
    """
    origin: Origin | None = proxy._isohub_lease.origin
    if origin is None:
        raise LocalProtocolError(
            f"a RemoteObject ({proxy._isohub_type}) stands for an object in worker process "
            f"{proxy._isohub_lease.worker.pid}. It cannot be copied or pickled, since no entrypoint returned it as it "
            "is; pass it as an argument of a call, or take the data out of it"
        )
    set_since = [(name, value) for (_, name), value in origin.attributes.items()]
    return _object_again, (origin.recipe, origin.place, set_since)


def reduce_module(module: IsolatedModule) -> tuple[Any, ...]:
    """Return what pickle needs to make a module again.

    Raises:
        LocalProtocolError: There is no recipe, or it no longer makes this module.
    """
    path = module._isohub_path
    origin: Origin | None = module._isohub_lease.origin
    root = module._isohub_tree.mirror("") if path else None
    if origin is not None and root is not None:
        return _part_again, (root, path)  # so that a module and its part, pickled together, stay so
    if origin is None:
        raise _cannot(module, "no entrypoint returned it, so there is no recipe to load it again")
    _check_looks(module, _below(origin.looks, path))
    own = {
        name: {key: kept for key, value in members_of(part).items() if (kept := _own_hooks(value))}
        for name, part in module.named_modules()
    }
    weights = Weights.of(module)
    if weights.elsewhere:
        raise _cannot(
            module,
            f"{', '.join(weights.elsewhere[:3])} cannot be seen from here: not made yet, or of a kind that stays in "
            "the worker",
        )
    set_since = [
        (_relative(place, path), name, value)
        for (place, name), value in origin.attributes.items()
        if _is_below(place, path)
    ]
    hooks = {name: members for name, members in own.items() if members}
    return _module_again, (origin.recipe, (origin.place, _joined(origin.path, path)), weights, set_since, hooks)


def _object_again(result: tuple[Any], place: tuple[Any, ...], set_since: list[tuple[str, Any]]) -> Any:
    made = _at(result[0], place)
    with undrawn():
        for name, value in set_since:
            setattr(made, name, value)
    return made


def _part_again(root: IsolatedModule, path: str) -> Any:
    return root.get_submodule(path)


def _module_again(
    result: tuple[Any],
    where: tuple[tuple[Any, ...], str],
    weights: Weights,
    set_since: list[tuple[str, str, Any]],
    hooks: dict[str, dict[str, Any]],
) -> Any:
    place, path = where
    module = _at(result[0], place).get_submodule(path)
    with undrawn():
        weights.restore(module, set_since)
    for part, name, value in set_since:
        note_attribute(module.get_submodule(part), name, value)
    for name, members in hooks.items():
        hooked = module.get_submodule(name)
        here = hooked.__dict__
        for key, value in members.items():
            here[key].update(value) if isinstance(here.get(key), dict) else here.__setitem__(key, value)
        hooked.note_hooks()
    return module


def _own_hooks(value: Any) -> Any:
    """Return what of a mirror's member goes into a pickle: hooks that were put there, not those of ours."""
    return {key: hook for key, hook in value.items() if key != OURS} if isinstance(value, dict) else value


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def _is_proxy(value: object) -> bool:
    return hasattr(type(value), "_isohub_type") or "_isohub_tree" in getattr(value, "__dict__", ())


def _looks(module: IsolatedModule) -> _Looks:
    return {
        path: (
            part._isohub_node.type_name,
            part._isohub_node.text,
            tuple((name, None if one is None else tuple(one.shape)) for name, one in part._parameters.items()),
        )
        for path, part in module.named_modules()
    }


def _check_looks(module: IsolatedModule, then: _Looks) -> None:
    now = _looks(module)
    set_at = {path for path, _ in module._isohub_lease.origin.attributes}
    for path in now.keys() | then.keys():
        if path in now and path in then:
            (type_now, text_now, parameters_now), (type_then, text_then, parameters_then) = now[path], then[path]
            if "Lazy" in type_then or (
                type_now == type_then
                and parameters_now == parameters_then
                and (text_now == text_then or _joined(module._isohub_path, path) in set_at)
            ):
                continue
        raise _cannot(module, f"its part {path or 'itself'!r} is not what the entrypoint made")


def _cannot(module: IsolatedModule, why: str) -> LocalProtocolError:
    return LocalProtocolError(
        f"an isolated module ({module._isohub_tree.describe()}) cannot be pickled: {why}. Save its state_dict(), load "
        "the module again where it is needed, change it there in the same way, and use load_state_dict"
    )


def _joined(path: str, rest: str) -> str:
    return f"{path}.{rest}" if path and rest else path or rest


def _is_below(path: str, start: str) -> bool:
    return not start or path == start or path.startswith(f"{start}.")


def _relative(path: str, start: str) -> str:
    return path[len(start) :].removeprefix(".") if start else path


def _below(looks: _Looks, start: str) -> _Looks:
    return {_relative(path, start): look for path, look in looks.items() if _is_below(path, start)}
