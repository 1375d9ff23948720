"""Nodes that turn a clip's latent into frames, sound and a film."""

import logging
from fractions import Fraction

import torch
from comfy_api.latest import InputImpl, Types, io
from torch import Tensor

from ..magihuman_core.media.waveform import OUTPUT_RATE, replaced, resample_recording
from ..magihuman_core.sizes import FPS, decoded_frames
from .adapter.lazy_video import lazy_video
from .adapter.media import decode_audio, fit_length, stereo
from .adapter.streams import FRAMES, generated_sound, split
from .adapter.vae import check

RATES = [str(OUTPUT_RATE), "48000"]
log = logging.getLogger(__name__)


def as_video(images: Tensor, audio: dict):
    """A VIDEO of IMAGE and AUDIO."""
    components = Types.VideoComponents(images=images, audio=audio, frame_rate=Fraction(FPS))
    return InputImpl.VideoFromComponents(components)


def inputs() -> list:
    """What both nodes take."""
    return [
        io.Vae.Input("vae", tooltip="The Turbo VAE, or the Wan2.2 VAE: slower, with finer detail."),
        io.Vae.Input("audio_vae", tooltip="From Load MagiHuman Audio VAE."),
        io.Latent.Input("latent"),
        io.Combo.Input("sample_rate", options=RATES, default=RATES[0], advanced=True,
                       tooltip="Samples per second of the sound. mp4 does not take the model's own 51200."),
        io.Audio.Input("audio", optional=True, tooltip=(
            "The recording that drove the clip, or the sound of the clip that was redone: where the sound was held it "
            "is heard itself, instead of what the model's audio VAE makes of it.")),
    ]


def clips(latent: dict, vae, audio_vae, rate: int, audio: dict | None):
    """(video latent, audio latent, frames, waveform) of each clip of a LATENT, after a check of what is connected.

    waveform: [2, n], where `audio` is heard; None where the audio latent is to be decoded.
    """
    video, sound = split(latent)
    check(vae, "video", video.shape[1])
    check(audio_vae, "audio", sound.shape[1])
    count = min(decoded_frames(video.shape[2]), sound.shape[2], latent.get(FRAMES, sound.shape[2]))
    masks = generated_sound(latent)
    for number in range(video.shape[0]):
        one, latents = video[number : number + 1], sound[number : number + 1]
        waveform = None
        if audio is not None:
            waveform = fit_length(resample_recording(*stereo(audio), rate), count * rate // FPS)
            spans = open_spans(masks[number], count)
            if spans == [(0, count)]:
                log.warning("The sound of the clip was not held, so what the model made is heard, and `audio` is not: "
                            "for lips that follow a recording, put MagiHuman Driving Audio before the sampler.")
                yield one, latents, count, None
                continue
            decoded = decode_audio(audio_vae, latents, rate) if spans else waveform
            for start, end in spans:
                waveform = replaced(waveform, decoded, start * rate // FPS, end * rate // FPS)
        yield one, latents, count, waveform


def open_spans(mask: Tensor, count: int) -> list[tuple[int, int]]:
    """The audio latents, first and last (exclusive), that were generated, of the first `count`. mask: [1, A]."""
    opened = mask[0, :count] > 0
    edges = torch.nn.functional.pad(opened.int(), (1, 1)).diff().nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


class MagiHumanDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanDecode",
            display_name="MagiHuman Decode",
            category="MagiHuman/latent",
            description="Decodes picture and sound, of equal length, at 25 frames per second. Of several clips in one "
                        "latent it makes a list: the nodes behind it run once for each.",
            search_aliases=["vae decode", "audio decode", "create video", "magihuman"],
            inputs=inputs(),
            outputs=[io.Image.Output(display_name="images", is_output_list=True), io.Audio.Output(is_output_list=True),
                     io.Video.Output(is_output_list=True)],
        )

    @classmethod
    def execute(cls, vae, audio_vae, latent, sample_rate, audio=None) -> io.NodeOutput:
        results, rate = [], int(sample_rate)
        for video, sound, count, waveform in clips(latent, vae, audio_vae, rate, audio):
            images = vae.decode(video)[0][:count]  # [1, F, h, w, 3] -> [F, h, w, 3]
            if waveform is None:
                waveform = decode_audio(audio_vae, sound, rate)
            waveform = fit_length(waveform, images.shape[0] * rate // FPS).clamp(-1, 1)
            result = {"waveform": waveform[None], "sample_rate": rate}
            results.append((images, result, as_video(images, result)))
        return io.NodeOutput(*(list(outputs) for outputs in zip(*results, strict=True)))


class MagiHumanDecodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanDecodeVideo",
            display_name="MagiHuman Decode to Video",
            category="MagiHuman/latent",
            description="A film that is decoded window by window while Save Video writes it, so that memory stays the "
                        "same for seconds and for minutes. For long clips, instead of MagiHuman Decode.",
            search_aliases=["vae decode", "long video", "stream", "low memory", "save video", "magihuman"],
            inputs=inputs(),
            outputs=[io.Video.Output(is_output_list=True)],
        )

    @classmethod
    def execute(cls, vae, audio_vae, latent, sample_rate, audio=None) -> io.NodeOutput:
        rate = int(sample_rate)
        return io.NodeOutput([lazy_video(vae, audio_vae, video, sound, count, waveform, rate)
                              for video, sound, count, waveform in clips(latent, vae, audio_vae, rate, audio)])


NODES = [MagiHumanDecode, MagiHumanDecodeVideo]
