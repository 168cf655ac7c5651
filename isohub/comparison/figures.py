"""How figures are written for people, alike in the terminal, in markdown and in the report."""

from __future__ import annotations

from collections.abc import Sequence

from isohub.comparison.numbers import Numbers
from isohub.comparison.results import Pair, Version
from isohub.comparison.verdict import significant

__all__ = ["NONE", "OUTPUT_COLUMNS", "SYMBOLS", "duration", "nbytes", "output_rows", "share", "version_rows"]

NONE = "-"
"""What stands where there is no figure."""

SYMBOLS = {"equal": "=", "within tolerance": "≈", "different": "≠", "broken": "✗", "not compared": "?"}
"""A sign for each kind of verdict, so that none depends on colour."""


def duration(seconds: float | None) -> str:
    """Return `13.2 ms`."""
    if seconds is None:
        return NONE
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def nbytes(count: int | None) -> str:
    """Return `1.2 MB`."""
    if count is None:
        return NONE
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def share(value: float) -> str:
    """Return `98.2 %`; all of them only if it is all of them."""
    return "100 %" if value == 1 else f"{min(value * 100, 99.99):.2f} %"


def version_rows(versions: Sequence[Version]) -> list[tuple[str, list[str]]]:
    """Return what is known of each version by itself: rows of a name and a text for each version."""
    rows = [
        ("commit", [version.commit[:10] if version.commit else "working tree" for version in versions]),
        ("class", [version.type or NONE for version in versions]),
        ("parameters", [f"{version.parameters:,}" for version in versions]),
        ("weights", [nbytes(version.weights_bytes) for version in versions]),
        ("time of a call", [duration(version.latency.median_s if version.latency else None) for version in versions]),
        ("peak memory of a call", [nbytes(version.peak_bytes) for version in versions]),
    ]
    return [(name, texts) for name, texts in rows if set(texts) != {NONE}]


def output_rows(pair: Pair, most: int) -> list[list[str]]:
    """Return what there is to say of each output: its path, and texts for the columns of `output_columns`."""
    return [
        [
            numbers.path or "output",
            f"{numbers.different:,} of {numbers.elements:,}",
            significant(numbers.max_abs),
            significant(numbers.mean_abs),
            significant(numbers.max_rel),
            NONE if numbers.max_ulp is None else significant(float(numbers.max_ulp)),
            f"{numbers.cosine:.6f}",
            _agreement(numbers),
            NONE if numbers.first_difference is None else str(numbers.first_difference),
        ]
        for numbers in pair.outputs[:most]
    ]


OUTPUT_COLUMNS = ("output", "differ", "max abs", "mean abs", "max rel", "max ULP", "cosine", "top-1", "first")


def _agreement(numbers: Numbers) -> str:
    return NONE if numbers.classes is None else share(numbers.classes.top1_agreement)
