"""The benchmarks' report: tables and plots come from kept results, and say what was not measured."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.goals import Goal

CALL: dict[str, Any] = {
    "benchmark": "call",
    "state": "idle",
    "quick": False,
    "machine": {
        "cpu": "A processor",
        "cpus": 2,
        "memory_gb": 25,
        "kernel": "6.1",
        "load_average_before": 0.1,
        "python": "3.11.7",
        "torch": "2.13.0",
        "threads": 2,
        "commit": "0123456789ab",
    },
    "versions": {"Ray": "2.60.0"},
    "measures": {"overhead / floor": 1.84, "Ray / isohub": 15.0, "works": True, "calls": 1_000_000},
    "samples": {
        "600 kB in": {
            "isohub": {"count": 9, "p10_us": 90.0, "median_us": 100.0, "p90_us": 2000.0},
            "Ray": {"count": 9, "p10_us": 4000.0, "median_us": 5000.0, "p90_us": 6_500_000.0},
        }
    },
    "notes": ["left out: Appose: it is not installed"],
}
FLOOR = Goal("overhead", "call", "overhead / floor", "at most", 2.0)
RAY = Goal("Ray", "call", "Ray / isohub", "at least", 20, idle_only=True)
WORKS = Goal("5,000 tensors", "call", "works", "works")
MISSING = Goal("memory", "load", "memory, MB", "at most", 12, "MB")


def results(*documents: dict[str, Any]) -> report.Results:
    return {(document["benchmark"], document["state"]): document for document in documents}


def busy(**measures: float) -> dict[str, Any]:
    document = copy.deepcopy(CALL)
    document["state"] = "busy"
    document["measures"] |= measures
    return document


def test_goals_are_compared_with_the_figures_of_both_states() -> None:
    """A goal is met when the figures of both states meet it, and the table says where only one does."""
    goals = (FLOOR, RAY, WORKS, MISSING)

    table = report.goals_table(results(CALL, busy(**{"overhead / floor": 2.01})), goals)

    assert table == (
        "| measure | goal | idle | busy | met |\n"
        "|---|---|---|---|---|\n"
        "| overhead | at most 2 x | 1.84 x | 2.01 x | idle only |\n"
        "| Ray | at least 20 x, idle | 15 x | 15 x | no |\n"
        "| 5,000 tensors | works | yes | yes | yes |\n"
        "| memory | at most 12 MB | not measured | not measured | not measured |"
    )


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [(FLOOR, 2.0, True), (FLOOR, 2.001, False), (RAY, 20, True), (RAY, 19.99, False), (FLOOR, True, False)],
)
def test_a_limit_itself_meets_its_goal(goal: Goal, value: report.Value, met: bool) -> None:
    """A figure meets a goal up to and including its limit, and a truth value is no figure."""
    assert goal.met(value) is met


def test_a_goal_for_idle_machines_ignores_the_busy_figure() -> None:
    """A goal for an idle machine is met by the idle figure, whatever the busy one is."""
    idle = copy.deepcopy(CALL)
    idle["measures"]["Ray / isohub"] = 21.5

    table = report.goals_table(results(idle, busy()), (RAY,))

    assert table.splitlines()[-1] == "| Ray | at least 20 x, idle | 21.5 x | 15 x | yes |"


def test_one_state_alone_is_said_to_be_one() -> None:
    """A goal of which one state was measured is met in that state only."""
    table = report.goals_table(results(CALL), (FLOOR,))

    assert table.splitlines()[-1] == "| overhead | at most 2 x | 1.84 x | not measured | yes, idle |"


def test_without_results_the_page_says_not_measured() -> None:
    """Without results every goal and every part of the page says that it was not measured."""
    text = report.page({})

    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(report.GOALS)
    assert all(row.endswith("| not measured | not measured | not measured |") for row in rows)
    assert text.count("Not measured: `python benchmarks/bench_") == len(report.ORDER)


def test_the_page_has_the_times_the_figures_and_the_conditions() -> None:
    """A part of the page has conditions, times in fitting units, figures and notes, as the result has them."""
    part = report.page(results(CALL)).split("## Calling a model\n\n")[1].split("\n\n## ")[0]

    assert part == (
        "Idle: commit 0123456789ab, 2 x A processor, Linux 6.1, Python 3.11.7, torch 2.13.0, load average before 0.1.\n"
        "Against Ray 2.60.0.\n"
        "\n"
        "![600 kB in](benchmarks/call.svg)\n"
        "\n"
        "| 600 kB in | idle median | idle 10 % to 90 % |\n"
        "|---|---|---|\n"
        "| isohub | 100 us | 90 us to 2 ms |\n"
        "| Ray | 5 ms | 4 ms to 6.5 s |\n"
        "\n"
        "| figure | idle |\n"
        "|---|---|\n"
        "| overhead / floor | 1.84 |\n"
        "| Ray / isohub | 15 |\n"
        "| works | yes |\n"
        "| calls | 1,000,000 |\n"
        "\n"
        "- left out: Appose: it is not installed"
    )


def test_the_readme_leaves_out_what_was_not_measured() -> None:
    """The README has the goals of which something is known, and a sentence where nothing is."""
    known = copy.deepcopy(CALL)
    known["measures"] = {"600 kB in: overhead / floor": 1.5}

    rows = [line for line in report.readme(results(known)).splitlines() if line.startswith("|")][2:]

    measure = "call of 600 kB -> 4 kB: overhead / floor of pipe and memcpy"
    assert rows == [f"| {measure} | at most 2 x | 1.5 x | not measured | yes, idle |"]
    assert report.readme({}) == "No figures are kept for this version; `make bench` measures on your machine."


def test_quick_results_are_not_taken(tmp_path: Path) -> None:
    """Of the files in a folder of results, those of quick runs are left out, and no folder is no results."""
    (tmp_path / "call-idle.json").write_text(json.dumps(CALL))
    (tmp_path / "call-busy.json").write_text(json.dumps({**busy(), "quick": True}))

    assert report.read(tmp_path) == results(CALL)
    assert report.read(tmp_path / "missing") == {}


def test_plots_older_than_the_results_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plot that is not that of the results, or is left of others, is told, and written anew or removed."""
    folder = tmp_path / "plots"
    slower = copy.deepcopy(CALL)
    slower["samples"]["600 kB in"]["isohub"]["median_us"] = 500.0

    assert report.main(["--check"], results(CALL), folder) == 1
    assert report.main(["--plots"], results(CALL), folder) == 0
    assert report.main(["--check"], results(CALL), folder) == 0
    assert [path.name for path in folder.iterdir()] == ["call.svg"]
    assert report.main(["--check"], results(slower), folder) == 1
    assert report.main(["--plots"], {}, folder) == 0
    assert list(folder.iterdir()) == []
    assert capsys.readouterr().out.count("is not the plot of benchmarks/results") == 2


def test_a_plot_is_logarithmic() -> None:
    """A bar has the length of its time's logarithm, counted from the power of ten below the shortest time."""
    third = copy.deepcopy(CALL)
    third["samples"]["600 kB in"] = {
        who: {"count": 1, "p10_us": us, "median_us": us, "p90_us": us}
        for who, us in {"isohub": 200.0, "Ray": 100_000.0, "none": 100.0}.items()
    }

    svg = report.plot("call", results(third))

    assert svg is not None
    bars = [float(width) for width in re.findall(r'<rect x="\d+" y="\d+" width="([\d.]+)"', svg)]
    # 100 us to 100 ms are three decades, 400 pixels: 200 us is 0.301 decades; one of none is still seen.
    assert bars == [40.1, 400.0, 2.0]


FIRST = {
    "benchmark": "first_load",
    "machine": CALL["machine"],
    "runs": 7,
    "programs": {
        "first_load": {
            "title": "One",
            "total_s": 4.0,
            "steps": [
                {"name": "import torch", "start_s": 0.0, "duration_s": 2.0},
                {"name": "model.load", "start_s": 2.0, "duration_s": 2.0},
                {"name": "supervisor.forkserver", "start_s": 1.0, "duration_s": 2.5},
                {"name": "worker.hubconf", "start_s": 3.5, "duration_s": 0.0001},
            ],
        },
        "first_load_warm": {
            "title": "Other",
            "total_s": 2.0,
            "steps": [{"name": "import torch", "start_s": 0.5, "duration_s": 1.5}],
        },
    },
}


def test_steps_of_a_load_are_drawn_where_they_were(tmp_path: Path) -> None:
    """A step's bar begins and ends where the step did, on one scale; a step that only holds others has none."""
    assert report.main(["--plots"], {}, tmp_path, FIRST) == 0

    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    bars = {
        name: [
            tuple(map(float, bar))
            for bar in re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)" height="13"', svg)
        ]
        for name, svg in drawn.items()
    }
    # 480 pixels are the 4 s of the longer one; the shortest step is still seen.
    assert bars == {
        "first_load.svg": [(250.0, 240.0), (370.0, 300.0), (670.0, 1.5)],
        "first_load_warm.svg": [(310.0, 180.0)],
    }
    assert report.main(["--check"], {}, tmp_path, FIRST) == 0
    assert report.main(["--check"], {}, tmp_path, {**FIRST, "programs": {}}) == 1


def test_page_says_when_no_load_was_kept() -> None:
    """The page of the start has the drawings with their conditions, or how to make them."""
    assert report.first_load_text(None) == "Not measured: `python benchmarks/trace_load.py --save`."
    assert "![One](../reference/benchmarks/first_load.svg)\n\n![Other]" in report.first_load_text(FIRST)
