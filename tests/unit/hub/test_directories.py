"""The hub folder under torch.hub's names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isohub.hub.cache import hub_dir
from isohub.hub.directories import get_dir, set_dir


def test_get_dir_is_that_of_torch_hub() -> None:
    """`get_dir` gives torch.hub's text to the letter, for every way of setting it, and imports no torch."""
    script = """
import os, sys
from isohub.hub.directories import get_dir
settings = [
    {}, {"TORCH_HOME": "/a"}, {"XDG_CACHE_HOME": "/b"}, {"TORCH_HOME": "~/c", "XDG_CACHE_HOME": "/b"},
    {"TORCH_HOME": "rel//x/"}, {"TORCH_HOME": ""}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "~"},
]
def use(setting):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ.update(setting)
ours = [use(setting) or get_dir() for setting in settings]
assert "torch" not in sys.modules
import torch.hub
assert ours == [use(setting) or torch.hub.get_dir() for setting in settings]
assert ours == [use(setting) or get_dir() for setting in settings]
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("folder", ["~/x/", Path("/a/b"), "/a//b/", "rel"], ids=str)
def test_set_dir_is_seen_by_torch_hub(folder: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`set_dir` takes paths and `~`, goes before the variables, and torch.hub sees it, as we see its own."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    set_dir(folder)

    # Not Path.expanduser, which takes the slash at the end away.
    assert get_dir() == os.path.expanduser(folder) == torch.hub.get_dir()  # noqa: PTH111
    assert hub_dir() == Path(get_dir())
    torch.hub.set_dir("/other")
    assert get_dir() == "/other"


def test_old_variable_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    """TORCH_HUB is answered as by torch.hub."""
    monkeypatch.setenv("TORCH_HUB", "/x")

    with pytest.warns(UserWarning, match="TORCH_HUB is deprecated"):
        get_dir()
