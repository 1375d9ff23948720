"""Elementwise work as one kernel each, through torch.compile (see nn/elementwise.py)."""

import logging
import time
from functools import cache
from importlib.util import find_spec

import torch
from torch import nn

from ..errors import InputError
from ..nn.elementwise import EAGER, Elementwise, compiled

log = logging.getLogger(__name__)


def fuse_elementwise(module: nn.Module, fuse: bool | None, device: torch.device | str) -> bool:
    """Let a module that has been loaded run its elementwise work compiled, or not; returns which.

    fuse: True: always; None: where it pays and can be done, which is on CUDA with Triton; False: never.
    Raises InputError for True where there is no compiler.
    """
    device = torch.device(device)
    if fuse is None and device.type != "cuda":
        fuse = False
    elif fuse is not False:
        reason = why_not(device.type)
        if reason and fuse:
            raise InputError(f"fuse is True, but torch.compile cannot build kernels for {device.type} here: {reason}. "
                             "Install a C++ compiler (for the CPU) or Triton (for CUDA), or leave fuse out.")
        if reason:
            log.info("Elementwise work is not fused: %s.", reason)
        fuse = not reason
    _choose(module, compiled() if fuse else EAGER)
    if fuse:
        log.info("Elementwise work is fused: the first step takes some seconds more, while kernels are compiled.")
    return fuse


def _choose(module: nn.Module, elementwise: Elementwise) -> None:
    for part in module.modules():
        if hasattr(part, "elementwise"):
            setattr(part, "elementwise", elementwise)  # noqa: B010 - nn.Module's own attributes have no type


@cache
def why_not(device: str) -> str:
    """Why torch.compile cannot be used on a kind of device, in words; nothing where it can: a kernel is tried."""
    if device == "cuda" and find_spec("triton") is None:
        return "Triton is not installed"
    started = time.perf_counter()
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(16, device=device))
    except Exception as error:  # of dynamo, inductor, Triton or a compiler: none documents what it raises
        return next(filter(None, str(error).splitlines()), type(error).__name__).strip().rstrip(".")
    log.debug("compiled a first kernel for %s in %.1f s", device, time.perf_counter() - started)
    return ""
