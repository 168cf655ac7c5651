"""A repository whose worker takes the channel over and says what no honest one says."""

from __future__ import annotations

__all__ = ["REPO"]

# `Net.lie(name)` calls the function of that name with the worker's own line to its parent, in place of an answer.
REPO = r"""
    import gc
    import os
    import socket
    import struct
    import threading

    import torch

    from isohub.shm.segment import Segment
    from isohub.wire import codec
    from isohub.wire.framing import pack_header
    from isohub.wire.messages import *
    from isohub.wire.specs import META, NOWHERE, Block, ModuleNode, ModuleSpec, TensorSpec
    from isohub.wire.values import Items, Pairs, Record, Ref, Scalar, TensorAt

    BYTES = TensorSpec(0, "uint8", [64], [1], 0)


    class Wire:
        def __init__(self):
            named = {type(found).__name__: found for found in gc.get_objects()
                     if type(found).__name__ in ("Channel", "_Line", "Border")}
            self.channel, self.line, self.border = named["Channel"], named["_Line"], named["Border"]

        def frame(self, data):
            self.raw(pack_header(len(data), 0) + data)

        def raw(self, data):
            self.channel._sock.sendall(data)

        def say(self, message):
            self.frame(codec.encode(message))

        def value(self, value, tensors=(), blocks=(), modules=(), **fields):
            self.say(Returned(payload=Payload(value, list(blocks), list(tensors), list(modules)), **fields))

        def tensor(self, spec, nbytes=256, offset=0):
            number = self.memory()
            self.value(TensorAt(0, "tensor"), [spec], [Block(number, offset, nbytes)])

        def memory(self, nbytes=1 << 20, use="arena"):
            granted, fd = self.line.need_segment(nbytes, use)
            self.fd = fd
            return granted.segment

        def words(self, text):
            self.frame(b'{"type":"Returned","payload":[' + text.encode() + b"]}")

        def receive(self):
            return self.channel.receive()


    def nested(depth):
        value = None
        for _ in range(depth):
            value = Items("list", [value])
        return value


    def node(number=1, **fields):
        return ModuleNode(number, "x.Y", True, "", False, fields.get("parameters", []), fields.get("buffers", []),
                          fields.get("children", []), [])


    def generator(left, place):
        state = bytearray(bytes(torch.get_rng_state().numpy()))
        struct.pack_into("=i4xQ", state, 8, left, place)
        return bytes(state)


    def wide(kind, count=1000):
        def send(wire):
            number = wire.memory(64 << 20)
            spec = TensorSpec(0, "uint8", [64 << 20], [1], 0)
            wire.value(Items("list", [TensorAt(0, kind)] * count), [spec], [Block(number, 0, 64 << 20)])
        return send


    def array(detail):
        def send(wire):
            number = wire.memory()
            wire.value(TensorAt(0, "array", detail), [BYTES], [Block(number, 0, 64)])
        return send


    def of(**fields):
        spec = {"block": 0, "dtype": "float32", "shape": [2], "stride": [1], "offset": 0, **fields}
        return lambda wire: wire.tensor(TensorSpec(**spec))


    def block(*numbers):
        def send(wire):
            segment = wire.memory()
            wire.value(TensorAt(0, "tensor"), [BYTES], [Block(segment, *numbers)])
        return send


    def form(text, *blocks):
        def send(wire):
            segment = wire.memory()
            wire.say(Returned(payload=Payload(blocks=[Block(segment, *one) for one in blocks], form=text)))
        return send


    FORM = codec.encode_form(Form(TensorAt(0, "tensor"), [BYTES]))


    def known(*blocks):
        # It follows an honest answer of the same form, which the parent has a plan of then.
        def send(wire):
            segment = wire.memory()
            wire.say(Returned(payload=Payload(blocks=[Block(segment, 0, 64)], form=FORM)))
            wire.receive()
            wire.say(Returned(payload=Payload(blocks=[Block(*((one[0] or segment), *one[1:])) for one in blocks],
                                              form=FORM)))
        return send


    def at(*blocks):
        return lambda wire: wire.value(TensorAt(0, "tensor"), [BYTES], [Block(*one) for one in blocks])


    def value(value, **fields):
        return lambda wire: wire.value(value, **fields)


    def words(text):
        return lambda wire: wire.words(text)


    def say(*messages):
        return lambda wire: [wire.say(message) for message in messages]


    def one_frame(*messages):
        def send(wire):
            told = [codec.encode(message) for message in messages]
            wire.raw(b"".join(pack_header(len(data), 0) + data for data in told))
        return send


    def raw(data):
        return lambda wire: wire.raw(data)


    def frame(data):
        return lambda wire: wire.frame(data)


    def numbers_alike(wrap):
        # The hash of a whole number is its rest by this prime.
        return lambda wire: wire.value(wrap([Scalar("int", hex(index * (2**61 - 1))) for index in range(1, 100_000)]))


    def keep_asking(message):
        def send(wire):
            while True:
                wire.say(message)
                wire.receive()
        return send


    def free_twice(wire):
        wire.line.need_segment(1 << 20, "arena")
        wire.value(None, freed=[(1, 0), (1, 0)])


    def drop_twice(wire):
        number = wire.memory(use="weights")
        wire.value(None, dropped=[number, number])


    def drop_arena(wire):
        wire.value(None, dropped=[wire.memory()])


    def memory_of_nothing(wire):
        # Sparse: it says that 512 MiB are there and never wrote a byte.
        number = wire.memory(512 << 20)
        wire.value(TensorAt(0, "tensor"), [TensorSpec(0, "uint8", [(512 << 20) + 1], [1], 0)],
                   [Block(number, 0, 512 << 20)])


    def drip(wire):
        data = codec.encode(Returned())
        for byte in pack_header(len(data), 0) + data:
            wire.raw(bytes([byte]))
            threading.Event().wait(0.2)


    def drip_questions(wire):
        while True:
            wire.line.need_segment(4096, "arena")
            threading.Event().wait(0.2)


    LIES = {
        # tensors
        "block behind the end": block(0, (1 << 20) + 64),
        "block at a negative offset": block(-64, 64),
        "block of negative size": block(0, -64),
        "unaligned block": block(8, 64),
        "block beyond 64 bits": block(2**63, 64),
        "block of a segment that is none": at((4711, 0, 64)),
        "block of segment 0": at((0, 0, 64)),
        "block of a negative segment": at((-1, 0, 64)),
        "block of the parent's own arena": lambda wire: at((min(wire.border._inbox), 0, 64))(wire),
        "negative size": of(shape=[-2]),
        "negative stride": of(stride=[-1]),
        "negative offset": of(offset=-4),
        "unaligned offset": of(offset=2),
        "sizes beyond 64 bits": of(shape=[2**40, 2**40], stride=[0, 0]),
        "strides beyond 64 bits": of(shape=[2, 2], stride=[2**62, 2**62]),
        "end behind the block": of(shape=[65]),
        "end by its stride behind the block": of(stride=[64]),
        "stride 0 to 2**40 elements": of(shape=[2**40], stride=[0]),
        "65 dimensions": of(shape=[1] * 65, stride=[1] * 65),
        "fewer strides than sizes": of(shape=[2, 2]),
        "unknown dtype": of(dtype="float128"),
        "dtype that is a path": of(dtype="os.system"),
        "dtype with an escape": of(dtype="\x1b[2Jfloat32"),
        "block of the payload that is none": of(block=7),
        "negative block of the payload": of(block=-3),
        "nowhere with elements": of(block=NOWHERE),
        "more than there is of a sparse segment": memory_of_nothing,
        "tensor that is none": value(TensorAt(5, "tensor")),
        "tensor -1": value(TensorAt(-1, "tensor")),
        "true for a size": words('["T",0,"tensor",""],[],[[-1,"float32",[true],[1],0,false]]'),
        "2.5 for a size": words('["T",0,"tensor",""],[],[[-1,"float32",[2.5],[1],0,false]]'),
        "text for a size": words('["T",0,"tensor",""],[],[[-1,"float32",["2"],[1],0,false]]'),
        "null for a size": words('["T",0,"tensor",""],[],[[-1,"float32",[null],[1],0,false]]'),
        "1e400 for an offset": words('["T",0,"tensor",""],[],[[-1,"float32",[1],[1],1e400,false]]'),
        "spec with a field too many": words('["T",0,"tensor",""],[],[[-1,"float32",[1]]]'),
        "gradients of whole numbers": lambda wire: wire.tensor(TensorSpec(0, "int64", [2], [1], 0, True)),
        "the same bytes a thousand times": wide("bytes"),
        "the same bytearray a thousand times": wide("bytearray"),
        # forms
        "form that is none": form("[null,"),
        "form of another kind": form('["T",0]'),
        "form with a field of the wrong type": form('[["T",0,"tensor",""],[[-1,"float32",[true],[1],0,false]]]'),
        "form with a value beside it": lambda wire: wire.say(Returned(payload=Payload("beside", form="[null,[]]"))),
        "form of a tensor behind the end": form(FORM, (1 << 20, 64)),
        "form without the blocks that it tells of": form(FORM),
        "form of a tensor larger than its block": form(FORM, (0, 32)),
        "form with a pickle": form(codec.encode_form(Form(TensorAt(0, "pickle"), [BYTES])), (0, 64)),
        "known form of a tensor behind the end": known((0, 1 << 20, 64)),
        "known form of a segment that is none": known((4711, 0, 64)),
        "known form of a smaller block": known((0, 0, 32)),
        "known form of an unaligned block": known((0, 8, 64)),
        "known form without blocks": known(),
        # values
        "101 deep": value(nested(101)),
        "100,000 deep": words('["i","list",[' * 100_000),
        "unknown kind of value": words('["q",1]'),
        "unknown kind of items": words('["i","frozenlist",[]]'),
        "items with their class": words('{"type":"os.system","args":["true"]}'),
        "a pickle": lambda wire: wire.value(TensorAt(0, "pickle"), [BYTES], [Block(wire.memory(), 0, 64)]),
        "set of lists": value(Items("set", [Items("list", [])])),
        "set of 100,000 numbers of one hash": numbers_alike(lambda members: Items("set", members)),
        "dict of 100,000 numbers of one hash": numbers_alike(lambda keys: Pairs("dict", keys, [None] * len(keys))),
        "more keys than items": value(Pairs("dict", ["a", "b"], [1])),
        "range with steps of 0": value(Items("range", [0, 1, 0])),
        "slice of four": value(Items("slice", [0, 1, 2, 3])),
        "size that is no number": value(Items("size", ["a"])),
        "whole number in no digits": value(Scalar("int", "0xzz")),
        "time that never was": value(Scalar("datetime", "2024-13-45")),
        "time span beyond bounds": value(Scalar("timedelta", "999999999999 0 0")),
        "device that is none": value(Scalar("device", "__import__('os')")),
        "layout that is none": value(Scalar("layout", "torch.nn")),
        "NumPy type of objects": value(Scalar("npdtype", "|O8")),
        "NumPy type that takes quadratic time": value(Scalar("npdtype", "<M8[" + "1" * 200_000)),
        "array of objects in raw memory": array("|O8:8"),
        "array larger than its bytes": array("<f4:17"),
        "array of negative size": array("<f4:-4,-4"),
        "array of a million sizes": array("<f4:" + "9" * 4000 + (",9" * 100_000)),
        "array of objects without its shape": value(Items("objects", [1, 2])),
        "record with a special field": value(Record("dataclass", "x.Y", ["__class__"], [1])),
        "record with fields and no values": value(Record("namedtuple", "x.Y", ["a", "b"], [1])),
        # modules and references
        "module tree that is a ring": value(None, modules=[ModuleSpec(9, [node(children=[("a", 0)])])]),
        "module with a tensor that is none": value(None, modules=[ModuleSpec(9, [node(parameters=[("w", 3)])])]),
        "modules of one number": value(None, modules=[ModuleSpec(9, [node(1, children=[("a", 1)]), node(1)])]),
        "module tree without modules": value(None, modules=[ModuleSpec(9, [])]),
        "parameter that is none": value(Ref("parameter", 1, "", "nothing")),
        # frames
        "no frame": raw(b"GET / HTTP/1.1\r\n\r\n"),
        "frame of 4 GiB": raw(struct.pack("!2sHI", b"ih", 0, 2**32 - 1)),
        "frame with 65,535 descriptors": raw(struct.pack("!2sHI", b"ih", 65535, 2) + b"{}"),
        "frame with a descriptor that does not come": raw(struct.pack("!2sHI", b"ih", 1, 2) + b"{}"),
        "frame of nothing": frame(b""),
        "half a message": frame(b'{"type":"Returned","pay'),
        "message that is no UTF-8": frame(b'{"type":"Returned","rng":"\xff\xfe"}'),
        "a list": frame(b"[]"),
        "a pickle for a message": frame(b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system"),
        "message of no kind": frame(b'{"type":"Exec","code":"1"}'),
        "kind with an escape": frame(b'{"type":"\\u001b[2J"}'),
        "message of the parent's": say(Request(verb="close")),
        # order
        "another greeting": say(Hello(protocol=PROTOCOL_VERSION, pid=1, python="3", torch="2")),
        "a second answer": one_frame(Returned(), Returned()),
        "an answer and half of another": lambda wire: wire.raw(
            pack_header(19, 0) + codec.encode(Returned()) + pack_header(99, 0)
        ),
        "two questions at once": one_frame(NeedSegment(4096, "arena"), NeedSegment(4096, "arena")),
        "a question and the answer at once": one_frame(NeedSegment(4096, "arena"), Returned()),
        # questions
        "segment of nothing": say(NeedSegment(0, "arena")),
        "segment of negative size": say(NeedSegment(-1, "weights")),
        "segment beyond 64 bits": say(NeedSegment(2**63, "arena")),
        "segment for no use": frame(b'{"type":"NeedSegment","nbytes":64,"use":"code"}'),
        "frozen segment that nobody wants": say(NeedSegment(4096, "frozen")),
        "files of no kind": frame(b'{"type":"NeedFiles","what":"passwords","name":"x"}'),
        # what comes along
        "block freed that was not given": value(None, freed=[(4711, 0)]),
        "block freed twice": free_twice,
        "segment dropped that is none": value(None, dropped=[4711]),
        "segment dropped twice": drop_twice,
        "arena dropped": drop_arena,
        "generator of three bytes": value(None, rng=b"abc"),
        "generator of zeros": value(None, rng=bytes(5056)),
        "generator that reads behind its end": value(None, rng=generator(624, 624)),
        "generator at a negative place": value(None, rng=generator(-1, 0)),
        # time
        "a byte every 0.2 s": drip,
        "a question every 0.2 s": drip_questions,
        "segments for ever": keep_asking(NeedSegment(1, "arena")),
        "files that cannot be, for ever": keep_asking(NeedFiles(what="weights", name="\x1b[2Jnothing")),
    }


    class Net(torch.nn.Linear):
        def lie(self, name, argument):
            self.argument = argument
            wire = Wire()
            LIES[name](wire)
            while True:
                wire.receive()


    def net():
        return Net(2, 2)
"""
