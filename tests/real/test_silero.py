"""silero-vad: real weights as TorchScript, functions that take the model back, a real recording."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300)]

_SAMPLES = 640_000  # of the recording's 2.7 million: enough for the versions to differ, and for half the time


def test_both_versions_hear_what_each_hears_alone(
    bring: Callable[..., Path],
    published: Callable[..., tuple[Path, dict[str, Path]]],
    plain_hub: Callable[..., list[list[Any]]],
    isolated: Callable[..., list[Any]],
):
    """Two versions loaded at once find the segments that each finds alone; plain torch.hub does not."""
    releases = {f"v{version}": bring("silero-vad", version, sdist=True) for version in ("5.1", "6.2.0")}
    repo, folders = published("snakers4/silero-vad", releases)
    arguments = {"audio": _audio(releases["v6.2.0"] / "examples/cpp_libtorch/aepyx.wav")}

    (old,), (new,), mixed = plain_hub(
        "silero", arguments, [folders["v5.1"]], [folders["v6.2.0"]], [folders["v5.1"], folders["v6.2.0"]]
    )
    isolated_ones = isolated("silero", arguments, repo, ["v5.1", "v6.2.0"])

    assert [old, new, old] == isolated_ones
    assert old["segments"] != new["segments"]
    assert old["segments"] == mixed[0]["segments"]
    assert new["segments"] != mixed[1]["segments"]


def _audio(file: Path) -> torch.Tensor:
    with wave.open(str(file)) as recording:
        assert (recording.getnchannels(), recording.getsampwidth(), recording.getframerate()) == (1, 2, 16000)
        samples = np.frombuffer(recording.readframes(_SAMPLES), dtype="<i2")
    return torch.from_numpy(samples.astype("float32") / 32768)
