"""What an HTTP status other than 200 means for whoever wanted a repository, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from isohub.errors import FetchError
from isohub.hub.tokens import Token, variable_of

__all__ = ["refusal"]


def refusal(url: str, status: int, headers: Mapping[str, str], token: Token | None) -> FetchError:
    """Return the error for an answer, with the limit and its end if the host tells them.

    Args:
        url: What was asked for.
        status: The status of the answer.
        headers: Its headers; their names in any case of letters.
        token: The token that went with it.
    """
    given = {name.lower(): value for name, value in headers.items()}
    limit = _number(given.get("x-ratelimit-limit") or given.get("ratelimit-limit"))
    reset_at = _reset(given)
    remaining = given.get("x-ratelimit-remaining") or given.get("ratelimit-remaining")
    variable = variable_of(urlsplit(url).netloc)
    is_limit = status == 429 or (status == 403 and (remaining == "0" or "retry-after" in given))
    said = _limited(limit, reset_at) if is_limit else _meaning(status, urlsplit(url).netloc)
    advice = "" if status >= 500 else _advice(variable, token, is_limit=is_limit)
    return FetchError(
        f"{url} answers {status}: {said}.{advice}",
        url=url,
        status=status,
        limit=limit,
        reset_at=reset_at,
        token_variable=variable,
    )


def _meaning(status: int, host: str) -> str:
    if status in {401, 404}:
        return "there is no such repository, or it is private"
    if status == 403:
        return "it may not be read"
    if status >= 500:
        return f"{host} is in trouble, several times over"
    return "that is no answer that can be used"


def _limited(limit: int | None, reset_at: datetime | None) -> str:
    many = f" of {limit} requests" if limit is not None else ""
    when = f", which ends at {reset_at.isoformat(timespec='seconds')}" if reset_at else ""
    return f"the host's rate limit{many} is reached{when}"


def _advice(variable: str | None, token: Token | None, *, is_limit: bool) -> str:
    if token is not None:
        return f" The token in {token.variable} was sent" + ("." if is_limit else "; may it read this repository?")
    ways = f"set {variable} to a token" if variable else "put a login for the host into ~/.netrc"
    return f" To be let in, {ways}, or let git have the credentials (git+https:// or git+ssh://)."


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _reset(given: Mapping[str, str]) -> datetime | None:
    now = datetime.now(timezone.utc)
    try:
        if (epoch_s := _number(given.get("x-ratelimit-reset") or given.get("ratelimit-reset"))) is not None:
            # Seconds since 1970 for all known hosts; the draft of a standard counts from now.
            return datetime.fromtimestamp(epoch_s, timezone.utc) if epoch_s > 1e9 else now + timedelta(seconds=epoch_s)
        after = given.get("retry-after")
        if (wait_s := _number(after)) is not None:
            return now + timedelta(seconds=wait_s)
        return parsedate_to_datetime(after) if after else None
    except (ValueError, OverflowError, OSError):  # a date that is none, or one beyond all calendars
        return None
