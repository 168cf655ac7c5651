"""Where the graph of the caller and that of the worker meet: views, in-place writes, threads, checkpoints."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest
import torch

import isohub
from tests.helpers.repos import make_repo, url
from tests.helpers.same import assert_same
from tests.helpers.waiting import until

REPO = """
    import threading

    import torch
    from torch import nn
    from torch.utils.checkpoint import checkpoint


    class Net(nn.Module):
        def __init__(self, forward):
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(4, 6)
            self.relu = nn.ReLU(inplace=True)
            self.other = nn.Linear(6, 6)
            self._forward = forward

        def forward(self, *args):
            return self._forward(self, *args)


    def output_and_view(net, x):
        y = net.linear(x)
        return y, y[:, :2]


    def view_and_output(net, x):
        y = net.linear(x)
        return {"part": y[1:], "all": y.flatten()}


    def views_of_what_is_not_returned(net, x):
        y = net.linear(x)
        return y[:, ::2], y[:, 1::2], y[:, 1:4]


    def chunks(net, x):
        return net.linear(x).chunk(3, dim=-1)


    def complex_view(net, x):
        y = net.linear(x)
        return y, torch.view_as_complex(y.view(-1, 3, 2))


    def both(net, x, part):
        return net.linear(x).sum() + (part * part).sum()


    def in_place(net, x):
        y = net.linear(x)
        z = net.relu(y)
        return y + 0, z + y


    def captured_by_a_checkpoint(net, x, scale):
        return checkpoint(lambda h: net.linear(h) * scale, x, use_reentrant=True)


    def in_threads(net, x):
        results = [None, None]

        def work(number):
            results[number] = net.other(net.linear(x) + number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results[0] - results[1]


    def net(name):
        return Net(globals()[name])


    class Trainer:
        def __init__(self):
            self.model = Net(in_place)

        def loss(self, x):
            return self.model.other(self.model.linear(x)).square().mean()


    def trainer():
        return Trainer()


    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(2))

        def forward(self, x):
            self.seen = self.seen + x
            return self.seen * 2


    def scripted():
        return torch.jit.script(Counting())


    class Odd:
        pass


    def unsendable(net, x):
        deep = []
        for _ in range(2000):
            deep = [deep]
        return Odd(), net.linear(x), deep
"""
X = torch.linspace(-1.0, 1.0, 12).reshape(3, 4)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    return url(make_repo(tmp_path_factory.mktemp("border") / "owner" / "border", {"v1": {"hubconf.py": REPO}}), "v1")


pytestmark = pytest.mark.usefixtures("one_thread")


def twins(repo: str, name: str) -> tuple[Any, Any]:
    """Return a module in this process, and the same one isolated."""
    namespace: dict[str, Any] = {"__name__": "repo"}
    exec(dedent(REPO), namespace)
    return namespace["net"](name), isohub.load(repo, "net", name)


def gradients(model: Any, x: torch.Tensor, use: Callable[[Any], torch.Tensor]) -> list[Any]:
    x = x.clone().requires_grad_()
    outputs = model(x)
    loss = use(outputs)
    loss.backward()
    return [loss, outputs, x.grad, *(parameter.grad for parameter in model.parameters())]


def scaled(outputs: Any) -> torch.Tensor:
    """Write to the first output in place, and go on with all of them."""
    first, *others = outputs.values() if isinstance(outputs, dict) else outputs
    first.mul_(torch.linspace(1.0, 2.0, first.numel()).reshape(first.shape))
    return first.square().sum() + sum(other.abs().square().sum() * 3 for other in others)


def last_scaled(outputs: Any) -> torch.Tensor:
    """Write to the last output in place, and go on with all of them."""
    *others, last = outputs.values() if isinstance(outputs, dict) else outputs
    last.mul_(torch.linspace(1.0, 2.0, last.numel()).reshape(last.shape))
    return last.abs().square().sum() + sum(other.square().sum() * 3 for other in others)


@pytest.mark.parametrize("use", [scaled, last_scaled])
@pytest.mark.parametrize("name", ["output_and_view", "view_and_output"])
def test_outputs_that_are_views_stay_views(repo: str, forkserver: int, name: str, use: Callable[[Any], torch.Tensor]):
    """What is written to one output is seen by another that is a view of it, by its value and by its gradient."""
    plain, isolated = twins(repo, name)

    assert_same(gradients(plain, X, use), gradients(isolated, X, use))


def test_gradient_of_a_view_alone(repo: str, forkserver: int):
    """A gradient can be asked of an output that is a view of another."""
    results = []
    for model in twins(repo, "output_and_view"):
        _, part = model(X)
        part.retain_grad()
        (part * 3).sum().backward()
        results.append([part.grad, part._base is not None, model.linear.weight.grad])

    assert_same(*results)


def test_views_of_what_is_not_returned_are_apart(repo: str, forkserver: int):
    """Outputs over each other that are views of something else do not see each other's writes, and get gradients."""
    plain, isolated = twins(repo, "views_of_what_is_not_returned")
    x = X.clone().requires_grad_()
    first, second, third = isolated(x)
    before = third.detach().clone()
    second.mul_(2.0)
    (first.sum() + second.square().sum() + third.square().sum()).backward()

    y = X.clone().requires_grad_()
    first, second, other = plain(y)
    (first.sum() + (second * 2.0).square().sum() + other.square().sum()).backward()
    assert torch.equal(before, third)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(isolated.linear.weight.grad, plain.linear.weight.grad)


def test_chunks_are_written_to_in_place(repo: str, forkserver: int):
    """Chunks, to which torch lets nobody write in place, are independent here, with right gradients."""
    plain, isolated = twins(repo, "chunks")
    expected = gradients(plain, X, lambda outputs: (outputs[0] * 2).square().sum() + outputs[2].sum())
    actual = gradients(isolated, X, lambda outputs: outputs[0].mul_(2).square().sum() + outputs[2].sum())

    assert_same(expected[2:], actual[2:])


def test_views_of_another_dtype(repo: str, forkserver: int):
    """An output that is a view in another dtype has the same gradients."""
    plain, isolated = twins(repo, "complex_view")

    def use(outputs: Any) -> torch.Tensor:
        return outputs[0].square().sum() + outputs[1].abs().sum()  # type: ignore[no-any-return]

    assert_same(gradients(plain, X, use), gradients(isolated, X, use))


def test_arguments_over_each_other(repo: str, forkserver: int):
    """Arguments that share memory and ask for gradients each get their own."""
    results = []
    for model in twins(repo, "both"):
        x = (X * 2).requires_grad_()
        doubled = x * 2
        part = doubled[1:]
        part.retain_grad()
        model(doubled, part).backward()
        results.append([x.grad, part.grad, model.linear.weight.grad])

    assert_same(*results)


@pytest.mark.parametrize("computed", [False, True], ids=["leaf", "computed"])
def test_argument_that_a_checkpoint_captures(repo: str, forkserver: int, computed: bool):
    """An argument that is used only inside of a reentrant checkpoint gets its gradient."""
    results = []
    for model in twins(repo, "captured_by_a_checkpoint"):
        leaf = torch.tensor([2.0, -1.0, 0.5, 3.0, 1.0, 0.25], requires_grad=True)
        x = X.clone().requires_grad_()
        model(x, leaf * 2 if computed else leaf).square().sum().backward()
        results.append([leaf.grad, x.grad, model.linear.weight.grad])

    assert results[0][0] is not None
    assert_same(*results)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_hooked_part_writes_in_place(repo: str, forkserver: int, mode: Callable[[], Any]):
    """A hooked part that writes to its input writes to the caller's tensor, whatever a hook makes of its result."""
    results = []
    for model in twins(repo, "in_place"):
        with mode():
            plain = model(X)
        handle = model.relu.register_forward_hook(lambda _, __, output: output * 2)
        with mode():
            hooked = model(X)
        handle.remove()
        if hooked[0].requires_grad:
            (hooked[0].sum() + hooked[1].square().sum()).backward()
        results.append([plain, hooked, model.linear.weight.grad])

    assert_same(*results)


def test_hooked_part_given_something_else(repo: str, forkserver: int):
    """A hook that gives an in-place part another tensor keeps the caller's as it was."""
    results = []
    for model in twins(repo, "in_place"):
        model.relu.register_forward_pre_hook(lambda _, args: (args[0] - 1,))
        results.append(list(model(X)))

    assert_same(*results)


def test_hooked_parts_in_threads(repo: str, forkserver: int):
    """Hooks run for parts that the repository's code calls in threads of its own, also below a part with hooks."""
    results = []
    for model in twins(repo, "in_threads"):
        seen: list[torch.Tensor] = []
        model.linear.register_forward_hook(lambda *args, seen=seen: seen.append(args[2].detach()))
        model.other.register_forward_hook(lambda *args, seen=seen: seen.append(args[2].detach()))
        model.register_forward_hook(lambda *args, seen=seen: seen.append(args[2].detach()))
        results.append([[model(X) for _ in range(10)], len(seen)])

    assert_same(*results)


def test_parameters_outlive_their_module(repo: str, forkserver: int):
    """An optimizer over the parameters of a model that nobody here holds trains it on, frozen ones left as they are."""
    namespace: dict[str, Any] = {"__name__": "repo"}
    exec(dedent(REPO), namespace)
    results = []
    for trainer in (namespace["trainer"](), isohub.load(repo, "trainer")):
        for parameter in trainer.model.other.parameters():
            parameter.requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in trainer.model.parameters() if p.requires_grad], lr=0.5)
        gc.collect()
        losses = []
        for step in range(4):
            optimizer.zero_grad()
            losses.append(trainer.loss(X))
            losses[-1].backward()
            optimizer.step()
            if step == 2:
                optimizer.param_groups[0]["params"][0].requires_grad_(False)
        weight = trainer.model.linear.weight
        assert weight is optimizer.param_groups[0]["params"][0]
        results.append(
            [losses, weight, weight.requires_grad, trainer.model.other.weight.grad, trainer.model.other.weight]
        )

    assert_same(*results)
    assert results[1][0][3].item() < results[1][0][0].item()


def test_buffer_that_a_script_replaces(repo: str, forkserver: int):
    """A buffer that TorchScript replaces by another tensor is seen here at the next look."""
    model = isohub.load(repo, "scripted")
    first = model(torch.tensor([1.0, 2.0]))
    second = model(torch.tensor([1.0, 2.0]))

    assert first.tolist() == [2.0, 4.0]
    assert second.tolist() == [4.0, 8.0]
    assert [2.0, 4.0] == model.seen.tolist() == model.state_dict()["seen"].tolist()


def test_objects_that_die_in_a_call_are_let_go_of(repo: str, forkserver: int):
    """A handle whose last holder dies while the worker is busy is given back without another request."""
    model = isohub.load(repo, "net", "output_and_view")

    def held(_: Any) -> int:
        import gc

        return sum(type(found).__name__ == "Trainer" for found in gc.get_objects())

    trainer = [isohub.load(repo, "trainer")]
    model.linear.register_forward_hook(lambda *_: trainer.clear())
    assert isohub.run_in(model, held) == 1
    model(X)
    worker = next(iter(isohub.api.workers()))
    until(lambda: not worker.border.proxies.has_released)

    assert isohub.run_in(model, held) == 0


def test_result_that_cannot_be_sent_is_forgotten(repo: str, forkserver: int):
    """Of a result of which one part cannot be sent the worker keeps nothing for this program."""
    model = isohub.load(repo, "net", "unsendable")
    with pytest.raises(isohub.errors.IsohubError):
        model(X)

    def left(_: Any) -> list[str]:
        import gc

        gc.collect()
        return [type(found).__name__ for found in gc.get_objects() if type(found).__name__ in ("Odd", "_Graph")]

    assert isohub.run_in(model, left) == []


def test_exception_of_a_hook_is_freed_at_once(repo: str, forkserver: int):
    """What a hook raised, and the frames that it came through, are kept by nobody."""
    model = isohub.load(repo, "net", "output_and_view")

    class MarkedError(Exception):
        pass

    def hook(*_: object) -> None:
        raise MarkedError

    model.linear.register_forward_hook(hook)
    gc.collect()
    gc.disable()
    try:
        try:
            model(X)
        except MarkedError as error:
            raised = weakref.ref(error)
        assert raised() is None
    finally:
        gc.enable()
