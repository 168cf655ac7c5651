"""State dicts of isolated modules: read and written here, but for what the worker's classes do themselves.

Parameters and buffers are shared memory, so that torch's own code does all of it on this side without asking
anybody. A repository may have a say, though: by methods (`_load_from_state_dict`, `get_extra_state`, ...) and by
hooks. The worker tells which module has (`ModuleNode.own_state`), and only these are asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from isohub.errors import RemoteProtocolError, WorkerError
from isohub.model.objects import ask, judged
from isohub.model.scripts import look_again

if TYPE_CHECKING:
    from isohub.model.module import IsolatedModule

__all__ = ["can_ask", "flags_of", "load_from_state_dict", "load_state_dict", "loaded", "state_dict"]

# From this version of its format on, a state dict of batch or instance norm is loaded as any other.
_NORM_VERSION = 2


def can_ask(module: IsolatedModule) -> bool:
    """Return whether the worker of `module` is this process's, and alive."""
    try:
        module._isohub_lease.worker.check()
    except WorkerError:
        return False
    return module._isohub_lease.worker.alive


def flags_of(module: IsolatedModule, *, recurse: bool = True) -> dict[str, bool]:
    """Return which parameters ask for gradients, for what the worker does by these flags."""
    named = module.named_parameters(recurse=recurse, remove_duplicate=False)
    return {name: parameter.requires_grad for name, parameter in named}


def load_state_dict(module: IsolatedModule, state: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do `module.load_state_dict(state, *args, **kwargs)`.

    Raises:
        RuntimeError: As torch raises it, where keys or shapes do not fit.
    """
    assign = kwargs.get("assign", args[1] if len(args) > 1 else False)
    has_own = "load_state_dict" in module._isohub_node.own_state
    if not (has_own or assign) or not isinstance(state, Mapping) or not can_ask(module):
        return nn.Module.load_state_dict(module, state, *args, **kwargs)
    metadata = getattr(state, "_metadata", None)
    # Those that the state dict names become other objects, as in process; whoever holds the old ones keeps them.
    flags = flags_of(module)
    taken = _take_parameters(module, state) if assign else []
    try:
        answer = _ask_pair(
            module,
            OrderedDict(state),
            None if metadata is None else dict(metadata),
            (args, kwargs),
            flags,
            name="load_state_dict",
        )
        if assign:
            look_again(module)
    except BaseException:
        _put_back(taken)
        if taken and can_ask(module):
            ask(module, "describe")  # some may have been replaced before it failed
        raise
    _put_back(taken)
    kind, value = answer
    with judged(module._isohub_lease.worker):
        return _IncompatibleKeys(*_keys(value)) if kind == "keys" else value


def load_from_state_dict(  # noqa: PLR0917 - torch's own signature
    module: IsolatedModule,
    state: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Load the tensors of one module, without those below it; what torch calls for each module of a tree."""
    if not _loads_there(module, local_metadata) or not can_ask(module):
        nn.Module._load_from_state_dict(
            module,
            state,
            prefix,
            local_metadata,
            strict,
            missing,
            unexpected,
            errors,
        )
        return
    for hook in module._load_state_dict_pre_hooks.values():
        hook(state, prefix, local_metadata, strict, missing, unexpected, errors)
    assign = bool(local_metadata.get("assign_to_params_buffers"))
    below = {key: value for key, value in state.items() if key.startswith(prefix)}
    flags = flags_of(module, recurse=False)
    taken = _take_parameters(module, below, prefix, recurse=False) if assign else []
    try:
        answer = ask(module, "state", below, prefix, dict(local_metadata), (strict, flags), name="load_own")
        if assign:
            look_again(module)
    finally:
        _put_back(taken)
    with judged(module._isohub_lease.worker):
        if not isinstance(answer, tuple) or len(answer) != 5 or not isinstance(answer[4], dict):
            raise RemoteProtocolError("an answer about a state dict that does not say how it was loaded")
        *lists, gone = [_texts(told) for told in answer[:4]]
    for known, told in zip((missing, unexpected, errors), lists, strict=True):
        known.extend(told)
    for key in gone:
        state.pop(key, None)
    state.update(answer[4])


def loaded(module: IsolatedModule, keys: Any) -> None:
    """Run the hooks that the worker's module has for after the loading; it stands among those of the mirror."""
    if "loaded" in module._isohub_node.own_state and can_ask(module):
        answer = ask(module, "state", keys.missing_keys, keys.unexpected_keys, name="loaded")
        with judged(module._isohub_lease.worker):
            missing, unexpected = _keys(answer)
        keys.missing_keys[:], keys.unexpected_keys[:] = missing, unexpected


def state_dict(module: IsolatedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do `module.state_dict(*args, **kwargs)`. Without its worker, it is what is in the shared memory."""
    own = module._isohub_node.own_state
    if not ("save" in own or "elsewhere" in own) or not can_ask(module):
        return nn.Module.state_dict(module, *args, **kwargs)
    kwargs = {**dict(zip(("destination", "prefix", "keep_vars"), args, strict=False)), **kwargs}
    prefix, keep_vars = kwargs.get("prefix", ""), kwargs.get("keep_vars", False)
    destination = kwargs.get("destination")
    try:
        answer = ask(module, "state", prefix, keep_vars, destination is not None, name="save")
    except WorkerError:
        return nn.Module.state_dict(module, **kwargs)
    with judged(module._isohub_lease.worker):
        if not isinstance(answer, tuple) or len(answer) != 3 or not isinstance(answer[2], dict):
            raise RemoteProtocolError("an answer about a state dict that is none")
        items, metadata, names = answer
        if not isinstance(items, dict):
            return items
        for key, name in names.items():
            items[key] = _tensor(module, name)
    result: Any = OrderedDict() if destination is None else destination
    result.update(items)
    if isinstance(metadata, dict) and destination is None:
        result._metadata = OrderedDict(metadata)
    elif isinstance(metadata, dict) and hasattr(destination, "_metadata"):
        result._metadata.update(metadata)
    return result


def _loads_there(module: IsolatedModule, local_metadata: dict[str, Any]) -> bool:
    own = module._isohub_node.own_state
    if "load" in own or "elsewhere" in own or local_metadata.get("assign_to_params_buffers"):
        return True
    if "load_old" in own:
        version = local_metadata.get("version")
        return not isinstance(version, int) or version < _NORM_VERSION
    return False


def _take_parameters(
    module: IsolatedModule, state: Mapping[str, Any], prefix: str = "", *, recurse: bool = True
) -> list[tuple[dict[str, Any], str, nn.Parameter]]:
    """Take the parameters that `state` names from the mirrors; return where they were."""
    taken = []
    for path, part in module.named_modules(remove_duplicate=False) if recurse else [("", module)]:
        start = f"{prefix}{path}." if path else prefix
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and f"{start}{name}" in state:
                taken.append((part._parameters, name, parameter))
                # Past the guard of a mirror's tensors: the worker is about to tell of the new ones.
                dict.__setitem__(part._parameters, name, None)
    return taken


def _put_back(taken: list[tuple[dict[str, Any], str, nn.Parameter]]) -> None:
    """Put those parameters back that no others have replaced: where they have, these are in another dict."""
    for place, name, parameter in taken:
        dict.__setitem__(place, name, parameter)


def _ask_pair(module: IsolatedModule, *args: Any, name: str) -> tuple[Any, Any]:
    answer = ask(module, "state", *args, name=name)
    with judged(module._isohub_lease.worker):
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise RemoteProtocolError(f"an answer to {name} that is no pair")
    return answer


def _keys(value: Any) -> tuple[list[str], list[str]]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise RemoteProtocolError("an answer about a state dict without its keys")
    return _texts(value[0]), _texts(value[1])


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RemoteProtocolError("an answer about a state dict with keys that are no texts")
    return value


def _tensor(module: IsolatedModule, name: Any) -> torch.Tensor:
    path, _, last = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    try:
        part = module.get_submodule(path)
    except AttributeError:
        part = module
    tensor = part._parameters.get(last, part._buffers.get(last))
    if tensor is None:
        raise RemoteProtocolError(f"a value of a state dict that is {name!r:.100}, which there is not")
    return tensor
