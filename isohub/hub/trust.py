"""Whether a repository's code may run at all: `decide` before the fetch, `remember` after it.

::

    <hub_dir>/trusted_list           torch.hub's own, one `owner_name` a line, for github.com
    <hub_dir>/isohub_trusted_list    what that cannot say: `host/owner/name` and `host/owner/name@commit`
    ISOHUB_TRUST                     owner/*, owner/name, host/owner/name, any of them with @commit

The answers are torch.hub's, and so is the question on a terminal. Without a terminal nobody is asked: a
server would wait for ever. Folders of this machine are the user's own, and need no trust.

Note [one line, one repository]: torch.hub writes the repository `a/b_c` as the line `a_b_c`, which is also
what `a_b/c` would give. No ordinary owner on GitHub has an underscore, so the first one of a line separates
owner and name; an owner that has one (a company's managed user) is kept in the other file, where names stay
apart, and so is every host but github.com: gitlab.com/owner/name may be anybody's.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Literal, TypeGuard

from isohub.errors import RefError, UntrustedRepoError
from isohub.hub import trust_list
from isohub.hub.cache import hub_dir
from isohub.hub.trust_list import GITHUB, Entry
from isohub.refs import RepoRef

__all__ = [
    "ENV_TRUST",
    "OWNERS",
    "Decision",
    "Trust",
    "built_in",
    "decide",
    "from_environment",
    "remember",
    "require_explicit",
]

_logger = getLogger("isohub.hub")

Trust = bool | Literal["check"]
Reason = Literal["own", "owner", "listed", "folder", "environment", "argument", "answer"]

ENV_TRUST = "ISOHUB_TRUST"
# torch.hub's own, 2.13.
OWNERS = ("facebookresearch", "facebookincubator", "pytorch", "fairinternal")

# Threads that load at once ask one after the other.
_asking = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """That a repository may run, and why.

    Attributes:
        reason: `"own"` for a folder or repository of this machine; `"owner"`, `"listed"`, `"folder"` (an
            older torch.hub has fetched it) or `"environment"` for what was trusted before; `"argument"` for
            `trust_repo=True`; `"answer"` for a yes on the terminal.
        entry: What `remember` writes; None if there is nothing to write.
        folder: The hub folder whose lists were asked.
    """

    reason: Reason
    entry: Entry | None
    folder: Path


def decide(
    repo: RepoRef,
    commit: str | None = None,
    trust_repo: Trust = "check",
    hub_folder: str | os.PathLike[str] | None = None,
) -> Decision:
    """Return why a repository may run, asking on the terminal if need be. Nothing is written.

    Args:
        repo: What the user named.
        commit: The commit that it stands for, for trust in single commits.
        trust_repo: As in torch.hub: True trusts it, `"check"` asks unless it is trusted, False asks always.
        hub_folder: Where the lists are; None for the hub folder in use.

    Raises:
        UntrustedRepoError: The answer was no, or there is no terminal to ask on.
        RefError: `ISOHUB_TRUST` cannot be read.
        ValueError: `trust_repo` is none of the three, or the answer was neither yes nor no.
    """
    if not _is_trust(trust_repo):
        raise ValueError(f'trust_repo takes True, False or "check", not {trust_repo!r}')
    folder = hub_dir() if hub_folder is None else Path(hub_folder).expanduser()
    if _is_own(repo):
        return Decision(reason="own", entry=None, folder=folder)
    known = _known(repo, commit, folder)
    if trust_repo == "check" and known is not None:
        return Decision(reason=known, entry=None, folder=folder)
    if trust_repo is not True:
        _ask(repo, commit, known)
    reason: Reason = "argument" if trust_repo is True else "answer"
    return Decision(reason=reason, entry=None if known else Entry.of(repo), folder=folder)


def remember(decision: Decision) -> None:
    """Write down that a repository is trusted, if it was not; to be called when its files are here.

    A list that cannot be written costs a warning in the log, not the load: the next one asks again.
    """
    if decision.entry is None:
        return
    try:
        trust_list.add(decision.entry, decision.folder)
    except OSError as error:
        _logger.warning("cannot write down that %s is trusted: %s", decision.entry, error)


def require_explicit(decision: Decision, repo: RepoRef, commit: str | None = None) -> None:
    """Refuse a repository that nobody has trusted in so many words: its code would run in this very process.

    Enough are a repository of this machine, `trust_repo=True`, a yes on the terminal, the lists and
    `ISOHUB_TRUST`. Not enough is what torch.hub lets through by itself: its own owners, and folders that an
    older one has left.

    Raises:
        UntrustedRepoError: Nobody has said so.
        RefError: `ISOHUB_TRUST` cannot be read.
    """
    if decision.reason not in ("owner", "folder"):
        return
    if any(entry.covers(repo, commit) for entry in (*trust_list.entries(decision.folder), *from_environment())):
        return
    entry = Entry.of(repo)
    why = "its owner is one that torch.hub trusts" if decision.reason == "owner" else "torch.hub once fetched it"
    raise UntrustedRepoError(
        f"The code of {entry} may run in a worker since {why}. TorchScript and exported programs run in this process "
        "itself, and nobody has said that this repository may. If you trust it, say so in one of these ways: "
        f"(a) isohub trust add {entry}; (b) the variable {ENV_TRUST}={entry}; (c) trust_repo=True. "
        'returns="module" and "state_dict" need no more than they have.',
        repo=str(entry),
        commit=commit,
    )


def from_environment() -> tuple[Entry, ...]:
    """Return what `ISOHUB_TRUST` trusts.

    Raises:
        RefError: An entry cannot be read.
    """
    texts = os.environ.get(ENV_TRUST, "").replace(",", " ").split()
    try:
        return tuple(Entry.parse(text, pattern=True) for text in texts)
    except RefError as error:
        raise RefError(f"The variable {ENV_TRUST}: {error}", text=error.text) from None


def built_in() -> tuple[Entry, ...]:
    """Return what torch.hub trusts always: all repositories of some owners."""
    return tuple(Entry(host=GITHUB, path=f"{owner}/*") for owner in OWNERS)


def _is_trust(value: object) -> TypeGuard[Trust]:
    return isinstance(value, bool) or (isinstance(value, str) and value == "check")


def _is_own(repo: RepoRef) -> bool:
    return repo.is_local_tree or repo.url.startswith("file:")


def _known(repo: RepoRef, commit: str | None, folder: Path) -> Reason | None:
    """Return why a repository is trusted already, or None."""
    if any(entry.covers(repo, commit) for entry in built_in()):
        return "owner"
    if any(entry.covers(repo, commit) for entry in trust_list.entries(folder)):
        return "listed"
    if any(entry.covers(repo, commit) for entry in from_environment()):
        return "environment"
    return "folder" if any(name.is_dir() for name in _torch_hub_folders(repo, folder)) else None


def _torch_hub_folders(repo: RepoRef, folder: Path) -> Iterator[Path]:
    # Before torch 1.12 there was no list: what torch.hub had fetched then counts as trusted, as it does there.
    if repo.host == GITHUB and "_" not in repo.owner and "/" not in repo.owner:
        refs = [repo.ref or repo.commit] if repo.ref or repo.commit else ["main", "master"]
        for ref in refs:
            yield folder / f"{repo.owner}_{repo.name}_{ref}".replace("/", "_")


def _ask(repo: RepoRef, commit: str | None, known: Reason | None) -> None:
    if not _has_terminal():
        raise _cannot_ask(repo, commit, known)
    # torch.hub's text, to the letter: it may be answered by a script.
    name = f"{repo.owner}_{repo.name}" if repo.host == GITHUB else str(Entry.of(repo))
    question = (
        f"The repository {name} does not belong to the list of trusted repositories and as such cannot be downloaded. "
        "Do you trust this repository and wish to add it to the trusted list of repositories (y/N)?"
    )
    with _asking:
        # Written here: input(question) writes to stderr, which may not be the terminal that was found.
        sys.stdout.write(question)
        sys.stdout.flush()
        try:
            response = input()
        except EOFError:  # Ctrl-D
            response = ""
        if response.lower() in ("y", "yes"):
            if known:
                sys.stdout.write("The repository is already trusted.\n")
        elif response.lower() in ("n", "no", ""):
            raise UntrustedRepoError("Untrusted repository.", repo=str(Entry.of(repo)), commit=commit)
        else:
            raise ValueError(f"Unrecognized response {response}.")


def _has_terminal() -> bool:
    try:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return False
        terminal = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # a service has no stdin, or a closed one
        return False
    try:
        # A program in the background is stopped when it reads, and nobody would know why it hangs.
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # not the terminal that controls this process: reading it stops nobody
        return True


def _cannot_ask(repo: RepoRef, commit: str | None, known: Reason | None) -> UntrustedRepoError:
    entry = Entry.of(repo)
    if known:
        message = (
            f"trust_repo=False asks about {entry} each time, and there is no terminal to ask on. It is trusted "
            'already: trust_repo="check" takes that for an answer.'
        )
        return UntrustedRepoError(message, repo=str(entry), commit=commit)
    alone = f", or isohub trust add {entry}@{commit} for this commit alone" if commit else ""
    message = (
        f"The repository {entry} is not trusted, and there is no terminal to ask on. Its code would run as you. "
        "If you trust it, say so in one of these ways: "
        f"(a) isohub trust add {entry}{alone}; (b) the variable {ENV_TRUST}={entry}; (c) trust_repo=True."
    )
    return UntrustedRepoError(message, repo=str(entry), commit=commit)
