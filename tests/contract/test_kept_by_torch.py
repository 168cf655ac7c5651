"""The uses after which torch keeps parameters for good, in process as well: the same contract, less that one check."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

from tests.contract import architectures
from tests.contract.harness import INPUTS, USES, Use, compare
from tests.contract.test_isolated_module import KINDS

# The memory of those parameters, which is mapped as long as they live.
KEPT = ("mappings",)

CASES = [
    pytest.param(case, name, id=f"{case.name}-{name}")
    for case in USES if KINDS and case.kept_by_torch
    for name in case.on
]  # fmt: skip


@pytest.mark.parametrize(("case", "architecture"), CASES)
def test_use(case: Use, architecture: str, contract_repo: Path):
    """A use gives the same values, gradients, buffers, state and random stream on both twins."""
    assert compare(case, architecture, contract_repo) is None


@pytest.mark.parametrize("case", [case for case in USES if case.kept_by_torch], ids=lambda case: case.name)
def test_torch_keeps_them_in_process(case: Use):
    """A plain module's parameters live on after the use, so that it is not isohub that keeps an isolated one's."""
    model = architectures.cnn()
    parameters = [weakref.ref(parameter) for parameter in model.parameters()]
    case.run(model, INPUTS["cnn"].map(torch.Tensor.clone))
    del model
    gc.collect()

    assert any(parameter() is not None for parameter in parameters)
