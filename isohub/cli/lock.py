"""`isohub lock` and `isohub prefetch`: write down what refs stand for; bring what an offline machine will need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isohub.cli.arguments import keywords_of
from isohub.cli.options import Json, Source, SourceName, Traceback, source_of
from isohub.cli.running import running
from isohub.errors import LockError

if TYPE_CHECKING:
    from isohub.hub.lock import Lock, LockedRepo, LockedWeights
    from isohub.hub.uses import Recorded
    from isohub.refs import RepoRef

__all__ = ["add_to"]

_LOCK = Path("isohub.lock")
_Repos = Annotated[
    list[str] | None,
    typer.Argument(metavar="REPO", show_default=False, help="owner/name[:ref], git+https://..., git+file:///..."),
]
_Entries = Annotated[
    list[str] | None,
    typer.Option(
        "--entry",
        metavar="ENTRY",
        show_default=False,
        help="Load from this entrypoint in a worker, for the weights that it downloads. May be given again.",
    ),
]
_Kwargs = Annotated[
    list[str] | None,
    typer.Option(
        "--kwarg",
        metavar="KEY=VALUE",
        show_default=False,
        help="A keyword argument for each --entry, such as pretrained=true; read as by `isohub load`.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("lock")(_lock)
    app.command("prefetch")(_prefetch)


def _lock(
    repos: _Repos = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The lock file.")] = _LOCK,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Lock what refs stand for now, though the file says otherwise; without REPO, all of them."
        ),
    ] = False,
    entry: _Entries = None,
    kwarg: _Kwargs = None,
    source: Source = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Lock refs: write down their commits, and the hashes of files.

    Those of the weights that an entrypoint downloads as well, with --entry.

    What the file has already stays, unless --update is given. A program that is run with ISOHUB_LOCK=FILE is
    refused whatever differs; one that is run with ISOHUB_LOCK_WRITE=FILE writes down itself what it uses.
    """
    keywords = keywords_of(kwarg or [])
    if not repos and not update:
        raise typer.BadParameter("Name what to lock, or say --update.", param_hint="REPO")
    with running(traceback=traceback) as answer:
        from isohub.hub.lock import Lock, unlocked

        before = Lock.read(output) if output.exists() or not repos else Lock()
        wanted = _parsed(repos, source) if repos else [one.asked for one in before.repos]
        after = before
        with unlocked():
            for repo in wanted:
                known = None if update else before.find(repo)
                recorded = _bring(repo, known, entry or [], keywords, force_reload=update)
                if known is not None:
                    first = recorded.repos[0]
                    before.check(repo, first.commit, first.tree_hash, first.fetched_by)
                after = _with(after, repo, recorded)
        if after != before or not output.exists():
            after.write(output)
        rows = [_row(repo, before, after) for repo in wanted]
        if json:
            answer.json({"lock": str(output), "repos": rows})
        else:
            answer.text("\n".join(f"{row['repo']}  {row['commit'][:7]}  {_told(row)}" for row in rows))


def _prefetch(
    repos: _Repos = None,
    *,
    lock: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="A lock file: without REPO, bring all that is in it."),
    ] = None,
    entry: _Entries = None,
    kwarg: _Kwargs = None,
    source: Source = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Bring repositories here, for later use without a network.

    With --entry what an entrypoint downloads as well, with --lock the locked weights. The commits are then those
    of the lock, and on this machine the refs stand for them from then on.
    """
    keywords = keywords_of(kwarg or [])
    if not repos and lock is None:
        raise typer.BadParameter("Name what to bring, or a lock file with --lock.", param_hint="REPO")
    with running(traceback=traceback) as answer:
        from isohub.hub.lock import Lock, using

        locked = Lock() if lock is None else Lock.read(lock)
        wanted = _parsed(repos, source) if repos else [one.asked for one in locked.repos]
        brought: list[dict[str, Any]] = []
        with using(lock):
            for repo in wanted:
                known = locked.find(repo)
                recorded = _bring(repo, known, entry or [], keywords)
                if known is not None:
                    _remember(repo, known)
                    _bring_weights(known.weights, repo)
                brought.append({"repo": str(repo), "commit": recorded.repos[0].commit})
            if not repos:
                _bring_weights(locked.weights)
        if json:
            answer.json({"repos": brought})
        else:
            answer.text("\n".join(f"{one['repo']}  {one['commit'][:7]}" for one in brought))


def _parsed(texts: list[str], source: SourceName | None) -> list[RepoRef]:
    from isohub.refs import RepoRef

    return [RepoRef.parse(text, source=source_of(text, source)) for text in texts]


def _bring(
    repo: RepoRef, known: LockedRepo | None, entries: list[str], keywords: dict[str, Any], *, force_reload: bool = False
) -> Recorded:
    """Fetch a repository, at its locked commit if it has one, load from its entrypoints, and return what was used."""
    from isohub.hub import uses
    from isohub.hub.cache import Cache
    from isohub.hub.fetch import fetch
    from isohub.hub.resolve import resolve

    cache = Cache()
    with uses.recording() as recorded:
        # What is locked was looked at when it was locked: its branch may be gone by now.
        skip = known is not None
        asked = repo if known is None else known.pinned
        checkout = fetch(resolve(asked, cache, force_reload=force_reload, skip_validation=skip), cache)
        if checkout.commit is None:
            raise LockError(f"{repo.label} is a folder, and has no commit: git+file:///path@ref names one")
        for name in entries:
            from isohub.api import Repo

            with Repo(str(replace(repo, ref=None, commit=checkout.commit))) as opened:
                opened.load(name, **keywords)
    return recorded


def _with(lock: Lock, repo: RepoRef, recorded: Recorded) -> Lock:
    """Return a lock with what was recorded of a repository, and of others that its code has loaded."""
    from isohub.hub.lock import LockedRepo

    first, *others = recorded.repos
    entry = LockedRepo.of(repo, first.commit, first.tree_hash, first.fetched_by)
    lock = lock.with_repo(entry)
    for one in others:
        if one.pinned != entry.pinned:
            lock = lock.with_repo(one)
    return lock.with_weights([weights for weights, _ in recorded.weights], repo)


def _remember(repo: RepoRef, known: LockedRepo) -> None:
    """Let a ref stand for the locked commit without a question to its host, which may be out of reach later."""
    from isohub.hub.cache import Cache

    if repo.is_remote and repo.commit is None:
        Cache().refs.note(repo, repo.ref, known.commit, repo.ref)


def _bring_weights(weights: Iterable[LockedWeights], repo: RepoRef | None = None) -> None:
    from isohub.hub.weights import fetch_weights

    for one in weights:
        fetch_weights(one.url, one.sha256, repo=None if repo is None else str(repo), is_told=True)


def _row(repo: RepoRef, before: Lock, after: Lock) -> dict[str, Any]:
    old, new = before.find(repo), after.find(repo)
    assert new is not None, "it was added"
    return {
        "repo": str(repo),
        "commit": new.commit,
        "was": None if old is None else old.commit,
        "tree_hash": new.tree_hash,
        "weights": [asdict(one) for one in new.weights],
    }


def _told(row: dict[str, Any]) -> str:
    was = row["was"]
    change = "locked" if was is None else "as before" if was == row["commit"] else f"was {was[:7]}"
    count = len(row["weights"])
    return change + (f", {count} weights" if count else "")
