"""What a comparison runs in a worker, on the repository's own module: torch and the standard library alone.

It answers in plain data and tensors. The parent believes none of it: see `answers`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = [
    "Caller",
    "Given",
    "call",
    "entry_input",
    "facts",
    "first_call",
    "gradients",
    "imported_files",
    "layer_plan",
    "layer_values",
    "leaf_tensors",
    "set_mode",
]

Given = tuple[tuple[Any, ...], dict[str, Any], int, str | None]
"""Arguments of a call, positional and by keyword; a seed; a function of hubconf.py that the former go through."""


def facts(target: Any, entrypoint: str) -> dict[str, Any]:
    """Return what hubconf.py says of the entrypoint, and what the target is."""
    hubconf = sys.modules["hubconf"]
    entry = getattr(hubconf, entrypoint)
    try:
        signature = str(inspect.signature(entry))
    except (TypeError, ValueError):  # a builtin
        signature = ""
    dependencies = getattr(hubconf, "dependencies", None)
    return {
        "signature": signature,
        "docstring": inspect.getdoc(entry) or "",
        "dependencies": [str(name) for name in dependencies] if isinstance(dependencies, list | tuple) else [],
        "type": type(target).__qualname__,
        "training": target.training if isinstance(target, nn.Module) else None,
        "callable": callable(target),
    }


def imported_files(_: Any) -> list[str]:
    """Return the files of the checkout that were imported so far, as paths below its root."""
    root = os.path.realpath(os.path.dirname(sys.modules["hubconf"].__file__ or "."))  # noqa: PTH120
    found = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str):
            real = os.path.realpath(file)
            if real.startswith(root + os.sep):
                found.add(os.path.relpath(real, root))
    return sorted(found)


def set_mode(target: Any, training: bool) -> None:
    """Switch a module to training or evaluation."""
    if isinstance(target, nn.Module):
        target.train(training)


def call(target: Any, given: Given) -> Any:
    """Call the target, without gradients, from a fixed state of the random generators.

    Returns:
        What it returned, and the seconds that it took.
    """
    args, kwargs, seed, preprocess = given
    with _seeded(seed), torch.no_grad():
        args = _preprocessed(args, preprocess)
        start = time.perf_counter()
        output = target(*args, **kwargs)
        return output, time.perf_counter() - start


def first_call(target: Any, given: Given) -> Any:
    """Call the target as `call` does, and measure how much more memory it took at its peak.

    Returns:
        What it returned, the seconds, and the bytes; None where the kernel does not tell.
    """
    before = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        is_reset = True
    except OSError:
        is_reset = False
    output, seconds = call(target, given)
    peak = _resident("VmHWM")
    nbytes = max(peak - before, 0) if is_reset and peak is not None and before is not None else None
    return output, seconds, nbytes


class Caller:
    """Calls the target again and again. It stays in the worker: to send a probe for each call would cost more.

    Args:
        target: What to call.
        seed: As in `Given`, for the first input.
        preprocess: As in `Given`.
    """

    def __init__(self, target: Any, seed: int, preprocess: str | None) -> None:
        self._target = target
        self._seed = seed
        self._preprocess = preprocess

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], number: int, measured: bool) -> Any:
        """Call the target with the `number`-th input; return what `call` returns, or `first_call` if it is measured."""
        given = (args, kwargs, self._seed + number, self._preprocess)
        return first_call(self._target, given) if measured else call(self._target, given)


def layer_plan(target: Any, given: Given) -> list[tuple[str, str, int, bool]]:
    """Run once and tell the calls of sub-modules in the order in which they ended.

    Returns:
        For each call the module's name, its class, the bytes of tensors in its output, whether it is a leaf.
    """
    plan: list[tuple[str, str, int, bool]] = []

    def note(name: str, module: nn.Module, output: Any) -> None:
        nbytes = sum(tensor.nbytes for tensor in leaf_tensors(output))
        plan.append((name, type(module).__qualname__, nbytes, next(module.children(), None) is None))

    with _hooked(target, note):
        call(target, given)
    return plan


def layer_values(target: Any, given: Given, wanted: list[int]) -> dict[int, list[torch.Tensor]]:
    """Run once and return the tensors in the outputs of some calls, by their places in `layer_plan`."""
    found: dict[int, list[torch.Tensor]] = {}
    places = iter(range(10**9))
    chosen = set(wanted)

    def keep(_: str, __: nn.Module, output: Any) -> None:
        place = next(places)
        if place in chosen:
            # Cloned: what comes next may write into it, as `ReLU(inplace=True)` does.
            found[place] = [tensor.detach().clone() for tensor in leaf_tensors(output)]

    with _hooked(target, keep):
        call(target, given)
    return found


def entry_input(target: Any, given: Given, name: str) -> list[torch.Tensor]:
    """Run once and return the tensors that the module of that name was called with, the first time."""
    found: list[list[torch.Tensor]] = []
    module = dict(target.named_modules())[name]

    def keep(_: nn.Module, given: Any, named: Any) -> None:
        if not found:
            found.append([tensor.detach().clone() for tensor in leaf_tensors((given, named))])

    handle = module.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        call(target, given)
    finally:
        handle.remove()
    return found[0] if found else []


def gradients(target: Any, given: Given, names: list[str]) -> dict[str, torch.Tensor | None]:
    """Return the gradients of the mean square of all outputs, by the parameters of these names."""
    args, kwargs, seed, preprocess = given
    wanted = dict(target.named_parameters())
    chosen = [wanted[name] for name in names]
    with _seeded(seed), torch.enable_grad():
        output = target(*_preprocessed(args, preprocess), **kwargs)
        parts = [part for part in leaf_tensors(output) if part.is_floating_point() and part.requires_grad]
        if not parts:
            return dict.fromkeys(names)
        loss = torch.stack([part.double().square().mean() for part in parts]).sum()
        found = torch.autograd.grad(loss, chosen, allow_unused=True)
    return dict(zip(names, found, strict=True))


def leaf_tensors(value: Any) -> list[torch.Tensor]:
    """Return the tensors in nested containers, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for member in value for tensor in leaf_tensors(member)]
    return []


@contextmanager
def _hooked(target: Any, note: Callable[[str, nn.Module, Any], None]) -> Iterator[None]:
    """Have `note` called with each output of a sub-module in the body."""
    handles = []
    try:
        if isinstance(target, nn.Module):
            for name, module in target.named_modules():
                handles.append(module.register_forward_hook(_noting(note, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noting(note: Callable[[str, nn.Module, Any], None], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, _: Any, output: Any) -> None:
        note(name, module, output)

    return hook


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Start the random generators from a seed in the body; torch's goes on afterwards where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            with contextlib.suppress(AttributeError):  # half imported
                numpy.random.seed(seed % 2**32)
        yield


def _preprocessed(args: tuple[Any, ...], preprocess: str | None) -> tuple[Any, ...]:
    if preprocess is None:
        return args
    made = getattr(sys.modules["hubconf"], preprocess)(*args)
    return made if isinstance(made, tuple) else (made,)


def _resident(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), None)
