"""What a bisection found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from isohub.comparison.history import Commit
from isohub.comparison.results import plain
from isohub.comparison.trials import Trial

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType, RenderResult

__all__ = ["Bisection"]

_MOST_LINES = 60
_STYLES = {"+": "green", "-": "red", "@": "cyan"}


@dataclass(frozen=True, kw_only=True)
class Bisection:
    """The first commit whose model differs from a good one.

    Attributes:
        repo: The repository.
        entrypoint: The entrypoint.
        good: The good commit.
        bad: The bad one that was given.
        first_bad: The first bad commit; None if commits before it had to be skipped.
        suspects: Those among which it is, then; else empty.
        reason: How it differs from the good one.
        findings: What else there is to say.
        metrics: Figures against the good one.
        diff: How it changed the files that were imported, against its first parent.
        changed_files: All files that it changed.
        commits: How many there are between the good one and the bad one, with the latter.
        loads: How many were loaded in this run, the good one included.
        trials: All that were tried, in their order.
    """

    repo: str
    entrypoint: str
    good: str
    bad: str
    first_bad: Commit | None
    suspects: list[Commit]
    reason: str
    findings: list[str]
    metrics: dict[str, float | bool | None]
    diff: list[str]
    changed_files: list[str]
    commits: int
    loads: int
    trials: list[Trial]

    @property
    def skipped(self) -> int:
        """How many commits could not be told: they do not load, or fail when called."""
        return sum(trial.verdict == "skipped" for trial in self.trials)

    @property
    def cached(self) -> int:
        """How many were known from an earlier run."""
        return sum(trial.how == "cached" for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data that JSON knows."""
        document: dict[str, Any] = plain({**asdict(self), "skipped": self.skipped, "cached": self.cached})
        return document

    def to_json(self, indent: int | None = 2) -> str:
        """Return all of it as a JSON document."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._render()

    def __str__(self) -> str:
        screen = Console(file=StringIO(), width=100, color_system=None, highlight=False)
        with screen.capture() as captured:
            screen.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def _render(self) -> Iterator[RenderableType]:
        first = self.first_bad
        if first is None:
            yield Text(f"One of {len(self.suspects)} commits is the first bad one; the others cannot be told:", "bold")
            for commit in self.suspects:
                yield Text(f"  {commit.commit[:10]} {commit.subject}")
        else:
            yield Text(f"{first.commit} is the first bad commit", style="bold yellow")
            yield Text(f"Author: {first.author}\nDate:   {first.date}\n\n    {first.subject}\n")
            yield Text(self.reason)
            for finding in self.findings:
                yield Text(f"  • {finding}")
            yield Text()
            for line in self.diff[:_MOST_LINES]:
                yield Text(line, style=_STYLES.get(line[:1], ""))
            if len(self.diff) > _MOST_LINES:
                yield Text(f"… {len(self.diff) - _MOST_LINES} more lines")
            if not self.diff:
                yield Text("It changed none of the files that were imported, but:")
                for name in self.changed_files[:20]:
                    yield Text(f"  {name}")
        tried = f"{self.commits} commits, {self.loads} loads"
        yield Text(f"\n{tried}, {self.skipped} skipped, {self.cached} known from before.", style="dim")
