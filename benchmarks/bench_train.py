"""What a training step of an isolated module costs against the same step in process.

    python benchmarks/bench_train.py [--save]

A step is forward, backward and an SGD step with momentum. "Backward alone" is the backward of a forward that
was made before, without its clock running. Three models, from one in which nearly all is the border to one
in which nearly all is arithmetic; isolated and in process take turns, with one thread each.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import Sample, interleave, report

import isohub

HUBCONF = """
from torch import nn

def block(width):
    return [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]

def tiny():
    return nn.Linear(8, 8)

def deep():
    return nn.Sequential(*[layer for _ in range(50) for layer in (nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU())])

def cnn():
    stem = [nn.Conv2d(3, 32, 7, stride=4, padding=3), nn.ReLU()]
    blocks = [layer for _ in range(6) for layer in block(32)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
"""
SHAPES = {"tiny": (4, 8), "deep": (16, 32), "cnn": (8, 3, 128, 128)}
ROUNDS = {"tiny": 100, "deep": 30, "cnn": 10}


def main() -> None:
    torch.set_num_threads(1)  # on a machine in use, threads that wait for each other would be all that is seen
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "hubconf.py").write_text(HUBCONF)
        result: dict[str, object] = {}
        for name, shape in SHAPES.items():
            isolated = isohub.load(Path(folder), name)
            plain = isohub.load(Path(folder), name, isolate=False)
            result[name] = measure(isolated, plain, torch.rand(shape), ROUNDS[name])
        isohub.shutdown()
    report("train", {"models": result})


def measure(isolated: torch.nn.Module, plain: torch.nn.Module, x: torch.Tensor, rounds: int) -> dict[str, object]:
    models = {"isolated": isolated, "in process": plain}
    whole = interleave({name: step_of(model, x) for name, model in models.items()}, rounds=rounds, warm_up=5)
    backward = interleave_backward(models, x, rounds)
    found: dict[str, object] = {"parameters": sum(1 for _ in plain.parameters())}
    for what, samples in {"step": whole, "backward alone": backward}.items():
        here, there = samples["in process"].median_s, samples["isolated"].median_s
        found[what] = {
            "ratio": round(there / here, 2),
            "overhead, us": round((there - here) * 1e6, 1),
            **{name: sample.asdict() for name, sample in samples.items()},
        }
    return found


def step_of(model: torch.nn.Module, x: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    return step


def interleave_backward(models: dict[str, torch.nn.Module], x: torch.Tensor, rounds: int) -> dict[str, Sample]:
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            model.zero_grad()
            loss = model(x).sum()
            start = time.perf_counter()
            loss.backward()
            times[name].append(time.perf_counter() - start)
    return {name: Sample(tuple(found)) for name, found in times.items()}


if __name__ == "__main__":
    main()
