"""The parameters, buffers and sub-modules of a mirror, as the worker told them."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from isohub.errors import LocalProtocolError

__all__ = ["Registered"]


class Registered(dict[str, Any]):
    """What nn.Module keeps in `_parameters`, `_buffers` and `_modules`, to be read only.

    Some functions of torch write there directly (`torch.func.functional_call`, old-style `weight_norm`,
    quantization). On this side alone that would part the mirror from the worker's module without a word.
    """

    __slots__ = ()

    def _refuse(self, *args: Any, **_: Any) -> NoReturn:
        what = repr(args[0]) if args and isinstance(args[0], str) else "something"
        if _is_export():
            raise LocalProtocolError(
                "torch.export cannot follow a module into its worker: "
                'isohub.load(..., returns="export", example_inputs=...) gives a program that has no worker',
                where=what,
            )
        raise LocalProtocolError(
            f"{what} of an isolated module was to be exchanged behind its back, by a function that writes to "
            "`_parameters`, `_buffers` or `_modules`: assign the attribute (module.name = ...), or have the "
            "function run on the worker's own module: isohub.run_in(module, function, ...)",
            where=what,
        )

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


def _is_export() -> bool:
    """Return whether it is torch.export that is at work, which has a better way than others."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == "torch.export._trace":
            return True
    return False
