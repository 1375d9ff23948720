"""A CUDA device that is not there: tensors without content that say they are on it.

FakeTensorMode, which torch.compile traces with, gives tensors a device of their own. An operation on tensors of two
devices raises, as on a card. What would be alive on the card is counted by weak references to storages.
"""

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class PretendCard:
    """`with PretendCard() as card:` tensors of device "cuda" can be made and computed with."""

    def __enter__(self):
        self.modes = ExitStack()
        for mode in (torch.inference_mode(False), torch.no_grad(), _Kernels(), FakeTensorMode()):
            self.modes.enter_context(mode)
        return self

    def __exit__(self, *reason):
        self.modes.close()

    @staticmethod
    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    def load(self, module: nn.Module) -> nn.Module:
        """A module of the meta device, on the card."""
        for owner in module.modules():
            for name, tensor in owner._parameters.items():
                if tensor is not None:
                    loaded = self.empty(*tensor.shape, dtype=tensor.dtype)
                    owner._parameters[name] = nn.Parameter(loaded, requires_grad=False)
            for name, tensor in owner._buffers.items():
                owner._buffers[name] = self.empty(*tensor.shape, dtype=tensor.dtype)
        return module

    @staticmethod
    def weights(module: nn.Module) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in module.state_dict().values())

    @staticmethod
    def peak(run) -> int:
        """The most bytes on the card at once of what is made while run() runs."""
        with Peak("cuda") as peak:
            run()
        return peak.most


class Peak(TorchDispatchMode):
    """Counts a storage of a device from the first operation that gives a tensor of it until no tensor refers to it.

    Not those of tensors from outside.
    """

    def __init__(self, device: str):
        super().__init__()
        self.device = device
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}  # by address, with some that are gone
        self.now = self.most = 0  # bytes of those, and the most of which none was gone

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        made = [x.untyped_storage() for x in ((out,) if isinstance(out, Tensor) else tree_leaves(out))
                if isinstance(x, Tensor) and x.device.type == self.device]
        made = [storage for storage in made if storage._cdata not in self.alive]
        if made:
            outside = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            new = {storage._cdata: storage for storage in made if storage._cdata not in outside}
            self.alive |= {key: (StorageWeakRef(storage), storage.nbytes()) for key, storage in new.items()}
            self.now += sum(storage.nbytes() for storage in new.values())
            if self.now > self.most:
                self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
                self.now = sum(count for _, count in self.alive.values())
                self.most = max(self.most, self.now)
        return out


class _Kernels(TorchFunctionMode):
    """What asks for CUDA's libraries even when it is only traced, made of operations that do not ask; and attention
    as one kernel, without its scores."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            q, k, v = args[:3]
            _same_device(q, k, v)
            return q.new_empty(*q.shape[:-1], v.shape[-1])
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            plain = _indexed(*args[:2])
            if plain is not None and func is Tensor.__getitem__:
                return plain
            if plain is not None:
                value = args[2]
                return aten.copy_(plain, value) if isinstance(value, Tensor) else aten.fill_(plain, value)
        if func in (F.conv1d, F.conv_transpose1d):
            return _convolve_1d(*args, transposed=func is F.conv_transpose1d)
        if func is Tensor.copy_:
            return aten.copy_(*args[:2])
        if func is Tensor.contiguous:
            return args[0] if args[0].is_contiguous() else aten.clone(args[0], memory_format=torch.contiguous_format)
        return func(*args, **(kwargs or {}))


def _convolve_1d(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, *rest, transposed: bool) -> Tensor:
    """In two dimensions, of which the first has one place."""
    if transposed:
        output_padding, groups, dilation = rest
        return F.conv_transpose2d(x.unsqueeze(2), weight.unsqueeze(2), bias, (1, *stride), (0, *padding),
                                  (0, *output_padding), groups, (1, *dilation)).squeeze(2)
    dilation, groups = rest
    return F.conv2d(x.unsqueeze(2), weight.unsqueeze(2), bias, (1, *stride), (0, *padding), (1, *dilation),
                    groups).squeeze(2)


def _same_device(*tensors: Tensor) -> None:
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise RuntimeError(f"attention of tensors on {devices}")


def _indexed(x: Tensor, index) -> Tensor | None:
    """x[index] by slices, numbers, None and Ellipsis, out of operations that need no library; None for others."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if not all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts):
        return None
    if any(part is Ellipsis for part in parts):
        place = next(number for number, part in enumerate(parts) if part is Ellipsis)
        named = sum(isinstance(part, (int, slice)) for part in parts)
        parts[place : place + 1] = [slice(None)] * (x.dim() - named)
    axis = 0
    for part in parts:
        if isinstance(part, int):
            x = aten.select(x, axis, part)
            continue
        if part is None:
            x = aten.unsqueeze(x, axis)
        elif part != slice(None):
            x = aten.slice(x, axis, part.start, part.stop, part.step or 1)
        axis += 1
    return x
