"""What the forkserver imports before it forks the first worker.

Everything that a worker needs is imported here once, in one thread. The forkserver must never run a
parallel region: OpenMP's threads do not survive a fork, and its children would hang in their first one.
"""

from __future__ import annotations

import contextlib
import gc
import weakref

import torch

import isohub.worker.__main__  # noqa: F401 - so that a fork finds it ready
from isohub.worker import bytecode, weights
from isohub.worker.title import FORKSERVER, command_line, name_process

# torch imports it, and SymPy with it, in the first backward pass that is given a gradient: 1 to 2 s and 45 MB of
# private memory in each worker whose caller does not switch gradients off. Other versions of torch may not.
with contextlib.suppress(ImportError):
    import torch.fx.experimental.symbolic_shapes

# What each worker would look up for itself and find the same.
command_line()
bytecode.installed()
weights.keep_for_later()  # a fork has it from here
torch.set_num_threads(1)
name_process(FORKSERVER)
# What torch would take down at the end of a program, operator by operator: a worker just ends. It would cost each 40 ms
# and 25 MB of pages of its own. Finalizers that the repository makes run as ever.
for finalizer in list(getattr(weakref.finalize, "_registry", ())):
    finalizer.atexit = False
# What is alive now stays alive: out of the collector's sight, its pages stay shared with the children.
gc.collect()
gc.freeze()
gc.enable()
