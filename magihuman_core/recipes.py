"""What follows from a network's role, which no checkpoint records, and where to compute."""

from typing import Any

import torch

from .errors import InputError
from .model.config import GLOBAL_LAYERS_1080P

STEPS = {"distilled": 8, "base": 32}
SR_STEPS = 5


def role_overrides(role: str, layers: int) -> dict[str, Any]:
    """What load_dit must be told of a role, since no checkpoint records it. layers: of the network."""
    if role in ("base", "distilled"):
        return {"positions": "v2"}
    if role == "sr_540p":
        return {"positions": "v1"}
    if role == "sr_1080p":
        local = tuple(layer for layer in range(layers) if layer not in GLOBAL_LAYERS_1080P)
        return {"positions": "v1", "local_layers": local}
    raise InputError(f"role is {role!r}, expected base, distilled, sr_540p or sr_1080p.")


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
