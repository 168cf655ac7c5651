"""A comparison as a comment for a pull request: the verdict, a table, and the rest folded away."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from isohub.comparison.figures import OUTPUT_COLUMNS, SYMBOLS, output_rows, version_rows
from isohub.comparison.results import Pair, Results

__all__ = ["markdown"]

_MOST_OUTPUTS = 20
# Comments of GitHub may have 65,536 characters.
_MOST_DIFF_LINES = 400
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#!~@&])")


def markdown(comparison: Results) -> str:
    """Return the comment. What the repositories say in it is no markup."""
    return "\n".join(_lines(comparison)) + "\n"


def _lines(comparison: Results) -> Iterator[str]:
    yield f"## {_plain(comparison.entrypoint)}: {_plain(_names(comparison))}"
    for pair in comparison.pairs:
        yield ""
        yield f"**{SYMBOLS[pair.kind]} {_plain(pair.verdict)}**"
        yield ""
        for finding in pair.findings:
            yield f"- {_plain(finding)}"
    yield ""
    yield from _table(
        ["", *(version.label for version in comparison.versions)],
        [[name, *texts] for name, texts in version_rows(comparison.versions)],
    )
    for pair in comparison.pairs:
        yield from _details(pair)
    yield ""
    yield f"<sub>{comparison.calls} calls with {comparison.samples} samples: {_plain(comparison.inputs)}. "
    yield f"torch {_plain(str(comparison.environment.get('torch', '')))}, seed {comparison.seed}.</sub>"


def _names(comparison: Results) -> str:
    others = ", ".join(pair.other for pair in comparison.pairs)
    return f"{others} against {comparison.baseline}"


def _details(pair: Pair) -> Iterator[str]:
    if pair.outputs:
        yield ""
        yield f"<details><summary>Outputs of {_plain(pair.other)}</summary>"
        yield ""
        yield from _table(OUTPUT_COLUMNS, output_rows(pair, _MOST_OUTPUTS))
        yield ""
        yield "</details>"
    if pair.code is not None and pair.code.files:
        lines = [line for file in pair.code.files for line in file.diff]
        shown = lines[:_MOST_DIFF_LINES]
        # A fence that is longer than any in the code.
        fence = "`" * max(3, 1 + max((len(run) for line in shown for run in re.findall(r"`+", line)), default=0))
        yield ""
        yield f"<details><summary>Code of {_plain(pair.other)}: {len(pair.code.files)} files</summary>"
        yield ""
        yield f"{fence}diff"
        yield from shown
        if len(lines) > len(shown):
            yield f"… {len(lines) - len(shown)} more lines"
        yield fence
        yield ""
        yield "</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_plain, head))} |"
    yield f"| --- |{' ---: |' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(map(_plain, row))} |"


def _plain(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
