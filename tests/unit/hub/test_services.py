"""What is fetched for workers: whose code is taken as it is, and whose texts are not believed."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator

import pytest

from isohub.errors import HashMismatchError
from isohub.hub.services import Services
from isohub.wire.messages import FilesAt, NeedFiles, Refused
from tests.helpers.fileserver import FileServer

BODY = b"weights"
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def services() -> Iterator[Services]:
    made = Services("owner/name:v1")
    yield made
    made.close()


def test_check_hash_without_a_hash_warns_once(services: Services, server: FileServer) -> None:
    """Code that asks for a check that no name allows gets the file, and the user one warning with URL and hash."""
    need = NeedFiles(what="weights", name=server.put("/convnext_tiny.pth", BODY), check_hash=True)

    with pytest.warns(UserWarning, match="check_hash") as warned:
        answers = [services.files(need), services.files(need)]

    assert all(isinstance(answer, FilesAt) for answer in answers)
    [text] = [str(one.message) for one in warned]
    assert all(part in text for part in ("owner/name:v1", need.name, SHA256))


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        (f"net-{SHA256[:8]}.pth", {}, FilesAt),
        ("net.pth", {"file_name": f"net-{SHA256[:8]}.pth"}, FilesAt),
        ("net.pth", {"hash_prefix": SHA256[:4]}, FilesAt),
        ("net-0123abcd.pth", {}, Refused),
        ("net.pth", {"file_name": "net-0123abcd.pth"}, Refused),
        ("net.pth", {"hash_prefix": "0123"}, Refused),
    ],
)
def test_hash_that_is_there_is_checked(
    services: Services, server: FileServer, name: str, asked: dict[str, str], expected: type
) -> None:
    """A hash in the name, in the file's own name or given is checked, without a warning."""
    need = NeedFiles(what="weights", name=server.put(f"/{name}", BODY), check_hash=True, **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = services.files(need)

    assert type(answer) is expected
    assert isinstance(services.refused(1), HashMismatchError) == (expected is Refused)


def test_warning_made_an_error_is_a_refusal(services: Services, server: FileServer) -> None:
    """Where the user makes warnings errors, the worker's code is refused, and the warning is what the user gets."""
    need = NeedFiles(what="weights", name=server.put("/net.pth", BODY), check_hash=True)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = services.files(need)

    assert isinstance(answer, Refused)
    error = services.refused(answer.number)
    assert isinstance(error, UserWarning)
    assert SHA256 in str(error)


@pytest.mark.parametrize("what", ["weights", "checkout"])
@pytest.mark.parametrize("field", ["name", "hash_prefix", "file_name"])
@pytest.mark.parametrize("text", ["a\x1b[2J", "a\nb", "a\x9b", "a" * 9000])
def test_texts_that_could_drive_a_terminal_are_refused(
    services: Services, capsys: pytest.CaptureFixture[str], what: str, field: str, text: str
) -> None:
    """A text of a worker's with control characters, or without end, is neither asked for nor shown."""
    need = NeedFiles(**{"what": what, "name": "http://127.0.0.1:9/net.pth", field: text})  # type: ignore[arg-type]

    answer = services.files(need)

    assert isinstance(answer, Refused)
    assert (answer.kind, answer.message) == ("ValueError", f"{text!r:.200} names nothing that could be fetched")
    assert answer.message.isprintable()
    assert capsys.readouterr() == ("", "")


def test_refusals_are_known_until_they_are_asked_for(services: Services) -> None:
    """Each refusal has a number of its own; asking for one forgets all, and an unknown number is nothing."""
    need = NeedFiles(what="weights", name="\x00")
    first, second, third = (services.files(need) for _ in range(3))
    assert isinstance(first, Refused)
    assert isinstance(second, Refused)

    assert services.refused(first.number) is not None
    assert services.refused(second.number) is None
    assert services.refused(10**30) is None
    assert [one.number for one in (first, second, third) if isinstance(one, Refused)] == [1, 2, 3]
