"""Nodes that make what sampling starts from: an empty clip, and content that stays as it is."""

import torch
from comfy_api.latest import io
from torch import Tensor

from ..magihuman_core.errors import InputError
from ..magihuman_core.media.image import fit_image, to_rgb
from ..magihuman_core.media.waveform import to_stereo
from ..magihuman_core.sizes import (
    FPS,
    PIXELS_PER_LATENT,
    PIXELS_PER_TOKEN,
    audio_tokens,
    decoded_frames,
    latent_frames,
    snap_size,
)
from .adapter.streams import empty, joined, masks, split
from .adapter.vae import encode_audio, encode_frames

CATEGORY = "MagiHuman/latent"
MAX_SECONDS = 60
SECONDS_TIP = (
    "Length of the clip, 0.2 to 60. The model was made for 4 to 10 seconds; time and memory grow faster than the "
    "length."
)
FROM_AUDIO, FROM_LATENT = "from the sound", "from the latent"


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
                io.Int.Input("width", default=448, min=64, max=4096, step=PIXELS_PER_TOKEN, tooltip=(
                    "Pixels, floored to a multiple of 32. The model was trained on 448x256 and 256x448; for more, "
                    "upscale the result with MagiHuman Latent Upscale and a super-resolution model.")),
                io.Int.Input("height", default=256, min=64, max=4096, step=PIXELS_PER_TOKEN,
                             tooltip="Pixels, as the width."),
                io.Float.Input("seconds", default=4.0, min=0.2, max=MAX_SECONDS, step=0.2, tooltip=SECONDS_TIP),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, width, height, seconds) -> io.NodeOutput:
        return io.NodeOutput(empty(*snap_size(width, height), audio_tokens(seconds)))


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
            outputs=[io.Latent.Output(tooltip="The clip with its first latent frame held fixed.")],
        )

    @classmethod
    def execute(cls, vae, image, latent) -> io.NodeOutput:
        return io.NodeOutput(hold_first_frame(vae, image, latent))


def hold_first_frame(vae, image: Tensor, latent: dict) -> dict:
    """Put a picture into latent frame 0 of a LATENT, to be kept. image: IMAGE [B, h, w, C]."""
    video, audio = split(latent)
    video_mask, audio_mask = masks(latent)
    width, height = (side * PIXELS_PER_LATENT for side in video.shape[:2:-1])
    picture = encode_frames(vae, fit_image(to_pil(image), width, height))
    if picture.shape[1] != video.shape[1] or picture.shape[3:] != video.shape[3:]:
        raise InputError(
            f"The VAE makes {picture.shape[1]} channels of {picture.shape[4]}x{picture.shape[3]} cells, but the "
            f"latent has {video.shape[1]} of {video.shape[4]}x{video.shape[3]}: connect the Wan2.2 VAE."
        )
    video = video.clone()
    video[:, :, :1] = picture.to(video)
    video_mask[:, :, 0] = 0
    return joined(latent, video, audio, video_mask, audio_mask)


def to_pil(image: Tensor):
    """The first picture of an IMAGE batch; a transparent one on white."""
    from PIL import Image

    if image.ndim != 4 or 0 in image.shape:
        raise InputError(f"The image has shape {list(image.shape)}, expected a picture. Connect Load Image.")
    pixels = (image[0].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return to_rgb(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


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
                io.Float.Input("max_seconds", default=20.0, min=0.2, max=MAX_SECONDS, step=0.2, advanced=True, tooltip=(
                    "A longer recording is cut here, 0.2 to 60, so that memory does not run out.")),
            ],
            outputs=[io.Latent.Output(tooltip="The clip with its sound held fixed.")],
        )

    @classmethod
    def execute(cls, audio_vae, audio, latent, length, max_seconds) -> io.NodeOutput:
        video, old = split(latent)
        video_mask, _ = masks(latent)
        waveform, rate = stereo(audio)
        seconds = max_seconds if length == FROM_AUDIO else old.shape[2] / FPS
        waveform = waveform[:, : round(seconds * rate)]
        if length == FROM_LATENT:
            missing = round(seconds * rate) - waveform.shape[1]
            waveform = torch.nn.functional.pad(waveform, (0, max(0, missing)))
        sound = sound_latent(audio_vae, waveform, rate, old)
        if length == FROM_LATENT:
            sound = sound[:, :, : old.shape[2]]
        frames = latent_frames(sound.shape[2])
        video, video_mask = resize_time(video, frames, 0), resize_time(video_mask, frames, 1)
        sound = sound.expand(video.shape[0], -1, -1)
        return io.NodeOutput(joined(latent, video, sound, video_mask, torch.zeros_like(sound[:, :1])))


def resize_time(stream: Tensor, frames: int, fill: float) -> Tensor:
    """A stream [B, C, T, H, W] cut to so many frames, or followed by frames of a value."""
    B, C, T, H, W = stream.shape
    return torch.cat([stream[:, :, :frames], stream.new_full((B, C, max(0, frames - T), H, W), fill)], 2)


def stereo(audio: dict) -> tuple[Tensor, int]:
    """(waveform [2, L], rate) of an AUDIO's first sound. Raises InputError where there is none."""
    if audio is None or audio["waveform"].shape[-1] == 0:
        raise InputError("The audio is empty: it holds no samples. Choose another recording.")
    waveform = to_stereo(audio["waveform"][0].float())
    if not bool(torch.isfinite(waveform).all()):
        raise InputError("The audio holds samples that are not numbers. Export the recording again.")
    return waveform, int(audio["sample_rate"])


def sound_latent(audio_vae, waveform: Tensor, rate: int, like: Tensor) -> Tensor:
    """The latent [1, c, n] of a waveform, checked against the channels of a clip's sound."""
    sound = encode_audio(audio_vae, waveform, rate)
    if sound.shape[1] != like.shape[1]:
        raise InputError(f"The audio VAE makes {sound.shape[1]} channels, but the latent's sound has "
                         f"{like.shape[1]}: connect MagiHuman's audio VAE.")
    return sound.to(like)


class MagiHumanExtend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanExtend",
            display_name="MagiHuman Extend",
            category=CATEGORY,
            description="Continues a clip: its last frames and their sound begin the new one, and stay as they are. "
                        "In the result, leave out the first `overlap` frames and join the rest to the old clip.",
            search_aliases=["continue video", "long video", "extend clip", "magihuman"],
            inputs=[
                io.Vae.Input("vae", tooltip="The Wan2.2 VAE. The Turbo VAE cannot encode."),
                io.Vae.Input("audio_vae", tooltip="From Load MagiHuman Audio VAE."),
                io.Image.Input("images", tooltip="The clip's frames, at 25 per second, width and height multiples of "
                                                 "32."),
                io.Audio.Input("audio", tooltip="The clip's sound."),
                io.Float.Input("seconds", default=4.0, min=0.2, max=MAX_SECONDS, step=0.2,
                               tooltip="Length of what is added, 0.2 to 60 seconds."),
                io.Float.Input("overlap_seconds", default=1.0, min=0.04, max=10.0, step=0.16, advanced=True, tooltip=(
                    "How much of the old clip the model sees, 0.04 to 10 seconds. More keeps voice and movement "
                    "better, and costs time. Made shorter where the clip is.")),
            ],
            outputs=[
                io.Latent.Output(tooltip="The overlap, held fixed, and the empty rest."),
                io.Int.Output(display_name="overlap", tooltip="Frames of the old clip at the start of the new one."),
            ],
        )

    @classmethod
    def execute(cls, vae, audio_vae, images, audio, seconds, overlap_seconds) -> io.NodeOutput:
        frames, height, width = images.shape[:3]
        if height % PIXELS_PER_TOKEN or width % PIXELS_PER_TOKEN:
            raise InputError(f"The frames are {width}x{height} pixels, expected multiples of 32: resize or "
                             "crop them.")
        waveform, rate = stereo(audio)
        kept = min(round(overlap_seconds * FPS), frames, waveform.shape[1] * FPS // rate)
        if kept < 1:
            raise InputError("The clip to be extended is shorter than one frame: connect its frames and its sound.")
        kept = decoded_frames(latent_frames(kept))  # whole latent frames: 1, 5, 9, ...
        latent = empty(width, height, kept + round(seconds * FPS))
        video, sound = split(latent)
        video_mask, audio_mask = masks(latent)

        pixels = images[-kept:, ..., :3].movedim(-1, 0)[None] * 2 - 1  # [F, h, w, 3] -> [1, 3, F, h, w]
        old = encode_frames(vae, pixels)
        # The last frame's sound ends with the clip, or a little later where the sound goes on.
        end = min(waveform.shape[1], round(frames * rate / FPS))
        old_sound = sound_latent(audio_vae, waveform[:, max(0, end - round(kept * rate / FPS)) : end], rate, sound)
        if old.shape[1] != video.shape[1]:
            raise InputError(f"The VAE makes {old.shape[1]} channels, expected {video.shape[1]}: connect "
                             "the Wan2.2 VAE.")
        video[:, :, : old.shape[2]], video_mask[:, :, : old.shape[2]] = old, 0
        count = min(kept, old_sound.shape[2])
        sound[:, :, :count], audio_mask[:, :, :count] = old_sound[:, :, :count], 0
        return io.NodeOutput(joined(latent, video, sound, video_mask, audio_mask), kept)


NODES = [EmptyMagiHumanLatent, MagiHumanReferenceImage, MagiHumanDrivingAudio, MagiHumanExtend]
