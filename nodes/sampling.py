"""Nodes that sample: one that does the right thing by the model's role, and the same in parts."""

import logging
from dataclasses import replace

import torch
from comfy_api.latest import io

from ..magihuman_core.errors import InputError
from ..magihuman_core.recipes import BASE, FULL_GUIDANCE, RECIPES, SR_540P, SR_GUIDANCE, Guidance
from ..magihuman_core.sampling.solvers import flow_sigmas
from .adapter import sampling
from .adapter.streams import UPSCALED, split

CATEGORY = "MagiHuman/sampling"
AUTO, DISTILLED, FULL, SR = "auto", "distilled", "full CFG", "super-resolution"
# How each mode samples; both super-resolution models are sampled alike.
MODES = {DISTILLED: RECIPES["distilled"], FULL: BASE, SR: SR_540P}
SHIFT = 5.0  # of the noise levels that the models were trained with
NO_GUIDANCE, SR_CFG = "none", "super-resolution CFG"
NOISE_TIP = (
    "Super-resolution only: how much noise covers the upscaled clip at the start, 0 to 999. 220 is what the models "
    "were trained with; 0 adds none, more invents more detail."
)
log = logging.getLogger(__name__)


def find_mode(model, mode: str) -> str:
    """The mode to sample in. Raises InputError where it does not go with the model."""
    role = sampling.model_role(model)
    if not role:
        raise InputError("The model is not MagiHuman's: connect Load MagiHuman Model.")
    recipe = RECIPES[role]
    fitting = SR if recipe.super_resolution else FULL if recipe.guidance else DISTILLED
    if mode in (AUTO, fitting):
        return fitting
    if SR in (mode, fitting):
        raise InputError(f"The model's role is {role}, which cannot sample in the mode {mode!r}: choose another "
                         "model, or correct the role in Load MagiHuman Model.")
    log.warning("A %s model is sampled in the mode %r; it was made for %r.", role, mode, fitting)
    return mode


def check_latent(model, latent: dict) -> None:
    """Raise InputError where a latent does not fit the model's channels or its role."""
    video, _ = split(latent, sampling.model_channels(model))
    upscales = RECIPES[sampling.model_role(model)].super_resolution
    if upscales and not torch.count_nonzero(video):
        raise InputError("A super-resolution model starts from a finished clip, but the latent is empty: sample with "
                         "the base or distilled model first, then use MagiHuman Latent Upscale.")
    if upscales and not latent.get(UPSCALED):
        log.warning("The latent was not enlarged, and a super-resolution model makes a blur of a clip of its first "
                    "size: connect MagiHuman Latent Upscale before this sampler.")
    if not upscales and latent.get(UPSCALED):
        raise InputError("The latent was made for a super-resolution model, but this one makes clips from noise: "
                         "connect a super-resolution model here.")


class MagiHumanSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanSampler",
            display_name="MagiHuman Sampler",
            category=CATEGORY,
            description="Samples a clip the way its model was made for: distilled, base with full guidance, or "
                        "super-resolution.",
            search_aliases=["ksampler", "sampler", "denoise", "magihuman"],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative", optional=True, tooltip="Used in the mode 'full CFG' only."),
                io.Latent.Input("latent_image"),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                             tooltip="The same seed gives the same clip."),
                io.Combo.Input("mode", options=[AUTO, DISTILLED, FULL, SR], default=AUTO, tooltip=(
                    "auto goes by the model's role. distilled: 8 steps without guidance. full CFG: 32 steps, two "
                    "evaluations each. super-resolution: 5 steps without guidance.")),
                io.Int.Input("steps", default=0, min=0, max=200, advanced=True, tooltip=(
                    "0: the mode's own (8, 32 or 5). The distilled model gets no better with more; the base model is "
                    "usable from about 20.")),
                io.Int.Input("sr_noise_level", default=SR_540P.noise_level, min=0, max=999, advanced=True,
                             tooltip=NOISE_TIP),
                io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01, optional=True, tooltip=(
                    "How much of an encoded clip changes, 0.01 to 1. From 0.75 on people and places do; at 0.5 little. "
                    "1 for an empty latent, and where a part is made anew.")),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, model, positive, latent_image, seed, mode, steps, sr_noise_level, negative=None,
                denoise=1.0) -> io.NodeOutput:
        mode = find_mode(model, mode)
        latent_image = sampling.complete(model, latent_image)
        check_latent(model, latent_image)
        recipe = MODES[mode]
        if recipe.super_resolution and denoise < 1:
            log.warning("Super-resolution has its own noise level (sr_noise_level): denoise has no effect.")
            denoise = 1.0
        elif denoise < 1 and not torch.count_nonzero(split(latent_image)[0]):
            raise InputError("denoise below 1 needs a clip to begin with, but the latent is empty: set denoise to 1, "
                             "or connect MagiHuman Encode Clip, and MagiHuman Regenerate behind it.")
        guider = sampling.StreamGuider(model, recipe.guidance, positive, negative)
        sampler = sampling.make_sampler(recipe.solver, noise_level=sr_noise_level)
        sigmas = flow_sigmas(steps or recipe.steps, sampling.model_shift(model) or SHIFT, denoise)
        made = sampling.run_each(guider, sampler, sigmas, latent_image, seed)
        return io.NodeOutput({key: value for key, value in made.items() if key != UPSCALED})


class MagiHumanScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanScheduler",
            display_name="MagiHuman Scheduler",
            category=CATEGORY,
            description="The noise levels MagiHuman was trained with, for SamplerCustomAdvanced.",
            search_aliases=["sigmas", "schedule", "flow shift", "magihuman"],
            inputs=[
                io.Int.Input("steps", default=MODES[DISTILLED].steps, min=1, max=1000,
                             tooltip="8 for the distilled model, 32 for the base model, 5 for super-resolution."),
                io.Float.Input("shift", default=SHIFT, min=0.1, max=100.0, step=0.1, advanced=True, tooltip=(
                    "5 is what the models were trained with; more spends more steps on the coarse picture.")),
            ],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(cls, steps, shift) -> io.NodeOutput:
        return io.NodeOutput(flow_sigmas(steps, shift))


class MagiHumanGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanGuider",
            display_name="MagiHuman Guider",
            category=CATEGORY,
            description="Guidance with its own scale for picture, late picture and sound, for SamplerCustomAdvanced.",
            search_aliases=["cfg", "guidance", "dual cfg", "magihuman"],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative", optional=True, tooltip="Not needed where there is no guidance."),
                io.Combo.Input("guidance", options=[AUTO, NO_GUIDANCE, FULL, SR_CFG], default=AUTO, tooltip=(
                    "auto: full CFG for the base model, none for the others. super-resolution CFG doubles that "
                    "pass's time: scale 3.5, and at most 2 in the first 13 latent frames.")),
                io.Float.Input("video", default=FULL_GUIDANCE.video, min=1.0, max=30.0, step=0.1, advanced=True,
                               tooltip="full CFG: scale of the picture in the first part of the schedule."),
                io.Float.Input("video_late", default=FULL_GUIDANCE.video_late, min=1.0, max=30.0, step=0.1,
                               advanced=True,
                               tooltip="full CFG: scale of the picture once the noise level is 0.5 or less."),
                io.Float.Input("audio", default=FULL_GUIDANCE.audio, min=1.0, max=30.0, step=0.1, advanced=True,
                               tooltip="full CFG: scale of the sound."),
                io.Float.Input("sr_scale", default=SR_GUIDANCE.video, min=1.0, max=30.0, step=0.1, advanced=True,
                               tooltip="super-resolution CFG: its scale."),
            ],
            outputs=[io.Guider.Output()],
        )

    @classmethod
    def execute(cls, model, positive, guidance, video, video_late, audio, sr_scale, negative=None) -> io.NodeOutput:
        if guidance == AUTO:
            guidance = FULL if find_mode(model, AUTO) == FULL else NO_GUIDANCE
        chosen = {
            NO_GUIDANCE: None,
            FULL: Guidance(video, video_late, audio),
            SR_CFG: replace(SR_GUIDANCE, video=sr_scale, video_late=sr_scale),
        }[guidance]
        return io.NodeOutput(sampling.StreamGuider(model, chosen, positive, negative))


class MagiHumanSamplerSelect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanSamplerSelect",
            display_name="MagiHuman Sampler Select",
            category=CATEGORY,
            description="MagiHuman's two solvers, for SamplerCustomAdvanced.",
            search_aliases=["unipc", "lcm", "solver", "magihuman"],
            inputs=[
                io.Combo.Input("sampler", options=["renoise", "unipc"], default="renoise", tooltip=(
                    "renoise for the distilled model: each step estimates the clip and adds fresh noise. unipc for "
                    "the base and super-resolution models.")),
                io.Int.Input("sr_noise_level", default=SR_540P.noise_level, min=0, max=999, advanced=True,
                             tooltip=NOISE_TIP),
            ],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, sampler, sr_noise_level) -> io.NodeOutput:
        return io.NodeOutput(sampling.make_sampler(sampler, noise_level=sr_noise_level))


NODES = [MagiHumanSampler, MagiHumanScheduler, MagiHumanGuider, MagiHumanSamplerSelect]
