"""`isohub.bisect`: the first commit that changed a model, in histories with merges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub import trace
from isohub.comparison.history import choose
from isohub.errors import BisectError
from tests.helpers.histories import CHANGES as KINDS
from tests.helpers.histories import History, make_history
from tests.helpers.repos import git, make_repo, url

pytestmark = pytest.mark.usefixtures("forkserver", "one_thread")

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def loads() -> Iterator[list[str]]:
    """Commits from which something was loaded, as the package's own trace tells."""
    seen: list[str] = []

    def listen(step: trace.Step) -> None:
        if step.name == "model.load" and step.state == "started":
            seen.append(str(step.fields["commit"]))

    trace.add_listener(listen)
    yield seen
    trace.remove_listener(listen)


def find(history: History, good: str = "first", bad: str = "last", **options: Any) -> isohub.Bisection:
    options = {"jobs": 1, "inputs": X, "use_cache": False, **options}
    return isohub.bisect(f"git+file://{history.folder}", "net", history.named[good], history.named[bad], **options)


def test_guilty_commit_among_64(history: History, loads: list[str]):
    """Among 64 commits with merges the one that changed the activation is found in at most ceil(log2 n) + 2 loads."""
    found = find(history)

    assert found.commits == 64
    assert found.first_bad is not None
    assert found.first_bad.commit == history.named["activation"]
    assert len(loads) == found.loads <= math.ceil(math.log2(64)) + 2
    assert (found.first_bad.author, found.first_bad.subject) == ("Ada Example <ada@example.invalid>", "activation")
    assert [line for line in found.diff if line.startswith(("+ ", "- "))] == [
        "-        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())",
        "+        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.GELU())",
    ]
    assert found.changed_files == ["M net/model.py"]
    assert 0 < found.metrics["max_abs"] < 1
    assert isohub.workers() == []


@pytest.mark.parametrize("place", [1, 9, 26])
def test_wherever_it_is(tmp_path: Path, place: int, loads: list[str]):
    """Wherever the guilty commit stands, before, between or after merges, it is found in as few loads."""
    made = make_history(tmp_path / "owner" / "models", {place: "activation"})
    found = find(made)

    assert found.first_bad is not None
    assert found.first_bad.commit == made.named["activation"]
    assert len(loads) <= math.ceil(math.log2(64)) + 2


def test_second_run_is_instant(history: History, loads: list[str]):
    """What was tried is remembered: a second run loads nothing, and says the same."""
    first = find(history, use_cache=True, seed=77)
    before = len(loads)
    second = find(history, use_cache=True, seed=77)

    assert (len(loads) - before, second.loads, second.cached) == (0, 0, len(first.trials))
    assert (second.first_bad, second.diff, second.metrics) == (first.first_bad, first.diff, first.metrics)
    other = find(history, use_cache=True, seed=77, inputs=X + 1)
    assert other.cached == 0


def test_damaged_memory_is_looked_over(history: History, loads: list[str], own_cache: Path):
    """What is remembered and cannot be read is tried again."""
    find(history, use_cache=True, seed=78)
    before = len(loads)
    for place, path in enumerate(sorted(own_cache.glob("hub/isohub/comparisons/*/*/*.json"))):
        path.write_text(["", "[]", '{"version": 1}', '{"version": 1, "trial": {"commit": "x"}}', "{"][place % 5])
    again = find(history, use_cache=True, seed=78)

    assert (again.cached, len(loads)) == (0, 2 * before)


def test_commits_that_do_not_load_are_skipped(tmp_path: Path):
    """Commits that cannot be imported are skipped and counted, and the guilty one behind them is found."""
    changes = {2: "break", 24: "mend", 27: "activation"}
    made = make_history(tmp_path / "owner" / "models", changes)
    found = find(made)

    assert found.first_bad is not None
    assert found.first_bad.commit == made.named["activation"]
    assert found.skipped == sum(trial.verdict == "skipped" for trial in found.trials) > 0
    assert "a_package_that_is_not_there" in next(trial.reason for trial in found.trials if trial.verdict == "skipped")


def test_only_suspects_are_left(tmp_path: Path):
    """If the change hides behind commits that do not load, all those that it can be are named."""
    folder = tmp_path / "owner" / "repo"
    text = "import {}\n\n\ndef net():\n    return {}\n"
    versions = {
        f"v{n}": {"hubconf.py": text.format("os" if n in (1, 4) else f"missing{n}", n > 3)} for n in range(1, 5)
    }
    repo = make_repo(folder, versions)
    commits = [git(repo, "rev-parse", tag) for tag in ("v2", "v3", "v4")]
    found = isohub.bisect(url(repo), "net", "v1", "v4", use_cache=False)

    assert found.first_bad is None
    assert sorted(commit.commit for commit in found.suspects) == sorted(commits)
    assert found.skipped == 2


def test_speed_alone(history: History):
    """With a condition on speed the commit that only made it slower is found, past one that changed the outputs."""
    found = find(history, fail_on="latency_ratio_low > 3", speed_s=0.2)

    assert found.first_bad is not None
    assert found.first_bad.commit == history.named["slow"]


def test_broken_as_a_condition(history: History):
    """With a condition on being broken, commits that do not load are bad and not skipped."""
    found = find(history, bad="break", fail_on="broken")

    assert found.first_bad is not None
    assert (found.first_bad.commit, found.skipped) == (history.named["break"], 0)


def test_without_inputs(history: History):
    """Without inputs weights and modules are compared: the commit that changed a module's class is found."""
    found = find(history, inputs=None)

    assert found.first_bad is not None
    assert found.first_bad.commit == history.named["activation"]


def test_several_at_once(history: History, loads: list[str]):
    """Several commits tried at once come to the same, one worker each."""
    found = find(history, jobs=3)

    assert found.first_bad is not None
    assert found.first_bad.commit == history.named["activation"]
    assert len(loads) == found.loads == len(set(loads))


def test_same_files_are_loaded_once(tmp_path: Path, loads: list[str]):
    """Of commits with exactly the same files one is loaded."""
    repo = make_repo(tmp_path / "owner" / "repo", {"v1": {"hubconf.py": "def net():\n    return 1\n"}})
    for number in range(8):
        git(repo, "commit", "--quiet", "--allow-empty", "--message", f"nothing {number}")
    (repo / "hubconf.py").write_text("def net():\n    return 2\n")
    git(repo, "commit", "--quiet", "--all", "--message", "guilty")
    for number in range(8):
        git(repo, "commit", "--quiet", "--allow-empty", "--message", f"nothing more {number}")
    found = isohub.bisect(url(repo), "net", "v1", "main", use_cache=False, jobs=1)

    assert found.first_bad is not None
    assert (found.first_bad.subject, len(loads)) == ("guilty", 2)


def test_ends_that_make_no_sense(history: History, tmp_path: Path):
    """A bad commit that is no different, does not load, or comes before the good one is an error that says so."""
    with pytest.raises(BisectError, match=r"the bad commit, is no different: .* the same outputs") as caught:
        find(history, bad="rename")
    assert (caught.value.good, caught.value.bad) == (history.named["first"], history.named["rename"])
    with pytest.raises(BisectError, match=r"the bad commit, cannot be compared: .*a_package_that_is_not_there"):
        find(history, bad="break")
    with pytest.raises(BisectError, match="is an ancestor of the good one"):
        find(history, good="last", bad="first")
    with pytest.raises(BisectError, match="is the good one"):
        find(history, bad="first")


def test_good_one_on_another_branch(tmp_path: Path):
    """If the good commit itself made the difference, on a branch of its own, that is said instead of a wrong commit."""
    repo = make_repo(tmp_path / "owner" / "repo", {"base": {"hubconf.py": "def net():\n    return 1\n"}})
    git(repo, "checkout", "--quiet", "-b", "good")
    (repo / "hubconf.py").write_text("def net():\n    return 2\n")
    git(repo, "commit", "--quiet", "--all", "--message", "good")
    git(repo, "checkout", "--quiet", "main")
    git(repo, "commit", "--quiet", "--allow-empty", "--message", "bad")

    with pytest.raises(BisectError, match="both come from, differs from the good one as well"):
        isohub.bisect(url(repo), "net", "good", "main", use_cache=False)


def test_folder_is_its_repository(history: History):
    """A folder is bisected as the git repository that it is, whatever is edited in it."""
    found = isohub.bisect(history.folder, "net", history.named["rename"], "main", X, use_cache=False, jobs=1)

    assert found.first_bad is not None
    assert found.first_bad.commit == history.named["activation"]


def test_choice_goes_away_from_what_was_skipped():
    """The best commit is tried first; when it cannot be tried, one further away; each only once."""
    candidates = [f"c{n}" for n in range(30)]
    skipped: set[str] = set()
    order = []
    while (chosen := choose(candidates, skipped)) is not None:
        order.append(chosen)
        skipped.add(chosen)

    assert order[0] == "c0"
    assert sorted(order) == sorted(candidates)
    assert order[1] != "c1"


def test_kinds_of_changes_are_those_of_the_issue():
    """The generated histories know each kind of change that a bisection has to tell apart."""
    assert {"activation", "rename", "break", "slow"} <= set(KINDS)
