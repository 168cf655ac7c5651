"""The command line: the real program where the process matters, its commands in this process elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from isohub.errors import EntrypointError, RemoteError
from tests.helpers.cli import PROGRAM, invoke, nothing_left, run
from tests.helpers.repos import make_repo, url, write_files
from tests.helpers.warm import WarmPython

pytestmark = pytest.mark.usefixtures("forkserver")

HUBCONF = """
    import sys
    import torch

    print("importing hubconf")

    def net(*args, **kwargs):
        '''A small network.

        Args:
            args: Anything.
        '''
        print("net got", args, kwargs)
        print("and says so", file=sys.stderr)
        model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))
        model[0].bias.requires_grad_(False)
        return model

    def silent():
        return {"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.float64)]}

    def fails():
        try:
            {}["first"]
        except KeyError as error:
            raise ValueError("it failed") from error

    class ModelError(ValueError):
        pass

    def fails_its_own_way():
        raise ModelError("in a way of its own")

    def hangs():
        import signal
        signal.pause()
"""
NAMES = ["ModelError", "fails", "fails_its_own_way", "hangs", "net", "silent"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of these tests, tag `v1`."""
    return make_repo(tmp_path_factory.mktemp("cli") / "owner" / "repo", {"v1": {"hubconf.py": HUBCONF}})


@pytest.fixture(scope="module")
def repo(folder: Path) -> str:
    """Its repo text."""
    return url(folder, "v1")


class TestStart:
    """What every start of the program costs, and says."""

    @pytest.mark.parametrize("option", ["--help", "--version"])
    def test_speed(self, option: str):
        """`--help` takes a few times as long as Python itself; with torch it would be dozens of times."""

        def best_s(*command: str) -> float:
            times = []
            for _ in range(3):
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], check=True, capture_output=True)
                times.append(time.perf_counter() - start)
            return min(times)

        assert best_s("-m", "isohub", option) < 15 * best_s("-c", "pass")

    def test_version(self):
        """`--version` tells the version of the installed package, and imports no torch for it."""
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "isohub", "--version"],
            capture_output=True,
            text=True,
            check=True,
        )

        assert f"isohub {version('isohub')}\n" == done.stdout
        modules = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
        assert set() == modules & {"torch", "numpy", "rich", "multiprocess"}

    def test_help_names_the_commands(self):
        """`--help` lists every command, in 80 columns."""
        done = run("--help")

        assert [done.returncode, done.stderr] == [0, ""]
        commands = [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line]
        expected = "list help load compare bisect export inspect lock prefetch ps doctor demo cache trust"
        assert commands == expected.split()
        assert "..." not in done.stdout.partition("Commands:")[2]
        assert max(map(len, done.stdout.splitlines())) <= 80

    def test_without_arguments(self):
        """Without a command there is help, and the exit code of a usage error."""
        done = run()

        assert done.returncode == 2
        assert "Usage: isohub" in done.stdout + done.stderr


class TestList:
    """`isohub list`."""

    def test_text(self, repo: str):
        """Stdout has one entrypoint a line and nothing else; what hubconf.py prints goes to stderr."""
        done = invoke("list", repo)

        assert [0, "".join(f"{name}\n" for name in NAMES)] == [done.exit_code, done.stdout]
        assert done.stderr == "importing hubconf\n"

    def test_json(self, folder: Path, repo: str):
        """`--json` names the repository, its commit and the entrypoints."""
        done = invoke("list", repo, "--json")

        found = json.loads(done.stdout)
        commit = subprocess.check_output(["git", "rev-parse", "v1"], cwd=folder, text=True).strip()
        assert {"repo": repo, "commit": commit, "entrypoints": NAMES} == found
        assert done.stderr == ""

    def test_folder(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        """A text that is an existing directory is a working tree, even one that looks like owner/name."""
        monkeypatch.chdir(folder.parents[1])

        done = invoke("list", "owner/repo", "--json")

        assert [json.loads(done.stdout)[key] for key in ("entrypoints", "commit")] == [NAMES, None]

    def test_source_wins(self, folder: Path):
        """With `--source github` a directory is no working tree."""
        done = invoke("list", str(folder), "--source", "github")

        assert [done.exit_code, done.stdout] == [1, ""]
        assert "is an existing directory" in done.stderr

    def test_broken_pipe(self, tmp_path: Path):
        """A reader that has enough ends the command in silence, with success."""
        # Long names: they are more than a pipe holds, so that the command writes to a closed one.
        names = sorted(f"{'entry' * 20}_{number}" for number in range(1502))
        hubconf = "\n".join(f"def {name}(): pass" for name in names)
        write_files(tmp_path, {"hubconf.py": hubconf})

        with nothing_left():
            done = subprocess.run(
                ["bash", "-c", 'set -o pipefail; "$@" | head -1', "-", *PROGRAM, "list", str(tmp_path)],
                capture_output=True,
                text=True,
                check=False,
            )

        assert [0, f"{names[0]}\n", ""] == [done.returncode, done.stdout, done.stderr]


class TestHelp:
    """`isohub help`."""

    def test_text(self, repo: str):
        """It prints the docstring, its common indentation taken away."""
        done = invoke("help", repo, "net")

        assert [done.exit_code, done.stdout] == [0, "A small network.\n\nArgs:\n    args: Anything.\n"]

    def test_none(self, repo: str):
        """An entrypoint without a docstring gets a line that says so, and null in JSON."""
        assert invoke("help", repo, "silent").stdout == "silent has no docstring.\n"
        found = json.loads(invoke("help", repo, "silent", "--json").stdout)
        assert {key: found[key] for key in ("entrypoint", "help")} == {"entrypoint": "silent", "help": None}

    def test_hostile(self, repo_of: Callable[..., str]):
        """A docstring cannot drive the terminal."""
        done = invoke("help", repo_of("def net():\n    '''\x1b[2Jgone'''\n"), "net")

        assert done.stdout == "?[2Jgone\n"


class TestLoad:
    """`isohub load`."""

    def test_json(self, repo: str):
        """`--json` prints one document with all figures, however much the repository prints."""
        done = invoke("load", repo, "net", "--json")

        found: dict[str, Any] = json.loads(done.stdout)
        worker = found.pop("worker")
        steps = found.pop("steps")
        del found["commit"]
        assert {
            "repo": repo,
            "ref": "v1",
            "entrypoint": "net",
            "type": "torch.nn.modules.container.Sequential",
            "parameters": 4 * 2 + 2 + 2 + 2,
            "trainable": 4 * 2 + 2 + 2,
            "tensors": 2 + 5,
            "dtypes": ["float32", "int64"],
            "weights_bytes": 4 * (14 + 4) + 8,
        } == found
        assert worker["pid"] != os.getpid()
        assert 0 < worker["private_bytes"] < worker["proportional_bytes"]
        names = ["cli.import", "hub.checkout", "hub.resolve", "hub.fetch", "model.load", "supervisor.launch"]
        names += ["supervisor.fork", "supervisor.prepare", "model.build"]
        names += ["worker.hubconf", "worker.entrypoint", "worker.export"]
        assert names == [step["name"] for step in steps]
        assert [step["depth"] for step in steps] == [0, 0, 1, 1, 0, 1, 2, 2, 1, 2, 2, 2]
        ends = [step["start_s"] + step["duration_s"] for step in steps]
        within = [step["start_s"] for step in steps[-3:]]
        assert [steps[-4]["start_s"], *within, ends[-4]] == sorted([steps[-4]["start_s"], *within, ends[-4]])
        assert all(step["duration_s"] > 0 for step in steps if step["name"] != "cli.import")
        assert done.stderr == ""

    def test_values(self, repo: str):
        """Values are read as JSON where they parse, else as text; every keyword reaches the entrypoint."""
        args = ("--arg", "3", "--arg", "[1, null]", "--arg", '"3"', "--arg", "some text", "--arg", "")
        kwargs = ("--kwarg", "source=local", "--kwarg", "lr=1e-3", "--kwarg", "verbose=false", "--kwarg", "a=b=c")

        done = invoke("load", repo, "net", *args, *kwargs)

        expected = (3, [1, None], "3", "some text", ""), {"source": "local", "lr": 1e-3, "verbose": False, "a": "b=c"}
        assert f"net got {expected[0]} {expected[1]}\n" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (("silent",), {"type": "dict", "parameters": None, "tensors": 2, "dtypes": ["float64", "float32"]}),
            (("net", "--returns", "state_dict"), {"type": "OrderedDict", "parameters": None, "tensors": 7}),
        ],
        ids=["plain data", "state_dict"],
    )
    def test_other_results(self, repo: str, arguments: tuple[str, ...], told: dict[str, object]):
        """What is no module is told of by its type and the tensors in it."""
        found = json.loads(invoke("load", repo, *arguments, "--json").stdout)

        assert told == {key: found[key] for key in told}

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--kwarg", "no_equals"),
            ("--kwarg", "=1"),
            ("--kwarg", "a=1", "--kwarg", "a=2"),
            ("--kwarg", "pretrained=False"),
            ("--arg", "None"),
            ("--threads", "0"),
            ("--threads", "many"),
            ("--timeout", "nan"),
            ("--returns", "everything"),
            ("--source", "nowhere"),
            ("too", "many"),
        ],
        ids=" ".join,
    )
    def test_usage(self, repo: str, arguments: tuple[str, ...]):
        """What cannot be read is a usage error: exit code 2, told on stderr, and nothing is loaded."""
        done = invoke("load", repo, "net", *arguments)

        assert [done.exit_code, done.stdout] == [2, ""]
        assert "importing hubconf" not in done.stderr
        assert done.stderr.startswith("Usage: ")

    def test_timeout(self, repo: str):
        """`--timeout` ends an entrypoint that takes too long."""
        done = invoke("load", repo, "hangs", "--timeout", "0.5")

        assert [done.exit_code, done.stdout] == [1, ""]
        assert "did not answer within 0.5 s" in done.stderr

    def test_program(self, repo: str, warm_python: WarmPython):
        """The real program prints the figures on stdout, what the repository prints on stderr, and is gone."""
        with nothing_left():
            done = run("load", repo, "net", "--threads", "1", python=warm_python)

        assert done.returncode == 0
        assert "importing hubconf\nnet got () {}\n" in done.stderr
        assert "and says so\n" in done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].startswith("net of owner/repo:v1@")
        assert "parameters     14 (12 trainable)" in lines
        assert "dtypes         float32, int64" in lines
        assert "  model.build" in [line.rstrip("0123456789. ") for line in lines]
        assert "\x1b" not in done.stdout
        assert "importing" not in done.stdout

    def test_interrupt(self, tmp_path: Path):
        """Ctrl-C ends the program with 130, without a traceback, and its worker with it."""
        fifo = tmp_path / "started"
        os.mkfifo(fifo)
        hubconf = """
            import signal

            def net(fifo):
                open(fifo, "w").close()
                signal.pause()
        """
        write_files(tmp_path / "repo", {"hubconf.py": hubconf})
        command = [*PROGRAM, "load", str(tmp_path / "repo"), "net", "--arg", str(fifo)]
        with (
            nothing_left(),
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        ):
            fifo.read_text()  # returns once the entrypoint runs
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)

        assert [process.returncode, out, err] == [130, "", ""]


class TestErrors:
    """How errors are told: exit code 1, one message on stderr, nothing on stdout."""

    def test_builtin(self, repo: str):
        """An error of the repository's code is told with its type, message and last frame."""
        done = invoke("load", repo, "fails", "--json")

        assert [done.exit_code, done.stdout] == [1, ""]
        first, frame, source, rest = done.stderr.splitlines()
        assert first == "error: the repository's code raised ValueError: it failed"
        assert frame.endswith(", in fails")
        assert source == '    raise ValueError("it failed") from error'
        assert "--traceback" in rest

    def test_own_class(self, repo: str):
        """An exception class of the repository's own is told by its name there."""
        done = invoke("load", repo, "fails_its_own_way", "--json")

        assert done.exit_code == 1
        assert "error: the repository's code raised hubconf.ModelError: in a way of its own" in done.stderr

    @pytest.mark.parametrize("command", [("help",), ("load", "--json")], ids="-".join)
    def test_no_entrypoint(self, repo: str, command: tuple[str, ...]):
        """A missing entrypoint is named, with those that there are."""
        done = invoke(command[0], repo, "nett", *command[1:])

        assert [done.exit_code, done.stdout] == [1, ""]
        (line,) = [line for line in done.stderr.splitlines() if line != "importing hubconf"]
        assert line.startswith("error: ")
        assert "nett" in line
        assert "silent" in line

    @pytest.mark.parametrize("repo_text", ["git+file:///nowhere/at/all@v1", "no repository", "x\0y", "x" * 5000])
    def test_no_repository(self, repo_text: str):
        """A repo text that leads nowhere is one message."""
        done = invoke("list", repo_text)

        assert [done.exit_code, done.stdout] == [1, ""]
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr

    def test_no_hubconf(self, tmp_path: Path):
        """A folder without hubconf.py is one message that names the file."""
        done = invoke("list", str(tmp_path))

        place = tmp_path / "hubconf.py"
        expected = f"error: [Errno 2] No hubconf.py in {tmp_path}: No such file or directory: '{place}'\n"
        assert [1, "", expected] == [done.exit_code, done.stdout, done.stderr]

    def test_traceback(self, repo: str):
        """With `--traceback` or ISOHUB_DEBUG=1 the exception itself comes out, the worker's traceback with it."""
        by_option = invoke("load", repo, "fails", "--traceback")
        by_variable = invoke("load", repo, "nett", ISOHUB_DEBUG="1")

        assert [by_option.exit_code, by_variable.exit_code] == [1, 1]
        assert isinstance(by_option.exception, ValueError)
        assert isinstance(by_option.exception.__cause__, RemoteError)
        assert "KeyError: 'first'" in by_option.exception.__cause__.remote_traceback
        assert isinstance(by_variable.exception, EntrypointError)
