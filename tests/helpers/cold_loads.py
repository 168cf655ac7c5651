"""Processes and threads that load every ref of three repositories at once, with nothing in the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.githost import GitHost
from tests.helpers.programs import Program
from tests.helpers.repos import git, make_repo
from tests.helpers.versions import version_files
from tests.helpers.warm import WarmPython

__all__ = ["PROCESSES", "THREADS", "ColdRepos", "Loads", "cold_loads", "rounds"]

# The full size, 8 processes and 20 rounds, takes minutes: set these for it.
PROCESSES = int(os.environ.get("ISOHUB_COLD_PROCESSES", "4"))
THREADS = 4
# Each thread loads every ref, in an order of its own, once it is told a folder for the round.
_SCRIPT = """
import json, os, sys, threading
from concurrent.futures import ThreadPoolExecutor

import torch
import isohub
from isohub import api
from isohub.hub import http

address, refs, seed, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
http._BACKOFF_S = 0.01
# The message of a download, which nothing mutes, goes elsewhere than what is told here; and all that is logged
# to a file, since twenty rounds of trouble fill a pipe that nobody reads.
told, sys.stdout = sys.stdout, sys.stderr
os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)


def main():
    api._registry.warm_up()
    together = threading.Barrier(threads)

    def work(number):
        together.wait(60)
        start = (seed + number) % len(refs)
        found = []
        for text, value in (*refs[start:], *refs[:start]):
            try:
                model = isohub.load(text, "net", git_host=address, trust_repo=True, verbose=False)
                if (answer := model(torch.tensor([1.0, 10.0])).tolist()) != [value, value * 10]:
                    found.append((text, "wrong", f"gave {answer}"))
            except isohub.errors.FetchError as error:
                found.append((text, type(error).__name__, str(error)))
            except BaseException as error:
                found.append((text, "wrong", f"raised {error!r}"))
        return found

    print(json.dumps("ready"), file=told, flush=True)
    for line in sys.stdin:
        isohub.set_dir(line.strip())
        with ThreadPoolExecutor(threads) as pool:
            found = [each for one in pool.map(work, range(threads)) for each in one]
        for worker in isohub.workers():
            worker.close()
        print(json.dumps(found), file=told, flush=True)


main()
"""


def rounds(usual: int) -> int:
    """Return how many rounds to go: `usual`, if the variable for the full size is not set."""
    return int(os.environ.get("ISOHUB_COLD_ROUNDS", usual))


class ColdRepos:
    """Three repositories with two versions each; the names of two are one and the same to torch.hub.

    Attributes:
        refs: What to load, and by what its `net` multiplies.
        commits: The commit of each, in the same order.
        files: What each commit has in it.
    """

    def __init__(self, folder: Path) -> None:
        self.refs: list[tuple[str, float]] = []
        self.commits: list[str] = []
        self.files: dict[str, dict[str, str]] = {}
        self._repos: dict[str, Path] = {}
        # a_b at c, and a at b_c
        for index, (name, tags) in enumerate(
            [("o/a_b", ("c", "d")), ("o/a", ("b_c", "b_d")), ("o/other", ("v1", "v2"))]
        ):
            versions = {tag: version_files(2 * index + number + 1) for number, tag in enumerate(tags)}
            self._repos[name] = repo = make_repo(folder / f"repo{index}", versions)
            self.refs += [(f"{name}:{tag}", 2.0 * index + number + 1) for number, tag in enumerate(tags)]
            self.commits += [git(repo, "rev-parse", tag) for tag in tags]
            self.files |= {
                git(repo, "rev-parse", tag): {"hubconf.py": git(repo, "show", f"{tag}:hubconf.py")} for tag in tags
            }

    def put_on(self, host: GitHost, **settings: Any) -> None:
        """Have them on a server, as `GitHost.add` does."""
        for name, repo in self._repos.items():
            host.add(name, repo, **settings)

    def kept(self, home: Path) -> dict[str, dict[str, str]]:
        """Return the files of each commit that the cache in `home` holds."""
        return {
            place.name: {
                str(path.relative_to(place / "files")): path.read_text().strip()
                for path in (place / "files").rglob("*")
                if path.is_file()
            }
            for place in (home / "isohub" / "checkouts").glob("*/*/*/*")
            if place.is_dir()
        }


class Loads:
    """The processes. `tell` starts a round in some of them, `found` waits for what they found.

    Attributes:
        programs: One for each.
        repos: What they load.
    """

    def __init__(self, python: WarmPython, host: GitHost, repos: ColdRepos, folder: Path, *, tokens: list[str]) -> None:
        self.programs: list[Program] = []
        self._python = python
        self.repos = repos
        self._host, self._folder = host, folder
        self._tokens = tokens
        try:
            for number in range(PROCESSES):
                self.programs.append(self._start(number))
            self._are_ready(self.programs)
        except BaseException:
            self.close()
            raise

    def tell(self, home: Path, numbers: range = range(PROCESSES)) -> None:
        """Have these processes load everything, with their cache in `home`."""
        for number in numbers:
            stdin = self.programs[number].process.stdin
            assert stdin is not None
            stdin.write(f"{home}\n")
            stdin.flush()

    def found(self, *numbers: int) -> list[tuple[str, str, str]]:
        """Wait for the end of the round in these processes; return which loads failed or were wrong, and why."""
        return [tuple(each) for number in numbers or range(PROCESSES) for each in self.programs[number].told()]

    def kill(self, number: int) -> None:
        """Kill a process by SIGKILL."""
        self.programs[number].close()

    def replace(self, numbers: set[int]) -> None:
        """Start processes anew that were killed."""
        for number in numbers:
            self.programs[number] = self._start(number)
        self._are_ready([self.programs[number] for number in numbers])

    def end(self) -> list[int]:
        """Let all come to their end; return their exit statuses."""
        return [program.end()[0] for program in self.programs]

    def close(self) -> None:
        for program in self.programs:
            program.close()

    def _start(self, number: int) -> Program:
        arguments = ["-c", _SCRIPT, self._host.url, json.dumps(self.repos.refs), str(number), str(THREADS)]
        variables = {
            "OMP_NUM_THREADS": "1", "GITHUB_SERVER_URL": self._host.url, "GITHUB_TOKEN": self._tokens[number],
        }  # fmt: skip
        return Program(arguments, self._folder / f"temporary{number}", variables=variables, python=self._python)

    def _are_ready(self, programs: list[Program]) -> None:
        assert [program.told() for program in programs] == ["ready"] * len(programs)


@contextmanager
def cold_loads(
    python: WarmPython, host: GitHost, repos: ColdRepos, folder: Path, *, tokens: list[str]
) -> Iterator[Loads]:
    """Start the processes, with a GITHUB_TOKEN for each."""
    loads = Loads(python, host, repos, folder, tokens=tokens)
    try:
        yield loads
    finally:
        loads.close()
