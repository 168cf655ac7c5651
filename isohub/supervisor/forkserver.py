"""How the forkserver is started: its command line and its environment, and the workers' environment.

The forkserver is a fresh interpreter of our own that has imported torch once; every worker is forked
from it. It is started by exec with a small environment, since what a process was started with stays
readable in `/proc/self/environ` whatever it deletes later.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["command", "forkserver_environment", "worker_environment"]

# Imported in the forkserver, in this order; the second is named, not imported: nobody imports `worker`.
PRELOAD = ("torch", "isohub.worker.warm")

# What a worker takes over from this process: where programs, homes, temporary files and certificates
# are, language and time zone, proxies, and the knobs of torch's own ecosystem. Nothing else: a program's
# environment holds its secrets.
_NAMES = frozenset(
    [
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "NO_COLOR",
        "PATH",
        "PYTHONHASHSEED",
        "REQUESTS_CA_BUNDLE",
        "SHELL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "TERM",
        "TMPDIR",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "all_proxy",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "ALL_PROXY",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
    ]
)
_PREFIXES = (
    "LC_", "XDG_", "CUDA_", "NVIDIA_", "TORCH", "PYTORCH_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_",
    "NUMEXPR_", "ATEN_", "HF_", "TRANSFORMERS_", "TIMM_",
)  # fmt: skip
_SECRETS = ("TOKEN", "SECRET", "PASSWORD", "KEY")

# What the forkserver itself is started with, of these and no more.
_START_NAMES = frozenset(("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TMPDIR", "TZ"))


def worker_environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return a worker's environment: the allowed part of this process's, and then `changes`."""
    environment = {name: value for name, value in os.environ.items() if _allowed(name)}
    for name, value in changes.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    return environment


def forkserver_environment() -> dict[str, str]:
    """Return the environment that the forkserver is started with."""
    environment = {name: os.environ[name] for name in _START_NAMES if name in os.environ}
    # A forkserver that ran one parallel region would make its children hang in theirs. Workers set
    # their own numbers after the fork. OpenBLAS and OpenMP read these when they are loaded.
    environment.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    return environment


def command(server: str, listener_fd: int, alive_fd: int) -> list[str]:
    """Return the command line of a forkserver.

    Args:
        server: Name of the module whose `main(listener_fd, alive_fd, preload)` serves.
        listener_fd: A listening socket that it inherits.
        alive_fd: A pipe that it inherits and that ends when this process ends.
    """
    program = (
        # What is imported stays: a collector that looks through all of it on the way takes a tenth of the time.
        "import gc, sys; gc.disable(); "
        # With `-c` the current folder comes first; a user's own modules are none of a worker's business.
        "sys.path[:] = [p for p in sys.path if p]; "
        f"sys.path += [p for p in {_needed_paths()!r} if p not in sys.path]; "
        f"from {server} import main; "
        f"main({listener_fd}, {alive_fd}, {list(PRELOAD)!r})"
    )
    optimize = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    return [sys.executable, *optimize, "-c", program]


def _needed_paths() -> list[str]:
    """Return the folders that hold what a worker needs, in case only this process's path leads there."""
    found: list[str] = []
    for name in ("isohub", "multiprocess", "dill", "cloudpickle", "torch"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folder = str(Path(spec.origin).resolve().parent.parent)
            if folder not in found:
                found.append(folder)
    return found


def _allowed(name: str) -> bool:
    if any(word in name.upper() for word in _SECRETS):
        return False
    return name in _NAMES or name.startswith(_PREFIXES)
