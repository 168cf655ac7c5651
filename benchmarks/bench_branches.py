"""What holding several refs of one repository costs in memory, and what they gain by running in parallel.

    python benchmarks/bench_branches.py [--busy] [--quick | --save]

Memory is what the program and all that it has started (its forkserver, its workers, the process that watches over
weights in common) take together (the kernel's PSS), beyond what they took before: with a small model, and with
weights of 100 MB that are equal in every ref; for these also the most that it was while they were loaded, looked at
every 20 ms. In parallel, as many models as processors, with one torch thread each, are called at once: isolated
ones of as many refs from one thread by `isohub.gather`, and those in process from a thread each. A forward takes
some milliseconds of Python and small operators, which is what threads of one process wait for each other with. Plain
forks of one process, told by pipes, show what the machine itself can do in parallel.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from common import Options, Result, interleave, pss_bytes, run

import isohub
from isohub.supervisor.memory import memory_of

HUBCONF = """
import torch
from torch import nn

def small():
    return nn.Linear(8, 8).eval()

def weights():
    # 100 MB, the same in every ref, and no two pages alike.
    net = nn.Linear(5000, 5000, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.arange(net.weight.numel()).reshape(5000, 5000) % 8388593)
    return net.eval()

class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(200)])

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x

def steps():
    return Steps().eval()
"""
REFS = (1, 2, 4, 8, 16)
EQUAL_WEIGHTS_REFS = (1, 2, 8)
IDENTITY = {
    "GIT_AUTHOR_NAME": "Benchmark", "GIT_AUTHOR_EMAIL": "benchmark@example.invalid",
    "GIT_COMMITTER_NAME": "Benchmark", "GIT_COMMITTER_EMAIL": "benchmark@example.invalid",
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull,
}  # fmt: skip


def measure(options: Options, result: Result) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        isohub.set_dir(Path(folder, "hub"))
        repo = make_repo(Path(folder, "repo"), max(REFS))
        for count in REFS[:2] if options.quick else REFS:
            total, private, proportional = memory_with(repo, "small", count)
            result.measures[f"{count} refs, small model: memory, MB"] = megabytes(total)
            result.measures[f"{count} refs, small model: private memory a ref, MB"] = megabytes(private)
            result.measures[f"{count} refs, small model: proportional memory a ref, MB"] = megabytes(proportional)
        for count in EQUAL_WEIGHTS_REFS[:2] if options.quick else EQUAL_WEIGHTS_REFS:
            with Peak() as peak:
                total, *_ = memory_with(repo, "weights", count, peak)
            result.measures[f"{count} refs, equal weights of 100 MB: memory, MB"] = megabytes(total)
            result.measures[f"{count} refs, equal weights of 100 MB: memory at its peak, MB"] = megabytes(peak.nbytes)
        measure_parallel(repo, options, result)
        isohub.shutdown()


class Peak:
    """The most memory that this program and all that it has started take, beyond what they took before."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._before: int | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Peak:  # noqa: PYI034 - Self is of Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._before is not None:
            self._thread.join()

    def start(self, before: int) -> None:
        self._before = before
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.02):
            self.nbytes = max(self.nbytes, memory_of_all() - (self._before or 0))


def memory_of_all() -> int:
    """Return the memory of this program and of all that it has started."""
    found, pids = [], [os.getpid()]
    while pids:
        found.append(pids.pop())
        with contextlib.suppress(OSError):  # it has just ended
            for task in Path(f"/proc/{found[-1]}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
    total = 0
    for pid in found:
        with contextlib.suppress(OSError):
            total += pss_bytes(pid)
    return total


def memory_with(repo: Path, entrypoint: str, count: int, peak: Peak | None = None) -> tuple[int, float, float]:
    """Return the memory of so many refs together, and private and proportional memory of a worker on average."""
    isohub.shutdown()
    # The forkserver and all that the first load brings into this program are there before.
    warm = isohub.Repo(url(repo, "v0"))
    warm.load("small")
    warm.close()
    before = memory_of_all()
    if peak is not None:
        peak.start(before)
    kept = [isohub.load(url(repo, f"v{number}"), entrypoint) for number in range(count)]
    x = torch.rand(1, 8 if entrypoint == "small" else 5000)
    with torch.no_grad():
        for model in kept:
            model(x)
    pids = [worker.pid for worker in isohub.workers()]
    assert len(pids) == count
    total = memory_of_all() - before
    each = [memory_of(pid) for pid in pids]
    private = sum(one.private_bytes or 0 for one in each) / count
    return total, private, sum(one.proportional_bytes or 0 for one in each) / count


def measure_parallel(repo: Path, options: Options, result: Result) -> None:
    count = len(os.sched_getaffinity(0))
    own = isohub.Isolation(threads=1)
    isolated = [isohub.load(url(repo, f"v{number}"), "steps", isolate=own) for number in range(count)]
    plain = [isohub.load(repo, "steps", source="local", isolate=False) for _ in range(count)]
    x = torch.rand(4, 64)
    with torch.no_grad(), forks_of(plain[0], x, count) as ask_forks, ThreadPoolExecutor(count) as pool:
        samples = interleave(
            {
                "isohub, one model alone": lambda: isolated[0](x),
                f"isohub, {count} models at once": lambda: isohub.gather([(model, x) for model in isolated]),
                "in process, one model alone": lambda: plain[0](x),
                f"in process, {count} models at once": by_threads(pool, plain, x),
                "plain forks, one model alone": lambda: ask_forks(1),
                f"plain forks, {count} models at once": lambda: ask_forks(count),
            },
            rounds=options.rounds(100),
            repeats=2,
            budget_s=15,
        )
    result.samples["models in parallel"] = samples
    for who in ("isohub", "in process", "plain forks"):
        alone, together = samples[f"{who}, one model alone"], samples[f"{who}, {count} models at once"]
        result.ratio(f"models in parallel: at once / one alone, {who}", together.median_s, alone.median_s)
        result.measures[f"models in parallel: calls a second, {who}"] = round(count / together.median_s)


@contextlib.contextmanager
def forks_of(model: torch.nn.Module, x: torch.Tensor, count: int) -> Iterator[Callable[[int], None]]:
    """Give what has so many forks of this process call the model, each told by a pipe: what the machine itself can."""
    forks = [fork_of(model, x) for _ in range(count)]

    def ask(how_many: int) -> None:
        for _, tell, _ in forks[:how_many]:
            os.write(tell, b"x")
        for _, _, hear in forks[:how_many]:
            os.read(hear, 1)

    try:
        yield ask
    finally:
        for _, tell, _ in forks:
            os.close(tell)
        for pid, _, hear in forks:  # a fork has those of the ones before it, so each ends after the next
            os.waitpid(pid, 0)
            os.close(hear)


def fork_of(model: torch.nn.Module, x: torch.Tensor) -> tuple[int, int, int]:
    """Return a fork that calls the model for each byte, as (pid, where to write, where to read)."""
    their_read, tell = os.pipe()
    hear, their_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(tell)
        os.close(hear)
        while os.read(their_read, 1):
            model(x)
            os.write(their_write, b"y")
        os._exit(0)
    os.close(their_read)
    os.close(their_write)
    return pid, tell, hear


def by_threads(pool: ThreadPoolExecutor, models: list[torch.nn.Module], x: torch.Tensor) -> Callable[[], object]:
    def call(model: torch.nn.Module) -> None:
        with torch.no_grad():  # of each thread's own
            model(x)

    return lambda: list(pool.map(call, models))


def make_repo(folder: Path, count: int) -> Path:
    """Make a repository with tags v0, v1, ... that differ in a comment."""
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    for number in range(count):
        (folder / "hubconf.py").write_text(f"# version {number}\n{HUBCONF}")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", f"v{number}")
        git(folder, "tag", f"v{number}")
    return folder


def git(folder: Path, *args: str) -> None:
    subprocess.run(["git", *args], cwd=folder, env={**os.environ, **IDENTITY}, check=True, capture_output=True)


def url(repo: Path, ref: str) -> str:
    return f"git+file://{repo}@{ref}"


def megabytes(nbytes: float) -> float:
    return round(nbytes / 1e6, 1)


if __name__ == "__main__":
    run("branches", measure, __doc__)
