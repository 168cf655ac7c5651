"""torch.multiprocessing: a process that answers over two queues, with either way of sharing tensors."""

from __future__ import annotations

import torch
import torch.multiprocessing
import work


def serve(sharing: str, threads: int, requests, answers) -> None:
    torch.multiprocessing.set_sharing_strategy(sharing)
    torch.set_num_threads(threads)
    # What was sent must live until the other side has taken it: until the next request.
    while (request := requests.get()) is not None:
        name, x = request
        kept = work.FUNCTIONS[name](x)
        answers.put(kept)


class Worker:
    def __init__(self, context, sharing: str) -> None:
        self._requests, self._answers = context.SimpleQueue(), context.SimpleQueue()
        self._process = context.Process(
            target=serve, args=(sharing, torch.get_num_threads(), self._requests, self._answers)
        )
        self._process.start()

    def call(self, name: str, x: torch.Tensor):
        self._requests.put((name, x))
        return self._answers.get()

    def close(self) -> None:
        self._requests.put(None)
        self._process.join()


class Driver:
    version = str(torch.__version__)

    def __init__(self, method: str, sharing: str) -> None:
        torch.multiprocessing.set_sharing_strategy(sharing)
        self._sharing = sharing
        self._context = torch.multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(["torch", "torch_processes"])

    def worker(self) -> Worker:
        return Worker(self._context, self._sharing)

    def close(self) -> None:
        pass
