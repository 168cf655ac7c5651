"""What a training step of an isolated module costs against the same step in process.

    python benchmarks/bench_train.py [--busy] [--quick | --save]

A step is forward, backward and an SGD step with momentum. "Backward alone" is the backward of a forward that
was made before, without its clock running. Four models, from one in which nearly all is the border to a
ResNet-18 (batch 8, 64x64), in which nearly all is arithmetic; isolated and in process take turns, with one
thread each.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import Options, Result, Sample, interleave, run

import isohub

HUBCONF = """
import torch
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

class Residual(nn.Module):
    def __init__(self, width, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or width != out:
            self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

def resnet18():
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for width, out, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [Residual(width, out, stride), Residual(out, out, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
"""
SHAPES = {"tiny": (4, 8), "deep": (16, 32), "cnn": (8, 3, 128, 128), "resnet18": (8, 3, 64, 64)}
ROUNDS = {"tiny": 100, "deep": 30, "cnn": 10, "resnet18": 20}


def measure(options: Options, result: Result) -> None:
    torch.set_num_threads(1)  # on a machine in use, threads that wait for each other would be all that is seen
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "hubconf.py").write_text(HUBCONF)
        for name, shape in SHAPES.items():
            models = {
                "isohub": isohub.load(Path(folder), name),
                "in process": isohub.load(Path(folder), name, isolate=False),
            }
            measure_model(name, models, torch.rand(shape), options.rounds(ROUNDS[name]), result)
        isohub.shutdown()


def measure_model(name: str, models: dict[str, torch.nn.Module], x: torch.Tensor, rounds: int, result: Result) -> None:
    steps = {who: step_of(model, x) for who, model in models.items()}
    found = {
        "step": interleave(steps, rounds=rounds, warm_up=min(rounds, 5), budget_s=15),
        "backward alone": interleave_backward(models, x, rounds),
    }
    for what, samples in found.items():
        there, here = samples["isohub"].median_s, samples["in process"].median_s
        result.samples[f"{name}: {what}"] = samples
        result.ratio(f"{name}: {what}, isohub / in process", there, here)
        result.measures[f"{name}: {what}, overhead, us"] = round((there - here) * 1e6, 1)


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
    run("train", measure, __doc__)
