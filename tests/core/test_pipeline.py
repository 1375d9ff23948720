"""The whole way from a prompt to a clip, on small random models in the official layout."""

import json
import logging
import shutil

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import magihuman_core as mh
from magihuman_core.loading.folder import DEMO, find_models
from magihuman_core.media.audio_file import load_audio
from magihuman_core.media.image import fit_image, frames_to_uint8, load_image
from magihuman_core.media.waveform import resample_recording
from magihuman_core.model.config import DiTConfig
from magihuman_core.pipeline import stages
from magihuman_core.pipeline.pipeline import MagiHumanPipeline
from magihuman_core.pipeline.request import choose_upscaler
from magihuman_core.recipes import SR_540P, SR_1080P
from magihuman_core.tools.convert import convert

PROMPT = "A woman looks into the camera and says good morning."
PROJ = "block.layers.1.attention.linear_proj"
SMALL = {"width": 64, "height": 32, "seconds": 0.4}


@pytest.fixture(scope="module")
def pipeline(random_models):
    return MagiHumanPipeline.from_folder(random_models, device="cpu")


def test_the_clip_is_what_the_parts_make_by_hand(pipeline, random_models, photograph, caplog):
    """Distilled network from a picture, then super-resolution, put together here from the public functions.

    The noise is drawn here by torch itself, in the order ComfyUI draws it: the same seed is the same clip.
    """
    clip = pipeline.generate(PROMPT, image=photograph, seed=5, steps=3, upscale=(96, 64), sr_steps=2, **SMALL)
    assert "random weights" in caplog.text

    start, later, large = (torch.Generator().manual_seed(seed) for seed in (5, 6, 5))
    video = torch.randn(1, 48, 3, 2, 4, generator=start)
    audio = torch.randn(1, 64, 11, generator=start)
    folder = random_models
    with torch.inference_mode():
        text = mh.load_text_encoder(folder / "text_encoder").encode(PROMPT)
        vae = mh.load_video_vae(folder / "vae")
        picture = load_image(photograph)

        def frozen(latent, width, height):
            values, mask = torch.zeros(latent.shape), torch.ones(1, 1, 3, 1, 1)
            values[:, :, :1] = vae.encode(fit_image(picture, width, height))
            mask[:, :, 0] = 0
            return values, mask

        x, shapes = mh.pack_latents(video, audio)
        dit = mh.load_dit(folder / "distill", dtype=torch.float32, positions="v2")
        model = mh.JointDenoiser(dit, shapes, text, frozen_video=frozen(video, 64, 32))
        for sigma, sigma_next in zip(mh.flow_sigmas(3)[:-1], mh.flow_sigmas(3)[1:], strict=True):
            x0 = model(x, sigma[None])
            fresh = torch.randn(x.shape, generator=later)
            x = sigma_next * fresh + (1 - sigma_next) * x0
        video, audio = mh.unpack_latents(x, shapes)

        video_noise = torch.randn(1, 48, 3, 4, 6, generator=large)
        audio_noise = torch.randn(1, 64, 11, generator=large)
        video, context = mh.prepare_super_resolution(video, audio, 4, 6, video_noise=video_noise,
                                                     audio_noise=audio_noise)
        x, shapes = mh.pack_latents(video, context)
        dit = mh.load_dit(folder / "540p_sr", dtype=torch.float32, positions="v1")
        model = mh.JointDenoiser(dit, shapes, text, frozen_video=frozen(video, 96, 64),
                                 frozen_audio=(context, torch.zeros(1, 1, 1)))
        video, _ = mh.unpack_latents(mh.sample_unipc(model, x, mh.flow_sigmas(2), disable=True), shapes)
        frames = frames_to_uint8(mh.load_turbo_vae(folder / "turbo_vae").decode(video))
        sound = mh.load_audio_vae(folder / "audio_vae").decode(audio)[0]

    assert clip.frames.shape == frames.shape == (9, 64, 96, 3)
    # Decoding window by window may turn a last bit, and truncation shows it.
    assert (clip.frames.int() - frames.int()).abs().max() <= 1
    expected = resample_recording(sound, 51200, 44100)[:, : 9 * 1764].clamp(-1, 1)
    torch.testing.assert_close(clip.audio, expected, atol=1e-4, rtol=0)
    assert clip.frames.float().std() > 10  # random models, but not a constant picture


def test_base_mode_guides_away_from_the_negative_prompt(pipeline):
    kwargs = {"mode": "base", "steps": 3, **SMALL}
    default = pipeline.generate(PROMPT, **kwargs)
    other = pipeline.generate(PROMPT, negative="a dog", **kwargs)
    unguided = pipeline.generate(PROMPT, guidance=mh.Guidance(1.0, 1.0, 1.0), **kwargs)
    assert not torch.equal(default.frames, other.frames)
    assert not torch.equal(default.frames, unguided.frames)
    again = pipeline.generate(PROMPT, negative="a dog", guidance=mh.Guidance(1.0, 1.0, 1.0), **kwargs)
    assert (again.frames.int() - unguided.frames.int()).abs().max() <= 1  # scale 1: the negative falls out
    assert default.metadata["model"] == "base"


@pytest.mark.parametrize("mode", ["distilled", "base"])
def test_a_driven_clip_has_the_given_sound(pipeline, voice, mode):
    clip = pipeline.generate(PROMPT, audio=voice, mode=mode, steps=2, width=64, height=32)
    given, rate = load_audio(voice)
    assert 0 <= clip.seconds - given.shape[1] / rate < 0.04  # nothing is lost of its end
    assert clip.audio.shape[1] == clip.frames.shape[0] * 1764
    heard = resample_recording(given, rate, 44100)
    torch.testing.assert_close(clip.audio[:, : heard.shape[1]], heard)
    assert not clip.audio[:, heard.shape[1] :].any()


def test_the_driving_audio_is_kept_at_every_step(pipeline, random_models, voice):
    """The picture is the one that the clean sound makes at all steps."""
    spoken, rate = load_audio(voice, seconds=0.5)
    clip = pipeline.generate(PROMPT, audio=(spoken, rate), seed=4, steps=3, width=64, height=32)
    start, later = (torch.Generator().manual_seed(seed) for seed in (4, 5))
    with torch.inference_mode():
        text = mh.load_text_encoder(random_models / "text_encoder").encode(PROMPT)
        held = torch.nn.functional.pad(spoken, (0, 15 * rate // 25 - spoken.shape[1]))  # silence to the end
        heard = resample_recording(held, rate, 51200)
        sound = mh.load_audio_vae(random_models / "audio_vae").encode_long(heard[None])
        assert sound.shape == (1, 64, 15)
        video = torch.randn(1, 48, 4, 2, 4, generator=start)
        dit = mh.load_dit(random_models / "distill", dtype=torch.float32)
        for step in range(3):
            sigma, sigma_next = (float(s) for s in mh.flow_sigmas(3)[step : step + 2])
            clean = video - sigma * dit(video, sound, text)[0]
            fresh = torch.randn(1, 48, 4, 2, 4, generator=later)
            torch.randn(1, 64, 15, generator=later)  # the sound's share, which is not used
            video = sigma_next * fresh + (1 - sigma_next) * clean
        frames = frames_to_uint8(mh.load_turbo_vae(random_models / "turbo_vae").decode(video))
    assert clip.frames.shape[0] == 13  # half a frame more than the sound's 0.5 s
    assert (clip.frames.int() - frames.int()).abs().max() <= 1


@pytest.mark.parametrize(("seconds", "driven", "frames"), [(1, False, 25), (2, False, 49), (0.52, True, 13)])
def test_picture_and_sound_end_together(pipeline, voice, seconds, driven, frames):
    """2 s have 51 audio latents but 49 frames: the clip is cut to the shorter, and so is a driving recording."""
    clip = pipeline.generate(PROMPT, steps=1, audio=voice if driven else None, **{**SMALL, "seconds": seconds})
    assert clip.frames.shape[0] == frames
    assert clip.audio.shape == (2, frames * 1764)


def test_progress_counts_to_the_end_and_each_stage_logs_its_time(pipeline, caplog):
    calls = []
    with caplog.at_level(logging.INFO, logger="magihuman_core"):
        first = pipeline.generate(PROMPT, negative="a dog", steps=3, progress=lambda *call: calls.append(call), **SMALL)
    assert calls[:4] == [("distilled network", n, 3) for n in range(4)]
    assert calls[-1] == ("picture decoder", 9, 9)
    assert "negative prompt is not read" in caplog.text
    for stage in ("text encoder", "distilled network, 3 steps", "sound decoder", "picture decoder"):
        assert any(r.message.startswith(stage + ": ") and " s" in r.message for r in caplog.records), stage
    again, other = (pipeline.generate(PROMPT, steps=3, seed=seed, **SMALL) for seed in (0, 1))  # a seed is a clip
    assert torch.equal(first.frames, again.frames) and torch.equal(first.audio, again.audio)
    assert not torch.equal(first.frames, other.frames)


def test_saved_clip_says_how_it_was_made(pipeline, tmp_path):
    clip = pipeline.generate(PROMPT, seed=9, steps=1, **SMALL)
    clip.save(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as film:
        facts = json.loads(film.metadata["magihuman"])
        frames = np.stack([f.to_ndarray(format="rgb24") for f in film.decode(video=0)])
    assert (facts["prompt"], facts["seed"], facts["model"]) == (PROMPT, 9, "distilled")
    assert frames.shape == tuple(clip.frames.shape)
    assert str(tmp_path) not in json.dumps(facts)


def test_super_resolution_roles():
    assert SR_540P.overrides(40) == {"positions": "v1"}
    overrides = SR_1080P.overrides(40)
    assert overrides["positions"] == "v1"
    assert set(range(40)) - set(overrides["local_layers"]) == {3, 7, 11, 15, 19, 23, 27, 31}
    assert DiTConfig.__dataclass_fields__["local_radius"].default == 11


def test_1080p_network_is_used_for_large_targets(random_models, tmp_path):
    """By name, by area, and where it is the only one."""
    models = find_models(random_models)
    assert choose_upscaler(models, "1080p", (1920, 1088)) is SR_1080P
    assert choose_upscaler(models, (1600, 896), (1600, 896)) is SR_1080P
    assert choose_upscaler(models, (800, 448), (800, 448)) is SR_540P
    shutil.copytree(random_models / "1080p_sr", tmp_path / "1080p_sr")
    alone = find_models(tmp_path)
    assert choose_upscaler(alone, (800, 448), (800, 448)) is SR_1080P
    with pytest.raises(mh.CheckpointError, match="540p super-resolution network is missing"):
        choose_upscaler(alone, "540p", (896, 512))


def test_without_turbo_vae_the_other_one_decodes(random_models, pipeline, tmp_path):
    for name in ("distill", "vae", "audio_vae", "text_encoder"):
        (tmp_path / name).symlink_to(random_models / name)
    clip = MagiHumanPipeline.from_folder(tmp_path, device="cpu").generate(PROMPT, steps=1, **SMALL)
    assert clip.frames.shape == (9, 32, 64, 3)
    turbo = pipeline.generate(PROMPT, steps=1, **SMALL)
    assert not torch.equal(clip.frames, turbo.frames)
    assert torch.equal(clip.audio, turbo.audio)


# Folders of models


def test_parts_are_found_whatever_their_names(random_models, tmp_path):
    """A folder of single files, named as they please; only the role of a network needs a name."""
    tensors = {}
    for shard in sorted((random_models / "distill").glob("*.safetensors")):
        tensors.update(load_file(shard))
    save_file(tensors, tmp_path / "my_distilled_fp32.safetensors")
    (tmp_path / "deep" / "down").mkdir(parents=True)
    for source, target in (("audio_vae/model.safetensors", "deep/down/a.safetensors"),
                           ("vae/wan2.2_vae.safetensors", "b.safetensors"),
                           ("text_encoder/model.safetensors", "c.safetensors"),
                           ("text_encoder/tokenizer.json", "tokenizer.json"),
                           ("text_encoder/config.json", "config.json")):
        shutil.copy(random_models / source, tmp_path / target)
    models = find_models(tmp_path)
    assert {part: path.name for part, path in models.items()} == {
        "distilled": "my_distilled_fp32.safetensors", "audio_vae": "a.safetensors",
        "video_vae": "b.safetensors", "text_encoder": "c.safetensors", "tokenizer": "tokenizer.json"}
    clip = MagiHumanPipeline(models, device="cpu").generate(PROMPT, steps=1, **SMALL)
    assert clip.frames.shape[0] == 9


def test_a_named_part_wins(random_models, tmp_path):
    shutil.copytree(random_models / "distill", tmp_path / "unnamed")
    models = find_models(random_models, {"distilled": tmp_path / "unnamed", "turbo_vae": random_models / "turbo_vae"})
    assert models["distilled"] == tmp_path / "unnamed"


@pytest.mark.parametrize(("prepare", "word"), [
    (lambda new, old: None, "distilled network, the text encoder .* and the Turbo VAE are missing"),
    (lambda new, old: shutil.copytree(old / "distill", new / "x"), "unknown role"),
    (lambda new, old: [shutil.copytree(old / "distill", new / name) for name in ("distill", "distill2")],
     "is there 2 times"),
    (lambda new, old: (new / "base.safetensors").write_text("<!DOCTYPE html><html>"), "web page"),
])  # fmt: skip
def test_folders_that_cannot_make_a_clip(random_models, tmp_path, prepare, word):
    prepare(tmp_path, random_models)
    with pytest.raises(ValueError, match=word):
        MagiHumanPipeline.from_folder(tmp_path, device="cpu").generate(PROMPT, **SMALL)


def test_wrong_files_for_a_part(random_models, tmp_path):
    with pytest.raises(mh.CheckpointError, match=r"audio VAE.*expected"):
        find_models(random_models, {"distilled": random_models / "audio_vae"})
    with pytest.raises(mh.InputError, match="no such file"):
        find_models(random_models, {"distilled": tmp_path / "none.safetensors"})
    with pytest.raises(mh.InputError, match="expected one of base"):
        find_models(random_models, {"vae": random_models / "vae"})
    with pytest.raises(mh.InputError, match="no such folder"):
        find_models(tmp_path / "none")


@pytest.mark.parametrize("kwargs", [
    {"seconds": 0}, {"seconds": -1}, {"width": 16}, {"steps": 0}, {"steps": 2.5}, {"seed": -1}, {"seed": 1.5},
    {"upscale": "8k"}, {"mode": "fast"}, {"sr_steps": 0}, {"audio": (torch.zeros(0, 5), 44100)},
    {"audio": (torch.zeros(2, 100), 0)},
])  # fmt: skip
def test_impossible_arguments_are_refused_at_once(pipeline, kwargs):
    calls = []
    with pytest.raises(mh.InputError, match=rf"{next(iter(kwargs))} .*expected"):
        pipeline.generate(PROMPT, progress=lambda *call: calls.append(call), **{**SMALL, **kwargs})
    assert not calls


@pytest.mark.parametrize(("options", "words"), [
    ({"tile": 8}, "tile is 8, expected more than 8"),
    ({"resident_blocks": -1}, "resident_blocks is -1"),
    ({"loras": [("/none.safetensors", 1.0)]}, "/none.safetensors"),
    ({"loras": [("/none.safetensors", float("nan"))]}, "strength"),
    ({"loras": [(DEMO / "distill", 1.0)]}, "is a MagiHuman network, where a LoRA is expected"),
    ({"loras": [({f"{PROJ}.lokr_w1": torch.ones(4, 4), f"{PROJ}.lokr_w2": torch.ones(8, 8)}, 1.0)]},
     r"a relative of LoRA \(LoKr\): ComfyUI's own LoRA loader applies it"),
    ({"loras": [({f"{PROJ}.lora_A.weight": torch.ones(1, 9), f"{PROJ}.lora_B.weight": torch.ones(9, 1)}, 1.0)]},
     "has 9 rows, the network's layer has .* made for another model"),
    ({"loras": [({f"{PROJ}.diff": torch.ones(192, 9)}, 1.0)]}, r"has shape .*, 9\], expected"),
    ({"loras": [({"te.lora_A.weight": torch.ones(4, 8)}, 1.0)]}, "none of its 1 tensors belongs to this network"),
])  # fmt: skip
def test_options_that_cannot_work_are_refused_before_anything_is_computed(random_models, options, words, monkeypatch):
    monkeypatch.setattr(stages, "encode_texts", lambda *_: pytest.fail("came to the text encoder"))
    pipeline = mh.MagiHumanPipeline.from_folder(random_models, device="cpu", **options)
    with pytest.raises(ValueError, match=words):
        pipeline.generate(PROMPT, **SMALL)


def test_empty_prompt_and_device_that_is_not_there(pipeline, random_models):
    with pytest.raises(mh.InputError, match="prompt is empty"):
        pipeline.generate("  \n", **SMALL)
    with pytest.raises(mh.InputError, match="cannot be used here"):
        MagiHumanPipeline.from_folder(random_models, device="warp")


@pytest.mark.parametrize(("stored", "dtype", "limit"), [
    (None, None, 0), ("fp8", None, 8), ("bf16", torch.bfloat16, 1)])  # fp8: 4.5 measured, bf16: 0.4
def test_any_layout_of_the_network_makes_the_same_clip(pipeline, random_models, tmp_path, stored, dtype, limit):
    """A converted network, split, fp8 or bf16, goes through the whole pipeline; streamed blocks change nothing."""
    convert(random_models / "distill", tmp_path / "distill.safetensors", dtype=stored, layout="split")
    other = MagiHumanPipeline.from_folder(random_models, parts={"distilled": tmp_path / "distill.safetensors"},
                                          device="cpu", dtype=dtype, resident_blocks=2)
    whole, clip = (each.generate(PROMPT, steps=2, seed=3, **SMALL).frames.float() for each in (pipeline, other))
    difference = (clip - whole).abs().mean()
    assert difference <= limit and bool(difference) == bool(limit)


def test_what_is_no_network_is_found_before_anything_is_computed(random_models, monkeypatch):
    models = find_models(random_models)
    models.found["distilled"] = [random_models / "audio_vae"]
    pipeline = MagiHumanPipeline(models, device="cpu")
    monkeypatch.setattr(stages, "encode_texts", lambda *_: pytest.fail("came to the text encoder"))
    with pytest.raises(mh.CheckpointError, match="audio VAE"):
        pipeline.generate(PROMPT, **SMALL)
