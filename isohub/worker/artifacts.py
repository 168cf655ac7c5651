"""A model as an artifact that runs without the repository's code: compiled here, sent as code and shared tensors.

::

    module ── script | trace | export ──> artifact ──┬─ its tensors ──> moved into a segment ──> by reference
                                                     └─ the rest, with tensors on the meta device ──> bytes

Note [weights on the meta device]: a file of either kind holds code and weights in one. Each tensor of the
artifact makes room for one on the meta device while it is written, so that the bytes are those of the code,
and the parent puts the same memory back in the same places. (torch.export.save takes all tensors of the meta
device for one storage, as their addresses are equal; there a single number, expanded to the shape, stands in.)
Tensors that the compiler made constants of the code stay where they are: there is no place for others.
"""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from isohub.errors import ArtifactError
from isohub.shm.tensors import why_not

__all__ = ["take_apart"]

_Move = Callable[[list[torch.Tensor]], None]


def take_apart(kind: str, result: Any, example: Any, entrypoint: str, move: _Move) -> dict[str, Any]:
    """Return an artifact of what an entrypoint returned, in parts that can be said.

    Args:
        kind: `"torchscript"` or `"export"`.
        result: What the entrypoint returned.
        example: Example inputs: a tuple of positional ones, or a dict of keyword ones; None for none.
        entrypoint: Its name.
        move: Moves tensors into shared memory for good.

    Returns:
        `code`, bytes; `places`, each a path, a name and the index of a tensor that is not in the bytes; these
        `tensors`; and `flags`, whether they ask for gradients.

    Raises:
        TypeError: The result is no module.
        ArtifactError: The compiler cannot take it.
    """
    if not isinstance(result, torch.nn.Module):
        raise TypeError(
            f'{entrypoint} returned a {type(result).__name__}: returns="{kind}" needs an entrypoint that returns a '
            "module and nothing else"
        )
    if kind == "export":
        return _exported(_export(result, *_inputs(example), entrypoint), move)
    return _scripted(_script(result, example, entrypoint), move)


def _script(module: torch.nn.Module, example: Any, entrypoint: str) -> Any:
    if isinstance(module, torch.jit.ScriptModule):
        # One that was written as a class of that type, as before torch 1.2, has the real one inside.
        return vars(module).get("_actual_script_module", module)
    if example is None:
        advice = (
            "Pass example_inputs=(...) to have one call of it traced instead, or keep the module itself, in its "
            'worker, by returns="module"'
        )
        with _compiling("script", entrypoint, advice):
            return torch.jit.script(module)
    args, kwargs = _inputs(example)
    advice = (
        'Are these inputs that it can be called with? Else keep the module itself, in its worker, by returns="module"'
    )
    with _compiling("trace", entrypoint, advice):
        return torch.jit.trace(  # type: ignore[no-untyped-call]
            module, args or None, example_kwarg_inputs=kwargs or None
        )


def _export(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], entrypoint: str) -> Any:
    advice = (
        "The first dimension of the example inputs is the batch, and stays open: a module that takes one size alone "
        'cannot be had so; nor can one that looks at values. Try returns="torchscript", or keep the module itself, '
        'in its worker, by returns="module"'
    )
    with _compiling("export", entrypoint, advice):
        args, kwargs, shapes = _with_open_batch(module, args, kwargs)
        return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)


def _with_open_batch(module: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Return the inputs, and which of their dimensions stay open: the first one, where it is the batch.

    A batch of one is doubled: the compiler takes a size of 1 as a constant, whatever it is told.
    """
    pytree = torch.utils._pytree
    size = next((leaf.shape[0] for leaf in pytree.tree_leaves((args, kwargs)) if _has_first(leaf)), None)
    batch = torch.export.Dim("batch")

    def shape_of(leaf: Any) -> dict[int, Any] | None:
        return {0: batch} if _has_first(leaf) and leaf.shape[0] == size else None

    def doubled(leaf: Any) -> Any:
        return leaf if shape_of(leaf) is None else torch.cat([leaf, leaf])

    # By the names of forward's parameters, which is how the compiler finds them.
    named = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    shapes = pytree.tree_map(shape_of, dict(named))
    if size == 1:
        args, kwargs = pytree.tree_map(doubled, (args, kwargs))
    return args, kwargs, shapes


def _has_first(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0


def _inputs(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), example) if isinstance(example, dict) else (tuple(example), {})


@contextmanager
def _compiling(compiler: str, entrypoint: str, advice: str) -> Iterator[None]:
    with warnings.catch_warnings():
        # That TorchScript is deprecated is in our documentation; whoever asks for it has chosen.
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        try:
            yield
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            raise ArtifactError(
                f"{entrypoint} cannot be had without its code. torch.{_WHERE[compiler]} says:\n\n{message}\n\n"
                f"{advice}.",
                entrypoint=entrypoint,
                compiler=compiler,
                compiler_message=message,
            ) from error


_WHERE = {"script": "jit.script", "trace": "jit.trace", "export": "export.export"}


def _scripted(script: Any, move: _Move) -> dict[str, Any]:
    """Take a ScriptModule apart; see Note [weights on the meta device]."""
    held: list[tuple[Any, str, str, torch.Tensor]] = []
    for path, module in script.named_modules(remove_duplicate=False):
        # Parameters, buffers and plain attributes alike.
        for name in _attributes(module):
            value = module._c.getattr(name)
            if _can_move(value):
                held.append((module._c, path, name, value))
    move([tensor for *_, tensor in held])
    try:
        for owner, _, name, tensor in held:
            owner.setattr(name, _on_meta(tensor))
        code = script._c.save_to_buffer({})
    finally:
        for owner, _, name, tensor in held:
            owner.setattr(name, tensor)
    return _parts(code, [(path, name, tensor) for _, path, name, tensor in held])


def _attributes(module: Any) -> list[str]:
    concrete = getattr(module, "_concrete_type", None)
    if concrete is None:
        # Of a version or kind that does not tell of all: the registered ones are there in any case.
        return [*module._parameters.keys(), *module._buffers.keys()]
    return list(concrete.get_attributes())


def _exported(program: Any, move: _Move) -> dict[str, Any]:
    """Take an exported program apart; see Note [weights on the meta device]."""
    tables = {"state_dict": program._state_dict, "constants": program._constants}
    held = {
        (table, name): value for table, values in tables.items() for name, value in values.items() if _can_move(value)
    }
    move(list(held.values()))
    program._example_inputs = None  # they are values of the caller's, and no part of the model
    program._state_dict, program._constants = (
        {name: _stand_in(value) if _can_move(value) else value for name, value in values.items()}
        for values in tables.values()
    )
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the stand-ins, which are views
        torch.export.save(program, buffer)
    return _parts(buffer.getvalue(), [(table, name, tensor) for (table, name), tensor in held.items()])


def _parts(code: bytes, held: list[tuple[str, str, torch.Tensor]]) -> dict[str, Any]:
    index: dict[int, int] = {}  # tied ones are one
    tensors: list[torch.Tensor] = []
    places: list[tuple[str, str, int]] = []
    for path, name, tensor in held:
        place = index.setdefault(id(tensor), len(tensors))
        if place == len(tensors):
            tensors.append(tensor)
        places.append((path, name, place))
    return {
        "code": bytes(code),
        "places": places,
        "tensors": [tensor.detach() for tensor in tensors],
        "flags": [tensor.requires_grad for tensor in tensors],
    }


def _can_move(value: object) -> bool:
    return (
        isinstance(value, torch.Tensor) and why_not(value) is None and value.device.type == "cpu" and value.numel() > 0
    )


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    return _like(tensor, torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"))


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    return _like(tensor, torch.zeros((), dtype=tensor.dtype).expand(tensor.shape))


def _like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(other, requires_grad=tensor.requires_grad)
    return other.requires_grad_(tensor.requires_grad)
