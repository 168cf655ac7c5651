"""Repositories that are compared: a generated history, and the demo's two versions."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from isohub.demo.repository import make_repository
from tests.helpers.histories import History, make_history

# In this order each kind of change has commits of others on both sides, and side branches around it.
CHANGES = {6: "break", 7: "mend", 11: "rename", 16: "activation", 21: "slow"}


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    """A repository of 64 commits and merges; see `CHANGES`."""
    return make_history(tmp_path_factory.mktemp("history") / "owner" / "models", CHANGES)


@pytest.fixture(scope="session")
def drawn() -> None:
    """What drawing the first plot of a process leaves in place for all others: open files of fonts."""
    figure = Figure()
    figure.suptitle("text")
    figure.savefig(io.BytesIO(), format="svg")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's repository, with the tags v1 and v2."""
    return make_repository(tmp_path_factory.mktemp("demo") / "owner" / "digits")
