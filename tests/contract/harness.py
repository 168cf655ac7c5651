"""Uses of a module, run on a plain module and on its isolated twin, and compared bit for bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import isohub
from isohub.errors import IsohubError
from tests.contract import architectures
from tests.helpers.repos import write_files
from tests.helpers.same import assert_same

__all__ = [
    "ALL", "EAGER", "USES", "Inputs", "Use", "caught", "loss_of", "make_contract_repo", "observe", "use",
]  # fmt: skip

Observed = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What an architecture is called with."""

    args: tuple[torch.Tensor, ...]
    kwargs: dict[str, torch.Tensor] = field(default_factory=dict)

    def through(self, model: Any) -> Any:
        return model(*self.args, **self.kwargs)

    @property
    def floats(self) -> list[torch.Tensor]:
        return [tensor for tensor in (*self.args, *self.kwargs.values()) if tensor.is_floating_point()]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
        """Return inputs whose floating point tensors went through `change`."""

        def changed(tensor: torch.Tensor) -> torch.Tensor:
            return change(tensor) if tensor.is_floating_point() else tensor

        return Inputs(tuple(map(changed, self.args)), {name: changed(value) for name, value in self.kwargs.items()})

    def asking(self) -> Inputs:
        """Return copies that ask for gradients."""
        return self.map(lambda tensor: tensor.detach().clone().requires_grad_())


def _inputs() -> dict[str, Inputs]:
    made = torch.Generator().manual_seed(5)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made)

    vectors = Inputs((rand(6, 5),))
    return {
        "cnn": Inputs((rand(3, 3, 8, 8),)),
        "transformer": Inputs((rand(2, 5, 8),)),
        "lstm": Inputs((rand(3, 4, 5),)),
        "unet": Inputs((rand(2, 1, 6, 6),)),
        "tied": Inputs((torch.tensor([[1, 5, 10], [0, 0, 3]]),)),
        "dicts": Inputs((rand(5, 4),), {"mask": torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5, 2.0])}),
        "lists": Inputs((rand(2, 2, 9),)),
        "scripted": vectors,
        "stochastic": vectors,
        "checkpointed": vectors,
        "reentrant": vectors,
        "rebinding": vectors,
    }


INPUTS = _inputs()
EAGER = ("cnn", "transformer", "lstm", "unet", "tied", "dicts", "lists", "stochastic")
ALL = (*EAGER, "scripted")


@dataclass(frozen=True)
class Use:
    """One way to use a module.

    Attributes:
        name: What the test is called.
        run: Does it, and returns what must be the same.
        on: The architectures that it is tried on.
        may_refuse: Whether an isolated module may say that it cannot, where a plain one can.
        summed_otherwise: Architectures on which floating point values may differ in their last bits, by no more
            than `torch.testing.assert_close` allows, for a gradient of an isolated one is summed in another order:
            contributions to a tied parameter from several calls in one graph are added call by call, those to
            derivatives of second order graph by graph, and those to what a hook was shown, or to what stands
            before it and leads past it as well, piece by piece. All else is the same bit for bit there, too.
        kept_by_torch: Whether torch keeps parameters for good after it, in process as well: its graphs and hooks
            refer to each other where Python's collector does not look.
    """

    name: str
    run: Callable[[Any, Inputs], Any]
    on: tuple[str, ...]
    may_refuse: bool
    summed_otherwise: tuple[str, ...] = ()
    kept_by_torch: bool = False


class GradientsOfInputs(list[Any]):
    """What a use returns whose result is nothing but gradients: they are compared with those of the parameters."""


USES: list[Use] = []


def use(
    *on: str, may_refuse: bool = False, summed_otherwise: tuple[str, ...] = (), kept_by_torch: bool = False
) -> Callable[[Callable[[Any, Inputs], Any]], Callable[[Any, Inputs], Any]]:
    """Register a use, on the architectures named or else on all; its name is the function's."""

    def register(run: Callable[[Any, Inputs], Any]) -> Callable[[Any, Inputs], Any]:
        assert run.__name__ not in {known.name for known in USES}, f"two uses named {run.__name__}"
        assert set(summed_otherwise) <= set(on or ALL), f"{run.__name__} is not tried on all of {summed_otherwise}"
        USES.append(Use(run.__name__, run, on or ALL, may_refuse, summed_otherwise, kept_by_torch))
        return run

    return register


def caught(kind: type[Exception], run: Callable[[], object]) -> str:
    """Return the name of `kind`, which `run` must raise: so the same has to be raised by both twins."""
    try:
        run()
    except kind:
        return kind.__name__
    raise AssertionError(f"no {kind.__name__} was raised")


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Walk the tensors of nested lists, tuples and dicts in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for member in value:
            yield from tensors_in(member)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def loss_of(output: object) -> torch.Tensor:
    """Return a loss into which each floating point tensor of a model's output enters, each in its own way."""
    terms = [
        tensor.square().mean() * (i + 1) + tensor.sum() * 0.125
        for i, tensor in enumerate(found for found in tensors_in(output) if found.is_floating_point())
    ]
    return torch.stack([term.double() for term in terms]).sum()


def make_contract_repo(folder: Path) -> Path:
    """Make a repository of the very file that the tests import: a folder, of which nobody asks git at each load."""
    names = [name for name, entry in vars(architectures).items() if inspect.isfunction(entry) and name in INPUTS]
    files: dict[str, str | bytes] = {
        "hubconf.py": f"from architectures import {', '.join(names)}\n",
        "architectures.py": Path(architectures.__file__).read_bytes(),
    }
    write_files(folder, files)
    return folder


def observe(case: Use, architecture: str, repo: Path | None) -> Observed:
    """Load a model from seed 0, use it, and return everything that must be the same afterwards.

    Args:
        case: What to do with it.
        architecture: Which one to load.
        repo: The repository to load an isolated one from; None for a plain one.
    """
    torch.manual_seed(0)
    model = getattr(architectures, architecture)() if repo is None else isohub.load(repo, architecture)
    inputs = INPUTS[architecture].map(lambda tensor: tensor.clone())
    result = case.run(model, inputs)
    observed = {"result": result, **state_of(model), "inputs": inputs.args, "generator": torch.get_rng_state()}
    for tensor in [*model.parameters(), *inputs.floats]:
        tensor.grad = None  # with `create_graph=True` it refers to what it belongs to: torch says to let go of it so
    if isinstance(result, GradientsOfInputs):
        observed["result"] = None
        observed["gradients"].update({f"input {index}": gradient for index, gradient in enumerate(result)})
    return observed


def state_of(model: Any) -> Observed:
    """Return all that a module holds, by name."""
    state = model.state_dict()
    return {
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "parameters": dict(model.named_parameters()),
        "leaves": [parameter.is_leaf for parameter in model.parameters()],
        "buffers": dict(model.named_buffers()),
        "state dict": dict(state),
        "metadata": dict(state._metadata),
        "modes": {name: module.training for name, module in model.named_modules()},
    }


def compare(case: Use, architecture: str, repo: Path) -> str | None:
    """Do a use on both twins and compare; return the isolated one's refusal, where it may refuse.

    Raises:
        AssertionError: They differ.
    """
    expected = observe(case, architecture, None)
    try:
        actual = observe(case, architecture, repo)
    except IsohubError as error:
        if not case.may_refuse:
            raise
        _still_right(architecture, repo)
        return str(error)
    if architecture in case.summed_otherwise:
        expected["gradients"], actual["gradients"] = _close(expected["gradients"], actual["gradients"])
    assert_same(expected, actual, case.name)
    return None


def _close(expected: dict[str, Any], actual: dict[str, Any]) -> tuple[Any, Any]:
    """Return for gradients that agree up to rounding what else must be the same of them."""
    torch.testing.assert_close(actual, expected, check_stride=True)
    return tuple({name: grad is None or grad.requires_grad for name, grad in one.items()} for one in (expected, actual))


def _still_right(architecture: str, repo: Path) -> None:
    """Fail unless another model in the same worker is right."""
    plain = Use("call", lambda model, x: x.through(model.eval()), (), may_refuse=False)
    assert_same(observe(plain, architecture, None), observe(plain, architecture, repo), "a call after the refusal")
