"""Downloads: whole or not there, whatever the server and the line do."""

from __future__ import annotations

import hashlib
import inspect
import os
import pty
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from isohub.errors import FetchError, HashMismatchError, UnreachableError
from isohub.hub.download import bring, download_url_to_file
from isohub.hub.partial import Downloaded
from tests.helpers.fileserver import FileServer, file_server
from tests.helpers.waiting import until

BODY = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(BODY).hexdigest()

pytestmark = pytest.mark.usefixtures("hurry")


def test_signature_is_that_of_torch_hub() -> None:
    """Parameters and defaults are torch.hub's, since people pass them by name."""
    expected = inspect.signature(torch.hub.download_url_to_file).parameters.values()
    actual = inspect.signature(download_url_to_file).parameters.values()

    assert [(one.name, one.default, one.kind) for one in expected] == [
        (one.name, one.default, one.kind) for one in actual
    ]


def test_file_is_brought(server: FileServer, tmp_path: Path) -> None:
    """The file has the bytes of the URL and the permissions of any new file, and nothing else is left."""
    url = server.put("/model.pth", BODY)
    before = os.umask(0o027)
    try:
        download_url_to_file(url, str(tmp_path / "model.pth"), hash_prefix=SHA256[:8])
    finally:
        os.umask(before)

    assert (tmp_path / "model.pth").read_bytes() == BODY
    assert stat.S_IMODE((tmp_path / "model.pth").stat().st_mode) == 0o640
    assert [tmp_path / "model.pth"] == list(tmp_path.iterdir())


def test_wrong_hash_keeps_the_old_file(server: FileServer, tmp_path: Path) -> None:
    """A file with another hash is refused in torch.hub's words, and the one before it stays."""
    url = server.put("/model.pth", BODY)
    place = tmp_path / "model.pth"
    place.write_text("old")

    with pytest.raises(RuntimeError) as caught:
        download_url_to_file(url, place, hash_prefix="deadbeef")

    assert f'invalid hash value (expected "deadbeef", got "{SHA256}")' == str(caught.value)
    assert isinstance(caught.value, HashMismatchError)
    assert (caught.value.expected, caught.value.actual) == ("deadbeef", SHA256)
    assert place.read_text() == "old"
    assert [place] == list(tmp_path.iterdir())


def test_short_body_is_resumed(server: FileServer, tmp_path: Path) -> None:
    """A body shorter than its Content-Length goes on where it broke off, as often as need be."""
    url = server.put("/model.pth", BODY, cuts=[100_000, 200_000])

    download_url_to_file(url, tmp_path / "model.pth", hash_prefix=SHA256)

    assert (tmp_path / "model.pth").read_bytes() == BODY
    assert server.ranges() == [None, "bytes=100000-", "bytes=300000-"]
    assert server.requests[1][1]["If-Range"] == '"v1"'


@pytest.mark.parametrize(
    ("etag", "has_ranges", "ranges"),
    [
        pytest.param(None, True, [None, None], id="no version named"),
        pytest.param('W/"v1"', True, [None, None], id="weak version"),
        pytest.param('"v1"', False, [None, "bytes=1000-"], id="ranges ignored"),
    ],
)
def test_short_body_is_brought_anew(server: FileServer, tmp_path: Path, etag, has_ranges, ranges) -> None:
    """What cannot be resumed, or not safely, is brought from its start."""
    url = server.put("/model.pth", BODY, etag=etag, has_ranges=has_ranges, cuts=[1000])

    download_url_to_file(url, tmp_path / "model.pth")

    assert (tmp_path / "model.pth").read_bytes() == BODY
    assert ranges == server.ranges()


def test_always_short_body_is_an_error(server: FileServer, tmp_path: Path) -> None:
    """A server that never gets further ends in an error that says how far it came; the old file stays."""
    url = server.put("/model.pth", BODY, cuts=[1000, *[0] * 20])
    place = tmp_path / "model.pth"
    place.write_text("old")

    with pytest.raises(UnreachableError, match=r"broke off after 1,000 of 512,000 bytes") as caught:
        download_url_to_file(url, place)

    assert url == caught.value.url
    assert place.read_text() == "old"
    assert [place] == list(tmp_path.iterdir())


def test_changed_file_is_not_mixed(server: FileServer, tmp_path: Path) -> None:
    """When the file at the URL changes in the middle, all of the new one is brought."""
    url = server.put("/model.pth", BODY, cuts=[1000])
    partial = tmp_path / "partial"
    server.files["/model.pth"].cuts = [1000, *[0] * 20]
    with pytest.raises(UnreachableError):
        bring(url, partial, is_kept=True)
    new = b"new" * 5000
    server.put("/model.pth", new, etag='"v2"')

    got = bring(url, partial, is_kept=True)

    assert new == partial.read_bytes()
    assert Downloaded(hashlib.sha256(new).hexdigest(), len(new)) == got


def test_parts_with_a_wrong_hash_are_brought_anew(server: FileServer, tmp_path: Path) -> None:
    """If parts do not make a whole, because the server names two versions alike, all of it is brought again."""
    url = server.put("/model.pth", b"x" * len(BODY), cuts=[1000, *[0] * 20])
    partial = tmp_path / "partial"
    with pytest.raises(UnreachableError):
        bring(url, partial, is_kept=True)
    server.put("/model.pth", BODY)

    got = bring(url, partial, hash_prefix=SHA256, is_kept=True)

    assert got.sha256 == SHA256
    assert partial.read_bytes() == BODY


def test_partial_of_another_url_is_not_taken(server: FileServer, tmp_path: Path) -> None:
    """What is left of one URL is not the beginning of another's."""
    one = server.put("/one.pth", b"x" * len(BODY), cuts=[1000, *[0] * 20])
    two = server.put("/two.pth", BODY)
    with pytest.raises(UnreachableError):
        bring(one, tmp_path / "partial", is_kept=True)

    bring(two, tmp_path / "partial", is_kept=True)

    assert (tmp_path / "partial").read_bytes() == BODY


def test_killed_download_is_resumed(server: FileServer, tmp_path: Path) -> None:
    """A process that is killed leaves nothing under the file's name, and the next one goes on from there."""
    gate = threading.Event()
    url = server.put("/model.pth", BODY, gate=gate)
    partial = tmp_path / "partial"
    script = """
import sys
from pathlib import Path
from isohub.hub.download import bring
bring(sys.argv[1], Path(sys.argv[2]), is_kept=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script, url, str(partial)])
    assert server.files["/model.pth"].half_sent.wait(30)
    until(lambda: partial.stat().st_size > 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = partial.stat().st_size
    gate.set()
    server.put("/model.pth", BODY)

    got = bring(url, partial, is_kept=True)

    assert 0 < left < len(BODY)
    assert [None, f"bytes={left}-"] == server.ranges()
    assert Downloaded(SHA256, len(BODY)) == got
    assert partial.read_bytes() == BODY


def test_busy_server_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    """Statuses of an overloaded server are tried again."""
    url = server.put("/model.pth", BODY, refusals=[500, 503])

    download_url_to_file(url, tmp_path / "model.pth")

    assert (tmp_path / "model.pth").read_bytes() == BODY
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410, 429])
def test_refusal_is_an_error_at_once(server: FileServer, tmp_path: Path, status: int) -> None:
    """A refusal is not asked for again, and its error has URL, status and when to come back."""
    url = server.put("/model.pth", BODY, refusals=[status] * 9, headers={"Retry-After": "3600"})

    with pytest.raises(FetchError, match=rf"HTTP {status} .*come back after 3600 s") as caught:
        download_url_to_file(url, tmp_path / "model.pth")

    assert (url, status) == (caught.value.url, caught.value.status)
    assert url in str(caught.value)
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_login_does_not_follow_a_redirect(server: FileServer, tmp_path: Path) -> None:
    """Where a redirect leads to another host or port, the login does not go along, nor into an error."""
    with file_server() as other:
        there = other.put("/cdn/model.pth", BODY)
        server.put("/model.pth", location=there)
        url = f"http://ada:secret@{server.netloc}/model.pth"

        download_url_to_file(url, tmp_path / "model.pth")
        del other.files["/cdn/model.pth"]
        with pytest.raises(FetchError) as caught:
            download_url_to_file(url, tmp_path / "other.pth")

        assert "Authorization" in server.requests[0][1]
        assert ["Authorization" in headers for _, headers in other.requests] == [False, False]
        assert there in str(caught.value)
        assert "secret" not in str(caught.value)
    assert (tmp_path / "model.pth").read_bytes() == BODY


def test_packed_file_stays_packed(server: FileServer, tmp_path: Path) -> None:
    """A file that is served as encoded is kept as it came over the line, as by torch.hub."""
    url = server.put("/model.pth.gz", BODY, headers={"Content-Encoding": "gzip"})

    download_url_to_file(url, tmp_path / "model.pth.gz")

    assert (tmp_path / "model.pth.gz").read_bytes() == BODY
    assert server.requests[0][1]["Accept-Encoding"] == "identity"


def test_no_server_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that does not answer ends in one error with the reason."""
    with file_server() as gone:
        url = gone.put("/model.pth")

    with pytest.raises(UnreachableError, match="Connection refused"):
        download_url_to_file(url, tmp_path / "model.pth")


def test_offline_asks_nobody(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ISOHUB_OFFLINE no request is made."""
    monkeypatch.setenv("ISOHUB_OFFLINE", "1")

    with pytest.raises(FetchError, match="ISOHUB_OFFLINE forbids"):
        download_url_to_file(server.put("/model.pth", BODY), tmp_path / "model.pth")

    assert server.requests == []


def test_file_url_is_copied(tmp_path: Path) -> None:
    """`file:` URLs work as in torch.hub, spaces and all, and a missing file is an error."""
    source = tmp_path / "the source.pth"
    source.write_bytes(BODY)

    download_url_to_file(source.as_uri(), tmp_path / "copy.pth", hash_prefix=SHA256)
    with pytest.raises(FetchError, match="No such file"):
        download_url_to_file((tmp_path / "none").as_uri(), tmp_path / "copy.pth")

    assert (tmp_path / "copy.pth").read_bytes() == BODY
    assert {"copy.pth", "the source.pth"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("url", ["ftp://h/model.pth", "model.pth", "", "http://", "http://a b/", "file://h/x"])
def test_other_urls_are_refused(tmp_path: Path, url: str) -> None:
    """What is no URL of a file is refused, with the URL in the error."""
    with pytest.raises(FetchError) as caught:
        download_url_to_file(url, tmp_path / "model.pth")

    assert url in str(caught.value)


def test_folder_is_no_place_for_a_file(server: FileServer, tmp_path: Path) -> None:
    """A folder is refused before anything is asked for."""
    with pytest.raises(IsADirectoryError):
        download_url_to_file(server.put("/model.pth", BODY), tmp_path)

    assert server.requests == []


BAR = """
import logging, sys
from isohub.hub import progress
from isohub.hub.download import download_url_to_file
progress.SHOWN_AFTER_S = float(sys.argv[3])
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
download_url_to_file(sys.argv[1], sys.argv[2], progress=sys.argv[4] == "True")
"""


@pytest.mark.parametrize(
    ("settings", "is_drawn", "is_logged"),
    [
        pytest.param(("0", "True", "terminal"), True, False, id="a long one on a terminal"),
        pytest.param(("60", "True", "terminal"), False, False, id="a short one"),
        pytest.param(("0", "False", "terminal"), False, True, id="not wanted"),
        pytest.param(("0", "True", "pipe"), False, True, id="no terminal"),
    ],
)
def test_bar_is_drawn_on_a_terminal(server: FileServer, tmp_path: Path, settings, is_drawn, is_logged) -> None:
    """What takes long is a bar where stderr is a terminal, and a line in the log elsewhere."""
    patience_s, progress, stderr = settings
    url = server.put("/long.pth", BODY)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", BAR, url, str(tmp_path / "model.pth"), patience_s, progress]

    with open(ours, "rb", buffering=0) as shown, open(theirs, "wb", buffering=0) as terminal:  # noqa: PTH123
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=terminal if stderr == "terminal" else subprocess.PIPE,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
            check=True,
            text=True,
        )
        terminal.write(b".")
        drawn = shown.read(1 << 16).decode()

    assert is_drawn == ("long.pth" in drawn)
    assert is_logged == ("long.pth: " in done.stdout)
    assert not done.stderr
