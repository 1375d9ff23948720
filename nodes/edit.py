"""Nodes that say what of a clip is made anew, and which pictures it passes through."""

import torch
from comfy_api.latest import io

from ..magihuman_core.errors import InputError
from ..magihuman_core.media.mask import check_mask, crop_mask, ellipse_mask
from ..magihuman_core.media.mask import soft_edge as edge_of
from ..magihuman_core.sampling.regenerate import (
    all_kept,
    keep_outside,
    keep_still,
    latent_region,
    open_frames,
    retake_times,
    seen_share,
    shown_frames,
)
from ..magihuman_core.sizes import FPS, MAX_SECONDS, PIXELS_PER_LATENT, decoded_frames, latent_of_frame
from .adapter.media import image_latent, still_latent
from .adapter.streams import FRAMES, GENERATED, UPSCALED, generated_sound, joint_latent, split, with_streams

CATEGORY = "MagiHuman/clip"
BOTH, PICTURE, SOUND = "both", "picture", "sound"
FIRST, LAST, LOOP, SECONDS = "first", "last", "first and last", "seconds"


class MagiHumanRegenerate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanRegenerate",
            display_name="MagiHuman Regenerate",
            category=CATEGORY,
            description="Opens a part of a finished clip, which is then made anew: a moment (retake), a region such as "
                        "the mouth (dub), or the whole picture (another look). Everything else is kept.",
            search_aliases=["retake", "dub", "inpaint video", "redo", "noise mask", "lip sync", "magihuman"],
            inputs=[
                io.Latent.Input("latent", tooltip="A clip, from MagiHuman Encode Clip or a sampler."),
                io.Float.Input("start", default=0.0, min=0.0, max=MAX_SECONDS, step=0.04,
                               tooltip="Second from which the part is made anew, 0 to 36000."),
                io.Float.Input("end", default=0.0, min=0.0, max=MAX_SECONDS, step=0.04,
                               tooltip="Second up to which it is, 0 to 36000. 0: the end of the clip."),
                io.Combo.Input("part", options=[BOTH, PICTURE, SOUND], default=BOTH, tooltip=(
                    "both, picture or sound. For a dub choose picture: the new recording is kept.")),
                io.Mask.Input("mask", optional=True, tooltip=(
                    "What of the picture is made anew, white, of any size: from MagiHuman Mouth Mask, or painted in "
                    "the mask editor. It is cropped as the clip was. Without it, all of the picture.")),
                io.Int.Input("soft_edge", default=0, min=0, max=512, optional=True, advanced=True, tooltip=(
                    "Pixels over which the new picture fades into the old one in the output `mask`, 1 to 512. 0: a "
                    "part of the clip's size.")),
            ],
            outputs=[
                io.Latent.Output(tooltip="The clip with this part open, for a sampler."),
                io.Mask.Output(display_name="mask", tooltip=(
                    "Where and when the new picture is seen, with soft ends: paste the decoded frames over the old "
                    "ones with it, in Image Composite Masked.")),
            ],
        )

    @classmethod
    def execute(cls, latent, start, end, part, mask=None, soft_edge=0) -> io.NodeOutput:
        video, audio = split(latent)
        kept = all_kept(video, audio)
        count = latent.get(FRAMES, decoded_frames(video.shape[2]))
        whole = start == 0 and end == 0
        first, last = retake_times(start, end or count / FPS, count)
        opened = open_frames(kept, first, last, video=part != SOUND, audio=part != PICTURE)
        width, height = (side * PIXELS_PER_LATENT for side in video.shape[:2:-1])
        where = torch.ones(height, width)
        if mask is not None:
            found = mask.reshape(-1, *mask.shape[-2:]).float().amax(0).cpu()
            check_mask(found)
            fitted = crop_mask(found, width, height)
            opened = keep_outside(opened, latent_region(fitted))
            where = edge_of(fitted, soft_edge or None)
        seen = where[None] * (part != SOUND)
        if not whole:
            seen = seen_share(torch.arange(count), *shown_frames(first, last), count)[:, None, None] * seen
        rest = {key: value for key, value in latent.items() if key != UPSCALED}  # it is a finished clip now
        made = generated_sound(latent)
        if bool((made > 0).all()):  # a clip that was made as a whole: the sound that comes with it is its own
            made = torch.zeros_like(made)
        return io.NodeOutput({**with_streams(rest, opened), GENERATED: made}, seen)


class MagiHumanMouthMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        fraction = {"min": 0.01, "max": 0.99, "step": 0.01}
        return io.Schema(
            node_id="MagiHumanMouthMask",
            display_name="MagiHuman Mouth Mask",
            category=CATEGORY,
            description="A mask of an ellipse, in fractions of the picture: the mouth and what moves with it, for "
                        "MagiHuman Regenerate.",
            search_aliases=["ellipse mask", "lips", "mouth", "dub", "magihuman"],
            inputs=[
                io.Image.Input("images", tooltip="The clip's frames: the mask gets their size."),
                io.Float.Input("x", default=0.5, **fraction,
                               tooltip="Middle of the mouth from the left, 0.01 to 0.99 of the width."),
                io.Float.Input("y", default=0.65, **fraction,
                               tooltip="Middle of the mouth from the top, 0.01 to 0.99 of the height."),
                io.Float.Input("width", default=0.4, **fraction, tooltip="Width of the ellipse, 0.01 to 0.99 of the "
                                                                         "picture. Wide enough for an open mouth."),
                io.Float.Input("height", default=0.3, **fraction,
                               tooltip="Height of the ellipse, 0.01 to 0.99 of the picture, with the chin."),
            ],
            outputs=[io.Mask.Output()],
        )

    @classmethod
    def execute(cls, images, x, y, width, height) -> io.NodeOutput:
        return io.NodeOutput(ellipse_mask((x, y, width, height), images.shape[2], images.shape[1])[None])


class MagiHumanKeyframe(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanKeyframe",
            display_name="MagiHuman Keyframe",
            category="MagiHuman/latent",
            description="Makes the clip show a picture at a time: as its first or last frame, at a second, or as both "
                        "ends, so that it loops. Use one of these nodes for each picture.",
            search_aliases=["first frame last frame", "flf2v", "loop", "end image", "image to video", "magihuman"],
            inputs=[
                io.Vae.Input("vae", tooltip="The Wan2.2 VAE. The Turbo VAE cannot encode."),
                io.Image.Input("image", tooltip="One picture; of a batch the first is taken. Its middle is cropped to "
                                                "the clip's aspect."),
                io.Latent.Input("latent", tooltip="The clip, from Empty MagiHuman Latent, or with its sound from "
                                                  "MagiHuman Driving Audio."),
                io.Combo.Input("at", options=[FIRST, LAST, LOOP, SECONDS], default=LAST, tooltip=(
                    "first, last, or first and last for a loop. seconds: at the time below.")),
                io.Float.Input("seconds", default=1.0, min=0.0, max=MAX_SECONDS, step=0.04,
                               tooltip="Only for 'seconds': when the picture is shown, 0 to 36000."),
            ],
            outputs=[io.Latent.Output(tooltip="The clip with that frame kept unchanged.")],
        )

    @classmethod
    def execute(cls, vae, image, latent, at, seconds) -> io.NodeOutput:
        clip = joint_latent(latent)
        frames = clip.video.shape[2]
        last = frames - 1
        places = {FIRST: [0], LAST: [last], LOOP: [0, last], SECONDS: [latent_of_frame(round(seconds * FPS))]}[at]
        if max(places) > last:
            end = decoded_frames(frames) / FPS
            raise InputError(f"A keyframe is at {seconds:g} s, but the clip ends at {end:.2f} s. "
                             "Choose an earlier time, or last.")
        if at == LOOP and last == 0:
            raise InputError("The clip has one latent frame only, which cannot be the first and the last: make it "
                             "longer.")
        for place in places:
            encode = still_latent if place else image_latent
            clip = keep_still(clip, place, encode(vae, image, clip.video))
        return io.NodeOutput(with_streams(latent, clip))


NODES = [MagiHumanRegenerate, MagiHumanMouthMask, MagiHumanKeyframe]
