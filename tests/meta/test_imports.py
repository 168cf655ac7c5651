"""What comes along with `import isohub` and with `isohub --help`: next to nothing.

The import contracts see import statements only; here a fresh interpreter tells what it loaded in fact.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The library is imported by programs that may never load a model, so it brings in none of these.
NOT_FOR_THE_LIBRARY = {
    *("cloudpickle", "dill", "filelock", "msgspec", "multiprocess", "numpy", "requests", "rich", "torch", "typer"),
    *("asyncio", "multiprocessing", "subprocess"),
}
# The command line needs typer; it answers --help without what its commands need.
NOT_FOR_HELP = {"cloudpickle", "filelock", "msgspec", "multiprocess", "numpy", "requests", "rich", "torch"}
OF_ISOHUB_FOR_HELP = {"isohub", "isohub.cli", "isohub.cli.commands", "isohub.cli.main"}
# What the console script `isohub` does, with no need to find it on PATH.
CONSOLE_SCRIPT = """
import sys
from isohub.cli.main import main

sys.argv = ["isohub", "--help"]
sys.exit(main())
"""


def packages_imported_by(*arguments: str) -> set[str]:
    """Run a fresh interpreter with `arguments`, and return the top-level modules that it imported."""
    return {name.split(".")[0] for name in imported_by(*arguments)}


def imported_by(*arguments: str) -> set[str]:
    """Run a fresh interpreter with `arguments`, and return the modules that it imported."""
    # When this suite is measured, coverage would start in that interpreter too, and import plenty.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # import time:       123 |        456 |     package.module
    lines = done.stderr.splitlines()
    said = [line for line in lines if not line.startswith("import time:")]
    assert done.returncode == 0, "\n".join(said)
    return {line.rpartition("|")[2].strip() for line in lines if line not in said}


def test_library_is_light():
    """`import isohub` imports neither torch nor any other package."""
    assert packages_imported_by("-c", "import isohub") & NOT_FOR_THE_LIBRARY == set()


def test_library_imports_itself_alone():
    """`import isohub` imports nothing that a Python which does nothing has not imported."""
    assert imported_by("-c", "import isohub") - imported_by("-c", "pass") == {"__future__", "isohub"}


def test_library_check_can_fail():
    """A package that is imported late and from within another is found all the same."""
    script = "import isohub\ndef late():\n    import rich.text\nlate()"

    assert "rich" in packages_imported_by("-c", script) & NOT_FOR_THE_LIBRARY


@pytest.mark.parametrize(
    "arguments",
    [("-m", "isohub", "--help"), ("-c", CONSOLE_SCRIPT)],
    ids=["python -m isohub --help", "isohub --help"],
)
def test_help_is_light(arguments: tuple[str, ...]):
    """`--help` answers without torch, and without the modules of the commands."""
    imported = imported_by(*arguments)

    assert {name.split(".")[0] for name in imported} & NOT_FOR_HELP == set()
    assert {name for name in imported if name.split(".")[0] == "isohub"} - {"isohub.__main__"} == OF_ISOHUB_FOR_HELP
