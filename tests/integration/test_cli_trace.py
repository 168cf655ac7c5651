"""`isohub load --trace`: the steps of a load, in a file that trace viewers draw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.cli import invoke


def test_steps_are_written_with_their_times(repo_of: Callable[..., str], tmp_path: Path):
    """--trace writes the steps with their times, those of the worker in a line of their own."""
    repo = repo_of("def nothing():\n    return 3\n")
    path = tmp_path / "load.json"

    found = json.loads(invoke("load", repo, "nothing", "--json", "--trace", str(path)).stdout)

    events = json.loads(path.read_text())["traceEvents"]
    drawn = [event for event in events if event["ph"] == "X"]
    begun = [step["start_s"] for step in found["steps"]]
    in_worker = {event["name"] for event in drawn if event["tid"] == 3}
    assert [step["name"] for step in found["steps"]] == [event["name"] for event in drawn]
    assert begun == pytest.approx([event["ts"] / 1e6 for event in drawn], abs=2e-6)
    assert in_worker == {"worker.hubconf", "worker.entrypoint", "worker.export"}
