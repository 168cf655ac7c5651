"""The hub folder under torch.hub's names: `get_dir` and `set_dir`."""

from __future__ import annotations

import importlib
import os
import sys
import warnings

__all__ = ["get_dir", "set_dir"]


def get_dir() -> str:
    """Return the hub folder, to the letter as `torch.hub.get_dir()` does, and without importing torch.

    What `set_dir` was given > `$TORCH_HOME/hub` > `$XDG_CACHE_HOME/torch/hub` > `~/.cache/torch/hub`.
    """
    if os.environ.get("TORCH_HUB"):
        warnings.warn("TORCH_HUB is deprecated, please use env TORCH_HOME instead", stacklevel=2)
    chosen = getattr(sys.modules.get("torch.hub"), "_hub_dir", None)
    if chosen is not None:
        return str(chosen)
    # Texts and not paths: a Path would take away a double slash that torch.hub leaves.
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))  # noqa: PTH118
    return os.path.join(os.path.expanduser(home), "hub")  # noqa: PTH111, PTH118


def set_dir(d: str | os.PathLike[str]) -> None:
    """Make `d` the hub folder of this process, for isohub and for torch.hub alike.

    Args:
        d: A folder; it need not exist, and may begin with `~`.
    """
    # The one place where it is kept is torch.hub's, so that the two cannot differ.
    importlib.import_module("torch.hub").set_dir(d)
