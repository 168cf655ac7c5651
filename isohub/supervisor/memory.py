"""What a worker process takes of the machine's memory, as the kernel counts it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from isohub.shm.common_copy import COMMON_NAME

__all__ = ["Memory", "memory_of"]

# Those parts that it can write to, which then become its own; it sees the whole copy besides.
_EQUAL = re.compile(rf"^([0-9a-f]+)-([0-9a-f]+) rw-p .*/memfd:{COMMON_NAME}", re.MULTILINE)
_LINE = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Memory:
    """Memory of one process.

    Attributes:
        private_bytes: What it alone has, and what would be free without it; None if it is not known.
        proportional_bytes: That, and its part of what it shares (torch's code with the other workers, the
            weights with this process): the kernel's PSS. None if it is not known.
        shared_bytes: What it has in common with others, whole; None if it is not known.
        equal_weights_bytes: Of that, weights that another worker has as well, and that are kept once; None if it is
            not known.
    """

    private_bytes: int | None = None
    proportional_bytes: int | None = None
    shared_bytes: int | None = None
    equal_weights_bytes: int | None = None


def memory_of(pid: int) -> Memory:
    """Return the memory of a process of this user."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        mapped = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:  # it has ended, or this kernel has no such file
        return Memory()
    kilobytes = {name: int(number) for name, number in _LINE.findall(text)}
    return Memory(
        private_bytes=(kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) << 10,
        proportional_bytes=kilobytes["Pss"] << 10,
        shared_bytes=(kilobytes["Shared_Clean"] + kilobytes["Shared_Dirty"]) << 10,
        equal_weights_bytes=sum(int(end, 16) - int(start, 16) for start, end in _EQUAL.findall(mapped)),
    )
