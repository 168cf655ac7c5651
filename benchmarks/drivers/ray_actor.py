"""Ray: an actor. With `zero-copy`, tensors go through numpy into its object store and are mapped from there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent


class Driver:
    def __init__(self, how: str) -> None:
        os.environ["RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"] = "1" if how == "zero-copy" else "0"
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["PYTHONPATH"] = str(HERE)
        import ray
        import torch

        self._ray = ray
        self.version = ray.__version__
        ray.init(
            num_cpus=8,  # room for several actors, whatever the machine has
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=1 << 30,
        )
        threads = torch.get_num_threads()

        @ray.remote(num_cpus=1)
        class Actor:
            def __init__(self) -> None:
                import torch

                torch.set_num_threads(threads)

            def call(self, name: str, x):
                import work

                return work.FUNCTIONS[name](x)

        self._actor = Actor

    def worker(self):
        ray = self._ray
        actor = self._actor.remote()

        class Worker:
            def call(self, name: str, x):
                return ray.get(actor.call.remote(name, x))

            def close(self) -> None:
                ray.kill(actor)

        return Worker()

    def close(self) -> None:
        self._ray.shutdown()


if __name__ == "__main__":
    sys.exit("this is a part of serve.py")
