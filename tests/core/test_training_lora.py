"""The LoRA trainer: adapters beside a network that stays as it is, resident, streamed or in 8 bits."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from magihuman_core import apply_lora, load_dit
from magihuman_core.media.mp4 import write_mp4
from training import adapters, checkpoints, lora_clips, measure, train_lora
from training.clips import make_clip
from training.common import Stop
from training.files import DEMO

BASE = next((DEMO / "base").glob("*.safetensors"))


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, 48, 2, 4, 4), (1, 64, 7), (1, 6, 128))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def attached(rank=4, **options):
    dit = load_dit(BASE, dtype=options.pop("dtype", torch.float32), **options)
    torch.manual_seed(1)
    lora = adapters.Adapters(dit, rank).attach(dit)
    for up in lora.up:
        torch.nn.init.normal_(up, std=0.05)
    return dit, lora


def gradients(dit, lora, run_block=adapters.run_block):
    video, audio = dit.forward_many([inputs(0), inputs(1)], run_block=run_block)[1]
    (video.square().mean() + audio.square().mean()).backward()
    return [parameter.grad for parameter in lora.parameters()]


def test_at_first_nothing_changes_and_only_adapters_learn():
    plain, dit = (load_dit(BASE, dtype=torch.float32) for _ in range(2))
    lora = adapters.Adapters(dit, 4).attach(dit)
    with torch.no_grad():
        for a, b in zip(plain(*inputs()), dit(*inputs()), strict=True):
            assert torch.equal(a, b)
    assert not any(parameter.requires_grad for parameter in dit.parameters())
    found = gradients(dit, lora)
    assert all(gradient.abs().sum() > 0 for gradient in found[len(lora.layers) :]), "every `up` hears of the loss"


def test_what_is_saved_does_when_loaded_what_it_did_in_training(tmp_path):
    dit, lora = attached()
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.copy_(parameter.bfloat16())
        wanted = dit(*inputs())
    lora.save(tmp_path / "x.safetensors", role="base")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert "diffusion_model.block.layers.0.attention.linear_qkv.lora_A.weight" in set(file.keys())
    other = load_dit(BASE, dtype=torch.float32)
    with torch.no_grad():
        before = other(*inputs())
        applied = apply_lora(other, tmp_path / "x.safetensors")
        after = other(*inputs())
    assert not applied.unmatched
    for a, b, c in zip(after, wanted, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert (a - c).abs().mean() > 0.01


def test_gradients_are_the_same_whether_results_are_kept_or_computed_again_and_with_streamed_weights():
    wanted = gradients(*attached(), run_block=None)
    for options in ({}, {"resident_blocks": 1}, {"resident_blocks": 0, "stream_from": "memory"}):
        dit, lora = attached(**options)
        for _ in range(2):  # the second step begins with other blocks in the buffers
            for parameter in lora.parameters():
                parameter.grad = None
            found = gradients(dit, lora)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_gradients_in_8_bits_are_near_to_those_in_full():
    wanted = torch.cat([gradient.flatten() for gradient in gradients(*attached())])
    for options in ({}, {"resident_blocks": 2}):
        dit, lora = attached(dtype=torch.int8, compute_dtype=torch.float32, **options)
        found = torch.cat([gradient.flatten() for gradient in gradients(dit, lora)])
        assert float(torch.nn.functional.cosine_similarity(found, wanted, dim=0)) > 0.98


def test_unknown_layers_are_refused():
    with pytest.raises(Stop, match=r"No layer of the network ends with attention\.linear_x"):
        adapters.Adapters(load_dit(BASE), 4, ["attention.linear_x"])


def stored_clips(folder, count=4):
    for seed in range(count):
        video, audio, text = inputs(seed)
        lora_clips.save_clip(folder / f"{seed}.safetensors", {"video": video, "audio": audio, "text": text}, f"p{seed}")


def options(tmp_path, steps, *more):
    given = f"--models demo --clips {tmp_path}/clips --name x --run {tmp_path} --steps {steps} --save-every 2"
    return train_lora.parse([*given.split(), "--rank", "2", *more])


def test_training_goes_on_where_it_stopped_and_keeps_adapters_only(tmp_path, monkeypatch):
    stored_clips(tmp_path / "clips")
    monkeypatch.setattr(train_lora, "sampler_of", lambda *_: None)
    train_lora.train(options(tmp_path, 4, "--minutes", "1e-9"))
    assert checkpoints.load(tmp_path / "lora_x")["step"] == 1
    path = train_lora.train(options(tmp_path, 4))
    parts = checkpoints.load(tmp_path / "lora_x")
    assert sum(value.numel() for value in parts["modules"].values()) < 200_000, "none of the network's 5.5 million"
    assert path == tmp_path / "lora_x" / "x.safetensors"
    (tmp_path / "lora_x").rename(tmp_path / "parts")
    train_lora.train(options(tmp_path, 4))
    whole = checkpoints.load(tmp_path / "lora_x")
    assert all(torch.equal(value, parts["modules"][key]) for key, value in whole["modules"].items())
    with pytest.raises(Stop, match="rank was 2, now 3"):
        train_lora.train(options(tmp_path, 8, "--rank", "3"))


def test_films_are_read_at_25_frames_a_second_whatever_their_own_rate(tmp_path):
    for rate in (25, 50, 12.5):
        shades = torch.arange(int(2.2 * rate), dtype=torch.float32) / rate
        frames = (shades[:, None, None, None].expand(-1, 32, 64, 3) * 100).to(torch.uint8)
        path = tmp_path / f"{rate}.mp4"
        write_mp4(path, frames, torch.zeros(2, int(2.2 * 44100)), fps=rate)
        video, waveform = lora_clips.read_film(path, 2, 32, 32)
        assert video.shape == (1, 3, 49, 32, 32) and waveform.shape == (2, 51 * 2048)
        level = (video.mean((0, 1, 3, 4)) + 1) * 127.5
        wanted = torch.floor(torch.arange(49) / 25 * rate + 1e-6) / rate * 100
        assert (level - wanted).abs().max() < 6
    lora_clips.check_film(path, 2)
    with pytest.raises(Stop, match="less than 4 s"):
        lora_clips.check_film(path, 4)


def test_a_film_without_a_prompt_is_named(tmp_path):
    with pytest.raises(Stop, match="there is no film"):
        lora_clips.encode_films(tmp_path, None, tmp_path / "out", 2, 64, 64)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(Stop, match=r"a.mp4 has no prompt"):
        lora_clips.encode_films(tmp_path, None, tmp_path / "out", 2, 64, 64)
    with pytest.raises(Stop, match="no encoded clips"):
        train_lora.EncodedClips(Path(tmp_path), 0)


def test_a_hat_is_drawn_and_seen_and_nothing_else_changes():
    clip, plain = make_clip(3, seconds=1, hat=True), make_clip(3, seconds=1)
    assert measure.hat_share(clip.video) > 0.9 and measure.hat_share(plain.video) < 0.1
    assert clip.caption == plain.caption and np.array_equal(clip.audio, plain.audio)
    below = math.ceil(0.4 * 128)
    assert np.array_equal(clip.video[:, below:], plain.video[:, below:])
