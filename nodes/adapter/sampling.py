"""Guider, samplers and one whole sampling run, on ComfyUI's machinery."""

import logging
import math
from dataclasses import fields
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...magihuman_core.errors import InputError
from ...magihuman_core.recipes import SR_540P, Guidance
from ...magihuman_core.runtime.memory import Estimate, clip_in_words
from ...magihuman_core.runtime.work import log_seconds
from ...magihuman_core.sampling.denoiser import video_scales
from ...magihuman_core.sampling.frozen import JointLatent
from ...magihuman_core.sampling.noise import SEEDS
from ...magihuman_core.sampling.solvers import SOLVERS
from ...magihuman_core.sizes import PIXELS_PER_LATENT, TEXT_TOKENS
from ...magihuman_core.text.script import warn_of_unused_parts
from .conds import SCRIPT
from .flow import START, FlowSampling, start_state
from .model import MagiHumanModel
from .streams import check_shapes, fit_mask, joint_latent, nested, with_streams

log = logging.getLogger(__name__)


class StreamGuider(comfy.samplers.CFGGuider):
    """A GUIDER with a scale for each stream, noise level and latent frame.

    guidance: None to use the positive alone; otherwise a negative is needed. Raises InputError without.
    """

    def __init__(self, model, guidance: Guidance | None, positive, negative=None):
        super().__init__(model)
        if guidance is not None and negative is None:
            raise InputError("This way of sampling needs a negative prompt: connect `negative` of MagiHuman Text "
                             "Encode.")
        self.guidance = guidance
        self._told = False
        conds = {"positive": positive} if guidance is None else {"positive": positive, "negative": negative}
        self.inner_set_conds(conds)
        # ComfyUI reports this number; the scales themselves change from step to step.
        self.set_cfg(1.0 if guidance is None else guidance.video)

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        streams = latent_image.unbind() if latent_image.is_nested else [latent_image]
        self._shapes = [tuple(stream.shape) for stream in streams]
        if denoise_mask is not None and denoise_mask.is_nested and len(streams) == 2:
            # Core's nodes may hold the sound by a mask in the shape of a picture, as they do for other models.
            masks = denoise_mask.unbind()
            denoise_mask = nested(masks[0], fit_mask(masks[1], streams[1][:, :1]), *masks[2:])
        if isinstance(self.model_patcher.model, MagiHumanModel):
            check_shapes(self._shapes, model_channels(self.model_patcher))
            warn_of_all_kept(denoise_mask)
            self._check_script()
            if log.isEnabledFor(logging.INFO):
                log.info("%s", self.memory())
                self.log_seconds(len(sigmas) - 1)
        return super().sample(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)

    def memory(self) -> Estimate:
        """What sampling this clip needs on the device, of which ComfyUI keeps as much there as fits."""
        model, text = self.model_patcher.model, self._text_tokens()
        (batch, _, frames, height, width), (*_, audio) = self._shape_at_once()
        size = (frames, height, width)
        activations = batch * model.activations(size, audio, in_full(text), self.guidance is not None)
        activations += model.copied_weights()
        weights = self.model_patcher.model_size()
        order = ["a narrower weight_dtype in Load MagiHuman Model", "a smaller picture or a shorter clip"]
        advice = ", then ".join(order if weights > activations else reversed(order))
        return Estimate("network", clip_in_words(size, audio, text), weights, activations, advice=advice)

    def _shape_at_once(self) -> list[tuple[int, ...]]:
        """The shapes of both streams that the network sees at once: of the clip, or of a window."""
        handler = self.model_options.get("context_handler")
        if hasattr(handler, "window_shapes"):  # MagiHuman Windows
            return handler.window_shapes(self._shapes)
        return self._shapes  # core's Context Windows know theirs later

    def _check_script(self) -> None:
        """Log a warning for a script parts of which are not used: all but one where the clip is seen as one."""
        handler = self.model_options.get("context_handler")
        whole = handler is None or (hasattr(handler, "window_shapes") and self._shape_at_once() == self._shapes)
        scripts = [cond[SCRIPT] for group in self.original_conds.values() for cond in group if SCRIPT in cond]
        if whole and any(len(script.segments) > 1 for script in scripts):
            log.warning("The clip is made in one piece, so the script's prompt of its middle alone is used: connect "
                        "MagiHuman Windows to the model, with windows that are shorter than the clip.")
        elif hasattr(handler, "plan"):  # MagiHuman Windows
            middles = [window.start + window.frames / 2 for window in handler.plan(self._shapes).parts]
            for script in scripts:
                warn_of_unused_parts(script.segments, middles)

    def log_seconds(self, steps: int) -> None:
        """Log how long sampling one clip in one piece will take, where the card's rates are known."""
        (batch, *_, height, width), (*_, audio) = self._shapes
        if batch == 1 and "context_handler" not in self.model_options:
            network = self.model_patcher.model.diffusion_model
            log_seconds(network.config, device=self.model_patcher.load_device, steps=steps,
                        width=width * PIXELS_PER_LATENT, height=height * PIXELS_PER_LATENT, tokens=audio,
                        text_tokens=in_full(self._text_tokens()), dtype=network.compute_dtype,
                        guided=self.guidance is not None)

    def _text_tokens(self) -> int:
        """Tokens of the longest text."""
        conds = [cond.get("cross_attn") for group in self.original_conds.values() for cond in group]
        return max((cond.shape[1] for cond in conds if cond is not None), default=TEXT_TOKENS)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        options = dict(model_options or {})
        given = options.pop("sampler_cfg_function", None)
        if self.guidance is None:
            if given is not None and not self._told:
                log.warning("A node sets how guidance is computed, which has no effect: this way of sampling has none.")
            self._told = True
            # What other nodes do around guidance sees the positive alone.
            options["disable_cfg1_optimization"] = False
        else:
            scale = self._scale(self.guidance, float(timestep.flatten()[0]), x.device)
            self.set_cfg(float(scale[..., : math.prod(self._shapes[0][1:])].max()))  # which other nodes are told

            def guide(args: dict) -> Tensor:
                if given is None:
                    return args["uncond"] + scale * (args["cond"] - args["uncond"])
                # Another node's function knows one number: it is asked once for each.
                result = torch.empty_like(args["cond"])
                for number in scale.unique().tolist():
                    result = torch.where(scale == number, given({**args, "cond_scale": number}), result)
                return result

            options.update(sampler_cfg_function=guide, disable_cfg1_optimization=True)
        return super().predict_noise(x, timestep, options, seed)

    def _scale(self, guidance: Guidance, sigma: float, device: torch.device) -> Tensor:
        """The guidance scale of every value of the packed vector, [1, 1, n]."""
        video, audio = self._shapes
        frames = video_scales(guidance, sigma, video[2], device)
        flat = frames.expand(video[1:]).reshape(1, 1, -1)  # [T, 1, 1] -> [C, T, H, W] -> [1, 1, n]
        return torch.cat([flat, flat.new_full((1, 1, math.prod(audio[1:])), guidance.audio)], dim=-1)


def warn_of_all_kept(mask) -> None:
    """Log a warning for masks of both streams that leave nothing to sample. mask: None, nested, or of the video."""
    if mask is not None and mask.is_nested and not any(bool(stream.any()) for stream in mask.unbind()):
        log.warning("All of the latent is kept, so sampling changes nothing: put MagiHuman Regenerate behind MagiHuman "
                    "Encode Clip, which opens the part that is made anew.")


def in_full(tokens: int) -> int:
    """A text's tokens as estimates count them: rounded up, so that they are not made anew for each prompt."""
    return -(-tokens // TEXT_TOKENS) * TEXT_TOKENS


def make_sampler(solver: str, noise_level: int = SR_540P.noise_level, **options: Any) -> comfy.samplers.KSAMPLER:
    """A SAMPLER: "unipc" or "renoise". noise_level: see start_state; options go to the solver."""
    solve = SOLVERS[solver]

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        base = getattr(getattr(model, "inner_model", None), "inner_model", None)
        if isinstance(base, MagiHumanModel) and base.super_resolution and float(sigmas[0]) >= START:
            # The model's schedule made x with the role's own level.
            if hasattr(model, "noise"):
                x = start_state(model.noise, model.latent_image, noise_level)
            elif noise_level != base.model_sampling.noise_level:
                log.warning("Another node stands around the sampler and hides what it starts from: sr_noise_level is "
                            "%s instead of %s.", base.model_sampling.noise_level, noise_level)
        return solve(model, x, sigmas, extra_args, callback, disable, **options)

    sample.__name__ = solver  # ComfyUI's log names it
    return comfy.samplers.KSAMPLER(sample, extra_options=options)


def run_each(guider: StreamGuider, sampler, sigmas: Tensor, latent: dict, seed: int) -> dict:
    """Sample the clips of a LATENT one by one, from seed, seed + 1 and so on; see run.

    So memory is that of one clip, and each of them can be made again alone.
    """
    latent = complete(guider.model_patcher, latent)
    count = latent["samples"].unbind()[0].shape[0]
    if count == 1:
        return run(guider, sampler, sigmas, latent, seed)
    clip = joint_latent(latent)
    rest = {key: value for key, value in latent.items() if key != "batch_index"}
    results = []
    for number in range(count):
        one = JointLatent(*(getattr(clip, field.name)[number : number + 1] for field in fields(clip)))
        given = with_streams(rest, one) if "noise_mask" in latent else {**rest, "samples": nested(one.video, one.audio)}
        log.info("Clip %d of %d, seed %d.", number + 1, count, (seed + number) % SEEDS)
        results.append(run(guider, sampler, sigmas, given, (seed + number) % SEEDS)["samples"].unbind())
    return {**latent, "samples": nested(*(torch.cat(streams) for streams in zip(*results, strict=True)))}


def run(guider: StreamGuider, sampler, sigmas: Tensor, latent: dict, seed: int) -> dict:
    """What SamplerCustomAdvanced with RandomNoise does: sample a LATENT and return one, with previews."""
    patcher = guider.model_patcher
    result = complete(patcher, latent)
    start = result["samples"]
    noise = comfy.sample.prepare_noise(start, seed, latent.get("batch_index"))
    callback = latent_preview.prepare_callback(patcher, len(sigmas) - 1)
    samples = guider.sample(noise, start, sampler, sigmas, denoise_mask=result.get("noise_mask"), callback=callback,
                            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed)
    result["samples"] = samples.to(comfy.model_management.intermediate_device())
    return result


def complete(patcher, latent: dict) -> dict:
    """A LATENT with both streams, of one that may hold the video alone, as nodes for other models make it.

    An empty video is brought to this model's channels and sizes, as core's samplers do. Raises InputError for a
    picture, whose latent has no length that a clip could take.
    """
    shape = list(latent["samples"].shape)
    if not latent["samples"].is_nested and len(shape) == 4:
        raise InputError(f"The latent is a picture's, {shape}, which has no length: use Empty MagiHuman Latent, or an "
                         "empty latent for video.")
    result = dict(latent)
    ratios = [result.pop(f"downscale_ratio_{axis}", None) for axis in ("spacial", "temporal")]
    samples = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"], *ratios)
    mask = result.get("noise_mask")
    if not samples.is_nested and samples.ndim == 5 and samples.shape[1] == model_channels(patcher)[0]:
        samples = patcher.get_model_object("latent_format").with_empty_audio(samples)
    if mask is not None and not mask.is_nested and samples.is_nested:
        video, audio = samples.unbind()
        result["noise_mask"] = nested(fit_mask(mask, video[:, :1]), torch.ones_like(audio[:, :1]))
    result["samples"] = samples
    return result


def model_shift(model) -> float | None:
    """The shift that a node for model sampling has set; None where none has, or one of another kind."""
    schedule = model.get_model_object("model_sampling")
    if isinstance(schedule, FlowSampling):
        return None
    shift = getattr(schedule, "shift", None)
    if isinstance(schedule, comfy.model_sampling.ModelSamplingDiscreteFlow) and shift is not None:
        return float(shift)
    log.warning("The model's sampling was changed to %s, which has no effect here: its noise levels are its own. Use "
                "SamplerCustomAdvanced with a scheduler of core.", type(schedule).__name__)
    return None


def model_role(model) -> str:
    """The role of a MODEL: base, distilled, sr_540p or sr_1080p; "" where it is not MagiHuman's."""
    return model.model.role if isinstance(model.model, MagiHumanModel) else ""


def model_channels(model) -> tuple[int, int]:
    """(video, audio) latent channels of a MagiHuman MODEL."""
    return model.model.latent_format.channels
