"""Many loads at once with nothing in the cache: as they are, from a server in trouble, in processes that are killed.

torch.hub fails in most such loads, and runs another repository's code in some.

Loads may fail while the trouble lasts, by the one class of errors for it. None may ever be wrong, nothing
half-written may stay or be used, and as soon as the trouble is over every load succeeds.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers.cold_loads import PROCESSES, THREADS, ColdRepos, Loads, cold_loads, rounds
from tests.helpers.githost import GitHost, Misbehaviour, Request
from tests.helpers.programs import processes_with
from tests.helpers.versions import SETTINGS
from tests.helpers.waiting import until
from tests.helpers.warm import WarmPython

ROUNDS = rounds(1)
QUIET_ROUNDS = rounds(3)
# A token for each process tells who asks.
TOKENS = [f"sesame-{number}" for number in range(PROCESSES)]
LOADS = PROCESSES * THREADS * 6
_LIMIT = {"X-RateLimit-Limit": "60", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1900000000"}
# All but the last bytes, too: an archive has its index there, and a list of refs the packet that ends it.
_CUTS = (0, 1, 50, 200, -1, -4, -30)
# How often one question is asked at most: three times if the answer breaks off, each time four times if the
# server says that it is in trouble, and once where asking on would make a limit longer.
_MOST_ASKED = {"cut": 3, "500": 4, "403": 1, "redirect": 1, "mixed": 3 * 4}
# What git asks where http did not get through: the list without and with the token, and for the commit.
_BY_GIT = 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 60 * QUIET_ROUNDS)]


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> ColdRepos:
    return ColdRepos(tmp_path_factory.mktemp("repos"))


@pytest.fixture(scope="module")
def host(repos: ColdRepos) -> Iterator[GitHost]:
    """Where everything is for whoever has a token."""
    with GitHost() as running:
        repos.put_on(running, token=TOKENS)
        yield running


@pytest.fixture(scope="module")
def others(repos: ColdRepos) -> Iterator[list[GitHost]]:
    """Another port and another address of this machine, where everything lies open."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(GitHost(address=address)) for address in ("127.0.0.1", "127.0.0.2")]
        for each in hosts:
            repos.put_on(each)
        yield hosts


@pytest.fixture(scope="module", autouse=True)
def surroundings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in SETTINGS:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def loads(
    warm_python: WarmPython, host: GitHost, repos: ColdRepos, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Loads]:
    """The processes, which take longer to start than a round takes."""
    with cold_loads(warm_python, host, repos, tmp_path_factory.mktemp("loads"), tokens=TOKENS) as running:
        yield running
        assert running.end() == [0] * PROCESSES


def _plan(kind: str, turn: int, repos: ColdRepos, others: list[GitHost]) -> Callable[[str, int], Misbehaviour | None]:
    """Return a plan in which two requests of three meet with trouble, whoever makes them and when."""

    def plan(path: str, count: int) -> Misbehaviour | None:
        name = path
        for number, commit in enumerate(repos.commits):  # which is another one each time
            name = name.replace(commit, str(number))
        dice = random.Random(f"{kind} {turn} {name} {count}")
        if dice.random() < 1 / 3:
            return None
        how = dice.choice(["cut", "500", "403", "redirect"]) if kind == "mixed" else kind
        if how == "cut":
            return Misbehaviour("", cut_at=dice.choice(_CUTS))
        if how == "redirect":
            return Misbehaviour("", redirect=dice.choice(others).url + "{path}")
        return Misbehaviour("", status=int(how), headers=_LIMIT if how == "403" else {})

    return plan


def _archives(requests: list[Request]) -> Counter[str]:
    """Return how often each commit's archive was asked for."""
    paths = [request.path for request in requests if "/archive/" in request.path]
    return Counter(path.rpartition("/")[2].removesuffix(".zip") for path in paths)


def _whole(*hosts: GitHost) -> list[Request]:
    return [each for host in hosts for each in host.requests if each.status == 200 and each.is_whole]


def _assert_whole(repos: ColdRepos, home: Path) -> None:
    """Hold everything in a cache against the repositories: all commits, each byte, and nothing in the making."""
    assert repos.kept(home) == repos.files
    cache = home / "isohub"
    assert [path.name for path in (cache / "tmp").iterdir()] == ["sweep"]
    assert [path for path in cache.rglob("*") if path.suffix in {".new", ".tmp", ".partial"}] == []


def test_22_cold_cache(host: GitHost, loads: Loads, tmp_path: Path):
    """No load fails, none gives another repository's answer, and each commit is downloaded once a round."""
    for turn in range(QUIET_ROUNDS):
        host.forget()
        loads.tell(tmp_path / f"home{turn}")

        assert loads.found() == []
        assert _archives(host.requests) == dict.fromkeys(loads.repos.commits, 1)


@pytest.mark.parametrize("kind", list(_MOST_ASKED))
def test_22_server_in_trouble(host: GitHost, others: list[GitHost], loads: Loads, tmp_path: Path, kind: str):
    """Whatever a server does to bodies, statuses and redirects, no load is wrong, and later ones succeed.

    A commit comes whole once at most, what is asked is bounded, and the token stays with its own host.
    """
    most, repos = _MOST_ASKED[kind], loads.repos
    for turn in range(ROUNDS):
        home = tmp_path / f"home{turn}"
        for each in (host, *others):
            each.forget()

        host.plan = _plan(kind, turn, repos, others)
        loads.tell(home)
        found = loads.found()
        host.plan = None
        asked, held = list(host.requests), repos.kept(home)
        loads.tell(home, range(1))
        later = loads.found(0)

        assert [each for each in found if each[1] == "wrong"] == []
        assert later == []
        _assert_whole(repos, home)
        # While the trouble lasted: as often as each try may ask, for each load that failed and the one that did not.
        failed = Counter(text for text, *_ in found)
        archives = _archives(asked)
        for (text, _), commit in zip(repos.refs, repos.commits, strict=True):
            assert archives[commit] <= most * (failed[text] + 1)
        assert len(asked) <= LOADS * (most + _BY_GIT) + (len(found) + len(repos.refs)) * (most + _BY_GIT)
        # And after it: what was missing, once.
        assert _archives(host.requests[len(asked) :]) == dict.fromkeys(repos.files.keys() - held.keys(), 1)
        assert set(_archives(_whole(host, *others)).values()) == {1}
        # It was as it should be.
        assert any(not each.is_whole or each.status in {302, 403, 500} for each in asked)
        assert any(each.secret in TOKENS for each in asked)
        if kind in {"redirect", "mixed"}:
            assert all(each.requests for each in others)
        if kind == "redirect":
            assert found == []
        for request in (request for each in others for request in each.requests):
            assert "sesame" not in str(request.headers)
            assert request.secret is None


def test_23_killed_in_a_fetch(host: GitHost, loads: Loads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Half of the processes are killed in the middle of a body: the others and those after them lack nothing.

    Nothing that the killed ones had begun is used or stays, and no process of theirs goes on.
    """
    for turn in range(ROUNDS):
        for way, part in (("archive", "/archive/"), ("git", "/git-upload-pack$")):
            monkeypatch.setattr(host, "makes", ("github",) if way == "archive" else ())
            home = tmp_path / f"home-{way}-{turn}"
            host.forget()
            go_on = threading.Event()
            hold_at = random.Random(f"{way} {turn}").choice((0, 1, 100, 250))
            stuck = host.misbehave(part, hold_at=hold_at, wait_for=go_on)
            try:
                loads.tell(home)
                victims = _kill_half(loads, stuck)
            finally:
                host.behave()
                go_on.set()

            found = loads.found(*(set(range(PROCESSES)) - victims))
            loads.replace(victims)
            loads.tell(home, range(1))

            assert found == []
            assert loads.found(0) == []
            _assert_whole(loads.repos, home)
            asked = _archives(host.requests)
            if way == "archive":
                assert all(count <= 1 + len(victims) for count in asked.values())


def _kill_half(loads: Loads, stuck: Misbehaviour) -> set[int]:
    """Kill half of the processes, each while the server is in the middle of a body for it."""
    victims: set[int] = set()
    while len(victims) < PROCESSES // 2:
        victim = TOKENS.index(stuck.held.get(timeout=30).secret or "")
        if victim not in victims:  # one process may be in the middle of several
            victims.add(victim)
            loads.kill(victim)
    # The server still has them wait.
    variables = [f"TMPDIR={loads.programs[victim].temporary}" for victim in victims]
    until(lambda: not any(map(processes_with, variables)))
    return victims
