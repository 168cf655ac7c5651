"""Where the time of a program's first load goes: its steps, as a new program takes them, with an empty cache.

    python benchmarks/trace_load.py [--save]

The program imports torch and isohub and loads a small model from a git repository on this machine. Of several runs
the one of median length is kept, as it was, in benchmarks/results/first_load.json; report.py draws it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, report

RUNS = 7
HUBCONF = """
import torch

def net():
    return torch.nn.Sequential(*(torch.nn.Conv2d(256, 256, 3) for _ in range(8)))
"""
PROGRAM = """
import time
begun = time.monotonic()
import json, sys
from isohub import trace

steps = []
trace.add_listener(lambda step: step.state == "complete" and steps.append(step))
with trace.step("import torch"):
    import torch
with trace.step("import isohub"):
    import isohub.api
isohub.load(sys.argv[1], "net", verbose=False)
total_s = time.monotonic() - begun
print(json.dumps({"total_s": round(total_s, 6), "steps": [
    {"name": step.name, "start_s": round(step.start_s - begun, 6), "duration_s": round(step.duration_s, 6)}
    for step in sorted(steps, key=lambda step: step.start_s)
]}))
"""


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.helpers.repos import make_repo, url

    with tempfile.TemporaryDirectory() as folder:
        repo = url(make_repo(Path(folder) / "owner" / "repo", {"v1": {"hubconf.py": HUBCONF}}), "v1")
        runs = sorted(
            (run(repo, Path(folder) / f"home{number}") for number in range(RUNS)), key=lambda one: one["total_s"]
        )
    report("first_load", {"title": "The first load of a program", "runs": RUNS, **runs[RUNS // 2]})


def run(repo: str, home: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, repo],
        env={**os.environ, "TORCH_HOME": str(home)},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
