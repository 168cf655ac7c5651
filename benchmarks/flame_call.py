"""Where the time of a call goes: flame graphs of the calling program and of its worker.

    .venv/bin/python -m pip install -c constraints.txt py-spy
    python benchmarks/flame_call.py

600 kB go in and 4 kB come out, again and again, while py-spy looks at both processes 1,000 times a second.
It keeps `results/flame-call-program.svg` and `results/flame-call-worker.svg`; wide is where the time goes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from bench_call import DRIVERS, HUBCONF
from common import RESULTS

import isohub

SECONDS = 6


def main() -> None:
    beside = Path(sys.executable).with_name("py-spy")
    py_spy = str(beside) if beside.exists() else shutil.which("py-spy")
    if py_spy is None:
        sys.exit("there is no py-spy: .venv/bin/python -m pip install -c constraints.txt py-spy")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        Path(folder, "hubconf.py").write_text(HUBCONF)
        shutil.copy(DRIVERS / "work.py", folder)
        model, x = isohub.load(Path(folder), "case", "600 kB in"), torch.rand(1, 3, 224, 224)
        model(x)
        watched = {"program": os.getpid(), "worker": model.isohub.pid}
        looking = [
            subprocess.Popen(
                [py_spy, "record", "--pid", str(pid), "--rate", "1000", "--duration", str(SECONDS), "--nonblocking",
                 "--output", str(RESULTS / f"flame-call-{name}.svg")],
                stdout=subprocess.DEVNULL,
            )
            for name, pid in watched.items()
        ]  # fmt: skip
        while any(process.poll() is None for process in looking):
            model(x)
        isohub.shutdown()
    if any(process.returncode for process in looking):
        sys.exit("py-spy failed; it needs the right to look into other processes")
    for name in watched:
        graph = RESULTS / f"flame-call-{name}.svg"
        # The command line, which has paths of this machine.
        title = f"A call of 600 kB, again and again: the {name}"
        graph.write_text(re.sub(r'(<text id="title"[^>]*>)[^<]*', rf"\g<1>{title}", graph.read_text()))


if __name__ == "__main__":
    main()
