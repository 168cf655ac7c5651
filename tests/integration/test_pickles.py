"""Pickles of isolated modules and objects: a recipe and the state, followed in another process."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import signal
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import isohub
from isohub.errors import BrokenWorkerError, LocalProtocolError
from tests.helpers.githost import GitHost
from tests.helpers.repos import make_repo, url
from tests.helpers.same import assert_same
from tests.helpers.warm import WarmPython

REPO = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.5))
            self.head = nn.Linear(width, width)
            self.again = nn.Linear(width, width)
            self.again.weight = self.head.weight
            self.register_buffer("seen", torch.zeros(1), persistent=False)
            self.cache = None
            self.conf = 0.25

        def forward(self, x):
            return self.again(self.head(self.body(x))) * self.conf + self.seen

        def note(self):
            self.seen = self.seen + 2
            self.register_buffer("late", torch.ones(2, dtype=torch.int16))
            self.body[0].weight.data.add_(0.5)

        def grow(self):
            self.extra = nn.Linear(2, 2)

        def part(self):
            return nn.Linear(2, 2)

        def tool(self):
            return Tokenizer()


    class Tokenizer:
        lower = False

        def __call__(self, text):
            return [ord(letter) for letter in (text.lower() if self.lower else text)]


    def net(width=4, *, names=()):
        return Net(width)


    def lazy():
        return nn.Sequential(nn.LazyLinear(3))


    def pair():
        net = Net(4)
        return {"net": net, "tools": [Tokenizer(), lambda: net.head.weight.sum().item()]}
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pickles") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": REPO}}), "v1")


def ask(model: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(5)
    with torch.no_grad():
        return model(torch.linspace(0, 1, 12, dtype=dtype).reshape(3, 4))


def again(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def run(python: WarmPython, script: str, *arguments: object) -> Any:
    """Run a script as a program of its own, and return what its last line says in JSON."""
    done = python.run([script, *map(str, arguments)])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_random_generators_stay_where_they_were(repo: str, forkserver: int):
    """Reading a pickle of a module or an object draws from no random generator of the program."""
    pickles = [pickle.dumps(isohub.load(repo, "net")), pickle.dumps(isohub.load(repo, "pair")["tools"][0])]
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()

    read = [pickle.loads(data) for data in pickles]

    assert_same(before, (torch.get_rng_state(), random.getstate(), np.random.get_state()))
    assert read[1]("a") == [97]


def test_module_comes_back_as_it_was(repo: str, forkserver: int):
    """A module that was changed comes back with its weights, buffers, ties, modes, flags and attributes."""
    model = isohub.load(repo, "net", 6, names=["a"])
    with torch.no_grad():
        model.head.weight.fill_(0.5)
    model.note()
    model.conf = 2.0
    model.body[1].eval()
    model.head.requires_grad_(False)
    twin = again(model)

    assert_same(ask(model), ask(twin))
    assert_same(dict(model.state_dict()), dict(twin.state_dict()))
    assert twin.head.weight is twin.again.weight
    assert [part.training for part in model.modules()] == [part.training for part in twin.modules()]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in twin.parameters()]
    assert_same(dict(model.named_buffers()), dict(twin.named_buffers()))
    assert model.isohub == twin.isohub
    assert again(twin).conf == 2.0
    with torch.no_grad():
        twin.head.weight.zero_()
    assert model.head.weight.all()


def test_writes_that_torch_does_not_count_are_in_it(repo: str, forkserver: int):
    """Weights written through `.data`, which no version counter tells, are in the pickle."""
    model = isohub.load(repo, "net")
    model.head.weight.data.fill_(0.125)

    assert_same(torch.full((4, 4), 0.125), again(model).head.weight.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_cast_module_comes_back_cast(repo: str, forkserver: int, dtype: torch.dtype):
    """A module that was cast comes back in its dtype, on both sides."""
    model = isohub.load(repo, "net").to(dtype)
    twin = again(model)

    assert_same(dict(model.state_dict()), dict(twin.state_dict()))
    assert_same(ask(model, dtype), ask(twin, dtype))


def test_part_comes_back_alone_or_with_its_whole(repo: str, forkserver: int):
    """A part of a module comes back; together with the module it is a part of that again."""
    model = isohub.load(repo, "net")
    whole, head = again([model, model.head])
    box = again(nn.Sequential(model.body, nn.Identity()))
    body = model.body
    expected = ask(body)
    del model
    alone = again(body)

    assert whole.head.weight is head.weight
    assert_same(expected, ask(box))
    assert_same(expected, ask(alone))


def test_copy_and_original_stay_two(repo: str, forkserver: int):
    """A deep copy that is pickled together with its original is another module in the end."""
    import copy

    model = isohub.load(repo, "net")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.head.weight.fill_(1.0)
    one, two = again((model, twin))

    assert_same(ask(model), ask(one))
    assert_same(ask(twin), ask(two))


def test_handles_come_back_with_their_module(repo: str, forkserver: int):
    """What an entrypoint returned together comes back from one load, with the attributes that were set."""
    loaded = isohub.load(repo, "pair")
    tokenizer, total = loaded["tools"]
    tokenizer.lower = True
    twin, other_total, other = again((loaded["net"], total, tokenizer))

    assert other("AB") == [97, 98]
    assert again(tokenizer)("A") == [97]
    with torch.no_grad():
        twin.head.weight.fill_(1.0)
    assert other_total() == 16.0


def test_torch_saves_and_loads_it(repo: str, forkserver: int):
    """`torch.save` of a module, and `torch.load` with `weights_only=False`, give it back."""
    model = isohub.load(repo, "net")
    model.note()
    file = io.BytesIO()
    torch.save({"model": model, "epoch": 3}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)

    assert loaded["epoch"] == 3
    assert_same(ask(model), ask(loaded["model"]))


def test_hooks_come_along(repo: str, forkserver: int):
    """Hooks on a module that can be pickled are in its pickle, as in process."""
    model = isohub.load(repo, "net")
    model.register_forward_pre_hook(doubled)
    assert_same(ask(model), ask(again(model)))


def doubled(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (args[0] * 2,)


def test_dead_worker_s_module_can_be_pickled(repo: str, forkserver: int):
    """The weights of a module whose worker has died go into a pickle, and live on in a new worker."""
    model = isohub.load(repo, "net", isolate=isohub.Isolation(dedicated=True))
    expected = ask(model)
    os.kill(model.isohub.pid, signal.SIGKILL)
    with pytest.raises(BrokenWorkerError):
        ask(model)

    torch.manual_seed(0)
    assert_same(expected, ask(again(model)))


def test_what_has_no_recipe_says_so(repo: str, forkserver: int):
    """A module that no entrypoint returned, that was rebuilt, or whose values are not here, names the way out."""
    model = isohub.load(repo, "net")
    part = model.part()
    with pytest.raises(LocalProtocolError, match=r"no entrypoint returned it.*Save its state_dict\(\)"):
        pickle.dumps(part)
    with pytest.raises(LocalProtocolError, match="no entrypoint returned it as it is"):
        pickle.dumps(model.tool())
    model.grow()
    with pytest.raises(LocalProtocolError, match="its part 'extra' is not what the entrypoint made"):
        pickle.dumps(model)
    with pytest.raises(LocalProtocolError, match=r"0\.weight, 0\.bias cannot be seen from here: not made yet"):
        pickle.dumps(isohub.load(repo, "lazy"))


def test_lazy_module_that_was_made_comes_back(repo: str, forkserver: int):
    """A lazy module whose first call has made its parameters comes back with them."""
    model = isohub.load(repo, "lazy")
    expected = ask(model)

    assert_same(expected, ask(again(model)))


def test_pickle_is_pinned_and_asks_no_host(tmp_path: Path, forkserver: int, monkeypatch: pytest.MonkeyPatch):
    """A branch that moved on, and a host that is gone, change nothing: the commit comes from the cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    folder = make_repo(tmp_path / "net", {"v1": {"hubconf.py": REPO}})
    with GitHost() as host:
        host.add("owner/net", folder)
        model = isohub.load(f"{host.url}/owner/net:main", "net", trust_repo=True)
        data = pickle.dumps(model)
    twin = pickle.loads(data)

    assert_same(ask(model), ask(twin))
    assert (model.isohub.commit, "main") == (twin.isohub.commit, twin.isohub.ref)


@pytest.mark.slow
def test_pickle_is_read_in_a_fresh_process(repo: str, forkserver: int, warm_python: WarmPython, tmp_path: Path):
    """A pickle on disk is read by another program, to which isohub alone is known."""
    model = isohub.load(repo, "net").eval()
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    script = tmp_path / "reader.py"
    script.write_text(
        dedent("""
        import json, pickle, sys, torch
        with open(sys.argv[1], "rb") as file:
            model = pickle.load(file)
        with torch.no_grad():
            print(json.dumps(model(torch.linspace(0, 1, 12).reshape(3, 4)).tolist()))
    """)
    )

    assert ask(model).tolist() == run(warm_python, str(script), tmp_path / "model.pkl")


DATASET = """
    import json, os, pickle, sys, torch
    import isohub

    class Features(torch.utils.data.Dataset):
        def __init__(self, model, own=False):
            self.model = model
            self.own = own

        def __len__(self):
            return 4

        def __getitem__(self, index):
            if self.own:
                self.model, self.own = pickle.loads(pickle.dumps(self.model)), False
            with torch.no_grad():
                return self.model(torch.full((1, 4), float(index)))[0], os.getpid()

    def rows(model, context, own=False):
        loader = torch.utils.data.DataLoader(Features(model, own), num_workers=2, multiprocessing_context=context)
        values, pids = zip(*loader)
        return [value[0].tolist() for value in values], {int(pid) for pid in pids}

    def part(rank, model, folder):
        with torch.no_grad():
            value = model(torch.full((1, 4), float(rank)))[0].tolist()
        with open(os.path.join(folder, str(rank)), "w") as file:
            json.dump(value, file)

    if __name__ == "__main__":
        how, repo, folder = sys.argv[1:]
        model = isohub.load(repo, "net").eval()
        model.note()
        with torch.no_grad():
            expected = [model(torch.full((1, 4), float(index)))[0].tolist() for index in range(4)]
        told = {"expected": expected}
        if how == "process":
            torch.multiprocessing.spawn(part, (model, folder), nprocs=1)
            told["actual"] = [json.load(open(os.path.join(folder, "0")))]
            told["expected"] = expected[:1]
        elif how == "inherited":
            try:
                rows(model, "fork")
            except isohub.errors.ForeignProcessError as error:
                told["message"] = str(error)
            with torch.no_grad():
                told["actual"] = [model(torch.full((1, 4), float(index)))[0].tolist() for index in range(4)]
        else:
            told["actual"], pids = rows(model, how, own=how == "fork")
            told["processes"] = len(pids | {os.getpid()})
        with torch.no_grad():  # the memory of the weights is still the worker's
            for parameter in model.parameters():
                parameter.zero_()
            told["zero"] = model(torch.ones(1, 4)).sub(model.seen).abs().sum().item()
        print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["spawn", "fork", "process"])
def test_module_goes_to_other_processes(repo: str, warm_python: WarmPython, tmp_path: Path, how: str):
    """A dataset with a module works in a DataLoader's two workers and in a spawned process, and the module goes on."""
    script = tmp_path / "program.py"
    script.write_text(dedent(DATASET))
    told = run(warm_python, str(script), how, repo, tmp_path)

    assert told["expected"] == told["actual"]
    assert told["zero"] == 0.0
    assert how == "process" or told["processes"] == 3


@pytest.mark.slow
def test_inherited_module_says_what_to_do(repo: str, warm_python: WarmPython, tmp_path: Path):
    """In a forked DataLoader worker a module refuses to be called, names both processes and the ways out."""
    script = tmp_path / "program.py"
    script.write_text(dedent(DATASET))
    told = run(warm_python, str(script), "inherited", repo, tmp_path)

    assert "belongs to process" in told["message"]
    assert "call isohub.load in the process that uses the model, or send it there by pickle" in told["message"]
    assert told["expected"] == told["actual"]
    assert told["zero"] == 0.0
