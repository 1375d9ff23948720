"""Schedule and solvers (docs/model.md), with the signature ComfyUI's samplers have.

A solver integrates one flat vector that holds video and audio; `model(x, sigma, **extra_args)` gives
the estimate of the clean vector. Every step is element-wise, so both streams are solved jointly.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import trange

from ..errors import InputError, shown
from .noise import step_noise

MAX_STEPS = 10_000
Model = Callable[..., Tensor]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]
Estimate = tuple[Tensor, float]  # of the clean vector, and the noise level it was made at


def flow_sigmas(steps: int, shift: float = 5.0, denoise: float = 1.0) -> Tensor:
    """The model's noise levels, fp32 [steps + 1], from just under 1 down to 0; the shift is applied once.

    denoise: below 1 the levels of a run of steps / denoise steps, of which the last are taken, as ComfyUI's samplers
    do: what is sampled starts from a clean vector under less noise. Raises InputError.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise InputError(f"steps is {shown(steps)}, expected a whole number from 1 to {MAX_STEPS}.")
    if not isinstance(shift, int | float) or not 0 < shift < math.inf:
        raise InputError(f"shift is {shown(shift)}, expected more than 0, such as 5.")
    if not isinstance(denoise, int | float) or not 0 < denoise <= 1:
        raise InputError(f"denoise is {shown(denoise)}, expected more than 0, up to 1.")
    if denoise < 1:
        return flow_sigmas(min(int(steps / denoise), MAX_STEPS), shift)[-(steps + 1) :]
    # The reference's 0.999 is a float32 number; the rest is float64, rounded at the end.
    u = torch.linspace(float(torch.tensor(0.999)), 0, steps + 1, dtype=torch.float64)[:-1]
    return torch.cat([shift * u / (1 + (shift - 1) * u), torch.zeros(1, dtype=torch.float64)]).float()


def _levels(sigmas: Tensor) -> list[float]:
    levels = [float(s) for s in sigmas]
    if len(levels) < 2 or any(b >= a for a, b in pairwise(levels)) or levels[-1] < 0 or levels[0] > 1:
        raise InputError(f"sigmas are {levels[:4]}..., expected at least two, falling, between 1 and 0. "
                         "Connect MagiHuman Scheduler or Basic Scheduler; in Python, give flow_sigmas(steps).")
    return levels


@torch.no_grad()
def sample_unipc(model: Model, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any] | None = None,
                 callback: Callable[[dict[str, Any]], None] | None = None, disable: bool | None = None) -> Tensor:
    """UniPC of order 2, B(h) variant 2, in x0 prediction, first order at both ends (arXiv 2302.04867).

    The model is evaluated once a step, on the vector before correction; the estimate serves the
    corrector of the last step and the predictor of the next.
    """
    levels = _levels(sigmas)
    steps = len(levels) - 1
    ones = x.new_ones([x.shape[0]])
    last: Estimate | None = None  # of the last step, and of the one before
    before: Estimate | None = None
    x_last, order = x, 1  # the last step's corrected vector, and the order it was left with
    for i in trange(steps, disable=disable):
        sigma = levels[i]
        x0 = model(x, sigma * ones, **(extra_args or {}))
        if callback is not None:
            callback({"i": i, "denoised": x0, "x": x, "sigma": sigmas[i], "sigma_hat": sigmas[i]})
        if last is not None:
            x = _correct(x_last, x0, sigma, last, before if order == 2 else None)
        x_last, order = x, min(2, steps - i, i + 1)
        x = _predict(x, x0, sigma, levels[i + 1], last if order == 2 else None)
        last, before = (x0, sigma), last
    return x


def _log_snr(sigma: float) -> float:
    """ln(alpha / sigma), half the log of the signal-to-noise ratio."""
    if sigma == 0:
        return math.inf
    return math.log1p(-sigma) - math.log(sigma) if sigma < 1 else -math.inf


def _predict(x: Tensor, x0: Tensor, sigma: float, sigma_next: float, last: Estimate | None) -> Tensor:
    """From sigma to sigma_next; last: the estimate of the step before, None for first order."""
    if sigma_next == 0:
        return x0.clone()  # the last step lands on the estimate itself
    h = _log_snr(sigma_next) - _log_snr(sigma)
    b = math.expm1(-h)
    slope = x0
    if last is not None:
        x0_last, sigma_last = last
        r = (_log_snr(sigma_last) - _log_snr(sigma)) / h
        slope = x0 + (x0_last - x0) * (0.5 / r)
    return (sigma_next / sigma) * x - ((1 - sigma_next) * b) * slope


def _correct(x: Tensor, x0: Tensor, sigma: float, last: Estimate, before: Estimate | None) -> Tensor:
    """Take the step from `last` to sigma again, now that x0 is known there.

    x: the vector at `last`; before: the estimate of the step before that, None for first order.
    """
    x0_last, sigma_last = last
    h = _log_snr(sigma) - _log_snr(sigma_last)
    b = math.expm1(-h)
    if before is None:
        slope = x0_last + 0.5 * (x0 - x0_last)
    else:
        x0_before, sigma_before = before
        r = (_log_snr(sigma_before) - _log_snr(sigma_last)) / h
        k = b / -h - 1
        b1, b2 = k / b, 2 * (k / -h - 0.5) / b
        rho_before = (b2 - b1) / (r - 1)
        rho = b1 - rho_before
        slope = x0_last + (x0_before - x0_last) * (rho_before / r) + rho * (x0 - x0_last)
    return (sigma / sigma_last) * x - ((1 - sigma) * b) * slope


@torch.no_grad()
def sample_renoise(model: Model, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any] | None = None,
                   callback: Callable[[dict[str, Any]], None] | None = None, disable: bool | None = None,
                   noise_sampler: NoiseSampler | None = None) -> Tensor:
    """The distilled model's sampler: estimate the clean vector, then add fresh noise of the next level.

    noise_sampler(sigma, sigma_next) gives noise of x's shape; by default that of the seed (noise.py).
    """
    levels = _levels(sigmas)
    noise_sampler = noise_sampler or step_noise(x, (extra_args or {}).get("seed"))
    ones = x.new_ones([x.shape[0]])
    for i in trange(len(levels) - 1, disable=disable):
        x0 = model(x, levels[i] * ones, **(extra_args or {}))
        if callback is not None:
            callback({"i": i, "denoised": x0, "x": x, "sigma": sigmas[i], "sigma_hat": sigmas[i]})
        x = x0
        if levels[i + 1] > 0:
            x = levels[i + 1] * noise_sampler(sigmas[i], sigmas[i + 1]) + (1 - levels[i + 1]) * x0
    return x


SOLVERS = {"unipc": sample_unipc, "renoise": sample_renoise}  # as recipes name them
