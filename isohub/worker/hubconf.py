"""hubconf.py: import it, list its entrypoints, find one. The rules are torch.hub's."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from isohub.errors import EntrypointError, MissingDependencyError, missing_hubconf

__all__ = ["Hubconf"]


class Hubconf:
    """The hubconf.py of one checkout, imported when it is first needed.

    Args:
        root: The folder that holds it.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self._module: ModuleType | None = None

    def list(self) -> list[str]:
        """Return the names of the public entrypoints, sorted.

        Raises:
            FileNotFoundError: There is no hubconf.py.
            MissingDependencyError: It names packages that are not installed.
            Exception: Whatever its import raises.
        """
        module = self._import()
        return [name for name in dir(module) if not name.startswith("_") and callable(getattr(module, name))]

    def find(self, name: str) -> Callable[..., Any]:
        """Return the entrypoint of that name.

        Raises:
            EntrypointError: There is none, or it cannot be called.
            Exception: As `list`.
        """
        module = self._import()
        entry = getattr(module, name) if name in dir(module) else None
        if entry is None or not callable(entry):
            raise _no_such(name, tuple(self.list()))
        return entry  # type: ignore[no-any-return]

    def _import(self) -> ModuleType:
        if self._module is not None:
            return self._module
        path = self.root / "hubconf.py"
        if not path.is_file():
            raise missing_hubconf(self.root)
        # Before the import, so that this message wins over a ModuleNotFoundError at the top of the file.
        _check(_declared(path))
        spec = importlib.util.spec_from_file_location("hubconf", path)
        assert spec is not None and spec.loader is not None, "a .py file always has a loader"
        module = importlib.util.module_from_spec(spec)
        # Registered, unlike torch.hub's, so that its classes can be pickled and be dataclasses.
        sys.modules["hubconf"] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules["hubconf"]
            raise
        dependencies = getattr(module, "dependencies", None)
        _check(dependencies if isinstance(dependencies, list | tuple) else [])
        self._module = module
        return module


def _declared(path: Path) -> list[object]:
    """Return what `dependencies = [...]` at the top level says, if it is a plain literal."""
    try:
        statements = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):
        return []  # the import will say what is wrong
    found: list[object] = []
    for statement in statements:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "dependencies" for target in statement.targets
        ):
            try:
                value = ast.literal_eval(statement.value)
            except ValueError:
                return []  # computed: checked after the import
            found = list(value) if isinstance(value, list | tuple) else []
    return found


def _check(dependencies: list[object] | tuple[object, ...]) -> None:
    missing = tuple(name for name in dependencies if isinstance(name, str) and not _exists(name))
    if missing:
        raise MissingDependencyError(f"Missing dependencies: {', '.join(missing)}", names=missing)


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a dotted name without its parent, or a module without a spec
        return name in sys.modules


def _no_such(name: str, available: tuple[str, ...]) -> EntrypointError:
    close = difflib.get_close_matches(name, available, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(available[:20]) + (f" and {len(available) - 20} more" if len(available) > 20 else "")
    return EntrypointError(
        f"Cannot find callable {name} in hubconf.{hint} It has: {shown or 'no entrypoints'}.",
        entrypoint=name,
        available=available,
    )
