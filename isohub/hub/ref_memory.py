"""What refs stood for when their host was last asked: `<cache>/refs/<host>/<owner>/<name>/<ref>.json`.

A branch that was loaded once is loaded again without a request, as in torch.hub: until it is asked for anew
(`force_reload=True`), or `ISOHUB_REF_TTL_S` seconds have gone by. It is never a reason to trust or to find
something: a commit that is not in the cache any more is resolved afresh.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

from isohub.refs import RepoRef

__all__ = ["ENV_TTL", "RefMemory", "Remembered"]

_logger = logging.getLogger("isohub.hub")

ENV_TTL = "ISOHUB_REF_TTL_S"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What a host said of a ref.

    Attributes:
        url: The repository's URL.
        ref: What was asked for; None for the default branch.
        commit: What it stood for, 40 hexadecimal digits.
        ref_name: The branch or tag that was taken, by its real name; None for a commit.
        asked_at: When the host said so.
    """

    url: str
    ref: str | None
    commit: str
    ref_name: str | None
    asked_at: datetime

    @property
    def is_expired(self) -> bool:
        """Whether it is older than `ISOHUB_REF_TTL_S`, which is never if that is not set.

        Raises:
            ValueError: The variable is set to something that is no number of seconds.
        """
        text = os.environ.get(ENV_TTL, "").strip()
        if not text:
            return False
        try:
            ttl_s = float(text)
        except ValueError:
            ttl_s = -1.0
        if not ttl_s >= 0:
            raise ValueError(f"{ENV_TTL}={text!r} is no number of seconds")
        age_s = (datetime.now(timezone.utc) - self.asked_at).total_seconds()
        return not 0 <= age_s < ttl_s  # from the future: a clock was put right since


class RefMemory:
    """The refs that are remembered in one cache folder. Many may use it at once: each ref is one small file.

    Args:
        root: The cache's folder.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "refs"

    def find(self, repo: RepoRef) -> Remembered | None:
        """Return what was said of this repository's ref; None if it was never asked, or nobody can read it."""
        if repo.commit is not None:  # else a pinned commit would be taken for the default branch
            return None
        return self._read(self._file_of(repo, repo.ref), repo)

    def note(self, repo: RepoRef, ref: str | None, commit: str, ref_name: str | None) -> None:
        """Remember that `ref` of `repo` (None: its default branch) stands for `commit` now.

        A disk that cannot be written is a line in the log: the host will be asked again, and no more.
        """
        file = self._file_of(repo, ref)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        what = {"url": repo.url, "ref": ref, "commit": commit, "ref_name": ref_name, "asked_at": now}
        temporary = file.with_name(f".{uuid4().hex}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(what) + "\n", encoding="utf-8")
            temporary.replace(file)
        except OSError as error:
            _logger.warning("cannot remember %s of %s: %s", ref or "the default branch", repo.url, error)
            temporary.unlink(missing_ok=True)

    def forget(self, repo: RepoRef) -> None:
        """Remember nothing of this repository's ref (None: its default branch) any more."""
        self._file_of(repo, repo.ref).unlink(missing_ok=True)

    def all(self) -> Iterator[Remembered]:
        """Yield everything that is remembered, in no order."""
        for file in self.folder.glob("*/*/*/*.json"):
            if (found := self._read(file, None)) is not None:
                yield found

    def at(self, place: Path) -> Iterator[tuple[Path, Remembered]]:
        """Yield what is remembered of one repository, each with its file.

        Args:
            place: `<host>/<owner>/<name>`, as it is in `checkouts`.
        """
        for file in sorted((self.folder / place).glob("*.json")):
            if (found := self._read(file, None)) is not None:
                yield file, found

    def _file_of(self, repo: RepoRef, ref: str | None) -> Path:
        parts = (quote(os.fsencode(part), safe="") for part in (repo.host, repo.owner, repo.name))
        # The hash tells apart; the text is for people, and short enough for any disk.
        digest = hashlib.sha256(os.fsencode(f"{repo.url}\0{'' if ref is None else ref + '.'}")).hexdigest()[:16]
        shown = "default" if ref is None else quote(os.fsencode(ref), safe="")[:60]
        return self.folder.joinpath(*parts, f"{shown}-{digest}.json")

    def _read(self, file: Path, repo: RepoRef | None) -> Remembered | None:
        try:
            found = json.loads(file.read_bytes())
            remembered = Remembered(
                url=str(found["url"]),
                ref=None if found["ref"] is None else str(found["ref"]),
                commit=str(found["commit"]),
                ref_name=None if found["ref_name"] is None else str(found["ref_name"]),
                asked_at=datetime.fromisoformat(found["asked_at"]),
            )
        except (OSError, ValueError, KeyError, TypeError):  # not there, cut short, or edited by somebody
            return None
        is_sound = bool(_COMMIT.fullmatch(remembered.commit)) and remembered.asked_at.tzinfo is not None
        is_right = repo is None or (remembered.url, remembered.ref) == (repo.url, repo.ref)
        return remembered if is_sound and is_right else None
