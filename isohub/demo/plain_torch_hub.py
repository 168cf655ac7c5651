"""Load several versions of the demo in one process with `torch.hub`, and say how well each one reads.

Run by its path, in an interpreter that is thrown away afterwards::

    python plain_torch_hub.py CHECKOUT [CHECKOUT ...] IMAGES.pt

The checkouts are loaded in that order. With one of them the answer is right. With `v1` and then `v2` the
second load finds the package `model` of the first in `sys.modules`, so that the code of `v1` runs with the
weights of `v2`, and nothing says so.

It prints one line of JSON, a list with one object for each checkout: `checkout` (as given), `accuracy` (share
of the images read right) and `source` (the file that the model's class came from).
"""

from __future__ import annotations

import inspect
import json
import sys

import torch


def measure(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of the images that `model` reads right."""
    with torch.inference_mode():
        right = model(images).argmax(dim=1) == labels
    return int(right.sum()) / len(labels)


def main(arguments: list[str]) -> None:
    """Load every checkout first, then measure each model, and print the line of JSON."""
    if len(arguments) < 2:
        sys.exit("usage: plain_torch_hub.py CHECKOUT [CHECKOUT ...] IMAGES.pt")
    *checkouts, images_file = arguments
    # A checkout may be shared and read-only.
    sys.dont_write_bytecode = True
    # This process is no parent of isohub's, and trusts its arguments: it runs the checkouts' code next.
    loaded = torch.load(images_file, map_location="cpu", weights_only=True)  # noqa: TID251
    images, labels = loaded["images"].float(), loaded["labels"].long()
    models = [
        torch.hub.load(checkout, "digits", source="local")  # type: ignore[no-untyped-call]
        for checkout in checkouts
    ]
    report = [
        {
            "checkout": checkout,
            "accuracy": measure(model, images, labels),
            "source": inspect.getfile(type(model)),
        }
        for checkout, model in zip(checkouts, models, strict=True)
    ]
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
