"""A repository whose entrypoints make large tensors in many ways, and look at what becomes of them."""

from __future__ import annotations

__all__ = ["REPO"]

REPO = """
    import copy
    import io
    import os
    import threading
    import warnings
    import torch
    from torch import nn

    SIZE = (512, 600)
    MAKERS = {
        "empty": lambda: torch.empty(SIZE).zero_(),
        "zeros": lambda: torch.zeros(*SIZE, dtype=torch.int64),
        "ones": lambda: torch.ones(SIZE, dtype=torch.bfloat16),
        "ones_bool": lambda: torch.ones(1024, 1024, dtype=torch.bool),
        "full": lambda: torch.full(SIZE, 7),
        "full_float": lambda: torch.full(size=SIZE, fill_value=1.5),
        "rand": lambda: torch.rand(*SIZE),
        "rand_half": lambda: torch.rand(SIZE, dtype=torch.float16),
        "randn": lambda: torch.randn(SIZE, dtype=torch.float64, requires_grad=True),
        "randn_odd": lambda: torch.randn(3, 100003),
        "randn_complex": lambda: torch.randn(SIZE, dtype=torch.complex64),
        "rand_own": lambda: torch.rand(torch.Size(SIZE), generator=torch.Generator().manual_seed(5)),
        "linear": lambda: nn.Linear(600, 512).weight,
        "embedding": lambda: nn.Embedding(512, 600, padding_idx=3).weight,
        "clone": lambda: torch.randn(SIZE).clone(),
        "deepcopy": lambda: copy.deepcopy(nn.Linear(600, 512)).weight,
        "half": lambda: nn.Linear(600, 512).half().weight,
        "to": lambda: nn.Linear(600, 512).to(torch.float64).weight,
        "loaded": lambda: loaded().weight,
        "after_a_mistake": lambda: after_a_mistake(),
    }
    OTHERS = {
        "small": lambda: torch.rand(9),
        "arange": lambda: torch.arange(1 << 18).to(torch.int64),
        "meta": lambda: torch.empty(SIZE, device="meta"),
        "channels_last": lambda: torch.empty(2, 8, 128, 128, memory_format=torch.channels_last).zero_(),
        "strided": lambda: torch.randn(SIZE).t().clone(),
        "cloned_with_graph": lambda: torch.ones(SIZE, requires_grad=True).clone(),
        "copied_with_graph": lambda: torch.zeros(SIZE).copy_(torch.ones(SIZE, requires_grad=True)),
        "copied_from_int": lambda: torch.zeros(SIZE).copy_(torch.full(SIZE, 3)),
        "copied_to_part": lambda: part(),
        "copied_in_memory": lambda: moved_on(),
        "inference": lambda: within(torch.inference_mode(), lambda: torch.zeros(SIZE)),
        "on_meta": lambda: within(torch.device("meta"), lambda: nn.Linear(600, 512).weight),
        "deterministic": lambda: deterministic(),
        "resized": lambda: torch.ones(SIZE).resize_(600, 600)[:512],
        "shrunk": lambda: torch.ones(SIZE).resize_(3, 3),
        "resized_tied": lambda: resized_tied(),
        "out": lambda: torch.cat([torch.ones(SIZE), torch.zeros(SIZE)], out=torch.zeros(1024, 600)),
        "traced": lambda: torch.jit.trace(lambda x: x + torch.ones(512, 600), torch.ones(1))(torch.ones(1)),
        "scripted": lambda: torch.jit.script(scripted)(torch.ones(1)),
        "compiled": lambda: torch.compile(scripted, backend="eager", fullgraph=True)(torch.ones(1)),
        "mapped": lambda: torch.vmap(lambda x: x + torch.zeros(300000))(torch.ones(2, 1)),
        "in_a_thread": lambda: in_a_thread(lambda: torch.full(SIZE, 2.0)),
        "half_channels_last": lambda: channels_last().half().weight,
        "copy_channels_last": lambda: copy.deepcopy(channels_last()).weight,
        "nested": lambda: nested().clone().to(torch.float64).to_padded_tensor(0.0),
    }

    def channels_last():
        return nn.Conv2d(512, 600, 1).to(memory_format=torch.channels_last)

    def nested():
        torch.ones(SIZE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.nested.nested_tensor([torch.ones(300, 512), torch.ones(200, 512)])

    def after_a_mistake():
        for size in ((1 << 31, 1 << 29), (1 << 62, 1 << 62), (1 << 20, 1 << 30)):
            try:
                torch.empty(size)
            except RuntimeError:
                pass
        return nn.Linear(600, 512).weight

    def scripted(x):
        return x + torch.ones(512, 600)

    def within(mode, make):
        with mode:
            return make()

    def part():
        whole = torch.zeros(1024, 600)
        with torch.no_grad():
            whole[512:].copy_(torch.full(SIZE, 2.5))
        return whole

    def moved_on():
        whole = torch.rand(1024, 600)
        whole[:1000].copy_(whole[:1000])
        return whole

    def resized_tied():
        whole = torch.ones(SIZE)
        part = whole[:2]
        whole.resize_as_(torch.ones(600, 600)).fill_(3.0)
        return part

    def deterministic():
        torch.use_deterministic_algorithms(True)
        try:
            return torch.empty(SIZE)
        finally:
            torch.use_deterministic_algorithms(False)

    def in_a_thread(make):
        found = []
        thread = threading.Thread(target=lambda: found.append(make()))
        thread.start()
        thread.join()
        return found[0]

    def loaded():
        linear = nn.Linear(600, 512)
        linear.load_state_dict({name: tensor + 1 for name, tensor in nn.Linear(600, 512).state_dict().items()})
        return linear

    def told(tensor):
        saved = io.BytesIO()
        if not tensor.is_meta:
            torch.save(tensor, saved)
        return [
            type(tensor).__name__, str(tensor.dtype), str(tensor.device), list(tensor.shape), tensor.stride(),
            tensor.requires_grad, tensor.is_leaf, tensor._is_view(), tensor.is_inference(), tensor.is_contiguous(),
            None if tensor.is_inference() else tensor._version, tensor.untyped_storage().nbytes(), tensor.is_shared(),
            len(saved.getvalue()) >> 10,
        ]

    class Holder(nn.Module):
        def __init__(self, name):
            super().__init__()
            tensor = (MAKERS | OTHERS)[name]()
            self.told = told(tensor)
            self.register_buffer("tensor", tensor)
            self.begun_at = 0 if tensor.is_meta else tensor.data_ptr()

        def stayed(self):
            return self.tensor.data_ptr() == self.begun_at

    def holder(name):
        return Holder(name)

    def values(name):
        tensor = (MAKERS | OTHERS)[name]()
        return told(tensor), None if tensor.is_meta else tensor.detach().clone()

    def shared_bytes():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssShmem"))

    def temporaries(count, least, step):
        begun, most = shared_bytes(), 0
        for number in range(count):
            torch.full((least + number * step, 1 << 18), 1.0)
            most = max(most, shared_bytes() - begun)
        return nn.Linear(3, 3), most, shared_bytes() - begun

    def dropped(mib):
        begun = shared_bytes()
        tensor = torch.full((mib, 1 << 18), 1.0)
        made = shared_bytes() - begun
        del tensor
        return made, shared_bytes() - begun

    def two(mib):
        begun = shared_bytes()
        first = torch.full((mib, 1 << 18), 1.0)
        one = shared_bytes() - begun
        second = torch.full((mib, 1 << 18), 2.0)
        return one, shared_bytes() - begun, float(first.sum() + second.sum())

    def forked():
        tensor = torch.full((1 << 20,), 1.0)
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            seen = float(tensor.sum())
            tensor.fill_(5.0)
            own = torch.full((1 << 20,), 6.0)
            os.write(writing, f"{seen} {float(tensor.sum())} {float(own.sum())}".encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writing)
        return nn.ParameterList([tensor]), os.read(reading, 100).decode()

    def forked_and_dropped():
        tensor = torch.full((1 << 20,), 1.0)
        (reading, writing), (waiting, going) = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:
            os.read(waiting, 1)
            os.write(writing, str(float(tensor.sum())).encode())
            os._exit(0)
        del tensor
        torch.full((1 << 20,), 2.0)
        os.write(going, b"x")
        os.waitpid(pid, 0)
        return os.read(reading, 100).decode()

    def plenty(count):
        return nn.ParameterList([torch.full((1 << 16,), float(number)) for number in range(count)])

    class Seen(nn.Module):
        def forward(self, x):
            return x, torch.overrides.has_torch_function((x,))

    def mode_in_a_call():
        before = torch.overrides.has_torch_function((torch.ones(1),))
        return before, Seen()(torch.ones(1))[1], torch.overrides.has_torch_function((torch.ones(1),))

    class After(nn.Module):
        def modes(self):
            hooks = nn.modules.module._global_forward_pre_hooks
            return len(hooks), torch.overrides.has_torch_function((torch.ones(1),))

    def after(fail=False):
        module = After()
        if fail:
            raise ValueError("no model today")
        return module

    def left_on():
        torch.set_default_device("cpu")
        return After()

    def attention():
        torch.manual_seed(1)
        layer = nn.TransformerEncoderLayer(512, 8, dim_feedforward=1024, batch_first=True).eval()
        with torch.no_grad():
            return layer(torch.rand(2, 5, 512))

    class Pass(nn.Module):
        def forward(self, x):
            return x.sum()

    passing = Pass()

    def known():
        return passing

    def uses_known():
        tensor = torch.full((1 << 20,), 3.0)
        total = passing(tensor)
        del tensor
        return total, torch.full((1 << 20,), 4.0)

    def halved():
        return nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(8)]).half()
"""
