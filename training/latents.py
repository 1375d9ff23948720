"""Latents of the drawn clips, made once by the trained autoencoders.

    python -m training.latents clips --part 0 --parts 2      # one process a core; may be stopped and started again

Beside video.npy and audio.npy: video_latents.npy float16 [N, 48, T, h, w], audio_latents.npy float16 [N, 64, A],
and done.npy uint8 [N], 1 where both are there.
"""

import argparse
import time

import numpy as np
import torch
from einops import rearrange

from training.common import RUNS, autocast, set_up
from training.data import Clips, open_array


def encode_clips(folder, part, parts, limit=None):
    """Encode clips part, part + parts, ... of a folder."""
    from training import train_audio_vae, train_video_vae

    vae, _ = train_video_vae.load_trained()
    audio_vae = train_audio_vae.load_trained()
    clips = Clips(folder)
    count, frames, size = clips.video.shape[:3]
    T, side, length = (frames - 1) // 4 + 1, size // 16, clips.audio.shape[1] // 2048
    video = open_array(folder / "video_latents.npy", np.float16, (count, 48, T, side, side))
    audio = open_array(folder / "audio_latents.npy", np.float16, (count, 64, length))
    done = open_array(folder / "done.npy", np.uint8, (count,))
    started, made = time.monotonic(), 0
    for index in range(part, min(limit or count, len(clips)), parts):
        if done[index]:
            continue
        pixels = rearrange(torch.from_numpy(clips.video[index].astype(np.float32)), "f h w c -> 1 c f h w") / 127.5 - 1
        waveform = torch.from_numpy(clips.audio[index].astype(np.float32)).expand(1, 2, -1)
        with torch.inference_mode():
            with autocast():
                video[index] = train_video_vae.encode(vae, pixels)[0].float().numpy()
            audio[index] = audio_vae.encode(waveform)[0].numpy()
        done[index] = 1
        made += 1
        if made % 20 == 0:
            print(f"{made} clips, {(time.monotonic() - started) / made:.2f} s each", flush=True)


class Latents:
    """All encoded clips of a folder in memory, growing with `refresh`."""

    def __init__(self, folder):
        self.folder, self.clips = folder, Clips(folder)
        self.video_map = open_array(folder / "video_latents.npy")
        self.audio_map = open_array(folder / "audio_latents.npy")
        self.index = []
        self.refresh()

    def refresh(self):
        """Take in what has been encoded meanwhile; returns how many there are."""
        done = np.load(self.folder / "done.npy")
        self.clips.refresh()
        self.index = [i for i in np.flatnonzero(done) if i < len(self.clips)]
        return len(self.index)

    def get(self, index):
        """(video [48, T, h, w], audio [64, A]) of a clip, fp32."""
        video, audio = self.video_map[index], self.audio_map[index]
        return torch.from_numpy(video.astype(np.float32)), torch.from_numpy(audio.astype(np.float32))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    set_up(1)
    encode_clips(RUNS / options.name, options.part, options.parts, options.limit)
