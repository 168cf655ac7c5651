"""Servers that repositories lie on: the ones with a name of their own, and how any other is written.

::

    git.example.com   git.example.com:8443   https://git.example.com:8443   http://127.0.0.1:8000

A server is spoken to by https. Plain http is for servers of this very machine alone: whoever sits on the way
could answer in the name of any other one, with code that is then run.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from isohub.errors import RefError

__all__ = ["SOURCES", "Server", "is_loopback"]

# What `source=` may say, and the server that `owner/name` lies on then.
SOURCES = {
    "github": "github.com",
    "gitlab": "gitlab.com",
    "gitee": "gitee.com",
    "bitbucket": "bitbucket.org",
    "codeberg": "codeberg.org",
}

# These have exactly one owner above a repository. GitLab, which anybody may run, has groups within groups.
_FLAT = {host for host in SOURCES.values() if host != "gitlab.com"}
_HOST = re.compile(
    r"(?P<name>[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}))?", re.IGNORECASE | re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How a server is reached.

    Attributes:
        scheme: `"https"`, or `"http"` for one on this machine.
        host: Its name in small letters, with the port if one was given.
    """

    scheme: Literal["https", "http"]
    host: str

    @classmethod
    def parse(cls, text: str) -> Server:
        """Read a host name with or without a port, or the beginning of a URL.

        Raises:
            RefError: It is neither, or it is one of plain http on another machine.
        """
        scheme, mark, rest = str(text).partition("://")
        host = (rest if mark else scheme).rstrip("/")
        found = _HOST.fullmatch(host)
        if found is None or int(found["port"] or 0) > 65535:
            raise RefError(
                f"{text!r} is not the name of a server. Allowed: host, host:port, https://host:port", text=str(text)
            )
        if mark and scheme not in {"https", "http"}:
            raise RefError(f"{text!r}: a server is reached by https, not by {scheme!r}", text=str(text))
        if mark and scheme == "http":
            if not is_loopback(host):
                raise RefError(
                    f"{text!r}: plain http is for servers of this machine; use https or ssh, for whoever sits on "
                    "the way could answer with code of their own",
                    text=str(text),
                )
            return cls(scheme="http", host=host.lower())
        return cls(scheme="https", host=host.lower())

    @property
    def url(self) -> str:
        """The beginning of its URLs, without a slash at the end."""
        return f"{self.scheme}://{self.host}"

    @property
    def has_groups(self) -> bool:
        """Whether several names may stand before that of a repository: `group/subgroup/name`."""
        return self.host not in _FLAT


def is_loopback(host: str) -> bool:
    """Tell whether a host, with or without a port, is this machine by its name or address."""
    found = _HOST.fullmatch(host)
    name = found["name"].strip("[]").lower() if found else ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
