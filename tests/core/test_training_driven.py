"""What the distilled network learns where the sound is given: windows of clips, and the true mouth in them."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from magihuman_core.sampling.windows import plan_windows
from tests.core.test_training_masks import Linear, stored_set
from training import train_driven
from training.common import read_rows
from training.text import build_tokenizer
from training.window_batches import LENGTHS, WindowBatches


def counted(folder):
    """Latents that say where they are: frame t of clip k is 64 k + t, and sound j is 256 k + j, exact in half."""
    for name, step in (("video_latents", 64), ("audio_latents", 256)):
        values = np.load(folder / f"{name}.npy")
        places = np.arange(values.shape[2]) if name == "audio_latents" else np.arange(values.shape[2])[:, None, None]
        for clip, rows in enumerate(values):
            rows[:] = step * clip + places
        np.save(folder / f"{name}.npy", values)
    rows = read_rows(folder / "meta.jsonl")
    for row in rows:
        row["syllables"] = [[name, 0.0, 0.1] for name in row["syllables"]]
    (folder / "meta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def source(tmp_path):
    """Clips of 2 and 4 s, by fives: more could not be counted in half precision."""
    for name, frames in (("square_2s", 49), ("square_4s", 101)):
        stored_set(tmp_path / "clips" / name, frames, 8, 8, 5, 0)
        counted(tmp_path / "clips" / name)
    return WindowBatches(tmp_path / "clips", build_tokenizer(), 0)


def test_windows_are_cut_as_the_pipeline_cuts_them(source):
    pipeline = {length: {(w.start, w.audio.start, w.heard) for w in plan_windows(103, length, length - 1).parts}
                for length in LENGTHS}  # fmt: skip
    lengths, starts, beginnings, anchored = set(), set(), 0, 0
    for _ in range(120):
        cut = source.cut(6)
        length = cut.video.shape[2]
        lengths.add((length, len(cut.video)))
        for video, audio, other in zip(cut.video, cut.audio, cut.other, strict=True):
            clip, second = divmod(int(video[0, 1, 0, 0]), 64)
            first = second - 1
            assert video[0, 1:, 0, 0].tolist() == list(range(64 * clip + second, 64 * clip + first + length))
            assert video[0, 0, 0, 0] == 64 * clip + (0 if cut.anchored else first)
            heard = audio[0] - 256 * clip
            assert heard.tolist() == list(range(int(heard[0]), int(heard[0]) + len(heard)))
            assert (first, int(heard[0]), len(heard)) in pipeline[length]
            assert int(other[0, 0, 0, 0]) == 64 * min(clip ^ 1, 4) + first
            assert cut.at_start == (first == 0)
            starts.add(first)
        beginnings, anchored = beginnings + cut.at_start, anchored + cut.anchored
        assert not (cut.at_start and cut.anchored)
        assert cut.ids.shape[0] == len(cut.video)
    assert lengths == {(13, 6), (19, 4)} and len(starts) > 8
    assert 30 < beginnings < 100, "windows of whole clips, and a share of the others, are beginnings"
    assert 0.3 < anchored / (120 - beginnings) < 0.7


def test_no_window_is_of_a_held_out_clip(tmp_path, source):
    held = WindowBatches(tmp_path / "clips", source.tokenizer, 0, held_out=True)
    seen = [{int(first) // 64 for _ in range(40) for first in part.cut(4).video[:, 0, 0, 0, 0]}
            for part in (source, held)]  # fmt: skip
    assert seen == [{0, 1, 2, 3}, {4}]


def test_prompts_have_the_clips_words_or_others(source):
    meta = {"attributes": source.sets[0].clips.meta[0]["attributes"],
            "syllables": [[name, 0.0, 0.1] for name in ("so", "mi", "su")]}  # fmt: skip
    words = {token: word for word, token in source.tokenizer.get_vocab().items()}
    spoken = [[words[i] for i in source.prompt(meta, 3, 0) if len(words[i]) == 2][:3] for _ in range(60)]
    own = sum(line == ["so", "mi", "su"] for line in spoken)
    assert 10 < own < 40 and len(set(map(tuple, spoken))) > 20
    assert not [i for i in source.prompt(meta, 0, 0) if len(words[i]) == 2 and words[i][0] in "ms"]


def test_driven_steps_learn_the_truth_and_the_others_what_the_network_made_before(source, monkeypatch):
    before, student = Linear(0.3).requires_grad_(False), Linear(0.3)
    encoder = nn.Embedding(source.tokenizer.get_vocab_size(), 4)
    losses = {"driven": [], "held": []}
    loss = train_driven.loss_of(student, before, encoder, 2)
    for step in range(16):
        torch.manual_seed(step)
        [(kind, value)] = loss(source, step)[1].items()
        losses[kind].append(float(value))
    assert max(losses["held"]) < 1e-6 < 0.1 < min(losses["driven"]), losses
    monkeypatch.setattr(train_driven, "DRIVEN", 1.0)
    torch.manual_seed(0)
    source.random = np.random.default_rng(0)
    value, _ = loss(source, 0)
    value.backward()
    with torch.no_grad():
        before.value.fill_(7.0)
    torch.manual_seed(0)
    source.random = np.random.default_rng(0)
    assert float(loss(source, 0)[0].detach()) == float(value.detach()), "the network as it was has no say in them"
    assert student.value.grad is not None and before.value.grad is None
