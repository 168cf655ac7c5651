"""NumPy is no requirement: torch does without it, and so does isohub on either side."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

SCRIPT = """
import sys, warnings

sys.modules["numpy"] = None
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
import torch
import isohub

torch.manual_seed(0)
model, size = isohub.load(sys.argv[1], "parts", isolate=isohub.Isolation(setup=lambda: None))
assert size(b"x" * 5000) == 5000
print(model(torch.ones(2)).shape, torch.rand(1).numel())
"""


def test_program_without_numpy_loads_and_calls(repo_of: Callable[..., str]):
    """A program in which NumPy cannot be imported loads, draws random numbers, and passes bytes and functions."""
    repo = repo_of("import torch\n\ndef parts():\n    return torch.nn.Linear(2, 3), len\n")

    done = subprocess.run([sys.executable, "-c", SCRIPT, repo], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (0, "torch.Size([3]) 1\n"), done.stderr


def test_worker_without_numpy_answers(repo_of: Callable[..., str]):
    """The worker's side takes bytes, pickles and generator states without `Tensor.numpy`."""
    import isohub

    def without() -> None:
        import torch

        def refuse(*_: object, **__: object) -> None:
            raise RuntimeError("Numpy is not available")

        torch.Tensor.numpy = refuse

    repo = repo_of("import torch\n\ndef size(data, function):\n    return function(data) + len(torch.rand(2))\n")

    assert (
        isohub.load(repo, "size", b"x" * 5000, lambda data: 2 * len(data), isolate=isohub.Isolation(setup=without))
        == 10002
    )
