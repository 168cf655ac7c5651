"""The steps of one load, drawn as bars over time."""

from __future__ import annotations

import html
from typing import Any

__all__ = ["timeline"]

# What a step is, for a reader. A step that is not here is not drawn: it only holds others.
STEPS = {
    "import torch": ("your program", "import torch"),
    "import isohub": ("your program", "import isohub"),
    "hub.resolve": ("your program", "resolve the ref"),
    "hub.fetch": ("your program", "fetch the files"),
    "supervisor.forkserver": ("forkserver", "start, import torch"),
    "supervisor.fork": ("your program", "wait for the fork"),
    "supervisor.prepare": ("your program", "prepare the worker"),
    "worker.hubconf": ("worker", "import hubconf"),
    "worker.entrypoint": ("worker", "call the entrypoint"),
    "worker.export": ("worker", "move weights, describe"),
}
COLOURS = {"your program": "#2a6f97", "forkserver": "#e09f3e", "worker": "#6a994e"}
LEFT, WIDTH, HEIGHT = 250, 480, 18


def timeline(document: dict[str, Any], longest_s: float) -> str:
    """Return a drawing of the steps, as SVG.

    Args:
        document: One program of those that `trace_load.py` keeps.
        longest_s: What the whole width stands for.
    """
    steps = [step for step in document["steps"] if step["name"] in STEPS]
    title = f"{document['title']}: {document['total_s']:.2f} s"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 80}" height="{HEIGHT * len(steps) + 66}">',
        "<style>text { font: 12px sans-serif }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="18" style="font-weight: bold">{html.escape(title)}</text>',
    ]
    for number, (who, colour) in enumerate(COLOURS.items()):
        x = LEFT + number * 130
        lines += [
            f'<rect x="{x}" y="26" width="10" height="10" fill="{colour}"/>',
            f'<text x="{x + 15}" y="36">{who}</text>',
        ]
    for number, step in enumerate(steps):
        who, what = STEPS[step["name"]]
        y = 46 + number * HEIGHT
        start = LEFT + WIDTH * step["start_s"] / longest_s
        length = max(WIDTH * step["duration_s"] / longest_s, 1.5)
        lines += [
            f'<text x="{LEFT - 6}" y="{y + 12}" text-anchor="end">{html.escape(what)}</text>',
            f'<rect x="{start:.1f}" y="{y + 2}" width="{length:.1f}" height="{HEIGHT - 5}" fill="{COLOURS[who]}"/>',
            f'<text x="{start + length + 4:.1f}" y="{y + 12}">{step["duration_s"] * 1e3:.3g} ms</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
