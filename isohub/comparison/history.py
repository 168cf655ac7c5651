"""The commits between a good one and a bad one: a private clone, and git's own bisection of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isohub.comparison.answers import clean
from isohub.errors import BisectError
from isohub.hub import git
from isohub.hub.git_checkout import allowed, remote_of, upload_pack
from isohub.refs import RepoRef

__all__ = ["Commit", "History", "choose"]

_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
_MAX_DIFF_LINES = 2000


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A commit, as `git log` tells of it.

    Attributes:
        commit: 40 hexadecimal digits.
        author: Name and address.
        date: When it was written, in ISO 8601.
        subject: The first line of its message.
        parents: Its parents.
    """

    commit: str
    author: str
    date: str
    subject: str
    parents: list[str]


class History:
    """A private bare clone of a repository.

    Args:
        ref: The repository; no folder.
        folder: Where to put the clone; it is the caller's to remove.

    Raises:
        FetchError: The repository cannot be read.
    """

    def __init__(self, ref: RepoRef, folder: Path) -> None:
        self._git_dir = f"--git-dir={folder}"
        self._folder = folder
        clone = [*allowed(ref.url), "clone", "--quiet", "--bare", "--template=", *upload_pack(ref.url), "--", ref.url]
        try:
            git.run([*clone, str(folder)], remote=remote_of(ref.url))
        except git.GitError as error:
            raise git.unreadable(ref.url, error) from error

    def has(self, commit: str) -> bool:
        """Return whether a commit is in the clone."""
        try:
            self._run("cat-file", "-e", f"{commit}^{{commit}}")
        except git.GitError:
            return False
        return True

    def merge_base(self, good: str, bad: str) -> str:
        """Return the last commit that the two have in common.

        Raises:
            BisectError: There is none.
        """
        try:
            return self._run("merge-base", good, bad).strip()
        except git.GitError:
            raise BisectError(
                f"{good[:10]} and {bad[:10]} have no commit in common, so nothing can be found between them",
                good=good,
                bad=bad,
            ) from None

    def between(self, goods: Sequence[str], bad: str) -> list[str]:
        """Return the commits that lead to `bad` and not to one of `goods`, the one that halves them best first."""
        lines = self._run("rev-list", "--bisect-all", bad, "--not", *goods).splitlines()
        return [line.split()[0] for line in lines if line.strip()]

    def trees(self, commits: Sequence[str]) -> dict[str, str]:
        """Return the id of the files of each commit: equal ids, equal files."""
        if not commits:
            return {}
        listing = self._run("rev-list", "--no-walk=unsorted", "--format=%H %T", "--stdin", stdin="\n".join(commits))
        pairs = [line.split() for line in listing.splitlines() if not line.startswith("commit ")]
        return {pair[0]: pair[1] for pair in pairs}

    def commit(self, commit: str) -> Commit:
        """Return what there is to say of a commit."""
        form = "--format=%an <%ae>%x00%aI%x00%s%x00%P"
        author, date, subject, parents = self._run("show", "-s", "--no-show-signature", form, commit).split("\0")
        return Commit(
            commit=commit,
            author=clean(author, 300),
            date=clean(date, 40),
            subject=clean(subject, 500),
            parents=parents.split(),
        )

    def changed_files(self, commit: Commit) -> list[str]:
        """Return the files that a commit changed against its first parent, each with a letter for how."""
        lines = self._run("diff", "--name-status", "-z", *self._sides(commit)).split("\0")
        return [clean(f"{kind} {path}", 500) for kind, path in zip(lines[::2], lines[1::2], strict=False)]

    def diff(self, commit: Commit, files: Sequence[str]) -> list[str]:
        """Return how a commit changed these files against its first parent, as lines of a diff."""
        if not files:
            return []
        # Literal: a file may be called "*".
        lines = self._run("diff", "--no-color", *self._sides(commit), "--", *files, literal=True).splitlines()
        shown = [clean(line, 2000) for line in lines[:_MAX_DIFF_LINES]]
        return shown + ([f"… {len(lines) - len(shown)} more lines"] if len(lines) > len(shown) else [])

    def _sides(self, commit: Commit) -> list[str]:
        # Renames are told as one file gone and one come: both names are there.
        options = ["--no-ext-diff", "--no-textconv", "--no-renames"]
        return [*options, commit.parents[0] if commit.parents else _EMPTY_TREE, commit.commit]

    def _run(self, *args: str, stdin: str = "", literal: bool = False) -> str:
        literally = ["--literal-pathspecs"] if literal else []
        return git.run([self._git_dir, *literally, *args], cwd=self._folder, stdin=stdin.encode())


def choose(candidates: Sequence[str], skipped: set[str]) -> str | None:
    """Return which commit to try next; None if none is left.

    The best one; if that cannot be tried, one further away, as git does: neighbours are often broken as well.

    Args:
        candidates: As `History.between` returns them, without the bad commit.
        skipped: Those that cannot be tried.
    """
    left = [commit for commit in candidates if commit not in skipped]
    if not left:
        return None
    if candidates[0] not in skipped:
        return left[0]
    # The same in every run: it draws lots, and keeps no secret.
    lot = random.Random(len(skipped)).random()  # noqa: S311
    return left[int(len(left) * lot**1.5)]
