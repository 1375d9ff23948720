"""The node that continues a clip."""

import torch
from comfy_api.latest import io

from ..magihuman_core.errors import InputError
from ..magihuman_core.media.waveform import OUTPUT_RATE, resample_recording
from ..magihuman_core.sampling import frozen
from ..magihuman_core.sizes import (
    AUDIO_PER_FRAME,
    FPS,
    PIXELS_PER_LATENT,
    covering_length,
    decoded_frames,
    frames_after,
    frames_of,
    latent_frames,
)
from .adapter.media import audio_latent, check_size, fit_length, frames_latent, stereo
from .adapter.streams import FRAMES, empty, joint_latent, split, with_streams
from .latents import CATEGORY, MAX_NEW_SECONDS

SAMPLES_PER_FRAME = OUTPUT_RATE // FPS


class MagiHumanExtend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanExtend",
            display_name="MagiHuman Extend",
            category=CATEGORY,
            description="Continues a clip: its last frames and their sound begin the new one, and stay as they are. "
                        "MagiHuman Join puts both together.",
            search_aliases=["continue video", "long video", "extend clip", "magihuman"],
            inputs=[
                io.Vae.Input("vae", tooltip="The Wan2.2 VAE. The Turbo VAE cannot encode."),
                io.Vae.Input("audio_vae", tooltip="From Load MagiHuman Audio VAE."),
                io.Image.Input("images", tooltip="The clip's frames, at 25 per second, width and height multiples of "
                                                 "32: from MagiHuman Fit Clip."),
                io.Audio.Input("audio", tooltip="The clip's sound."),
                io.Float.Input("seconds", default=4.0, min=0.2, max=MAX_NEW_SECONDS, step=0.2,
                               tooltip="Length of what is added, 0.2 to 3600 seconds. A recording sets it by itself."),
                io.Float.Input("overlap_seconds", default=1.0, min=0.04, max=10.0, step=0.16, tooltip=(
                    "How much of the old clip the model sees, 0.04 to 10 seconds. More keeps voice and movement "
                    "better, and costs time. Made shorter where the clip is.")),
                io.Audio.Input("driving", optional=True, tooltip=(
                    "A recording that is heard from the end of the clip on, and that the lips follow.")),
                io.Latent.Input("latent", optional=True, tooltip=(
                    "The clip's own latent, where a sampler here made it: its end is carried over as it is, which "
                    "makes the joint smoother than encoding the frames.")),
            ],
            outputs=[
                io.Latent.Output(tooltip="The overlap, kept unchanged, and the empty rest."),
                io.Int.Output(display_name="overlap", tooltip="Frames of the old clip at the start of the new one, "
                                                            "for MagiHuman Join."),
                io.Audio.Output(tooltip="With a recording: the sound of the new clip, for `audio` of MagiHuman "
                                        "Decode."),
            ],
        )

    @classmethod
    def execute(cls, vae, audio_vae, images, audio, seconds, overlap_seconds, driving=None,
                latent=None) -> io.NodeOutput:
        frames, height, width = images.shape[:3]
        check_size(width, height)
        # In step with the frames from the first on: where it ends before them, the rest of the clip is silent.
        heard_before = fit_length(resample_recording(*stereo(audio), OUTPUT_RATE), frames * SAMPLES_PER_FRAME)
        kept = frozen.overlap_frames(overlap_seconds, frames)
        carried = None if latent is None else split(latent)
        if carried is not None and carried[0].shape[0] > 1:
            raise InputError(f"The latent holds {carried[0].shape[0]} clips, and nothing tells of which of them the "
                             "frames are: leave latent unconnected, or make one clip (batch_size 1).")
        more = 0  # frames after those that are kept: of a last latent frame that the clip does not show to its end
        if carried is not None:
            whole = decoded_frames(carried[0].shape[2])
            shown_of_it = min(whole, latent.get(FRAMES, whole))
            if shown_of_it > frames:  # a joined clip may have more
                raise InputError(f"The latent is one of {shown_of_it} frames, but there are {frames}: connect the "
                                 "latent that the frames were decoded from, or none.")
            last, more = latent_frames(shown_of_it), frames_after(shown_of_it)
            carried = carried[0][:, :, :last], carried[1]
            kept = min(kept, decoded_frames(last))
        overlap = latent_frames(kept)
        tail = heard_before[:, -(kept + more) * SAMPLES_PER_FRAME :]
        sound, shown = None, {}
        length = frozen.continued_length(overlap, more + round(seconds * FPS))
        if driving is not None:
            recording, own_rate = stereo(driving)
            shown = {FRAMES: kept + more + frames_of(recording.shape[1], own_rate)}
            length = covering_length(shown[FRAMES])
            tail = torch.cat([tail, resample_recording(recording, own_rate, OUTPUT_RATE)], 1)
            tail = fit_length(tail, length * SAMPLES_PER_FRAME)
            sound = {"waveform": tail[None], "sample_rate": OUTPUT_RATE}
        if carried is not None and carried[0].shape[3:] != (height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT):
            raise InputError(f"The latent is one of {carried[0].shape[4] * PIXELS_PER_LATENT}x"
                             f"{carried[0].shape[3] * PIXELS_PER_LATENT} pixels, but the frames are {width}x{height}: "
                             "connect the latent that the frames were decoded from, or none.")
        if carried is None or driving is not None:
            heard = audio_latent(audio_vae, tail, OUTPUT_RATE, joint_latent(empty(width, height, length)).audio)
        else:
            first = AUDIO_PER_FRAME * (carried[0].shape[2] - overlap)
            heard = carried[1][:1, :, first : first + kept]
        heard = heard[:, :, :length]
        made = empty(width, height, length)
        start = joint_latent(made)
        old = frames_latent(vae, images[-kept:], start.video) if carried is None else carried[0][:1, :, -overlap:]
        clip = frozen.keep_start(start, old, heard)
        if driving is not None:
            clip = frozen.keep_audio(clip, heard)
        return io.NodeOutput({**with_streams(made, clip), **shown}, kept + more, sound)


NODES = [MagiHumanExtend]
