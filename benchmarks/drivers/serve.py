"""One rival, in an environment of its own: does what it is told on stdin, and says how long that took.

    python serve.py torch_processes spawn file_descriptor

A line of JSON comes, a line goes: `{"do": "call", "case": "600 kB in", "repeats": 5}` is answered by
`{"times": [...]}`. Whatever else is printed goes to stderr.

A driver is a module here with a class `Driver`, made with the rest of the command line: `version`,
`worker()` starts one more worker and waits until it can be called, and what that returns has
`call(function name, tensor)` and `close()`; `close()` ends the driver.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import work


class Server:
    def __init__(self, driver) -> None:
        self._driver = driver
        self._worker = None
        self._checked: set[str] = set()

    def answer(self, request: dict) -> dict:
        if request["do"] == "version":
            return {"version": self._driver.version}
        if request["do"] == "start":
            return self._start(request["repeats"])
        if request["do"] == "fetch":
            # What a result holds open: descriptors here, as long as it lives.
            before = descriptors()
            kept = self._call(request["case"])
            return {"descriptors": descriptors() - before, "kept": len(kept)}
        return {"times": self._times(request["case"], request["repeats"])}

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._driver.close()

    def _call(self, case: str):
        """Call once, without a clock, and check the result."""
        if self._worker is None:
            self._worker = self._driver.worker()
        name, _ = work.INPUTS[case]
        x = work.input_of(case)
        result = self._worker.call(name, x)
        if not work.same(result, work.FUNCTIONS[name](x)):
            raise ValueError(f"{case}: what came back is not what was asked for, but a {type(result).__name__}")
        self._checked.add(case)
        return result

    def _times(self, case: str, repeats: int) -> list[float]:
        if case not in self._checked:
            self._call(case)
        name, _ = work.INPUTS[case]
        times = []
        for _ in range(repeats):
            # A new one each time, made before the clock runs: a tensor that is in shared memory already
            # from the call before would not be copied, and callers come with new ones.
            x = work.input_of(case)
            start = time.perf_counter()
            result = self._worker.call(name, x)
            times.append(time.perf_counter() - start)
            del result
        return times

    def _start(self, repeats: int) -> dict:
        x = work.input_of("who")
        times, private = [], []
        for _ in range(repeats):
            start = time.perf_counter()
            worker = self._driver.worker()
            number = worker.call("pid", x)
            times.append(time.perf_counter() - start)
            private.append(private_bytes(number))
            worker.close()
        return {"times": times, "private_bytes": private}


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, *settings = sys.argv[1:]
    server = Server(importlib.import_module(name).Driver(*settings))
    try:
        for line in sys.stdin:
            try:
                answer = server.answer(json.loads(line))
            except Exception as error:  # noqa: BLE001 - whatever it is, the other side is told
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"[:300]}
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        server.close()


if __name__ == "__main__":
    main()
