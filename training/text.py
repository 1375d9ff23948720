"""The demo's tokenizer and text encoder, and a quick start for the latter.

The tokenizer keeps the words this small world knows and drops all others, so a prompt in free words still
says what it can. Prompts shrink to some thirty tokens, which is much of the sequence saved.
"""

import json
import re

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import nn

from magihuman_core.text.config import TextEncoderConfig
from magihuman_core.text.encoder import TextEncoder
from training.captions import PITCH, make_caption
from training.clips import CHOICES
from training.common import Stop
from training.voice import SYLLABLES

START = "begin"  # always the first token: a prompt without any known word still has one
MOST_SYLLABLES = 24  # of a clip: three a second, for 8 s
STRUCTURE = ("hair", "skin", "shirt", "wall", "voice", "says", "dialogue", "glasses", "noglasses")
CONFIG = {
    "model_type": "t5_gemma_module", "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32, "intermediate_size": 256,
    "sliding_window": 16, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": None,
}  # fmt: skip


def build_tokenizer():
    """A `tokenizers.Tokenizer` of whole words; small letters, capitals do not matter."""
    words = {START, *STRUCTURE, *PITCH.values(), *SYLLABLES}
    for name, values in CHOICES.items():
        if name != "glasses":
            words.update(value.lower() for value in values)
    words = sorted(words)
    pattern = r"\b(?:" + "|".join(re.escape(word) for word in words) + r")\b"
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=START))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"no glasses"), "noglasses"),
        normalizers.Prepend(START + " "),
    ])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return tokenizer


def build_encoder(tokenizer):
    """An untrained TextEncoder with this tokenizer."""
    config = TextEncoderConfig.from_mapping({**CONFIG, "vocab_size": tokenizer.get_vocab_size()})
    encoder = TextEncoder(config, tokenizer=tokenizer)
    nn.init.normal_(encoder.encoder.embed_tokens.weight, std=CONFIG["hidden_size"] ** -0.5)
    return encoder


def stored_config(tokenizer):
    return json.dumps({**CONFIG, "vocab_size": tokenizer.get_vocab_size()})


def caption_ids(tokenizer, attributes, syllables, phrasing):
    """Token ids of a clip's caption in this phrasing."""
    return tokenizer.encode(make_caption(attributes, syllables, phrasing), add_special_tokens=False).ids


class Captions:
    """Prompts of random attributes and syllables, as many syllables as the clips have. clips: of all sets."""

    def __init__(self, clips, tokenizer, seed):
        self.tokenizer, self.random = tokenizer, np.random.default_rng(seed)
        self.counts = [len(meta["syllables"]) for part in clips for meta in part.meta]
        if max(self.counts) > MOST_SYLLABLES:
            raise Stop(f"{max(self.counts)} syllables in a clip are more than MOST_SYLLABLES in {__file__}: raise it.")

    def draw(self, size):
        """(ids [n, length], attributes [n, number of CHOICES] as places in CHOICES, number of syllables), n <= size."""
        count, phrasing = int(self.random.choice(self.counts)), int(self.random.integers(3))
        rows, wanted = [], []
        for _ in range(size):
            attributes = {name: str(self.random.choice(values)) for name, values in CHOICES.items()}
            spoken = [str(s) for s in self.random.choice(SYLLABLES, count)]
            rows.append(caption_ids(self.tokenizer, attributes, spoken, phrasing))
            wanted.append([CHOICES[name].index(attributes[name]) for name in CHOICES])
        # A child's prompt has a word more: those as long as the first, so that all people have their turn.
        keep = [i for i, row in enumerate(rows) if len(row) == len(rows[0])]
        return torch.tensor([rows[i] for i in keep]), torch.tensor([wanted[i] for i in keep]), count


class WithReaders(nn.Module):
    """The encoder with two linear readers: which attribute is which, and at which place a syllable stands.

    The network would find this out by itself, but through a long chain of noisy gradients.
    """

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.attributes = nn.Linear(CONFIG["hidden_size"], sum(map(len, CHOICES.values())))
        self.places = nn.Linear(CONFIG["hidden_size"], 2 * MOST_SYLLABLES)  # from the beginning, and from the end

    def loss(self, captions, size):
        """The mean cross entropy of both readers on random prompts."""
        ids, wanted, count = captions.draw(size)
        hidden = self.encoder(ids)
        logits = self.attributes(hidden.mean(1)).split([len(values) for values in CHOICES.values()], 1)
        attributes = sum(F.cross_entropy(a, wanted[:, i]) for i, a in enumerate(logits)) / len(logits)
        first, last = self.places(hidden[:, -count:]).flatten(0, 1).chunk(2, 1)
        place = torch.arange(count).repeat(len(ids))
        places = F.cross_entropy(first, place) + F.cross_entropy(last, count - 1 - place)
        return attributes + places, {"attributes": attributes.detach(), "places": places.detach()}
