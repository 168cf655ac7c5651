"""The shape of the package, as far as its files show it. The import contracts are `make arch`'s."""

from __future__ import annotations

from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "isohub"
# Sample repositories are data: they look as strangers' do.
NOT_OURS = PACKAGE / "demo" / "digits"
MOST_LINES = 400
# Names that say nothing of what is inside, and so gather what belongs nowhere.
NAMELESS = {"common", "helpers", "misc", "util", "utils"}


def source_files(package: Path) -> list[Path]:
    return sorted(path for path in package.rglob("*.py") if NOT_OURS not in path.parents)


def too_long(paths: list[Path]) -> dict[str, int]:
    lengths = {str(path): len(path.read_text("utf-8").splitlines()) for path in paths}
    return {path: length for path, length in lengths.items() if length > MOST_LINES}


def nameless(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths if path.stem in NAMELESS or path.parent.name in NAMELESS]


def test_the_files_are_found():
    """The checks below look at the package, and not at the demo's repositories."""
    found = {path.relative_to(PACKAGE).as_posix() for path in source_files(PACKAGE)}

    assert "errors.py" in found
    assert not {name for name in found if name.startswith("demo/digits/")}


def test_no_file_is_long():
    """A file that outgrows 400 lines holds two things, and is split by what they are."""
    assert too_long(source_files(PACKAGE)) == {}


def test_no_file_is_nameless():
    """A helper used once lives where it is used; one used often has a name of its own."""
    assert nameless(source_files(PACKAGE)) == []


@pytest.mark.parametrize("lines", [400, 401], ids=["just right", "one too many"])
def test_length_check_can_fail(tmp_path: Path, lines: int):
    """The 401st line is the one that counts."""
    path = tmp_path / "long.py"
    path.write_text("pass\n" * lines)

    assert too_long(source_files(tmp_path)) == ({str(path): 401} if lines > 400 else {})


@pytest.mark.parametrize("name", ["utils.py", "utils/strings.py", "hub/helpers.py"])
def test_name_check_can_fail(tmp_path: Path, name: str):
    """A file and a folder of such a name are both found."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()

    assert nameless(source_files(tmp_path)) == [str(path)]
