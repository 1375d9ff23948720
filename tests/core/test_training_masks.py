"""What networks see of a clip in training: parts of both streams without noise, batches of one shape, losses of what is
made alone; and the distilled network's three parts.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from training import batches, masks, train_distilled
from training.canvas import View
from training.clips import CHOICES
from training.masks import Keep, draw_keep, noised, velocity_loss
from training.muon import Together
from training.text import build_tokenizer
from training.train_network import adamw

SIZE = 6, 8, 10  # T, h, w
AUDIO = 23


def kept(use, count=20):
    torch.manual_seed(0)
    keep = draw_keep(torch.zeros(count, 48, *SIZE), torch.zeros(count, 64, AUDIO), {use: 1.0})
    return keep.video, keep.audio


@pytest.mark.parametrize(("use", "frames", "audio"), [
    ("nothing", [0] * 6, 0), ("image", [1] + [0] * 5, 0), ("audio", [0] * 6, 1), ("image and audio", [1] + [0] * 5, 1),
])
def test_the_plain_uses_keep_what_their_names_say(use, frames, audio):
    for video_mask, audio_mask in zip(*kept(use), strict=True):
        assert video_mask.float().mean((0, 2, 3)).tolist() == frames
        assert audio_mask.float().mean() == audio


def test_video_to_sound_keeps_the_video_and_no_audio():
    video, audio = kept("video")
    assert video[:, :, 1:].all() and not audio.any()


def test_frames_are_kept_whole_and_the_last_one_often():
    video, audio = kept("frames", 60)
    shares = video.float().mean((1, 3, 4))
    assert set(shares.unique().tolist()) <= {0.0, 1.0}
    assert 0.4 < shares[:, -1].mean() < 0.9 and shares.mean() < 0.6 and not audio.any()


def test_dubbing_keeps_all_but_one_box_and_all_of_the_audio():
    video, audio = kept("region", 60)
    assert audio.all()
    mouth = View(*SIZE[1:]).box(*masks.MOUTH_BOX)
    boxes = 0
    for made in ~video[:, 0]:
        rows, columns = made[-1].any(1).nonzero(), made[-1].any(0).nonzero()
        box = made[-1, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all() and box.sum() == made[-1].sum()
        boxes += bool(made[-1][mouth].all() and made[-1].sum() == made[-1][mouth].sum())
    assert boxes > 15


def test_what_goes_on_is_kept_for_the_same_time_in_both_streams():
    for video, audio in zip(*kept("time", 60), strict=True):
        made = (~video[0, :, 0, 0]).nonzero().flatten()
        first, last = int(made[0]), int(made[-1]) + 1
        assert first > 0 and len(made) == last - first
        heard = (~audio[0]).nonzero().flatten()
        assert heard[0] == 4 * first - 3, "the frames of a latent begin with its fourth"
        assert heard[-1] + 1 == (AUDIO if last == SIZE[0] else 4 * last - 3)


def test_a_clip_that_is_dubbed_stands_in_the_surroundings_of_another_take():
    torch.manual_seed(0)
    video, other = torch.randn(2, 40, 48, *SIZE)
    keep = draw_keep(video, torch.zeros(40, 64, AUDIO), {"region": 0.5, "frames": 0.5})
    assert 0 < int(keep.dubbed.sum()) < 40
    made = masks.dubbed(video, other, keep)
    for clip, own, strange, given, dubbed in zip(made, video, other, keep.video, keep.dubbed, strict=True):
        assert torch.equal(clip, torch.where(given, strange, own) if dubbed else own)


@pytest.mark.parametrize("use", ["frames", "time"])
def test_windows_of_driven_clips_keep_the_same_frames_and_all_of_the_audio(use):
    video, audio = kept(f"{use} and audio", 60)
    assert torch.equal(video, kept(use, 60)[0]) and audio.all()


def test_all_uses_are_drawn_in_their_shares():
    torch.manual_seed(0)
    keep = draw_keep(torch.zeros(2000, 1, *SIZE), torch.zeros(2000, 1, AUDIO))
    assert sum(masks.USES.values()) == pytest.approx(1.0)
    driven = keep.audio.all(-1).float().mean()
    with_audio = sum(share for use, share in masks.USES.items() if use == "region" or use.endswith("audio"))
    assert float(driven) == pytest.approx(with_audio, abs=0.03)


def test_noise_is_where_nothing_is_kept_and_the_loss_looks_only_there():
    torch.manual_seed(0)
    video, audio = torch.randn(2, 48, *SIZE), torch.randn(2, 64, AUDIO)
    keep = draw_keep(video, audio, {"time": 1.0})
    s = torch.full((2, 1, 1, 1, 1), 0.5)
    x_v, x_a, noise_v, _ = noised(video, audio, s, keep)
    assert torch.equal(x_v == video, keep.video.expand_as(video))
    assert torch.equal(x_a == audio, keep.audio.expand_as(audio))
    torch.testing.assert_close(torch.where(keep.video, x_v, (video + noise_v) / 2), x_v)
    weight = masks.mouth_weight(video)
    right = (torch.where(keep.video, 9.0, 0.0).expand_as(video), torch.where(keep.audio, 9.0, 0.0).expand_as(audio))
    assert [float(loss) for loss in velocity_loss(right, (0 * video, 0 * audio), keep, weight)] == [0, 0]
    off = video * 0 + 3.0, audio * 0 + 2.0
    losses = velocity_loss(off, (0 * video, 0 * audio), keep, weight)
    assert [float(loss) for loss in losses] == pytest.approx([9.0, 4.0]), "a mean, whatever is kept and weighted"
    all_kept = Keep(torch.ones_like(keep.video), torch.ones_like(keep.audio), keep.dubbed)
    assert [float(loss) for loss in velocity_loss(off, (video, audio), all_kept, weight)] == [0, 0]


def stored_set(folder, frames, h, w, count, seed):
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    T, A = (frames - 1) // 4 + 1, frames + 2
    np.save(folder / "video.npy", np.zeros((count, frames, 1, 1, 3), np.uint8))
    np.save(folder / "audio.npy", np.zeros((count, 1), np.float16))
    np.save(folder / "video_latents.npy", random.normal(size=(count, 48, T, h, w)).astype(np.float16))
    np.save(folder / "audio_latents.npy", random.normal(size=(count, 64, A)).astype(np.float16))
    np.save(folder / "done.npy", np.ones(count, np.uint8))
    (folder / "encoders.json").write_text('{"video": "a", "audio": "b"}')
    rows = [f'{{"seed": {k}, "attributes": {attributes(k)}, "syllables": {list(("ma",) * (2 + k % 2))}}}'
            for k in range(count)]  # fmt: skip
    (folder / "meta.jsonl").write_text("\n".join(rows).replace("'", '"') + "\n")


def attributes(k):
    return {**{name: values[0] for name, values in CHOICES.items()}, "hair": "red" if k % 2 else "black"}


def test_batches_have_one_shape_and_one_length_of_prompt_and_long_clips_come_in_fewer(tmp_path):
    stored_set(tmp_path / "clips" / "square_2s", 49, 8, 8, 30, 0)
    stored_set(tmp_path / "clips" / "landscape_4s", 101, 6, 10, 30, 1)
    source = batches.Batches(tmp_path / "clips", build_tokenizer(), 0)
    drawn = [source.draw(8) for _ in range(60)]
    sizes = {(tuple(video.shape), audio.shape[2]) for video, audio, _, _ in drawn}
    assert sizes == {((8, 48, 13, 8, 8), 51), ((4, 48, 26, 6, 10), 103)}
    assert len({ids.shape[1] for _, _, ids, _ in drawn}) > 1
    longer = np.mean([video.shape[3] == 6 for video, _, _, _ in drawn])
    assert 0.45 < longer < 0.85, "as many latents, not clips, of each: 26 x 60 against 13 x 64"
    empty = [ids.shape[1] for _, _, ids, _ in (source.draw_some_without_text(2) for _ in range(80))]
    lengths = {ids.shape[1] for ids in source.no_text}
    assert 2 <= sum(length in lengths for length in empty) <= 20
    first = source.sets[0]
    pairs = [(first.clips.other_take(k), first.clips.other_take(first.clips.other_take(k))) for k in range(30)]
    assert pairs == [(k + 1 if k % 2 == 0 else k - 1, k) for k in range(30)]
    known = [set(map(bytes, latents.video.reshape(30, -1))) for latents in source.sets]
    video, _, _, other = source.draw(8)
    for a, b in zip(video, other, strict=True):
        assert not torch.equal(a, b) and any(bytes(b.numpy().astype(np.float16).reshape(-1)) in k for k in known)


class Linear(nn.Module):
    """A network of one number per stream in the place of the real one."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(value)))

    def forward(self, video, audio, text, attention=None):
        return self.value * video + 0 * text.sum(), self.value * audio

    def forward_many(self, inputs, attention=None):
        return [self(*one) for one in inputs]


class Source:
    def draw(self, count):
        torch.manual_seed(0)
        video, audio, ids = torch.randn(count, 48, *SIZE), torch.randn(count, 64, AUDIO), torch.zeros(count, 5).long()
        return video, audio, ids, -video


@pytest.fixture
def distillation():
    options = SimpleNamespace(batch=2, guidance=(2.5, 3.0), warm_up=0)
    student, teacher, fake = Linear(0.2), Linear(0.5).requires_grad_(False), Linear(0.2)
    encoder = nn.Embedding(10, 4).requires_grad_(False)
    return train_distilled.Distillation(teacher, student, fake, encoder, torch.zeros(1, 3, dtype=torch.long), options,
                                        None)  # fmt: skip


def gradients(distillation):
    found = tuple(part.value.grad is not None for part in (distillation.student, distillation.fake))
    for part in (distillation.student, distillation.fake):
        part.value.grad = None
    return found


def test_student_and_fake_take_turns_and_neither_trains_the_other(distillation):
    turns = []
    for step in range(1 + 2 * (1 + train_distilled.FAKE_STEPS)):
        distillation.loss(Source(), step)[0].backward()
        turns.append(gradients(distillation))
    student, fake = (True, False), (False, True)
    assert turns == ([student] + [fake] * train_distilled.FAKE_STEPS) * 2 + [student]
    assert distillation.teacher.value.grad is None
    made = distillation.extra["made"]
    distillation.warm_up = 100
    numbers = distillation.loss(Source(), 5)[1]
    assert set(numbers) == {"regression"} and distillation.extra["made"] is made


def test_where_teacher_and_fake_agree_nothing_is_to_be_matched_and_else_the_student_follows_the_teacher(distillation):
    distillation.guidance = 1.0, 1.0
    keep = Keep(torch.zeros(2, 1, *SIZE, dtype=torch.bool), torch.zeros(2, 1, AUDIO, dtype=torch.bool),
                torch.zeros(2, 1, 1, 1, 1, dtype=torch.bool))  # fmt: skip
    clean = tuple(torch.randn(shape, requires_grad=True) for shape in ((2, 48, *SIZE), (2, 64, AUDIO)))
    text = torch.zeros(2, 5, 4)
    distillation.fake.value.data.fill_(0.5)
    loss, _ = distillation.matching_loss(clean, text, keep)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-4)
    distillation.fake.value.data.fill_(0.2)  # less is taken away than by the teacher: estimates are too large
    loss, _ = distillation.matching_loss(clean, text, keep)
    loss.backward()
    for latent in clean:
        assert float((latent.grad * latent.detach()).sum()) > 0, "a step down makes the latents smaller"


def test_simulated_clips_have_what_was_given(distillation):
    video, audio, ids, _ = Source().draw(2)
    keep = draw_keep(video, audio, {"time": 1.0})
    made = distillation.simulate(video, audio, distillation.text(ids), keep)
    for latent, given, mask in zip(made, (video, audio), (keep.video, keep.audio), strict=True):
        assert torch.equal(latent[mask.expand_as(latent)], given[mask.expand_as(given)])
        assert not torch.equal(latent, given)


def test_modules_have_learning_rates_of_their_own():
    slow, fast = nn.Linear(2, 2), nn.Linear(2, 2)
    together = Together(adamw(slow, 1.0, 1e-3, (0.0, 0.9)), adamw(fast, 3.0, 1e-3, (0.0, 0.9)))
    before = [m.bias.detach().clone() for m in (slow, fast)]
    (slow(torch.ones(1, 2)).sum() + fast(torch.ones(1, 2)).sum()).backward()
    together.step(0.1)
    moved = [float((m.bias - old).abs().max()) for m, old in zip((slow, fast), before, strict=True)]
    assert moved == pytest.approx([0.1, 0.3], rel=1e-3)
