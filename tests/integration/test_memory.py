"""Weights: one memory for both processes, and nothing of it left when the model is gone."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import isohub
from tests.helpers.repos import make_repo, url
from tests.helpers.same import raw
from tests.helpers.waiting import until

REPO = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("seen", torch.zeros(3))
            self.register_buffer("hidden", torch.arange(4.0), persistent=False)

        def forward(self, x):
            return self.linear(x) + self.seen

        def fill(self, name, value):
            with torch.no_grad():
                _find(self, name).fill_(value)

        def values(self, name):
            return _find(self, name).detach().clone()


    def _find(module, name):
        for part in name.split("."):
            module = getattr(module, part)
        return module


    def net():
        return Net()


    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight
            base = torch.arange(24.0).reshape(4, 6)
            self.register_buffer("base", base)
            self.register_buffer("row", base[1])
            self.register_buffer("transposed", base.t())
            self.register_buffer("every_other", base[:, ::2])
            self.register_buffer("spread", torch.tensor([1.0, 2.0]).reshape(2, 1).expand(2, 3))
            self.images = nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
            self.register_buffer("none", None)
            self.plain = base[2]  # no buffer, and still a view of one

        def plain_values(self):
            return self.plain.clone()

        def one_object(self):
            return self.embed.weight is self.head.weight


    def tied():
        return Tied()


    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scalar", torch.tensor(2.5))
            self.register_buffer("empty", torch.empty(0, 3))
            self.register_buffer("nothing", torch.empty(0, dtype=torch.int32))
            self.scale = nn.Parameter(torch.tensor(3.0))
            self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
            self.counts = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)

        def set_scalar(self, value):
            self.scalar.fill_(value)


    def odd():
        return Odd()


    DTYPES = {d for d in vars(torch).values() if isinstance(d, torch.dtype) and "torch.q" not in str(d)}


    def every_dtype():
        model = nn.Module()
        for i, dtype in enumerate(sorted(DTYPES, key=str)):
            pattern = ((torch.arange(64) * 37 + i) % 251).to(torch.uint8)
            value = (pattern % 2).bool() if dtype is torch.bool else pattern.view(dtype)
            model.register_buffer("of_" + str(dtype)[6:], value)
        return model


    def big(mib):
        return nn.ParameterList([torch.full((mib, 1 << 18), 2.0)])


    class Many(nn.Module):
        def __init__(self, count):
            super().__init__()
            for i in range(count):
                self.register_parameter(f"p{i}", nn.Parameter(torch.full((3,), float(i))))


    def many(count):
        return Many(count)


    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("sparse", torch.eye(3).to_sparse())

        def forward(self, x):
            return self.linear(x) + self.sparse.to_dense()[0, 1]


    def unusual():
        return Quantised()
"""

MIB = 1 << 20


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("memory") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": REPO}}), "v1")


@pytest.mark.parametrize("name", ["linear.weight", "linear.bias", "seen", "hidden"])
def test_write_in_the_worker_is_seen_here(repo: str, forkserver: int, name: str):
    """What the model's own method writes into a parameter or buffer, the caller sees at once."""
    model = isohub.load(repo, "net")
    mine = dict([*model.named_parameters(), *model.named_buffers()])[name]
    model.fill(name, 7.5)

    assert torch.equal(torch.full_like(mine, 7.5), mine)


@pytest.mark.parametrize("name", ["linear.weight", "linear.bias", "seen", "hidden"])
def test_write_here_is_seen_in_the_worker(repo: str, forkserver: int, name: str):
    """What the caller writes into a parameter or buffer, the model's code sees at once."""
    model = isohub.load(repo, "net")
    mine = dict([*model.named_parameters(), *model.named_buffers()])[name]
    with torch.no_grad():
        mine.copy_(torch.arange(float(mine.numel())).reshape(mine.shape))

    assert torch.equal(torch.arange(float(mine.numel())).reshape(mine.shape), model.values(name))


def test_loaded_state_changes_what_the_worker_computes(repo: str, forkserver: int):
    """`load_state_dict` here changes the model there."""
    model = isohub.load(repo, "net")
    new = torch.nn.Linear(4, 3)
    x = torch.rand(5, 4)
    with torch.no_grad():
        result = model.load_state_dict({
            "linear.weight": new.weight, "linear.bias": new.bias, "seen": torch.tensor([1.0, 2.0, 3.0]),
        })  # fmt: skip
        expected = new(x) + torch.tensor([1.0, 2.0, 3.0])

        assert [] == result.missing_keys == result.unexpected_keys
        assert torch.equal(expected, model(x))


def test_update_step_here_is_seen_in_the_worker(repo: str, forkserver: int):
    """An update in place, such as an optimizer makes, reaches the worker without a word."""
    model = isohub.load(repo, "net")
    before = model.values("linear.weight")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.5).step()

    assert torch.equal(before - 0.5, model.values("linear.weight"))
    with torch.no_grad():
        model.linear.weight -= 0.25
    assert torch.equal(before - 0.5 - 0.25, model.values("linear.weight"))


def test_ties_and_views_share_memory(repo: str, forkserver: int):
    """Tied parameters are one object, and views of one tensor share its memory, here and in the worker."""
    model = isohub.load(repo, "tied")

    assert model.embed.weight is model.head.weight
    assert model.one_object()
    assert len(list(model.parameters())) == 2
    views = [model.base, model.row, model.transposed, model.every_other]
    assert len({view.untyped_storage().data_ptr() for view in views}) == 1
    model.base.copy_(torch.arange(24.0).reshape(4, 6) * -1)
    assert torch.equal(-torch.arange(6.0, 12.0), model.row)
    assert torch.equal(-torch.arange(12.0, 18.0), model.plain_values())


def test_strides_are_kept(repo: str, forkserver: int):
    """Shapes, strides and offsets are as the model made them, and so are the values."""
    torch.manual_seed(0)
    model = isohub.load(repo, "tied")
    torch.manual_seed(0)
    torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5, bias=False)
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    base = torch.arange(24.0).reshape(4, 6)
    expected = {
        "base": base, "row": base[1], "transposed": base.t(), "every_other": base[:, ::2],
        "spread": torch.tensor([1.0, 2.0]).reshape(2, 1).expand(2, 3), "images": images,
    }  # fmt: skip

    for name, tensor in expected.items():
        mine = getattr(model, name)
        assert (tensor.shape, tensor.stride()) == (mine.shape, mine.stride()), name
        assert torch.equal(tensor, mine), name
    assert model.row.storage_offset() - model.base.storage_offset() == 6
    assert model.none is None
    assert model.images.is_contiguous(memory_format=torch.channels_last)


def test_persistence_of_buffers_is_kept(repo: str, forkserver: int):
    """A buffer with persistent=False is a buffer here, and not in the state dict."""
    model = isohub.load(repo, "net")

    assert [name for name, _ in model.named_buffers()] == ["seen", "hidden"]
    assert list(model.state_dict()) == ["seen", "linear.weight", "linear.bias"]


def test_empty_and_scalar_tensors(repo: str, forkserver: int):
    """Tensors without elements and without dimensions keep shape, dtype and flags; scalars are shared."""
    model = isohub.load(repo, "odd")

    assert (torch.Size([]), torch.Size([0, 3])) == (model.scalar.shape, model.empty.shape)
    assert torch.int32 is model.nothing.dtype
    model.set_scalar(-1.0)
    assert model.scalar.item() == -1.0
    assert model.scale.item() == 3.0
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert flags == {"scale": True, "frozen": False, "counts": False}
    assert torch.int64 is model.counts.dtype


def test_every_dtype_is_shared_bit_for_bit(repo: str, forkserver: int):
    """A buffer of any dtype that torch has on the CPU has the same bits here."""
    model = isohub.load(repo, "every_dtype")
    buffers = dict(model.named_buffers())
    kinds = {d for d in vars(torch).values() if isinstance(d, torch.dtype) and "torch.q" not in str(d)}

    assert {"of_" + str(kind)[6:]: kind for kind in kinds} == {name: buffer.dtype for name, buffer in buffers.items()}
    for i, (name, buffer) in enumerate(buffers.items()):
        pattern = ((torch.arange(64) * 37 + i) % 251).to(torch.uint8)
        assert raw(pattern % 2 if name == "of_bool" else pattern) == raw(buffer), name


def test_tensor_that_cannot_be_shared_is_told_of(repo: str, forkserver: int):
    """A sparse buffer stays in the worker: it has its shape here and no values, and the model works."""
    model = isohub.load(repo, "unusual")

    assert model.sparse.is_meta
    assert torch.Size([3, 3]) == model.sparse.shape
    x = torch.rand(2, 2)
    assert torch.equal(model.linear(x), model(x))


def test_weights_add_nothing_to_private_memory(repo: str, forkserver: int):
    """200 MB of weights cost this process no memory of its own, even when all of it is read."""
    small = isohub.load(repo, "big", 1)
    assert small[0].sum().item() == 2.0 * (1 << 18)
    before = _private_bytes("self")
    model = isohub.load(repo, "big", 200)
    assert model[0].mean().item() == 2.0

    assert _private_bytes("self") - before < 20 * MIB
    assert _private_bytes(str(model.isohub.pid)) < 100 * MIB
    assert _shared_bytes(str(model.isohub.pid)) >= 200 * MIB


def test_descriptors_do_not_grow_with_tensors(repo: str, forkserver: int):
    """A model of 2,000 tensors takes as many descriptors and mappings, on both sides, as one of 2."""
    few = isohub.load(repo, "many", 2)
    pid = str(few.isohub.pid)
    before = _descriptors("self"), _descriptors(pid), _memfds("self"), _memfds(pid)
    many = isohub.load(repo, "many", 2000)
    after = _descriptors("self"), _descriptors(pid), _memfds("self"), _memfds(pid)

    assert sum(1 for _ in many.parameters()) == 2000
    assert torch.equal(torch.full((3,), 1999.0), many.p1999)
    assert before[:2] == after[:2]
    assert after[2] - before[2] == 1
    assert after[3] - before[3] == 1


def test_memory_is_freed_with_the_model(repo: str, forkserver: int):
    """When the caller drops a model, its memory goes in both processes, though nobody calls again."""
    other = isohub.load(repo, "net")
    (worker,) = isohub.workers()
    pid, kept_bytes = str(worker.pid), worker.weights_nbytes
    model = isohub.load(repo, "big", 50)
    assert worker.weights_nbytes >= kept_bytes + 50 * MIB
    assert _shared_bytes(pid) >= 50 * MIB
    del model
    gc.collect()

    until(lambda: worker.weights_nbytes == kept_bytes and _shared_bytes(pid) < 40 * MIB)
    assert torch.equal(torch.zeros(3), other.seen)


def test_tensor_outlives_its_model(repo: str, forkserver: int):
    """A parameter that somebody still holds keeps its values when the model and the worker are gone."""
    model = isohub.load(repo, "net")
    model.fill("linear.weight", 4.0)
    weight = model.linear.weight
    del model
    gc.collect()
    (worker,) = isohub.workers()
    worker.close()

    assert torch.equal(torch.full((3, 4), 4.0), weight)


def test_state_dict_is_shared_memory(repo: str, forkserver: int):
    """`returns="state_dict"` gives a plain dict of tensors, of the same names and values, in shared memory."""
    torch.manual_seed(0)
    state = isohub.load(repo, "net", returns="state_dict")
    torch.manual_seed(0)
    expected = torch.nn.Linear(4, 3)

    assert isinstance(state, dict)
    assert list(state) == ["seen", "linear.weight", "linear.bias"]
    assert {torch.Tensor} == {type(value) for value in state.values()}
    assert torch.equal(expected.weight, state["linear.weight"])
    assert any(low <= state["linear.weight"].data_ptr() < high for low, high in _mappings("self"))


def test_state_dict_of_a_module_costs_nothing(repo: str, forkserver: int):
    """The state dict of an isolated module is its shared memory itself, not a copy."""
    model = isohub.load(repo, "net")
    state = model.state_dict()

    assert model.linear.weight.data_ptr() == state["linear.weight"].data_ptr()
    assert any(low <= state["seen"].data_ptr() < high for low, high in _mappings("self"))


def _mappings(pid: str) -> Iterator[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "memfd:isohub" in line:
            low, high = line.split(" ", 1)[0].split("-")
            yield int(low, 16), int(high, 16)


def _memfds(pid: str) -> int:
    return sum(1 for _ in _mappings(pid))


def _descriptors(pid: str) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _private_bytes(pid: str) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kib) for kib in re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB", text, re.MULTILINE)) * 1024


def _shared_bytes(pid: str) -> int:
    """Return how much of shared memory the process has in use."""
    return int(re.search(r"^RssShmem:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1]) * 1024
