import atexit
import threading

import torch
from crash import crash_at

crash_at("import")
atexit.register(crash_at, "atexit")


class Passing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        crash_at("backward")
        return grad


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.inner = torch.nn.Identity()
        self.inner.register_forward_hook(lambda *_: crash_at("inner_hook"))

    def forward(self, x):
        crash_at("forward")
        return Passing.apply(self.inner(x) * self.weight)

    def extra_repr(self):
        crash_at("export")
        return "3"

    @property
    def status(self):
        crash_at("attribute")
        return "well"

    def begin(self, gate):
        """Start a thread that crashes when `gate` was opened and closed, and opens it when it gets over that."""

        def work():
            with open(gate) as opened:
                opened.read()
            try:
                crash_at("thread")
            finally:
                with open(gate, "w"):
                    pass

        threading.Thread(target=work, daemon=True).start()


def net():
    crash_at("entrypoint")
    return Net()
