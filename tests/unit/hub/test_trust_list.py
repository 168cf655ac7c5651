"""The lists of trusted repositories: lines that survive writers at once, and entries that name one thing."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from isohub.errors import RefError
from isohub.hub import trust_list
from isohub.hub.trust_list import Entry

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# ------------------------------------------------------------------------------------------ the lists


def test_lines_survive_writers_at_once(folder: Path) -> None:
    """Many threads, processes, and a torch.hub that knows no lock lose no line and double none."""
    script = """
import sys
from pathlib import Path
from isohub.hub import trust_list
from isohub.hub.trust_list import Entry
for number in range(20):
    trust_list.add(Entry.parse(f"ada/p{number}"), Path(sys.argv[1]))
    trust_list.add(Entry.parse(f"ada/{sys.argv[2]}-{number}"), Path(sys.argv[1]))
"""
    start = [sys.executable, "-c", script, str(folder)]
    processes = [subprocess.Popen([*start, name]) for name in ("x", "y")]

    def like_torch_hub(number: int) -> None:
        with (folder / "trusted_list").open("a") as file:
            file.write(f"bob_t{number}\n")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(like_torch_hub, range(50)))
        list(pool.map(lambda number: trust_list.add(Entry.parse(f"ada/p{number % 20}"), folder), range(60)))

    assert [process.wait() for process in processes] == [0, 0]
    expected = {f"bob_t{number}" for number in range(50)} | {f"ada_{who}{n}" for who in "p" for n in range(20)}
    expected |= {f"ada_{who}-{number}" for who in "xy" for number in range(20)}
    assert sorted(expected) == sorted((folder / "trusted_list").read_text().splitlines())


def test_removed_repository_loses_its_commits(folder: Path) -> None:
    """Taking a repository away leaves nothing of it trusted, and everything else as it was, links too."""
    (folder / "elsewhere").write_text("bob_net\nada_models")
    (folder / "trusted_list").symlink_to("elsewhere")
    for text in (f"ada/models@{COMMIT}", f"ada/models2@{COMMIT}", "gitlab.com/ada/models"):
        trust_list.add(Entry.parse(text), folder)

    gone = trust_list.remove(Entry.parse("ada/models"), folder)

    assert [str(entry) for entry in gone] == ["ada/models", f"ada/models@{COMMIT}"]
    assert (folder / "elsewhere").read_text() == "bob_net\n"
    assert (folder / "trusted_list").is_symlink()
    kept = [str(entry) for entry in trust_list.entries(folder)]
    assert kept == ["bob/net", f"ada/models2@{COMMIT}", "gitlab.com/ada/models"]
    assert trust_list.remove(Entry.parse("ada/models"), folder) == ()


def test_damaged_list_costs_its_line_alone(folder: Path) -> None:
    """A line that cannot be read is left out; the others count."""
    (folder / "isohub_trusted_list").write_bytes(b"gitlab.com/a/b\n*\n\xff\xfe\n# why\ngitlab.com/c/d\n")

    assert [str(entry) for entry in trust_list.entries(folder)] == ["gitlab.com/a/b", "gitlab.com/c/d"]


@pytest.mark.parametrize(
    "text", ["ada/models", f"ada/models@{COMMIT}", "gitlab.com/ada/models", "github.com/a/b/c", "h:1/a/b"]
)
def test_entry_reads_what_it_prints(text: str) -> None:
    """`str` and `parse` are inverse."""
    assert str(Entry.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["https://h.org/a/b", "git+ssh://git@h.org/a/b.git", "git@h.org:a/b.git", f"git+https://h.org/a/b@{COMMIT}"]
)
def test_entry_reads_urls(text: str) -> None:
    """However a repository is reached, it is one entry."""
    assert str(Entry.parse(text)) == "h.org/a/b" + (f"@{COMMIT}" if COMMIT in text else "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ada",
        "file:///srv/models",
        "ada/",
        "/models",
        "ada/models:v1",
        "ada/models@v1",
        "ada/*",
        "git+https://h/a/b@v1",
        "a b/c",
        "./x",
    ],
)
def test_entry_refuses_what_may_move(text: str) -> None:
    """A branch, a pattern and what names nothing cannot be written into the list."""
    with pytest.raises(RefError):
        Entry.parse(text)
