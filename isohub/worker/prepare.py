"""A worker's own environment, folder, path and threads, before the repository's code runs."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time

import torch

from isohub.wire.messages import Prepare
from isohub.worker import bytecode, limits
from isohub.worker.hubconf import Hubconf

__all__ = ["prepare"]


def prepare(message: Prepare) -> Hubconf:
    """Set this process up and return the repository's hubconf, which is not imported yet.

    Raises:
        Exception: Whatever the user's `setup` raises.
    """
    os.environ.clear()
    os.environ.update(message.environ)
    time.tzset()
    tempfile.tempdir = None  # computed from the environment once, and kept across the fork
    os.chdir(message.cwd)
    sys.argv[:] = message.argv
    # A working tree has no folder for it: neither stale bytecode (an edit of equal size within one second
    # looks unchanged) nor new files in the user's folder.
    bytecode.keep_apart(message.root, message.pycache)
    sys.path[:0] = message.sys_path
    torch.hub.set_dir(message.hub_dir)
    torch.set_num_threads(message.threads)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    limits.hold(message.memory_bytes, message.open_files, message.threads)
    if message.setup is not None:
        pickle.loads(message.setup)()
    return Hubconf(message.root)
