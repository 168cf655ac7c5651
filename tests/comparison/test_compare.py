"""`isohub.compare`: each kind of change is named for what it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub.comparison.results import Pair
from isohub.demo.repository import ACCURACY, test_images
from isohub.errors import ComparisonError, RemoteProtocolError
from tests.helpers.histories import History
from tests.helpers.repos import git, make_repo, url

pytestmark = pytest.mark.usefixtures("forkserver", "one_thread")

X = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
QUICK = ("outputs", "state", "structure", "layers", "code")


def change(history: History, name: str, **options: Any) -> Pair:
    """Compare a commit of the history with its first parent."""
    commit = history.named[name]
    parent = git(history.folder, "rev-parse", f"{commit}^1")
    options.setdefault("checks", QUICK)
    (pair,) = isohub.compare(f"git+file://{history.folder}", "net", [parent, commit], X, **options).pairs
    return pair


def test_changed_activation(history: History):
    """A change of the activation is one of outputs, structure and code; its layer is the first that departs."""
    pair = change(history, "activation")

    assert (pair.kind, pair.changes) == ("different", ["outputs", "structure", "code"])
    assert pair.layers is not None
    assert pair.layers.first_layer is not None
    assert (pair.layers.first_layer.name, pair.layers.first_layer.types) == ("trunk.1", ("ReLU", "GELU"))
    assert pair.findings[0] == "The first layer that departs is trunk.1: ReLU became GELU."
    assert [file.path for file in pair.code.files] == ["net/model.py"]
    assert 0 < pair.metrics["max_abs"] < 1
    assert pair.metrics["state_changed"] == 0


def test_renamed_modules(history: History):
    """Renamed modules are told as such: outputs, weights and layers are the same."""
    pair = change(history, "rename")

    assert (pair.kind, pair.changes) == ("equal", ["names", "code"])
    assert pair.state is not None
    assert pair.state.moved[0] == ("body.0.weight", "trunk.0.weight")
    assert pair.structure is not None
    assert ("body", "trunk") in pair.structure.renamed
    assert (pair.structure.added, pair.structure.removed) == ([], [])
    assert pair.layers is not None
    assert (pair.layers.first, pair.layers.only_in_baseline, pair.layers.only_in_other) == (None, [], [])
    assert [(layer.name, layer.other_name) for layer in pair.layers.layers][:2] == [
        ("body.0", "trunk.0"), ("body.1", "trunk.1"),
    ]  # fmt: skip


def test_broken_import(history: History):
    """A version that does not load is a finding, with its error and the code that changed."""
    pair = change(history, "break")

    assert (pair.kind, pair.changes) == ("broken", ["broken", "code"])
    assert "No module named 'a_package_that_is_not_there'" in pair.verdict
    assert pair.metrics["broken"] is True
    assert pair.metrics["max_abs"] is None
    assert "hubconf.py (+1 -1)" in pair.findings[-1]


def test_broken_baseline_is_raised(history: History):
    """Nothing can be compared with a baseline that does not load, so its error is raised."""
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        isohub.compare(f"git+file://{history.folder}", "net", [history.named["break"], "main"], X)


def test_changed_speed(history: History):
    """A version that only takes longer gives equal outputs, and its confidence interval lies above one."""
    pair = change(history, "slow", checks=("outputs", "speed", "code"), speed_s=1.0)

    assert (pair.kind, pair.changes) == ("equal", ["code", "speed"])
    assert pair.speed is not None
    assert 1.03 < pair.speed.low <= pair.speed.median <= pair.speed.high
    assert pair.metrics["latency_ratio_low"] == pair.speed.low


def test_the_demo(digits: Path):
    """Of the demo's versions the figures are those of their outputs, and the cause comes before the first layer."""
    images, labels = test_images()
    base = f"git+file://{digits}"
    with isohub.Repo(f"{base}@v1") as one, isohub.Repo(f"{base}@v2") as other, torch.no_grad():
        answers = [repo.load("digits")(images) for repo in (one, other)]
    found = isohub.compare(base, "digits", ["v1", "v2"], images, checks=(*QUICK, "gradients"))
    (pair,) = found.pairs
    a, b = (answer.double() for answer in answers)

    assert [float((answer.argmax(1) == labels).double().mean()) for answer in answers] == list(ACCURACY.values())
    assert pair.metrics["max_abs"] == float((a - b).abs().max())
    assert pair.metrics["mean_abs"] == pytest.approx(float((a - b).abs().mean()), rel=1e-12)
    assert pair.metrics["top1_agreement"] == float((a.argmax(1) == b.argmax(1)).double().mean())
    assert pair.layers is not None
    assert pair.layers.first_layer is not None
    assert (pair.layers.first_layer.name, pair.layers.is_input_different) == ("conv1", True)
    assert pair.gradients is not None
    assert (pair.gradients.parameters, pair.gradients.different) == (10, 10)
    assert [file.path for file in pair.code.files] == ["hubconf.py", "model/network.py", "model/preprocess.py"]
    assert (found.calls, found.samples) == (1, 450)


def test_stream_gives_the_numbers_of_the_whole(digits: Path):
    """A stream of batches comes to the figures of all samples in one call."""
    images, _ = test_images()
    base = f"git+file://{digits}"
    whole = isohub.compare(base, "digits", ["v1", "v2"], images, checks=["outputs"]).pairs[0].outputs[0]
    found = isohub.compare(base, "digits", ["v1", "v2"], iter(images.split(64)), checks=["outputs"])
    streamed = found.pairs[0].outputs[0]

    assert (found.calls, found.samples, streamed.elements) == (8, 450, 4500)
    assert streamed.max_abs == pytest.approx(whole.max_abs, rel=1e-5)
    assert streamed.classes is not None
    assert whole.classes is not None
    assert streamed.classes.top1_agreement == pytest.approx(whole.classes.top1_agreement)
    assert streamed.first_difference == whole.first_difference == [0, 0]


def test_working_tree_against_its_branch(history: History, tmp_path: Path):
    """An edit that is not committed is compared with a branch of the same folder."""
    git(tmp_path, "clone", "--quiet", str(history.folder), "clone")
    model = tmp_path / "clone" / "net" / "model.py"
    model.write_text(model.read_text().replace("GELU", "SiLU"))
    found = isohub.compare(tmp_path / "clone", "net", ["main"], X, checks=QUICK)

    assert [version.commit is None for version in found.versions] == [False, True]
    assert "trunk.1: GELU became SiLU" in found.pairs[0].findings[0]


def test_three_versions(history: History):
    """Any number of versions is compared with the one baseline, wherever it stands in the list."""
    refs = [history.named[name] for name in ("first", "rename", "activation")]
    found = isohub.compare(f"git+file://{history.folder}", "net", refs, X, checks=QUICK, baseline=refs[1])

    assert found.baseline == refs[1][:12]
    assert [(pair.baseline, pair.other, pair.kind) for pair in found.pairs] == [
        (refs[1][:12], refs[0][:12], "equal"), (refs[1][:12], refs[2][:12], "different"),
    ]  # fmt: skip
    assert found.failures("max_abs > 0") == [f"{refs[2][:12]}: max_abs ({found.pairs[1].metrics['max_abs']:.6g}) > 0"]


def test_same_commit_twice_has_two_workers(digits: Path):
    """One commit can be held against itself: everything is equal, in workers of its own each."""
    found = isohub.compare(f"git+file://{digits}", "digits", ["v1", "v1"], torch.rand(4, 1, 8, 8), checks=QUICK)

    assert (found.is_equal, found.pairs[0].changes) == (True, [])
    assert isohub.workers() == []


NESTED = """
    import torch

    dependencies = ["torch"]

    class Net(torch.nn.Module):
        def forward(self, x, *, scale=1.0):
            return {{"boxes": [x * scale, (x + {add}).long()], "name": {name!r}, {more}}}

    def net(size: int = {size}):
        '''{doc}'''
        return Net()

    def plain():
        return {{"classes": ["cat", {name!r}], "count": {size}}}
"""


def nested(repo_of: Callable[..., str], **values: Any) -> str:
    return repo_of(NESTED.format(**{"add": 0, "name": "a", "more": "", "size": 3, "doc": "Old.", **values}))


def test_nested_outputs(repo_of: Callable[..., str]):
    """Each part of a nested output is compared at its path; parts that came or went, and texts, are named."""
    one, other = nested(repo_of), nested(repo_of, add=1, name="b", more='"extra": 1', size=4, doc="New.")
    (pair,) = isohub.compare("x/y", "net", [one, other], {"x": torch.zeros(3), "scale": 2.0}, checks=QUICK).pairs

    assert {numbers.path: numbers.max_abs for numbers in pair.outputs} == {"['boxes'][0]": 0.0, "['boxes'][1]": 1.0}
    assert (pair.only_in_other, pair.only_in_baseline, pair.other_texts) == (["['extra']"], [], ["['name']"])
    assert pair.metrics["max_abs"] == math.inf
    assert pair.changes == ["outputs", "signature", "docstring", "code"]
    assert pair.structure is not None
    assert pair.structure.signatures == ("(size: int = 3)", "(size: int = 4)")
    assert [line for line in pair.structure.docstring_diff if line[0] in "+-"] == ["-Old.", "+New."]


def test_plain_data_is_compared_as_it_is(repo_of: Callable[..., str]):
    """Where an entrypoint returns plain data, that is the output."""
    (pair,) = isohub.compare("x/y", "plain", [nested(repo_of), nested(repo_of, name="dog", size=5)]).pairs

    assert (pair.kind, pair.other_texts) == ("different", ["['classes'][1]"])
    assert [(numbers.path, numbers.max_abs) for numbers in pair.outputs] == [("['count']", 2.0)]


NOISY = """
    import random
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)
            self.drop = torch.nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(self.linear(x)) + torch.randn(3) + random.random()

    def net():
        # version {version}
        return Net()
"""


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_random_numbers_are_the_same_for_all(repo_of: Callable[..., str], mode: Any):
    """Weights that are drawn, dropout and noise are alike in all versions, and the program's own generator stays."""
    one, other = repo_of(NOISY.format(version=1)), repo_of(NOISY.format(version=2))
    before = torch.get_rng_state()
    found = isohub.compare("x/y", "net", [one, other], [torch.ones(2, 3), torch.ones(2, 3)], mode=mode, checks=QUICK)

    assert found.pairs[0].kind == "equal"
    assert torch.equal(torch.get_rng_state(), before)


FAILING = """
    import os
    import torch

    class Net(torch.nn.Module):
        def forward(self, x):
            if x.sum() > {limit}:
                {act}
            return x

    def net():
        return Net()

    def double(x):
        return x * {factor}
"""


def failing(repo_of: Callable[..., str], *, limit: float = 1e9, act: str = "pass", factor: int = 2) -> str:
    return repo_of(FAILING.format(limit=limit, act=act, factor=factor))


@pytest.mark.parametrize(
    ("act", "told"),
    [
        ("raise ValueError('too much')", "ValueError: too much"),
        ("os.kill(os.getpid(), 9)", "BrokenWorkerError"),
        ("os._exit(3)", "BrokenWorkerError"),
    ],
)
def test_version_that_fails_in_the_middle(repo_of: Callable[..., str], act: str, told: str):
    """A version that raises or dies at some input is broken, and the others go on."""
    refs = [failing(repo_of), failing(repo_of, limit=4, act=act), failing(repo_of)]
    found = isohub.compare("x/y", "net", refs, [torch.full((2,), float(n)) for n in range(6)], checks=["outputs"])

    assert [pair.kind for pair in found.pairs] == ["broken", "equal"]
    assert told in (found.versions[1].error or "")
    assert found.pairs[1].outputs[0].elements == 12
    assert found.failures("max_abs > 1") == [f"{found.versions[1].label}: it is broken"]


def test_preprocess(repo_of: Callable[..., str]):
    """Each version puts its inputs through its own function first."""
    refs = [failing(repo_of), failing(repo_of, factor=5)]
    (pair,) = isohub.compare("x/y", "net", refs, torch.ones(3), preprocess="double", checks=["outputs"]).pairs

    assert pair.outputs[0].max_abs == 3.0


LYING = """
    import sys
    import torch
    import isohub.comparison.probes as probes

    class Net(torch.nn.Module):
        def forward(self, x):
            return x

    def lie(*args):
        return {lie}

    def net():
        {what}
        return Net()
"""


@pytest.mark.parametrize(
    ("what", "lie"),
    [
        ("probes.facts = lie", "'nonsense'"),
        ("probes.facts = lie", "{'signature': 3}"),
        ("probes.imported_files = lie", "[1, 2]"),
        ("probes.imported_files = lie", "'text'"),
        ("probes.first_call = lie", "(torch.ones(1), -1.0, None)"),
        ("probes.first_call = lie", "(torch.ones(1), 1e9, None)"),
        ("probes.first_call = lie", "(torch.ones(1), float('nan'), None)"),
        ("probes.first_call = lie", "(torch.ones(1), 0.0, -5)"),
        ("probes.first_call = lie", "7"),
        ("probes.layer_plan = lie", "[('name', 'Type', 10**30, True)]"),
        ("probes.layer_plan = lie", "[(1, 2)]"),
        ("probes.layer_values = lie", "{0: 'no tensors'}"),
        ("probes.layer_values = lie", "{99: []}"),
    ],
)
def test_lying_worker(repo_of: Callable[..., str], what: str, lie: str):
    """A worker that answers a probe with nonsense is refused by name, and nothing of its answer is used."""
    liar = repo_of(LYING.format(what=what, lie=lie))
    honest = repo_of(LYING.format(what="pass", lie="None"))
    found = isohub.compare("x/y", "net", [honest, liar], torch.ones(2), checks=QUICK)

    assert found.pairs[0].kind == "broken"
    assert RemoteProtocolError.__name__ in (found.versions[1].error or "")


def test_files_outside_of_the_checkout_are_not_read(repo_of: Callable[..., str], tmp_path: Path):
    """A worker that names files of others as imported gets none of them into the report."""
    secret = tmp_path / "secret.py"
    secret.write_text("password = 'hunter2'\n")
    lie = f"['../../../../../..{secret}', {str(secret)!r}, 'a/../../x', '', 'hubconf.py']"
    liar = repo_of(LYING.format(what="probes.imported_files = lie", lie=lie))
    found = isohub.compare("x/y", "net", [repo_of(LYING.format(what="pass", lie=0)), liar], checks=["code"])

    assert [file.path for file in found.pairs[0].code.files] == ["hubconf.py"]
    assert "hunter2" not in found.to_json()


def test_texts_of_a_repository_drive_nothing(repo_of: Callable[..., str], drawn: None):
    """Control characters, markup and script of a repository arrive nowhere as such."""
    evil = "\x1b[31m</script><script>alert(1)</script>[bold]&`|*"
    repo = repo_of(f"def net(x={evil!r}):\n    return [1, {evil!r}]\n")
    other = repo_of("def net():\n    return [2, 'x']\n")
    found = isohub.compare("x/y", "net", [other, repo])

    for text in (str(found), found.to_markdown(), found.to_html()):
        assert "\x1b" not in text
    assert "<script>alert" not in found.to_html()
    assert json.loads(found.to_json()) == found.to_dict()


def test_options_are_checked(digits: Path):
    """Unknown checks, modes and baselines are errors that name those that there are."""
    base, refs = f"git+file://{digits}", ["v1", "v2"]

    with pytest.raises(ValueError, match=r"'outputs', 'state'.* not 'pace'"):
        isohub.compare(base, "digits", refs, checks=["pace"])
    with pytest.raises(ValueError, match="'eval', 'train', 'loaded', not 'test'"):
        isohub.compare(base, "digits", refs, mode="test")  # type: ignore[arg-type]
    with pytest.raises(ComparisonError, match="baseline 'v3' is none of the versions: v1, v2"):
        isohub.compare(base, "digits", refs, baseline="v3")


def test_interrupt_ends_all_workers(digits: Path):
    """What is raised in the middle, by a data set or by Ctrl-C, comes out, and no worker is left."""

    def images() -> Iterator[torch.Tensor]:
        yield torch.rand(1, 1, 8, 8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        isohub.compare(f"git+file://{digits}", "digits", ["v1", "v2"], images(), checks=["outputs"])
    assert isohub.workers() == []


def test_fork(tmp_path: Path, history: History):
    """A fork of a repository, at another place under the same name, is compared with the original."""
    git(tmp_path, "clone", "--quiet", "--bare", str(history.folder), "fork.git")
    other = make_repo(tmp_path / "owner" / "repo", {"v1": {"hubconf.py": "def net():\n    return 3\n"}})
    refs = [f"git+file://{tmp_path / 'fork.git'}@main", url(other, "v1")]
    found = isohub.compare(f"git+file://{history.folder}", "net", ["main", *refs], X, checks=QUICK)

    assert [pair.kind for pair in found.pairs] == ["equal", "different"]
