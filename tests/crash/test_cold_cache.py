"""Many processes and threads that load the same and different repositories with nothing in the cache.

torch.hub fails in most such loads, and runs another repository's code in some.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.githost import GitHost
from tests.helpers.programs import Program
from tests.helpers.repos import git, make_repo
from tests.helpers.versions import version_files

# The full size, 8 processes and 20 rounds, takes minutes: set these for it.
PROCESSES = int(os.environ.get("ISOHUB_COLD_PROCESSES", "4"))
ROUNDS = int(os.environ.get("ISOHUB_COLD_ROUNDS", "3"))
# Each of four threads loads every ref, in an order of its own, once it is told a folder for the round.
SCRIPT = """
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor

import torch
import isohub
from isohub import api

address, refs, seed = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
# The message of a download, which nothing mutes, goes elsewhere than what is told here.
told, sys.stdout = sys.stdout, sys.stderr


def main():
    api._registry.warm_up()
    together = threading.Barrier(4)

    def work(number):
        together.wait(60)
        start = (seed + number) % len(refs)
        wrong = []
        for text, value in (*refs[start:], *refs[:start]):
            try:
                model = isohub.load(text, "net", git_host=address, trust_repo=True, verbose=False)
                if (answer := model(torch.tensor([1.0, 10.0])).tolist()) != [value, value * 10]:
                    wrong.append(f"{text} gave {answer}")
            except BaseException as error:
                wrong.append(f"{text} raised {error!r}")
        return wrong

    print(json.dumps("ready"), file=told, flush=True)
    for line in sys.stdin:
        isohub.set_dir(line.strip())
        with ThreadPoolExecutor(4) as pool:
            wrong = [each for found in pool.map(work, range(4)) for each in found]
        for worker in isohub.workers():
            worker.close()
        print(json.dumps(wrong), file=told, flush=True)


main()
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHost]:
    for name in ("GITHUB_TOKEN", "ISOHUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with GitHost() as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * ROUNDS)
def test_22_cold_cache(host: GitHost, tmp_path: Path):
    """No load fails, none gives another repository's answer, and each commit is downloaded once a round."""
    # Names that are one and the same to torch.hub: a_b at c, and a at b_c.
    refs: list[tuple[str, float]] = []
    commits = []
    for index, (name, tags) in enumerate([("o/a_b", ("c", "d")), ("o/a", ("b_c", "b_d")), ("o/other", ("v1", "v2"))]):
        versions = {tag: version_files(2 * index + number + 1) for number, tag in enumerate(tags)}
        repo = make_repo(tmp_path / f"repo{index}", versions)
        host.add(name, repo)
        refs += [(f"{name}:{tag}", 2.0 * index + number + 1) for number, tag in enumerate(tags)]
        commits += [git(repo, "rev-parse", tag) for tag in tags]
    programs = []
    try:
        for number in range(PROCESSES):
            arguments = ["-c", SCRIPT, host.url, json.dumps(refs), str(number)]
            programs.append(Program(arguments, tmp_path / f"temporary{number}"))
        assert [program.told() for program in programs] == ["ready"] * PROCESSES
        for turn in range(ROUNDS):
            host.forget()
            for program in programs:
                assert program.process.stdin is not None
                program.process.stdin.write(f"{tmp_path / f'home{turn}'}\n")
                program.process.stdin.flush()

            assert [program.told() for program in programs] == [[]] * PROCESSES

            paths = [request.path for request in host.requests if "/archive/" in request.path]
            downloads = Counter(path.rpartition("/")[2].removesuffix(".zip") for path in paths)
            assert downloads == dict.fromkeys(commits, 1)
        assert [program.end()[0] for program in programs] == [0] * PROCESSES
    finally:
        for program in programs:
            program.close()
