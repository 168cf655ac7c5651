"""What a further worker costs, against a fresh interpreter that imports torch.

    python benchmarks/bench_start.py [--save]

A further worker is measured as its user meets it: from the call of `isohub.load`, with the forkserver warm,
to the result of an entrypoint in a process of its own. The fresh interpreter only has to import torch and
say so, which is what `torch.multiprocessing` with `spawn` pays at the least.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from common import interleave, report

import isohub
from isohub.supervisor.memory import Memory, memory_of

HUBCONF = """
def nothing():
    return None
"""
GOAL_MS = 50.0


def main() -> None:
    own = isohub.Isolation(dedicated=True)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "hubconf.py").write_text(HUBCONF)

        def further_worker() -> None:
            isohub.load(Path(folder), "nothing", isolate=own)
            taken.append(memory_of(isohub.workers()[-1].pid))

        taken: list[Memory] = []
        samples = interleave(
            {"further worker": further_worker, "fresh interpreter": fresh_interpreter}, rounds=10, warm_up=1
        )
        isohub.shutdown()
    ratio = samples["fresh interpreter"].median_s / samples["further worker"].median_s
    report(
        "start",
        {
            "fresh interpreter / further worker": round(ratio, 1),
            "memory of a further worker, MB": {
                "private": megabytes(taken[-1].private_bytes),
                "proportional": megabytes(taken[-1].proportional_bytes),
            },
            "goal": f"a further worker in under {GOAL_MS:.0f} ms",
            **{name: sample.asdict() for name, sample in samples.items()},
        },
    )


def megabytes(nbytes: int | None) -> float | None:
    return None if nbytes is None else round(nbytes / 1e6, 1)


def fresh_interpreter() -> None:
    subprocess.run([sys.executable, "-c", "import torch; print(torch.__version__)"], check=True, capture_output=True)


if __name__ == "__main__":
    main()
