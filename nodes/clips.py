"""Nodes between films and latents: a film becomes a clip, is encoded, and gets its continuation joined to it."""

import torch
from comfy_api.latest import io

from ..magihuman_core.errors import InputError
from ..magihuman_core.media.waveform import continued, resample_recording
from ..magihuman_core.sampling.regenerate import all_kept
from ..magihuman_core.sizes import FPS, PIXELS_PER_TOKEN
from .adapter.media import clip_latents, fit_length, rgb, stereo
from .adapter.streams import FRAMES, with_streams
from .adapter.video import fit_video
from .decode import as_video

CATEGORY = "MagiHuman/clip"


class MagiHumanFitClip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanFitClip",
            display_name="MagiHuman Fit Clip",
            category=CATEGORY,
            description="Makes a clip of any film: 25 frames per second, width and height in multiples of 32, and "
                        "sound exactly as long as the picture.",
            search_aliases=["convert fps", "frame rate", "resize video", "video to images", "25 fps", "magihuman"],
            inputs=[
                io.Video.Input("video", tooltip="From Load Video: any frame rate, size and length, upright or turned, "
                                                "with or without sound."),
                io.Int.Input("width", default=0, min=0, max=4096, step=PIXELS_PER_TOKEN, tooltip=(
                    "Pixels, floored to a multiple of 32; the middle is cropped to the aspect. 0: by the height and "
                    "the film's aspect. Both 0: the film's own, or smaller where it is larger than the model's "
                    "448x256.")),
                io.Int.Input("height", default=0, min=0, max=4096, step=PIXELS_PER_TOKEN,
                             tooltip="Pixels, as the width."),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="Its frames, 25 for each second."),
                io.Audio.Output(tooltip="Its sound, as long as the frames; silence where it has none."),
            ],
        )

    @classmethod
    def execute(cls, video, width, height) -> io.NodeOutput:
        return io.NodeOutput(*fit_video(video, width, height))


class MagiHumanEncodeClip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanEncodeClip",
            display_name="MagiHuman Encode Clip",
            category=CATEGORY,
            description="Encodes a finished clip, picture and sound, of which everything is kept until MagiHuman "
                        "Regenerate opens a part. With a new recording instead of the clip's own sound it is the "
                        "start of a dub.",
            search_aliases=["vae encode", "encode video", "video to video", "v2v", "dub", "magihuman"],
            inputs=[
                io.Vae.Input("vae", tooltip="The Wan2.2 VAE. The Turbo VAE cannot encode."),
                io.Vae.Input("audio_vae", tooltip="From Load MagiHuman Audio VAE."),
                io.Image.Input("images", tooltip="The clip's frames, from MagiHuman Fit Clip."),
                io.Audio.Input("audio", tooltip="The clip's own sound, or a new recording that the lips are to follow. "
                                                "It is cut to the frames, or followed by silence."),
            ],
            outputs=[io.Latent.Output(tooltip="The clip, with everything kept unchanged.")],
        )

    @classmethod
    def execute(cls, vae, audio_vae, images, audio) -> io.NodeOutput:
        latent = all_kept(*clip_latents(vae, audio_vae, images, audio))
        return io.NodeOutput({**with_streams({}, latent), FRAMES: images.shape[0]})


class MagiHumanJoin(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanJoin",
            display_name="MagiHuman Join",
            category=CATEGORY,
            description="Joins a clip and its continuation. The overlap is left out, sound is cut to the frames, and "
                        "the joint is faded, so that picture and sound stay together however often a clip is "
                        "continued.",
            search_aliases=["concatenate video", "append video", "join clips", "extend", "magihuman"],
            inputs=[
                io.Image.Input("old_images", tooltip="The clip's frames, as MagiHuman Extend got them."),
                io.Audio.Input("old_audio", tooltip="The clip's sound, at any sample rate."),
                io.Image.Input("images", tooltip="The continuation's frames, from MagiHuman Decode, of the same size."),
                io.Audio.Input("audio", tooltip="The continuation's sound, from MagiHuman Decode; the joined sound has "
                                                "its sample rate."),
                io.Int.Input("overlap", default=0, min=0, max=100000, tooltip=(
                    "Frames of the clip that the continuation begins with, 0 to 100000: connect `overlap` of MagiHuman "
                    "Extend.")),
            ],
            outputs=[io.Image.Output(display_name="images"), io.Audio.Output(), io.Video.Output()],
        )

    @classmethod
    def execute(cls, old_images, old_audio, images, audio, overlap) -> io.NodeOutput:
        if old_images.shape[1:3] != images.shape[1:3]:
            sizes = [f"{part.shape[2]}x{part.shape[1]}" for part in (old_images, images)]
            raise InputError(f"The clip has {sizes[0]} pixels and its continuation {sizes[1]}: both need the same "
                             "size. Connect the frames that MagiHuman Extend got.")
        waveform, rate = stereo(audio)
        old = fit_length(resample_recording(*stereo(old_audio), rate), round(old_images.shape[0] * rate / FPS))
        start = round(overlap * rate / FPS)
        count = min(images.shape[0] - overlap, int((waveform.shape[1] - start) * FPS / rate + 1e-6))
        if count < 1:
            raise InputError("Nothing is added to the clip: its continuation is shorter than a frame beyond the "
                             "overlap. Connect what MagiHuman Decode gives.")
        joined = continued(old, waveform[:, : start + round(count * rate / FPS)], start)
        frames = torch.cat([rgb(old_images), rgb(images[overlap : overlap + count]).to(old_images)])
        sound = {"waveform": fit_length(joined, round(frames.shape[0] * rate / FPS))[None], "sample_rate": rate}
        return io.NodeOutput(frames, sound, as_video(frames, sound))


NODES = [MagiHumanFitClip, MagiHumanEncodeClip, MagiHumanJoin]
