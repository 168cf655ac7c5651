"""`pretrained`: weights for whoever asks an entrypoint for them, in a worker and under plain torch.hub."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from isohub.authoring import pretrained


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights on this machine: all ones. torch.hub copies them into a folder of the test's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    torch.save({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / "linear.pth")
    return (tmp_path / "linear.pth").as_uri()


def linear(url: str, **options: Any) -> Callable[..., Any]:
    @pretrained(url, **options)
    def make(out: int = 2, *rest: int, bias: bool = True, **more: Any) -> torch.nn.Linear:
        """Make a linear layer."""
        made = torch.nn.Linear(3, out, bias=bias)
        made.given = (out, rest, bias, more)
        return made

    return make


def test_weights_are_loaded_when_asked_for(url: str) -> None:
    """`pretrained=True` loads the weights, and without it nothing is downloaded."""
    make = linear(url)

    assert torch.equal(make(pretrained=True).weight, torch.ones(2, 3))
    assert not torch.equal(linear("https://example.invalid/x.pth")().weight, torch.ones(2, 3))
    assert not torch.equal(make(pretrained=False).weight, torch.ones(2, 3))


def test_arguments_survive(url: str) -> None:
    """Positional and other arguments reach the entrypoint as they are; `pretrained` does not."""
    assert linear(url)(2, 7, 8, pretrained=True, extra="x").given == (2, (7, 8), True, {"extra": "x"})


def test_entrypoint_looks_like_itself(url: str) -> None:
    """Name, docstring and signature are the entrypoint's own, with the keyword added."""
    make = linear(url)

    assert (make.__name__, make.__doc__) == ("make", "Make a linear layer.")
    parameters = inspect.signature(make).parameters
    assert list(parameters) == ["out", "rest", "bias", "pretrained", "more"]
    assert (parameters["pretrained"].kind, parameters["pretrained"].default) == (inspect.Parameter.KEYWORD_ONLY, False)


def test_weights_that_do_not_fit_are_an_error(url: str) -> None:
    """A state dict of another shape is not loaded in part and in silence."""
    with pytest.raises(RuntimeError, match="size mismatch"):
        linear(url)(4, pretrained=True)


def test_function_of_torch_hub_is_looked_up_late(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in torch.hub's place when the entrypoint is called does the loading, as in a worker."""
    make = linear("https://example.invalid/linear-0123abcd.pth", check_hash=True, weights_only=False)
    asked = []

    def load(url: str, **options: Any) -> dict[str, torch.Tensor]:
        asked.append((url, options))
        return {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)

    assert torch.equal(make(pretrained=True).weight, torch.zeros(2, 3))
    options = {"map_location": "cpu", "check_hash": True, "weights_only": False}
    assert asked == [("https://example.invalid/linear-0123abcd.pth", options)]


def test_mistakes_are_told_when_hubconf_is_imported(url: str) -> None:
    """A missing URL and a parameter of the same name are refused at once; a result without weights when called."""
    with pytest.raises(TypeError, match="takes the URL"):

        @pretrained
        def forgotten() -> None: ...

    with pytest.raises(TypeError, match="`pretrained`, which @pretrained adds"):

        @pretrained(url)
        def twice(pretrained: bool = False) -> None: ...

    @pretrained(url)
    def nothing() -> None: ...

    with pytest.raises(TypeError, match="returned <class 'NoneType'>"):
        nothing(pretrained=True)


def test_plain_torch_hub_and_a_worker_agree(repo_of: Callable[..., str], url: str, tmp_path: Path) -> None:
    """A hubconf with `pretrained` gives the same weights under plain torch.hub and in a worker."""
    import isohub

    source = f"""
        import torch
        from isohub.authoring import pretrained

        @pretrained({url!r})
        def linear(out=2):
            return torch.nn.Linear(3, out)
        """
    text = repo_of(source)

    there = isohub.load(text, "linear", 2, pretrained=True)
    here = torch.hub.load(
        text.removeprefix("git+file://").removesuffix("@v1"), "linear", 2, pretrained=True, source="local"
    )

    assert torch.equal(there.weight, torch.ones(2, 3))
    assert torch.equal(here.weight, torch.ones(2, 3))


def test_import_is_light() -> None:
    """A hubconf that imports it pays for the standard library alone."""
    script = "import sys, isohub.authoring; assert not {'torch', 'requests', 'filelock', 'typer'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
