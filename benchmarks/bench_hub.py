"""What it takes to bring a repository's files, against torch.hub, from a server 20 ms away.

    python benchmarks/bench_hub.py [--busy] [--quick | --save]

A server on loopback with the URLs of GitHub, behind a proxy that adds 20 ms to each round trip. Cold is into
an empty hub folder; warm is the second load of the same ref. `isolate=False` for isohub: both run the same
entrypoint in this process. torch.hub is told by `skip_validation=True` not to ask whether the ref is a
fork's, which saves it a request, and takes its archive from the same server. What differs: isohub asks git's own list
what the ref stands for, keys the files by the full commit and checks them; torch.hub does not look at the
server again once it has a folder of that name.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import torch
from common import ROOT, Options, Result, interleave, run
from latency import delayed

import isohub

sys.path.insert(0, str(ROOT))

from tests.helpers.githost import GitHost
from tests.helpers.repos import make_repo

LATENCY_S = 0.020
HUBCONF = "def nothing():\n    return None\n"
# Name, number of files, bytes of each.
REPOS = {"2 files": (1, 100), "500 files, 5 MB": (499, 10_000)}


def measure(options: Options, result: Result) -> None:
    for name in ("ISOHUB_OFFLINE", "ISOHUB_LOCK", "ISOHUB_LOCK_WRITE", "ISOHUB_REF_TTL_S"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as folder, GitHost() as host:
        address, _, port = host.name.partition(":")
        with delayed(address, int(port), LATENCY_S) as far:
            url = f"http://127.0.0.1:{far}"
            redirect_torch_hub(url)
            for number, (what, (count, nbytes)) in enumerate(REPOS.items()):
                files: dict[str, str | bytes] = {
                    f"data/{index}.bin": os.urandom(nbytes // 2).hex() for index in range(count)
                }
                repo = make_repo(Path(folder, str(number)), {"v1": {"hubconf.py": HUBCONF, **files}})
                host.add(f"owner/name{number}", repo)
                measure_repo(what, f"owner/name{number}:v1", url, Path(folder), host, options=options, result=result)


def measure_repo(
    what: str, text: str, url: str, folder: Path, host: GitHost, *, options: Options, result: Result
) -> None:
    def with_isohub(**more: bool) -> None:
        isohub.load(text, "nothing", git_host=url, isolate=False, trust_repo=True, verbose=False, **more)

    def with_torch_hub() -> None:
        torch.hub.load(text, "nothing", trust_repo=True, skip_validation=True, verbose=False)

    programs: dict[str, Callable[[], None]] = {"isohub": with_isohub, "torch.hub": with_torch_hub}
    cold = {name: InNewFolder(program, folder) for name, program in programs.items()}
    samples = interleave(cold, rounds=options.rounds(12), warm_up=1, budget_s=20)
    keep(f"{what}: cold", samples, result)
    for name, variant in cold.items():
        host.forget()
        variant.timed(1)
        result.measures[f"{what}: cold, requests, {name}"] = host.count()
    # From here on in one folder, which both know.
    isohub.set_dir(tempfile.mkdtemp(dir=folder))
    warm = programs | {"isohub, asking the server again": lambda: with_isohub(force_reload=True)}
    keep(f"{what}: warm", interleave(warm, rounds=options.rounds(30), warm_up=1, budget_s=10), result)
    host.forget()
    with_isohub()
    result.measures[f"{what}: warm, requests, isohub"] = host.count()


def keep(what: str, samples, result: Result) -> None:
    result.samples[what] = samples
    result.ratio(f"{what}: isohub / torch.hub", samples["isohub"].median_s, samples["torch.hub"].median_s)


class InNewFolder:
    """Runs with an empty hub folder each time, which is made before the clock runs."""

    def __init__(self, program: Callable[[], None], folder: Path) -> None:
        self._program, self._folder = program, folder

    def timed(self, repeats: int) -> list[float]:
        found: list[float] = []
        for _ in range(repeats):
            isohub.set_dir(tempfile.mkdtemp(dir=self._folder))
            found += interleave({"": self._program}, rounds=1, warm_up=0)[""].times_s
        return found


def redirect_torch_hub(url: str) -> None:
    """Have torch.hub, which knows one server only, ask ours."""

    def urlopen(request: str | urllib.request.Request):
        asked = request if isinstance(request, str) else request.full_url
        found = re.fullmatch(r"https://github\.com/(.+)/zipball/(?:refs/tags/)?(.+)", asked)
        assert found is not None, f"torch.hub asks for {asked}, which this script does not know"
        return urllib.request.urlopen(f"{url}/{found[1]}/archive/{found[2]}.zip")

    torch.hub.urlopen = urlopen


if __name__ == "__main__":
    run("hub", measure, __doc__)
