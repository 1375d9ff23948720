"""Clips on devices that are too small for the parts: what comes in, tiles, a second try, and latents kept in a file."""

import logging
import re
import weakref
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from magihuman_core import CheckpointError, InputError, MagiHumanPipeline
from magihuman_core.media.audio_file import load_audio
from magihuman_core.media.image import load_image
from magihuman_core.media.waveform import resample_recording
from magihuman_core.pipeline import stages
from magihuman_core.pipeline.request import Keyframe
from magihuman_core.pipeline.saved import load_clip
from magihuman_core.runtime import plan
from magihuman_core.vae.turbo import TurboVAE
from magihuman_core.vae.video import VideoVAE

PROMPT = "A woman looks into the camera and says good morning."
SMALL = {"width": 64, "height": 32, "seconds": 0.4, "steps": 1}
LARGE = {"width": 288, "height": 64, "seconds": 0.2, "steps": 1}


@pytest.fixture
def pipeline(random_models):
    return MagiHumanPipeline.from_folder(random_models, device="cpu")


@pytest.fixture(scope="module")
def clip(random_models):
    return MagiHumanPipeline.from_folder(random_models, device="cpu").generate(PROMPT, **SMALL)


@pytest.fixture
def device_with(monkeypatch):
    """device_with(free): from now on the device has so many bytes, all of which may be planned with."""
    def set_free(free):
        monkeypatch.setattr(stages, "free_memory", lambda device: free)
        monkeypatch.setattr(plan, "LEAST_SPARE", 0)

    return set_free


def without_turbo(random_models, folder):
    for path in random_models.iterdir():
        if path.name != "turbo_vae":
            (folder / path.name).symlink_to(path)
    return MagiHumanPipeline.from_folder(folder, device="cpu")


@pytest.mark.parametrize("stream_from", [None, "memory"])
def test_blocks_and_layers_come_in_where_they_do_not_fit_and_the_clip_is_the_same(stream_from, clip, random_models,
                                                                                device_with, caplog):
    caplog.set_level(logging.INFO)
    device_with(1000)
    pipeline = MagiHumanPipeline.from_folder(random_models, device="cpu", stream_from=stream_from)
    again = pipeline.generate(PROMPT, **SMALL)
    streamed = [record.getMessage() for record in caplog.records if "blocks are resident" in record.getMessage()]
    assert len(streamed) == 2 and all(text.startswith("0 of ") for text in streamed)  # the text encoder, the network
    assert ["main memory" in text for text in streamed] == [stream_from == "memory"] * 2
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sum("1.0 kB of memory are free" in text and "Lower, in this order" in text for text in warned) == 3
    torch.testing.assert_close(again.audio, clip.audio, rtol=0, atol=0)
    assert torch.equal(again.frames, clip.frames)


def test_what_the_user_says_is_not_planned(random_models, device_with, caplog):
    caplog.set_level(logging.INFO)
    device_with(10**12)
    MagiHumanPipeline.from_folder(random_models, device="cpu", resident_blocks=1, tile=17).generate(PROMPT, **LARGE)
    assert re.search(r"\b1 of \d blocks are resident", caplog.text)
    assert "in tiles of 17 x 17 latent pixels" in caplog.text
    with pytest.raises(InputError, match="stream_from is 'tape'"):
        MagiHumanPipeline.from_folder(random_models, device="cpu", stream_from="tape").generate(PROMPT, **SMALL)


@pytest.mark.parametrize("turbo", [True, False])
def test_tiles_are_chosen_where_whole_frames_do_not_fit(turbo, random_models, tmp_path, device_with, caplog):
    caplog.set_level(logging.INFO)
    pipeline = MagiHumanPipeline.from_folder(random_models, device="cpu") if turbo else without_turbo(
        random_models, tmp_path)
    device_with(10**12)
    whole = pipeline.generate(PROMPT, **LARGE)
    assert "in tiles" not in caplog.text
    device_with(1000)
    tiled = pipeline.generate(PROMPT, **LARGE)
    assert "decoded in tiles of 16 x 16 latent pixels" in caplog.text
    assert tiled.frames.shape == whole.frames.shape and not torch.equal(tiled.frames, whole.frames)
    assert (tiled.frames.float() - whole.frames.float()).abs().mean() < 6  # of 255: only seams differ


@pytest.mark.parametrize(("turbo", "error"), [
    (True, torch.OutOfMemoryError("CUDA out of memory")),
    (False, RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")),
])  # fmt: skip
def test_memory_that_runs_out_while_decoding(turbo, error, random_models, tmp_path, monkeypatch, caplog):
    """Once: smaller tiles, and every frame once. Twice: the error."""
    pipeline = MagiHumanPipeline.from_folder(random_models, device="cpu") if turbo else without_turbo(
        random_models, tmp_path)
    latent = torch.randn(1, 48, 8 if turbo else 3, 4, 18, generator=torch.Generator().manual_seed(0))
    kind = TurboVAE if turbo else VideoVAE
    decode, tiles, windows = kind.decode_windows, [], []

    def failing(self, z, *, tile=None, **options):
        if z.shape[3:] == latent.shape[3:]:  # else it is a tile of an image
            tiles.append(tile)
            for number, window in enumerate(decode(self, z, tile=tile, **options)):
                if number == 1 and len(tiles) <= failures:
                    raise type(error)(*error.args)  # a new one, which holds nothing
                windows.append(weakref.ref(window))
                yield window
            if len(tiles) <= failures:
                raise type(error)(*error.args)
        else:
            yield from decode(self, z, tile=tile, **options)

    released = []
    monkeypatch.setattr(stages, "release_memory", lambda device: released.extend(window() for window in windows))
    monkeypatch.setattr(kind, "decode_windows", failing)
    with torch.inference_mode():
        failures = 0
        whole = torch.cat(list(stages.decode_video(pipeline.parts, latent)))
        failures, tiles = 1, []
        retried = torch.cat(list(stages.decode_video(pipeline.parts, latent)))
        assert tiles == [None, 16] and "tried once more in tiles of 16 x 16" in caplog.text
        assert released and set(released) == {None}  # nothing of the first attempt is held any more
        assert retried.shape == whole.shape == (29 if turbo else 9, 64, 288, 3)
        assert torch.equal(retried[:1], whole[:1])  # which had come before memory ran out
        assert (retried.float() - whole.float()).abs().mean() < 6
        failures, tiles = 2, []
        with pytest.raises(type(error)):
            list(stages.decode_video(pipeline.parts, latent))
        assert tiles == [None, 16]
        failures, tiles, error = 1, [], RuntimeError("shapes do not match")
        with pytest.raises(RuntimeError, match="do not match"):
            list(stages.decode_video(pipeline.parts, latent))
        assert tiles == [None]


def test_a_picture_is_encoded_on_the_cpu_where_the_device_is_too_small(pipeline, photograph, device_with, caplog):
    """The device is the meta device, on which nothing can be computed."""
    caplog.set_level(logging.INFO)
    picture, size = [Keyframe(0, load_image(photograph))], (64, 32)
    expected = stages.encode_keyframes(pipeline.parts, picture, [size])[size][0]
    parts = replace(pipeline.parts, device=torch.device("meta"))
    device_with(1000)
    assert torch.equal(stages.encode_keyframes(parts, picture, [size])[size][0], expected)
    assert "of which 1.0 kB are free on meta: it is done on the CPU" in caplog.text
    device_with(10**12)
    assert stages.encode_keyframes(parts, picture, [size])[size][0].is_meta


# Latents in a file


@pytest.mark.parametrize("driven", [False, True])
def test_saved_latents_decode_to_the_same_clip(driven, pipeline, voice, tmp_path):
    path = tmp_path / "latents.safetensors"
    clip = pipeline.generate(PROMPT, audio=voice if driven else None, save_latents=path, **SMALL, seed=3)
    assert set(load_file(path)) == {"video", "waveform" if driven else "audio"}
    again = pipeline.decode(path)
    assert torch.equal(again.frames, clip.frames) and torch.equal(again.audio, clip.audio)
    assert again.metadata == clip.metadata and again.metadata["seed"] == 3
    if driven:
        given = resample_recording(*load_audio(voice, SMALL["seconds"]), 44100)
        assert torch.equal(again.audio, given[:, : again.audio.shape[1]])
    assert [file.name for file in tmp_path.iterdir()] == ["latents.safetensors"]


def test_latents_are_in_the_file_before_anything_is_decoded(pipeline, tmp_path, monkeypatch):
    """And each seed's own, so that nothing that was sampled is lost."""
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stages, "decode_audio", fail)
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    with pytest.raises(torch.OutOfMemoryError):
        list(pipeline.generate_seeds(PROMPT, [1, 2], save_latents=paths, **SMALL))
    first, second = (load_clip(path) for path in paths)
    assert first.facts["seed"] == 1 and second.facts["seed"] == 2 and not torch.equal(first.video, second.video)
    with pytest.raises(InputError, match="2 files for the latents of 1 seeds"):
        list(pipeline.generate_seeds(PROMPT, [1], save_latents=paths, **SMALL))


def test_a_target_that_is_something_else_is_refused_before_any_work(pipeline, random_models, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "encode_texts", lambda *_: pytest.fail("work was spent"))
    (tmp_path / "model.safetensors").write_bytes(next((random_models / "distill").glob("*.safetensors")).read_bytes())
    before = (tmp_path / "model.safetensors").read_bytes()
    for name, words in (("model.safetensors", "is there already, and holds no latents"), ("clip.pt", "safetensors"),
                        ("model.safetensors/a.safetensors", "cannot be written")):
        with pytest.raises(InputError, match=words):
            pipeline.generate(PROMPT, save_latents=tmp_path / name, **SMALL)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_an_older_file_of_latents_is_replaced(pipeline, tmp_path):
    path = tmp_path / "latents.safetensors"
    for seed in (1, 2):
        pipeline.generate(PROMPT, save_latents=path, **SMALL, seed=seed)
    assert load_clip(path).facts["seed"] == 2


KIND = {"kind": "magihuman latents"}
VIDEO, AUDIO = torch.zeros(1, 48, 3, 2, 4), torch.zeros(1, 64, 11)
UNUSABLE = {
    "other weights": ({"a": torch.zeros(2)}, {}, InputError, "holds no latents of a clip"),
    "no video": ({"audio": AUDIO}, KIND, CheckpointError, "its video is missing"),
    "no sound": ({"video": VIDEO}, KIND, CheckpointError, "its audio is missing"),
    "a video of two": ({"video": VIDEO.expand(2, -1, -1, -1, -1).contiguous(), "audio": AUDIO}, KIND, CheckpointError,
                       "its video"),
    "whole numbers": ({"video": VIDEO.int(), "audio": AUDIO}, KIND, CheckpointError, "its video"),
    "empty": ({"video": VIDEO[:, :, :0].contiguous(), "audio": AUDIO}, KIND, CheckpointError, "its video"),
    "another vae's": ({"video": VIDEO[:, :7].contiguous(), "audio": AUDIO}, KIND, InputError, r"\[1, 7, 3, 2, 4\]"),
    "mono": ({"video": VIDEO, "waveform": torch.zeros(1, 99)}, KIND, CheckpointError, "its waveform"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_files_that_no_clip_can_be_decoded_from(name, pipeline, tmp_path):
    tensors, metadata, kind, words = UNUSABLE[name]
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    with pytest.raises(kind, match=words):
        pipeline.decode(tmp_path / "x.safetensors")
