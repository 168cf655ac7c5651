"""Results that a worker goes on writing to after it has answered."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import isohub
from isohub.errors import RemoteProtocolError
from isohub.worker.weights import give_back

# Each keeps what it can of the memory that its answer lies in, and writes to it afterwards.
REPO = """
    import ctypes
    import errno
    import mmap
    import os
    import threading

    import torch

    from isohub.shm import tensors

    write_at = tensors.write_at
    kept = {"begun": threading.Event()}
    libc = ctypes.CDLL(None, use_errno=True)
    FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2


    def keep_descriptor(fd, offset, address, nbytes):
        kept["fd"] = os.dup(fd)
        write_at(fd, offset, address, nbytes)


    def keep_mapping(fd, offset, address, nbytes):
        kept["mapping"] = mmap.mmap(fd, nbytes)
        write_at(fd, offset, address, nbytes)


    def keep_writing(fd, offset, address, nbytes):
        keep_descriptor(fd, offset, address, nbytes)
        kept["thread"] = threading.Thread(target=write_for_ever)
        kept["thread"].start()
        kept["begun"].wait()


    def write_for_ever():
        try:
            while True:
                os.pwrite(kept["fd"], bytes([255]) * 4096, 0)
                kept["begun"].set()
        except OSError as error:
            kept["ended by"] = errno.errorcode[error.errno]


    def lock_seals(fd, offset, address, nbytes):
        import fcntl
        fcntl.fcntl(fd, 1033, 1)
        write_at(fd, offset, address, nbytes)


    def tried(function, *args):
        try:
            function(*args)
        except OSError as error:
            return errno.errorcode[error.errno]
        return "done"


    def punch(fd):
        if libc.fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(1 << 20)):
            raise OSError(ctypes.get_errno(), "no hole")


    class Net(torch.nn.Linear):
        def large(self, how="", numel=1 << 20):
            tensors.write_at = globals().get(how, write_at)
            self.result = torch.arange(numel, dtype=torch.int64)
            return self.result

        def tamper(self):
            fd = kept["fd"]
            return {
                "write": tried(os.pwrite, fd, bytes(4096), 0),
                "map": tried(mmap.mmap, fd, 4096),
                "punch": tried(punch, fd),
                "shrink": tried(os.ftruncate, fd, 0),
                "grow": tried(os.ftruncate, fd, 1 << 30),
                "open again": tried(lambda: os.pwrite(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), b"x", 0)),
            }

        def wait(self):
            kept["thread"].join()
            return kept["ended by"]

        def small(self):
            return torch.arange(64.0), b"b" * 5000

        def own_weight(self):
            return self.weight.data

        def overwrite(self):
            from gc import get_objects
            arena = next(found for found in get_objects() if type(found).__name__ == "Arena")
            for segment in arena._segments.values():
                ctypes.memset(segment.address, 255, segment.nbytes)

        def zero(self):
            torch.nn.init.zeros_(self.weight)


    def net():
        return Net(4, 4)


    def tensors_of_one():
        return {"one": torch.ones(1 << 20)}
"""

LARGE = torch.arange(1 << 20)


Load = Callable[[], isohub.IsolatedModule]


@pytest.fixture
def load(repo_of: Callable[..., str]) -> Load:
    """A function that loads it; pytest would keep the model itself beyond the test."""
    return lambda: isohub.load(repo_of(REPO), "net", isolate=isohub.Isolation(results="frozen"))


def test_nothing_can_be_done_to_a_frozen_result(load: Load):
    """Who keeps the descriptor of a result can neither write there, map it, make holes, resize it nor open it anew."""
    model = load()
    result = model.large("keep_descriptor")

    tried = model.tamper()

    assert tried == dict.fromkeys(["write", "map", "punch", "shrink", "grow", "open again"], "EPERM")
    assert torch.equal(LARGE, result)


def test_thread_that_goes_on_writing_is_stopped_before_the_parent_looks(load: Load):
    """What a thread of the worker's writes while and after its call answers is not seen once the call has returned."""
    model = load()
    result = model.large("keep_writing")
    at_first = result.clone()

    assert model.wait() == "EPERM"
    assert torch.equal(at_first, result)


@pytest.mark.parametrize("how", ["keep_mapping", "lock_seals"])
def test_result_that_cannot_be_sealed_ends_the_worker(load: Load, how: str):
    """A worker that keeps a writable mapping of its result, or sealed it against seals, is killed."""
    model = load()
    with pytest.raises(RemoteProtocolError, match="go on writing to it"):
        model.large(how)

    assert model.isohub.state == "broken"


def test_small_result_is_copied_out_of_the_arena(load: Load):
    """A result too small for a segment of its own does not change when the worker overwrites the arena."""
    model = load()
    numbers, data = model.small()

    model.overwrite()

    assert torch.equal(torch.arange(64.0), numbers)
    assert data == b"b" * 5000


def test_shared_result_does_change(repo_of: Callable[..., str]):
    """With `results="shared"`, which is the default, the worker's writing is seen: the difference is the setting's."""
    model = isohub.load(repo_of(REPO), "net")
    numbers, _ = model.small()

    model.overwrite()

    assert not torch.equal(torch.arange(64.0), numbers)


def test_weights_stay_shared_and_results_over_them_are_copies(load: Load):
    """What code writes to a weight is seen in the parameter here, and not in a result that was that weight."""
    model = load()
    before = model.weight.detach().clone()
    result = model.own_weight()

    model.zero()

    assert torch.equal(before, result)
    assert torch.equal(torch.zeros(4, 4), model.weight)


def test_frozen_result_is_not_copied(load: Load):
    """To read a large frozen result takes no memory of this process's own, to write to it that of the pages written."""
    model = load()
    model.large()
    # What tests before this one have left, or it would be given back in the middle of this.
    gc.collect()
    give_back()
    before = anonymous_bytes()
    result = model.large(numel=8 << 20)  # 64 MiB, for which the C library never reuses memory that is free
    total = int(result.sum())
    read = anonymous_bytes() - before
    result[:512] = 7  # one page
    written = anonymous_bytes() - before
    copy = result.clone()
    cloned = anonymous_bytes() - before

    assert total == sum(range(8 << 20))
    assert (copy[:512] == 7).all()
    assert read < 1 << 20
    assert written < 1 << 20
    assert cloned >= result.nbytes


def test_memory_of_frozen_results_is_given_back(load: Load):
    """A frozen result that died counts no more, and its mapping is gone."""
    model = load()
    worker = model._isohub_lease.worker
    model.large()
    mappings, total = count_mappings(), worker.border._total_bytes

    held = [model.large() for _ in range(5)]
    many = count_mappings()
    held.clear()
    model.large()

    assert mappings + 5 == many
    assert mappings == count_mappings()
    assert total == worker.border._total_bytes


def test_hooks_see_frozen_values_too(repo_of: Callable[..., str]):
    """A large value that comes to a hook here, and what the hook returns, cross as they do otherwise."""
    code = "import torch\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU())\n"
    model = isohub.load(repo_of(code), "net", isolate=isohub.Isolation(results="frozen"))
    seen = []
    model[0].register_forward_hook(lambda *call: seen.append(call[2]) or call[2] * -1)

    result = model(LARGE.float())

    assert torch.equal(LARGE.float(), seen[0])
    assert torch.equal(torch.zeros(1 << 20), result)


def test_state_dict_of_a_build_is_frozen(repo_of: Callable[..., str]):
    """Tensors of `returns="state_dict"` are results like all others."""
    frozen = isohub.Isolation(results="frozen")
    state = isohub.load(repo_of(REPO), "tensors_of_one", returns="state_dict", isolate=frozen)

    assert torch.equal(torch.ones(1 << 20), state["one"])
    assert [line for line in mappings_here() if "rw-p" in line]


def test_settings_do_not_share_a_worker(repo_of: Callable[..., str]):
    """A worker serves results of one kind; a load that asks for the other has another worker."""
    repo = repo_of(REPO)
    shared = isohub.load(repo, "net")
    frozen = isohub.load(repo, "net", isolate=isohub.Isolation(results="frozen"))

    assert shared.isohub.pid != frozen.isohub.pid


def anonymous_bytes() -> int:
    """Memory of this process that is a copy of nothing, and shared with nobody."""
    found = re.search(r"^Anonymous: +(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def mappings_here() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:isohub" in line]


def count_mappings() -> int:
    return len(mappings_here())
