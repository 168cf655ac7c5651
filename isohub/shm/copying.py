"""Copies of memory, by several threads where that pays."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Sequence

from isohub.shm import processors

__all__ = ["copy_all", "copy_bytes"]

# Found through the library, it lets other threads run meanwhile, which `ctypes.memmove` does not.
copy_bytes = ctypes.CDLL(None).memcpy
copy_bytes.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

# To start a thread takes some 0.1 ms, as a copy of this does.
SHARED_FROM_BYTES = 8 << 20
# More do not copy faster: memory is what they wait for.
MAX_THREADS = 4


def copy_all(pieces: Sequence[tuple[int, int, int]]) -> None:
    """Copy pieces of memory, each given by (address to copy to, address to copy from, bytes).

    Several threads share the work where it is large and there are processors that nobody else wants. On a busy machine
    they would wait for the slowest: torch's own copy, which always takes several, was seen to take ten times as long.
    """
    total = 0
    for *_, nbytes in pieces:
        total += nbytes
    threads = 1
    if total >= SHARED_FROM_BYTES:
        threads = min(1 + processors.spare(time.perf_counter()), MAX_THREADS)
    if threads > 1:
        first, *others = _shares(pieces, -(-total // threads))
        helpers = [threading.Thread(target=_copy, args=(share,), name="isohub-copy") for share in others]
        started: list[threading.Thread] = []
        try:
            mine = [first]
            for helper, share in zip(helpers, others, strict=True):
                if _start(helper):
                    started.append(helper)
                else:
                    mine.append(share)
            for share in mine:
                _copy(share)
        finally:
            # After Ctrl-C as well: the caller gives the memory back that they are writing to.
            for helper in started:
                helper.join()
    else:
        _copy(pieces)


def _start(helper: threading.Thread) -> bool:
    try:
        helper.start()
    except RuntimeError:  # there may be no more, or the interpreter is ending
        return False
    return True


def _copy(pieces: Sequence[tuple[int, int, int]]) -> None:
    for target, source, nbytes in pieces:
        copy_bytes(target, source, nbytes)


def _shares(pieces: Sequence[tuple[int, int, int]], most: int) -> list[list[tuple[int, int, int]]]:
    """Share pieces out, `most` bytes to each share; what is too large is cut."""
    shares: list[list[tuple[int, int, int]]] = [[]]
    left = most
    for target, source, nbytes in pieces:
        begin = 0
        while begin < nbytes:
            if not left:
                shares.append([])
                left = most
            part = min(nbytes - begin, left)
            shares[-1].append((target + begin, source + begin, part))
            begin, left = begin + part, left - part
    return shares
