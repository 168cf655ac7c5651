"""Comparisons of published versions, held against plain torch.hub in a process for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from tests.real.cases import CASES, FACENET_HUBCONF
from tests.real.test_silero import _audio

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("forkserver")]

Bring = Callable[..., Path]
Published = Callable[..., tuple[Path, dict[str, Path]]]
PlainHub = Callable[..., list[list[Any]]]


def figures(one: list[torch.Tensor], other: list[torch.Tensor]) -> dict[str, float]:
    """Return what a comparison should say of two lists of outputs."""
    a, b = torch.cat(one).double(), torch.cat(other).double()
    apart = (a - b).abs()
    return {
        "max_abs": float(apart.max()),
        "mean_abs": float(apart.mean()),
        "different": float((a != b).double().mean()),
        "cosine": float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)),
    }


def compared(case: str, repo: Path, entrypoint: str, tags: list[str], inputs: Any, **options: Any) -> isohub.Comparison:
    isolation = isohub.Isolation(setup=CASES[case].setup, threads=1)
    return isohub.compare(f"git+file://{repo}", entrypoint, tags, inputs, isolate=isolation, **options)


def alone(plain_hub: PlainHub, case: str, arguments: dict[str, Any], folders: dict[str, Path]) -> list[Any]:
    """Return what each version gives by plain torch.hub, in a process of its own."""
    return [results[0] for results in plain_hub(case, arguments, *([folder] for folder in folders.values()))]


def held(found: isohub.Comparison, expected: dict[str, float]) -> None:
    metrics = found.pairs[0].metrics

    assert {name: metrics[name] for name in ("max_abs", "different")} == {
        name: expected[name] for name in ("max_abs", "different")
    }
    assert metrics["mean_abs"] == pytest.approx(expected["mean_abs"], rel=1e-9)
    assert metrics["cosine"] == pytest.approx(expected["cosine"], rel=1e-9)


def test_silero(bring: Bring, published: Published, plain_hub: PlainHub):
    """Two releases of a voice detector, with real weights and a state from call to call, differ as in two processes."""
    releases = {f"v{version}": bring("silero-vad", version, sdist=True) for version in ("5.1", "6.2.0")}
    repo, folders = published("snakers4/silero-vad", releases)
    audio = _audio(releases["v6.2.0"] / "examples/cpp_libtorch/aepyx.wav")
    chunks = audio[: 300 * 512].reshape(300, 1, 512)

    one, other = alone(plain_hub, "silero stream", {"chunks": chunks}, folders)
    found = compared(
        "silero stream",
        repo,
        "silero_vad",
        list(folders),
        ((chunk, 16000) for chunk in chunks),
        checks=["outputs", "code"],
    )

    held(found, figures(one, other))
    assert found.pairs[0].metrics["max_abs"] > 0.1
    assert found.calls == 300
    assert "src/silero_vad/utils_vad.py" in [file.path for file in found.pairs[0].code.files]


def test_facenet(bring: Bring, published: Published, plain_hub: PlainHub):
    """Two releases of a network whose code moved and whose answers did not are found equal, as they are."""
    releases = {f"v{version}": bring("facenet-pytorch", version) for version in ("2.5.3", "2.6.0")}
    repo, folders = published("timesler/facenet-pytorch", releases, FACENET_HUBCONF)
    images = torch.linspace(-1, 1, 2 * 2 * 3 * 96 * 96).reshape(2, 2, 3, 96, 96).sin()

    one, other = alone(plain_hub, "facenet embeddings", {"batches": images}, folders)
    found = compared(
        "facenet embeddings", repo, "InceptionResnetV1", list(folders), list(images),
        kwargs={"pretrained": None, "num_classes": 4}, checks=["outputs", "state", "structure", "layers", "code"],
    )  # fmt: skip

    held(found, figures(one, other))
    assert found.pairs[0].kind == "equal"
    assert found.pairs[0].state is not None
    assert found.pairs[0].state.is_equal
