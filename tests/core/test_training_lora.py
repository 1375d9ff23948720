"""The LoRA trainer: adapters beside a network that stays as it is, resident, streamed or in 8 bits."""

import math
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from safetensors import safe_open

from magihuman_core import apply_lora, load_dit
from magihuman_core.errors import InputError
from magihuman_core.media.mp4 import write_mp4
from training import adapters, checkpoints, lora_clips, measure, train_lora
from training.clips import make_clip
from training.common import Stop
from training.files import DEMO
from training.train_network import build_network

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


class Named:
    """Encoders of a name, which note what they are given, in the place of real ones."""

    def __init__(self, name="one"):
        self.name, self.prompts = name, []

    def encode(self, video, waveform, prompt):
        self.prompts.append(prompt)
        shapes = {"video": (1, 48, 2, 4, 4), "audio": (1, 64, 7), "text": (1, 6, 128)}
        return {key: torch.full(shape, float(video.mean())) for key, shape in shapes.items()}


def film(path, shade=100, seconds=1.2, prompt="says", audio=True):
    frames = torch.full((int(seconds * 25), 32, 64, 3), shade, dtype=torch.uint8)
    sound = 0.1 * torch.randn(2, int(seconds * 44100), generator=torch.Generator().manual_seed(shade))
    write_mp4(path, frames, sound if audio else None)
    path.with_suffix(".txt").write_text(prompt, encoding="utf-8-sig")


def test_what_was_made_of_something_else_is_encoded_again(tmp_path):
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    film(films / "a.mp4", 60)
    shutil.copy(films / "a.mp4", films / "a.mov")  # of one stem and prompt: both are there

    def encode(size=(32, 32), seconds=1, name="one"):
        encoders = Named(name)
        lora_clips.encode_films(films, encoders, out, seconds, *size)
        return len(encoders.prompts)

    assert encode() == 2 and encode() == 0
    assert {path.name for path in out.glob("*.safetensors")} == {"a.mp4.safetensors", "a.mov.safetensors"}
    assert lora_clips.load_clip(out / "a.mp4.safetensors")[1] == "says", "without the mark at the file's beginning"
    assert encode(size=(64, 32)) == 2 and encode(size=(64, 32), name="two") == 2
    assert encode(size=(64, 32), name="two", seconds=1.1) == 2 and encode() == 2
    film(films / "a.mp4", 200)
    assert encode() == 1
    (films / "a.txt").write_text("other words")
    assert encode() == 2
    (out / "a.mp4.safetensors").write_bytes((out / "a.mp4.safetensors").read_bytes()[:100])
    assert encode() == 1 and encode() == 0
    (films / "a.mov").unlink()
    with pytest.raises(Stop, match=r"not of what is encoded now: a.mov.safetensors. Delete them"):
        encode()


def test_films_that_cannot_be_learnt_from_are_named_before_anything_is_encoded(tmp_path):
    films, encoders = tmp_path / "films", Named()
    films.mkdir()
    film(films / "a.mp4")
    for name, make, words in (
        ("short", lambda path: film(path, seconds=0.5), "b.mp4 lasts 0.5 s, less than 1 s"),
        ("silent", lambda path: film(path, audio=False), "b.mp4 has no sound"),
        ("empty prompt", lambda path: film(path, prompt=" "), "b.txt is empty"),
        ("latin", lambda path: (film(path), path.with_suffix(".txt").write_bytes(b"caf\xe9")), "b.txt is no text in"),
        ("corrupt", lambda path: (film(path), path.write_bytes(b"no film" * 100)), "b.mp4"),
    ):  # fmt: skip
        make(films / "b.mp4")
        with pytest.raises((Stop, InputError), match=words):
            lora_clips.encode_films(films, encoders, tmp_path / "out", 1, 32, 32)
        assert not encoders.prompts and not (tmp_path / "out").exists(), name


def test_a_film_is_read_upright_from_where_it_is_seen_to_begin(tmp_path):
    """As the product reads it, see open_video: here one whose picture is turned by its file."""
    frames = torch.zeros(30, 64, 32, 3, dtype=torch.uint8)
    frames[:, :32] = 200
    with av.open(str(tmp_path / "turned.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        sound = container.add_stream("aac", rate=44100)
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(frame.numpy())), format="rgb24")
            container.mux(stream.encode(picture))
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 44100), np.float32), format="fltp", layout="stereo")
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        container.mux(stream.encode())
        container.mux(sound.encode())
    content = (tmp_path / "turned.mp4").read_bytes()
    place = content.index(b"tkhd") + 4 + 40  # the matrix of the first track
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content[:place] + turned + content[place + 36 :])
    video, waveform = lora_clips.read_film(tmp_path / "turned.mp4", 1, 32, 64)
    assert video.shape == (1, 3, 25, 64, 32) and waveform.shape == (2, 26 * 2048)
    halves = video[0, 0, 10, :32].mean(), video[0, 0, 10, 32:].mean()
    assert abs(halves[0] - halves[1]) > 1, "above and below, not left and right"


def test_clips_of_something_else_are_named_before_the_network_is_loaded(tmp_path):
    stored_clips(tmp_path / "clips")
    (tmp_path / "clips" / "1.safetensors").write_bytes(b"torn")
    with pytest.raises(Stop, match=r"1.safetensors is damaged"):
        train_lora.train(options(tmp_path, 2, "--models", "/nope"))
    shutil.copy(BASE, tmp_path / "clips" / "1.safetensors")
    with pytest.raises(Stop, match=r"1.safetensors is no encoded clip"):
        train_lora.train(options(tmp_path, 2, "--models", "/nope"))
    video, audio, text = inputs(1)
    wide = {"video": video, "audio": audio, "text": text.repeat(1, 1, 2)}
    lora_clips.save_clip(tmp_path / "clips" / "1.safetensors", wide, "p")
    with pytest.raises(Stop, match=r"1.safetensors has .*'text': 256.* channels"):
        train_lora.train(options(tmp_path, 2))
    assert not (tmp_path / "lora_x").exists()


def test_a_run_does_not_go_on_with_another_network_or_other_clips(tmp_path, monkeypatch):
    stored_clips(tmp_path / "clips")
    monkeypatch.setattr(train_lora, "sampler_of", lambda *_: None)
    path = train_lora.train(options(tmp_path, 1))
    with safe_open(path, "pt") as file:
        assert "source" not in file.metadata() and file.metadata()["kind"] == "lora"
    with pytest.raises(Stop, match=r"network was \w+ in float32, now \w+ in int8"):
        train_lora.train(options(tmp_path, 2, "--dtype", "int8"))
    shutil.copytree(DEMO / "base", tmp_path / "models" / "base")
    (other,) = (tmp_path / "models" / "base").glob("*.safetensors")
    content = bytearray(other.read_bytes())
    content[-(len(content) // 2) :] = bytes(len(content) // 2)
    other.write_bytes(content)
    with pytest.raises(Stop, match=r"network was"):
        train_lora.train(options(tmp_path, 2, "--models", str(tmp_path / "models")))
    video, audio, text = inputs(9)
    lora_clips.save_clip(tmp_path / "clips" / "1.safetensors", {"video": video, "audio": audio, "text": text}, "p1")
    with pytest.raises(Stop, match=r"contents of clips was"):
        train_lora.train(options(tmp_path, 2))


def test_a_step_on_another_device_takes_its_random_numbers_from_the_cpu():
    """All of them: no other generator is in a checkpoint. The meta device stands for others; it refuses to be mixed."""

    class Clips:
        def draw(self, device):
            return tuple(part.to(device) for part in inputs())

    states = []
    for device in ("cpu", "meta"):
        dit = build_network().to(device)
        torch.manual_seed(0)
        lora = adapters.Adapters(dit, 2).to(device).attach(dit)
        loss, _ = train_lora.lora_loss(dit, SimpleNamespace(batch=3, device=device))(Clips(), 0)
        loss.backward()
        assert loss.device.type == device and all(p.grad.device.type == device for p in lora.parameters())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_run_in_pieces_is_the_run_in_one_piece(tmp_path):
    stored_clips(tmp_path / "clips")
    parts = []
    for name, pieces in (("whole", [4]), ("parts", [2, 4])):
        for steps in pieces:
            minutes = ["--minutes", "1e-9"] * (steps == 2)
            train_lora.train(options(tmp_path, 4, "--device", "cuda", *minutes))
        parts.append(checkpoints.load(tmp_path / "lora_x")["modules"])
        (tmp_path / "lora_x").rename(tmp_path / name)
    for key, value in parts[0].items():
        torch.testing.assert_close(value, parts[1][key], rtol=1e-4, atol=1e-6)


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
