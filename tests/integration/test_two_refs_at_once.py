"""The purpose of it all: two refs of one repository, live in one program, each with its own code."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from tests.helpers.repos import make_repo, sample, url, write_files
from tests.helpers.same import assert_same
from tests.helpers.warm import WarmPython
from tests.helpers.zoo import CASES, observe, script_file

VERSIONS = {tag: {**files, "scripted.pt": script_file(tag)} for tag, files in sample("zoo").items()}
OTHER = {"v1": "v2", "v2": "v1"}


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repo(tmp_path_factory.mktemp("zoo") / "owner" / "zoo", VERSIONS)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, warm_python: WarmPython) -> dict[str, dict[str, list[Any]]]:
    """What plain torch.hub gives for each version, in a fresh process of its own."""
    folder = tmp_path_factory.mktemp("plain")
    running = {}
    for version, files in VERSIONS.items():
        write_files(folder / version, files)
        arguments = ["-m", "tests.helpers.zoo", str(folder / version), str(folder / f"{version}.pt")]
        running[version] = warm_python.start(arguments, cwd=Path(__file__).parents[2])
    for process in running.values():
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return {version: torch.load(folder / f"{version}.pt", weights_only=True) for version in VERSIONS}


def test_versions_differ(expected: dict[str, dict[str, list[Any]]]):
    """The two versions answer differently in every case, or the tests here would prove nothing."""
    for case in CASES:
        with pytest.raises(AssertionError):
            assert_same(expected["v1"][case], expected["v2"][case])


@pytest.mark.parametrize("first", ["v1", "v2"])
@pytest.mark.parametrize("case", CASES)
def test_each_ref_gives_its_own_result(
    repo: Path, forkserver: int, expected: dict[str, dict[str, list[Any]]], case: str, first: str
):
    """Both refs, loaded in either order and called in turns, give bit for bit what each gives alone."""
    second = OTHER[first]

    one, answers = observe(lambda entry: isohub.load(url(repo, first), entry), case)
    assert_same(expected[first][case], answers)
    two, answers = observe(lambda entry: isohub.load(url(repo, second), entry), case)
    assert_same(expected[second][case], answers)

    for _ in range(3):
        for version, loaded in ((first, one), (second, two)):
            assert_same(_calls(expected[version][case], case, loaded), CASES[case](loaded))


def test_threads_call_both_refs_at_once(repo: Path, forkserver: int, expected: dict[str, dict[str, list[Any]]]):
    """Eight threads that call everything of both refs at once get no answer of the other ref's."""
    loaded = {
        (version, case): observe(lambda entry, version=version: isohub.load(url(repo, version), entry), case)[0]
        for version in VERSIONS
        for case in CASES
    }
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            start.wait()
            for case in (list(CASES) * 2)[number % len(CASES) :][: len(CASES)]:
                for version in ("v1", "v2") if number % 2 else ("v2", "v1"):
                    model = loaded[version, case]
                    assert_same(_calls(expected[version][case], case, model), CASES[case](model))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(isohub.workers()) == 2


def test_threads_load_both_refs_at_once(repo: Path, forkserver: int, expected: dict[str, dict[str, list[Any]]]):
    """Eight threads that load both refs at once share one worker a ref, and each gets its own code."""
    x = torch.linspace(-1, 1, 18).reshape(3, 6)
    start = threading.Barrier(8)
    answers: list[tuple[str, torch.Tensor]] = []

    def work(version: str) -> None:
        start.wait()
        answers.append((version, isohub.load(url(repo, version), "scripted")(x).detach()))

    threads = [threading.Thread(target=work, args=(version,)) for version in ["v1", "v2"] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(version for version, _ in answers) == ["v1"] * 4 + ["v2"] * 4
    for version, answer in answers:
        assert_same(_calls(expected[version]["scripted"], "scripted", None)[0], answer)
    assert len(isohub.workers()) == 2


def test_callers_own_modules_of_the_same_names(
    repo: Path,
    forkserver: int,
    expected: dict[str, dict[str, list[Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """A program with its own `models` and `utils` keeps them, and the repository gets its own."""
    write_files(tmp_path, {"models/__init__.py": 'VERSION = "mine"\n', "utils/__init__.py": "", "utils/late.py": ""})
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = {name: importlib.import_module(name) for name in ("models", "utils", "utils.late")}
    try:
        for version in VERSIONS:
            _, answers = observe(lambda entry, version=version: isohub.load(url(repo, version), entry), "cnn")
            assert_same(expected[version]["cnn"], answers)

        assert {name: sys.modules[name] for name in mine} == mine
        assert mine["models"].VERSION == "mine"
        found = {name for name in sys.modules if name.partition(".")[0] in ("models", "utils", "hubconf")}
        assert mine.keys() == found
    finally:
        for name in mine:
            del sys.modules[name]


def test_two_repositories_with_packages_of_one_name(
    forkserver: int, expected: dict[str, dict[str, list[Any]]], tmp_path: Path
):
    """Two repositories whose packages have the same names run side by side, each with its own code."""
    one = url(make_repo(tmp_path / "alice" / "zoo", {"main-1": VERSIONS["v1"]}), "main-1")
    two = url(make_repo(tmp_path / "bob" / "park", {"main-1": VERSIONS["v2"]}), "main-1")
    for case in ("cnn", "vad", "tokenizer"):
        first, answers = observe(lambda entry: isohub.load(one, entry), case)
        assert_same(expected["v1"][case], answers)
        second, answers = observe(lambda entry: isohub.load(two, entry), case)
        assert_same(expected["v2"][case], answers)
        assert_same(_calls(expected["v1"][case], case, first), CASES[case](first))
        assert_same(_calls(expected["v2"][case], case, second), CASES[case](second))


def _calls(answers: list[Any], case: str, loaded: Any) -> list[Any]:
    """Return those of a case's expected answers that come from calls: the last ones."""
    before_calls = 1 if case == "tokenizer" else 4  # see `observe`
    return answers[before_calls:]
