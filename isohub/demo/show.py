"""What `isohub demo` does: two versions at once in isohub, then in `torch.hub`, measured alike.

::

    make_repository ──> checkouts ──> plain_torch_hub.py, in a process ──> Mixed, Mixed ──┐
           └──> isohub.load(v1), isohub.load(v2) ──> Loaded, Loaded ──────────────────────┴──> Figures ──> render
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table

import isohub
from isohub.demo import repository
from isohub.errors import IsohubError
from isohub.supervisor.memory import memory_of

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Figures", "Loaded", "Mixed", "measure", "render"]

_TAGS = ("v1", "v2")
# Enough calls for a median: as many as fit into the time, and never fewer than the least.
_MEASURE_S = 0.5
_LEAST_CALLS = 9
_TIMEOUT_S = 120


@dataclass(frozen=True)
class Loaded:
    """One version, loaded with isohub beside the other.

    Attributes:
        ref: Its tag.
        commit: Its commit, 40 hexadecimal digits.
        accuracy: Share of the test images that it reads right.
        call_all_s: Seconds that a call with all images takes, the median of many.
        call_one_s: Seconds that a call with one image takes, the median of many.
        worker_pid: Process id of its worker.
        private_bytes: Memory that the worker alone has; None if it is not known.
        proportional_bytes: The same and its part of what it shares; None if it is not known.
    """

    ref: str
    commit: str
    accuracy: float
    call_all_s: float
    call_one_s: float
    worker_pid: int
    private_bytes: int | None
    proportional_bytes: int | None


@dataclass(frozen=True)
class Mixed:
    """One version, loaded with `torch.hub` into the process of the other.

    Attributes:
        ref: Its tag.
        accuracy: Share of the test images that it reads right.
        source: The file that the model's class came from, `ref:path` as git writes it.
    """

    ref: str
    accuracy: float
    source: str


@dataclass(frozen=True)
class Figures:
    """All that the demo measures.

    Attributes:
        images: How many test images there are.
        agreement: Share of them that both versions read as the same digit.
        isohub: Both versions with isohub, in one program.
        torch_hub: Both versions with `torch.hub`, in one program, in the order in which it loaded them.
        takeaway: What it comes to, in a sentence.
    """

    images: int
    agreement: float
    isohub: tuple[Loaded, ...]
    torch_hub: tuple[Mixed, ...]
    takeaway: str


def measure(tell: Callable[[str], object]) -> Figures:
    """Make the repository, load both of its versions in both ways, and measure them. Nothing is kept.

    Args:
        tell: Called with a line for people as each part begins.

    Raises:
        IsohubError: There is no git, or a part failed.
    """
    with tempfile.TemporaryDirectory(prefix="isohub-demo-") as folder, _hub_folder(Path(folder, "hub")):
        tell("Making a git repository with the tags v1 and v2")
        made = repository.make_repository(Path(folder, "digits"))
        urls = {tag: f"git+{made.as_uri()}@{tag}" for tag in _TAGS}
        images, labels = repository.test_images()
        checkouts = {tag: isohub.Repo(url).checkout.root for tag, url in urls.items()}
        # First, since isohub gets its forkserver ready meanwhile.
        tell("torch.hub: loading both tags into one throw-away process")
        mixed = _with_torch_hub(checkouts)
        tell("isohub: loading both tags, each into a worker of its own")
        models = {tag: isohub.load(url, "digits") for tag, url in urls.items()}
        try:
            tell("isohub: reading the test images with both")
            loaded = tuple(_measure(tag, model, images, labels) for tag, model in models.items())
            agreement = _agreement(models["v1"], models["v2"], images)
        finally:
            pids = {model.isohub.pid for model in models.values()}
            for worker in isohub.workers():
                if worker.pid in pids:
                    worker.close()
    return Figures(
        images=len(labels),
        agreement=agreement,
        isohub=loaded,
        torch_hub=mixed,
        takeaway=_takeaway(mixed),
    )


def render(figures: Figures) -> Iterator[RenderableType]:
    """Yield what to print of the figures, for at most 80 columns."""
    yield "Two tags of one git repository, with the same file names and other code and weights."
    yield "\nisohub, both in one program:"
    loaded = _table("v1", "v2")
    first, second = figures.isohub
    for name, one, other in (
        ("images read right", _percent(first.accuracy), _percent(second.accuracy)),
        (f"a call with {figures.images} images", _ms(first.call_all_s), _ms(second.call_all_s)),
        ("a call with 1 image", _ms(first.call_one_s), _ms(second.call_one_s)),
        ("memory, of the worker alone", _bytes(first.private_bytes), _bytes(second.private_bytes)),
        ("memory, with a part of what is shared", *map(_bytes, (first.proportional_bytes, second.proportional_bytes))),
        ("worker process", str(first.worker_pid), str(second.worker_pid)),
        ("commit", first.commit[:7], second.commit[:7]),
    ):
        loaded.add_row(name, one, other)
    yield loaded
    yield f"Both read {_percent(figures.agreement)} of the images as the same digit."
    yield "\ntorch.hub, both in one program (a throw-away one), in this order:"
    mixed = _table(*(version.ref for version in figures.torch_hub))
    mixed.add_row("images read right", *(_percent(version.accuracy) for version in figures.torch_hub))
    mixed.add_row("the model's class is from", *(version.source for version in figures.torch_hub))
    yield mixed
    yield f"\n{figures.takeaway}"


@contextmanager
def _hub_folder(folder: Path) -> Iterator[None]:
    """Keep the demo's checkouts out of the user's cache."""
    before = torch.hub._hub_dir  # get_dir() would say the default as if it had been set
    torch.hub.set_dir(folder)
    try:
        yield
    finally:
        torch.hub._hub_dir = before


def _measure(tag: str, model: isohub.IsolatedModule, images: torch.Tensor, labels: torch.Tensor) -> Loaded:
    about = model.isohub
    assert about.commit is not None, "a tag is a commit"
    with torch.inference_mode():
        right = int((model(images).argmax(dim=1) == labels).sum())
        call_all_s = _median_s(lambda: model(images))
        one = images[:1]
        call_one_s = _median_s(lambda: model(one))
    memory = memory_of(about.pid)
    return Loaded(
        ref=tag,
        commit=about.commit,
        accuracy=right / len(labels),
        call_all_s=call_all_s,
        call_one_s=call_one_s,
        worker_pid=about.pid,
        private_bytes=memory.private_bytes,
        proportional_bytes=memory.proportional_bytes,
    )


def _agreement(first: isohub.IsolatedModule, second: isohub.IsolatedModule, images: torch.Tensor) -> float:
    with torch.inference_mode():
        same = first(images).argmax(dim=1) == second(images).argmax(dim=1)
    return int(same.sum()) / len(images)


def _median_s(call: Callable[[], object]) -> float:
    times: list[float] = []
    while len(times) < _LEAST_CALLS or sum(times) < _MEASURE_S:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _with_torch_hub(checkouts: dict[str, Path]) -> tuple[Mixed, ...]:
    """Have `plain_torch_hub.py` load the checkouts, in their order, and return what it tells."""
    program = Path(__file__).with_name("plain_torch_hub.py")
    done = subprocess.run(
        [sys.executable, program, *checkouts.values(), repository.IMAGES_FILE],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise IsohubError(f"The process with torch.hub failed (exit code {done.returncode}): {done.stderr.strip()}")
    report = json.loads(done.stdout.splitlines()[-1])
    return tuple(
        Mixed(ref=tag, accuracy=told["accuracy"], source=_source(Path(told["source"]), checkouts))
        for tag, told in zip(checkouts, report, strict=True)
    )


def _source(file: Path, checkouts: dict[str, Path]) -> str:
    for tag, root in checkouts.items():
        if file.resolve().is_relative_to(root.resolve()):
            return f"{tag}:{file.resolve().relative_to(root.resolve())}"
    return str(file)


def _takeaway(mixed: tuple[Mixed, ...]) -> str:
    last = mixed[-1]
    ran = last.source.partition(":")[0]
    return f"torch.hub ran {ran}'s code as {last.ref}, without an error; isohub gave each tag its own."


def _table(first: str, second: str) -> Table:
    table = Table("", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in (first, second):
        table.add_column(name, justify="right")
    return table


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else decimal(count)
