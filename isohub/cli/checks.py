"""What `isohub doctor` looks at, each as a function that returns what it found and what to do about it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import platform
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

__all__ = ["Finding", "findings"]

_PR_GET_PDEATHSIG = 2
# A worker takes seven of this process's descriptors, and a segment one for a moment.
_FEW_DESCRIPTORS = 256
_LITTLE_SPACE_BYTES = 1 << 30
_LEAST_TORCH = (2, 4)
_SLOW_START_S = 30.0
_HUBCONF = "import torch\n\ndef one():\n    return torch.ones(2)\n"

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at.
        state: `"ok"`; `"warning"` where something will not work, or not well; `"failed"` where nothing will.
        found: What there is.
        advice: What to do; empty if it is ok.
    """

    check: str
    state: State
    found: str
    advice: str = ""


def findings() -> Iterator[Finding]:
    """Look at everything, one after the other; a check that itself fails is a finding as well."""
    for name, look in CHECKS.items():
        try:
            state, found, advice = look()
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to that check, and others follow
            state, found, advice = "failed", f"{type(error).__name__}: {error}", _ADVICE.get(name, _REPORT)
        yield Finding(check=name, state=state, found=found, advice="" if state == "ok" else advice)


_Found = tuple[State, str, str]
_REPORT = "this is not expected: please report it with all that this command prints"
_ADVICE = {
    "system": "isohub needs Linux 5.3 or newer",
    "memory that is sealed": "isohub needs memfd_create with seals (Linux 3.17); a sandbox around this process may "
    "forbid it",
    "process descriptors": "isohub needs pidfd_open (Linux 5.3); a sandbox around this process may forbid it",
    "equal weights": "weights that several workers have are kept once for each: that needs Linux 5.19 or newer, and a "
    "sandbox around this process that allows userfaultfd",
    "/proc": "mount /proc in this container: the forkserver's socket is reached by it",
    "torch": "install torch 2.4 or newer in the interpreter that runs isohub",
    "worker": "the lines above that are not ok are the likely cause; ISOHUB_LOG=1 and ISOHUB_DEBUG=1 show how far it "
    "came",
    "cache": "set TORCH_HOME to a folder that you may write to",
}


def _system() -> _Found:
    found = f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}"
    return ("ok" if platform.system() == "Linux" else "failed"), found, _ADVICE["system"]


def _sealed_memory() -> _Found:
    from isohub.shm.segment import Segment, create_memfd

    fd = create_memfd(4096)
    try:
        Segment(1, fd, 4096)
        with contextlib.suppress(PermissionError):
            os.ftruncate(fd, 0)
            return "failed", "a sealed memfd can be cut short", _ADVICE["memory that is sealed"]
    finally:
        os.close(fd)
    return "ok", "memfd_create, seals, mapping", ""


def _process_descriptors() -> _Found:
    pidfd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(pidfd, 0)
    finally:
        os.close(pidfd)
    return "ok", "pidfd_open, pidfd_send_signal", ""


def _inherited_death() -> _Found:
    found = ctypes.c_int()
    if ctypes.CDLL(None).prctl(_PR_GET_PDEATHSIG, ctypes.byref(found), 0, 0, 0):
        return "failed", "prctl(PR_GET_PDEATHSIG) is refused", "workers would outlive a killed program: allow prctl"
    return "ok", "PR_SET_PDEATHSIG", ""


def _proc() -> _Found:
    if not Path("/proc/self/fd").is_dir():
        return "failed", "not there", _ADVICE["/proc"]
    if not Path("/proc/self/smaps_rollup").exists():
        return "warning", "no smaps_rollup", "memory of workers cannot be told (Linux 4.14 has it)"
    return "ok", "mounted, with smaps_rollup", ""


def _equal_weights() -> _Found:
    from isohub.supervisor.watching import Watcher

    try:
        Watcher().close()
    except OSError as error:
        return "warning", str(error), _ADVICE["equal weights"]
    return "ok", "userfaultfd with write protection, so that workers can share them", ""


def _limits() -> _Found:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    told = ", ".join(
        f"{name} {_limit(value)}" for name, value in (("files", files), ("file size", size), ("as", space))
    )
    if size != resource.RLIM_INFINITY or space != resource.RLIM_INFINITY:
        return "warning", told, "a limit of file sizes or address space (ulimit -f, -v) holds for shared memory too"
    if files != resource.RLIM_INFINITY and files < _FEW_DESCRIPTORS:
        return "warning", told, f"a worker takes seven descriptors: raise ulimit -n to {_FEW_DESCRIPTORS} or more"
    return "ok", told, ""


def _memory() -> _Found:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kilobytes = {parts[0].rstrip(":"): int(parts[1]) for parts in lines}
    strict = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    found = f"{kilobytes['MemAvailable'] / 1e6:.1f} of {kilobytes['MemTotal'] / 1e6:.1f} GB available"
    if strict:
        advice = "forks are charged for memory that they share: without vm.overcommit_memory=2 more workers fit"
        return "warning", f"{found}, overcommit is off", advice
    return "ok", found, ""


def _torch() -> _Found:
    start = time.perf_counter()
    # By name: the command line itself has nothing to do with torch.
    torch: Any = importlib.import_module("torch")
    took_s = time.perf_counter() - start
    text = str(torch.__version__)
    found = f"torch {text}, {torch.get_num_threads()} threads, imported in {took_s:.1f} s"
    numbers = tuple(int(part) for part in text.partition("+")[0].split(".", 2)[:2])
    return ("ok" if numbers >= _LEAST_TORCH else "failed"), found, _ADVICE["torch"]


def _packages() -> _Found:
    found, missing = [], []
    for name in ("isohub", "msgspec", "multiprocess", "cloudpickle", "filelock", "requests"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    told = ", ".join(found)
    return (
        ("warning", f"{told}; not installed: {', '.join(missing)}", "reinstall isohub") if missing else ("ok", told, "")
    )


def _worker() -> _Found:
    import isohub

    with tempfile.TemporaryDirectory(prefix="isohub-doctor-") as folder:
        Path(folder, "hubconf.py").write_text(_HUBCONF)
        own = isohub.Isolation(dedicated=True, timeout_s=60)
        times_s = []
        for _ in range(2):  # the first one starts the forkserver
            start = time.perf_counter()
            isohub.load(Path(folder), "one", isolate=own)
            times_s.append(time.perf_counter() - start)
        isohub.shutdown()
    found = f"the first answers in {times_s[0]:.1f} s, a further one in {times_s[1] * 1e3:.0f} ms"
    slow = times_s[0] > _SLOW_START_S
    advice = "torch is slow to import: a local disk helps, and Isolation(start_timeout_s=...) may have to be longer"
    return ("warning" if slow else "ok"), found, advice


def _cache() -> _Found:
    from isohub.hub.directories import get_dir

    folder = Path(get_dir())
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        return "warning", f"{folder} cannot be written to", "only what is there can be loaded: set TORCH_HOME"
    import fcntl

    with tempfile.TemporaryFile(dir=there) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    free_bytes = shutil.disk_usage(there).free
    found = f"{folder}, {free_bytes / 1e9:.1f} GB free"
    if free_bytes < _LITTLE_SPACE_BYTES:
        return "warning", found, "weights need space: `isohub cache prune`, or TORCH_HOME on another disk"
    return "ok", found, ""


def _git() -> _Found:
    program = shutil.which("git")
    if program is None:
        advice = "without it there are no submodules, and nothing over ssh or from git+file: install git"
        return "warning", "not on PATH", advice
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=30)
    return "ok", f"{done.stdout.strip()}, {program}", ""


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


# In this order: what comes first is what the later ones stand on.
CHECKS: dict[str, Callable[[], _Found]] = {
    "system": _system,
    "memory that is sealed": _sealed_memory,
    "process descriptors": _process_descriptors,
    "inherited death": _inherited_death,
    "/proc": _proc,
    "equal weights": _equal_weights,
    "limits": _limits,
    "memory": _memory,
    "packages": _packages,
    "torch": _torch,
    "cache": _cache,
    "git": _git,
    "worker": _worker,
}
