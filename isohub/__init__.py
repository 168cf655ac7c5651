"""isohub: models from hub repositories, each ref in a worker process of its own.

Importing this package imports nothing else, not even torch; a name is brought when it is first used.
"""

from __future__ import annotations

# Type checkers take it for true. `typing` itself would take ten times as long as all the rest.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from isohub import errors
    from isohub.api import Repo, help, list, load, shutdown, workers
    from isohub.authoring import pretrained
    from isohub.comparison.bisect import bisect
    from isohub.comparison.finding import Bisection
    from isohub.comparison.report import Comparison
    from isohub.comparison.run import compare
    from isohub.hub.directories import get_dir, set_dir
    from isohub.hub.download import download_url_to_file
    from isohub.hub.weights import load_state_dict_from_url
    from isohub.model.acall import acall
    from isohub.model.gather import gather
    from isohub.model.module import IsolatedModule
    from isohub.model.objects import RemoteObject, run_in
    from isohub.model.saving import save
    from isohub.options import Isolation
    from isohub.refs import RepoRef
    from isohub.reserve import warm
    from isohub.supervisor.deadlines import deadline
    from isohub.supervisor.worker import Worker
    from isohub.telemetry.metadata import set_metadata_hook

__all__ = [
    "Bisection",
    "Comparison",
    "IsolatedModule",
    "Isolation",
    "RemoteObject",
    "Repo",
    "RepoRef",
    "Worker",
    "__version__",
    "acall",
    "bisect",
    "compare",
    "deadline",
    "download_url_to_file",
    "errors",
    "gather",
    "get_dir",
    "help",
    "list",
    "load",
    "load_state_dict_from_url",
    "pretrained",
    "run_in",
    "save",
    "set_dir",
    "set_metadata_hook",
    "shutdown",
    "warm",
    "workers",
]

_HOMES = {
    "Bisection": "isohub.comparison.finding",
    "Comparison": "isohub.comparison.report",
    "IsolatedModule": "isohub.model.module",
    "Isolation": "isohub.options",
    "RemoteObject": "isohub.model.objects",
    "Repo": "isohub.api",
    "RepoRef": "isohub.refs",
    "Worker": "isohub.supervisor.worker",
    "acall": "isohub.model.acall",
    "bisect": "isohub.comparison.bisect",
    "compare": "isohub.comparison.run",
    "deadline": "isohub.supervisor.deadlines",
    "download_url_to_file": "isohub.hub.download",
    "gather": "isohub.model.gather",
    "get_dir": "isohub.hub.directories",
    "help": "isohub.api",
    "list": "isohub.api",
    "load": "isohub.api",
    "load_state_dict_from_url": "isohub.hub.weights",
    "pretrained": "isohub.authoring",
    "run_in": "isohub.model.objects",
    "save": "isohub.model.saving",
    "set_dir": "isohub.hub.directories",
    "set_metadata_hook": "isohub.telemetry.metadata",
    "shutdown": "isohub.api",
    "warm": "isohub.reserve",
    "workers": "isohub.api",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "errors":
        return importlib.import_module("isohub.errors")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("isohub")
    if name not in _HOMES:
        raise AttributeError(f"module 'isohub' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:  # type: ignore[valid-type]
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING"})
