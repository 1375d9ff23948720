"""What a device has and can do, of whichever kind it is: CUDA and ROCm, MPS, XPU, the CPU."""

from types import ModuleType

import torch

from ..errors import InputError, shown
from ..nn.quantized_linear import EIGHT_BITS
from .main_memory import main_memory

KEPT = (torch.bfloat16, torch.float16, torch.float32, torch.float64, *EIGHT_BITS)

# AMD's cards without bf16 of their own, by the beginnings of their names.
OLD_AMD = ("gfx8", "gfx900", "gfx906", "gfx101", "gfx103")


def device_module(device: torch.device) -> ModuleType | None:
    """torch's module for devices of this type, such as torch.cuda; None of the meta device."""
    try:
        return torch.get_device_module(device)
    except RuntimeError:
        return None


def best_device() -> torch.device:
    """The device to compute on where none is named: CUDA or ROCm, else MPS, XPU or another of torch, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def device_name(device: torch.device) -> str:
    """What a device is called, for people."""
    module = device_module(device)
    if device.type == "mps":
        return "this Mac's graphics (MPS), which shares main memory"
    tell = getattr(module, "get_device_name", None)
    return tell(device) if tell else f"the device {device.type}"


def total_memory(device: torch.device) -> int | None:
    """Bytes that a device has, and of MPS those that it may use; None where nothing tells."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    module = device_module(device)
    tell = getattr(module, "get_device_properties", None)
    return getattr(tell(device), "total_memory", None) if tell else None


def holds(device: str | torch.device, dtype: torch.dtype) -> bool:
    """Whether a device can hold tensors of a dtype. MPS cannot hold fp8."""
    try:
        torch.empty(1, dtype=dtype, device=device)
    except (RuntimeError, TypeError):
        return False
    return True


def held_dtype(stored: torch.dtype | None, device: str | torch.device) -> torch.dtype | None:
    """What weights are kept in that a file has in 8 bits: those, or int8 where the device cannot hold them; or None."""
    return torch.int8 if stored is not None and not holds(device, stored) else stored


def check_dtype(dtype: object, device: str | torch.device) -> None:
    """Raise InputError unless a network's or text encoder's weights can be kept in a dtype on a device."""
    if dtype not in KEPT:
        raise InputError(f"dtype is {shown(dtype)}, expected one of torch's that weights can be kept in: "
                         f"{', '.join(str(known)[6:] for known in KEPT)}.")
    if not holds(device, dtype) and holds(device, torch.float32):  # else it is the device's fault
        raise InputError(f"The device {device} cannot hold weights in {str(dtype)[6:]}. Choose int8, which is as small "
                         "as fp8, or bfloat16, or leave dtype out.")


def free_memory(device: str | torch.device) -> int | None:
    """Bytes that are free on a device, or can be freed there; None where nothing tells."""
    device = torch.device(device)
    if device.type == "cpu":
        return main_memory().available
    if device.type == "mps":  # shares main memory, but does not get all of it
        left = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
        return max(0, min(left, main_memory().available))
    module = device_module(device)
    if module is None or not hasattr(module, "mem_get_info"):
        return None
    try:
        free = module.mem_get_info(device)[0]
    except RuntimeError:  # drivers of some integrated devices do not tell
        return None
    # What torch keeps for later use counts as free, too.
    return free + module.memory_reserved(device) - module.memory_allocated(device)


def release_memory(device: torch.device) -> None:
    """Wait for all work on a device, and give the memory that torch keeps for later use back to others."""
    module = device_module(device)
    if device.type == "cpu" or module is None or not hasattr(module, "empty_cache"):
        return
    torch.accelerator.synchronize(device)
    module.empty_cache()


def computes_bf16(device: str | torch.device) -> bool:
    """Whether a device multiplies in bfloat16 by itself. NVIDIA's cards before the RTX 30 series do not."""
    device = torch.device(device)
    if device.type != "cuda":
        return True
    if torch.version.hip:
        return not torch.cuda.get_device_properties(device).gcnArchName.startswith(OLD_AMD)
    return torch.cuda.get_device_capability(device) >= (8, 0)
