"""Large tensors that an entrypoint makes are born in shared memory, and are torch's own in all that can be seen."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from tests.helpers.births import REPO
from tests.helpers.repos import make_repo, url
from tests.helpers.same import raw

MIB = 1 << 20


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
