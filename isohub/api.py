"""The pipeline: from a repo text to something loaded. Each step is one statement; the logic is below.

::

    text ── RepoRef.parse ──> resolve ──> fetch ──> Checkout ──> registry ──> Worker ──> request ──> result
"""

from __future__ import annotations

import builtins
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from isohub import trace
from isohub.hub import leases
from isohub.hub.lock import using
from isohub.hub.pipeline import Request
from isohub.model import artifacts, journal
from isohub.model.artifacts import Returns
from isohub.model.in_process import load_in_process
from isohub.model.objects import names_in, text_in
from isohub.model.proxies import ProxyTable
from isohub.model.recipe import Recipe, remember, undrawn
from isohub.model.tree import stamp
from isohub.options import Isolation
from isohub.refs import RepoRef
from isohub.supervisor.registry import Registry
from isohub.supervisor.worker import Worker
from isohub.wire.messages import Verb

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Repo", "help", "list", "load", "shutdown", "workers"]

Protocol = Literal["HTTPS", "SSH"]

_registry = Registry(ProxyTable)


def load(
    repo_or_dir: str | os.PathLike[str],
    model: str,
    *args: Any,
    source: str = "github",
    trust_repo: bool | Literal["check"] = "check",
    force_reload: bool = False,
    verbose: bool = True,
    skip_validation: bool = False,
    git_host: str | None = None,
    commit: str | None = None,
    protocol: Protocol = "HTTPS",
    use_cache: bool = True,
    isolate: bool | Isolation = True,
    returns: Returns = "module",
    example_inputs: Any = None,
    **kwargs: Any,
) -> Any:
    """Load a model from a hub repository, in a worker process of its own.

    The keywords up to `skip_validation` are torch.hub's, the four after it MegEngine Hub's. Those of isohub's
    own are three, so that they hide few of an entrypoint's; `Repo(...).load` hides none.

    Args:
        repo_or_dir: Which repository: `owner/name[:ref]`, `git+https://...@ref`, `git+ssh://...@ref`,
            `git+file:///path.git@ref`, or a folder (`pathlib.Path`, or a text with `source="local"`). A ref is a
            branch, a tag, or a full or short commit.
        model: Name of an entrypoint in its hubconf.py.
        *args: Arguments of the entrypoint.
        source: Where `owner/name` lies: `"github"`, `"gitlab"`, ...; `"local"` for a folder.
        trust_repo: Whether code of another machine may run: `"check"` asks on a terminal unless it is trusted
            already, and is an error where there is none; True trusts it from now on; False always asks. Folders
            and `git+file:` are your own, as in torch.hub.
        force_reload: Whether to ask the host again what the ref stands for, and to check every file.
        verbose: Whether to say where the files come from, and to pass on what the repository prints.
        skip_validation: Whether to take a commit that no branch or tag of the repository leads to, such as
            one of a fork.
        git_host: Another host for `owner/name`, with a port if it has one.
        commit: The commit to take, instead of a ref.
        protocol: `"HTTPS"` or `"SSH"`, for `owner/name`.
        use_cache: False is `force_reload=True`.
        isolate: True, or an `Isolation` with settings of the worker; False to load in this process, as
            torch.hub does.
        returns: `"module"` for what the entrypoint returns; `"state_dict"` for its state dict alone, as a
            dict of tensors in shared memory; `"torchscript"` for a `torch.jit.ScriptModule` and `"export"` for a
            `torch.export.ExportedProgram`, which run in this process without the repository's code, over the
            same memory. For these two the repository must be trusted in so many words.
        example_inputs: For these two, a tuple of inputs (or a dict of keyword inputs): the module is traced
            with them instead of scripted; `"export"` needs them, and leaves the first dimension open.
        **kwargs: Keyword arguments of the entrypoint.

    Returns:
        For a module, an `IsolatedModule`; for plain data and tensors, these; for any other object, a
        `RemoteObject`. Tuples, lists and dicts keep their shape.

    Raises:
        RefError: The text names no repository.
        ArtifactError: The model cannot be had as TorchScript or an exported program.
        ResolveError: The repository has no such ref, or cannot be asked.
        UntrustedRepoError: The repository is of another machine, and nobody trusted it.
        FetchError: The commit's files cannot be brought, or the weights that the entrypoint wants.
        LockError: The lock has another commit, or other weights than the entrypoint wants to download.
        FileNotFoundError: There is no hubconf.py.
        MissingDependencyError: hubconf.py names packages that are not installed.
        EntrypointError: hubconf.py has no such entrypoint.
        LocalProtocolError: An argument cannot cross to the worker.
        BrokenWorkerError: The worker died.
        WorkerTimeoutError: It took longer than `Isolation(timeout_s=...)`.
        Exception: What the entrypoint raised, of its builtin type; else a `RemoteError`.

    Example:
        >>> v1 = isohub.load("git+file:///srv/models.git@v1", "resnet18", weights=None)
        >>> v2 = isohub.load("git+file:///srv/models.git@v2", "resnet18", weights=None)
        >>> (v1(image) - v2(image)).abs().max()
    """
    repo = Repo(
        repo_or_dir,
        source=source,
        trust_repo=trust_repo,
        force_reload=force_reload or not use_cache,
        verbose=verbose,
        skip_validation=skip_validation,
        git_host=git_host,
        commit=commit,
        protocol=protocol,
        isolate=isolate,
        returns=returns,
        example_inputs=example_inputs,
    )
    return repo.load(model, *args, **kwargs)


def list(
    github: str | os.PathLike[str],
    force_reload: bool = False,
    skip_validation: bool = False,
    trust_repo: bool | Literal["check"] = "check",
    verbose: bool = True,
    *,
    source: str = "github",
    git_host: str | None = None,
    commit: str | None = None,
    protocol: Protocol = "HTTPS",
    use_cache: bool = True,
    isolate: Literal[True] | Isolation = True,
) -> builtins.list[str]:
    """Return the names of the entrypoints of a repository, sorted.

    hubconf.py is imported in a worker; this process never runs it. The arguments are those of `load`.

    Raises:
        Exception: As `load`, up to the entrypoint's own.

    Example:
        >>> isohub.list("git+file:///srv/models.git@v1")
        ['resnet18', 'resnet50']
    """
    repo = Repo(
        github,
        source=source,
        trust_repo=trust_repo,
        force_reload=force_reload or not use_cache,
        verbose=verbose,
        skip_validation=skip_validation,
        git_host=git_host,
        commit=commit,
        protocol=protocol,
        isolate=isolate,
    )
    return repo.list()


def help(
    github: str | os.PathLike[str],
    model: str,
    force_reload: bool = False,
    skip_validation: bool = False,
    trust_repo: bool | Literal["check"] = "check",
    *,
    source: str = "github",
    git_host: str | None = None,
    commit: str | None = None,
    protocol: Protocol = "HTTPS",
    use_cache: bool = True,
    isolate: Literal[True] | Isolation = True,
) -> str | None:
    """Return the docstring of an entrypoint; None when it has none.

    hubconf.py is imported in a worker; this process never runs it. The arguments are those of `load`.

    Raises:
        Exception: As `load`, up to the entrypoint's own.

    Example:
        >>> print(isohub.help("git+file:///srv/models.git@v1", "resnet18"))
    """
    repo = Repo(
        github,
        source=source,
        trust_repo=trust_repo,
        force_reload=force_reload or not use_cache,
        skip_validation=skip_validation,
        git_host=git_host,
        commit=commit,
        protocol=protocol,
        isolate=isolate,
    )
    return repo.help(model)


class Repo:
    """A repository at one ref. Every keyword of `load` reaches the entrypoint.

    The ref is resolved when the object is made, so that all that it loads is of one commit (a working
    tree is looked at anew with every load). It shares its worker with whoever loads the same commit with
    the same settings; `close`, or the end of `with`, ends the worker if nobody else uses it, and with it
    the modules that came from there: they keep their weights, and refuse to be called.

    Args:
        repo_or_dir: As in `load`; so are all the others but `lock`.
        lock: A lock file that the commit and the files must agree with; without one, that of `ISOHUB_LOCK`.

    Attributes:
        ref: What was asked for, parsed.
        checkout: The files.

    Raises:
        RefError, ResolveError, UntrustedRepoError, FetchError, LockError, FileNotFoundError: As `load`.

    Example:
        >>> with isohub.Repo("git+file:///srv/models.git@feat/x") as repo:
        ...     net = repo.load("resnet18", device="cpu", verbose=True)
    """

    def __init__(
        self,
        repo_or_dir: str | os.PathLike[str],
        *,
        source: str = "github",
        trust_repo: bool | Literal["check"] = "check",
        force_reload: bool = False,
        verbose: bool = True,
        skip_validation: bool = False,
        git_host: str | None = None,
        commit: str | None = None,
        protocol: Protocol = "HTTPS",
        lock: str | os.PathLike[str] | None = None,
        isolate: bool | Isolation = True,
        returns: Returns = "module",
        example_inputs: Any = None,
    ) -> None:
        self._isolation = _isolation(isolate)
        artifacts.check_returns(returns, isolated=self._isolation is not None)
        self._example_inputs = artifacts.check_inputs(returns, example_inputs)
        self.ref = RepoRef.parse(repo_or_dir, source=source, git_host=git_host, protocol=protocol, commit=commit)
        self._request = Request(
            ref=self.ref,
            trust_repo=trust_repo,
            force_reload=force_reload,
            skip_validation=skip_validation,
            verbose=verbose,
            lock=lock,
            explicit_trust=returns in artifacts.KINDS,
        )
        self._returns: Returns = returns
        self._verbose = verbose
        self._workers: builtins.list[Worker] = []
        if self._isolation is not None:
            _registry.warm_up()  # it imports torch while we resolve and fetch
        self.checkout = self._request.checkout()

    def __repr__(self) -> str:
        return f"<Repo {self.ref} commit={self.commit}>"

    def __enter__(self) -> Repo:  # noqa: PYI034 - Self is of Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def commit(self) -> str | None:
        """The commit, 40 hexadecimal digits; None for a working tree."""
        return self.checkout.commit

    def list(self) -> builtins.list[str]:
        """Return the names of the entrypoints, sorted. See `isohub.list`."""
        worker = self._ready()
        return names_in(worker, self._request_of(worker, "list"))

    def help(self, model: str) -> str | None:
        """Return the docstring of an entrypoint; None when it has none. See `isohub.help`."""
        worker = self._ready()
        return text_in(worker, self._request_of(worker, "help", name=_name(model)))

    def load(self, model: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call an entrypoint with these arguments and return its result. See `isohub.load`."""
        name = _name(model)
        with trace.step("model.load", repo=str(self.ref), commit=self.commit, entrypoint=name):
            if self._isolation is None:
                # For good: its code may import more of its files at any time.
                self.checkout, _ = self._request.take(self.checkout, leases.keep)
                result = load_in_process(self.checkout.root, name, args, kwargs)
                return result.state_dict() if self._returns == "state_dict" else result
            known = artifacts.describe(self.checkout, name, args, kwargs)
            asked: dict[str, Any] = {"name": name, "returns": self._returns, "metadata": known.fields()}
            if self._returns in artifacts.KINDS:
                worker = self._ready()
                parts = self._request_of(worker, "build", (args, kwargs, self._example_inputs), {}, **asked)
                return artifacts.make(self._returns, parts, known, worker)
            recipe = self._recipe(name, args, kwargs, asked["metadata"])
            result = self._ask("build", args, kwargs, **asked)
            stamp(result, name)
            if self._returns == "state_dict":
                return artifacts.mark(result, known)
            remember(result, recipe)
            return result

    def _recipe(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], metadata: dict[str, str]) -> Recipe:
        return Recipe(
            load=_load_again,
            ref=self.ref if self.commit is None else replace(self.ref, ref=None, commit=self.commit),
            ref_name=self.checkout.ref_name,
            call=(name, args, kwargs),
            isolation=self._isolation or Isolation(),
            build=journal.begin(self._isolation, (name, args, kwargs), metadata, self._request.lock),
        )

    def close(self) -> None:
        """End the workers that nobody else uses. May be called again."""
        while self._workers:
            _registry.release(self._workers.pop())

    def _ask(self, verb: Verb, *arguments: Any, **fields: Any) -> Any:
        return self._request_of(self._ready(), verb, *arguments, **fields)

    def _request_of(self, worker: Worker, verb: Verb, *arguments: Any, **fields: Any) -> Any:
        # What the worker's code fetches meanwhile is held against the lock as well.
        with trace.step(f"model.{verb}", worker=worker.label), using(self._request.lock):
            return worker.request(verb, *arguments, muted=not self._verbose, **fields)

    def _ready(self) -> Worker:
        """Return a worker for the files as they are: a new one if the last has ended, or a tree was edited."""
        if self.ref.is_local_tree:
            self.checkout = self._request.checkout()
        isolation = self._isolation or Isolation()
        self.checkout, worker = self._request.take(self.checkout, lambda one: _registry.worker(one, isolation))
        if worker in self._workers and not worker.isolation.dedicated:
            _registry.release(worker)  # it counts once for this object
        else:
            self._workers.append(worker)
        return worker


def workers() -> builtins.list[Worker]:
    """Return the live workers of this program, oldest first.

    Example:
        >>> [(worker.label, worker.pid, worker.status().memory) for worker in isohub.workers()]
    """
    return _registry.workers()


def shutdown() -> None:
    """End all workers and the forkserver now; it happens by itself when the program ends.

    Modules that were loaded keep their weights, and refuse to be called. The next load starts afresh.
    Checkouts whose code runs in this process (`isolate=False`) may be removed from the cache from then on.
    """
    _registry.shutdown()
    leases.let_go()


def _load_again(
    ref: RepoRef, ref_name: str | None, call: tuple[str, tuple[Any, ...], dict[str, Any]], isolation: Isolation
) -> tuple[Any]:
    """Follow a recipe: what unpickling a module or an object in a worker does; see `model.recipe`."""
    # The commit ran here before, or whoever made the pickle says that it did: no host is asked whether it is theirs.
    repo = Repo(str(ref), isolate=isolation, skip_validation=True, verbose=False)
    repo.checkout = replace(repo.checkout, ref_name=ref_name)
    entrypoint, args, kwargs = call
    with undrawn():
        return (repo.load(entrypoint, *args, **kwargs),)


def _isolation(isolate: bool | Isolation) -> Isolation | None:
    if isinstance(isolate, Isolation):
        return isolate
    if isinstance(isolate, bool):
        return Isolation() if isolate else None
    raise TypeError(f"isolate takes True, False or an isohub.Isolation, not {isolate!r}")


def _name(model: object) -> str:
    if not isinstance(model, str):  # torch.hub's type and text
        raise ValueError("Invalid input: model should be a string of function name")  # noqa: TRY004
    return model
