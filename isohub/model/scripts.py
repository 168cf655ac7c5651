"""ScriptModules (`torch.jit.script`, `torch.jit.load`) in a worker, as far as they differ from other modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isohub.model.objects import ask

if TYPE_CHECKING:
    from isohub.model.module import IsolatedModule

__all__ = ["is_script", "look_again"]


def is_script(module: Any) -> bool:
    """Return whether what an isolated module stands for is a ScriptModule."""
    return str(module._isohub_node.type_name).startswith("torch.jit.")


def look_again(module: IsolatedModule) -> None:
    """Have the worker tell what it has now where there are ScriptModules: of these it notices no change by itself.

    They keep their tensors out of Python's sight, so that the worker compares none of them after a request.
    """
    if any(is_script(part) for part in module.modules()):
        ask(module, "describe")
