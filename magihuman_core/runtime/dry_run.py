"""Counting the memory of a computation that is not done.

On the meta device tensors have shapes but no storage. While the code runs there, the bytes of what would be alive
are counted, so that an estimate follows the code in all it does: pieces, windows, tiles, work in place.
"""

import weakref
from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..vae.layers import WIDE, has_onednn

# By the first dimensions of its input PyTorch takes a convolution for a small one, which it unfolds.
SMALL_CONVOLUTION = 20480


def dry_run(run: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes of tensors, made while it runs, that are alive at once; run() is to use the meta device."""
    # Not in inference mode, in which operations are not taken apart before they are seen.
    with torch.inference_mode(False), torch.no_grad(), _Attention(), _Alive(device == "cpu") as alive:
        run()
    return alive.peak


class _Attention(TorchFunctionMode):
    """Attention as its kernels do it, without the matrix of scores that the meta device would get."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return args[0].new_empty(*args[0].shape[:-1], args[2].shape[-1])
        return func(*args, **(kwargs or {}))


class _Alive(TorchDispatchMode):
    """Counts bytes of storages from the first tensor made of them until the last one is gone."""

    def __init__(self, cpu: bool):
        super().__init__()
        self.cpu = cpu
        self.now = self.peak = 0
        self.storages: dict[int, list[int]] = {}  # storage -> [tensors of it, bytes]
        self.tensors: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in (out,) if isinstance(out, Tensor) else out if isinstance(out, (tuple, list)) else ():
            if isinstance(tensor, Tensor):
                self._count(tensor, args)
        if self.cpu and func is torch.ops.aten.convolution.default:
            self.peak = max(self.peak, self.now + convolution_scratch(out, *args))
        return out

    def _count(self, tensor: Tensor, args) -> None:
        storage = tensor.untyped_storage()
        key, number = storage._cdata, id(tensor)
        if key not in self.storages:
            if any(isinstance(a, Tensor) and a.untyped_storage()._cdata == key for a in args):
                return  # a view of something from outside, such as a weight
            self.storages[key] = [0, storage.nbytes()]
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
        known = self.tensors.get(number)
        if known is None or known() is not tensor:
            self.storages[key][0] += 1
            self.tensors[number] = weakref.ref(tensor, lambda _: self._forget(number, key))

    def _forget(self, number: int, key: int) -> None:
        self.tensors.pop(number, None)
        entry = self.storages[key]
        entry[0] -= 1
        if not entry[0]:
            del self.storages[key]
            self.now -= entry[1]


def convolution_scratch(out: Tensor, x: Tensor, weight: Tensor, bias, stride, padding, dilation, transposed: bool,
                        *_) -> int:
    """Bytes that a convolution on a CPU takes beside input and output.

    Those of oneDNN copy their input into an order of their own, unless it has a pixel's channels side by side.
    PyTorch's own, for transposed ones and for those of three dimensions that vae.layers does not hand to oneDNN, unfold
    it: each value once for each place of the kernel.
    """
    places = prod(weight.shape[2:])
    if transposed:
        return x.numel() // x.shape[1] * weight.shape[1] * places * x.itemsize
    wide = x.dtype == torch.float32 and x.shape[1] >= WIDE
    if x.dim() == 5 and places > 1 and (not has_onednn() or (wide and prod(x.shape[:4]) <= SMALL_CONVOLUTION)):
        return out.numel() // out.shape[1] * weight.shape[1] * places * x.itemsize
    return weight.nbytes + (x.nbytes if wide or x.dim() < 4 or x.stride(1) > 1 else 0)
