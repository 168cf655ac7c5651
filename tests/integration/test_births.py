"""Large tensors that an entrypoint makes are born in shared memory, and are torch's own in all that can be seen."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from tests.helpers.repos import make_repo, url
from tests.helpers.same import raw

MIB = 1 << 20
REPO = """
    import copy
    import io
    import os
    import threading
    import warnings
    import torch
    from torch import nn

    SIZE = (512, 600)
    MAKERS = {
        "empty": lambda: torch.empty(SIZE).zero_(),
        "zeros": lambda: torch.zeros(*SIZE, dtype=torch.int64),
        "ones": lambda: torch.ones(SIZE, dtype=torch.bfloat16),
        "ones_bool": lambda: torch.ones(1024, 1024, dtype=torch.bool),
        "full": lambda: torch.full(SIZE, 7),
        "full_float": lambda: torch.full(size=SIZE, fill_value=1.5),
        "rand": lambda: torch.rand(*SIZE),
        "rand_half": lambda: torch.rand(SIZE, dtype=torch.float16),
        "randn": lambda: torch.randn(SIZE, dtype=torch.float64, requires_grad=True),
        "randn_odd": lambda: torch.randn(3, 100003),
        "randn_complex": lambda: torch.randn(SIZE, dtype=torch.complex64),
        "rand_own": lambda: torch.rand(torch.Size(SIZE), generator=torch.Generator().manual_seed(5)),
        "linear": lambda: nn.Linear(600, 512).weight,
        "embedding": lambda: nn.Embedding(512, 600, padding_idx=3).weight,
        "clone": lambda: torch.randn(SIZE).clone(),
        "deepcopy": lambda: copy.deepcopy(nn.Linear(600, 512)).weight,
        "half": lambda: nn.Linear(600, 512).half().weight,
        "to": lambda: nn.Linear(600, 512).to(torch.float64).weight,
        "loaded": lambda: loaded().weight,
        "after_a_mistake": lambda: after_a_mistake(),
    }
    OTHERS = {
        "small": lambda: torch.rand(9),
        "arange": lambda: torch.arange(1 << 18).to(torch.int64),
        "meta": lambda: torch.empty(SIZE, device="meta"),
        "channels_last": lambda: torch.empty(2, 8, 128, 128, memory_format=torch.channels_last).zero_(),
        "strided": lambda: torch.randn(SIZE).t().clone(),
        "cloned_with_graph": lambda: torch.ones(SIZE, requires_grad=True).clone(),
        "copied_with_graph": lambda: torch.zeros(SIZE).copy_(torch.ones(SIZE, requires_grad=True)),
        "copied_from_int": lambda: torch.zeros(SIZE).copy_(torch.full(SIZE, 3)),
        "copied_to_part": lambda: part(),
        "copied_in_memory": lambda: moved_on(),
        "inference": lambda: within(torch.inference_mode(), lambda: torch.zeros(SIZE)),
        "on_meta": lambda: within(torch.device("meta"), lambda: nn.Linear(600, 512).weight),
        "deterministic": lambda: deterministic(),
        "resized": lambda: torch.ones(SIZE).resize_(600, 600)[:512],
        "shrunk": lambda: torch.ones(SIZE).resize_(3, 3),
        "resized_tied": lambda: resized_tied(),
        "out": lambda: torch.cat([torch.ones(SIZE), torch.zeros(SIZE)], out=torch.zeros(1024, 600)),
        "traced": lambda: torch.jit.trace(lambda x: x + torch.ones(512, 600), torch.ones(1))(torch.ones(1)),
        "scripted": lambda: torch.jit.script(scripted)(torch.ones(1)),
        "compiled": lambda: torch.compile(scripted, backend="eager", fullgraph=True)(torch.ones(1)),
        "mapped": lambda: torch.vmap(lambda x: x + torch.zeros(300000))(torch.ones(2, 1)),
        "in_a_thread": lambda: in_a_thread(lambda: torch.full(SIZE, 2.0)),
        "half_channels_last": lambda: channels_last().half().weight,
        "copy_channels_last": lambda: copy.deepcopy(channels_last()).weight,
        "nested": lambda: nested().clone().to(torch.float64).to_padded_tensor(0.0),
    }

    def channels_last():
        return nn.Conv2d(512, 600, 1).to(memory_format=torch.channels_last)

    def nested():
        torch.ones(SIZE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.nested.nested_tensor([torch.ones(300, 512), torch.ones(200, 512)])

    def after_a_mistake():
        for size in ((1 << 31, 1 << 29), (1 << 62, 1 << 62), (1 << 20, 1 << 30)):
            try:
                torch.empty(size)
            except RuntimeError:
                pass
        return nn.Linear(600, 512).weight

    def scripted(x):
        return x + torch.ones(512, 600)

    def within(mode, make):
        with mode:
            return make()

    def part():
        whole = torch.zeros(1024, 600)
        with torch.no_grad():
            whole[512:].copy_(torch.full(SIZE, 2.5))
        return whole

    def moved_on():
        whole = torch.rand(1024, 600)
        whole[:1000].copy_(whole[:1000])
        return whole

    def resized_tied():
        whole = torch.ones(SIZE)
        part = whole[:2]
        whole.resize_as_(torch.ones(600, 600)).fill_(3.0)
        return part

    def deterministic():
        torch.use_deterministic_algorithms(True)
        try:
            return torch.empty(SIZE)
        finally:
            torch.use_deterministic_algorithms(False)

    def in_a_thread(make):
        found = []
        thread = threading.Thread(target=lambda: found.append(make()))
        thread.start()
        thread.join()
        return found[0]

    def loaded():
        linear = nn.Linear(600, 512)
        linear.load_state_dict({name: tensor + 1 for name, tensor in nn.Linear(600, 512).state_dict().items()})
        return linear

    def told(tensor):
        saved = io.BytesIO()
        if not tensor.is_meta:
            torch.save(tensor, saved)
        return [
            type(tensor).__name__, str(tensor.dtype), str(tensor.device), list(tensor.shape), tensor.stride(),
            tensor.requires_grad, tensor.is_leaf, tensor._is_view(), tensor.is_inference(), tensor.is_contiguous(),
            None if tensor.is_inference() else tensor._version, tensor.untyped_storage().nbytes(), tensor.is_shared(),
            len(saved.getvalue()) >> 10,
        ]

    class Holder(nn.Module):
        def __init__(self, name):
            super().__init__()
            tensor = (MAKERS | OTHERS)[name]()
            self.told = told(tensor)
            self.register_buffer("tensor", tensor)
            self.begun_at = 0 if tensor.is_meta else tensor.data_ptr()

        def stayed(self):
            return self.tensor.data_ptr() == self.begun_at

    def holder(name):
        return Holder(name)

    def values(name):
        tensor = (MAKERS | OTHERS)[name]()
        return told(tensor), None if tensor.is_meta else tensor.detach().clone()

    def shared_bytes():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssShmem"))

    def temporaries(count, least, step):
        begun, most = shared_bytes(), 0
        for number in range(count):
            torch.full((least + number * step, 1 << 18), 1.0)
            most = max(most, shared_bytes() - begun)
        return nn.Linear(3, 3), most, shared_bytes() - begun

    def dropped(mib):
        begun = shared_bytes()
        tensor = torch.full((mib, 1 << 18), 1.0)
        made = shared_bytes() - begun
        del tensor
        return made, shared_bytes() - begun

    def two(mib):
        begun = shared_bytes()
        first = torch.full((mib, 1 << 18), 1.0)
        one = shared_bytes() - begun
        second = torch.full((mib, 1 << 18), 2.0)
        return one, shared_bytes() - begun, float(first.sum() + second.sum())

    def forked():
        tensor = torch.full((1 << 20,), 1.0)
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            seen = float(tensor.sum())
            tensor.fill_(5.0)
            own = torch.full((1 << 20,), 6.0)
            os.write(writing, f"{seen} {float(tensor.sum())} {float(own.sum())}".encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writing)
        return nn.ParameterList([tensor]), os.read(reading, 100).decode()

    def forked_and_dropped():
        tensor = torch.full((1 << 20,), 1.0)
        (reading, writing), (waiting, going) = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:
            os.read(waiting, 1)
            os.write(writing, str(float(tensor.sum())).encode())
            os._exit(0)
        del tensor
        torch.full((1 << 20,), 2.0)
        os.write(going, b"x")
        os.waitpid(pid, 0)
        return os.read(reading, 100).decode()

    def plenty(count):
        return nn.ParameterList([torch.full((1 << 16,), float(number)) for number in range(count)])

    class Seen(nn.Module):
        def forward(self, x):
            return x, torch.overrides.has_torch_function((x,))

    def mode_in_a_call():
        before = torch.overrides.has_torch_function((torch.ones(1),))
        return before, Seen()(torch.ones(1))[1], torch.overrides.has_torch_function((torch.ones(1),))

    class After(nn.Module):
        def modes(self):
            hooks = nn.modules.module._global_forward_pre_hooks
            return len(hooks), torch.overrides.has_torch_function((torch.ones(1),))

    def after(fail=False):
        module = After()
        if fail:
            raise ValueError("no model today")
        return module

    def left_on():
        torch.set_default_device("cpu")
        return After()

    def attention():
        torch.manual_seed(1)
        layer = nn.TransformerEncoderLayer(512, 8, dim_feedforward=1024, batch_first=True).eval()
        with torch.no_grad():
            return layer(torch.rand(2, 5, 512))

    class Pass(nn.Module):
        def forward(self, x):
            return x.sum()

    passing = Pass()

    def known():
        return passing

    def uses_known():
        tensor = torch.full((1 << 20,), 3.0)
        total = passing(tensor)
        del tensor
        return total, torch.full((1 << 20,), 4.0)

    def halved():
        return nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(8)]).half()
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repo(tmp_path_factory.mktemp("births") / "owner" / "repo", {"v1": {"hubconf.py": REPO}})


def plain(repo: Path, name: str, *args: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.hub.load(str(repo), name, *args, source="local", verbose=False)


BORN = [
    "empty", "zeros", "ones", "ones_bool", "full", "full_float", "rand", "rand_half", "randn", "randn_odd",
    "randn_complex", "rand_own", "linear", "embedding", "clone", "deepcopy", "half", "to", "loaded",
    "after_a_mistake",
]  # fmt: skip
OTHERS = [
    "small", "arange", "meta", "channels_last", "strided", "cloned_with_graph", "copied_with_graph",
    "copied_from_int", "copied_to_part", "copied_in_memory", "inference", "on_meta", "deterministic", "resized",
    "shrunk", "resized_tied", "out", "traced", "scripted", "compiled", "mapped", "in_a_thread",
    "half_channels_last", "copy_channels_last", "nested",
]  # fmt: skip


@pytest.mark.parametrize("name", BORN)
def test_large_weights_are_not_moved(repo: Path, forkserver: int, name: str):
    """A large tensor that the repository makes in a usual way is, when the load is done, where it was made."""
    model = isohub.load(url(repo, "v1"), "holder", name)

    assert model.stayed() is True


def test_others_are_moved(repo: Path, forkserver: int):
    """A tensor that is made in another way is moved, which is how the test above could fail."""
    assert isohub.load(url(repo, "v1"), "holder", "strided").stayed() is False


@pytest.mark.parametrize("name", BORN + OTHERS)
def test_it_is_torchs_own(repo: Path, forkserver: int, name: str):
    """Values, random numbers drawn, and all that a tensor tells of itself are those in process."""
    torch.manual_seed(11)
    told, values = plain(repo, "values", name)
    drawn = torch.rand(4)
    torch.manual_seed(11)
    isolated_told, isolated_values = isohub.load(url(repo, "v1"), "values", name)

    assert told == isolated_told
    assert torch.equal(drawn, torch.rand(4))
    if values is not None:
        assert values.dtype is isolated_values.dtype
        assert raw(values) == raw(isolated_values)


@pytest.mark.parametrize(("least", "step"), [(8, 0), (1, 1)], ids=["equal", "growing"])
def test_temporaries_do_not_add_up(repo: Path, forkserver: int, least: int, step: int):
    """A constructor that makes and drops tensors has the memory of one at a time, and keeps none."""
    _, most, left = isohub.load(url(repo, "v1"), "temporaries", 40, least, step)
    (worker,) = isohub.workers()

    assert most < (least + 40 * step + 2) * MIB
    assert left < MIB
    assert worker.weights_nbytes < MIB


def test_memory_is_given_back_at_once(repo: Path, forkserver: int):
    """What a dropped tensor took is free before the entrypoint has ended."""
    made, left = isohub.load(url(repo, "v1"), "dropped", 64)

    assert made >= 64 * MIB
    assert left < MIB


def test_dropped_models_leave_nothing(repo: Path, forkserver: int):
    """Weights that were replaced by others while the entrypoint ran take no shared memory afterwards."""
    model = isohub.load(url(repo, "v1"), "halved")

    (worker,) = isohub.workers()
    expected = 8 * (1024 + 1) * 1024 * 2
    assert expected == sum(tensor.nbytes for tensor in model.state_dict().values())
    shared = int(Path(f"/proc/{worker.pid}/status").read_text().partition("RssShmem:")[2].split()[0]) << 10
    assert shared < expected + 2 * MIB


def test_fork_has_memory_of_its_own(repo: Path, forkserver: int):
    """A process that the repository forks while it builds sees a large tensor as it was, and changes its own alone."""
    (weight,), child = isohub.load(url(repo, "v1"), "forked", isolate=isohub.Isolation(threads=1))

    assert child == f"{float(MIB)} {5.0 * MIB} {6.0 * MIB}"
    assert torch.equal(torch.full((MIB,), 1.0), weight.detach())


def test_fork_keeps_what_is_dropped(repo: Path, forkserver: int):
    """A large tensor that a fork has inherited stays what it is there when the entrypoint drops it and goes on."""
    assert isohub.load(url(repo, "v1"), "forked_and_dropped", isolate=isohub.Isolation(threads=1)) == f"{float(MIB)}"


def test_no_room_is_no_error(repo: Path, forkserver: int):
    """Where the program has set a limit that leaves no room, tensors are made as without isohub."""
    limited = isohub.Isolation(memory_bytes=64 * MIB)

    first, both, total = isohub.load(url(repo, "v1"), "two", 40, isolate=limited)

    assert first >= 40 * MIB
    assert both < 41 * MIB
    assert total == 120.0 * MIB / 4


def test_segments_are_few(repo: Path, forkserver: int):
    """A thousand large tensors take a handful of mappings, and of descriptors for a worker that takes over."""

    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text().count("memfd:isohub")
        return maps, len(list(Path("/proc/self/fd").iterdir()))

    model = isohub.load(url(repo, "v1"), "plenty", 2, isolate=isohub.Isolation(restart="on-crash"))
    before = held()
    more = isohub.load(url(repo, "v1"), "plenty", 1000, isolate=isohub.Isolation(restart="on-crash"))
    after = held()

    assert [after[0] - before[0], after[1] - before[1]] == [12, 12]
    assert [float(number) for number in range(1000)] == [float(tensor.detach()[-1]) for tensor in more]
    assert len(model) == 2


def test_nothing_is_on_in_a_call(repo: Path, forkserver: int):
    """Calls of modules within an entrypoint are torch's own, on its fast ways too."""
    assert isohub.load(url(repo, "v1"), "mode_in_a_call") == (True, False, False)
    assert raw(plain(repo, "attention")) == raw(isohub.load(url(repo, "v1"), "attention"))


def test_nothing_stays_on(repo: Path, forkserver: int):
    """When an entrypoint has ended, well or not, torch's modes are those that it left on."""
    with pytest.raises(ValueError, match="no model today"):
        isohub.load(url(repo, "v1"), "after", fail=True)
    assert isohub.load(url(repo, "v1"), "after").modes() == (0, False)
    assert isohub.load(url(repo, "v1"), "left_on").modes() == (0, True)


def test_what_the_program_saw_stays(repo: Path, forkserver: int):
    """A tensor that a hook has kept is not overwritten when the entrypoint drops it and goes on."""
    kept = []
    model = isohub.load(url(repo, "v1"), "known")
    model.register_forward_pre_hook(lambda module, args: kept.append(args[0]))

    total, other = isohub.load(url(repo, "v1"), "uses_known")

    assert float(total) == 3.0 * MIB
    assert torch.equal(torch.full((MIB,), 3.0), kept[0])
    assert torch.equal(torch.full((MIB,), 4.0), other)
    kept.clear()
    del model
    gc.collect()
