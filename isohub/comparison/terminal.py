"""A comparison on one screen: the verdict first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from isohub.comparison.figures import OUTPUT_COLUMNS, SYMBOLS, output_rows, version_rows
from isohub.comparison.results import Pair, Results

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["render"]

_STYLES = {"equal": "bold green", "within tolerance": "bold green", "different": "bold yellow", "broken": "bold red"}
_MOST_OUTPUTS = 5


def render(comparison: Results) -> Iterator[RenderableType]:
    """Yield what to print."""
    for pair in comparison.pairs:
        # As a Text: brackets in what a repository says are no markup.
        yield Text(f"{SYMBOLS[pair.kind]} {pair.verdict}", style=_STYLES.get(pair.kind, "bold"))
        for finding in pair.findings:
            yield Text(f"  • {finding}")
    yield Text()
    yield _versions(comparison)
    for pair in comparison.pairs:
        if pair.outputs:
            yield _outputs(pair, named=len(comparison.pairs) > 1)
    said = f"{comparison.calls} calls with {comparison.samples:,} samples: {comparison.inputs}"
    yield Text(f"{said}. Seed {comparison.seed}, rtol {comparison.rtol:g}, atol {comparison.atol:g}.", style="dim")


def _versions(comparison: Results) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(Text(comparison.entrypoint))
    for version in comparison.versions:
        is_baseline = version.label == comparison.baseline
        table.add_column(Text(f"{version.label} (baseline)" if is_baseline else version.label), justify="right")
    for name, texts in version_rows(comparison.versions):
        table.add_row(name, *map(Text, texts))
    return table


def _outputs(pair: Pair, *, named: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    # Eighty columns hold these; the rest is in the report and in --json.
    shown = [place for place, name in enumerate(OUTPUT_COLUMNS) if name not in ("max rel", "mean abs")]
    for place in shown:
        name = f"{pair.other}: {OUTPUT_COLUMNS[place]}" if named and not place else OUTPUT_COLUMNS[place]
        table.add_column(Text(name), justify="right" if place else "left")
    for row in output_rows(pair, _MOST_OUTPUTS):
        table.add_row(*(Text(row[place]) for place in shown))
    if len(pair.outputs) > _MOST_OUTPUTS:
        table.add_row(f"and {len(pair.outputs) - _MOST_OUTPUTS} more")
    return table
