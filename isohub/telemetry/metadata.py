"""Where a saved model comes from: the fields that go into its file, and the hook that adds further ones.

::

    TorchScript          an extra file `isohub.json`, one JSON object of texts
    exported programs    the same
    safetensors          `__metadata__`, each field under `isohub.<name>`

torch has `SetExportModuleExtraFilesHook` for organisations that mark every file that they make, for C++
alone; `set_metadata_hook` is its counterpart for Python. The hook runs in the program that loads, never in
a worker, which is only told what it returned.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

__all__ = ["EXTRA_FILE", "KEY_PREFIX", "NAMES", "Hook", "Metadata", "arguments_text", "fields_of", "set_metadata_hook"]

# The name within a TorchScript file or an exported program; a worker has the same in `worker.savers`.
EXTRA_FILE = "isohub.json"
# The names in a safetensors header, where every tool of that format puts its own side by side.
KEY_PREFIX = "isohub."

NAMES = ("host", "repo", "ref", "commit", "tree_hash", "entrypoint", "arguments", "torch", "python", "time")

Hook = Callable[[Mapping[str, str]], Mapping[str, str]]

_hook: Hook | None = None

_MAX_DEPTH = 4
_MAX_MEMBERS = 50
_MAX_TEXT = 200
_MAX_ARGUMENTS = 4000
_SECRET = re.compile(r"token|secret|password|passwd|credential|api_?key|auth", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Where an artifact comes from: what `artifact.isohub` tells, and what its file has in it.

    Attributes:
        host: The host of the repository; empty for one on this machine.
        repo: `owner/name`, or the name of a working tree's folder.
        ref: The branch or tag that was taken; None for a commit or a working tree.
        commit: Its commit, 40 hexadecimal digits; None for a working tree.
        tree_hash: SHA-256 of its files as they were fetched; None for a working tree.
        entrypoint: The entrypoint that made it.
        arguments: What that was called with, as JSON; see `arguments_text`.
        torch: Version of torch.
        python: Version of Python.
        time: When it was made, UTC, as ISO 8601 has it.
        extra: The fields that the hook added.
    """

    host: str
    repo: str
    ref: str | None
    commit: str | None
    tree_hash: str | None
    entrypoint: str
    arguments: str
    torch: str
    python: str
    time: str
    extra: Mapping[str, str] = field(default_factory=dict)

    def fields(self) -> dict[str, str]:
        """Return all of it that is known, as texts by name."""
        own = {name: getattr(self, name) for name in NAMES}
        return {**{name: value for name, value in own.items() if value is not None}, **self.extra}

    def as_json(self) -> str:
        """Return the content of the extra file."""
        return json.dumps(self.fields(), indent=1)


def set_metadata_hook(hook: Hook | None) -> Hook | None:
    """Have `hook` add fields to the metadata of everything that is loaded from now on.

    Args:
        hook: Called in this process at each load, with the fields that isohub knows; returns further ones,
            texts by name. What it raises ends the load. None for no hook.

    Returns:
        The hook that there was before, or None.

    Example:
        >>> isohub.set_metadata_hook(lambda fields: {"team": "vision", "ticket": os.environ["TICKET"]})
    """
    global _hook  # one for the process, as torch's own
    before, _hook = _hook, hook
    return before


def fields_of(**known: str | None) -> Metadata:
    """Return the metadata of something made now: `known`, this process's versions, and what the hook adds.

    Raises:
        TypeError: The hook returned something else than texts by name.
        ValueError: It returned a field of isohub's own.
        Exception: What the hook raised.
    """
    import torch

    metadata = Metadata(
        torch=str(torch.__version__),
        python=platform.python_version(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **known,  # type: ignore[arg-type]
    )
    return metadata if _hook is None else Metadata(**{**vars(metadata), "extra": _added(_hook, metadata)})


def _added(hook: Hook, metadata: Metadata) -> dict[str, str]:
    added: object = hook(metadata.fields())
    if not isinstance(added, Mapping) or not all(
        isinstance(name, str) and isinstance(value, str) for name, value in added.items()
    ):
        raise TypeError(f"the metadata hook {hook!r} must return a mapping of texts to texts, not {added!r:.200}")
    taken = sorted(added.keys() & set(NAMES))
    if taken:
        raise ValueError(
            f"the metadata hook {hook!r} returned {', '.join(taken)}, which isohub itself fills in: use another name"
        )
    return dict(added)


def arguments_text(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return the arguments of an entrypoint as JSON, for people to read.

    Plain data is there as it is, anything else by its kind. Long values are cut, and those that look like a
    secret, by the name of their keyword or as a part of a URL, are left out.
    """
    told = {"args": [_plain(value, 0) for value in args], "kwargs": _plain(dict(kwargs), 0)}
    text = json.dumps(told, ensure_ascii=False)
    return text if len(text) <= _MAX_ARGUMENTS else json.dumps({"cut": text[:_MAX_ARGUMENTS]}, ensure_ascii=False)


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        text = _CREDENTIALS.sub("<hidden>", value.encode("utf-8", "replace").decode())
        return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}... ({len(text)} characters)"
    if type(value) is float and not math.isfinite(value):
        return f"<{value}>"
    if value is None or type(value) in (bool, int, float):
        return value
    if depth < _MAX_DEPTH and type(value) in (list, tuple) and len(value) <= _MAX_MEMBERS:
        return [_plain(member, depth + 1) for member in value]
    if depth < _MAX_DEPTH and type(value) is dict and len(value) <= _MAX_MEMBERS:
        return {
            str(key): "<hidden>" if _SECRET.search(str(key)) else _plain(member, depth + 1)
            for key, member in value.items()
        }
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    size = f" {dtype} {list(shape)}" if isinstance(shape, tuple) and dtype is not None else ""
    return f"<{type(value).__qualname__}{size}>"
