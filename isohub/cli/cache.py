"""`isohub cache`: where it is, what is in it, whether that is intact; and removing from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from isohub.cli import quantities
from isohub.cli.options import Json, Traceback
from isohub.cli.running import Answer, running

if TYPE_CHECKING:
    from isohub.hub.inventory import CachedCheckout, CachedWeights, Item
    from isohub.hub.removal import Removal

__all__ = ["add_to"]

_DryRun = Annotated[bool, typer.Option("--dry-run", help="Remove nothing; only tell what would be removed.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(help="Show what is kept on this machine, check it, and remove from it.", no_args_is_help=True)
    group.command("dir")(_dir)
    group.command("ls")(_ls)
    group.command("verify")(_verify)
    group.command("rm")(_rm)
    group.command("prune")(_prune)
    app.add_typer(group, name="cache")


def _dir(*, json: Json = False, traceback: Traceback = False) -> None:
    """Tell in which folder checkouts and weights are kept."""
    with running(traceback=traceback) as answer:
        from isohub.hub.inventory import Inventory

        inventory = Inventory()
        if json:
            answer.json({"dir": str(inventory.cache.root), "weights": str(inventory.store.root)})
        else:
            answer.text(str(inventory.cache.root))


def _ls(*, json: Json = False, traceback: Traceback = False) -> None:
    """List the checkouts and the weights, with sizes, ages and refs.

    Refs are those that stood for a commit when their host was last asked.
    """
    with running(traceback=traceback) as answer:
        from isohub.hub.inventory import Inventory

        inventory = Inventory()
        checkouts, weights = inventory.checkouts(), inventory.weights()
        total_bytes = sum(item.size_bytes for item in checkouts) + sum(item.size_bytes for item in weights)
        if json:
            answer.json(
                {
                    "dir": str(inventory.cache.root),
                    "size_bytes": total_bytes,
                    "checkouts": [_document(item) for item in checkouts],
                    "weights": [_document(item) for item in weights],
                }
            )
            return
        tables = [*([_checkouts(checkouts)] if checkouts else []), *([_weights(weights)] if weights else [])]
        counts = f"{len(checkouts)} checkouts, {len(weights)} weights, {quantities.size(total_bytes)}"
        answer.rich(*(part for table in tables for part in (table, "")), f"{counts} in {inventory.cache.root}")


def _verify(*, json: Json = False, traceback: Traceback = False) -> None:
    """Read every byte, and tell what is not as it was fetched.

    It ends with 1 if something is not. Nothing is changed.
    """
    with running(traceback=traceback) as answer:
        from isohub.hub.inventory import Inventory

        inventory = Inventory()
        items = inventory.items()
        damages = list(inventory.verify(items))
        if json:
            damaged = [{**_document(one.item), "reason": one.reason} for one in damages]
            answer.json({"checked": len(items), "damaged": damaged})
        else:
            for one in damages:
                answer.text(f"{one.item.label} is damaged: {one.reason}")
            if damages:
                answer.text("`isohub cache rm` removes what is damaged; the next load brings it again.")
            answer.text(f"{len(items)} checked, {len(damages)} damaged")
        if damages:
            raise typer.Exit(1)


def _rm(
    which: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WHICH",
            show_default=False,
            help="A repo text (with a ref for that commit alone), host/owner/name, the beginning of a commit or of "
            "the SHA-256 of weights, or the URL of weights.",
        ),
    ] = None,
    *,
    all: Annotated[bool, typer.Option("--all", help="Remove everything.")] = False,
    dry_run: _DryRun = False,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Remove checkouts and weights.

    What a live worker uses stays. It ends with 1 if something stays for that, or if nothing is found.
    """
    if all == bool(which):
        raise typer.BadParameter("Name what to remove, or say --all.", param_hint="WHICH")
    with running(traceback=traceback) as answer:
        from isohub.hub.inventory import Inventory
        from isohub.hub.removal import remove

        inventory = Inventory()
        found: dict[str, Item] = {}
        missing: list[str] = []
        for text in which or []:
            matching = inventory.matching(text)
            found |= {str(item.folder): item for item in matching}
            missing += [] if matching else [text]
        done = remove(inventory, inventory.items() if all else found.values(), dry_run=dry_run)
        if json:
            answer.json({**_removal(done, dry_run=dry_run), "not_found": missing})
        else:
            for text in missing:
                answer.text(f"{text} is not in the cache")
            _tell(answer, done, dry_run=dry_run)
        if missing or done.kept:
            raise typer.Exit(1)


def _prune(
    *,
    max_age: Annotated[
        str | None,
        typer.Option(metavar="AGE", show_default=False, help="Remove what was not used for so long: 12h, 30d, 2w."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", show_default=False, help="Remove what was used longest ago, until the rest fits: 10GB."
        ),
    ] = None,
    dry_run: _DryRun = False,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Remove what is old, or too much.

    And what processes that died have left. What a live worker uses stays.
    """
    max_age_s = None if max_age is None else quantities.seconds_of(max_age)
    max_size_bytes = None if max_size is None else quantities.size_of(max_size)
    with running(traceback=traceback) as answer:
        from isohub.hub.inventory import Inventory
        from isohub.hub.removal import prune

        done = prune(Inventory(), max_age_s=max_age_s, max_size_bytes=max_size_bytes, dry_run=dry_run)
        if json:
            answer.json(_removal(done, dry_run=dry_run))
        else:
            _tell(answer, done, dry_run=dry_run)


def _tell(answer: Answer, done: Removal, *, dry_run: bool) -> None:
    verb = "would be removed" if dry_run else "removed"
    for item in done.removed:
        answer.text(f"{item.label} {verb}, {quantities.size(item.size_bytes)}")
    for path in done.leftovers:
        answer.text(f"{path} {verb}, left by a process that has ended")
    for item in done.kept:
        answer.text(f"{item.label} stays, it is in use")
    freed = quantities.size(done.freed_bytes)
    answer.text(f"{freed} would be freed" if dry_run else f"{freed} freed")


def _removal(done: Removal, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "removed": [_document(item) for item in done.removed],
        "in_use": [_document(item) for item in done.kept],
        "leftovers": [str(path) for path in done.leftovers],
        "freed_bytes": done.freed_bytes,
    }


def _document(item: Item) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "size_bytes": item.size_bytes,
        "fetched_at": item.fetched_at.isoformat(),
        "used_at": item.used_at.isoformat(),
        "folder": str(item.folder),
    }
    from isohub.hub.inventory import CachedCheckout

    if isinstance(item, CachedCheckout):
        names = {"repo": item.repo, "host": item.host, "owner": item.owner, "name": item.name, "commit": item.commit}
        more = {"refs": item.refs, "tree_hash": item.tree_hash, "is_leased": item.is_leased}
        return {"kind": "checkout", **names, **more, **shared}
    path = item.record.path()
    places = {"path": None if path is None else str(path), "repos": item.record.repos}
    return {"kind": "weights", "url": item.url, "sha256": item.sha256, **places, **shared}


def _checkouts(items: list[CachedCheckout]) -> Any:
    table = _table("repository", "commit", "refs", "size", "fetched", "used", "in use")
    for item in items:
        refs = ", ".join("(default)" if ref is None else ref for ref in item.refs)
        ages = (quantities.ago(item.fetched_at), quantities.ago(item.used_at))
        in_use = "yes" if item.is_leased else ""
        table.add_row(item.repo, item.commit[:7], refs, quantities.size(item.size_bytes), *ages, in_use)
    return table


def _weights(items: list[CachedWeights]) -> Any:
    table = _table("weights", "sha256", "size", "fetched", "used")
    for item in items:
        shown = "elsewhere" if item.is_elsewhere else quantities.size(item.size_bytes)
        table.add_row(item.url, item.sha256[:8], shown, quantities.ago(item.fetched_at), quantities.ago(item.used_at))
    return table


def _table(first: str, *columns: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right" if name == "size" else "left", no_wrap=name != "refs")
    return table
