"""Elementwise work as one kernel each, through torch.compile (see nn/elementwise.py)."""

import logging
import time
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec

import torch
from torch import nn

from ..errors import InputError
from ..nn.elementwise import EAGER, Elementwise, compiled

log = logging.getLogger(__name__)


def fuse_elementwise(module: nn.Module, fuse: bool | None, device: torch.device | str) -> bool:
    """Let a module run its elementwise work compiled on a device, or not; returns which. fuse: see can_fuse."""
    fused = can_fuse(fuse, device)
    _choose(module, compiled() if fused else EAGER)
    if fused:
        log.info("Elementwise work is fused: the first step takes some seconds more, while kernels are compiled.")
    return fused


def can_fuse(fuse: bool | None, device: torch.device | str) -> bool:
    """Whether to fuse on a device, to be asked before weights are read; each device is tried once in a process.

    fuse: True: always; None: where it pays and can be done, which is on CUDA with Triton; False: never.
    Raises InputError for True where there is no compiler.
    """
    device = torch.device(device)
    if fuse is False or (fuse is None and device.type != "cuda"):
        return False
    reason = why_not(device)
    if reason and fuse:
        raise InputError(f"fuse is True, but torch.compile cannot build kernels for {device} here: {reason}. "
                         "Install a C++ compiler (for the CPU) or Triton (for CUDA), or leave fuse out.")
    if reason:
        log.info("Elementwise work is not fused: %s.", reason)
    return not reason


def _choose(module: nn.Module, elementwise: Elementwise) -> None:
    for part in module.modules():
        if hasattr(part, "elementwise"):
            setattr(part, "elementwise", elementwise)  # noqa: B010 - nn.Module's own attributes have no type


@cache
def why_not(device: torch.device) -> str:
    """Why torch.compile cannot be used on a device, in words; nothing where it can: a kernel is tried.

    On that device itself: cards of a machine may be of different ages.
    """
    if device.type == "cuda" and find_spec("triton") is None:
        return "Triton is not installed"
    started = time.perf_counter()
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            torch.compile(lambda x: x * 2 + 1)(torch.ones(16, device=device))
    except Exception as error:  # of dynamo, inductor, Triton or a compiler: none documents what it raises
        return next(filter(None, str(error).splitlines()), type(error).__name__).strip().rstrip(".")
    log.debug("compiled a first kernel for %s in %.1f s", device, time.perf_counter() - started)
    return ""
