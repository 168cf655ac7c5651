"""`RepoRef`: what the user wrote to name a repository, parsed; it prints as a text that parses back.

::

    text                                                kind    url
    owner/name[:ref]        owner/name@<commit>         hub     https://github.com/owner/name
    host[:port]/owner/name[:ref]   https://host/...     hub     https://host:port/owner/name
    git+file:///path[@ref]  git+https://  git+ssh://    git     the same without `git+` and `@ref`
    git@host:owner/name.git[@ref]                       git     ssh://git@host/owner/name.git
    a folder: pathlib.Path, source="local", file://     local   its absolute path

Nothing is asked of a network here. The disk is looked at for two things alone: a folder must exist,
and an `@` inside the path of a `git+file:` URL is told from the one that separates the ref.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote, unquote_to_bytes

from isohub.errors import RefError
from isohub.servers import SOURCES, Server

__all__ = ["FORMS", "RepoRef"]

FORMS = (
    "owner/name, owner/name:ref, owner/name@<commit of 40 hex digits>, host[:port]/owner/name:ref, "
    "git+file:///path[@ref][#subdirectory=x], git+https://host/path[@ref], git+ssh://git@host/path[@ref], "
    "git@host:owner/name.git[@ref], "
    'or a folder (a pathlib.Path, or source="local")'
)

_SOURCES = (*SOURCES, "local")
_PROTOCOLS = ("HTTPS", "SSH")
# No host allows other characters in names. The ref may hold "/" and "@", but git forbids ":" in it. A server is
# told from an owner by a dot or a port, and by the two names after it.
_HUB = re.compile(
    r"(?:(?P<server>https?://[^/\s@]+|[\w-]+(?:\.[\w-]+)+(?::\d+)?|[\w-]+:\d+)/(?=[^:@#]+/))?"
    r"(?P<owner>[\w.-]+(?:/[\w.-]+)*)/(?P<name>[\w.-]+)"
    r"(?::(?P<ref>[^:\s]+?)|@(?P<commit>[0-9a-fA-F]{40}))?(?:#subdirectory=(?P<subdirectory>.+))?",
    re.ASCII,
)
_SCP = re.compile(r"(?:git\+)?(?P<user>[\w.-]+)@(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<path>(?!//)[^:]+)", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{4,39}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoRef:
    """A repository and, if one was asked for, a ref or commit of it. Compares and hashes by value.

    Attributes:
        kind: `"local"` for a working tree, `"git"` for a git URL, `"hub"` for `owner/name` on a host.
        host: Host name, with its port if one was given; `""` for what lies on this machine.
        owner: The owner, or the folders above the repository (`group/subgroup`); for a path on this
            machine the name of the parent folder, or `"local"` if it has none.
        name: The repository's name, without `.git`.
        ref: Branch, tag, full or short commit as the user wrote it; None for the default branch.
        commit: The commit that was pinned with `@`, 40 hexadecimal digits; None when none was.
        url: The git URL, e.g. `"file:///srv/models.git"`; the absolute path for a working tree.
        subdirectory: The folder in the repository that holds hubconf.py; None for its top.

    Raises:
        RefError: A part cannot be one, such as `..` for an owner.
    """

    kind: Literal["local", "git", "hub"]
    host: str
    owner: str
    name: str
    ref: str | None = None
    commit: str | None = None
    url: str
    subdirectory: str | None = None

    def __post_init__(self) -> None:
        # Owner and name become folders of the cache and names in the worker's hub folder.
        for part in (*self.owner.split("/"), self.name):
            if part in {"", ".", ".."} or "/" in part or _CONTROL.search(part):
                raise RefError(f"{part!r} cannot be the name of an owner or repository", text=self.url)
        if self.commit is not None and not _COMMIT.fullmatch(self.commit):
            raise RefError(f"A commit is 40 lower-case hexadecimal digits, not {self.commit!r}", text=self.url)
        if self.ref is not None and (not self.ref or _CONTROL.search(self.ref)):
            raise RefError(f"{self.ref!r} cannot be the name of a branch, tag or commit", text=self.url)
        if self.ref is not None and self.commit is not None:
            raise RefError(f"Both a ref and a commit were given: {self.ref!r}, {self.commit}", text=self.url)
        if self.subdirectory is not None:
            parts = self.subdirectory.split("/")
            if _CONTROL.search(self.subdirectory) or any(part in {"", ".", ".."} for part in parts):
                raise RefError(
                    f"subdirectory={self.subdirectory!r} must be a plain path below the repository's top",
                    text=self.url,
                )

    @classmethod
    def parse(
        cls,
        repo: str | os.PathLike[str],
        *,
        source: str = "github",
        git_host: str | None = None,
        protocol: str = "HTTPS",
        commit: str | None = None,
    ) -> RepoRef:
        """Read what a user wrote.

        A text that names a server or folder itself is not changed by `source`, `git_host` and `protocol`.

        Args:
            repo: One of `FORMS`.
            source: Where a plain `owner/name` lies: `"github"`, `"gitlab"`, `"gitee"`, `"bitbucket"` or
                `"codeberg"`; or `"local"`, which makes the text the path of a folder.
            git_host: Another server of that kind, such as a company's own: `git.example.com`, with a port if
                need be.
            protocol: `"HTTPS"`, or `"SSH"` for a plain `owner/name` that is read with the user's ssh keys.
            commit: The commit to take, full or short, whatever ref the text names.

        Raises:
            RefError: The text is none of the forms, the folder does not exist, the source, protocol or server
                is unknown, or a commit was asked of a folder.
            TypeError: `repo` is neither a text nor a path.

        Example:
            >>> RepoRef.parse("pytorch/vision:v0.10.0").ref
            'v0.10.0'
        """
        if not isinstance(repo, str | os.PathLike):
            raise TypeError(f"A repository is named by a text or a path, not by {repo!r}. Allowed: {FORMS}")
        where = _one_of("source", source, _SOURCES).lower()
        scheme = _one_of("protocol", protocol, _PROTOCOLS).upper()
        if not isinstance(repo, str):
            parsed = _parse_folder(os.fsdecode(repo))
        elif scp := _SCP.fullmatch(repo.partition("#")[0]):
            parsed = _parse_scp(scp, repo)
        elif repo.startswith("git+"):
            parsed = _parse_git(repo)
        elif repo.startswith("file://"):
            path, subdirectory = _split_fragment(repo)
            parsed = _parse_folder(_decode(_path_of_file_url(path, repo)), subdirectory)
        elif where == "local":
            parsed = _parse_folder(repo)
        else:
            parsed = _parse_hub(repo, git_host or SOURCES[where], scheme)
        return parsed if commit is None else _pinned(parsed, commit)

    def __str__(self) -> str:
        """Return a text that `parse` reads back as the same, without a `source`."""
        end = "" if self.subdirectory is None else f"#subdirectory={_encode(self.subdirectory)}"
        if self.kind == "local":
            return f"file://{_encode(self.url)}{end}"
        if self.kind == "git":
            wanted = self.ref or self.commit
            return f"git+{self.url}{'' if wanted is None else '@' + _encode(wanted)}{end}"
        host = "" if self.host == SOURCES["github"] else f"{self.host}/"
        if self.url.startswith("http://"):
            host = f"http://{host}"
        return f"{host}{self.owner}/{self.name}{self._ending(self.commit)}{end}"

    @property
    def is_local_tree(self) -> bool:
        """Whether this is a folder that is used in place, rather than a commit that is fetched."""
        return self.kind == "local"

    @property
    def is_remote(self) -> bool:
        """Whether it lies on another machine, as far as its URL tells."""
        return bool(self.host)

    @property
    def identity(self) -> str:
        """What it is however it is reached: by https or ssh, with or without `.git` at the end."""
        return f"{self.host}/{self.owner}/{self.name}" if self.host else self.url

    @property
    def label(self) -> str:
        """A short text for logs and reprs, e.g. `srv/models:v1`."""
        end = "" if self.subdirectory is None else f"#{self.subdirectory}"
        if self.kind == "local":
            return f"{self.name}{end}"
        return f"{self.owner}/{self.name}{self._ending(self.commit and self.commit[:7])}{end}"

    @property
    def hub_folder_names(self) -> tuple[str, ...]:
        """The names that torch.hub might give this repository's folder.

        Old repositories open `torch.hub.get_dir()/<owner>_<name>_master/...` whatever ref was asked for,
        so `main` and `master` are always among them.
        """
        refs = [self.ref or self.commit, "main", "master"]
        names = [f"{self.owner}_{self.name}_{ref}".replace("/", "_") for ref in refs if ref]
        return tuple(dict.fromkeys(names))

    def _ending(self, commit: str | None) -> str:
        if commit:
            return f"@{commit}"
        return f":{self.ref}" if self.ref else ""


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> str:
    if str(value).lower() not in {name.lower() for name in allowed}:
        shown = " | ".join(f'"{name}"' for name in allowed)
        raise RefError(f'Unknown {what}: "{value}". Allowed values: {shown}.', text=str(value))
    return str(value)


def _parse_hub(text: str, git_host: str, protocol: str) -> RepoRef:
    match = _HUB.fullmatch(text)
    server = None if match is None else Server.parse(match["server"] or git_host)
    if match is None or server is None or ("/" in match["owner"] and not server.has_groups):
        if _is_dir(text):
            raise RefError(
                f'{text!r} is an existing directory: did you mean source="local"? Allowed forms: {FORMS}',
                text=text,
            )
        raise _names_nothing(text)
    path = f"{match['owner']}/{match['name'].removesuffix('.git')}"
    ssh = protocol == "SSH" and not match["server"]
    return RepoRef(
        kind="git" if ssh else "hub",
        host=server.host,
        owner=match["owner"],
        name=match["name"].removesuffix(".git"),
        ref=match["ref"],
        commit=match["commit"] and match["commit"].lower(),
        url=f"ssh://git@{server.host}/{path}.git" if ssh else f"{server.url}/{path}",
        subdirectory=match["subdirectory"] and _subdirectory(match["subdirectory"]),
    )


def _parse_scp(match: re.Match[str], text: str) -> RepoRef:
    path = match["path"]
    if not path.startswith("/"):
        # Hosting services log everybody in as `git` and count from their top; elsewhere it is one's home.
        path = f"/{path}" if match["user"] == "git" else f"/~/{path}"
    _, mark, fragment = text.partition("#")
    return _parse_git(f"git+ssh://{match['user']}@{match['host']}{path}{mark}{fragment}")


def _pinned(parsed: RepoRef, commit: str) -> RepoRef:
    wanted = str(commit).lower()
    if parsed.is_local_tree:
        raise RefError(f"A folder is used as it is: it has no commit {commit!r}", text=parsed.url)
    if _COMMIT.fullmatch(wanted):
        return replace(parsed, ref=None, commit=wanted)
    if not _SHORT_COMMIT.fullmatch(wanted):
        raise RefError(f"A commit is 4 to 40 hexadecimal digits, not {commit!r}", text=parsed.url)
    return replace(parsed, ref=wanted, commit=None)


def _parse_folder(text: str, subdirectory: str | None = None) -> RepoRef:
    if not text:
        raise RefError(f"The path of a folder is empty. Allowed forms: {FORMS}", text=text)
    if not _is_dir(text):
        raise RefError(f"{text!r} is not an existing directory, seen from {str(Path.cwd())!r}", text=text)
    # Resolved, so that ".", "../models" and a link to it are one repository under its real name.
    folder = Path(text).expanduser().resolve()
    return RepoRef(
        kind="local",
        host="",
        owner=folder.parent.name or "local",
        name=folder.name,
        url=str(folder),
        subdirectory=subdirectory,
    )


def _parse_git(text: str) -> RepoRef:
    url, subdirectory = _split_fragment(text.removeprefix("git+"))
    scheme = url.partition("://")[0]
    if scheme == "file":
        raw, ref = _split_ref_on_disk(_path_of_file_url(url, text))
        # normpath leaves two leading slashes, which POSIX lets mean something of its own.
        path = "/" + os.path.normpath(_decode(raw)).lstrip("/")
        host, url = "", f"file://{_encode(path)}"
    elif scheme in {"https", "http", "ssh"}:
        raw, at, after = url.removeprefix(f"{scheme}://").partition("/")[2].partition("@")
        ref = after if at else None  # an empty ref is refused, so None must mean that there was none
        path = _decode(raw).strip("/")
        server, host = _server_of(url, scheme)
        url = f"{scheme}://{server}/{_encode(path)}"
    else:
        raise _names_nothing(_without_user(text))
    owner, name = _owner_and_name(path, whole_path=scheme != "file")
    wanted = None if ref is None else _decode(ref)
    commit = wanted.lower() if wanted and _COMMIT.fullmatch(wanted.lower()) else None
    return RepoRef(
        kind="git",
        host=host,
        owner=owner,
        name=name,
        ref=None if commit else wanted,
        commit=commit,
        url=url,
        subdirectory=subdirectory,
    )


def _server_of(url: str, scheme: str) -> tuple[str, str]:
    """Return `("git@host:22", "host:22")` for `ssh://git@host:22/path`."""
    server = url.removeprefix(f"{scheme}://").partition("/")[0]
    user, _, host = server.rpartition("@")
    if not host or ":" in user or (user and scheme != "ssh"):
        # The error may end up in a log, so it does not repeat a password.
        shown = _without_user(url)
        raise RefError(f"A git URL names a host, and no password or token: {shown!r}", text=shown)
    if scheme != "ssh":
        Server.parse(f"{scheme}://{host}")  # it refuses plain http to other machines
    return server, host.lower()


def _owner_and_name(path: str, *, whole_path: bool) -> tuple[str, str]:
    """Return `("srv", "models")` for `/srv/models.git` and for `/srv/models/.git`."""
    *folders, last = [part for part in path.removesuffix("/.git").split("/") if part] or [""]
    owner = "/".join(folders) if whole_path else "".join(folders[-1:])
    return owner or "local", last.removesuffix(".git")


def _split_ref_on_disk(raw: str) -> tuple[str, str | None]:
    """Split `path@ref`, where both the path and the ref may hold an `@`.

    The longest left part that is a repository on this disk wins, then the longest that is a folder, and
    a text without a ref comes last: `/home/me@work/models` is one repository even if `/home/me` exists.
    If nothing exists the first `@` separates, as in pip, and resolving reports what is missing.
    """
    places = [match.start() for match in re.finditer("@", raw)]
    splits: list[tuple[str, str | None]] = [(raw[:at], raw[at + 1 :]) for at in reversed(places)]
    splits.append((raw, None))
    checks: tuple[Callable[[str], bool], ...] = (_is_repository, _is_dir)
    for exists in checks:
        for left, ref in splits:
            if exists(_decode(left)):
                return left, ref
    return splits[-2] if places else (raw, None)


def _is_repository(path: str) -> bool:
    # Git, too, finds /srv/models.git under the name /srv/models.
    return any(
        _is_dir(folder) and (Path(folder, ".git").exists() or Path(folder, "HEAD").is_file())
        for folder in (path, f"{path}.git")
    )


def _is_dir(text: str) -> bool:
    try:
        return bool(text) and Path(text).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a NUL
        return False


def _path_of_file_url(url: str, text: str) -> str:
    host, slash, path = url.removeprefix("file://").partition("/")
    if host not in {"", "localhost"} or not slash:
        raise RefError(f"A file URL has an absolute path, file:///path, unlike {text!r}", text=text)
    return f"/{path}"


def _split_fragment(url: str) -> tuple[str, str | None]:
    url, mark, fragment = url.partition("#")
    key, _, value = fragment.partition("=")
    if mark and (key != "subdirectory" or not value):
        raise RefError(
            f'Only "#subdirectory=x" may end a URL, not {"#" + fragment!r}; a "#" in a path is %23', text=url
        )
    return url, _subdirectory(value) if mark else None


def _subdirectory(value: str) -> str:
    # PurePosixPath takes away a leading "./" and slashes at the end.
    return str(PurePosixPath(_decode(value)))


def _names_nothing(text: str) -> RefError:
    return RefError(f"{text!r} names no repository. Allowed forms: {FORMS}", text=text)


def _without_user(text: str) -> str:
    return re.sub(r"//[^/]*@", "//***@", text)


def _encode(text: str) -> str:
    """Percent-encode everything that has a meaning in a URL, `@` and `#` too; bytes beyond UTF-8 survive."""
    return quote(os.fsencode(text), safe="/")


def _decode(text: str) -> str:
    return os.fsdecode(unquote_to_bytes(os.fsencode(text)))
