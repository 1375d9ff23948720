"""Latents of the drawn clips, made once by the trained autoencoders.

    python -m training.latents                               # may be stopped and started again

In the folder of every set of clips, beside video.npy and audio.npy: video_latents.npy float16 [N, 48, T, h, w],
audio_latents.npy float16 [N, 64, A], done.npy uint8 [N], 1 where both are there, and encoders.json, which says
what weights made them.
"""

import argparse
import json

import numpy as np
import torch
from einops import rearrange

from magihuman_core.atomic import whole_file
from training.common import Progress, Stop, alone, autocast, weights_hash
from training.data import Clips, open_array, sets_in
from training.options import add_options, command, set_up


class Encoders:
    """Both trained encoders of a run. names: hashes that tell their weights from others."""

    def __init__(self, run):
        # These modules read encoded clips, for training of the decoders alone.
        from training import train_audio_vae, train_video_vae

        self.vae, _ = train_video_vae.load_trained(run)
        self.audio_vae = train_audio_vae.load_trained(run)
        self.names = {"video": train_video_vae.encoder_hash(self.vae), "audio": weights_hash(self.audio_vae.encoder)}

    @torch.inference_mode()
    def video(self, pixels):
        """Frames uint8 or float 0..255 [F, H, W, 3] -> latent [48, T, h, w], as a float32 array."""
        video = rearrange(torch.from_numpy(pixels.astype(np.float32)), "f h w c -> 1 c f h w") / 127.5 - 1
        with autocast():
            mean = self.vae.moments(video)[0].float()
        return self.vae.statistics.normalize(mean)[0].numpy()

    @torch.inference_mode()
    def audio(self, waveform):
        """Waveform [n] -> latent [64, A], as a float32 array."""
        return self.audio_vae.encode(torch.from_numpy(waveform.astype(np.float32)).expand(1, 2, -1))[0].numpy()


def claim(folder, names):
    """Note in a folder which encoders its latents are made with. Raises Stop where they were made with others."""
    path = folder / "encoders.json"
    if not path.exists():
        with whole_file(path) as file:
            file.write((json.dumps(names) + "\n").encode())
    elif made_with(folder) != names:
        raise Stop(f"The latents in {folder} were made with encoders {made_with(folder)}, those of this run are now "
                   f"{names}: delete *latents.npy, done.npy and encoders.json there, or the whole folder.")  # fmt: skip


def made_with(folder):
    """Hashes {"video", "audio"} of the encoders that a folder's latents were made with."""
    path = folder / "encoders.json"
    if not path.exists():
        raise Stop(f"{folder} holds no latents: the stage that makes them comes first (see training/run_demo.sh).")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Stop(f"{path} is damaged ({error}): delete it and the latents beside it, and make them again.") from error


def common_origin(sets):
    """The `made_with` of several sets, which have to be alike. Raises Stop."""
    for part in sets[1:]:
        if part.made_with != sets[0].made_with:
            raise Stop(f"The latents in {part.folder} were made with encoders {part.made_with}, those in "
                       f"{sets[0].folder} with {sets[0].made_with}: make those again that are not of this run, see "
                       "encoders.json there.")  # fmt: skip
    return sets[0].made_with


def encode_clips(run):
    """Encode all clips of a run."""
    encoders = Encoders(run)
    for folder in sets_in(run / "clips"):
        with alone(folder):
            encode_set(folder, encoders)


def encode_set(folder, encoders):
    """Encode the clips of one set."""
    clips = Clips(folder)
    claim(folder, encoders.names)
    count, frames, height, width = clips.video.shape[:4]
    T, length = (frames - 1) // 4 + 1, clips.audio.shape[1] // 2048
    video = open_array(folder / "video_latents.npy", np.float16, (count, 48, T, height // 16, width // 16))
    audio = open_array(folder / "audio_latents.npy", np.float16, (count, 64, length))
    done = open_array(folder / "done.npy", np.uint8, (count,))
    progress = Progress(f"clips encoded in {folder}", int(done.sum()), count)
    for index in np.flatnonzero(np.asarray(done) == 0):
        video[index], audio[index] = encoders.video(clips.video[index]), encoders.audio(clips.audio[index])
        done[index] = 1
        progress.step()


class Latents:
    """The encoded clips of one set."""

    def __init__(self, folder):
        self.folder, self.made_with, self.clips = folder, made_with(folder), Clips(folder)
        self.video = open_array(folder / "video_latents.npy")
        self.audio = open_array(folder / "audio_latents.npy")
        missing = int((open_array(folder / "done.npy") == 0).sum())
        if missing:
            raise Stop(f"{missing} clips of {folder} are not encoded: run python -m training.latents "
                       f"--run {folder.parents[1]} first.")  # fmt: skip

    def __len__(self):
        return len(self.clips)

    def get(self, index):
        """(video [48, T, h, w], audio [64, A]) of a clip, fp32."""
        video, audio = self.video[index], self.audio[index]
        return torch.from_numpy(video.astype(np.float32)), torch.from_numpy(audio.astype(np.float32))


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, seed=False)
    options = parser.parse_args()
    set_up(options)
    encode_clips(options.run)


if __name__ == "__main__":
    main()
