"""The one place that speaks HTTP: time limits, retries, certificates, tokens, and errors that say what to do.

Note [where a token goes]: a token is put on a request to its own host alone. `requests` takes it off when a
redirect leads to another host or port, and looks for a line of that host's own in the user's netrc. A redirect
from https to plain http is refused, and so is any to plain http on another machine.

Proxies (`HTTPS_PROXY`, `NO_PROXY`) and netrc are read by `requests`. Certificates are those of
`REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`, `SSL_CERT_FILE` or `SSL_CERT_DIR`, the first that is set.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from isohub.errors import FetchError, UnreachableError
from isohub.hub.progress import Progress
from isohub.hub.refusals import refusal
from isohub.hub.tokens import Token, token_of
from isohub.servers import is_loopback

if TYPE_CHECKING:
    import requests

__all__ = ["CONNECT_TIMEOUT_S", "READ_TIMEOUT_S", "ca_bundle", "download", "is_offline", "read", "untrusted"]

_logger = logging.getLogger("isohub.hub")

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
# A host that asks for more patience than this gets an error that names the time, not a program that hangs.
MAX_RETRY_AFTER_S = 20.0
# 0, 0.5, 1 and 2 s between the tries.
_TRIES = 4
_BACKOFF_S = 0.5
_RETRIED = (500, 502, 503, 504)
_MAX_REDIRECTS = 10
_BLOCK_BYTES = 1 << 17

_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")

Purpose = Literal["git", "archive"]


def is_offline() -> bool:
    """Tell whether `ISOHUB_OFFLINE` forbids the network."""
    return os.environ.get("ISOHUB_OFFLINE", "").strip().lower() not in {"", "0", "false", "no", "off"}


def ca_bundle() -> str | None:
    """Return the file or folder of certificates that the environment names, or None for the usual ones."""
    return next((os.environ[name] for name in _CA_VARIABLES if os.environ.get(name)), None)


def read(url: str, *, max_bytes: int, purpose: Purpose = "git") -> tuple[bytes, str]:
    """Return the body of an answer, and its content type.

    Raises:
        UnreachableError: There was no answer, or the network may not be used.
        FetchError: The answer was an error, too long, or cut short every time.
    """
    for is_last in _tries():
        with _answer(url, purpose) as response:
            try:
                body = bytearray()
                for block in response.iter_content(_BLOCK_BYTES):
                    body += block
                    if len(body) > max_bytes:
                        raise FetchError(f"{url} answers with more than {max_bytes} bytes", url=url)
                _refuse_short(response)
            except _broken() as error:
                _note_cut(url, error, is_last=is_last)
                continue
            return bytes(body), response.headers.get("Content-Type", "").partition(";")[0].strip()
    raise AssertionError("the last try returns or raises")


def download(
    url: str, file: Path, *, max_bytes: int, started: Callable[[], None], purpose: Purpose = "archive"
) -> None:
    """Write the body of an answer to `file`, telling of the progress if it takes a while.

    Args:
        url: What to ask for.
        file: Where it goes.
        max_bytes: How long it may be.
        started: Is called once, when there is an answer that is no error.
        purpose: What it is, which decides how a token is sent.

    Raises:
        UnreachableError: There was no answer, or the network may not be used.
        FetchError: The answer was an error, too long, or cut short every time.
        OSError: The file cannot be written.
    """
    tell: Callable[[], None] | None = started
    for is_last in _tries():
        with _answer(url, purpose) as response, file.open("wb") as output:
            if tell is not None:
                tell()
                tell = None
            length = response.headers.get("Content-Length", "")
            with Progress(urlsplit(url).path.rpartition("/")[2]) as bar:
                bar.stands_at(0, int(length) if length.isdigit() else None)
                blocks = response.iter_content(_BLOCK_BYTES)
                written = 0
                while True:
                    try:  # around the reading alone: a full disk is no cut line
                        block = next(blocks, b"")
                        if not block:
                            _refuse_short(response)
                    except _broken() as error:
                        _note_cut(url, error, is_last=is_last)
                        break
                    if not block:
                        return
                    written += len(block)
                    if written > max_bytes:
                        raise FetchError(f"{url} is larger than {max_bytes} bytes", url=url)
                    output.write(block)
                    bar.advance(len(block))
    raise AssertionError("the last try returns or raises")


@contextmanager
def _answer(url: str, purpose: Purpose) -> Iterator[requests.Response]:
    """Ask for `url`, with the token of its host and, if that is not taken, without."""
    import requests

    if is_offline():
        raise UnreachableError(f"{url} was not asked for, since ISOHUB_OFFLINE forbids the network", url=url)
    token = token_of(urlsplit(url).netloc)
    with _session(purpose) as session:
        try:
            response = session.get(url, auth=_auth(token, purpose), **_options())
            if token is not None and response.status_code == requests.codes.unauthorized:
                response.close()
                _logger.warning("%s does not take the token in %s: asked again without it", url, token.variable)
                response = session.get(url, **_options())
        except requests.RequestException as error:
            raise _no_answer(url, error) from error
        with response:
            if response.status_code != requests.codes.ok:
                raise refusal(url, response.status_code, response.headers, token)
            yield response


def _options() -> dict[str, Any]:
    # Given with each request: what a session holds gives way to REQUESTS_CA_BUNDLE, but SSL_CERT_FILE would not count.
    verify = ca_bundle() or True
    return {"stream": True, "timeout": (CONNECT_TIMEOUT_S, READ_TIMEOUT_S), "verify": verify}


def _auth(token: Token | None, purpose: Purpose) -> Any:
    """Return what `requests` takes for `auth`: not None, or netrc would replace the header of ours."""
    if token is None:
        return None
    if purpose == "git":  # git's own protocol knows user and password alone
        return (token.user, token.value)

    def with_token(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token.value}"
        return request

    return with_token


def _session(purpose: Purpose) -> requests.Session:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.exceptions import MaxRetryError, SSLError
    from urllib3.util import Retry

    class PatientRetry(Retry):
        """One that does not wait as long as it is told to, if that is too long."""

        def get_retry_after(self, response: Any) -> float | None:
            told_s = super().get_retry_after(response)
            return None if told_s is None else min(told_s, MAX_RETRY_AFTER_S)

        def is_retry(self, method: str, status_code: int, has_retry_after: bool = False) -> bool:
            # 413 and 429, too, are retried by urllib3 if there is a Retry-After; a limit of requests is not
            # over in seconds, and asking on makes it longer.
            return status_code in _RETRIED and super().is_retry(method, status_code, has_retry_after)

        def increment(self, *args: Any, **kwargs: Any) -> Retry:  # type: ignore[override]
            error = kwargs.get("error")
            if isinstance(error, SSLError):  # a certificate does not become right by asking again
                raise MaxRetryError(kwargs["_pool"], str(kwargs.get("url", "")), error)
            return super().increment(*args, **kwargs)

    class SafeSession(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target = super().get_redirect_target(resp)
            asked = urlsplit(resp.url)
            led = urlsplit(requests.compat.urljoin(resp.url, target or ""))
            if target and asked.scheme == "https" and led.scheme != "https":
                raise requests.exceptions.InvalidSchema(f"{resp.url} leads to plain {led.scheme}, on {led.netloc}")
            if target and led.scheme == "http" and not is_loopback(led.netloc):
                raise requests.exceptions.InvalidSchema(f"{resp.url} leads to plain http, on {led.netloc}")
            return target

    session = SafeSession()
    session.max_redirects = _MAX_REDIRECTS
    # Some servers give git's answers to programs that say they are git; dulwich says so in the same way.
    session.headers["User-Agent"] = "git/isohub" if purpose == "git" else "isohub"
    retry = PatientRetry(
        total=_TRIES - 1,
        connect=2,
        redirect=0,  # requests follows them
        status_forcelist=_RETRIED,
        allowed_methods=["GET"],
        backoff_factor=_BACKOFF_S,
        raise_on_status=False,
    )
    session.mount("https://", HTTPAdapter(max_retries=retry))
    session.mount("http://", HTTPAdapter(max_retries=retry))
    return session


def _tries() -> Iterator[bool]:
    for number in range(1, _TRIES):
        yield number == _TRIES - 1


def _broken() -> tuple[type[Exception], ...]:
    import requests
    import urllib3

    cut = (requests.exceptions.ChunkedEncodingError, requests.ConnectionError, requests.exceptions.ContentDecodingError)
    return (*cut, urllib3.exceptions.HTTPError, requests.Timeout, _ShortError)


class _ShortError(Exception):
    """A body ended before its Content-Length."""


def _refuse_short(response: requests.Response) -> None:
    # What came over the line, before it was unpacked: old versions of urllib3 take a short body for a whole one.
    told, came = response.headers.get("Content-Length", ""), response.raw.tell()
    if told.isdigit() and came < int(told):
        raise _ShortError(f"{came} of {told} bytes came")


def _note_cut(url: str, error: Exception, *, is_last: bool) -> None:
    if is_last:
        raise UnreachableError(f"{url} broke off every time, at last with: {error}", url=url) from error
    _logger.warning("%s broke off: %s; it is asked for again", url, error)


def _no_answer(url: str, error: requests.RequestException) -> FetchError:
    import requests

    host = urlsplit(url).netloc
    if isinstance(error, requests.exceptions.SSLError):
        return untrusted(url, _innermost(error))
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        return UnreachableError(f"{host} does not answer: {_innermost(error)} (asked for {url})", url=url)
    return FetchError(f"{url} cannot be asked for: {_innermost(error)}", url=url)


def untrusted(url: str, reason: str) -> FetchError:
    """Return the error for a server whose certificate nobody here vouches for."""
    return FetchError(
        f"{url} cannot be trusted: {reason}. If {urlsplit(url).netloc} has a certificate of your own organisation, "
        "name its CA in SSL_CERT_FILE or REQUESTS_CA_BUNDLE",
        url=url,
    )


def _innermost(error: BaseException) -> str:
    """Return the reason, without what requests and urllib3 wrap around it."""
    reason: BaseException = error
    for _ in range(5):
        inner = getattr(reason, "reason", None) or (reason.args[0] if reason.args else None)
        if not isinstance(inner, BaseException):
            break
        reason = inner
    return str(reason).rpartition("> ")[2] or str(reason)
