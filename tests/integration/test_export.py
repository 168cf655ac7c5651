"""`returns="export"`: an exported program here, over the worker's weights, for batches of every size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import isohub
from isohub.errors import ArtifactError, RemoteProtocolError
from tests.helpers.artifact_repo import HUBCONF, anonymous_bytes, in_segment
from tests.helpers.repos import make_repo, url
from tests.helpers.waiting import until
from tests.helpers.warm import WarmPython

pytestmark = pytest.mark.slow  # each worker imports the compiler, and it is large

MIB = 1 << 20
X = torch.arange(8.0).reshape(2, 4)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("export") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": HUBCONF}}), "v1")


def test_same_result_for_every_batch(repo: str, forkserver: int):
    """An exported program gives what the worker's module gives, for each size of the batch, over the same memory."""
    model = isohub.load(repo, "net")
    program = isohub.load(repo, "net", returns="export", example_inputs=(X,))
    here = program.module()

    assert isinstance(program, torch.export.ExportedProgram)
    tensors = [*here.parameters(), *here.buffers()]
    assert [tensor for tensor in tensors if not in_segment(tensor)] == []
    with torch.no_grad():
        for size in (1, 2, 5):
            x = torch.rand(size, 4)
            assert torch.equal(model(x), here(x))
        before = here(X)
        model.fill("frozen", 9.0)
        model.fill("first.hidden", 4.0)
        assert torch.equal(model(X), here(X))
        assert not torch.equal(before, here(X))
    assert here.tied is here.first.weight
    assert {name: parameter.requires_grad for name, parameter in here.named_parameters()} == {
        "tied": True,
        "frozen": False,
        "norm.weight": True,
        "norm.bias": True,
    }
    here(X).sum().backward()
    assert here.norm.bias.grad is not None


def test_batch_of_one_and_keywords(repo: str, forkserver: int):
    """Example inputs with a batch of one leave the batch open too, also those that go by keyword."""
    model = isohub.load(repo, "branches")
    inputs = {"x": torch.rand(1, 4), "y": torch.rand(1, 2)}

    here = isohub.load(repo, "branches", returns="export", example_inputs=inputs).module()

    x, y = torch.rand(3, 4), torch.rand(3, 2)
    with torch.no_grad():
        assert torch.equal(model(x, y=y), here(x=x, y=y))


def test_tensors_of_every_layout(repo: str, forkserver: int):
    """Dtypes, views of one tensor, expanded, empty and scalar ones: the program has them as the module has."""
    model = isohub.load(repo, "odd")
    x = torch.rand(3, 1, 6, 6)

    here = isohub.load(repo, "odd", returns="export", example_inputs=x[:2]).module()

    buffers = dict(here.named_buffers())
    with torch.no_grad():
        assert torch.equal(model(x), here(x))
    assert [
        name
        for name, value in model.named_buffers()
        if (value.dtype, value.stride()) != (buffers[name].dtype, buffers[name].stride())
    ] == []


def test_weights_add_nothing_to_private_memory(repo: str, forkserver: int):
    """200 MB of weights cost this process no memory of its own, and outlive the worker."""
    isohub.load(repo, "large", 1, returns="export", example_inputs=X).module()(X)
    before = anonymous_bytes()
    program = isohub.load(repo, "large", 200, returns="export", example_inputs=X)
    for worker in isohub.workers():
        worker.close()

    assert torch.equal(X + 2.0, program.module()(X))
    assert anonymous_bytes() - before < 50 * MIB


def test_module_that_cannot(repo: str, forkserver: int):
    """What the compiler cannot take is an error in its own words, and costs no worker."""
    with pytest.raises(ArtifactError) as caught:
        isohub.load(repo, "unfit", returns="export", example_inputs=X)

    assert (caught.value.compiler, caught.value.entrypoint) == ("export", "unfit")
    assert "data-dependent" in caught.value.compiler_message
    assert caught.value.compiler_message in str(caught.value)
    assert len(isohub.workers()) == 1


def test_file_needs_neither_isohub_nor_the_repository(
    repo: str, forkserver: int, warm_python: WarmPython, tmp_path: Path
):
    """A saved program runs in another interpreter with torch alone, and says there where it comes from."""
    program = isohub.load(repo, "branches", returns="export", example_inputs=X)
    with torch.no_grad():
        expected = program.module()(X)
    isohub.save(program, tmp_path / "net.pt2")

    script = f"""
import sys, torch
extra = {{"isohub.json": ""}}
program = torch.export.load({str(tmp_path / "net.pt2")!r}, extra_files=extra)
assert "isohub" not in sys.modules and "hubconf" not in sys.modules
torch.save((program.module()(torch.arange(8.0).reshape(2, 4)), extra["isohub.json"]), {str(tmp_path / "out")!r})
"""
    done = warm_python.run(["-c", script], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    actual, extra = torch.load(tmp_path / "out")

    assert torch.equal(expected, actual.detach())
    assert program.isohub.as_json() == extra


def test_bytes_that_are_no_program(repo_of: Callable[..., str]):
    """A worker that answers by bytes which are no program is killed, and this process goes on."""
    repo = repo_of("""
        import torch
        from isohub.worker import artifacts

        def net():
            artifacts.take_apart = lambda *_: {"code": b"PK nothing", "places": [], "tensors": [], "flags": []}
            return torch.nn.Linear(2, 2)
    """)

    with pytest.raises(RemoteProtocolError):
        isohub.load(repo, "net", returns="export", example_inputs=X)

    until(lambda: isohub.workers() == [])
