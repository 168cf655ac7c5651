"""Runs the examples of README.md and docs/: a code block is executed, and the text block after it is what it prints."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parent
# Files and folders of more than half a minute.
LONG = tuple(
    str(ROOT / "tests" / name)
    for name in (
        "contract",
        "real",
        "crash",
        "comparison",
        "attacks/test_hostile_answers.py",
        "integration/test_pickles.py",
    )
)


class _Python(CodeBlockParser):
    language = "python"

    def evaluate(self, example: Example) -> str | None:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example.parsed, f"{example.path}:{example.line}", "exec"), example.namespace)
        example.namespace["__printed__"] = printed.getvalue()
        return None


class _Printed(CodeBlockParser):
    language = "text"

    def evaluate(self, example: Example) -> str | None:
        if not example.document.text[: example.start].rstrip().endswith("```"):
            return None  # a drawing: only a block right after an example is what that prints
        expected, printed = str(example.parsed).strip(), example.namespace["__printed__"].strip()
        return None if printed == expected else f"expected:\n{expected}\nprinted:\n{printed}"


@pytest.fixture(scope="module")
def empty_folder() -> Iterator[None]:
    """Run a page's examples in a folder of their own, and end their workers afterwards."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TORCH_HOME", str(Path(folder) / "torch-home"))
        os.chdir(folder)
        yield
        os.chdir(before)
        import isohub

        isohub.shutdown()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without collecting garbage: what is imported here stays, and is a fifth faster to import so."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, and the examples of each page together and in their order.

    Of two processes neither then has a long file left when the other is done. An example builds on those before it.
    """
    examples = [item for item in items if isinstance(item, SybilItem)]
    items[:] = [item for item in items if not isinstance(item, SybilItem)]
    items.sort(key=lambda item: not str(item.path).startswith(LONG))
    items += sorted(examples, key=lambda item: (item.path, item.example.start))


pytest_collect_file = Sybil(
    parsers=[_Python(), _Printed()],
    path=str(ROOT),
    patterns=["README.md", "docs/**/*.md"],
    fixtures=["empty_folder"],
).pytest()
