"""A headless Chromium, spoken to by its DevTools protocol over two pipes: no port is opened."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["HOW_TO_GET", "Browser", "Page", "browser", "find_browser"]

HOW_TO_GET = "`make tests` gets it where apt-get can, by tools/get_browser.sh; or install it"

_BROUGHT = Path(sys.prefix) / "browser"
_DEADLINE_S = 60.0


@dataclass
class Page:
    """A page that was opened.

    Attributes:
        console: What the browser complained of: messages of the console, errors of scripts, entries of its log.
        requests: URLs that were asked for, the page's own among them.
        screenshot: A picture of all of it, PNG.
        evaluated: What the expression came to.
    """

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    screenshot: bytes = b""
    evaluated: Any = None


def find_browser() -> tuple[list[str], dict[str, str]] | None:
    """Return how to start a Chromium of the system's, or the one that `tools/get_browser.sh` brought; and variables."""
    for name in ("chromium-headless-shell", "chromium", "google-chrome"):
        found = shutil.which(name)
        if found:
            return [found, *(["--headless"] if "headless" not in name else [])], {}
    program = _BROUGHT / "usr/lib/chromium/chromium-headless-shell"
    if not program.is_file():
        return None
    libraries = ":".join(
        map(str, [*_BROUGHT.glob("usr/lib/*-linux-gnu"), *_BROUGHT.glob("usr/lib/*-linux-gnu/pulseaudio")])
    )
    return [str(program)], {"LD_LIBRARY_PATH": libraries}


class Browser:
    """A running browser.

    Args:
        process: Its process.
        read: Where it answers.
        write: Where it is told.
    """

    def __init__(self, process: subprocess.Popen[bytes], read: int, write: int) -> None:
        self._process = process
        self._read, self._write = read, write
        self._buffer = b""
        self._count = 0
        self._events: list[dict[str, Any]] = []

    def open(self, url: str, *, width: int, height: int, scheme: str = "light", expression: str = "null") -> Page:
        """Open a page in a window of this size, wait until it is loaded, and look at it."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable", session)
        is_phone = width < 600
        self._call(
            "Emulation.setDeviceMetricsOverride",
            session,
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=is_phone,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", session, features=features)
        self._events.clear()
        self._call("Page.navigate", session, url=url)
        self._wait("Page.loadEventFired")
        page = Page()
        answer = self._call("Runtime.evaluate", session, expression=expression, returnByValue=True, awaitPromise=True)
        page.evaluated = answer["result"].get("value")
        shot = self._call("Page.captureScreenshot", session, format="png", captureBeyondViewport=True)
        page.screenshot = base64.b64decode(shot["data"])
        for event in self._events:
            name, params = event["method"], event["params"]
            if name == "Network.requestWillBeSent":
                page.requests.append(params["request"]["url"])
            elif name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                page.console.append(json.dumps(params))
        self._call("Target.closeTarget", targetId=target)
        return page

    def _call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]
            self._events.append(answer)

    def _wait(self, method: str) -> None:
        while not any(event.get("method") == method for event in self._events):
            self._events.append(self._next())

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + _DEADLINE_S
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise AssertionError("the browser says nothing")
            read = os.read(self._read, 1 << 16)
            if not read:
                raise AssertionError(f"the browser has ended with {self._process.wait()}")
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)


@contextlib.contextmanager
def browser(command: list[str], variables: dict[str, str], folder: Path) -> Iterator[Browser]:
    """Run a browser in the body, with a profile of its own in `folder`."""
    to_browser, from_browser = os.pipe(), os.pipe()
    # It reads what it is told from descriptor 3, and answers on 4; a shell puts them there.
    lead = f'exec 3<&{to_browser[0]} 4>&{from_browser[1]} && exec "$@"'
    options = [
        "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder}",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["/bin/bash", "-c", lead, "browser", *command, *options],
            env={**os.environ, **variables, "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(to_browser[0], from_browser[1]),
            start_new_session=True,
        )
    os.close(to_browser[0])
    os.close(from_browser[1])
    try:
        yield Browser(process, from_browser[0], to_browser[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(from_browser[0])
        os.close(to_browser[1])
