"""What a user would pick instead, each in an environment of its own.

    python benchmarks/rivals.py [FOLDER]

makes the environments (in `.venv/rivals` if no folder is named) and says which could not be had. They see the
torch of the interpreter that runs this, so that it is not installed again. A script that measures rivals
starts each as a process, tells it what to do over a pipe, and takes the times that it took itself;
`drivers/serve.py` is what runs there.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["RIVALS", "Driven", "RivalError", "Start", "drive"]

HERE = Path(__file__).parent
# Beside the environment that runs this, unless somebody says otherwise.
FOLDER = Path(os.environ.get("ISOHUB_BENCH_RIVALS", HERE.parent / ".venv" / "rivals"))


@dataclass(frozen=True)
class Rival:
    """One way to do what isohub does.

    Attributes:
        driver: Its module in `drivers/`, and what that is told.
        package: What is installed for it; None for what comes with torch or with isohub.
    """

    driver: tuple[str, ...]
    package: str | None = None


RIVALS = {
    "torch.multiprocessing, spawn, descriptors": Rival(("torch_processes", "spawn", "file_descriptor")),
    "torch.multiprocessing, spawn, files": Rival(("torch_processes", "spawn", "file_system")),
    "torch.multiprocessing, forkserver": Rival(("torch_processes", "forkserver", "file_descriptor")),
    "multiprocess": Rival(("multiprocess_pipe",)),
    "pyisolate": Rival(("pyisolate_extension",), "pyisolate"),
    "Appose": Rival(("appose_service",), "appose"),
    "Ray": Rival(("ray_actor", "plain"), "ray"),
    "Ray, zero-copy": Rival(("ray_actor", "zero-copy"), "ray"),
}


class RivalError(Exception):
    """A rival could not do what it was told."""


class Driven:
    """A rival that runs.

    Attributes:
        version: Of its package.
    """

    def __init__(self, name: str) -> None:
        rival = RIVALS[name]
        self.name = name
        self._process = subprocess.Popen(
            [_python(rival), HERE / "drivers" / "serve.py", *rival.driver],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if "ISOHUB_BENCH_DEBUG" not in os.environ else None,
            text=True,
            # It must find what it needs in its own environment.
            env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        )
        if self._process.stderr is not None:
            os.set_inheritable(self._process.stderr.fileno(), False)
            _drain(self._process.stderr)
        try:
            self.version = str(self.ask(do="version")["version"])
        except BaseException:
            self.close()
            raise

    def ask(self, **request: object) -> dict[str, object]:
        """Have it do something.

        Raises:
            RivalError: It could not, or it ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RivalError("it ended") from None
        line = self._process.stdout.readline()
        if not line:
            raise RivalError(f"it ended with status {self._process.wait()}")
        answer: dict[str, object] = json.loads(line)
        if "error" in answer:
            raise RivalError(str(answer["error"]))
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def call(self, case: str) -> _Call:
        """Return the variant of one case that this rival is."""
        return _Call(self, case)

    def start(self) -> Start:
        """Return the variant of starting one more worker that this rival is."""
        return Start(self)


@dataclass(frozen=True)
class _Call:
    driven: Driven
    case: str

    def timed(self, repeats: int) -> list[float]:
        return self.driven.ask(do="call", case=self.case, repeats=repeats)["times"]  # type: ignore[return-value]


@dataclass
class Start:
    """Starts workers, and ends each when the clock does not run.

    Attributes:
        private_bytes: Memory that each had for itself.
    """

    driven: Driven
    private_bytes: list[int] = field(default_factory=list)

    def timed(self, repeats: int) -> list[float]:
        answer = self.driven.ask(do="start", repeats=repeats)
        self.private_bytes += answer["private_bytes"]  # type: ignore[arg-type]
        return answer["times"]  # type: ignore[return-value]


@contextlib.contextmanager
def drive(notes: list[str], names: list[str] | None = None) -> Iterator[dict[str, Driven]]:
    """Run the rivals that can be had; of the others, a line each is added to `notes`."""
    found: dict[str, Driven] = {}
    with contextlib.ExitStack() as stack:
        for name in names or RIVALS:
            try:
                found[name] = Driven(name)
            except (RivalError, OSError) as error:
                notes.append(f"left out: {name}: {error}")
                continue
            stack.callback(found[name].close)
        yield found


def _python(rival: Rival) -> str:
    if rival.package is None:
        return sys.executable
    path = FOLDER / rival.package / "bin" / "python"
    if not path.exists():
        raise RivalError("it is not installed; python benchmarks/rivals.py does that")
    return str(path)


def _drain(stream) -> None:

    def read() -> None:
        with stream:
            for _ in stream:
                pass

    threading.Thread(target=read, daemon=True).start()


def install(folder: Path) -> None:
    """Make the environments that are missing, and say what came of it."""
    for package in dict.fromkeys(rival.package for rival in RIVALS.values() if rival.package):
        home = folder / package
        done = home / ".installed"
        if done.exists():
            print(f"{package}: is there")
            continue
        python = home / "bin" / "python"
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True, capture_output=True)
            # Its own packages come first; torch and numpy are those of this interpreter.
            asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
            site = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
            Path(site, "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            print(f"{package}: left out, it cannot be installed: {' '.join(map(str, why))}")
            continue
        done.touch()
        print(f"{package}: installed")


if __name__ == "__main__":
    install(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else FOLDER)
