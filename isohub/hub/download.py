"""From a URL to a file that is whole: `download_url_to_file`, and `bring` underneath it.

::

    request -> 200: from the start          a body cut short, or silent for 60 s -> the next request asks for
            -> 206: goes on                 the rest, if the server named a version (ETag, Last-Modified);
            -> else: FetchError             else for all of it again
    whole -> SHA-256 as expected -> on the disk -> the caller moves it into place by one rename

Connecting, and the statuses that servers give when they are overloaded, are tried again by urllib3's Retry.
Bodies are tried again here, because only here it is known how much has come.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit
from urllib.request import url2pathname
from uuid import uuid4

from isohub.errors import FetchError, HashMismatchError, UnreachableError
from isohub.hub.http import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, ca_bundle, is_offline, untrusted
from isohub.hub.partial import Downloaded, PartialFile
from isohub.hub.progress import Progress

if TYPE_CHECKING:
    import requests

__all__ = ["bring", "download_url_to_file", "file_of", "without_user"]

_logger = logging.getLogger("isohub.hub")

_BUSY = (500, 502, 503, 504)
_RETRIES = 4
_BACKOFF_S = 0.5
# Bodies that broke off in a row without bringing anything new; and in all, for a server that drips.
_FRUITLESS = 4
_MOST_BREAKS = 100
_CHUNK_BYTES = 128 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _BrokenOffError(Exception):
    """A body ended before its end."""


def download_url_to_file(
    url: str, dst: str | os.PathLike[str], hash_prefix: str | None = None, progress: bool = True
) -> None:
    """Download what lies at a URL into a file. The signature is torch.hub's.

    The file appears when it is whole, by one rename; until then, and if the download fails, a file that
    was there before stays.

    Args:
        url: `https:`, `http:` or `file:`.
        dst: The file; `~` is the home folder. Its folder must exist.
        hash_prefix: How the SHA-256 of the file must begin, hexadecimal.
        progress: Whether to draw a bar if it takes longer than a second and stderr is a terminal.

    Raises:
        FetchError: It cannot be had.
        HashMismatchError: (a RuntimeError) It has another hash.
        OSError: The file cannot be written.
    """
    place = Path(os.path.expanduser(dst))  # noqa: PTH111 - Path.expanduser raises where there is no home
    if place.is_dir():
        raise IsADirectoryError(f"Cannot download to {str(place)!r}: it is a folder")
    partial = place.with_name(f"{place.name[:50]}.{uuid4().hex}.partial")
    try:
        bring(url, partial, hash_prefix=hash_prefix, progress=progress)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


def bring(
    url: str, partial: Path, *, hash_prefix: str | None = None, progress: bool = True, is_kept: bool = False
) -> Downloaded:
    """Bring what lies at a URL into `partial`, which nobody else may write meanwhile.

    Args:
        url: `https:`, `http:` or `file:`.
        partial: A file in the making; its permissions are those of any new file.
        hash_prefix: How the SHA-256 must begin.
        progress: Whether to draw a bar.
        is_kept: Whether `partial` stays when this fails or the process dies, so that the next call goes on
            from there: see `isohub.hub.partial`.

    Raises:
        FetchError: It cannot be had.
        HashMismatchError: It has another hash; nothing of it is kept.
        OSError: The file cannot be written.
    """
    path = file_of(url)
    if path is None and urlsplit(url).scheme not in {"http", "https"}:
        raise FetchError(f"Cannot download {without_user(url)!r}: it begins neither with http(s): nor file:", url=url)
    body = PartialFile(url, partial, is_kept=is_kept)
    try:
        if path is not None:
            _copy(url, path, body)
        else:
            with Progress(Path(urlsplit(url).path).name, is_shown=progress) as bar:
                _request(url, body, bar)
                if body.was_resumed and not _is_as_expected(body.sha256, hash_prefix):
                    _logger.warning("%s: the parts do not make a whole, all of it again", without_user(url))
                    body.start(None, None)
                    _request(url, body, bar)
        if not _is_as_expected(body.sha256, hash_prefix):
            body.forget()
            # torch.hub's text.
            text = f'invalid hash value (expected "{hash_prefix}", got "{body.sha256}")'
            raise HashMismatchError(text, url=url, expected=hash_prefix or "", actual=body.sha256)
        return body.finish()
    finally:
        body.close()


def file_of(url: str) -> Path | None:
    """Return the path that a `file:` URL names; None for any other URL.

    Raises:
        FetchError: It is on another machine.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    if parts.netloc not in {"", "localhost"}:
        raise FetchError(f"{url!r} names a file on another machine", url=url)
    return Path(url2pathname(parts.path))


def without_user(url: str) -> str:
    """Return a URL without the user and password that it may hold, for texts that others see."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _copy(url: str, path: Path, body: PartialFile) -> None:
    body.start(None, None)
    try:
        with path.open("rb") as source:
            while chunk := source.read(1 << 20):
                body.write(chunk)
    except OSError as error:
        raise FetchError(f"Cannot read {url!r}: {error.strerror or error}", url=url) from error


def _request(url: str, body: PartialFile, bar: Progress) -> None:
    """Ask for a body until all of it is here."""
    if is_offline():
        raise UnreachableError(f"Cannot download {without_user(url)}: ISOHUB_OFFLINE forbids the network", url=url)
    with _session() as session:
        fruitless = 0
        for _ in range(_MOST_BREAKS):
            before = body.size_bytes
            try:
                _ask_once(session, url, body, bar)
                return
            except _BrokenOffError as error:
                reason = error
            fruitless = 0 if body.validator is not None and body.size_bytes > before else fruitless + 1
            if fruitless > _FRUITLESS:
                break
            _logger.warning("%s broke off (%s): trying again", without_user(url), reason)
            time.sleep(min(_BACKOFF_S * 2**fruitless, 10.0) if fruitless else 0)
    of = "" if body.total_bytes is None else f" of {body.total_bytes:,}"
    raise UnreachableError(
        f"Cannot download {without_user(url)}: it broke off after {body.size_bytes:,}{of} bytes ({reason})", url=url
    )


def _ask_once(session: requests.Session, url: str, body: PartialFile, bar: Progress) -> None:
    import requests

    if body.is_whole:
        return
    # As it is and not compressed, for sizes and ranges to count the bytes of the file.
    headers = {"Accept-Encoding": "identity"}
    if body.size_bytes and body.validator is not None:
        # If it is another version by now, the server sends all of it.
        headers |= {"Range": f"bytes={body.size_bytes}-", "If-Range": body.validator}
    timeouts_s = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
    try:
        response = session.get(url, headers=headers, stream=True, timeout=timeouts_s, verify=ca_bundle() or True)
    except requests.exceptions.SSLError as error:
        raise untrusted(without_user(url), _reason(error)) from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise UnreachableError(f"Cannot download {without_user(url)}: {_reason(error)}", url=url) from error
    except (requests.RequestException, ValueError) as error:  # ValueError: a host name that cannot be one
        raise FetchError(f"Cannot download {without_user(url)}: {_reason(error)}", url=url) from error
    with response:
        _place(response, url, body, is_partial="Range" in headers)
        bar.stands_at(body.size_bytes, body.total_bytes)
        for chunk in _chunks(response):
            body.write(chunk)
            bar.advance(len(chunk))
    if body.total_bytes is not None and not body.is_whole:
        raise _BrokenOffError(f"{body.size_bytes} of {body.total_bytes} bytes")


def _place(response: requests.Response, url: str, body: PartialFile, *, is_partial: bool) -> None:
    """See where in the file an answer belongs, and make `body` stand there."""
    way = [step.url for step in (*response.history, response)]
    if any(here.startswith("https:") and there.startswith("http:") for here, there in pairwise(way)):
        text = f"Cannot download {without_user(url)}: it leads to plain http, {without_user(response.url)}"
        raise FetchError(text, url=url)
    if response.status_code == 200:
        body.start(_validator(response), _length(response))
    elif is_partial and response.status_code == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        goes_on = match is not None and int(match[1]) == body.size_bytes
        total_bytes = int(match[2]) if match is not None and match[2] != "*" else body.total_bytes
        if not goes_on or body.total_bytes not in (None, total_bytes):
            body.start(None, None)
            raise _BrokenOffError("the server sent another part than was asked for")
        body.total_bytes = total_bytes
        body.was_resumed = True
    elif is_partial and response.status_code == 416:
        body.start(None, None)
        raise _BrokenOffError("the server has no such part")
    else:
        raise _refused(response, url)


def _chunks(response: requests.Response) -> Iterator[bytes]:
    from urllib3.exceptions import HTTPError

    try:
        # Raw, or requests would unpack a file that is meant to be packed.
        yield from response.raw.stream(_CHUNK_BYTES, decode_content=False)
    except (HTTPError, http.client.HTTPException, OSError) as error:
        raise _BrokenOffError(_reason(error)) from error


def _validator(response: requests.Response) -> str | None:
    tag = response.headers.get("ETag", "")
    # A weak tag stands for versions that mean the same, whose bytes may differ.
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _length(response: requests.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() and "Transfer-Encoding" not in response.headers else None


def _refused(response: requests.Response, url: str) -> FetchError:
    asked = without_user(url)
    answered = without_user(response.url)
    where = asked if answered == asked else f"{asked}, which leads to {answered}"
    text = f"Cannot download {where}: HTTP {response.status_code} {response.reason or ''}".rstrip()
    if wait := response.headers.get("Retry-After"):
        text += f"; the server asks to come back after {wait}{' s' if wait.isdecimal() else ''}"
    return FetchError(text, url=url, status=response.status_code)


def _session() -> requests.Session:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    session = requests.Session()
    # Retry-After is told to the caller instead: some servers ask for an hour.
    retry = Retry(
        total=_RETRIES,
        status_forcelist=_BUSY,
        backoff_factor=_BACKOFF_S,
        raise_on_status=False,
        other=0,  # a certificate does not become right by asking again
        respect_retry_after_header=False,
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    session.headers["User-Agent"] = "isohub"
    return session


def _reason(error: BaseException) -> str:
    """Return the innermost reason: urllib3 wraps it several times, each time with all that is inside."""
    reason = getattr(error, "reason", None)
    inner = reason if isinstance(reason, BaseException) else next(iter(error.args), None)
    return _reason(inner) if isinstance(inner, BaseException) else str(error) or type(error).__name__


def _is_as_expected(sha256: str, hash_prefix: str | None) -> bool:
    return hash_prefix is None or sha256.startswith(hash_prefix)
