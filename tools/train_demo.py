"""Train the two versions of the demo's digit reader, and write their weights and the test images.

Run it with an interpreter that has torch, numpy and scikit-learn::

    python tools/train_demo.py

It writes `isohub/demo/digits/v1/weights.pt`, `.../v2/weights.pt` and `.../test_images.pt`, and prints how
many test images each version reads right. On one machine every run writes the same bytes; another processor
or another torch may round differently.

The data are scikit-learn's `load_digits`, 1797 images, of which the last 450 are the test images. They are
not shuffled first, since that makes the test easier: 3 nearest neighbours read 0.971 of the last 450 right,
and 0.987 to 0.991 of 450 drawn at random (measured), presumably as each writer's images stand together.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

DEMO = Path(__file__).resolve().parent.parent / "isohub" / "demo" / "digits"
TEST_COUNT = 450


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one version is trained."""

    epochs: int
    learning_rate: float
    weight_decay: float
    augment: bool
    """Whether each training image is shifted, at random, by up to one pixel."""


# Version 1 is a fair first try; what version 2 adds is what one would add next.
RECIPES = {
    "v1": Recipe(epochs=8, learning_rate=2e-3, weight_decay=0.0, augment=False),
    "v2": Recipe(epochs=60, learning_rate=1e-2, weight_decay=1e-2, augment=True),
}


def load_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images, `(1797, 1, 8, 8)` uint8, and their labels, `(1797,)` uint8."""
    # By name, since isohub itself does without scikit-learn, and so may the type checker's environment.
    digits = importlib.import_module("sklearn.datasets").load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1).contiguous()
    return images, torch.from_numpy(digits.target).to(torch.uint8)


def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return each image moved by -1, 0 or 1 pixel along each axis; what comes in is background."""
    count = len(images)
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    top = torch.randint(0, 3, (count, 1, 1), generator=generator)
    left = torch.randint(0, 3, (count, 1, 1), generator=generator)
    rows = top + torch.arange(8).view(1, 8, 1)
    columns = left + torch.arange(8).view(1, 1, 8)
    return padded[torch.arange(count).view(count, 1, 1), 0, rows, columns].unsqueeze(1)


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, recipe: Recipe) -> None:
    """Train `model` in place and leave it in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    batch_size = 64
    steps = recipe.epochs * (len(images) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    model.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            batch = shift(images[chosen], generator) if recipe.augment else images[chosen]
            loss = nn.functional.cross_entropy(model(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


def train_version(version: str) -> None:
    """Train one version in this process, and write its weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    images, labels = load_images()
    model = torch.hub.load(  # type: ignore[no-untyped-call]
        str(DEMO / version), "digits", source="local", pretrained=False
    )
    train(model, images[:-TEST_COUNT].float(), labels[:-TEST_COUNT].long(), RECIPES[version])
    with torch.inference_mode():
        right = model(images[-TEST_COUNT:].float()).argmax(1) == labels[-TEST_COUNT:]
    torch.save(model.state_dict(), DEMO / version / "weights.pt")
    print(f"{version}: {int(right.sum())} of {TEST_COUNT} right, accuracy {right.float().mean():.4f}")


def main() -> None:
    """Train what the command line asks for: one version, or each in a process of its own."""
    parser = argparse.ArgumentParser(description="Train the demo's digit readers.")
    parser.add_argument("version", nargs="?", choices=sorted(RECIPES), help="only this one, in this process")
    version = parser.parse_args().version
    # The hub folders are data of the package: no byte code may be left there.
    sys.dont_write_bytecode = True
    if version:
        train_version(version)
        return
    images, labels = load_images()
    torch.save(
        # Clones, as torch.save would write the whole storage behind a slice.
        {"images": images[-TEST_COUNT:].clone(), "labels": labels[-TEST_COUNT:].clone()},
        DEMO / "test_images.pt",
    )
    for name in RECIPES:
        # A process each, since both versions call their package `model`: that is the demo's point.
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    main()
