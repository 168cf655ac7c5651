"""The caller's arguments that the closed set cannot say, pickled: from parent to worker only.

The one door to `cloudpickle`. Tensors and handles inside a pickle do not go into it: they travel beside
it, the tensors through shared memory.
"""

from __future__ import annotations

import functools
import io
import site
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import cloudpickle
import torch

from isohub.errors import LocalProtocolError
from isohub.shm.tensors import why_not
from isohub.shm.values import Packer
from isohub.wire.values import Ref, TensorAt

__all__ = ["pickle_argument", "pickle_function"]

_registering = threading.Lock()


def pickle_function(function: Callable[..., object]) -> bytes:
    """Return `function` as bytes for a worker.

    Raises:
        LocalProtocolError: It cannot be pickled.
    """
    with _users_modules_by_value():
        try:
            return bytes(cloudpickle.dumps(function))
        except Exception as error:
            raise _cannot(function, "setup", error) from error


def pickle_argument(packer: Packer, value: object, where: str, ref_of: Callable[[object], Ref | None]) -> TensorAt:
    """Say `value` as a pickle.

    Args:
        packer: The packer of the request; tensors and the pickle itself are added to it.
        value: Anything.
        where: Its place, for errors.
        ref_of: Returns the handle that a proxy stands for, or None for what is no proxy.

    Raises:
        LocalProtocolError: It cannot be pickled.
    """
    buffer = io.BytesIO()
    with _users_modules_by_value():
        try:
            _Pickler(buffer, packer, ref_of).dump(value)
        except LocalProtocolError:
            raise
        except Exception as error:
            raise _cannot(value, where, error) from error
    return packer.bytes(buffer.getvalue(), "pickle")


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, buffer: io.BytesIO, packer: Packer, ref_of: Callable[[object], Ref | None]) -> None:
        super().__init__(buffer)
        self._packer = packer
        self._ref_of = ref_of

    def persistent_id(self, value: Any) -> Any:
        """Return a key for what travels beside the pickle; None for what goes into it."""
        if isinstance(value, torch.Tensor):
            if why_not(value) is not None or not value.is_leaf or value._backward_hooks:
                return None
            if type(value) is torch.nn.Parameter:
                own = self._ref_of(value)
                if own is not None:
                    return "own", own.handle, own.path, own.name
                return "parameter", self._packer.add(value)
            return ("tensor", self._packer.add(value)) if type(value) is torch.Tensor else None
        if type(value) is MethodType:  # of a mirror's class, which the worker does not have
            owner = self._ref_of(value.__self__)
            return None if owner is None else ("method", owner.handle, owner.path, value.__name__)
        ref = self._ref_of(value)
        if ref is None:
            return None
        if ref.kind == "method":
            return "method", ref.handle, ref.path, ref.name
        return "handle", ref.handle, ref.path


def _cannot(value: object, where: str, error: Exception) -> LocalProtocolError:
    return LocalProtocolError(
        f"{where}: a {type(value).__module__}.{type(value).__qualname__} cannot be sent to a worker, since it "
        f"cannot be pickled: {type(error).__name__}: {error}. Pass the plain data it is made of, or make it "
        "in the worker: by Isolation(setup=...), or by an entrypoint",
        where=where,
    )


@contextmanager
def _users_modules_by_value() -> Iterator[None]:
    """Have functions and classes of the user's own modules pickled whole.

    A worker sees installed packages, but none of the user's modules, so that a name of one would lead
    nowhere there (or to the repository's module of that name).
    """
    with _registering:
        known = set(cloudpickle.list_registry_pickle_by_value())
        added = [
            module for name, module in list(sys.modules.items())
            if name not in known and name != "__main__" and _is_users(name, module)
        ]  # fmt: skip
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in added:
                cloudpickle.unregister_pickle_by_value(module)


def _is_users(name: str, module: object) -> bool:
    # Proxies of lazy modules stand in sys.modules under names that are not theirs.
    if not isinstance(module, ModuleType) or getattr(module, "__name__", None) != name:
        return False
    if name.partition(".")[0] in ("isohub", "torch"):
        return False
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and not file.startswith(_installed())


@functools.cache
def _installed() -> tuple[str, ...]:
    folders = {*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()}
    # Only those that hold modules: `data` and `scripts` are the whole prefix.
    folders -= {sysconfig.get_paths()["data"], sysconfig.get_paths()["scripts"]}
    return tuple(str(Path(folder)) + "/" for folder in folders)
