"""Weights that are equal in several workers: kept once, and split again when somebody writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import isohub
from tests.helpers.equal_weights import (
    TENSOR_BYTES,
    WEIGHTS_BYTES,
    by_numpy,
    by_tensor,
    equal_bytes,
    loader,
    seen,
    use,
    weights_memory,
)

pytestmark = [pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def load(tmp_path: Path, forkserver: int) -> Callable[..., torch.nn.Module]:
    """A function that loads the model of version `number`."""
    return loader(tmp_path)


def test_once(load: Callable[..., torch.nn.Module]):
    """Equal weights of several refs take the memory of one, and each gives what it gave."""
    first = load(0)
    use(first)
    alone = weights_memory()
    x = torch.rand(2, 1024)
    expected = first(x)
    others = [load(number) for number in range(1, 4)]

    for model in others:
        assert torch.equal(expected, model(x))
        assert seen(first) == seen(model) == use(model)
    assert torch.equal(expected, first(x))
    assert equal_bytes() == [WEIGHTS_BYTES] * 4
    # Beside them each has an arena for inputs and one for results, of which a few pages are in use.
    assert weights_memory() < alone + 3 * (64 << 10)


def test_one_tensor_differs(load: Callable[..., torch.nn.Module]):
    """Of versions that differ in one tensor, the others are kept once."""
    models = [load(0), load(1, last=0.25)]

    assert equal_bytes() == [WEIGHTS_BYTES - TENSOR_BYTES] * 2
    assert seen(models[0]) == use(models[0])
    assert seen(models[1]) == use(models[1])
    assert seen(models[0])[:3] == seen(models[1])[:3]
    assert seen(models[0])[3] != seen(models[1])[3]


def by_data(model: torch.nn.Module) -> None:
    model.w1.data[0, 0] = 8


def by_view(model: torch.nn.Module) -> None:
    model.w1.detach().view(-1)[4097:4099].fill_(8)


def by_state_dict(model: torch.nn.Module) -> None:
    model.load_state_dict({**model.state_dict(), "w1": torch.ones(1024, 1024)})


def by_optimizer(model: torch.nn.Module) -> None:
    optimizer = torch.optim.SGD([model.w1], lr=0.5)
    model.w1.grad = torch.ones_like(model.w1)
    optimizer.step()


@pytest.mark.parametrize("write", [by_tensor, by_data, by_numpy, by_view, by_state_dict, by_optimizer])
def test_written_here(load: Callable[..., torch.nn.Module], write: Callable[[torch.nn.Module], None]):
    """What this program writes reaches that worker with the next call, and no other; only that tensor is split."""
    models = [load(0), load(1), load(2)]
    before = seen(models[0])
    write(models[1])
    now = seen(models[1])

    assert now != before
    assert [before, now, before] == [use(model) for model in models]
    assert [before, now, before] == [seen(model) for model in models]
    if write is not by_state_dict:
        assert equal_bytes() == [WEIGHTS_BYTES, WEIGHTS_BYTES - TENSOR_BYTES, WEIGHTS_BYTES]


def test_written_again(load: Callable[..., torch.nn.Module]):
    """A tensor that was split once is live for good: each side sees what the other writes."""
    models = [load(0), load(1)]
    by_tensor(models[0])
    use(models[0])
    for value in (1.0, 2.0):
        by_tensor(models[0])
        assert seen(models[0]) == use(models[0])
        models[0].add(1, value)
        assert seen(models[0]) == use(models[0])
    assert seen(models[1]) == use(models[1])


def test_written_there(load: Callable[..., torch.nn.Module]):
    """What a worker's code writes is seen here when the call returns, and by no other worker."""
    models = [load(0), load(1)]
    before = seen(models[0])
    models[1].add(2, 16)

    assert before[2] + 16 == seen(models[1])[2]
    assert before == seen(models[0]) == use(models[0])
    assert seen(models[1]) == use(models[1])
    assert equal_bytes() == [WEIGHTS_BYTES, WEIGHTS_BYTES - TENSOR_BYTES]


def test_written_on_both_sides(load: Callable[..., torch.nn.Module]):
    """What is written here and there to one tensor, within one call, is all kept."""
    models = [load(0), load(1)]
    expected = models[1].w2.detach().clone()
    expected[0, 0], expected[511, 7] = 5, 6
    expected[-1, -1] += 1

    def hook(*_: object) -> None:
        models[1].w2.data[0, 0] = 5
        models[1].w2.data[511, 7] = 6

    models[1].relu.register_forward_pre_hook(hook)
    models[1].add_around_relu(2, 1)

    assert torch.equal(expected, models[1].w2.detach())
    assert seen(models[1]) == use(models[1])
    assert seen(models[0]) == use(models[0])


def test_seen_in_hooks(load: Callable[..., torch.nn.Module]):
    """A hook here sees what the worker's code wrote before, and is itself seen by what follows."""
    models = [load(0), load(1)]
    found = []

    def hook(*_: object) -> None:
        found.append(float(models[1].steps[0]))
        models[1].steps[0] += 10

    models[1].relu.register_forward_pre_hook(hook)

    assert models[1].count_around_relu() == 12
    assert found == [1.0]
    assert [float(model.steps[0]) for model in reversed(models)] == [12.0, 0.0]


def test_one_page_by_both(load: Callable[..., torch.nn.Module]):
    """Where both sides write to one page before either knows, every byte is of the one who wrote it."""
    models = [load(0), load(1)]
    models[1].steps[1] = 7  # noted; the worker is told with the request, and writes to the same page
    models[1].count(0)

    assert models[1].steps[:3].tolist() == [1.0, 7.0, 0.0]
    assert models[0].steps[:3].tolist() == [0.0, 0.0, 0.0]


def test_several_workers_of_one_commit(load: Callable[..., torch.nn.Module]):
    """Workers of one commit, and loads of one worker, have one copy."""
    own = isohub.Isolation(dedicated=True)
    models = [load(0, isolate=own), load(0, isolate=own), load(0), load(0)]
    before = seen(models[0])

    assert equal_bytes() == [WEIGHTS_BYTES, WEIGHTS_BYTES, 2 * WEIGHTS_BYTES]
    by_tensor(models[3])
    assert [before, before, before, seen(models[3])] == [use(model) for model in models]


def train(model: torch.nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.rand(2, 1024)).square().mean().backward()
        model.count(5)
        optimizer.step()
    model(torch.rand(1, 1024))
    return [tensor.clone() for tensor in model.state_dict().values()]


def test_training(load: Callable[..., torch.nn.Module]):
    """Training after sharing is bit for bit what it is without."""
    expected = train(load(0, isolate=isohub.Isolation(share_equal_weights=False)))
    models = [load(1), load(2)]
    before = seen(models[1])

    assert equal_bytes() == [0, WEIGHTS_BYTES, WEIGHTS_BYTES]
    for one, other in zip(expected, train(models[0]), strict=True):
        assert torch.equal(one, other)
    assert seen(models[0]) == use(models[0])
    assert before == seen(models[1]) == use(models[1])


def test_copies(load: Callable[..., torch.nn.Module]):
    """State dicts, views and results that are weights show what is written to them, before and after a split."""
    models = [load(0), load(1)]
    state, view = models[0].state_dict(), models[0].w0.detach()[5]
    address = models[0].w0.data_ptr()
    view.fill_(2)

    assert torch.equal(torch.full((1024,), 2.0), state["w0"][5])
    use(models[0])
    state["w0"][5] = 3
    assert seen(models[0]) == use(models[0])
    assert torch.equal(torch.full((1024,), 3.0), view)
    assert address == models[0].w0.data_ptr()
    models[0].add(0, 1)
    assert float(state["w0"][-1, -1]) == float(models[1].w0.detach()[-1, -1]) + 1
