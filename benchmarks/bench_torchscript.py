"""Whether a ScriptModule over a worker's weights runs as fast as one that was made in process.

    python benchmarks/bench_torchscript.py [--busy] [--quick | --save]

A small convolutional network and a large linear one, each as the ScriptModule that isohub gives, as one that
torch.jit.script makes of the same module in this process, as that module itself, and as the module in its
worker. Where the weights lie in memory is all that differs between the first two.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch
from common import Options, Result, interleave, run

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


def measure(options: Options, result: Result) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "hubconf.py").write_text(HUBCONF)
        for name, shape in INPUTS.items():
            measure_model(Path(folder), name, torch.rand(shape), options, result)
        isohub.shutdown()


def measure_model(folder: Path, name: str, x: torch.Tensor, options: Options, result: Result) -> None:
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
                "isohub, here": lambda: ours(x),
                "in process, scripted": lambda: scripted(x),
                "in process, eager": lambda: eager(x),
            },
            rounds=options.rounds(60),
            repeats=3,
            warm_up=10,
            budget_s=15,
        )
        # Apart: whoever ran next would find the processor's caches full of the worker's.
        samples |= interleave({"isohub, in its worker": lambda: isolated(x)}, rounds=options.rounds(20))
    result.samples[name] = samples
    ours_s = samples["isohub, here"].median_s
    for other in ("in process, scripted", "in process, eager"):
        result.ratio(f"{name}: isohub / {other}", ours_s, samples[other].median_s)


if __name__ == "__main__":
    run("torchscript", measure, __doc__)
