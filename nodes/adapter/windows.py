"""Clips of any length in ComfyUI: the windows of the core, through ComfyUI's context handler.

ComfyUI asks a model's context handler for the estimate of every prompt in each step, below guidance, masks and
samplers. So windows go with all of them, and with everything that other nodes hook into a single evaluation.
"""

import logging
import math

import comfy.conds
import comfy.context_windows
import comfy.model_management
import comfy.patcher_extension
import comfy.utils
import torch
from torch import Tensor

from ...magihuman_core.errors import InputError
from ...magihuman_core.sampling.windows import (
    Window,
    Windows,
    check_window,
    plan_windows,
    shared_frames,
    window_frames,
)
from ...magihuman_core.sizes import latent_frames
from .conds import ScriptCond
from .model import MagiHumanModel

Wrappers = comfy.patcher_extension.WrappersMP
KEY = "magihuman_windows"  # of our wrappers, and of what the options of a sampling run hold for us
log = logging.getLogger(__name__)


def with_windows(patcher, window: float, overlap: float, anchor: bool = True):
    """A MODEL that makes long clips in windows. window, overlap: in seconds; window 0: what the model was trained on.

    anchor: whether each window sees the last picture given before it; super-resolution goes by the small clip alone.
    Raises InputError where the overlap does not fit, or the model is not MagiHuman's.
    """
    if not isinstance(patcher.model, MagiHumanModel):
        raise InputError("The model is not MagiHuman's: connect Load MagiHuman Model.")
    frames = window_frames(window or patcher.model.window)
    shared = shared_frames(overlap)
    check_window(frames, shared)
    handler = WindowHandler(frames, shared, anchor and not patcher.model.super_resolution)
    clone = patcher.clone()
    clone.model_options["context_handler"] = handler
    for kind, wrapper in ((Wrappers.OUTER_SAMPLE, handler.outer_sample),
                          (Wrappers.PREPARE_SAMPLING, handler.prepare_sampling)):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    return clone


class WindowHandler(comfy.context_windows.ContextHandlerABC):
    """Evaluates each window by itself and averages them, as WindowedDenoiser does.

    frames, overlap: latent frames. anchor: see Windows.anchored.
    """

    freenoise = False  # asked by what a Context Windows node of core left on the model

    def __init__(self, frames: int, overlap: int, anchor: bool):
        self.frames, self.overlap, self.anchor = frames, overlap, anchor

    def plan(self, shapes) -> Windows:
        """The windows of a clip. shapes: of its two streams. Raises InputError where they differ in length."""
        frames, length = shapes[0][2], shapes[1][2]
        if latent_frames(length) != frames:
            raise InputError(f"The picture has {frames} latent frames, but the sound's {length} latents go with "
                             f"{latent_frames(length)}: windows need both of one length.")
        return plan_windows(length, self.frames, self.overlap)

    def window_shapes(self, shapes) -> list[tuple[int, ...]]:
        """The shapes of both streams in one window, the largest that the network sees at once."""
        window = self.plan(shapes).parts[0]
        return [(*shapes[0][:2], window.frames, *shapes[0][3:]), (*shapes[1][:2], window.heard)]

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        """Around a whole run: notes its shapes and mask, which single evaluations are not told."""
        shapes = kwargs.get("latent_shapes")
        options = executor.class_obj.model_options
        if options.get("context_handler") is self and shapes is not None and len(shapes) == 2:
            options[KEY] = {"shapes": shapes, "mask": denoise_mask}
            count = len(self.plan(shapes).parts)
            if count > 1:
                log.info("The clip is made in %d windows of %d latent frames, which share %d.", count, self.frames,
                         self.overlap)
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)

    def prepare_sampling(self, executor, model, noise_shape, conds, *args, **kwargs):
        """Before memory is made free: as much as one window needs."""
        run = (kwargs.get("model_options") or {}).get(KEY)
        if run is not None:
            noise_shape = [noise_shape[0], 1, sum(math.prod(shape[1:]) for shape in self.window_shapes(run["shapes"]))]
        return executor(model, noise_shape, conds, *args, **kwargs)

    def should_use_context(self, model, conds, x_in, timestep, model_options) -> bool:
        shapes = model.latent_shapes
        return shapes is not None and len(shapes) == 2 and len(self.plan(shapes).parts) > 1

    def get_resized_cond(self, cond_in, x_in, window, device=None):
        """Conditions for a window: a tuple of it and of the shapes of its streams."""
        if cond_in is None:
            return None
        place, shapes = window
        middle = place.start + place.frames / 2
        return [{**cond, "model_conds": {
            **{key: value.at(middle) if isinstance(value, ScriptCond) else value
               for key, value in cond["model_conds"].items()},
            "latent_shapes": comfy.conds.CONDConstant(shapes)}} for cond in cond_in]

    def execute(self, calc_cond_batch, model, conds, x_in, timestep, model_options) -> list[Tensor]:
        """The estimates of the packed vector x_in [B, 1, n], one for each of the conditions."""
        shapes = model.latent_shapes
        video, audio = comfy.utils.unpack_latents(x_in, shapes)
        mask = (model_options.get(KEY) or {}).get("mask")
        masks = None if mask is None else comfy.utils.unpack_latents(mask.expand(x_in.shape), shapes)
        windows = self.plan(shapes)
        if self.anchor and masks is not None:
            windows = windows.anchored(masks[0])

        def evaluate(window: Window) -> tuple[Tensor, Tensor]:
            comfy.model_management.throw_exception_if_processing_interrupted()
            seen = window.seen_video(video, video)  # what is given, ComfyUI has put in
            x, sizes = comfy.utils.pack_latents([seen, window.cut_audio(audio)])
            if masks is not None and not (window.cut_video(masks[0]).any() or window.cut_audio(masks[1]).any()):
                found = [x] * len(conds)  # all of it is kept, and will be put in by the sampler
            else:
                resized = [self.get_resized_cond(cond, x_in, (window, sizes)) for cond in conds]
                found = calc_cond_batch(model, resized, x, timestep, model_options)
            streams = [comfy.utils.unpack_latents(estimate, sizes) for estimate in found]
            return torch.cat([part[0] for part in streams]), torch.cat([part[1] for part in streams])

        blended = [stream.chunk(len(conds)) for stream in windows.blend(evaluate)]
        return [comfy.utils.pack_latents(list(streams))[0] for streams in zip(*blended, strict=True)]
