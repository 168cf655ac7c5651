"""The public API as a user's type checker sees it. Never run: mypy reads it."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from typing_extensions import assert_type

import isohub

model = isohub.load("owner/name:ref", "entry", 1, source="github", key="value")
assert_type(model, Any)
isohub.load(Path("folder"), "entry", isolate=isohub.Isolation(threads=1, timeout_s=30, env={"A": "b", "C": None}))
isohub.load("folder", "entry", source="local", isolate=False, returns="state_dict")
assert_type(isohub.run_in(model, lambda module, x, *, scale: scale * module(x), 1, scale=2), Any)

isohub.load("owner/name", "entry", returns="torchscript", example_inputs=(1, 2))
isohub.load("owner/name", "entry", returns="onnx")  # type: ignore[arg-type]
assert_type(isohub.save({}, Path("file")), None)
isohub.set_metadata_hook(lambda fields: {"team": fields["repo"]})

found = isohub.compare("owner/name", "entry", ["v1", Path("folder")], [1, 2], kwargs={"size": 3}, mode="train")
assert_type(found, isohub.Comparison)
assert_type(found.failures("max_abs > 0"), list[str])
assert_type(isohub.bisect("owner/name", "entry", "v1", "main", jobs=2), isohub.Bisection)

assert_type(isohub.list("owner/name"), list[str])
assert_type(isohub.help("owner/name", "entry"), "str | None")
assert_type(isohub.workers(), list[isohub.Worker])
assert_type(isohub.workers()[0].pid, int)
isohub.warm(2, wait=True)

with isohub.Repo("git+file:///srv/models.git@v1") as repo:
    assert_type(repo, isohub.Repo)
    assert_type(repo.list(), list[str])
    assert_type(repo.commit, "str | None")
    assert_type(repo.load("entry", source="the entrypoint's own"), Any)

try:
    isohub.shutdown()
except isohub.errors.BrokenWorkerError as error:
    assert_type(error.exit_code, "int | None")
    assert_type(error.stderr_tail, tuple[str, ...])

with isohub.deadline(3):
    call = assert_type(isohub.acall(model, 1, x=2), Coroutine[Any, Any, Any])

assert_type(isohub.gather([(model, 1), (model,)], return_exceptions=True), list[Any])
isohub.gather([3])  # type: ignore[list-item]
isohub.deadline("3")  # type: ignore[arg-type]
refused = isohub.acall(3)  # type: ignore[arg-type]
isohub.run_in(model, "no function")  # type: ignore[arg-type]
isohub.load(3, "entry")  # type: ignore[arg-type]
isohub.Isolation("positional")  # type: ignore[call-arg, arg-type]
