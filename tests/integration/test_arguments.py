"""What a caller may pass to a worker beside plain values, and what cannot cross."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import isohub
from isohub.errors import LocalProtocolError

REPO = """
    import torch


    class Echo(torch.nn.Module):
        def forward(self, *args, **kwargs):
            return args[0] if len(args) == 1 else args

        def call(self, function, *args):
            return function(*args)


    def echo():
        return Echo()
"""

SELF_HOLDING: list[Any] = [1]
SELF_HOLDING.append(SELF_HOLDING)


@pytest.fixture
def echo(repo_of: Callable[..., str]) -> Any:
    return isohub.load(repo_of(REPO), "echo")


class Pair(NamedTuple):
    left: int
    right: torch.Tensor


@dataclasses.dataclass
class Settings:
    rate: int
    names: list[str]


class Custom:
    """An object of the caller's, of a module that the worker cannot import; like an image with pixels."""

    def __init__(self, pixels: np.ndarray, scale: torch.Tensor) -> None:
        self.pixels = pixels
        self.scale = scale

    def tensor(self) -> torch.Tensor:
        return torch.from_numpy(self.pixels) * self.scale


def _module_function(value: torch.Tensor) -> torch.Tensor:
    return value + OFFSET


OFFSET = 10


def test_callers_functions_run_in_the_worker(echo: Any):
    """A lambda, a closure over a tensor and a function of the caller's module run in the worker."""
    shift, x = torch.tensor([1.0, 2.0]), torch.zeros(2)

    assert torch.equal(torch.tensor([2.0, 4.0]), echo.call(lambda value: (value + shift) * 2, x))
    assert torch.equal(torch.full((2,), 10.0), echo.call(_module_function, x))
    pid = echo.call(os.getpid)
    assert echo.isohub.pid == pid != os.getpid()


def test_callers_objects_arrive_whole(echo: Any):
    """Objects of the caller's own classes arrive with their arrays and tensors."""
    custom = Custom(np.arange(3.0), torch.tensor(2.0))

    assert torch.equal(torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64), echo.call(lambda c: c.tensor(), custom))
    assert echo.call(lambda settings: settings.rate, Settings(48000, ["a"])) == 48000
    assert torch.equal(torch.ones(1), echo.call(lambda pair: pair.right, Pair(1, torch.ones(1))))


def test_handle_inside_an_object_arrives_as_the_object(echo: Any):
    """An isolated module inside a pickled closure is the module itself in the worker."""
    assert echo.call(lambda: echo("text")) == "text"


@pytest.mark.parametrize(
    ("build", "place"),
    [
        (lambda lock: (0, [1, lock]), "arguments[0][1][1]"),
        (lambda lock: ({"key": lock},), "arguments[0][0]['key']"),
        (lambda lock: ((i for i in range(3)),), "arguments[0][0]"),
        (lambda lock: (lambda: lock,), "arguments[0][0]"),
    ],
    ids=["in a list", "in a dict", "a generator", "in a closure"],
)
def test_what_cannot_cross_is_named_by_its_place(echo: Any, build: Callable[[Any], tuple[Any, ...]], place: str):
    """An argument that cannot be sent is an error that names its place, and the worker goes on."""
    with pytest.raises(LocalProtocolError) as caught:
        echo(*build(threading.Lock()))

    assert place == caught.value.where
    assert str(caught.value).startswith(f"{place}: ")
    assert echo("still here") == "still here"


def test_keyword_that_cannot_cross_is_named(echo: Any):
    """The place of a keyword argument is told by its name."""
    with pytest.raises(LocalProtocolError, match=r"arguments\[1\]\['mask'\]"):
        echo(mask=threading.Lock())


def test_list_that_holds_itself_is_refused(echo: Any):
    """A container that holds itself is an error and no endless loop, and the worker goes on."""
    with pytest.raises(LocalProtocolError, match="holds itself"):
        echo(SELF_HOLDING)

    assert echo(1) == 1


def test_refused_argument_leaks_no_memory(echo: Any):
    """The tensors of a call that is refused take no shared memory."""
    big = torch.ones(1_000_000)
    for _ in range(50):
        with pytest.raises(LocalProtocolError):
            echo(big, threading.Lock())

    (worker,) = isohub.workers()
    assert worker.border._total_bytes <= 64 << 20
