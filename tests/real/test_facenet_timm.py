"""facenet-pytorch, with the real weights of its detector, and timm: packages of one name in several versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.real.cases import FACENET_HUBCONF, TIMM_HUBCONF

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300)]

Bring = Callable[..., Path]
Published = Callable[..., tuple[Path, dict[str, Path]]]
PlainHub = Callable[..., list[list[Any]]]
Isolated = Callable[..., list[Any]]


def test_facenet(bring: Bring, published: Published, plain_hub: PlainHub, isolated: Isolated):
    """Two versions of a detector find, bit for bit, the faces that each finds in a fresh process."""
    releases = {f"v{version}": bring("facenet-pytorch", version) for version in ("2.5.3", "2.6.0")}
    repo, folders = published("timesler/facenet-pytorch", releases, FACENET_HUBCONF)
    arguments = {"image": _face()}

    expected = [results[0] for results in plain_hub("facenet", arguments, *([folder] for folder in folders.values()))]
    found = isolated("facenet", arguments, repo, list(releases))

    assert [len(result["boxes"]) for result in expected] == [1, 1]
    for kind in ("boxes", "scores", "points"):  # of dtype object, as this detector makes them
        assert [result[kind].tolist() for result in [*expected, expected[0]]] == [one[kind].tolist() for one in found]
        assert [result[kind].dtype for result in expected] == [one[kind].dtype for one in found[:2]]
    torch.testing.assert_close(
        [one["embeddings"] for one in found],
        [result["embeddings"] for result in [*expected, expected[0]]],
        rtol=0, atol=0,
    )  # fmt: skip


def test_timm(bring: Bring, published: Published, plain_hub: PlainHub, isolated: Isolated):
    """Three versions of timm at once build and compute, bit for bit, what each does in a fresh process."""
    versions = ["0.6.13", "0.9.16", "1.0.28"]
    releases = {f"v{version}": bring("timm", version) for version in versions}
    repo, folders = published("huggingface/pytorch-image-models", releases, TIMM_HUBCONF)
    arguments = {"image": torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64).sin()}

    *expected, mixed = plain_hub("timm", arguments, *([folder] for folder in folders.values()), list(folders.values()))
    expected = [results[0] for results in expected]
    found = isolated("timm", arguments, repo, list(releases))

    assert [*versions, versions[0]] == [result.pop("version") for result in found]
    assert versions == [result.pop("version") for result in expected]
    torch.testing.assert_close(found, [*expected, expected[0]], rtol=0, atol=0)
    assert versions != [result if isinstance(result, str) else result["version"] for result in mixed]


def _face() -> np.ndarray[Any, Any]:
    """Draw a face: a bright ellipse with dark eyes, brows and mouth on a grey ground."""
    y, x = np.mgrid[0:160, 0:160].astype("float32")
    image = np.full((160, 160, 3), 90, dtype="float32")

    def ellipse(cx: float, cy: float, rx: float, ry: float, colour: tuple[int, int, int]) -> None:
        image[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1] = colour

    ellipse(80, 84, 42, 56, (224, 180, 150))
    for side in (-1, 1):
        ellipse(80 + side * 17, 70, 9, 5, (245, 245, 245))
        ellipse(80 + side * 17, 70, 4, 5, (40, 30, 30))
        ellipse(80 + side * 17, 59, 11, 2, (80, 50, 40))
    ellipse(80, 92, 6, 10, (200, 150, 120))
    ellipse(80, 114, 16, 5, (170, 70, 70))
    return image.astype("uint8")
