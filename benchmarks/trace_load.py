"""Where the time of a program's first load goes: its steps, as a new program takes them, with an empty cache.

    python benchmarks/trace_load.py [--save]

The program imports torch and isohub and loads a small model from a git repository on this machine; another one calls
`isohub.warm()` before that. Of several runs of each the one of median length is kept, as it was, in
benchmarks/results/first_load.json; report.py draws them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, report

RUNS = 7
# What is drawn: its title, and what the program does first.
PROGRAMS = {
    "first_load": ("The first load of a program", ""),
    "first_load_warm": ("The same, after isohub.warm() at the top of the program", "import isohub; isohub.warm()"),
}
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
exec(sys.argv[2])
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

    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as folder:
        repo = url(make_repo(Path(folder) / "owner" / "repo", {"v1": {"hubconf.py": HUBCONF}}), "v1")
        for number in range(RUNS):
            for name, (_, first) in PROGRAMS.items():
                runs[name].append(run(repo, first, Path(folder) / f"{name}{number}"))
    median = {name: sorted(found, key=lambda one: one["total_s"])[RUNS // 2] for name, found in runs.items()}
    programs = {name: {"title": title, **median[name]} for name, (title, _) in PROGRAMS.items()}
    report("first_load", {"runs": RUNS, "programs": programs})


def run(repo: str, first: str, home: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, repo, first],
        env={**os.environ, "TORCH_HOME": str(home)},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
