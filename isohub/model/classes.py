"""What `isinstance` is told of an isolated module: the class of torch.nn that it is one of in its worker."""

from __future__ import annotations

import sys
from functools import cache, lru_cache
from typing import Any, NoReturn

from torch import nn

__all__ = ["class_of"]


@lru_cache(maxsize=4096)
def class_of(type_name: str, torch_type: str) -> type[Any]:
    """Return the class that stands for that of a worker's module.

    A class of torch.nn is itself. Any other is an empty class of its name over the nearest one of torch.nn, so
    that `m.__class__.__name__` is what it is in process. Nothing is imported, and no other class is ever found by
    what a worker says: a name that torch here does not have (the worker may have another torch) is `nn.Module`.
    """
    base = _torch_classes().get(torch_type, nn.Module)
    if type_name == torch_type and base is not nn.Module:
        return base
    name = type_name.rpartition(".")[2]
    members = {"__init__": _refuse, "__module__": __name__, "__doc__": "Stands for a class that a worker has."}
    return type(name if name.isidentifier() else "Module", (base,), members)


@cache
def _torch_classes() -> dict[str, type[nn.Module]]:
    """Return the closed table: every class of modules that torch.nn itself defines, by its qualified name."""
    return {
        f"{kind.__module__}.{kind.__qualname__}": kind
        for name, module in list(sys.modules.items())
        if name == "torch.nn" or name.startswith("torch.nn.modules.")
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.startswith("torch.nn.modules.")
    }


def _refuse(self: object, *_: object, **__: object) -> NoReturn:
    raise TypeError(
        f"the class {type(self).__name__} is in a worker, and makes no modules here: load one by isohub.load"
    )
