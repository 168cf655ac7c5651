"""A module like any other: each use gives on an isolated module what it gives on a plain one, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.harness import ALL, USES, Use, compare
from tests.contract.uses import autograd, casts, hooks, modes, optimizers, state, surgery, wrappers

KINDS = (autograd, casts, hooks, modes, optimizers, state, surgery, wrappers)


@pytest.mark.parametrize(
    ("case", "architecture"),
    [pytest.param(case, name, id=f"{case.name}-{name}") for case in USES if not case.kept_by_torch for name in case.on],
)
def test_use(case: Use, architecture: str, contract_repo: Path, record_property: Callable[[str, object], None]):
    """A use gives the same values, gradients, buffers, state and random stream on both twins."""
    refusal = compare(case, architecture, contract_repo)
    if refusal is not None:
        record_property("refused", refusal)
        assert len(refusal) > 40, f"a refusal must name the way that works: {refusal!r}"


def test_contract_is_as_wide_as_it_says():
    """There are at least 60 uses, and at least 8 architectures with 20 uses each."""
    widths = {name: sum(name in case.on for case in USES) for name in ALL}

    assert len(USES) >= 60
    assert sum(width >= 20 for width in widths.values()) >= 8, widths
