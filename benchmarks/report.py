"""Turn the results into the tables and plots of the documentation. No figure there is typed.

    python benchmarks/report.py            # print the goals
    python benchmarks/report.py --plots    # write the plots
    python benchmarks/report.py --check    # say whether the plots are those of the results

`docs/reference/benchmarks.md` and the README have their tables made by cog from here. What was not measured
says so; results of quick runs are not taken.
"""

from __future__ import annotations

import html
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Run as a script, or imported from the root by the tests and by cog.
sys.path.insert(0, str(Path(__file__).parent))

from goals import GOALS, Goal, Value
from timeline import timeline

__all__ = ["Results", "goals_table", "main", "page", "plot", "read", "readme"]

RESULTS = Path(__file__).parent / "results"
PLOTS = Path(__file__).parent.parent / "docs" / "reference" / "benchmarks"
NOT_MEASURED = "not measured"
STATES = ("idle", "busy")
# The order of the page; what else there is comes after.
ORDER = ("start", "load", "call", "train", "branches", "hub", "drift", "torchscript")
TITLES = {
    "start": "Starting a worker",
    "load": "Loading a model",
    "call": "Calling a model",
    "train": "A training step",
    "branches": "Several refs at once",
    "hub": "Resolving and fetching",
    "drift": "A million calls",
    "torchscript": "As TorchScript",
}
# The programs of `trace_load.py`, drawn step by step.
FIRST_LOADS = ("first_load", "first_load_warm")
# The group of times that is drawn. Logarithmic, since rivals differ by factors of 100.
PLOTTED = {"call": "600 kB in", "start": "a further worker"}

Results = dict[tuple[str, str], dict[str, Any]]


def read(folder: Path = RESULTS) -> Results:
    """Return the results by benchmark and state; none of quick runs, nor of scripts that measure otherwise."""
    found: Results = {}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        document = json.loads(path.read_text())
        if "measures" in document and not document["quick"]:
            found[document["benchmark"], document["state"]] = document
    return found


def read_first_load(folder: Path = RESULTS) -> dict[str, Any] | None:
    """Return the steps of a first load, which `trace_load.py` keeps; None if it has not."""
    path = folder / "first_load.json"
    return json.loads(path.read_text()) if path.exists() else None


def first_load_text(document: dict[str, Any] | None) -> str:
    """Return the generated part of docs/explanation/05-start.md."""
    if document is None:
        return f"{NOT_MEASURED.capitalize()}: `python benchmarks/trace_load.py --save`."
    facts = document["machine"]
    conditions = (
        f"Of each the run of median length of {document['runs']}, commit {facts['commit']}, "
        f"{facts['cpus']} x {facts['cpu']}, Linux {facts['kernel']}, Python {facts['python']}, torch {facts['torch']}, "
        f"load average before {facts['load_average_before']}."
    )
    drawings = "\n\n".join(
        f"![{program['title']}](../reference/benchmarks/{name}.svg)" for name, program in document["programs"].items()
    )
    return f"{drawings}\n\n{conditions}"


def goals_table(results: Results, goals: Iterable[Goal] = GOALS, *, measured_only: bool = False) -> str:
    """Return the table of goals; with `measured_only`, without the rows of which nothing is known."""
    lines = ["| measure | goal | idle | busy | met |", "|---|---|---|---|---|"]
    for goal in goals:
        values = {state: _measure(results, goal.benchmark, state, goal.key) for state in STATES}
        if measured_only and all(value is None for value in values.values()):
            continue
        cells = [goal.measure, goal.text, *(_figure(values[state], goal.unit) for state in STATES), _met(goal, values)]
        lines.append(_row(cells))
    return "\n".join(lines)


def page(results: Results) -> str:
    """Return the generated part of docs/reference/benchmarks.md."""
    parts = ["## What must be shown", goals_table(results)]
    names = {benchmark for benchmark, _ in results}
    for name in [*ORDER, *sorted(names - set(ORDER))]:
        parts.append(f"## {TITLES.get(name, name)}")
        here = {state: results[name, state] for state in STATES if (name, state) in results}
        if not here:
            parts.append(f"{NOT_MEASURED.capitalize()}: `python benchmarks/bench_{name}.py --save`.")
            continue
        parts.append(_conditions(here))
        if name in PLOTTED:
            parts.append(f"![{PLOTTED[name]}](benchmarks/{name}.svg)")
        parts += _tables(here)
        notes = dict.fromkeys(note for document in here.values() for note in document["notes"])
        if notes:
            parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts)


def readme(results: Results) -> str:
    """Return the generated part of the README: the goals of which something is known."""
    if not results:
        return "No figures are kept for this version; `make bench` measures on your machine."
    cpus = sorted({str(document["machine"]["cpus"]) for document in results.values()})
    table = goals_table(results, measured_only=True)
    return f"{table}\n\nMedians, on a machine with {' or '.join(cpus)} processors, idle and with all of them kept busy."


def plot(name: str, results: Results) -> str | None:
    """Return the plot of one benchmark as SVG; None where there is nothing to draw."""
    group = PLOTTED[name]
    found = {state: _samples(results, name, state).get(group, {}) for state in STATES}
    rows = [
        (who, state, float(found[state][who]["median_us"]))
        for who in dict.fromkeys([*found["idle"], *found["busy"]])
        for state in STATES
        if who in found[state]
    ]
    return _bars(f"{TITLES[name]}: {group}, median", rows) if rows else None


def _bars(title: str, rows: list[tuple[str, str, float]]) -> str:
    left, width, height = 290, 400, 18
    low = 10 ** math.floor(math.log10(min(value for *_, value in rows)))
    high = max(value for *_, value in rows)
    scale = width / max(math.log10(high / low), 1e-9)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{height * len(rows) + 50}">',
        "<style>text { font: 12px sans-serif }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="18" style="font-weight: bold">{html.escape(title)} (logarithmic)</text>',
    ]
    for number, (who, state, value) in enumerate(rows):
        y = 30 + number * height
        # A bar of the least value would have no length at all.
        length = max(scale * math.log10(value / low), 2)
        colour = "#2a6f97" if state == "idle" else "#e09f3e"
        lines += [
            f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{html.escape(who)}, {state}</text>',
            f'<rect x="{left}" y="{y + 2}" width="{length:.1f}" height="{height - 5}" fill="{colour}"/>',
            f'<text x="{left + length + 4:.1f}" y="{y + 12}">{_time(value)}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def _measure(results: Results, benchmark: str, state: str, key: str) -> Value:
    document = results.get((benchmark, state))
    return None if document is None else document["measures"].get(key)


def _samples(results: Results, benchmark: str, state: str) -> dict[str, dict[str, dict[str, float]]]:
    document = results.get((benchmark, state))
    return {} if document is None else document["samples"]


def _met(goal: Goal, values: dict[str, Value]) -> str:
    met = {state: goal.met(value) for state, value in values.items() if value is not None}
    if goal.idle_only:
        met.pop("busy", None)
    if not met:
        return NOT_MEASURED
    if all(met.values()):
        return "yes" if len(met) == 2 or goal.idle_only else f"yes, {next(iter(met))}"
    return "no" if not any(met.values()) else f"{next(state for state in met if met[state])} only"


def _conditions(here: dict[str, dict[str, Any]]) -> str:
    lines = []
    for state, document in here.items():
        facts = document["machine"]
        lines.append(
            f"{state.capitalize()}: commit {facts['commit']}, {facts['cpus']} x {facts['cpu']}, "
            f"Linux {facts['kernel']}, Python {facts['python']}, torch {facts['torch']}, "
            f"load average before {facts['load_average_before']}."
        )
        if document["versions"]:
            lines.append("Against " + ", ".join(f"{who} {each}" for who, each in document["versions"].items()) + ".")
    return "\n".join(dict.fromkeys(lines))


def _tables(here: dict[str, dict[str, Any]]) -> list[str]:
    documents = list(here.values())
    heads = [f"{state} {what}" for state in here for what in ("median", "10 % to 90 %")]
    tables = []
    for group in dict.fromkeys(group for document in documents for group in document["samples"]):
        lines = [_row([group, *heads]), "|---" * (1 + len(heads)) + "|"]
        for who in dict.fromkeys(who for document in documents for who in document["samples"].get(group, {})):
            found = [document["samples"].get(group, {}).get(who) for document in documents]
            cells = [cell for sample in found for cell in _times(sample)]
            lines.append(_row([who, *cells]))
        tables.append("\n".join(lines))
    lines = [_row(["figure", *here]), "|---" * (1 + len(here)) + "|"]
    for key in dict.fromkeys(key for document in documents for key in document["measures"]):
        lines.append(_row([key, *(_figure(document["measures"].get(key), "") for document in documents)]))
    return [*tables, "\n".join(lines)]


def _times(sample: dict[str, float] | None) -> list[str]:
    if sample is None:
        return [NOT_MEASURED, NOT_MEASURED]
    return [_time(sample["median_us"]), f"{_time(sample['p10_us'])} to {_time(sample['p90_us'])}"]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _figure(value: Value, unit: str) -> str:
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{text} {unit}".rstrip()


def _time(us: float) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}"
    return f"{us:.3g} us"


def main(
    arguments: list[str], results: Results | None = None, folder: Path = PLOTS, first_load: dict[str, Any] | None = None
) -> int:
    """Print the goals, write the plots or check them; return the exit status."""
    if results is None:
        results, first_load = read(), read_first_load()
    if arguments not in ([], ["--plots"], ["--check"]):
        print(__doc__)
        return 2
    if not arguments:
        print(goals_table(results))
        return 0
    wanted = {folder / f"{name}.svg": plot(name, results) for name in PLOTTED}
    programs = {} if first_load is None else first_load["programs"]
    longest_s = max((program["total_s"] for program in programs.values()), default=0.0)
    for name in FIRST_LOADS:
        wanted[folder / f"{name}.svg"] = timeline(programs[name], longest_s) if name in programs else None
    if arguments == ["--check"]:
        stale = [path for path, text in wanted.items() if (path.read_text() if path.exists() else None) != text]
        for path in stale:
            print(f"{path} is not the plot of benchmarks/results: make format mends this")
        return 1 if stale else 0
    for path, text in wanted.items():
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
