"""Where the compiled form of what a worker imports is kept."""

from __future__ import annotations

import functools
import os
import sys
from importlib import _bootstrap_external
from typing import Any

__all__ = ["installed", "keep_apart"]

# Note [one function decides]
# `sys.pycache_prefix` would move the bytecode of every module, that of the standard library and of installed
# packages too: each new checkout would compile torchvision or pandas once more (10 s and up), and a working
# tree with each load. Every loader of source files asks this one function for the place, those that a
# repository makes for itself by `spec_from_file_location` included, and takes NotImplementedError for "none".


def installed() -> tuple[str, ...]:
    """Return the folders that installed modules are in."""
    return tuple(_top(entry) for entry in sys.path if entry)


def keep_apart(root: str, folder: str | None) -> None:
    """Have installed modules keep their bytecode where it is, and all others in `folder`.

    Args:
        root: The repository's folder, which counts as not installed wherever it is.
        folder: None to neither read nor write bytecode of what is not installed.
    """
    usual = _bootstrap_external.cache_from_source
    places = installed()
    own = _top(root)

    def cache_from_source(path: Any, *args: Any, **kwargs: Any) -> str:
        place = usual(path, *args, **kwargs)
        real = os.path.realpath(path)
        if real.startswith(places) and not real.startswith(own):
            return place
        if folder is None:
            raise NotImplementedError("no bytecode of a working tree")
        return f"{folder}{place}"

    vars(_bootstrap_external)["cache_from_source"] = cache_from_source  # see Note [one function decides]


@functools.cache  # those that are installed are looked up before the fork
def _top(path: str) -> str:
    return f"{os.path.realpath(path).rstrip(os.sep)}{os.sep}"
