"""The node that turns a clip's latent into frames, sound and a film."""

from fractions import Fraction

from comfy_api.latest import InputImpl, Types, io

from ..magihuman_core.errors import InputError
from ..magihuman_core.media.waveform import OUTPUT_RATE, resample
from ..magihuman_core.sizes import FPS
from .adapter.media import decode_audio, fit_length, stereo
from .adapter.streams import split
from .adapter.vae import check

RATES = [str(OUTPUT_RATE), "48000"]


class MagiHumanDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanDecode",
            display_name="MagiHuman Decode",
            category="MagiHuman/latent",
            description="Decodes picture and sound, of equal length, at 25 frames per second.",
            search_aliases=["vae decode", "audio decode", "create video", "magihuman"],
            inputs=[
                io.Vae.Input("vae", tooltip="The Turbo VAE, or the Wan2.2 VAE: slower, and truer to the latent."),
                io.Vae.Input("audio_vae", tooltip="From Load MagiHuman Audio VAE."),
                io.Latent.Input("latent"),
                io.Combo.Input("sample_rate", options=RATES, default=RATES[0], advanced=True,
                               tooltip="Samples per second of the sound. mp4 does not take the model's own 51200."),
                io.Audio.Input("audio", optional=True, tooltip=(
                    "The recording that drove the clip: it becomes the sound itself, instead of what the model's "
                    "audio VAE makes of it.")),
            ],
            outputs=[io.Image.Output(display_name="images"), io.Audio.Output(), io.Video.Output()],
        )

    @classmethod
    def execute(cls, vae, audio_vae, latent, sample_rate, audio=None) -> io.NodeOutput:
        video, audio_latents = split(latent)
        if video.shape[0] != 1:
            raise InputError(f"The latent holds {video.shape[0]} clips, but a film holds one: sample them "
                             "one at a time.")
        check(vae, "video", video.shape[1])
        check(audio_vae, "audio", audio_latents.shape[1])
        rate = int(sample_rate)
        images = vae.decode(video)[0]  # [1, F, h, w, 3] -> [F, h, w, 3]
        count = min(images.shape[0], audio_latents.shape[2])
        if audio is None:
            waveform = decode_audio(audio_vae, audio_latents, rate)
        else:
            waveform = resample(*stereo(audio), rate)
        waveform = fit_length(waveform, count * rate // FPS).clamp(-1, 1)
        images = images[:count]
        result = {"waveform": waveform[None], "sample_rate": rate}
        components = Types.VideoComponents(images=images, audio=result, frame_rate=Fraction(FPS))
        return io.NodeOutput(images, result, InputImpl.VideoFromComponents(components))


NODES = [MagiHumanDecode]
