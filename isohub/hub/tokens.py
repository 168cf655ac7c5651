"""Tokens: which environment variable holds one, and the one host that it is for.

A token goes to its own host, port included, and nowhere else. That of GitHub is for github.com; where a
variable names another server (`GITHUB_SERVER_URL`, as on a runner of GitHub Enterprise), for that one instead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["Token", "token_of", "variable_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    variable: str
    host: str
    servers: tuple[str, ...]  # variables that name another server, the first that is set wins
    user: str  # what git says for the user's name


_KINDS = (
    _Kind(variable="GITHUB_TOKEN", host="github.com", servers=("GITHUB_SERVER_URL",), user="x-access-token"),
    _Kind(variable="GITLAB_TOKEN", host="gitlab.com", servers=("GITLAB_HOST", "CI_SERVER_URL"), user="oauth2"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token of the user's for one host.

    Attributes:
        variable: The environment variable that it comes from.
        user: The user's name that goes with it where git asks for one.
        value: The token; a repr does not show it.
    """

    variable: str
    user: str
    value: str = field(repr=False)


def token_of(host: str) -> Token | None:
    """Return the token for `host` (with its port if it has one), or None. An empty variable is no token."""
    kind = _kind_of(host)
    value = os.environ.get(kind.variable, "").strip() if kind else ""
    return Token(variable=kind.variable, user=kind.user, value=value) if kind and value else None


def variable_of(host: str) -> str | None:
    """Return the environment variable that a token for `host` would be in, or None."""
    kind = _kind_of(host)
    return kind.variable if kind else None


def _kind_of(host: str) -> _Kind | None:
    return next((kind for kind in _KINDS if _server_of(kind) == host.lower()), None)


def _server_of(kind: _Kind) -> str:
    named = next((os.environ[name] for name in kind.servers if os.environ.get(name)), kind.host)
    return (urlsplit(named).netloc if "://" in named else named).strip("/").lower()
