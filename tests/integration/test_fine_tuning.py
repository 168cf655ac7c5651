"""Training runs as people write them, of isolated models and of the same in process: alike to the last bit."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from torch import nn

import isohub
from tests.contract import architectures
from tests.contract.harness import INPUTS, make_contract_repo
from tests.helpers.repos import make_repo, url
from tests.helpers.same import assert_same

STEPS = 50

# Two versions of one file, as two branches of a repository have them: the names are the same.
GENERATOR = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6))

        def forward(self, x):
            return torch.tanh(self.layers(x))
"""
DISCRIMINATOR = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(16, 1))

        def forward(self, x):
            return self.layers(x)
"""
HUBCONF = "from models.net import Net\n\ndef net():\n    return Net()\n"


@pytest.fixture(scope="module")
def contract_repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_contract_repo(tmp_path_factory.mktemp("tuning") / "owner" / "models")


@pytest.fixture(scope="module")
def two_refs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repo(tmp_path_factory.mktemp("gan") / "owner" / "gan", {
        "generator": {"hubconf.py": HUBCONF, "models/__init__.py": "", "models/net.py": GENERATOR},
        "discriminator": {"hubconf.py": HUBCONF, "models/__init__.py": "", "models/net.py": DISCRIMINATOR},
    })  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread(forkserver: int) -> Iterator[None]:
    """Wait for no thread that other programs keep from running; workers follow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("frozen", [False, True], ids=["all of it", "head alone"])
@pytest.mark.parametrize("architecture", ["cnn", "transformer", "stochastic"])
def test_fine_tuning_is_the_same_to_the_last_bit(contract_repo: str, forkserver: int, architecture: str, frozen: bool):
    """50 steps with a new head, dropout, batch norm, Adam, clipping and a schedule end in the same losses and state."""
    torch.manual_seed(0)
    expected = fine_tune(getattr(architectures, architecture)(), architecture, frozen)
    torch.manual_seed(0)
    actual = fine_tune(isohub.load(contract_repo, architecture), architecture, frozen)

    assert_same(expected, actual)


def fine_tune(model: Any, architecture: str, frozen: bool) -> dict[str, Any]:
    """Train as a tutorial on fine-tuning does; return all that comes of it."""
    if frozen:
        for parameter in model.parameters():
            parameter.requires_grad = False
    model.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=STEPS)
    (shape,) = (tensor.shape[1:] for tensor in INPUTS[architecture].args)
    losses, norms = [], []
    model.train()
    for _ in range(STEPS):
        inputs, targets = torch.randn(8, *shape), torch.randint(10, (8,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets, label_smoothing=0.1)
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    with torch.no_grad():
        answer = model.eval()(torch.randn(8, *shape))
    assert losses[-1] != losses[0]
    return {
        "losses": losses, "norms": norms, "answer": answer, "state": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(), "rates": schedule.get_last_lr(), "generator": torch.get_rng_state(),
    }  # fmt: skip


def test_two_refs_train_each_other(two_refs: Path, forkserver: int):
    """A generator and a discriminator, of two refs with the same names, train in one graph as they do in process."""
    torch.manual_seed(0)
    expected = play(plain(GENERATOR), plain(DISCRIMINATOR))
    torch.manual_seed(0)
    actual = play(*(isohub.load(url(two_refs, ref), "net") for ref in ("generator", "discriminator")))

    assert len(isohub.workers()) == 2
    assert_same(expected, actual)


def plain(source: str) -> nn.Module:
    """Return the network of a file, in a namespace of its own."""
    module = types.ModuleType("net")
    exec(dedent(source), vars(module))
    return module.Net()


def play(generator: Any, discriminator: Any, rounds: int = 20) -> dict[str, Any]:
    """Train the two against each other; return all that comes of it."""
    players = (generator, discriminator)
    steps = [torch.optim.Adam(player.parameters(), lr=0.01, betas=(0.5, 0.999)) for player in players]
    loss_of = nn.BCEWithLogitsLoss()
    losses = []
    for _ in range(rounds):
        made = generator(torch.randn(8, 4))
        steps[1].zero_grad()
        real = loss_of(discriminator(torch.randn(8, 6)), torch.ones(8, 1))
        fake = loss_of(discriminator(made.detach()), torch.zeros(8, 1))
        (real + fake).backward()
        steps[1].step()
        steps[0].zero_grad()
        fooled = loss_of(discriminator(made), torch.ones(8, 1))
        fooled.backward()
        steps[0].step()
        losses += [real.item(), fake.item(), fooled.item()]
    return {
        "losses": losses, "generator": torch.get_rng_state(),
        "states": [dict(player.state_dict()) for player in players],
        "gradients": [[parameter.grad for parameter in player.parameters()] for player in players],
    }  # fmt: skip
