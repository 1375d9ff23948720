"""Batches of encoded clips for the networks."""

import numpy as np
import torch

from magihuman_core.text.prompt import DEFAULT_NEGATIVE_PROMPT
from training.data import sets_in, split
from training.latents import Latents, common_origin
from training.text import START, caption_ids

DROP_TEXT = 0.1  # share of batches without text
USUAL = 13 * 8 * 8  # latent pixels of the clip that `count` is meant for: 2 s, square


class Batches:
    """Clips of one shape and length whose prompts have the same number of tokens: nothing is ever padded."""

    def __init__(self, folder, tokenizer, seed, held_out=False):
        self.random = np.random.default_rng(seed)
        self.sets = [Latents(part) for part in sets_in(folder)]
        self.made_with = common_origin(self.sets)
        self.description = [latents.clips.description for latents in self.sets]
        negative = tokenizer.encode(DEFAULT_NEGATIVE_PROMPT, add_special_tokens=False).ids
        # Without text: either the default negative prompt or nothing.
        self.no_text = (torch.tensor([negative]), torch.tensor([tokenizer.encode(START + "x").ids]))
        self.groups = {}  # (number of the set, length of the prompt) -> [(index, ids)]
        for number, latents in enumerate(self.sets):
            groups = prompts_by_length(latents.clips, tokenizer, held_out)
            # A rare length would give the same few clips again and again; with few clips all lengths are rare.
            most = max(map(len, groups.values()))
            self.groups |= {(number, length): g for length, g in groups.items() if len(g) >= min(8, most)}
        # As likely as the latents in it are many.
        sizes = [len(group) * self.latent_pixels(number) for (number, _), group in self.groups.items()]
        self.keys, self.share = list(self.groups), np.array(sizes, float) / sum(sizes)

    def latent_pixels(self, number):
        """Of one clip of this set."""
        return int(np.prod(self.sets[number].video.shape[2:]))

    def draw(self, count):
        """(video [n, 48, T, h, w], audio [n, 64, A], ids [n, length], other); n is smaller where clips are longer.

        other: as video, of the same scenes with other words.
        """
        number, length = self.keys[int(self.random.choice(len(self.keys), p=self.share))]
        group, latents = self.groups[number, length], self.sets[number]
        count = max(1, round(count * USUAL / self.latent_pixels(number)))
        chosen = [group[i] for i in self.random.integers(len(group), size=count)]
        videos, audios = zip(*(latents.get(index) for index, _ in chosen), strict=True)
        others = [latents.get(latents.clips.other_take(index))[0] for index, _ in chosen]
        return torch.stack(videos), torch.stack(audios), torch.stack([ids for _, ids in chosen]), torch.stack(others)

    def draw_some_without_text(self, count):
        """The same, but a tenth of the batches has no text. Whole batches: two lengths would need two passes."""
        video, audio, ids, other = self.draw(count)
        if self.random.random() < DROP_TEXT:
            ids = self.no_text[int(self.random.integers(2))].expand(len(ids), -1)
        return video, audio, ids, other

    def example(self):
        """(video, audio, ids) of one clip, the same at every call."""
        number, length = max(self.groups, key=lambda key: len(self.groups[key]))
        index, ids = self.groups[number, length][0]
        return *(latent[None] for latent in self.sets[number].get(index)), ids[None]


def prompts_by_length(clips, tokenizer, held_out):
    """Number of tokens -> [(index of the clip, ids)], with all phrasings of the prompts."""
    groups = {}
    for index in split(range(len(clips)), held_out):
        meta = clips.meta[index]
        for phrasing in range(3):
            ids = caption_ids(tokenizer, meta["attributes"], meta["syllables"], phrasing)
            groups.setdefault(len(ids), []).append((int(index), torch.tensor(ids)))
    return groups
