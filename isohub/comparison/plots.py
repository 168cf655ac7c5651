"""The plots of a report, as SVG that takes its text colour from the page and needs nothing else."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isohub.comparison.figures import duration
from isohub.comparison.results import Pair, Results
from isohub.comparison.verdict import significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Plot", "plots_of"]

# Stands for the colour of the page's text, which is another in the dark.
_INK = "#010203"
# Both can be told from white and from near black, and from each other without colour vision.
_COLOURS = ("#2a78c8", "#d2691e", "#7a52c7", "#12856b")
_MARKERS = ("o", "^", "s", "D")
_ID = re.compile(r'(\bid="|url\(#|xlink:href="#|href="#)')
_MOST_LAYERS = 400


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        title: What it shows.
        description: What one sees in it, in words.
        svg: The drawing.
    """

    title: str
    description: str
    svg: str


def plots_of(comparison: Results) -> list[Plot]:
    """Return the plots that there is something to draw in."""
    numbers = itertools.count()
    found = []
    for pair in comparison.pairs:
        if pair.outputs and pair.outputs[0].points:
            found.append(_scatter(pair, next(numbers)))
        if pair.layers is not None and any(layer.relative is not None for layer in pair.layers.layers):
            found.append(_layers(pair, next(numbers)))
    if any(version.latency is not None for version in comparison.versions):
        found.append(_latencies(comparison, next(numbers)))
    return found


def _scatter(pair: Pair, number: int) -> Plot:
    numbers = pair.outputs[0]
    xs, ys = zip(*numbers.points, strict=True)
    ends = (min(*xs, *ys), max(*xs, *ys))
    with _drawing() as (axes, finish):
        axes.plot(ends, ends, color=_INK, linewidth=0.8, linestyle="--")
        axes.scatter(xs, ys, s=8, color=_COLOURS[0], alpha=0.6, linewidths=0)
        axes.set_xlabel(_label(pair.baseline))
        axes.set_ylabel(_label(pair.other))
        where = f" {numbers.path}" if numbers.path else ""
        description = (
            f"{len(xs)} of {numbers.elements:,} values of the output{where}: those of {pair.other} over "
            f"those of {pair.baseline}. They lie on the dashed line where both are the same. "
            f"Cosine {numbers.cosine:.4f}, greatest difference {significant(numbers.max_abs)}."
        )
        return Plot(f"Outputs of {pair.other} over {pair.baseline}", description, finish(number))


def _layers(pair: Pair, number: int) -> Plot:
    assert pair.layers is not None, "looked at before"
    layers = pair.layers.layers[:_MOST_LAYERS]
    values = [layer.relative for layer in layers]
    positive = [value for value in values if value and math.isfinite(value)]
    floor = min(positive, default=1e-8) / 10
    with _drawing() as (axes, finish):
        heights = [max(value, floor) if value is not None and math.isfinite(value) else math.nan for value in values]
        axes.plot(range(1, len(heights) + 1), heights, color=_COLOURS[0], linewidth=1, marker="o", markersize=3)
        if positive:
            axes.set_yscale("log")
        first = pair.layers.first
        description = f"All {len(layers)} layers give the same."
        if first is not None and first < len(layers):
            axes.axvline(first + 1, color=_COLOURS[1], linewidth=1, linestyle="--")
            worst = max(positive, default=0.0)
            description = (
                f"Norm of the difference of each of {len(layers)} layers, in the order of the calls, as a share of the "
                f"output's norm. The first that departs is number {first + 1}, {layers[first].name or 'the root'}; "
                f"the greatest share is {significant(worst)}. Layers without a difference stand at the lower edge."
            )
        axes.set_xlabel("layer, in the order of the calls")
        axes.set_ylabel("relative difference")
        return Plot(f"Difference by layer, {pair.other}", description, finish(number))


def _latencies(comparison: Results, number: int) -> Plot:
    told = []
    with _drawing() as (axes, finish):
        timed = [version for version in comparison.versions if version.latency is not None]
        for place, version in enumerate(timed):
            assert version.latency is not None, "just looked at"
            ordered = sorted(version.latency.rounds_s)
            shares = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
            axes.plot(
                [seconds * 1e3 for seconds in ordered],
                shares,
                color=_COLOURS[place % len(_COLOURS)],
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=3,
                linewidth=1.2,
                drawstyle="steps-post",
                label=_label(version.label),
            )
            told.append(f"{version.label} {duration(version.latency.median_s)}")
        axes.set_xlabel("time of a call, ms")
        axes.set_ylabel("share of calls that took less")
        axes.legend(frameon=False, fontsize=8)
        return Plot(
            "Time of a call", f"Distribution of the times of calls. Medians: {', '.join(told)}.", finish(number)
        )


@contextmanager
def _drawing() -> Iterator[tuple[Axes, Callable[[int], str]]]:
    """Give the body axes to draw on, and a function that finishes the SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: Any = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    )
    # Text stays text: it can be read aloud, searched and scaled.
    settings |= {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with mpl.rc_context(settings):
        # Without pyplot, which keeps state for all of the program.
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, color=_INK, alpha=0.12, linewidth=0.5)

        def finish(number: int) -> str:
            written = io.StringIO()
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(written, format="svg", transparent=True, metadata=nothing)
            return _inline(written.getvalue(), f"plot{number}-")

        yield axes, finish


def _inline(document: str, prefix: str) -> str:
    """Return an SVG document as a part of a page: as wide as its place, with ids of its own."""
    svg = document[document.index("<svg") :]
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    svg = _ID.sub(lambda match: match[1] + prefix, svg)
    return svg.replace(_INK, "currentColor").replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def _label(text: str) -> str:
    # Between dollars matplotlib reads mathematics.
    return text.replace("$", r"\$")[:40]
