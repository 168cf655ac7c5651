"""Whether a ScriptModule over a worker's weights runs as fast as one that was made in process.

    python benchmarks/bench_torchscript.py [--save]

A small convolutional network and a large linear one, each as the ScriptModule that isohub gives, as one that
torch.jit.script makes of the same module in this process, as that module itself, and as the module in its
worker. Where the weights lie in memory is all that differs between the first two.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch
from common import interleave, report

import isohub

HUBCONF = """
import torch
from torch import nn

def convolutions():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()

def linear():
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(4)]).eval()
"""
INPUTS = {"convolutions": (2, 3, 64, 64), "linear": (16, 1024)}
GOAL = "isohub's / in process, scripted: 1.0"


def main() -> None:
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "hubconf.py").write_text(HUBCONF)
        for name, shape in INPUTS.items():
            result[name] = measure(Path(folder), name, torch.rand(shape))
        isohub.shutdown()
    report("torchscript", {"models": result, "goal": GOAL})


def measure(folder: Path, name: str, x: torch.Tensor) -> dict[str, object]:
    ours = isohub.load(folder, name, returns="torchscript")
    isolated = isohub.load(folder, name)
    eager = isohub.load(folder, name, isolate=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(eager)
    with torch.no_grad():
        assert torch.equal(eager(x), ours(x))
        samples = interleave(
            {
                "isohub's": lambda: ours(x),
                "in process, scripted": lambda: scripted(x),
                "in process, eager": lambda: eager(x),
            },
            rounds=60,
            repeats=3,
            warm_up=10,
        )
        # Apart: whoever ran next would find the processor's caches full of the worker's.
        samples |= interleave({"in its worker": lambda: isolated(x)}, rounds=20)
    base = samples["isohub's"].median_s
    return {
        "isohub's / in process, scripted": round(base / samples["in process, scripted"].median_s, 3),
        "isohub's / in process, eager": round(base / samples["in process, eager"].median_s, 3),
        **{variant: sample.asdict() for variant, sample in samples.items()},
    }


if __name__ == "__main__":
    main()
