"""Appose: a Python service, tensors as its NDArray in named shared memory, one block for each tensor."""

from __future__ import annotations

import math
import os
import sys
from importlib.metadata import version
from pathlib import Path

import appose
import numpy
import torch

HERE = Path(__file__).parent
PROGRAM = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import appose_service
task.export(appose_service=appose_service)
"""
CALL = "task.outputs['result'] = appose_service.run(name, x, threads)"


def shared(x: torch.Tensor) -> appose.NDArray:
    """Return a copy in shared memory."""
    array = appose.NDArray("float32", list(x.shape))
    numpy.copyto(array.ndarray(), x.numpy())
    return array


def tensor(array: appose.NDArray) -> torch.Tensor:
    """Return a tensor over shared memory; it must not outlive `array`."""
    count = math.prod(array.shape)
    return torch.frombuffer(array.shm.buf, dtype=torch.float32, count=count).reshape(array.shape)


def out(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return shared(value)
    if isinstance(value, dict):
        return {name: out(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [out(each) for each in value]
    return value


def back(value: object, blocks: list) -> object:
    if isinstance(value, appose.NDArray):
        blocks.append(value.shm)
        return tensor(value).clone()  # whoever keeps a view cannot give the memory back
    if isinstance(value, dict):
        return {name: back(each, blocks) for name, each in value.items()}
    if isinstance(value, list):
        return [back(each, blocks) for each in value]
    return value


def run(name: str, x: appose.NDArray, threads: int) -> object:
    """Run in the service."""
    import work

    torch.set_num_threads(threads)
    value = tensor(x)
    result = out(work.FUNCTIONS[name](value))
    del value
    x.shm.close()
    return result


class Worker:
    def __init__(self) -> None:
        # It follows the link to the interpreter, out of this environment.
        self._service = appose.system(Path(sys.executable).parent).python()
        self._service.env(PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
        self._service.task(PROGRAM).wait_for()

    def call(self, name: str, x: torch.Tensor):
        array = shared(x)
        inputs = {"name": name, "x": array, "threads": torch.get_num_threads()}
        task = self._service.task(CALL, inputs).wait_for()
        blocks: list = []
        result = back(task.outputs["result"], blocks)
        array.shm.dispose()
        for block in blocks:
            block.unlink()
            block.close()
        return result

    def close(self) -> None:
        self._service.close()
        self._service.wait_for()


class Driver:
    version = version("appose")

    def worker(self) -> Worker:
        return Worker()

    def close(self) -> None:
        pass
