"""What a process holds, by what it is rather than by how many, so that one-off initialisation does not count."""

from __future__ import annotations

import re
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

__all__ = ["Holdings", "holdings", "nobodys_shared_memory"]


class Holdings(dict[str, Counter[str]]):
    """Descriptors, children, mappings and threads of this process."""

    def more_than(self, before: Holdings) -> dict[str, list[str]]:
        """Return what is here and was not there."""
        found = {kind: list((here - before[kind]).elements()) for kind, here in self.items()}
        return {kind: things for kind, things in found.items() if things}


def holdings() -> Holdings:
    """Return what this process holds now."""
    return Holdings(
        descriptors=Counter(_descriptors()),
        children=Counter(_children()),
        mappings=Counter(_mappings()),
        threads=Counter(thread.name for thread in threading.enumerate()),
    )


def nobodys_shared_memory() -> set[Path]:
    """Return what has a name in /dev/shm and is not mapped by any process that lives: what was left there."""
    there = set(Path("/dev/shm").iterdir())
    for maps in Path("/proc").glob("[0-9]*/maps") if there else ():
        with suppress(OSError):  # it has just ended
            there -= {Path(line.split()[5]) for line in maps.read_text().splitlines() if " /dev/shm/" in line}
    return {path for path in there if path.exists()}


def _descriptors() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # the descriptor of the listing itself
        # The number of a pipe or socket is new each time; that there is one is what counts.
        found.append(re.sub(r":\[\d+\]", "", target))
    return found


def _children() -> list[str]:
    found: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += (task / "children").read_text().split()
        except OSError:
            continue  # a thread that has ended
    return found


def _mappings() -> list[str]:
    return ["memfd" for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:isohub" in line]
