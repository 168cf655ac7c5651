"""The values of a module, packed for a pickle: one tensor with all bytes, and a table of what lies where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from isohub.errors import LocalProtocolError
from isohub.shm.tensors import bytes_of, tensor_over
from isohub.wire.specs import ALIGNMENT_BYTES

if TYPE_CHECKING:
    from isohub.model.module import IsolatedModule

__all__ = ["Weights"]

# All bytes in one piece, and a copy: torch.multiprocessing takes a descriptor for each tensor that it sends, and the
# very memory of it, which would part the module from its worker.


@dataclass(kw_only=True)
class Weights:
    """Parameters, buffers and flags of a module.

    Attributes:
        data: All bytes.
        parameters: For each parameter its name, and where it lies: dtype, offset in bytes, shape, stride.
        buffers: The same of buffers, with whether they are persistent; no place for those that are None.
        flags: Which parameters ask for gradients.
        modes: The training flags.
        elsewhere: Names of tensors whose values only the worker has.
    """

    data: torch.Tensor
    parameters: dict[str, tuple[Any, ...]]
    buffers: dict[str, tuple[tuple[Any, ...] | None, bool]]
    flags: dict[str, bool]
    modes: dict[str, bool]
    elsewhere: list[str]

    @staticmethod
    def of(module: IsolatedModule) -> Weights:
        """Return a copy of what `module` has now. Its worker is not asked, and may be dead."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        buffers = {
            f"{path}.{name}" if path else name: (buffer, name not in part._non_persistent_buffers_set)
            for path, part in module.named_modules(remove_duplicate=False)
            for name, buffer in part._buffers.items()
        }
        tensors = {**parameters, **{name: buffer for name, (buffer, _) in buffers.items() if buffer is not None}}
        places: dict[int, int] = {}
        storages = []
        nbytes = 0
        for tensor in tensors.values():
            storage = tensor.untyped_storage()
            if not tensor.is_meta and storage.nbytes() and storage.data_ptr() not in places:
                places[storage.data_ptr()] = nbytes
                storages.append(storage)
                nbytes += -(-storage.nbytes() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        data = torch.zeros(nbytes, dtype=torch.uint8)
        for storage in storages:
            start = places[storage.data_ptr()]
            data[start : start + storage.nbytes()] = tensor_over(storage, torch.uint8, 0, [storage.nbytes()], [1])

        def place(tensor: torch.Tensor) -> tuple[Any, ...]:
            start = places.get(tensor.untyped_storage().data_ptr(), 0) if tensor.numel() else 0
            offset = start + int(tensor.storage_offset()) * tensor.itemsize if tensor.numel() else 0
            return tensor.dtype, offset, tuple(tensor.shape), tuple(tensor.stride())

        return Weights(
            data=data,
            parameters={name: place(tensor) for name, tensor in parameters.items()},
            buffers={
                name: (None if tensor is None else place(tensor), persistent)
                for name, (tensor, persistent) in buffers.items()
            },
            flags={name: parameter.requires_grad for name, parameter in parameters.items()},
            modes={path: part.training for path, part in module.named_modules()},
            elsewhere=[name for name, tensor in tensors.items() if tensor.is_meta],
        )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        rest = (self.parameters, self.buffers, self.flags, self.modes)
        # torch.save writes a tensor as it is, and its protocol 2 has no bytes. To others it is bytes: a spawned
        # process would look for the tensor's descriptor when this copy is gone already.
        return _again, (self.data if protocol == 2 else bytes_of(self.data), *rest)

    def restore(self, module: IsolatedModule, attributes: list[tuple[str, str, Any]]) -> None:
        """Give all of it to a module that was just loaded.

        What fits is written into the shared memory; the worker is asked for the rest: other dtypes, buffers that
        came up since, flags.

        Args:
            module: The module.
            attributes: Path, name and value of what is to be set on it first.

        Raises:
            LocalProtocolError: The module is not the one that was pickled.
        """
        storage = self.data.untyped_storage()
        here = dict(module.named_parameters(remove_duplicate=False))
        if here.keys() != self.parameters.keys():
            different = ", ".join(sorted(here.keys() ^ self.parameters.keys())[:3])
            raise LocalProtocolError(
                f"the module that was loaded again ({module._isohub_tree.describe()}) has other parameters than the "
                f"one that was pickled: {different}. Were the repository's files edited meanwhile?"
            )
        parameters = {name: tensor_over(storage, *place) for name, place in self.parameters.items()}
        other = {name: value for name, value in parameters.items() if not _fits(here.get(name), value)}
        known = dict(module.named_buffers(remove_duplicate=False))
        buffers = {
            name: (None if place is None else tensor_over(storage, *place), persistent)
            for name, (place, persistent) in self.buffers.items()
        }
        with torch.no_grad():
            for name, value in parameters.items():
                if name not in other:
                    here[name].copy_(value)
            for name, (buffer, _) in list(buffers.items()):
                if buffer is not None and _fits(known.get(name), buffer):
                    known[name].copy_(buffer)
                    del buffers[name]
        buffers = {name: one for name, one in buffers.items() if one[0] is not None or name in known}
        flags = {name: flag for name, flag in self.flags.items() if here[name].requires_grad is not flag}
        modes = {path: mode for path, mode in self.modes.items() if module.get_submodule(path).training is not mode}
        if other or buffers or flags or modes or attributes:
            lease = module._isohub_lease
            arguments = (other, buffers, (flags, modes), attributes)
            lease.worker.request("state", arguments, of=lease, path=module._isohub_path, name="restore")


def _again(data: bytes | torch.Tensor, parameters: Any, buffers: Any, flags: Any, modes: Any) -> Weights:
    if not isinstance(data, torch.Tensor):
        data = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return Weights(data=data, parameters=parameters, buffers=buffers, flags=flags, modes=modes, elsewhere=[])


def _fits(there: torch.Tensor | None, value: torch.Tensor) -> bool:
    return there is not None and there.dtype is value.dtype and there.shape == value.shape and not there.is_meta
