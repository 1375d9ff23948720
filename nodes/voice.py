"""The node for a voice alone."""

from comfy_api.latest import io

from ..magihuman_core.errors import InputError
from ..magihuman_core.media.waveform import OUTPUT_RATE
from ..magihuman_core.sampling.solvers import flow_sigmas
from ..magihuman_core.sizes import FPS, PIXELS_PER_TOKEN, audio_length
from .adapter import sampling
from .adapter.media import decode_audio, fit_length
from .adapter.streams import empty, split
from .adapter.vae import check
from .latents import MAX_NEW_SECONDS
from .sampling import AUTO, CATEGORY, MODES, SHIFT, SR, find_mode


class MagiHumanVoiceDraft(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanVoiceDraft",
            display_name="MagiHuman Voice Draft",
            category=CATEGORY,
            description="The voice alone, in a few seconds: hear how a line is said before the picture is paid for. "
                        "Connect the take you like to MagiHuman Driving Audio.",
            search_aliases=["text to speech", "tts", "audio only", "sound only", "voice", "magihuman"],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative", optional=True, tooltip="Used by the base model only."),
                io.Vae.Input("audio_vae", tooltip="From Load MagiHuman Audio VAE."),
                io.Float.Input("seconds", default=4.0, min=0.2, max=MAX_NEW_SECONDS, step=0.2,
                               tooltip="Length of the sound, 0.2 to 3600."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                             tooltip="The same seed gives the same voice."),
                io.Int.Input("takes", default=1, min=1, max=64, tooltip=(
                    "How many, 1 to 64, from seed, seed + 1 and so on: a list, so that Preview Audio shows each.")),
                io.Int.Input("steps", default=0, min=0, max=200, advanced=True,
                             tooltip="0: as many as the model was made for (8, or 32 of the base model)."),
            ],
            outputs=[io.Audio.Output(is_output_list=True)],
        )

    @classmethod
    def execute(cls, model, positive, audio_vae, seconds, seed, takes, steps, negative=None) -> io.NodeOutput:
        mode = find_mode(model, AUTO)
        if mode == SR:
            raise InputError("A super-resolution model has no voice: connect the base or the distilled model.")
        recipe = MODES[mode]
        length = audio_length(seconds)
        # The network makes both streams: the smallest picture there is goes with the sound, and is thrown away.
        latent = empty(PIXELS_PER_TOKEN, PIXELS_PER_TOKEN, length, sampling.model_channels(model), takes)
        check(audio_vae, "audio", sampling.model_channels(model)[1])
        guider = sampling.StreamGuider(model, recipe.guidance, positive, negative)
        sigmas = flow_sigmas(steps or recipe.steps, sampling.model_shift(model) or SHIFT)
        _, audio = split(sampling.run_each(guider, sampling.make_sampler(recipe.solver), sigmas, latent, seed))
        return io.NodeOutput([_audio(audio_vae, take) for take in audio.split(1)])


def _audio(audio_vae, latent) -> dict:
    waveform = fit_length(decode_audio(audio_vae, latent, OUTPUT_RATE), latent.shape[2] * OUTPUT_RATE // FPS)
    return {"waveform": waveform.clamp(-1, 1)[None], "sample_rate": OUTPUT_RATE}


NODES = [MagiHumanVoiceDraft]
