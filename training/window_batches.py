"""Windows of encoded clips, cut as the pipeline cuts a long clip (magihuman_core/sampling/windows.py)."""

from dataclasses import dataclass

import numpy as np
import torch

from magihuman_core.sizes import full_audio
from training.batches import USUAL, Batches
from training.data import split
from training.text import caption_ids
from training.voice import SYLLABLES

LENGTHS = (13, 19)  # latent frames: 2 and 3 s
AT_START = 0.3  # share of windows that are the beginning of a clip, whose first latent frame is a single image
ANCHORED = 0.5  # share of the others that begin with the clip's first latent frame instead of their own
WORDS = (0, 2, 3, 4, 5, 6)  # how many syllables a window's prompt may have
OWN_WORDS = 0.4  # share of prompts with the clip's first words, which a later window does not say; others are random


@dataclass
class Cut:
    """video, other [n, 48, T, h, w]; audio [n, 64, 4T - 1]; ids [n, length]. other: the same of another take.

    at_start: whether they are the beginnings of their clips; anchored: whether their first latent frame is the clip's.
    """

    video: torch.Tensor
    audio: torch.Tensor
    ids: torch.Tensor
    other: torch.Tensor
    at_start: bool
    anchored: bool


class WindowBatches(Batches):
    """Batches of whole clips, as before, and of windows."""

    def __init__(self, folder, tokenizer, seed, held_out=False):
        super().__init__(folder, tokenizer, seed, held_out)
        self.tokenizer = tokenizer
        self.indices = [split(range(len(latents)), held_out) for latents in self.sets]
        sizes = [len(indices) * self.latent_pixels(number) for number, indices in enumerate(self.indices)]
        self.set_share = np.array(sizes, float) / sum(sizes)

    def cut(self, count):
        """A Cut of so many windows of one set; fewer where they are larger than a square of 2 s."""
        number = int(self.random.choice(len(self.sets), p=self.set_share))
        latents = self.sets[number]
        frames = latents.video.shape[2]
        length = int(self.random.choice([n for n in LENGTHS if n <= frames] or [frames]))
        # The last place is left out: at the end of a clip there may be less sound.
        at_start = frames - length < 2 or self.random.random() < AT_START
        anchored = not at_start and self.random.random() < ANCHORED
        count = max(1, round(count * USUAL * frames / (length * self.latent_pixels(number))))
        phrasing, words = int(self.random.integers(3)), int(self.random.choice(WORDS))
        rows = []
        while len(rows) < count:
            index = int(self.random.choice(self.indices[number]))
            ids = self.prompt(latents.clips.meta[index], words, phrasing)
            if rows and len(ids) != len(rows[0][2]):
                continue  # a child's prompt has a word more
            start = 0 if at_start else int(self.random.integers(1, frames - length))
            video, audio = latents.get(index)
            window = video[:, start : start + length]
            if anchored:
                window = torch.cat([video[:, :1], window[:, 1:]], 1)
            other, _ = latents.get(latents.clips.other_take(index))
            rows.append((window, audio[:, 4 * start :][:, : full_audio(length)],
                         torch.tensor(ids), other[:, start : start + length]))  # fmt: skip
        return Cut(*map(torch.stack, zip(*rows, strict=True)), at_start, anchored)

    def prompt(self, meta, words, phrasing):
        """Token ids of a prompt with so many words, the clip's first or any."""
        spoken = [name for name, _, _ in meta["syllables"]][:words]
        if len(spoken) < words or self.random.random() >= OWN_WORDS:
            spoken = [str(name) for name in self.random.choice(SYLLABLES, words)]
        return caption_ids(self.tokenizer, meta["attributes"], spoken, phrasing)
