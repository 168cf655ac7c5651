"""What came of trying a commit, and where that is kept, so that no commit is tried twice in the same way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from isohub.comparison.results import plain
from isohub.hub.cache import Cache

__all__ = ["Trial", "TrialCache", "key_of"]

_FOLDER = "comparisons"
_VERSION = 1
_SPECIAL = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One commit, tried.

    Attributes:
        commit: 40 hexadecimal digits.
        verdict: `"good"`, `"bad"`, or `"skipped"` if it could not be told.
        reason: Why, in a sentence.
        how: `"loaded"`; `"cached"` if an earlier run had loaded it; `"same files"` if another commit with exactly these
            files was.
        metrics: Figures against the good commit; empty if it was skipped.
        findings: What else there is to say.
        files: The files that it imported.
    """

    commit: str
    verdict: Literal["good", "bad", "skipped"]
    reason: str
    how: Literal["loaded", "cached", "same files"] = "loaded"
    metrics: dict[str, float | bool | None] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


class TrialCache:
    """Trials of earlier runs, each in a small file below isohub's cache.

    Args:
        conditions: All that a trial depends on but the commit, as `key_of` returns it.
        enabled: Whether to look there at all.
    """

    def __init__(self, conditions: str, *, enabled: bool = True) -> None:
        self._conditions = conditions
        self._enabled = enabled

    def find(self, commit: str) -> Trial | None:
        """Return what came of trying a commit; None if it was not tried, or what is kept cannot be read."""
        document = self._read(commit)
        try:
            if document is None or document["commit"] != commit:
                return None
            metrics = {name: _SPECIAL.get(value, value) for name, value in document["metrics"].items()}
            return Trial(**{**document, "how": "cached", "metrics": metrics})
        except (KeyError, TypeError, AttributeError):
            return None

    def keep(self, trial: Trial) -> None:
        """Keep what came of trying a commit; where that cannot be written nothing is kept."""
        if not self._enabled:
            return
        path = self._path(trial.commit)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, fresh = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            with os.fdopen(descriptor, "w") as file:
                json.dump({"version": _VERSION, "trial": plain(asdict(trial))}, file)
            Path(fresh).replace(path)

    def _read(self, commit: str) -> dict[str, Any] | None:
        if not self._enabled:
            return None
        try:
            document = json.loads(self._path(commit).read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(document, dict) or document.get("version") != _VERSION:
            return None
        return document.get("trial")

    def _path(self, commit: str) -> Path:
        return Cache().root / _FOLDER / self._conditions[:2] / self._conditions / f"{commit}.json"


def key_of(conditions: Mapping[str, Any]) -> str:
    """Return a hash of all that a trial depends on."""
    return hashlib.sha256(json.dumps(plain(dict(conditions)), sort_keys=True).encode()).hexdigest()
