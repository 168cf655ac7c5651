"""Many processes and threads that load the same and different repositories with nothing in the cache.

torch.hub fails in most such loads, and runs another repository's code in some.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.cold_loads import PROCESSES, ColdRepos, cold_loads, rounds
from tests.helpers.githost import GitHost
from tests.helpers.versions import SETTINGS

ROUNDS = rounds(3)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * ROUNDS)
def test_22_cold_cache(tmp_path: Path):
    """No load fails, none gives another repository's answer, and each commit is downloaded once a round."""
    repos = ColdRepos(tmp_path)
    with GitHost() as host, cold_loads(host, repos, tmp_path) as loads:
        repos.put_on(host)
        for turn in range(ROUNDS):
            host.forget()
            loads.tell(tmp_path / f"home{turn}")

            assert loads.found() == []

            paths = [request.path for request in host.requests if "/archive/" in request.path]
            downloads = Counter(path.rpartition("/")[2].removesuffix(".zip") for path in paths)
            assert downloads == dict.fromkeys(repos.commits, 1)
        assert loads.end() == [0] * PROCESSES
