"""Every message there is. A message is one JSON object with its kind in the field `type`.

::

    parent                                   worker
      |  <------------------------- Hello  |     once, when the process is up
      |  Prepare ---------------------->   |     once: paths, environment, threads, setup
      |  <------------- Returned | Raised  |
      |  Request ---------------------->   |     then any number of exchanges, one at a time
      |  <------------------ NeedSegment   |       (any number of times in one exchange)
      |  Granted, descriptor --------->    |
      |  <--------------------- NeedFiles  |       (likewise)
      |  FilesAt | Refused ----------->    |
      |  <---------------------- Callback  |       (likewise; then any number of whole exchanges, and at last)
      |  Request resume | throw ------->   |
      |  <------------- Returned | Raised  |
      |  Share, descriptors | Unshare ->   |     between any of these, while the worker has nothing to say
      |  <------------- Returned | Raised  |

Descriptors go from parent to worker only. The parent makes every segment, so there is no descriptor
of a worker's that it would have to trust, and it never receives one.
"""

from __future__ import annotations

from typing import Literal

from isohub.wire.sharing import Share, Unshare
from isohub.wire.specs import Block, ModuleSpec, TensorSpec
from isohub.wire.structs import Struct
from isohub.wire.values import Value

__all__ = [
    "PROTOCOL_VERSION",
    "Callback",
    "Cause",
    "FilesAt",
    "Form",
    "FromParent",
    "FromWorker",
    "Granted",
    "Graph",
    "Hello",
    "NeedFiles",
    "NeedSegment",
    "Numbered",
    "Payload",
    "Prepare",
    "Raised",
    "Refused",
    "Request",
    "Returned",
    "Share",
    "TorchState",
    "TreeChange",
    "Unshare",
    "Verb",
]  # fmt: skip

PROTOCOL_VERSION = 2

Verb = Literal[
    "list", "help", "build",
    "call", "method", "getattr", "setattr", "delattr", "dir",
    "len", "iter", "next", "getitem", "setitem", "delitem", "contains", "enter", "exit",
    "bool", "eq", "hash", "str", "repr",
    "train", "apply", "describe", "state", "backward", "run", "resume", "throw", "release", "close",
]  # fmt: skip


class Numbered(Struct, array_like=True, frozen=True, gc=False):
    """A tensor that asks for gradients, or a parameter, with the number that the parent has given it.

    Attributes:
        tensor: Place in `Payload.tensors`.
        number: Its number, unique for one worker.
        kind: What it is in the parent: a parameter, another leaf, or something that was computed.
    """

    tensor: int
    number: int
    kind: Literal["parameter", "leaf", "computed"]


class Graph(Struct, array_like=True, frozen=True):
    """The autograd graph behind tensors of a payload, which stays in the worker.

    Attributes:
        handle: Number of the graph among the worker's objects.
        outputs: Places in `Payload.tensors` of those that it computed.
        leaves: What it leads back to: (0, number) of a tensor that the parent has sent, (handle, place) of a
            parameter or buffer in a module tree, counted as in `ModuleSpec`, or (-handle, position) of an output
            of an earlier graph of the same exchange.
        views: Places of tensors that are views of outputs, each with the place of its output.
    """

    handle: int
    outputs: list[int]
    leaves: list[tuple[int, int]]
    views: list[tuple[int, int]] = []


class Payload(Struct, array_like=True, frozen=True):
    """A value with the tensors and modules that it speaks of.

    Attributes:
        value: The value itself.
        blocks: Pieces of shared memory.
        tensors: Views of the blocks.
        modules: Trees that the receiver has not seen, or has seen in another state.
        numbered: From the parent: parameters, and tensors that ask for gradients. From the worker: parameters that the
            parent has sent and that are now part of a tree.
        graph: The graph behind those tensors that the worker computed; None if there is none.
        form: A `Form` as JSON in the place of `value` and `tensors`, or empty; a known text need not be read again.
    """

    value: Value = None
    blocks: list[Block] = []
    tensors: list[TensorSpec] = []
    modules: list[ModuleSpec] = []
    numbered: list[Numbered] = []
    graph: Graph | None = None
    form: str = ""


class Form(Struct, array_like=True, frozen=True, gc=False):
    """A value of plain tensors without the tensors.

    Attributes:
        value, tensors: As in `Payload`.
    """

    value: Value
    tensors: list[TensorSpec]


class TreeChange(Struct, array_like=True, frozen=True):
    """What the parent did to the tensors and hooks of a module tree since it last spoke to the worker.

    Attributes:
        handle: The tree.
        written: Places of tensors that were written to, counted as in `ModuleSpec`.
        asking: (place, whether it asks for gradients now) of tensors that were switched.
        hooked: Paths of the modules that have hooks in the parent; None if they are the same as before.
    """

    handle: int
    written: list[int]
    asking: list[tuple[int, bool]]
    hooked: list[str] | None = None


class TorchState(Struct, array_like=True, frozen=True):
    """The modes of torch in the calling thread, which the other side takes on for one exchange.

    Attributes:
        grad: `torch.is_grad_enabled()`.
        inference: `torch.is_inference_mode_enabled()`.
        default_dtype: Name of the default dtype.
        autocast: dtype name of CPU autocast; None when it is off.
        rng: The state of the default generator, when the other side does not have it; else None.
    """

    grad: bool = True
    inference: bool = False
    default_dtype: str = "float32"
    autocast: str | None = None
    rng: bytes | None = None


class Prepare(Struct, tag=True, frozen=True, kw_only=True):
    """What a worker needs to know before it touches the repository.

    Attributes:
        root: Absolute path of the folder with hubconf.py.
        label: The repository as people know it, for messages.
        sys_path: Entries that go in front of the interpreter's own, `root` first.
        cwd: Folder to work in.
        argv: `sys.argv`.
        environ: The whole environment.
        hub_dir: `torch.hub.get_dir()` in the worker.
        pycache: Prefix for bytecode; None to neither read nor write any.
        threads: Number of threads of torch.
        frozen: Whether large tensors of results go into segments that the parent seals against writing.
        setup: A function to run first, pickled by cloudpickle; None for none.
        memory_bytes: Memory that it may take for itself; None for no limit.
        open_files: Descriptors that it may have; None for no limit but the system's.
    """

    root: str
    label: str
    sys_path: list[str]
    cwd: str
    argv: list[str]
    environ: dict[str, str]
    hub_dir: str
    pycache: str | None
    threads: int
    setup: bytes | None
    frozen: bool = False
    memory_bytes: int | None = None
    open_files: int | None = None


class Request(Struct, tag=True, frozen=True, kw_only=True, omit_defaults=True):
    """One thing to do.

    Attributes:
        verb: What to do.
        handle: With which object; 0 where there is none.
        path: With which sub-module of it.
        name: Attribute, method or entrypoint.
        returns: For `build`: what is wanted back.
        metadata: For `build`: what to write into files that the code saves, texts by name.
        payload: A tuple `(args, kwargs)`; for a `build` of an artifact its `args` are those of the
            entrypoint, its keyword arguments, and the example inputs or None.
        state: Modes of torch to take on.
        changes: What was done to module trees since the last request.
        released: (handle, how often it was received): the parent holds them no more.
        freed: (segment, offset) of blocks of the worker's that the parent holds no more.
        segments: (number, nbytes) of new segments of the parent's arena; their descriptors come with
            this frame, in this order.
        common: Numbers of those that other workers have as well: mapped privately, and as before once given back.
    """

    verb: Verb
    handle: int = 0
    path: str = ""
    name: str = ""
    returns: Literal["module", "state_dict", "torchscript", "export"] = "module"
    metadata: dict[str, str] = {}
    payload: Payload = Payload()
    state: TorchState | None = None
    changes: list[TreeChange] = []
    released: list[tuple[int, int]] = []
    freed: list[tuple[int, int]] = []
    segments: list[tuple[int, int]] = []
    common: list[int] = []


class Granted(Struct, tag=True, frozen=True):
    """The segment that the worker asked for; its descriptor comes with this frame.

    Attributes:
        segment: Its number.
        nbytes: Its size in bytes; 0 when it was refused, and then no descriptor comes.
        reason: Why it was refused.
    """

    segment: int
    nbytes: int
    reason: str = ""


class FilesAt(Struct, tag=True, frozen=True):
    """What the worker asked for lies at `path` on this machine."""

    path: str


class Refused(Struct, tag=True, frozen=True):
    """What the worker asked for cannot be had.

    Attributes:
        kind: What the caller in the worker gets: a `urllib.error.URLError` as from torch.hub, or a builtin.
        message: Its text.
        number: Of the parent's own error, which its caller gets if the worker's request ends in this one.
    """

    kind: Literal["URLError", "RuntimeError", "ValueError"]
    message: str
    number: int


class Hello(Struct, tag=True, frozen=True, kw_only=True):
    """The worker process is up."""

    protocol: int
    pid: int
    python: str
    torch: str


class NeedSegment(Struct, tag=True, frozen=True):
    """The worker has no room for `nbytes` more bytes.

    Attributes:
        nbytes: How many it needs.
        use: Blocks of an `arena` come and go with calls; `weights` stay where they are until nothing in
            the worker lies there any more. One for `frozen` results is written to without mapping it, named in the
            next message that has them, and the parent's alone from then on.
    """

    nbytes: int
    use: Literal["arena", "weights", "frozen"]


class NeedFiles(Struct, tag=True, frozen=True, kw_only=True, omit_defaults=True):
    """The repository's code wants something from the network, which the parent fetches for all workers.

    Attributes:
        what: The file of a URL, or the checkout of another repository.
        name: The URL, or the repository as torch.hub writes it, `owner/name[:ref]`.
        hash_prefix: For weights: how the SHA-256 must begin; empty for anything.
        check_hash: For weights: whether it must begin with the hash in the name.
        file_name: For weights: the name that the code gives it; empty for the URL's.
        trust: For a checkout: what the code passed as `trust_repo`.
    """

    what: Literal["weights", "checkout"]
    name: str
    hash_prefix: str = ""
    check_hash: bool = False
    file_name: str = ""
    trust: bool | Literal["check"] = "check"


class Returned(Struct, tag=True, frozen=True, kw_only=True, omit_defaults=True):
    """The request was done.

    Attributes:
        payload: Its result.
        rng: State of the worker's default generator, if the request moved it.
        freed: (segment, offset) of blocks of the parent's that the worker holds no more.
        dropped: Segments of which the worker holds nothing more.
        took: Of a build: its parts, one after the other up to the answer, and the seconds that each took.
    """

    payload: Payload = Payload()
    rng: bytes | None = None
    freed: list[tuple[int, int]] = []
    dropped: list[int] = []
    took: list[tuple[Literal["hubconf", "entrypoint", "export"], float]] = []


class Callback(Struct, tag=True, frozen=True, kw_only=True, omit_defaults=True):
    """The repository's code calls a module that has hooks in the parent, which is to make the call.

    It answers by a request: `resume` with the result, or `throw` with the number of what was raised.

    Attributes:
        handle: The tree.
        path: Which module of it.
        payload: A tuple `(args, kwargs)`.
        state: Modes of torch to take on.
        freed, dropped: As in `Returned`.
    """

    handle: int
    path: str = ""
    payload: Payload = Payload()
    state: TorchState = TorchState()
    freed: list[tuple[int, int]] = []
    dropped: list[int] = []


class Cause(Struct, array_like=True, frozen=True):
    """An exception without its traceback.

    Attributes:
        type_name: Qualified name of its class.
        builtin: Name of the nearest builtin class; the class itself if `exact`.
        exact: Whether its class is that builtin.
        message: Its text.
        args: Its arguments, where all of them are plain.
        ours: Name of the class in `isohub.errors`, if it is one of ours; else empty.
        thrown: Number of what the parent raised in a callback, if it is that; else 0.
    """

    type_name: str
    builtin: str
    exact: bool
    message: str
    args: list[None | bool | int | float | str] | None = None
    ours: str = ""
    thrown: int = 0


class Raised(Struct, tag=True, frozen=True, kw_only=True, omit_defaults=True):
    """The request ended in an exception.

    Attributes:
        error: The exception.
        traceback: Its traceback as text, with the whole chain of causes.
        notes: Notes for the user that the worker adds.
        refusal: The number of the refusal that it is, if it is one; else 0.
        rng, freed, dropped: As in `Returned`.
    """

    error: Cause
    traceback: str
    notes: list[str] = []
    refusal: int = 0
    rng: bytes | None = None
    freed: list[tuple[int, int]] = []
    dropped: list[int] = []


FromParent = Prepare | Request | Granted | FilesAt | Refused | Share | Unshare
FromWorker = Hello | NeedSegment | NeedFiles | Callback | Returned | Raised
