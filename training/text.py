"""The demo's tokenizer and text encoder, and a quick start for the latter.

The tokenizer keeps the words this small world knows and drops all others, so a prompt in free words still
says what it can. Prompts shrink to some thirty tokens, which is much of the sequence saved.
"""

import json
import re

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import nn

from magihuman_core.text.config import TextEncoderConfig
from magihuman_core.text.encoder import TextEncoder
from training.captions import PITCH, make_caption
from training.clips import CHOICES
from training.voice import SYLLABLES

START = "begin"  # always the first token: a prompt without any known word still has one
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
    torch.manual_seed(0)
    config = TextEncoderConfig.from_mapping({**CONFIG, "vocab_size": tokenizer.get_vocab_size()})
    encoder = TextEncoder(config, tokenizer=tokenizer)
    nn.init.normal_(encoder.encoder.embed_tokens.weight, std=CONFIG["hidden_size"] ** -0.5)
    return encoder


def stored_config(tokenizer):
    return json.dumps({**CONFIG, "vocab_size": tokenizer.get_vocab_size()})


def caption_ids(tokenizer, attributes, syllables, phrasing):
    """Token ids of a clip's caption in this phrasing."""
    return tokenizer.encode(make_caption(attributes, syllables, phrasing), add_special_tokens=False).ids


def pretrain(encoder, clips, minutes, average=None):
    """Teach the encoder which attribute is which and at which place a syllable stands, by two linear readers.

    The network would find this out by itself, but through a long chain of noisy gradients.
    """
    import time

    import numpy as np

    names = list(CHOICES)
    attribute_reader = nn.Linear(128, sum(len(v) for v in CHOICES.values()))
    place_reader = nn.Linear(128, 8 + 8)
    modules = nn.ModuleList([encoder, attribute_reader, place_reader])
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1.5e-3, weight_decay=1e-3)
    random, started, step = np.random.default_rng(0), time.monotonic(), 0
    by_count = {}
    for meta in clips:
        by_count.setdefault(len(meta["syllables"]), []).append(meta)
    counts = [n for n in by_count if len(by_count[n]) > 16]
    while time.monotonic() - started < minutes * 60:
        count, phrasing = int(random.choice(counts)), int(random.integers(3))
        ids, wanted = [], []
        for _ in range(64):
            attributes = {name: str(random.choice(values)) for name, values in CHOICES.items()}
            spoken = [str(s) for s in random.choice(SYLLABLES, count)]
            ids.append(caption_ids(encoder.tokenizer, attributes, spoken, phrasing))
            wanted.append([CHOICES[name].index(attributes[name]) for name in names])
        length = max(map(len, ids))
        keep = [i for i, row in enumerate(ids) if len(row) == length]  # a child's prompt has a word more
        hidden = encoder(torch.tensor([ids[i] for i in keep]))
        wanted = torch.tensor([wanted[i] for i in keep])
        logits = attribute_reader(hidden.mean(1)).split([len(CHOICES[n]) for n in names], 1)
        loss = sum(nn.functional.cross_entropy(a, wanted[:, i]) for i, a in enumerate(logits)) / len(names)
        places = place_reader(hidden[:, -count:]).flatten(0, 1)
        place = torch.arange(count).repeat(len(keep))
        loss = loss + nn.functional.cross_entropy(places[:, :8], place)
        loss = loss + nn.functional.cross_entropy(places[:, 8:], count - 1 - place)
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 50 == 0:
            print(f"text step {step}  loss {loss.item():.3f}", flush=True)
    return encoder
