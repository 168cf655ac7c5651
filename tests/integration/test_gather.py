"""`isohub.gather`: calls of several models at once."""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import BrokenWorkerError, RemoteError
from isohub.supervisor.lending import LEAST_BYTES
from tests.helpers.repos import make_repo, url

HUBCONF = """
    import os
    import torch

    FACTOR = {factor}
    KEPT = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(float(FACTOR)))

        def forward(self, x, plus=0.0):
            return x * self.weight + plus

        def say(self, there, back):
            # Each end of a pipe waits for the other one.
            with open(there, "w"), open(back):
                return FACTOR

        def hear(self, there, back):
            with open(there), open(back, "w"):
                return FACTOR

        def write(self, x):
            x += FACTOR
            return float(x.sum())

        def keep(self, x):
            KEPT.append(x)
            return None

        def kept_sum(self):
            return float(KEPT.pop().sum())

        def fail(self):
            raise ValueError(f"of {{FACTOR}}")

        def die(self):
            os._exit(3)

    def net():
        return Net()
"""


@pytest.fixture
def repo(tmp_path: Path, forkserver: int) -> Path:
    return make_repo(tmp_path / "owner" / "nets", {f"v{n}": {"hubconf.py": HUBCONF.format(factor=n)} for n in (2, 3)})


def load(repo: Path) -> list[Any]:
    return [isohub.load(url(repo, f"v{n}"), "net") for n in (2, 3)]


def test_results_stand_in_the_order_of_the_calls(repo: Path):
    """Whatever the order in which workers answer, each result stands where its call stood."""
    nets = load(repo)
    x = torch.arange(4.0)

    found = isohub.gather([(nets[1], x), (nets[0], x), partial(nets[0], x, plus=1.0)])

    assert [one.tolist() for one in found] == [[0, 3, 6, 9], [0, 2, 4, 6], [1, 3, 5, 7]]
    assert isohub.gather([]) == []


def test_models_compute_at_the_same_time(repo: Path, tmp_path: Path):
    """Two models that each wait for the other both get to an end: they were called at once."""
    nets = load(repo)
    for name in ("there", "back"):
        os.mkfifo(tmp_path / name)

    pipes = [str(tmp_path / name) for name in ("there", "back")]
    found = isohub.gather([(nets[0].say, *pipes), (nets[1].hear, *pipes)])

    assert found == [2, 3]


def test_calls_of_one_worker_are_made_in_order(repo: Path):
    """A worker that is named several times is asked one after the other."""
    nets = load(repo)
    for _ in range(2):
        isohub.gather([(nets[0].keep, torch.ones(1)), (nets[0].keep, torch.ones(2)), (nets[1].keep, torch.ones(3))])

    found = isohub.gather([(nets[0].kept_sum,), (nets[0].kept_sum,), (nets[1].kept_sum,), (nets[0].kept_sum,)])

    assert found == [2.0, 1.0, 3.0, 2.0]


def test_gradients_find_their_way(repo: Path):
    """The graph of each result goes back through its own worker, to the one input of both."""
    nets = load(repo)
    x = torch.ones(3, requires_grad=True)

    two, three = isohub.gather([(nets[0], x), (nets[1], x)])
    (two.sum() + three.sum()).backward()

    assert x.grad is not None
    assert x.grad.tolist() == [5.0, 5.0, 5.0]
    assert [net.weight.grad.item() for net in nets] == [3.0, 3.0]


def test_hooks_are_called(repo: Path):
    """A module with a hook in this program is called by way of it, and the others as ever."""
    nets = load(repo)
    seen: list[float] = []
    handle = nets[0].register_forward_hook(lambda _, args, result: seen.append(result.item()) or result + 1)

    found = isohub.gather([(nets[0], torch.tensor(1.0)), (nets[1], torch.tensor(1.0)), (torch.neg, torch.tensor(1.0))])
    handle.remove()

    assert ([one.item() for one in found], seen) == ([3.0, 3.0, -1.0], [2.0])


def test_first_failure_is_raised_when_all_have_ended(repo: Path):
    """The failure of one call is raised after the others are done, and costs no worker its step."""
    nets = load(repo)
    with pytest.raises(ValueError, match="of 3"):
        isohub.gather([(nets[0].keep, torch.ones(5)), (nets[1].fail,), (nets[0].fail,)])

    assert isohub.gather([(nets[0].kept_sum,), (nets[1], torch.tensor(2.0))]) == [5.0, 6.0]


def test_failures_as_results(repo: Path):
    """With `return_exceptions` a failure stands in the place of its result."""
    nets = load(repo)
    found = isohub.gather([(nets[0].fail,), (nets[1], torch.tensor(1.0)), (nets[1].die,)], return_exceptions=True)

    assert [ValueError, torch.Tensor, BrokenWorkerError] == [type(one) for one in found]
    assert isohub.gather([(nets[0], torch.tensor(2.0))]) == [4.0]


def test_argument_that_cannot_cross_leaves_the_others_alone(repo: Path):
    """A call that cannot even be sent fails by itself."""
    nets = load(repo)
    found = isohub.gather([(nets[0], threading.Lock()), (nets[1], torch.tensor(1.0))], return_exceptions=True)

    assert isinstance(found[0], isohub.errors.LocalProtocolError)
    assert found[1].item() == 3.0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        pytest.param(3, "call 1 is a int", id="number"),
        pytest.param((), "call 1 is a tuple", id="nothing"),
        pytest.param((3,), "got a int for call 1", id="not callable"),
    ],
)
def test_what_is_no_call_is_refused_before_anything_is_called(repo: Path, call: Any, text: str):
    """Nothing is called when something in the list is no call."""
    nets = load(repo)
    with pytest.raises(TypeError, match=text):
        isohub.gather([(nets[0].keep, torch.ones(1)), call])

    with pytest.raises((IndexError, RemoteError), match="pop from empty list"):
        nets[0].kept_sum()


def test_interruption_ends_the_workers_that_have_not_answered(repo: Path, tmp_path: Path):
    """Ctrl-C while they are waited for kills those workers, so that no answer is ever taken for another."""
    nets = load(repo)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        isohub.gather([(nets[0].say, str(pipe), str(pipe)), (nets[1], torch.ones(1)), (interrupt,)])

    assert [net.isohub.state for net in nets] == ["broken", "broken"]
    assert [net.weight.item() for net in nets] == [2.0, 3.0]


LARGE = LEAST_BYTES


def common_of(net: Any) -> Any:
    return net._isohub_lease.worker.common


def test_one_copy_of_an_input_for_all(repo: Path):
    """An input of several models lies in shared memory once, in the memory that all of their workers have mapped."""
    nets = load(repo)
    x = torch.ones(LARGE)

    isohub.gather([(net.keep, x) for net in nets])

    assert "1 blocks" in repr(common_of(nets[0])._arena)
    assert [repr(net._isohub_lease.worker.border._arena)[7:15] for net in nets] == ["0 blocks"] * 2
    assert [float(LARGE)] * 2 == isohub.gather([(net.kept_sum,) for net in nets])
    for net in nets:
        net(torch.ones(1))  # brings the news that the block is free
    assert "0 blocks" in repr(common_of(nets[0])._arena)


def test_what_one_writes_to_the_input_nobody_else_sees(repo: Path):
    """A model that writes to its input in place does so for itself, and the next input is seen as it is."""
    nets = load(repo)
    for start in (0.0, 10.0, 20.0):
        x = torch.full((LARGE,), start)

        found = isohub.gather([(net.write, x) for net in nets])

        assert [(start + 2) * LARGE, (start + 3) * LARGE] == found
        assert x.eq(start).all()


def test_death_of_one_gives_its_share_back(repo: Path):
    """A common input is free again when one of the workers that have it is dead and the other has given it back."""
    nets = load(repo)
    isohub.gather([(net.keep, torch.ones(LARGE)) for net in nets])
    with pytest.raises(BrokenWorkerError):
        nets[0].die()

    nets[1].kept_sum()
    nets[1](torch.ones(1))

    assert "0 blocks" in repr(common_of(nets[1])._arena)


def test_common_input_of_any_kind(repo: Path):
    """Views, tensors in containers and one that is named twice arrive as they are, each storage once."""
    nets = load(repo)
    x = torch.arange(float(LARGE))

    found = isohub.gather([(torch.nn.Module.__call__, net, x.view(-1, 2).t()) for net in nets])
    again = isohub.gather([(net, x[1:]) for net in nets] + [(net, x) for net in nets])

    assert [torch.equal(one, x.view(-1, 2).t() * n) for n, one in zip((2, 3), found, strict=True)] == [True, True]
    expected = [x[1:] * 2, x[1:] * 3, x * 2, x * 3]
    assert [torch.equal(*pair) for pair in zip(expected, again, strict=True)] == [True] * 4
