"""Copies that several threads may share."""

from __future__ import annotations

import os
import random
import time

import pytest
import torch

from isohub.shm import processors
from isohub.shm.copying import SHARED_FROM_BYTES, _shares, copy_all


@pytest.mark.parametrize("most", [1, 7, 64, 1000])
def test_shares_are_all_of_it(most: int):
    """However it is shared out, every byte is copied once to where it belongs, and no share is too large."""
    draw = random.Random(most)
    pieces = [(begin, 100_000 + begin, draw.randrange(300)) for begin in range(0, 3000, 300)]

    shares = _shares(pieces, most)

    found = sorted((target + n, source + n) for share in shares for target, source, size in share for n in range(size))
    assert [(at + n, source + n) for at, source, size in pieces for n in range(size)] == found
    assert max(sum(size for *_, size in share) for share in shares) <= most


@pytest.mark.parametrize("nbytes", [0, 100, SHARED_FROM_BYTES, 3 * SHARED_FROM_BYTES + 13])
def test_copy_is_equal(nbytes: int):
    """What is copied is what was there, in one piece or several, small or large."""
    source = torch.randint(0, 256, (2, nbytes), dtype=torch.uint8)
    target = torch.zeros_like(source)

    copy_all([(target[row].data_ptr(), source[row].data_ptr(), nbytes) for row in (1, 0)])

    assert torch.equal(target, source)


def test_processors_that_run_this_are_not_spare():
    """There are never as many processors to spare as there are: this thread has one."""
    assert processors.spare(time.perf_counter()) < len(os.sched_getaffinity(0))
