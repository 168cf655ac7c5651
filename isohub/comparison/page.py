"""The report: one page that makes no request, with all its figures in it as data, too."""

from __future__ import annotations

import html
import json
import math
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from isohub.comparison.expression import METRICS
from isohub.comparison.figures import NONE, SYMBOLS, duration, nbytes, share, version_rows
from isohub.comparison.results import Results, plain
from isohub.comparison.verdict import significant
from isohub.errors import ComparisonError

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["embedded", "page"]


def page(comparison: Results) -> str:
    """Return the whole page.

    Raises:
        ComparisonError: The packages that it is made with are not installed.
    """
    try:
        from isohub.comparison.plots import plots_of

        plots = plots_of(comparison)
        template = _template()
    except ImportError as error:
        raise ComparisonError(
            f"The report is made with the package {error.name}, which is not installed: pip install 'isohub[compare]'"
        ) from None
    return template.render(
        comparison=comparison,
        plots=plots,
        version_rows=version_rows(comparison.versions),
        # In a script element "<" may not stand: "</script>" in a docstring would end it.
        figures=json.dumps(comparison.to_dict(), allow_nan=False).replace("<", "\\u003c"),
    )


def embedded(comparison: Results) -> str:
    """Return the page for a notebook: in a frame of its own, so that neither's style strikes the other."""
    try:
        whole = page(comparison)
    except ComparisonError:
        return f"<pre>{html.escape(str(comparison))}</pre>"
    return (
        f'<iframe title="Comparison of {html.escape(comparison.entrypoint)}" srcdoc="{html.escape(whole)}" sandbox="" '
        'style="width: 100%; height: 42rem; border: 1px solid #8888; border-radius: 8px"></iframe>'
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"drawing": Markup, "figure": _figure, "number": significant, "share": share}
    environment.filters |= {"duration": duration, "nbytes": nbytes, "kind_of_line": _kind_of_line}
    environment.globals |= {"SYMBOLS": SYMBOLS, "METRICS": METRICS, "NONE": NONE}
    return environment.from_string(files("isohub.comparison").joinpath("templates/report.html.j2").read_text("utf-8"))


def _figure(value: Any, name: str) -> Any:
    """Return a figure as an element that has its exact value, and its place in the data, beside the text."""
    from markupsafe import Markup

    if value is None:
        return Markup('<span class="none">{}</span>').format(NONE)
    if isinstance(value, bool):
        text = "yes" if value else "no"
    else:
        text = significant(value) if isinstance(value, float) or abs(value) >= 1000 else str(value)
        if isinstance(value, float) and math.isnan(value):
            text = "NaN"
    return Markup('<data value="{}" data-name="{}">{}</data>').format(json.dumps(plain(value)).strip('"'), name, text)


def _kind_of_line(line: str) -> str:
    """Return the class of a line of a diff."""
    if line.startswith(("+++", "---", "@@")):
        return "at"
    return {"+": "plus", "-": "minus"}.get(line[:1], "same")
