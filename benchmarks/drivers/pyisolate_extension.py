"""pyisolate: an extension in a process of its own, with torch shared and without its sandbox.

Its environment is made here, because pyisolate would fetch packages for it that this does not need.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
import sysconfig
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path

import pyisolate
import torch
import work
from pyisolate.config import SandboxMode


class Calls(pyisolate.ExtensionBase):
    """Made in the extension's process, which finds it by its name."""

    async def on_module_loaded(self, module: object) -> None:
        pass

    async def call(self, name: str, x: torch.Tensor):
        return work.FUNCTIONS[name](x)

    async def set_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)


class Worker:
    def __init__(self, loop: asyncio.AbstractEventLoop, extension) -> None:
        self._loop, self._extension = loop, extension
        self._run(extension.set_threads(torch.get_num_threads()))

    def call(self, name: str, x: torch.Tensor):
        return self._run(self._extension.call(name, x))

    def close(self) -> None:
        self._extension._extension.stop()

    def _run(self, awaitable):
        return self._loop.run_until_complete(awaitable)


class Driver:
    version = version("pyisolate")

    def __init__(self) -> None:
        logging.disable(logging.WARNING)
        # It looks for the uv program, which came with it.
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._folder = tempfile.TemporaryDirectory()
        root = Path(self._folder.name)
        (root / "extension").mkdir()
        (root / "extension" / "__init__.py").write_text("")
        self._root = root
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)

        self._manager = pyisolate.ExtensionManager(
            Calls, pyisolate.ExtensionManagerConfig(venv_root_path=str(root / "venvs"))
        )
        self._ready: list[str] = []
        for _ in range(2):
            self._prepare()

    def _prepare(self) -> None:
        name = f"extension{next(self._numbers)}"
        folder = self._root / "venvs" / name
        venv.create(folder, symlinks=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
        (site / "_pyisolate_parent.pth").write_text(
            f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        )
        self._ready.append(name)

    def worker(self) -> Worker:
        if not self._ready:
            self._prepare()
        config = pyisolate.ExtensionConfig(
            name=self._ready.pop(),
            module_path=str(self._root / "extension"),
            isolated=True,
            dependencies=[],
            apis=[],
            share_torch=True,
            share_cuda_ipc=False,
            sandbox_mode=SandboxMode.DISABLED,
        )
        return Worker(self._loop, self._manager.load_extension(config))

    def close(self) -> None:
        self._folder.cleanup()
