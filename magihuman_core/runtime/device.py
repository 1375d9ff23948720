"""Where to compute."""

import torch

from ..errors import InputError


def choose_device(device: str | torch.device) -> torch.device:
    """ "auto": CUDA where there is one, else the CPU. Raises InputError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device} cannot be used here ({reason}). Use cpu, or auto.") from None
    return chosen
