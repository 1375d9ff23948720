"""The one pickle that is read: the Turbo VAE's training checkpoint."""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .checkpoint import Checkpoint, strip_prefix
from .header import DOWNLOAD_AGAIN, MAX_TENSORS, TensorInfo, quoted
from .lazy_tensor import LazyTensor
from .tensor_file import StoredTensor, TensorFile

MAX_PICKLE = 64_000_000  # bytes of the tables of names, without the tensors


def open_training_checkpoint(path: Path) -> Checkpoint:
    """Open a training checkpoint (a dictionary with `ema_state_dict`, or a plain table of tensors).

    weights_only lets torch build nothing but tensors and plain containers, and these without content, but with the
    places in the file from which they are read when they are used. A file that needs more than that is refused, never
    opened another way.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # slow to import, and seldom needed

    file = TensorFile(path)
    _check_archive(path)
    if torch.__version__ < "2.7":  # of a ComfyUI
        raise CheckpointError(f"{path}: is a training checkpoint, which takes torch 2.7 or newer, and this is "
                              f"{torch.__version__}. Use a .safetensors version of it, or update torch.")
    try:
        with FakeTensorMode():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged or hostile files
        raise CheckpointError(f"{path}: cannot be read safely as a training checkpoint "
                              f"({type(error).__name__}). Use a .safetensors version of it.") from None
    content = content if isinstance(content, dict) else {}
    nested = (content.get(name) for name in ("ema_state_dict", "state_dict"))
    content = next((table for table in nested if isinstance(table, dict)), content)
    entries = {key: _entry(file, key, value) for key, value in content.items() if isinstance(key, str)
               and isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta}
    if not entries:
        raise CheckpointError(f"{path}: holds no table of weights. Use a .safetensors version of it.")
    return strip_prefix(Checkpoint(entries, str(path), path=path, files=(path,)), ("module.",))


def _check_archive(path: Path) -> None:
    """Raise CheckpointError for what torch did not write: a zip that is compressed, as what is small could grow."""
    if not zipfile.is_zipfile(path):  # but a plain pickle, as before 2020
        raise CheckpointError(f"{path}: is a damaged training checkpoint, or one of an old format. Use a .safetensors "
                              "version of it.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as a training checkpoint ({error}). {DOWNLOAD_AGAIN}") from None
    tables = sum(member.file_size for member in members if member.filename.endswith(".pkl"))
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or (
            len(members) > MAX_TENSORS or tables > MAX_PICKLE):
        raise CheckpointError(f"{path}: is no training checkpoint as torch writes them: it is compressed, or its "
                              "tables are too large. Use a .safetensors version of it.")


def _entry(file: TensorFile, key: str, tensor: Tensor) -> LazyTensor:
    """The tensor of the file that one without content stands for. Raises CheckpointError."""
    # An attribute that torch documents for this use (notes on serialization), since 2.7.
    offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if offset is None:
        raise CheckpointError(f"{file.path}: {quoted(key)} has no place in it. Use a .safetensors version of it.")
    begin = offset + tensor.storage_offset() * tensor.dtype.itemsize
    if tensor.is_contiguous():
        info = TensorInfo(tensor.dtype, tuple(tensor.shape), begin)
    else:
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        info = TensorInfo(tensor.dtype, (span,), begin)
    if begin + info.nbytes > file.stamp.size:
        raise CheckpointError(f"{file.path}: is damaged: {quoted(key)} lies behind its end. {DOWNLOAD_AGAIN}")
    stored = StoredTensor(file, info, key)
    return stored if tensor.is_contiguous() else Strided(stored, tensor.shape, tensor.stride())


class Strided(LazyTensor):
    """A tensor whose elements lie in another order in the file, such as a transposed one. It is read whole."""

    def __init__(self, flat: LazyTensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        super().__init__(shape, flat.dtype)
        self.flat, self.stride = flat, stride

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        return self.flat.read(dtype).as_strided(self.shape, self.stride)[begin:end]
