"""Generated histories of a small model: many commits and merges, a few of which change something of a known kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import dedent

from tests.helpers.repos import git

__all__ = ["History", "State", "make_history"]

_HUBCONF = '''
"""Small models."""
{broken}
from net.model import Net

dependencies = ["torch"]


def net():
    """Return a small network."""
    return Net()
'''
_MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.{name} = nn.Sequential(nn.Linear(16, 32), nn.{activation}(), nn.Linear(32, 16), nn.{activation}())
        self.head = nn.Linear(16, 7)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, x):
        {slow}
        return self.head(self.{name}(x))
"""
_SLOW = "for _ in range(1500): torch.linalg.svdvals(torch.eye(24))"


@dataclass(frozen=True)
class State:
    """What the model is at a commit, and the notes that lie beside it."""

    activation: str = "ReLU"
    name: str = "body"
    broken: str = ""
    slow: str = "pass"
    notes: Mapping[str, str] = field(default_factory=dict)

    def files(self) -> dict[str, str]:
        """Return the files of a commit."""
        return {
            "hubconf.py": dedent(_HUBCONF).lstrip().format(broken=self.broken),
            "net/__init__.py": "",
            "net/model.py": dedent(_MODEL).lstrip().format(name=self.name, activation=self.activation, slow=self.slow),
            **{f"notes/{name}.txt": text for name, text in self.notes.items()},
        }


CHANGES = {
    "activation": {"activation": "GELU"},
    "rename": {"name": "trunk"},
    "break": {"broken": "import a_package_that_is_not_there"},
    "mend": {"broken": ""},
    "slow": {"slow": _SLOW},
}


@dataclass(frozen=True)
class History:
    """A generated repository.

    Attributes:
        folder: Its working tree.
        named: Commits by the name of their change; `"first"` and `"last"`, too.
        count: How many commits there are after the first.
    """

    folder: Path
    named: dict[str, str]
    count: int


def make_history(folder: Path, changes: Mapping[int, str], commits: int = 64) -> History:
    """Make a repository of `commits` commits after the first, every eighth of them a merge of a side branch.

    Args:
        folder: Where.
        changes: Names of `CHANGES`, by the number of the step of the main line at which they happen, from 1.
        commits: How many.
    """
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    stream = _Stream()
    state = State()
    main = [stream.commit("First", state.files(), [])]
    number = step = 0
    while number < commits:
        step += 1
        if commits - number >= 4 and step % 5 == 0:
            # Three commits on the side, from two back, and their merge.
            tip = main[-2] if len(main) > 1 else main[-1]
            side = stream.states[tip]
            for part in range(3):
                side = replace(side, notes={**side.notes, f"side-{step}": f"part {part}"})
                tip = stream.commit(f"Side {step}.{part}", side.files(), [tip], state=side)
            state = replace(state, notes={**state.notes, f"side-{step}": "part 2"})
            main.append(stream.commit(f"Merge side {step}", state.files(), [main[-1], tip], state=state))
            number += 4
            continue
        number += 1
        change = changes.get(step)
        if change is None:
            state = replace(state, notes={**state.notes, "log": f"entry {step}"})
        else:
            state = replace(state, **CHANGES[change])
        main.append(stream.commit(change or f"Note {step}", state.files(), [main[-1]], state=state))
    stream.load(folder)
    shas = git(folder, "rev-list", "--all", "--topo-order", "--reverse", "--format=%s").splitlines()
    by_subject = {subject: line.split()[1] for line, subject in zip(shas[::2], shas[1::2], strict=True)}
    named = {change: by_subject[change] for change in changes.values() if change in by_subject}
    git(folder, "reset", "--quiet", "--hard", "main")
    return History(folder, {**named, "first": by_subject["First"], "last": git(folder, "rev-parse", "main")}, number)


class _Stream:
    """What `git fast-import` reads: one process makes all commits."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self.states: dict[int, State] = {}
        self._mark = 0

    def commit(
        self,
        subject: str,
        files: dict[str, str],
        parents: list[int],
        *,
        state: State | None = None,
        name: str | None = None,
    ) -> int:
        """Add a commit; return its mark."""
        self._mark += 1
        self.states[self._mark] = state or State()
        who = f"Ada Example <ada@example.invalid> {1_700_000_000 + self._mark * 60} +0000"
        self._say(f"commit refs/heads/main\nmark :{self._mark}\nauthor {who}\ncommitter {who}")
        self._data(subject)
        for word, parent in zip(["from", *["merge"] * len(parents)], parents, strict=False):
            self._say(f"{word} :{parent}")
        self._say("deleteall")
        for path, text in files.items():
            self._say(f"M 100644 inline {path}")
            self._data(text)
        return self._mark

    def load(self, folder: Path) -> None:
        """Make the commits."""
        source = folder / ".git" / "stream"
        source.write_bytes(b"".join(self._lines))
        git(folder, "-c", "alias.import=!git fast-import --quiet --force < .git/stream", "import")
        source.unlink()

    def _say(self, text: str) -> None:
        self._lines.append(f"{text}\n".encode())

    def _data(self, text: str) -> None:
        self._lines.append(b"data %d\n%s\n" % (len(text.encode()), text.encode()))
