"""`Comparison`: what `isohub.compare` returns, and all the ways to show it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from isohub.comparison.expression import Expression
from isohub.comparison.markdown import markdown
from isohub.comparison.page import embedded, page
from isohub.comparison.results import Results
from isohub.comparison.terminal import render

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderResult

__all__ = ["Comparison"]


@dataclass(frozen=True, kw_only=True)
class Comparison(Results):
    """Two or more versions of a model, compared.

    `print(comparison)` gives the table that the command prints; a notebook shows the report. The data are the
    attributes of `Results`.
    """

    def failures(self, fail_on: str) -> list[str]:
        """Return why this is no pass, a reason for each version; empty if it is one.

        Args:
            fail_on: An expression over the names in `Pair.metrics`, such as
                `"max_abs > 1e-4 or top1_agreement < 0.99"`.

        Raises:
            ExpressionError: It cannot be read.
        """
        expression = Expression(fail_on)
        return [
            f"{pair.other}: {reason}" for pair in self.pairs for reason in [expression.reason(pair.metrics)] if reason
        ]

    def to_json(self, indent: int | None = 2) -> str:
        """Return all of it as a JSON document."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_markdown(self) -> str:
        """Return a comment for a pull request."""
        return markdown(self)

    def to_html(self) -> str:
        """Return the report: one page without requests to anywhere. It needs `isohub[compare]`.

        Raises:
            ComparisonError: The packages of that extra are not installed.
        """
        return page(self)

    def save_html(self, path: str | Path) -> None:
        """Write the report to a file.

        Raises:
            ComparisonError: As `to_html`.
            OSError: The file cannot be written.
        """
        Path(path).write_text(self.to_html(), "utf-8")

    def _repr_html_(self) -> str:
        return embedded(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from render(self)

    def __str__(self) -> str:
        screen = Console(file=StringIO(), width=100, color_system=None, highlight=False)
        with screen.capture() as captured:
            screen.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())
