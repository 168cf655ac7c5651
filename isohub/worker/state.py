"""What is done to a module as a whole: load, save, copy, cast, move and restore it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from isohub.wire.messages import Payload, Request
from isohub.worker import adoption, devices

if TYPE_CHECKING:
    from isohub.worker.border import Border

__all__ = ["do", "own_state", "torch_type"]

# Their loading differs from `nn.Module`'s for state dicts of an old format alone.
_NORMS = (
    nn.modules.batchnorm._NormBase._load_from_state_dict,
    nn.modules.instancenorm._InstanceNorm._load_from_state_dict,
)


def do(border: Border, request: Request) -> Payload:
    """Do what a request of the verb `state` says in its `name`.

    Raises:
        BaseException: Whatever torch or the repository's code raises.
    """
    target = border.objects.get(request.handle, request.path)
    args, kwargs = border.unpack(request.payload)
    if request.name == "segments":
        border.take_weights(*args)
        return border.pack(None)
    if request.name == "adopt":
        adoption.adopt(target, *args)
        return border.describe(request.handle)
    return border.pack(_OPERATIONS[request.name](target, *args, **kwargs))


def torch_type(module: nn.Module) -> str:
    """Return the qualified name of the nearest class of torch.nn that `module` is an instance of."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn.modules."):
            return f"{kind.__module__}.{kind.__qualname__}"
    return ""


def own_state(module: nn.Module) -> list[str]:
    """Return what of its state dict a module does itself, in the words of `wire.specs.OWN_STATE`."""
    kind = type(module)

    def is_own(method: str) -> bool:
        return getattr(kind, method, None) is not getattr(nn.Module, method)

    def has(hooks: str) -> bool:
        return bool(getattr(module, hooks, None))

    found = []
    if is_own("load_state_dict"):
        found.append("load_state_dict")
    if getattr(kind, "_load_from_state_dict", None) in _NORMS:
        found.append("load_old")
    elif is_own("_load_from_state_dict"):
        found.append("load")
    if "load" not in found and (is_own("set_extra_state") or has("_load_state_dict_pre_hooks")):
        found.append("load")
    if has("_load_state_dict_post_hooks"):
        found.append("loaded")
    saving = ("state_dict", "_save_to_state_dict", "get_extra_state")
    if any(map(is_own, saving)) or has("_state_dict_hooks") or has("_state_dict_pre_hooks"):
        found.append("save")
    if any(devices.is_elsewhere(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())):
        found.append("elsewhere")
    return found


def _load_state_dict(
    target: nn.Module, state: dict[str, Any], metadata: Any, arguments: tuple[Any, Any], flags: dict[str, bool]
) -> tuple[str, Any]:
    _take_flags(target, flags)
    args, kwargs = arguments
    result = target.load_state_dict(_with_metadata(state, metadata), *args, **kwargs)
    if isinstance(result, tuple) and hasattr(result, "missing_keys") and hasattr(result, "unexpected_keys"):
        return "keys", (list(result.missing_keys), list(result.unexpected_keys))
    return "value", result


def _load_own(
    target: nn.Module,
    state: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    options: tuple[bool, dict[str, bool]],
) -> tuple[list[str], list[str], list[str], list[str], dict[str, Any]]:
    """Load the tensors of one module, without those below it.

    Args:
        target: The module.
        state: As in `_load_from_state_dict`.
        prefix: Likewise.
        local_metadata: Likewise.
        options: `strict`, likewise, and which parameters ask for gradients.

    Returns:
        Keys that are missing, keys that are unexpected, errors; and how its code changed the state dict, which
        the modules below it see: the keys that are gone, and the values that are new.
    """
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []
    before = dict(state)
    strict, flags = options
    _take_flags(target, flags)
    with torch.no_grad():
        target._load_from_state_dict(state, prefix, local_metadata, strict, missing, unexpected, errors)
    gone = [key for key in before if key not in state]
    new = {key: value for key, value in state.items() if key not in before or before[key] is not value}
    return missing, unexpected, errors, gone, new


def _loaded(target: nn.Module, missing: list[str], unexpected: list[str]) -> tuple[list[str], list[str]]:
    """Run the hooks that come after the loading; they may change which keys count as missing."""
    keys = nn.modules.module._IncompatibleKeys(missing, unexpected)
    for hook in target._load_state_dict_post_hooks.values():
        hook(target, keys)
    return keys.missing_keys, keys.unexpected_keys


def _save(
    target: nn.Module, prefix: str, keep_vars: bool, is_part: bool
) -> tuple[Any, dict[str, Any] | None, dict[str, str]]:
    """Return what `state_dict` returns, its metadata, and which of the module's tensors its values are.

    Args:
        target: The module.
        prefix: As in `state_dict`.
        keep_vars: As in `state_dict`.
        is_part: Whether a module above it asks, which hands down the dict to fill.
    """
    if is_part:
        destination: Any = OrderedDict()
        destination._metadata = OrderedDict()
        target.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
    else:
        # Not all that a repository's own method may lack: `prefix` and `keep_vars` only where they were given.
        options: dict[str, Any] = {
            **({"prefix": prefix} if prefix else {}),
            **({"keep_vars": True} if keep_vars else {}),
        }
        destination = target.state_dict(**options)
    if not isinstance(destination, dict):
        return destination, None, {}
    names: dict[str, str] = {}
    if keep_vars:
        own = {id(tensor): name for name, tensor in (*target.named_buffers(), *target.named_parameters())}
        names = {key: own[id(value)] for key, value in destination.items() if id(value) in own}
    metadata = getattr(destination, "_metadata", None)
    items = {key: None if key in names else devices.to_cpu(value) for key, value in destination.items()}
    return items, None if metadata is None else {key: dict(value) for key, value in metadata.items()}, names


def _copy(target: nn.Module, deep: bool, copied: list[tuple[nn.Module, nn.Module]], flags: dict[str, bool]) -> Any:
    """Copy a module.

    Args:
        target: The module.
        deep: Whether as by `copy.deepcopy`, rather than `copy.copy`.
        copied: Modules that were copied before in the same deepcopy, and their copies.
        flags: Which parameters ask for gradients.
    """
    _take_flags(target, flags)
    if not deep:
        return copy.copy(target)
    memo: dict[int, Any] = {}
    for before, after in copied:
        for (_, old), (_, new) in zip(before.named_modules(), after.named_modules(), strict=True):
            memo[id(old)] = new
        for walk in ("named_parameters", "named_buffers"):
            new_tensors = dict(getattr(after, walk)())
            memo.update((id(old), new_tensors[name]) for name, old in getattr(before, walk)() if name in new_tensors)
    return copy.deepcopy(target, memo)


def _cast(
    target: nn.Module,
    dtypes: list[tuple[torch.dtype, torch.dtype]],
    device: torch.device | None,
    memory_format: torch.memory_format | None,
    recurse: bool,
) -> None:
    """Cast as a function did that a container in the parent applies to all its tensors."""
    if device is not None:
        devices.check(device)
    wanted = dict(dtypes)

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        dtype = wanted.get(tensor.dtype, tensor.dtype)
        where = device or tensor.device
        if tensor.is_meta and where.type != "meta":
            return torch.empty_like(tensor, dtype=dtype, device=where)  # as `to_empty` does
        if memory_format is not None and tensor.dim() in (4, 5):
            return tensor.to(where, dtype, memory_format=memory_format)
        return tensor.to(where, dtype)

    target._apply(cast, recurse)  # type: ignore[no-untyped-call]


def _move(target: nn.Module, method: str, device: torch.device, /, *args: Any, **kwargs: Any) -> None:
    """Move a module to another device, by its own method."""
    devices.check(device)
    getattr(target, method)(*args, **kwargs)


def _restore(
    target: nn.Module,
    parameters: dict[str, torch.Tensor],
    buffers: dict[str, tuple[torch.Tensor | None, bool]],
    switches: tuple[dict[str, bool], dict[str, bool]],
    attributes: list[tuple[str, str, Any]],
) -> None:
    """Make a module that was just built what a pickled one was.

    Args:
        target: The module.
        parameters: Values of those that it does not have in their dtype.
        buffers: Values of those that it does not have in their dtype, or not at all, and whether they are persistent.
        switches: Which parameters ask for gradients, and the training flags.
        attributes: Path, name and value of what was set from outside.
    """
    for path, name, value in attributes:
        setattr(target.get_submodule(path), name, value)
    for full_name, tensor in parameters.items():
        parameter = target.get_parameter(full_name)
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            parameter.materialize(tensor.shape, dtype=tensor.dtype)
            parameter.data.copy_(tensor)
        else:
            parameter.data = tensor.clone(memory_format=torch.preserve_format)
    for full_name, (value, persistent) in buffers.items():
        path, _, name = full_name.rpartition(".")
        module = target.get_submodule(path)
        kept = None if value is None else value.clone(memory_format=torch.preserve_format)
        if name in module._buffers:
            module._buffers[name] = kept
        else:
            module.register_buffer(name, kept, persistent)
    flags, modes = switches
    _take_flags(target, flags)
    for path, mode in modes.items():
        target.get_submodule(path).training = mode


def _take_flags(target: nn.Module, flags: dict[str, bool]) -> None:
    for name, parameter in target.named_parameters(remove_duplicate=False):
        if parameter.requires_grad is not flags.get(name, parameter.requires_grad):
            parameter.requires_grad_(flags[name])


def _with_metadata(state: dict[str, Any], metadata: Any) -> Any:
    result: Any = OrderedDict(state)
    if metadata is not None:
        result._metadata = OrderedDict(metadata)
    return result


def _generator(_: Any, state: torch.Tensor) -> torch.Generator:
    """Make a generator that goes on where the parent's is."""
    made = torch.Generator()
    made.set_state(state.clone())
    return made


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "load_state_dict": _load_state_dict,
    "load_own": _load_own,
    "loaded": _loaded,
    "save": _save,
    "copy": _copy,
    "cast": _cast,
    "generator": _generator,
    "move": _move,
    "restore": _restore,
}
