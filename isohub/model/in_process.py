"""`isolate=False`: an entrypoint in this very process, as torch.hub runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

__all__ = ["load_in_process"]


def load_in_process(root: Path, model: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Import `root/hubconf.py` here and call its entrypoint.

    Every caveat of torch.hub applies: a second ref of one repository silently runs the first one's code, and what
    it downloads is between it and torch.hub. To send that through isohub, torch.hub's functions would have to be
    others while it runs: other threads would meet those, and modules would keep them for good.

    Raises:
        Exception: What torch.hub or the repository's code raises.
    """
    # torch.hub.load would take keywords such as `source` and `verbose` away from the entrypoint.
    return torch.hub._load_local(str(root), model, *args, **kwargs)  # type: ignore[no-untyped-call]
