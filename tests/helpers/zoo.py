"""What the sample repository `zoo` is asked, the same way in this process and in a fresh one of plain torch.hub.

Run as a program, it loads a folder by `torch.hub.load` and saves what it saw:
`python -m tests.helpers.zoo FOLDER RESULTS.pt`.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["CASES", "observe", "script_file"]

Load = Callable[[str], Any]


def script_file(version: str) -> bytes:
    """Return a TorchScript file as a repository keeps one; each version's computes something else."""
    torch.manual_seed(1)
    layers = [torch.nn.Linear(6, 4), torch.nn.Tanh() if version == "v1" else torch.nn.ReLU(), torch.nn.Linear(4, 2)]
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and all the same in many repositories
        torch.jit.save(torch.jit.script(torch.nn.Sequential(*layers)), buffer)
    return buffer.getvalue()


def observe(load: Load, case: str) -> tuple[Any, list[Any]]:
    """Load what `case` is about, from seed 0, and return it with what it answers and where the seed stands."""
    torch.manual_seed(0)
    loaded = load(case)
    after_load = torch.rand(4)
    return loaded, [after_load, *_state(loaded), *CASES[case](loaded)]


def _state(loaded: Any) -> list[Any]:
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if not isinstance(model, torch.nn.Module):
        return []
    state = model.state_dict()
    return [list(state), [value.detach().clone() for value in state.values()], model.training]


def _cnn(model: Any) -> list[Any]:
    x = torch.linspace(0, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    return [model(x).detach(), model.conv1(x).detach(), [name for name, _ in model.named_modules()]]


def _tied(model: Any) -> list[Any]:
    names = [name for name, _ in model.named_parameters()]
    return [model(torch.tensor([[1, 5, 10], [0, 0, 3]])).detach(), names, model.head.weight is model.embed.weight]


def _normed(model: Any) -> list[Any]:
    return [model(torch.linspace(-2, 2, 30).reshape(5, 6)).detach()]


def _tagger(model: Any) -> list[Any]:
    x = torch.linspace(-1, 1, 2 * 3 * 6).reshape(2, 3, 6)
    with torch.no_grad():
        return [model(x), model(x, mask=torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]))]


def _vad(loaded: Any) -> list[Any]:
    model, (find_speech, to_chunks, make_stream) = loaded
    wave = torch.sin(torch.linspace(0, 60, 330))
    stream = make_stream(model)
    with torch.no_grad():
        answers = [find_speech(wave, model), find_speech(wave, model, threshold=0.6), to_chunks(wave)]
        answers += [stream(chunk) for chunk in to_chunks(wave)[:3]]
    stream.reset()
    return [*answers, stream.seen, model.gain]


def _scripted(model: Any) -> list[Any]:
    return [model(torch.linspace(-1, 1, 18).reshape(3, 6)).detach(), model.code]


def _tokenizer(tokenizer: Any) -> list[Any]:
    ids = tokenizer.encode("bad cafe")
    return [
        ids, tokenizer.decode(ids), tokenizer.decode([0, 1, 2]), len(tokenizer), tokenizer[2], list(tokenizer),
        "?" in tokenizer, tokenizer.letters,
    ]  # fmt: skip


CASES: dict[str, Callable[[Any], list[Any]]] = {
    "cnn": _cnn, "tied": _tied, "normed": _normed, "tagger": _tagger, "vad": _vad, "scripted": _scripted,
    "tokenizer": _tokenizer,
}  # fmt: skip


def _main(folder: str, results: str) -> None:
    def load(entry: str) -> Any:
        return torch.hub.load(folder, entry, source="local")

    torch.save({case: observe(load, case)[1] for case in CASES}, results)


if __name__ == "__main__":
    _main(*sys.argv[1:])
