"""One worker for all uses, and one thread: to start and end a worker for each takes longer than most uses."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import isohub
from tests.contract.harness import make_contract_repo
from tests.helpers.leaks import holdings
from tests.helpers.waiting import until


@pytest.fixture(scope="session")
def contract_repo(tmp_path_factory: pytest.TempPathFactory, forkserver: int) -> Path:
    return make_contract_repo(tmp_path_factory.mktemp("contract") / "owner" / "models")


@pytest.fixture(scope="module", autouse=True)
def no_leaks(request: pytest.FixtureRequest, one_thread: None, forkserver: int) -> Iterator[None]:
    """Fail if the tests of a file, taken together, leave something behind; see `no_leaks` of all other tests.

    A file may name in `KEPT` what torch itself does not let go of after its tests.
    """
    kept = getattr(request.module, "KEPT", ())
    gc.collect()
    before = holdings()
    yield
    for worker in isohub.workers():
        worker.close()
    gc.collect()

    def left() -> dict[str, object]:
        gc.collect()  # each time: what a thread held that is just ending may be part of a cycle
        return {kind: what for kind, what in holdings().more_than(before).items() if kind not in kept}

    try:
        until(lambda: not left())
    except AssertionError:
        raise AssertionError(f"left behind: {left()}") from None
