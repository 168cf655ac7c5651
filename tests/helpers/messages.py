"""One message of each kind, with every field and every kind of value in it. It needs no msgspec."""

from __future__ import annotations

from isohub.wire.messages import (
    PROTOCOL_VERSION,
    Callback,
    Cause,
    FilesAt,
    FromParent,
    FromWorker,
    Granted,
    Graph,
    Hello,
    NeedFiles,
    NeedSegment,
    Numbered,
    Payload,
    Prepare,
    Raised,
    Refused,
    Request,
    Returned,
    Share,
    TorchState,
    TreeChange,
    Unshare,
)
from isohub.wire.specs import META, NOWHERE, Block, ModuleNode, ModuleSpec, TensorSpec
from isohub.wire.values import Items, Pairs, Record, Ref, Scalar, TensorAt

__all__ = ["FROM_PARENT", "FROM_WORKER"]

_VALUE = Items(
    "tuple",
    [
        None,
        True,
        False,
        -(2**63),
        2**63 - 1,
        0.1,
        -0.0,
        1e-5,
        -1.25e-05,
        1e16,
        5e-324,
        "",
        'a "quoted" \\ text\n\x00\x1f\x7f',
        "é € 😀 \u2028",
        Pairs("odict", ["key", 2], [Items("set", []), Items("slice", [None, 3, None])]),
        Record("mapping", "repo.Output", ["logits", "loss"], [TensorAt(0, "tensor"), None]),
        Scalar("int", "0x10000000000000000"),
        Scalar("bytes", "AAE="),
        TensorAt(1, "array", "<f4:2,3"),
        TensorAt(2, "parameter"),
        Ref("object", 7, "", "", "repo.Tokenizer", ["call", "len"]),
        Ref("method", 7, "encoder.0", "encode"),
        Ref("module", 8),
        Ref("parameter", 8, "head", "weight"),
    ],
)
_PAYLOAD = Payload(
    _VALUE,
    [Block(1, 0, 24), Block(2, 64, 256)],
    [
        TensorSpec(0, "float32", [2, 3], [3, 1], 0, True),
        TensorSpec(1, "uint8", [24], [1], 8),
        TensorSpec(META, "bfloat16", [4], [1], 0),
        TensorSpec(NOWHERE, "int64", [0, 5], [5, 1], 0),
    ],
    [
        ModuleSpec(
            8,
            [
                ModuleNode(
                    3, "repo.Net", True, "", False, [("weight", 0), ("bias", -1)], [("mean", 1, False)],
                    [("head", 1), ("none", -1)], ["call"], 2, "torch.nn.modules.module.Module", ["load", "save"],
                ),
                ModuleNode(4, "repo.Head", False, "text of its own", True, [], [], [], ["call", "len", "getitem"]),
            ],
            True,
        )
    ],
    [Numbered(0, 11, "parameter"), Numbered(1, 12, "leaf"), Numbered(2, 13, "computed")],
    Graph(9, [0], [(0, 11), (8, 1)], [(1, 0)]),
)  # fmt: skip

FROM_PARENT: dict[str, FromParent] = {
    "prepare": Prepare(
        root="/srv/répo", label="owner/name:v1@1a2b3c4", sys_path=["/srv/répo"], cwd="/tmp/work",
        argv=["/srv/répo/hubconf.py"], environ={"PATH": "/usr/bin", "HOME": "/home/é"}, hub_dir="/srv/hub",
        pycache=None, threads=2, setup=b"\x80\x05N.", frozen=True, memory_bytes=1 << 32, open_files=64,
    ),
    "request": Request(
        verb="build", handle=3, path="encoder.0", name="resnet18", returns="state_dict",
        metadata={"repo": "owner/name", "commit": "1a2b3c4"}, payload=_PAYLOAD,
        state=TorchState(False, True, "float64", "bfloat16", b"\x00\x01\xff"),
        changes=[TreeChange(8, [0, 2], [(1, False)], ["", "head"]), TreeChange(9, [], [])], released=[(7, 2), (9, 1)],
        freed=[(1, 0)], segments=[(4, 1 << 24), (5, 1 << 24)], common=[5],
    ),
    "request_plain": Request(verb="release"),
    "request_form": Request(
        verb="call", handle=3, payload=Payload(blocks=[Block(4, 0, 24)], form='[["T",0,"tensor",""],[]]'),
    ),
    "granted": Granted(4, 1 << 24),
    "refused": Granted(0, 0, "no memory"),
    "share": Share(2, 1 << 24, [(0, 1 << 20, 4096, 8256, 8192), (1 << 20, 65536, 1 << 21, 8257, 8192)]),
    "unshare": Unshare([(2, 0, "fill"), (2, 1 << 20, "merge"), (3, 4096, "swap")]),
    "files_at": FilesAt("/srv/hub/weights/é.pth"),
    "files_refused": Refused("URLError", "Cannot reach https://example.org/é.pth", 3),
}  # fmt: skip

FROM_WORKER: dict[str, FromWorker] = {
    "hello": Hello(protocol=PROTOCOL_VERSION, pid=812, python="3.11.7", torch="2.13.0+cpu"),
    "need_segment": NeedSegment(1 << 20, "weights"),
    "need_frozen": NeedSegment(1 << 20, "frozen"),
    "callback": Callback(
        handle=8, path="head", payload=_PAYLOAD, state=TorchState(False, False, "float64", None, b"\x01"),
        freed=[(1, 64)], dropped=[2],
    ),
    "callback_plain": Callback(handle=8),
    "need_weights": NeedFiles(
        what="weights", name="https://example.org/é.pth", hash_prefix="0123abcd", check_hash=True, file_name="net.pth"
    ),
    "need_checkout": NeedFiles(what="checkout", name="owner/name:v1", trust=True),
    "returned": Returned(
        payload=_PAYLOAD, rng=b"\x00\x01\xff", freed=[(1, 0), (1, 64)], dropped=[2],
        took=[("hubconf", 0.25), ("entrypoint", 1.5), ("export", 1e-05)],
    ),
    "returned_plain": Returned(),
    "returned_form": Returned(payload=Payload(blocks=[Block(1, 0, 24)], form='["\u20ac \\"",[]]')),
    "returned_none": Returned(payload=Payload()),  # equal to the default, and not the default itself
    "raised": Raised(
        error=Cause(
            "repo.ModelError", "ValueError", False, "no such size", ["no such size", 3, 0.5, None, True], "", 7
        ),
        traceback='Traceback (most recent call last):\n  File "hubconf.py", line 3, in net\n',
        notes=["a note"], rng=b"\x02", freed=[(1, 128)], dropped=[3],
    ),
    "raised_refusal": Raised(error=Cause("ValueError", "ValueError", True, "Refused"), traceback="", refusal=3),
    "raised_plain": Raised(error=Cause("ValueError", "ValueError", True, "bad"), traceback=""),
}  # fmt: skip
