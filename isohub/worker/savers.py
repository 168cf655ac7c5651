"""Metadata in what the repository's own code saves in a worker: TorchScript, exported programs, safetensors."""

from __future__ import annotations

import functools
import importlib.machinery
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

import torch

__all__ = ["Savers"]

# As in `telemetry.metadata`, which no worker imports.
_EXTRA_FILE = "isohub.json"
_KEY_PREFIX = "isohub."
# Of the fields of a load: they speak of one entrypoint, and not of the whole repository.
_OF_ENTRYPOINT = ("entrypoint", "arguments")


class Savers:
    """torch's and safetensors' functions that write models, with metadata in what they write.

    While an entrypoint runs, the metadata is that of its load. Afterwards, in a method of a model say, nobody
    knows which entrypoint made it, unless the worker has run only one: else that and its arguments are left out.
    """

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}
        self._runs: set[tuple[str | None, ...]] = set()

    def take_over(self) -> None:
        """Put the functions in the place of the original ones. Before that code is imported."""
        script: Any = torch.jit._script.RecursiveScriptModule
        script.save = self._adding(script.save, "_extra_files")
        script.save_to_buffer = self._adding(script.save_to_buffer, "_extra_files", 1)
        # It calls these two for a module; a function that was compiled alone has others, in C++.
        serialization: Any = torch.jit._serialization
        serialization.save = self._adding(torch.jit.save, "_extra_files", 2)
        torch.jit.save = serialization.save
        torch.export.save = self._adding(torch.export.save, "extra_files")
        # Not imported for its own sake: the repository may bring one of its own, or none.
        sys.meta_path.insert(0, _Finder(("safetensors.torch", "safetensors.numpy"), self._safetensors))

    @contextmanager
    def building(self, fields: dict[str, str]) -> Iterator[None]:
        """Know that the entrypoint of these fields runs in the body."""
        self._fields = fields
        self._runs.add(tuple(fields.get(name) for name in _OF_ENTRYPOINT))
        try:
            yield
        finally:
            if len(self._runs) > 1:
                self._fields = {name: text for name, text in fields.items() if name not in _OF_ENTRYPOINT}

    def _now(self) -> dict[str, str]:
        if not self._fields:
            return {}  # hubconf.py itself saves something, for `list` say
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return {
            **self._fields, "torch": str(torch.__version__), "python": platform.python_version(), "time": now,
        }  # fmt: skip

    def _safetensors(self, module: ModuleType) -> None:
        for name, place in (("save", 1), ("save_file", 2)):
            if hasattr(module, name):
                setattr(module, name, self._adding(getattr(module, name), "metadata", place))

    def _adding(self, save: Callable[..., Any], keyword: str, place: int | None = None) -> Callable[..., Any]:
        """Return a function that adds the metadata to a mapping that `save` takes.

        Args:
            save: The function that writes.
            keyword: Name of that argument.
            place: Its place among the positional ones, if it may come as one.
        """

        @functools.wraps(save)
        def saved(*args: Any, **kwargs: Any) -> Any:
            fields = self._now()
            if not fields:
                return save(*args, **kwargs)
            if keyword == "metadata":
                ours = {_KEY_PREFIX + name: text for name, text in fields.items()}
            else:
                ours = {_EXTRA_FILE: json.dumps(fields, indent=1)}
            if place is not None and len(args) > place:
                # What is there already stays: an inner one of these functions is called by an outer one.
                args = (*args[:place], {**ours, **(args[place] or {})}, *args[place + 1 :])
            else:
                kwargs[keyword] = {**ours, **(kwargs.get(keyword) or {})}
            return save(*args, **kwargs)

        return saved


class _Finder(MetaPathFinder):
    """Calls a function on some modules when they have been imported, and otherwise stays out of the way."""

    def __init__(self, names: tuple[str, ...], after: Callable[[ModuleType], None]) -> None:
        self._names = names
        self._after = after

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where the module is, with a loader that calls the function, if it is one of these."""
        if name not in self._names:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._after)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader, after: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Make the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then call the function on it."""
        self._loader.exec_module(module)
        self._after(module)
