"""The report, opened in a browser."""

from __future__ import annotations

import builtins
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import isohub
from isohub.errors import ComparisonError
from tests.helpers.browser import Browser, browser, find_browser
from tests.helpers.cli import invoke
from tests.helpers.histories import History

pytestmark = pytest.mark.usefixtures("forkserver", "one_thread", "drawn")

# All figures with their places in the data, the data themselves, and what a reader of the page depends on.
LOOK = """
(() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const found = channels(getComputedStyle(one).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
  };
  const contrast = (element) => {
    const [a, b] = [light(channels(getComputedStyle(element).color)), light(behind(element))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const texts = [...document.querySelectorAll('h1, h2, p, li, td, th, figcaption, summary, pre span, data, caption')];
  const ids = [...document.querySelectorAll('[id]')].map((one) => one.id);
  return {
    figures: [...document.querySelectorAll('data')].map((one) => [one.dataset.name, one.value, one.textContent]),
    data: JSON.parse(document.getElementById('comparison').textContent),
    width: document.documentElement.scrollWidth,
    contrast: Math.min(...texts.map(contrast)),
    headings: [...document.querySelectorAll('h1, h2, h3')].map((one) => one.tagName),
    plots: [...document.querySelectorAll('figure')].map((one) =>
      [one.getAttribute('aria-label'), one.querySelector('figcaption').textContent.length > 60,
       one.querySelector('svg').getAttribute('aria-hidden'), one.querySelector('svg').getBoundingClientRect().width]),
    doubled: ids.filter((id, place) => ids.indexOf(id) !== place),
    dangling: [...document.documentElement.outerHTML.matchAll(/url\\(#([^)]+)\\)|xlink:href="#([^"]+)"/g)]
      .map((found) => found[1] || found[2]).filter((id) => !document.getElementById(id)),
    language: document.documentElement.lang,
  };
})()
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A running browser."""
    found = find_browser()
    if found is None:
        pytest.skip(
            "there is no Chromium: `make tests` gets it where apt-get can, by tools/get_browser.sh; or install it"
        )
    with browser(*found, tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, digits: Path, forkserver: int) -> tuple[Path, dict[str, Any]]:
    """A report, and what `--json` said of the same comparison."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    done = invoke(
        "compare", f"git+file://{digits}", "digits", "--ref", "v1", "--ref", "v2", "--random", "float32[16,1,8,8]",
        "--html", str(path), "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    return path, json.loads(done.stdout)


def at(document: Any, place: str) -> Any:
    """Return what stands at `pairs.0.metrics.max_abs`."""
    for name in place.split("."):
        document = document[int(name)] if isinstance(document, list) else document[name]
    return document


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_report_in_a_browser(
    chromium: Browser, report: tuple[Path, dict[str, Any]], width: int, height: int, scheme: str
):
    """The page makes no request, has no error, fits its window, can be read, and says what `--json` says."""
    path, document = report
    page = chromium.open(path.as_uri(), width=width, height=height, scheme=scheme, expression=LOOK)
    seen = page.evaluated

    assert page.console == []
    assert page.requests == [path.as_uri()]
    assert {key: value for key, value in document.items() if key not in ("fail_on", "failures")} == seen["data"]
    assert len(seen["figures"]) > 45
    assert {name: value for name, value, _ in seen["figures"]} == {
        name: json.dumps(at(document, name)).strip('"') for name, _, _ in seen["figures"]
    }
    assert seen["width"] == width
    assert seen["contrast"] >= 4.5
    assert (seen["headings"][0], seen["headings"].count("H1"), seen["language"]) == ("H1", 1, "en")
    assert [plot[:3] for plot in seen["plots"]] == [
        ["Outputs of v2 over v1", True, "true"],
        ["Difference by layer, v2", True, "true"],
        ["Time of a call", True, "true"],
    ]
    assert all(250 < plot[3] <= width for plot in seen["plots"])
    assert (seen["doubled"], seen["dangling"]) == ([], [])
    picture = Image.open(io.BytesIO(page.screenshot))
    assert picture.width == width
    # The plots are drawn in colours, and not blank.
    assert len(picture.convert("RGB").getcolors(1 << 20) or range(1 << 20)) > 200


def test_figures_are_shown_as_they_are(report: tuple[Path, dict[str, Any]], chromium: Browser):
    """The text of a figure is its value, rounded to three digits and no further off."""
    path, _ = report
    figures = chromium.open(path.as_uri(), width=1280, height=900, expression=LOOK).evaluated["figures"]
    numbers = [(float(value), text) for _, value, text in figures if value not in ("true", "false", "inf", "nan")]

    assert len(numbers) > 40
    assert [text for value, text in numbers if float(text.replace(",", "")) != pytest.approx(value, rel=5e-3)] == []


def test_notebook_shows_the_report_in_a_frame(history: History, chromium: Browser, tmp_path: Path):
    """A notebook shows the whole report, kept apart from the notebook's own page."""
    found = isohub.compare(
        f"git+file://{history.folder}", "net", [history.named["rename"], "main"], checks=["state", "structure", "code"]
    )
    (tmp_path / "cell.html").write_text(f"<!DOCTYPE html><meta charset=utf-8>{found._repr_html_()}")
    look = "document.querySelector('iframe').getAttribute('srcdoc')"
    page = chromium.open((tmp_path / "cell.html").as_uri(), width=1000, height=700, expression=look)

    assert page.console == []
    assert page.evaluated == found.to_html()


def test_without_the_extra(history: History, monkeypatch: pytest.MonkeyPatch):
    """Without the packages of the extra the report is an error that names it, and a notebook shows the table."""
    found = isohub.compare(f"git+file://{history.folder}", "net", [history.named["rename"], "main"], checks=["code"])
    real = builtins.__import__

    def missing(name: str, *args: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] in ("matplotlib", "jinja2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setattr("isohub.comparison.page._template", lambda: missing("jinja2"))

    with pytest.raises(ComparisonError, match=r"package jinja2, which .* pip install 'isohub\[compare\]'"):
        found.to_html()
    assert found._repr_html_().startswith("<pre>")
