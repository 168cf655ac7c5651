"""`returns="torchscript"`: a ScriptModule here, over the worker's weights, without the repository's code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import ArtifactError, RemoteProtocolError
from tests.helpers.artifact_repo import HUBCONF, anonymous_bytes, in_segment
from tests.helpers.repos import make_repo, url
from tests.helpers.waiting import until

MIB = 1 << 20
X = torch.arange(8.0).reshape(2, 4)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("torchscript") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": HUBCONF}}), "v1")


def places(module: Any) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def test_same_result_without_the_repository(repo: str, forkserver: int):
    """A ScriptModule gives bit for bit what the worker's module gives, when the worker is gone as well."""
    script = isohub.load(repo, "net", returns="torchscript")
    model = isohub.load(repo, "net")
    with torch.no_grad():
        expected = model(X)
    for worker in isohub.workers():
        worker.close()

    assert isinstance(script, torch.jit.ScriptModule)
    assert torch.equal(expected, script(X))
    assert "hubconf" not in sys.modules


def test_traced_with_example_inputs(repo: str, forkserver: int):
    """With example inputs a module that cannot be scripted is traced, and takes other sizes."""
    x = torch.rand(5, 4)
    model = isohub.load(repo, "branches")
    with torch.no_grad():
        expected = model(x), model(x, y=x[:, :2])

    by_place = isohub.load(repo, "branches", returns="torchscript", example_inputs=(torch.rand(2, 4),))
    by_name = isohub.load(
        repo, "branches", returns="torchscript", example_inputs={"x": torch.rand(2, 4), "y": torch.rand(2, 2)}
    )

    assert torch.equal(expected[0], by_place(x))
    assert torch.equal(expected[1], by_name(x=x, y=x[:, :2]))


def test_weights_are_the_workers(repo: str, forkserver: int):
    """Every parameter and buffer lies in shared memory, and what either side writes there the other sees."""
    script = isohub.load(repo, "net", returns="torchscript")
    model = isohub.load(repo, "net")

    assert all(in_segment(tensor) for tensor in places(script))
    assert len(places(script)) == 9
    model.fill("tied", 0.5)
    model.fill("first.hidden", -3.0)
    model.fill("frozen", 7.0)
    with torch.no_grad():
        assert torch.equal(model(X), script(X))
        assert torch.equal(torch.full((4,), 0.5), script.view)
        script.norm.bias.fill_(2.5)
        assert torch.equal(torch.full((3,), 2.5), model.norm.bias)
        assert torch.equal(model(X), script(X))


def test_tensors_of_every_layout(repo: str, forkserver: int):
    """Dtypes, views of one tensor, expanded, empty and scalar ones: the script has them as the module has."""
    model = isohub.load(repo, "odd")
    x = torch.rand(3, 1, 6, 6)

    script = isohub.load(repo, "odd", returns="torchscript")

    buffers = dict(script.named_buffers())
    with torch.no_grad():
        assert torch.equal(model(x), script(x))
        assert [
            name
            for name, value in model.named_buffers()
            if (value.dtype, value.stride()) != (buffers[name].dtype, buffers[name].stride())
        ] == []
        model.base.fill_(1.0)
        assert torch.equal(torch.ones(4), script.column)


def test_weights_add_nothing_to_private_memory(repo: str, forkserver: int):
    """200 MB of weights cost this process no memory of its own, though all of them are computed with."""
    isohub.load(repo, "large", 1, returns="torchscript")(X)
    before = anonymous_bytes()
    script = isohub.load(repo, "large", 200, returns="torchscript")

    assert torch.equal(X + 2.0, script(X))
    assert anonymous_bytes() - before < 20 * MIB


def test_tied_parameters_are_one(repo: str, forkserver: int):
    """Parameters that are one in the module are one here, and flags for gradients are kept."""
    script = isohub.load(repo, "net", returns="torchscript")
    assert script.tied is script.first.weight
    assert script.second.weight is script.first.weight
    assert {name: parameter.requires_grad for name, parameter in script.named_parameters()} == {
        "tied": True, "frozen": False, "norm.weight": True, "norm.bias": True,
    }  # fmt: skip
    assert {torch.nn.Parameter} == {type(parameter) for parameter in script.parameters()}


def test_training_is_that_of_the_module(repo: str, forkserver: int):
    """A step of training changes the ScriptModule as it changes the same module in one process."""
    script = isohub.load(repo, "net", returns="torchscript")
    namespace: dict[str, Any] = {"__name__": "a_copy"}
    exec("if True:\n" + HUBCONF, namespace)
    plain = namespace["net"]()

    for module in (plain, script):
        module.train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(X).square().sum().backward()
        optimizer.step()
        module.eval()

    with torch.no_grad():
        assert torch.equal(plain(X), script(X))
    state = script.state_dict()
    assert [name for name, value in plain.state_dict().items() if not torch.equal(value, state[name])] == []


def test_made_in_inference_mode(repo: str, forkserver: int):
    """A load in inference mode gives weights that can be trained afterwards."""
    with torch.inference_mode():
        script = isohub.load(repo, "net", returns="torchscript")

    script(X).sum().backward()
    assert script.norm.bias.grad is not None


def test_one_that_is_scripted_already(repo: str, forkserver: int, tmp_path: Path):
    """An entrypoint that returns a ScriptModule has that taken, its constants with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made = torch.jit.trace(torch.nn.Linear(4, 2), (X,))
        torch.jit.save(made, tmp_path / "made.pt")
        frozen = torch.jit.freeze(torch.jit.script(torch.nn.Linear(4, 2).eval()))
        torch.jit.save(frozen, tmp_path / "frozen.pt")

    for expected, name in ((made, "made.pt"), (frozen, "frozen.pt")):
        script = isohub.load(repo, "loaded", tmp_path / name, returns="torchscript")
        assert torch.equal(expected(X), script(X))


def test_nothing_warns(repo: str, forkserver: int):
    """That TorchScript is deprecated upstream is told by nobody, here or in the worker."""

    def strictly() -> None:
        import warnings

        warnings.simplefilter("error")

    isolation = isohub.Isolation(setup=strictly)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        script = isohub.load(repo, "net", isolate=isolation, returns="torchscript")
        traced = isohub.load(repo, "net", isolate=isolation, returns="torchscript", example_inputs=(X,))
        assert torch.equal(script(X), traced(X))


def test_module_that_cannot(repo: str, forkserver: int):
    """What the compiler cannot take is an error in its own words that says what else to do, and costs no worker."""
    with pytest.raises(ArtifactError) as caught:
        isohub.load(repo, "branches", returns="torchscript")

    assert (caught.value.compiler, caught.value.entrypoint) == ("script", "branches")
    assert "Compiled functions can't take variable number of arguments" in caught.value.compiler_message
    assert caught.value.compiler_message in str(caught.value)
    assert "example_inputs" in str(caught.value)
    with pytest.raises(ArtifactError, match="mat1 and mat2") as traced:
        isohub.load(repo, "branches", returns="torchscript", example_inputs=torch.rand(3, 3))
    assert traced.value.compiler == "trace"
    assert len(isohub.workers()) == 1
    assert torch.equal(isohub.load(repo, "net", returns="torchscript")(X), isohub.load(repo, "net")(X))


def test_result_that_is_no_module(repo: str, forkserver: int):
    """An entrypoint that returns more than a module is an error that names its type."""
    with pytest.raises(TypeError, match="pair returned a tuple"):
        isohub.load(repo, "pair", returns="torchscript")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"returns": "onnx"}, ValueError, '"module" | "state_dict" | "torchscript" | "export"'),
        ({"returns": "torchscript", "isolate": False}, ValueError, "torch.jit.script"),
        ({"returns": "export"}, ValueError, "example_inputs"),
        ({"returns": "module", "example_inputs": X}, ValueError, "'module'"),
        ({"returns": "torchscript", "example_inputs": 3}, TypeError, "a tuple of positional inputs"),
    ],
)
def test_settings_that_make_no_sense(repo: str, forkserver: int, settings: dict[str, Any], error: type, words: str):
    """Settings that contradict each other are refused before anything runs."""
    with pytest.raises(error) as caught:
        isohub.load(repo, "net", **settings)

    assert words in str(caught.value)
    assert isohub.workers() == []


def test_keywords_of_the_entrypoint(repo_of: Callable[..., str]):
    """`Repo.load` has every keyword reach the entrypoint, `returns` and `example_inputs` too."""
    repo = repo_of("import torch\ndef net(returns, example_inputs): return torch.nn.Linear(returns, example_inputs)\n")

    with isohub.Repo(repo, returns="torchscript") as opened:
        script = opened.load("net", returns=3, example_inputs=2)

    assert torch.Size([2, 3]) == script.weight.shape


LIES = {
    "no parts": "7",
    "a part too few": "{'code': b'', 'places': [], 'tensors': []}",
    "no program": "{**good, 'code': b'no program at all'}",
    "a place that is none": "{**good, 'places': [*good['places'], ('', 'nothing', 0)]}",
    "a place without a tensor": "{**good, 'places': good['places'][1:]}",
    "an index too high": "{**good, 'places': [(p, n, 99) for p, n, _ in good['places']]}",
    "an index below zero": "{**good, 'places': [(p, n, -1) for p, n, _ in good['places']]}",
    "a place of other types": "{**good, 'places': [(1, 2, 3)]}",
    "another shape": "{**good, 'tensors': [torch.zeros(1) for _ in good['tensors']]}",
    "another dtype": "{**good, 'tensors': [t.double() for t in good['tensors']]}",
    "no tensor": "{**good, 'tensors': ['x' for _ in good['tensors']]}",
    "gradients of integers": "{**good, 'tensors': [t.int() for t in good['tensors']]}",
    "flags that are none": "{**good, 'flags': [1 for _ in good['flags']]}",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=list(LIES))
def test_parts_that_make_no_artifact(repo_of: Callable[..., str], lie: str):
    """A worker that answers by parts which make no ScriptModule is killed, and this process goes on."""
    repo = repo_of(f"""
        import torch
        from isohub.worker import artifacts

        honest = artifacts.take_apart

        def lying(*args):
            good = honest(*args)
            return {lie}

        def net():
            artifacts.take_apart = lying
            return torch.nn.Linear(2, 2)
    """)

    with pytest.raises(RemoteProtocolError):
        isohub.load(repo, "net", returns="torchscript")

    until(lambda: isohub.workers() == [])
