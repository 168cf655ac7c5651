from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isohub.shm.segment import Segment, create_memfd
from isohub.shm.tensors import storage_over
from tests.helpers.leaks import nobodys_shared_memory
from tests.helpers.waiting import until

PAGE = mmap.PAGESIZE
TRUNCATE = """
import os, sys
fd = int(sys.argv[1])
for nbytes in (0, 4096, 1 << 20):
    try:
        os.ftruncate(fd, nbytes)
    except OSError as error:
        print(error.errno)
"""


def mapped() -> list[str]:
    """Return the mappings of our segments in this process."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:isohub" in line]


@pytest.fixture
def others() -> int:
    """Return how many were mapped before: torch keeps some alive for good after certain uses of other tests."""
    return len(mapped())


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def segment_of(nbytes: int, number: int = 1) -> Segment:
    fd = create_memfd(nbytes)
    try:
        return Segment(number, fd, nbytes)
    finally:
        os.close(fd)


@pytest.mark.parametrize("nbytes", [0, PAGE, 3 * PAGE], ids=["to nothing", "shorter", "longer"])
def test_nobody_here_resizes_it(nbytes: int):
    """The descriptor's maker cannot resize the memory either."""
    fd = create_memfd(2 * PAGE)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(fd, nbytes)
        assert os.fstat(fd).st_size == 2 * PAGE
    finally:
        os.close(fd)


def test_no_other_process_resizes_it():
    """A process that was given the descriptor, as a worker is, cannot resize the memory."""
    fd = create_memfd(2 * PAGE)
    try:
        done = subprocess.run(
            [sys.executable, "-c", TRUNCATE, str(fd)], pass_fds=[fd], capture_output=True, text=True, check=True
        )
        assert [str(errno.EPERM)] * 3 == done.stdout.split()
        assert os.fstat(fd).st_size == 2 * PAGE
    finally:
        os.close(fd)


def test_seals_stay():
    """Nobody adds a seal later, such as one against writing, which would break the other side's mapping."""
    fd = create_memfd(PAGE)
    try:
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, 1033, 0x8)  # F_ADD_SEALS, F_SEAL_WRITE
    finally:
        os.close(fd)


def test_reading_to_the_end_is_safe():
    """The last byte can be written and read, whatever another process tried."""
    segment = segment_of(PAGE + 1)
    ctypes.memset(segment.address + PAGE, 7, 1)

    assert bytes(segment.view(PAGE - 1, 2)) == b"\0\7"


def test_both_mappings_are_one_memory():
    """What is written through one mapping is read through another."""
    fd = create_memfd(PAGE)
    one, other = Segment(1, fd, PAGE), Segment(1, fd, PAGE)
    os.close(fd)

    one.view(64, 3)[:] = b"abc"

    assert one.address != other.address
    assert bytes(other.view(64, 3)) == b"abc"


def test_it_keeps_no_descriptor(others: int):
    """A mapped segment costs no descriptor, so a model of 900 segments fits under `ulimit -n 1024`."""
    before = descriptors()
    segments = [segment_of(PAGE, number) for number in range(50)]

    assert before == descriptors()
    assert len(mapped()) - others == 50
    del segments


def test_last_view_unmaps(others: int):
    """The mapping lives as long as anything that looks into it, and no longer."""
    segment = segment_of(4 * PAGE)
    tensor = torch.empty(0).set_(storage_over(segment.view(PAGE, PAGE)), 0, (8,), (1,))
    view = segment.view(0, 1)

    del segment
    view.release()
    del view
    tensor.fill_(3.0)
    assert len(mapped()) - others == 1
    part = tensor[2:4]
    del tensor
    assert part.tolist() == [3.0, 3.0]
    assert len(mapped()) - others == 1
    del part
    assert len(mapped()) - others == 0


@pytest.mark.parametrize("nbytes", [0, 1 << 62], ids=["nothing", "too much"])
def test_what_cannot_be_mapped_is_an_error(nbytes: int):
    """A size that the system refuses is an OSError that says so."""
    fd = create_memfd(PAGE)
    try:
        with pytest.raises(OSError, match=f"cannot map {nbytes} bytes of shared memory"):
            Segment(1, fd, nbytes)
    finally:
        os.close(fd)


def test_impossible_size_leaves_no_descriptor():
    """A size that no file can have is an OSError, and the descriptor is closed."""
    before = descriptors()
    with pytest.raises(OSError, match="Invalid argument"):
        create_memfd(-1)

    assert before == descriptors()


def test_nothing_has_a_name():
    """A segment is no file, so none stays behind when everybody is killed."""
    before = nobodys_shared_memory()
    program = (
        "import os, signal, torch\n"
        "from isohub.shm.segment import Segment, create_memfd\n"
        f"segment = Segment(1, create_memfd({PAGE}), {PAGE})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)

    assert done.returncode == -signal.SIGKILL
    until(lambda: nobodys_shared_memory() <= before)  # another program may just be tidying up
