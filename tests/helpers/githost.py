"""A server on this machine that speaks the URLs of GitHub and GitLab, from real git repositories.

::

    with GitHost() as host:                                # http; GitHost(certificate=...) for https
        host.add("owner/name", make_repo(...))             # any repository on disk
        isohub.load("owner/name:v1", "entry", git_host=host.url)
        assert host.count() == 2                           # refs, and an archive

It can also misbehave: `host.misbehave("archive", status=500, times=2)`, see there; or by a plan, `host.plan`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import queue
import re
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Certificate", "GitHost", "Misbehaviour", "Request", "archive_of", "make_certificate"]

# Where each make of server has its archives; `name` and `commit` are found by these names.
ARCHIVE_URLS = {
    "github": r"/(?P<name>[^/]+/[^/]+)/archive/(?P<commit>[^/]+)\.(?P<format>zip|tar\.gz)",
    "gitlab": r"/(?P<name>.+)/-/archive/(?P<commit>[^/]+)/[^/]+\.(?P<format>zip|tar\.gz)",
    "bitbucket": r"/(?P<name>[^/]+/[^/]+)/get/(?P<commit>[^/]+)\.(?P<format>zip|tar\.gz)",
    "gitee": r"/(?P<name>[^/]+/[^/]+)/repository/archive/(?P<commit>[^/]+)\.(?P<format>zip)",
}
_LFS = re.compile(r"/(?P<name>.+?)\.git/info/lfs/objects/(?P<oid>batch|[0-9a-f]{64})")
_LFS_TYPE = "application/vnd.git-lfs+json"
_GIT = re.compile(r"/(?P<name>.+?)(?:\.git)?/(?P<service>info/refs|git-upload-pack)")


@dataclass(frozen=True)
class Request:
    """One request that came, the status that it was answered with, and whether all of the answer was sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    status: int
    is_whole: bool = True

    @property
    def secret(self) -> str | None:
        """The token or password that was sent, however it was wrapped."""
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            return base64.b64decode(value).decode().partition(":")[2]
        return value or None


@dataclass
class Misbehaviour:
    """What is done in place of an answer, or to it, as long as `times` is above zero."""

    pattern: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut_at: int | None = None
    hold_at: int | None = None
    held: queue.SimpleQueue[Request] = field(default_factory=queue.SimpleQueue)
    change: Callable[[bytes], bytes] | None = None
    redirect: str | None = None
    wait_for: threading.Event | None = None
    times: float = float("inf")


@dataclass(frozen=True)
class Certificate:
    """A certificate for this machine, and the CA that it is from."""

    ca: Path
    chain: Path
    key: Path


def make_certificate(folder: Path) -> Certificate:
    """Make a CA and a certificate of its own for localhost and 127.0.0.1, with the `openssl` program."""
    folder.mkdir(parents=True, exist_ok=True)

    def make(name: str, *more: str) -> None:
        new = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run([*new, *files, *more], cwd=folder, check=True, capture_output=True)

    make("ca", "-subj", "/CN=isohub test CA", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    make(
        "host", "-subj", "/CN=localhost", "-CA", "ca.pem", "-CAkey", "ca.key",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
    )  # fmt: skip
    return Certificate(ca=folder / "ca.pem", chain=folder / "host.pem", key=folder / "host.key")


def archive_of(repo: Path, commit: str, *, prefix: str, form: str = "zip") -> bytes:
    """Return what `git archive` makes of a commit."""
    command = ["git", "-c", "safe.directory=*", "archive", f"--format={form}", f"--prefix={prefix}/", commit]
    return subprocess.run(command, cwd=repo, env=_environment(), check=True, capture_output=True).stdout


class GitHost:
    """The server, as a context manager.

    Args:
        makes: Whose archive URLs it has: names in `ARCHIVE_URLS`.
        certificate: Speak https with this one; None for plain http.
        address: One of this machine's own.

    Attributes:
        requests: Those that came, in their order.
        large: What Git LFS is given, by its SHA-256; see `keep_large`.
        plan: Says, for a path and how often that was asked for before, what to do in place of an answer.
    """

    def __init__(
        self,
        makes: tuple[str, ...] = ("github",),
        *,
        certificate: Certificate | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self.makes = makes
        self.requests: list[Request] = []
        self.plan: Callable[[str, int], Misbehaviour | None] | None = None
        self.large: dict[str, bytes] = {}
        self._asked: Counter[str] = Counter()
        self._repos: dict[str, tuple[Path, Collection[str]]] = {}
        self._misbehaviours: list[Misbehaviour] = []
        self._lock = threading.Lock()
        self._server = _Server((address, 0), _handler_of(self))
        self._scheme = "http"
        if certificate is not None:
            self._scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.chain, certificate.key)
            self._server.tls = context
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> GitHost:  # noqa: PYI034 - Self is of Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._misbehaviours:
            if each.wait_for is not None:
                each.wait_for.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def name(self) -> str:
        """Its address with the port, such as `127.0.0.1:4711`."""
        return "{}:{}".format(*self._server.server_address)

    @property
    def url(self) -> str:
        """The beginning of its URLs."""
        return f"{self._scheme}://{self.name}"

    def add(self, name: str, repo: Path, *, token: str | Collection[str] = ()) -> None:
        """Have a repository under `owner/name`; with a token, or some, only for whoever sends one of them."""
        self._repos[name] = (repo, {token} if isinstance(token, str) else token)

    def keep_large(self, content: bytes) -> str:
        """Keep a file for Git LFS, and return the pointer that stands for it."""
        oid = hashlib.sha256(content).hexdigest()
        self.large[oid] = content
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"

    def misbehave(self, pattern: str, **how: Any) -> Misbehaviour:
        """Misbehave on requests whose path has `pattern` (a regular expression) in it.

        Args:
            pattern: Part of the path and query.
            **how: `status` and `headers` of the answer, its `body`; `cut_at`: send so many bytes of the whole
                and hang up; `hold_at`: send so many, put the request into `held`, and wait; `change`: a
                function of the body; `redirect`: a URL, where `{path}` is the path; `wait_for`: an event that
                is waited for, there or before anything is sent; `times`: how often.
        """
        made = Misbehaviour(pattern, **how)
        with self._lock:
            self._misbehaviours.append(made)
        return made

    def behave(self) -> None:
        """Misbehave no more."""
        with self._lock:
            self._misbehaviours.clear()

    def count(self, pattern: str = "") -> int:
        """Return how many requests came whose path has `pattern` (a regular expression) in it."""
        with self._lock:
            return sum(bool(re.search(pattern, request.path)) for request in self.requests)

    def forget(self) -> None:
        """Count from zero."""
        with self._lock:
            self.requests.clear()
            self._asked.clear()

    # ------------------------------------------------------------------------------------ the handler's side

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def misbehaviour(self, path: str) -> Misbehaviour | None:
        with self._lock:
            if self.plan is not None:
                self._asked[path] += 1
                return self.plan(path, self._asked[path] - 1)
            for each in self._misbehaviours:
                if each.times > 0 and re.search(each.pattern, path):
                    each.times -= 1
                    return each
        return None

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str, bytes]:
        """Return status, content type and body of the honest answer."""
        secret = Request(method, path, headers, 0).secret
        place = urlsplit(path).path
        if match := _LFS.fullmatch(place):
            return self._large(match, secret, body)
        if match := _GIT.fullmatch(place):
            repo, tokens = self._repos.get(match["name"], (None, ()))
            if repo is None or (tokens and secret not in tokens):
                return 401, "text/plain", b"Repository not found.\n"
            protocol = headers.get("Git-Protocol", "")
            if match["service"] == "info/refs":
                listing = _upload_pack(repo, ["--http-backend-info-refs"], protocol)
                start = b"" if protocol == "version=2" else b"001e# service=git-upload-pack\n0000"
                return 200, "application/x-git-upload-pack-advertisement", start + listing
            return 200, "application/x-git-upload-pack-result", _upload_pack(repo, [], protocol, body)
        for make in self.makes:
            if match := re.fullmatch(ARCHIVE_URLS[make], place):
                repo, tokens = self._repos.get(match["name"], (None, ()))
                if repo is None or (tokens and secret not in tokens):
                    break
                prefix = f"{match['name'].rpartition('/')[2]}-{match['commit']}"
                return 200, "application/zip", archive_of(repo, match["commit"], prefix=prefix, form=match["format"])
        return 404, "text/html", b"<!DOCTYPE html><title>Not found</title>"

    def _large(self, match: re.Match[str], secret: str | None, body: bytes) -> tuple[int, str, bytes]:
        """Answer Git LFS: where its files are, and one of them."""
        _, tokens = self._repos[match["name"]]
        if tokens and secret not in tokens:
            return 401, _LFS_TYPE, b"{}"
        if match["oid"] != "batch":
            return 200, "application/octet-stream", self.large[match["oid"]]
        objects = []
        for each in json.loads(body)["objects"]:
            oid = each["oid"]
            place = {"href": f"{self.url}/{match['name']}.git/info/lfs/objects/{oid}"}
            known = {"actions": {"download": place}} if oid in self.large else {"error": {"code": 404, "message": "no"}}
            objects.append({"oid": oid, "size": each["size"], **known})
        return 200, _LFS_TYPE, json.dumps({"transfer": "basic", "objects": objects}).encode()


def _upload_pack(repo: Path, args: list[str], protocol: str, stdin: bytes = b"") -> bytes:
    settings = ["safe.directory=*", "uploadpack.allowFilter=true", "uploadpack.allowAnySHA1InWant=true"]
    command = ["git", *(part for setting in settings for part in ("-c", setting)), "upload-pack", "--stateless-rpc"]
    environment = _environment() | ({"GIT_PROTOCOL": protocol} if protocol else {})
    return subprocess.run(
        [*command, *args, str(repo)], input=stdin, env=environment, check=True, capture_output=True
    ).stdout


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128  # many processes come at once
    tls: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is not None:  # in the thread of the request: a bad handshake must not stop the others
            try:
                request = self.tls.wrap_socket(request, server_side=True)
            except (ssl.SSLError, OSError):
                return
        super().finish_request(request, client_address)
        if self.tls is not None:
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are part of the tests


def _handler_of(host: GitHost) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_GET(self) -> None:
            self._serve(b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._serve(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)

        def _serve(self, body: bytes) -> None:
            headers = {name.title(): value for name, value in self.headers.items()}
            how = host.misbehaviour(self.path) or Misbehaviour("")
            if how.wait_for is not None and how.hold_at is None:
                how.wait_for.wait(30)
            if how.redirect is not None:
                self._send(headers, how.status or 302, {"Location": how.redirect.format(path=self.path)}, b"", how)
                return
            status, kind, content = 200, "text/plain", how.body or b""
            if how.body is None and how.status is None:
                status, kind, content = host.answer(self.command, self.path, headers, body)
            if how.change is not None:
                content = how.change(content)
            extra = {"WWW-Authenticate": 'Basic realm="git"'} if status == 401 else {}
            self._send(headers, how.status or status, {"Content-Type": kind, **extra, **how.headers}, content, how)

        def _send(
            self, asked: dict[str, str], status: int, headers: dict[str, str], body: bytes, how: Misbehaviour
        ) -> None:
            sent = body[: how.cut_at]
            request = Request(self.command, self.path, asked, status, is_whole=sent == body)
            host.note(request)  # before the client can go on
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if how.hold_at is not None:
                self.wfile.write(sent[: how.hold_at])
                sent = sent[how.hold_at :]
                how.held.put(request)
                assert how.wait_for is not None
                how.wait_for.wait(60)
            self.wfile.write(sent)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
