"""What a worker is given: frozen settings that are checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["DEFAULT_START_TIMEOUT_S", "Isolation"]

# A fresh interpreter that imports torch takes 1.6 s on an idle machine, 3 s on a loaded one, and more
# from a cold network disk; a repository may take 12 s to import. A minute says "hung" for certain.
DEFAULT_START_TIMEOUT_S = 60.0
# With less, imports of common packages fail half-way, and the error says nothing of use. The arena of results
# takes 16 MiB at once.
MIN_MEMORY_BYTES = 64 << 20
# A worker has some ten of its own, and an import needs one or two at a time.
MIN_OPEN_FILES = 32


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """How a worker process is set up. Pass it as `isolate=`; `isolate=True` is `Isolation()`.

    Attributes:
        setup: A function without arguments that the worker runs before it imports hubconf.py: the
            place for shims that an old repository needs. It may be a lambda or a closure.
        env: Environment variables of the worker's own, beside the few that it takes over from this
            process (see the docs for which). A value of None takes a variable away.
        threads: Threads of torch in the worker; None for as many as torch uses here, which is what
            makes the results equal bit for bit.
        timeout_s: Seconds that one load or call may take, the wait for other threads' calls included;
            None for no limit. A worker that takes longer is killed. `isohub.deadline` sets one for some
            calls.
        start_timeout_s: Seconds that a worker may take to become ready.
        dedicated: Whether the load gets a worker of its own instead of sharing that of its commit.
        results: Where the tensors of results lie: `"shared"` is the fast way, memory that the worker can go on
            writing to; `"frozen"` is memory that it cannot change any more once it has answered, for code that
            you do not trust. Either way large ones are not copied. Weights are shared with the worker always.
        memory_bytes: Bytes of memory that the worker may take for itself, beside what it has when it
            starts, and as many of shared memory, for weights and results; None for no limit. More is a
            `MemoryError`, or a `RuntimeError` of torch's, that names this setting. It holds for each
            process that the repository starts as well.
        open_files: Descriptors that the worker may have open; None for as many as this process.
        restart: What becomes of models whose worker died. `"never"`: their weights stay readable, and calls raise
            `BrokenWorkerError`. `"on-crash"`: the call that was under way raises, and is never made twice; the
            next one starts a new worker, which builds them again on the weights that this program still holds.
            For that the arguments of loads are kept, and one descriptor for each piece of weights.
        share_equal_weights: Whether weights that another worker has as well, byte for byte, are kept once. Whoever
            writes to a tensor of them gets memory of its own for it; the first such write takes longer than others.
            Weights of workers with `memory_bytes` or `restart="on-crash"` are never shared.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A number is out of range, or a variable name cannot be one.

    Example:
        >>> isohub.load(repo, "net", isolate=isohub.Isolation(threads=1, timeout_s=30))
    """

    setup: Callable[[], object] | None = None
    env: Mapping[str, str | None] = field(default_factory=dict)
    threads: int | None = None
    timeout_s: float | None = None
    start_timeout_s: float = DEFAULT_START_TIMEOUT_S
    dedicated: bool = False
    results: Literal["shared", "frozen"] = "shared"
    memory_bytes: int | None = None
    open_files: int | None = None
    restart: Literal["on-crash", "never"] = "never"
    share_equal_weights: bool = True

    def __post_init__(self) -> None:
        if self.setup is not None and not callable(self.setup):
            raise TypeError(f"Isolation(setup=...) takes a function without arguments, not {self.setup!r}")
        if not isinstance(self.env, Mapping):
            raise TypeError(f"Isolation(env=...) takes a mapping of names to texts, not {self.env!r}")
        for name, value in self.env.items():
            _check_variable(name, value)
        # A copy, so that a later change of the caller's dict changes no worker.
        object.__setattr__(self, "env", MappingProxyType(dict(self.env)))
        _check_count("threads", self.threads, 1)
        _check_count("memory_bytes", self.memory_bytes, MIN_MEMORY_BYTES)
        _check_count("open_files", self.open_files, MIN_OPEN_FILES)
        if self.timeout_s is not None:
            _check_seconds("timeout_s", self.timeout_s)
        _check_seconds("start_timeout_s", self.start_timeout_s)
        if not isinstance(self.dedicated, bool):
            raise TypeError(f"Isolation(dedicated=...) takes True or False, not {self.dedicated!r}")
        if not isinstance(self.share_equal_weights, bool):
            raise TypeError(f"Isolation(share_equal_weights=...) takes True or False, not {self.share_equal_weights!r}")
        if self.results not in ("shared", "frozen"):
            raise ValueError(f'Isolation(results=...) must be "shared" or "frozen", not {self.results!r}')
        if self.restart not in ("on-crash", "never"):
            raise ValueError(f'Isolation(restart=...) takes "on-crash" or "never", not {self.restart!r}')

    def __reduce__(self) -> tuple[object, ...]:
        # A mapping proxy can be neither copied nor pickled.
        return _isolation, ({**vars(self), "env": dict(self.env)},)


def _isolation(settings: dict[str, Any]) -> Isolation:
    return Isolation(**settings)


def _check_variable(name: object, value: object) -> None:
    if not isinstance(name, str) or not isinstance(value, str | None):
        raise TypeError(
            f"Isolation(env=...) maps texts to texts (or None, to take a variable away), not {name!r}: {value!r}"
        )
    if not name or "=" in name or "\0" in name or "\0" in (value or ""):
        raise ValueError(f"Isolation(env=...): {name!r} with value {value!r} cannot be an environment variable")


def _check_count(name: str, value: object, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Isolation({name}=...) takes an int or None, not {value!r}")
    if not least <= value < 1 << 62:
        raise ValueError(f"Isolation({name}=...) must be at least {least}, not {value}")


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Isolation({name}=...) takes a number of seconds, not {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"Isolation({name}=...) must be a finite number of seconds above 0, not {value!r}")
