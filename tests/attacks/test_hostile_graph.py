"""A worker that tells of graphs, gradients and callbacks as no honest one would."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

import isohub
from isohub.errors import LocalProtocolError, RemoteProtocolError

# An honest module until `lie` is called, which takes the channel over.
REPO = """
    import gc

    import torch

    from isohub.wire import codec
    from isohub.wire.messages import Callback, Graph, Numbered, Payload, Returned, TorchState
    from isohub.wire.specs import META, TensorSpec
    from isohub.wire.values import Items, Pairs, TensorAt

    META_TENSOR = TensorSpec(META, "float32", [2], [1], 0, True)
    NOTHING = Items("tuple", [Items("tuple", []), Pairs("dict", [], [])])


    def with_graph(outputs, leaves, spec=META_TENSOR):
        value = TensorAt(0, "tensor")
        return Returned(payload=Payload(value, [], [spec], [], [], Graph(1000, outputs, leaves)))


    LIES = {
        "no_outputs": lambda: with_graph([], []),
        "output_beyond": lambda: with_graph([1], []),
        "output_below": lambda: with_graph([-1], []),
        "output_twice": lambda: with_graph([0, 0], []),
        "output_of_integers": lambda: with_graph([0], [], TensorSpec(META, "int64", [2], [1], 0)),
        "leaf_never_sent": lambda: with_graph([0], [(0, 99)]),
        "leaf_below": lambda: with_graph([0], [(0, -1)]),
        "leaf_beyond_its_tree": lambda: with_graph([0], [(1, 7)]),
        "number_never_sent": lambda: Returned(
            payload=Payload(TensorAt(0, "tensor"), [], [META_TENSOR], [], [Numbered(0, 99, "leaf")])
        ),
        "callback_to_nobody": lambda: Callback(handle=77, payload=Payload(NOTHING)),
        "callback_to_no_module": lambda: Callback(handle=1, path="not.there", payload=Payload(NOTHING)),
        "callback_without_arguments": lambda: Callback(handle=1, payload=Payload(3)),
        "callback_with_keys_that_are_no_names": lambda: Callback(
            handle=1, payload=Payload(Items("tuple", [Items("tuple", []), Pairs("dict", [3], [4])]))
        ),
        "callback_in_no_dtype": lambda: Callback(
            handle=1, payload=Payload(NOTHING), state=TorchState(autocast="float1024")
        ),
        "callback_with_half_a_generator": lambda: Callback(
            handle=1, payload=Payload(NOTHING), state=TorchState(rng=b"abc")
        ),
    }


    class Net(torch.nn.Linear):
        def lie(self, name):
            channel = next(found for found in gc.get_objects() if type(found).__name__ == "Channel")
            channel.send(codec.encode(LIES[name]()))
            while True:
                channel.receive()


    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, gradient):
            channel = next(found for found in gc.get_objects() if type(found).__name__ == "Channel")
            spec = TensorSpec(META, "float32", [5], [1], 0)
            channel.send(codec.encode(Returned(payload=Payload(Items("list", [TensorAt(0, "tensor")]), [], [spec]))))
            while True:
                channel.receive()


    class Backward(torch.nn.Module):
        def forward(self, x):
            return Wrong.apply(x)


    def net():
        return Net(2, 2)


    def wrong():
        return Backward()
"""

LIES = [
    "no_outputs", "output_beyond", "output_below", "output_twice", "output_of_integers", "leaf_never_sent",
    "leaf_below",
    "leaf_beyond_its_tree", "number_never_sent", "callback_to_nobody", "callback_to_no_module",
    "callback_without_arguments", "callback_with_keys_that_are_no_names", "callback_in_no_dtype",
    "callback_with_half_a_generator",
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lie_ends_its_worker_alone(repo_of: Callable[..., str], lie: str):
    """A graph, a number or a callback that makes no sense ends the worker, and nobody else."""
    repo = repo_of(REPO)
    honest = isohub.load(repo, "net", isolate=isohub.Isolation(dedicated=True))
    model = isohub.load(repo, "net", isolate=isohub.Isolation(dedicated=True))

    with pytest.raises(RemoteProtocolError):
        model.lie(lie)

    assert model.isohub.state == "broken"
    assert honest(torch.ones(2)).shape == (2,)
    assert set(model.state_dict()) == {"weight", "bias"}


def test_gradient_of_another_shape_ends_the_worker(repo_of: Callable[..., str]):
    """A gradient that is not of its tensor's shape is refused before autograd sees it."""
    model = isohub.load(repo_of(REPO), "wrong")
    x = torch.ones(3, requires_grad=True)
    y = model(x)

    with pytest.raises(RemoteProtocolError, match="gradient"):
        y.backward()

    assert x.grad is None
    with pytest.raises(RemoteProtocolError, match="was killed"):
        model(x)


def test_hook_that_returns_what_cannot_cross_costs_no_worker(repo_of: Callable[..., str]):
    """What a hook returns and cannot be sent is the error of the call, and the worker goes on."""
    model = isohub.load(repo_of("import torch\n\ndef net():\n    return torch.nn.Sequential(torch.nn.ReLU())\n"), "net")
    hook = model[0].register_forward_hook(lambda *_: threading.Lock())

    with pytest.raises(LocalProtocolError, match="lock"):
        model(torch.ones(2))
    hook.remove()

    assert torch.equal(torch.ones(2), model(torch.ones(2)))


def test_data_of_another_layout_is_taken_over(repo_of: Callable[..., str]):
    """A parameter whose `.data` was made another view of the same memory computes with what it shows."""
    model = isohub.load(repo_of("import torch\n\ndef net():\n    return torch.nn.Linear(3, 3, bias=False)\n"), "net")
    weight = model.weight.detach().clone()
    model.weight.data = model.weight.data.t()

    assert torch.equal(torch.eye(3) @ weight, model(torch.eye(3)))
    assert torch.equal(weight.t(), model.weight)
