"""Nodes that make what sampling starts from: an empty clip, content that stays as it is, and an enlarged clip."""

import logging
import math
from dataclasses import replace

import torch
from comfy_api.latest import io

from ..magihuman_core.errors import InputError
from ..magihuman_core.recipes import BASE, upscaled_size
from ..magihuman_core.sampling import frozen
from ..magihuman_core.sampling.regenerate import keep_still
from ..magihuman_core.sampling.super_resolution import upsample
from ..magihuman_core.sizes import (
    FPS,
    PIXELS_PER_LATENT,
    PIXELS_PER_TOKEN,
    audio_length,
    covering_length,
    floor_size,
    frames_of,
)
from .adapter.media import audio_latent, fit_length, image_latent, stereo
from .adapter.streams import (
    FRAMES,
    GENERATED,
    UPSCALED,
    empty,
    generated_sound,
    joint_latent,
    split,
    with_streams,
)

CATEGORY = "MagiHuman/latent"
MAX_NEW_SECONDS = 3600  # of what a node makes at once; one clip after the other a clip may reach sizes.MAX_SECONDS
SECONDS_TIP = (
    "Length of the clip, 0.2 to 3600. The model was made for 4 to 10 seconds: for more, use MagiHuman Windows."
)
FROM_AUDIO, FROM_LATENT = "from the sound", "from the latent"
FACTOR = "factor"
log = logging.getLogger(__name__)


class EmptyMagiHumanLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EmptyMagiHumanLatent",
            display_name="Empty MagiHuman Latent",
            category=CATEGORY,
            description="An empty clip, picture and sound together, at 25 frames per second.",
            search_aliases=["empty latent video", "audio video latent", "magihuman"],
            inputs=[
                io.Int.Input("width", default=BASE.width, min=64, max=4096, step=PIXELS_PER_TOKEN, tooltip=(
                    "Pixels, floored to a multiple of 32. The model was trained on 448x256 and 256x448; for more, "
                    "upscale the result with MagiHuman Latent Upscale and a super-resolution model.")),
                io.Int.Input("height", default=BASE.height, min=64, max=4096, step=PIXELS_PER_TOKEN,
                             tooltip="Pixels, as the width."),
                io.Float.Input("seconds", default=4.0, min=0.2, max=MAX_NEW_SECONDS, step=0.2, tooltip=SECONDS_TIP),
                io.Int.Input("batch_size", default=1, min=1, max=64, optional=True, advanced=True, tooltip=(
                    "Clips to make, 1 to 64. MagiHuman Sampler makes them one after another, from seed, seed + 1 and "
                    "so on, and MagiHuman Decode gives a list of them.")),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, width, height, seconds, batch_size=1) -> io.NodeOutput:
        return io.NodeOutput(empty(*floor_size(width, height), audio_length(seconds), batch=batch_size))


class MagiHumanReferenceImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanReferenceImage",
            display_name="MagiHuman Reference Image",
            category=CATEGORY,
            description="Makes a picture the first frame of the clip. Its middle is cropped to the clip's aspect.",
            search_aliases=["image to video", "i2v", "first frame", "start image", "magihuman"],
            inputs=[
                io.Vae.Input("vae", tooltip="The Wan2.2 VAE. The Turbo VAE cannot encode."),
                io.Image.Input("image", tooltip="One picture; of a batch the first is taken."),
                io.Latent.Input("latent", tooltip="The clip, from Empty MagiHuman Latent."),
            ],
            outputs=[io.Latent.Output(tooltip="The clip with its first latent frame kept unchanged.")],
        )

    @classmethod
    def execute(cls, vae, image, latent) -> io.NodeOutput:
        start = joint_latent(latent)
        return io.NodeOutput(with_streams(latent, keep_still(start, 0, image_latent(vae, image, start.video))))


class MagiHumanDrivingAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanDrivingAudio",
            display_name="MagiHuman Driving Audio",
            category=CATEGORY,
            description="Makes a recording the sound of the clip, so that the lips follow it.",
            search_aliases=["lip sync", "audio driven", "own voice", "talking", "a2v", "magihuman"],
            inputs=[
                io.Vae.Input("audio_vae", tooltip="From Load MagiHuman Audio VAE."),
                io.Audio.Input("audio", tooltip="The voice, at any sample rate, mono or stereo. Put its words into "
                                                "the prompt as well."),
                io.Latent.Input("latent", tooltip="The clip, from Empty MagiHuman Latent or MagiHuman Reference "
                                                  "Image."),
                io.Combo.Input("length", options=[FROM_AUDIO, FROM_LATENT], default=FROM_AUDIO, tooltip=(
                    "from the sound: the clip gets as long as the recording. from the latent: the recording is cut "
                    "to the clip, or followed by silence.")),
                io.Float.Input("max_seconds", default=20.0, min=0.2, max=MAX_NEW_SECONDS, step=0.2, advanced=True,
                               tooltip=(
                    "A longer recording is cut here, 0.2 to 3600, so that memory does not run out. With MagiHuman "
                    "Windows, clips may be as long as you like.")),
            ],
            outputs=[io.Latent.Output(tooltip="The clip with its sound kept unchanged.")],
        )

    @classmethod
    def execute(cls, audio_vae, audio, latent, length, max_seconds) -> io.NodeOutput:
        start = joint_latent(latent)
        latent = {key: value for key, value in latent.items() if key != GENERATED}  # all of the sound is held now
        clip_length = start.audio.shape[2]
        waveform, rate = stereo(audio)
        if length == FROM_AUDIO:
            most = round(max_seconds * rate)
            if waveform.shape[1] > most:
                log.warning("The recording lasts %.1f s and is cut at %g s: raise max_seconds of MagiHuman Driving "
                            "Audio.", waveform.shape[1] / rate, max_seconds)
            waveform = waveform[:, :most]
            frames = frames_of(waveform.shape[1], rate)
            clip_length = covering_length(frames)
            latent = {**latent, FRAMES: frames}  # decoded, the clip is as long as the recording
        waveform = fit_length(waveform, math.ceil(clip_length * rate / FPS))
        driving = audio_latent(audio_vae, waveform, rate, start.audio)[:, :, :clip_length]
        return io.NodeOutput(with_streams(latent, frozen.keep_audio(start, driving)))


class MagiHumanLatentUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanLatentUpscale",
            display_name="MagiHuman Latent Upscale",
            category=CATEGORY,
            description="Enlarges a finished clip's latent for a super-resolution model, which then adds the detail. "
                        "Its sound is kept as it is.",
            search_aliases=["super resolution", "upscale latent", "hires", "1080p", "magihuman"],
            inputs=[
                io.Latent.Input("latent", tooltip="A finished clip, from the base or distilled model."),
                io.Combo.Input("target", options=["540p", "1080p", FACTOR], default="540p", tooltip=(
                    "540p and 1080p: the area of 896x512 and 1920x1088 at the clip's own aspect. factor: by the "
                    "number below. Use the super-resolution model of the same name.")),
                io.Float.Input("factor", default=2.0, min=1.0, max=8.0, step=0.1, advanced=True, tooltip=(
                    "Only for target 'factor', 1 to 8; width and height are floored to multiples of 32 pixels.")),
                io.Vae.Input("vae", optional=True, tooltip="The Wan2.2 VAE, where there is a reference image."),
                io.Image.Input("image", optional=True, tooltip=(
                    "The clip's reference image once more: encoded at the large size, it keeps the first frame "
                    "sharp.")),
            ],
            outputs=[io.Latent.Output(tooltip="For MagiHuman Sampler with a super-resolution model.")],
        )

    @classmethod
    def execute(cls, latent, target, factor, vae=None, image=None) -> io.NodeOutput:
        video, audio = split(latent)
        width, height = video.shape[4] * PIXELS_PER_LATENT, video.shape[3] * PIXELS_PER_LATENT
        wanted = (int(width * factor), int(height * factor)) if target == FACTOR else target
        width, height = upscaled_size(width, height, wanted)
        large = upsample(video, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
        start = replace(frozen.all_generated(large, audio), audio_mask=torch.zeros_like(audio[:, :1]))
        if image is not None:
            if vae is None:
                raise InputError("To use the image, connect the Wan2.2 VAE as well.")
            start = keep_still(start, 0, image_latent(vae, image, large, warn=False))
        return io.NodeOutput({**with_streams(latent, start), UPSCALED: True, GENERATED: generated_sound(latent)})


NODES = [EmptyMagiHumanLatent, MagiHumanReferenceImage, MagiHumanDrivingAudio, MagiHumanLatentUpscale]
