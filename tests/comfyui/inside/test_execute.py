"""Nodes executed one by one, without a server."""

import json
import os
import shutil
import struct

import comfy.utils
import folder_paths
import latent_preview
import pytest
import torch
from comfy_extras.nodes_custom_sampler import RandomNoise, SamplerCustomAdvanced
from magihuman_pack.magihuman_core.errors import CheckpointError
from magihuman_pack.magihuman_core.weights.open import open_checkpoint
from magihuman_pack.nodes import conditioning, files, loaders, sampling
from magihuman_pack.nodes.adapter.load_model import load_model
from magihuman_pack.nodes.adapter.streams import nested
from magihuman_pack.nodes.files import DEMO
from small_clip import AUDIO, OTHER, TEXT, VIDEO, max_error

TEXTS = {"positive": [[TEXT, {}]], "negative": [[OTHER, {}]]}
EMPTY = {"samples": nested(torch.zeros_like(VIDEO), torch.zeros_like(AUDIO))}


def run(node, **inputs):
    """A node's first output."""
    return node.execute(**inputs).args[0]


def sample_in_one(model, seed=7, steps=2):
    return run(sampling.MagiHumanSampler, model=model, **TEXTS, latent_image=EMPTY, seed=seed, mode="auto", steps=steps,
               sr_noise_level=220)["samples"].unbind()


@pytest.mark.parametrize(("role", "solver", "guidance"), [
    ("distilled", "renoise", "auto"), ("base", "unipc", "full CFG"),
])
def test_in_parts_is_identical_to_the_one_node(models, role, solver, guidance):
    model = load_model(models / f"diffusion_models/magihuman/{role.removesuffix('ed')}", role)
    guider = run(sampling.MagiHumanGuider, model=model, **TEXTS, guidance=guidance, video=5.0, video_late=2.0,
                 audio=5.0, sr_scale=3.5)
    parts = run(SamplerCustomAdvanced, noise=run(RandomNoise, noise_seed=7), guider=guider,
                sampler=run(sampling.MagiHumanSamplerSelect, sampler=solver, sr_noise_level=220),
                sigmas=run(sampling.MagiHumanScheduler, steps=2, shift=5.0), latent_image=EMPTY)["samples"].unbind()
    assert max_error(parts, sample_in_one(model)) == 0


def test_previews_show_the_middle_of_the_three_latent_frames(model, monkeypatch):
    shown, seen = [], []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, image, **_: shown.append(image))
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Auto)
    monkeypatch.setattr(latent_preview, "preview_to_image", lambda image: seen.append(image) or image)
    video, _ = sample_in_one(model, steps=3)
    assert len(shown) == 3 and all(image[0] == "JPEG" for image in shown)
    form = model.model.latent_format
    colors = form.process_in(video)[0, :, 1].movedim(0, -1) @ torch.tensor(form.latent_rgb_factors)
    assert max_error(seen[-1], colors + torch.tensor(form.latent_rgb_factors_bias)) < 1e-4


def test_previews_have_the_colors_that_the_file_names(models, tmp_path, caplog):
    path = models / "diffusion_models/magihuman/distill"
    tensors = dict(open_checkpoint(path))
    own = {"factors": [[k / 100, 0.0, -0.5] for k in range(VIDEO.shape[1])], "bias": [0.1, 0.2, 0.3]}
    formats = []
    for name, text in (("own", json.dumps(own)), ("short", '{"factors": [[1, 2, 3]], "bias": [0, 0, 0]}'),
                       ("torn", '{"factors": [[')):  # fmt: skip
        comfy.utils.save_torch_file(tensors, tmp_path / f"{name}.safetensors", metadata={"preview": text})
        formats.append(load_model(tmp_path / f"{name}.safetensors", "distilled").model.latent_format)
    assert (formats[0].latent_rgb_factors, formats[0].latent_rgb_factors_bias) == (own["factors"], own["bias"])
    usual = load_model(path, "distilled").model.latent_format
    for damaged in formats[1:]:  # quality alone is a warning
        assert damaged.latent_rgb_factors == usual.latent_rgb_factors != own["factors"]
    assert sum("preview colors are not used" in record.message for record in caplog.records) == 2


def test_the_prompt_has_its_three_parts():
    text = run(conditioning.MagiHumanPrompt, body="A man nods.", dialogue="old man, German: Guten Tag",
               background_sound="")
    assert "Dialogue:" in text and "Guten Tag" in text and "<No prominent background sound>" in text


# (node, its input, ComfyUI's folder, the file in it, its other inputs)
LOADERS = [
    (loaders.MagiHumanModelLoader, "model", "diffusion_models", "distill.safetensors", {"role": "auto"}),
    (loaders.MagiHumanTextEncoderLoader, "text_encoder", "text_encoders", "encoder.safetensors",
     {"tokenizer": "beside the weights"}),
    (loaders.MagiHumanVideoVAELoader, "vae", "vae", "wan.safetensors", {}),
    (loaders.MagiHumanTurboVAELoader, "vae", "vae", "turbo.safetensors", {}),
    (loaders.MagiHumanAudioVAELoader, "vae", "vae", "audio.safetensors", {}),
]


@pytest.mark.parametrize(("node", "name", "folder", "file", "inputs"), LOADERS)
def test_a_loader_notices_that_a_file_was_replaced(node, name, folder, file, inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, ([str(tmp_path)], {".safetensors"}))
    path, other = tmp_path / file, tmp_path / "other"
    comfy.utils.save_torch_file({"a": torch.zeros(4)}, path)
    shutil.copy2(path, other)

    def found(choice=file):
        return node.fingerprint_inputs(**{name: choice}, **inputs)

    first = found()
    assert first and found() == first
    comfy.utils.save_torch_file({"a": torch.ones(4)}, path)
    os.utime(path, ns=(other.stat().st_atime_ns, other.stat().st_mtime_ns + 1))
    second = found()
    assert second != first
    for beside in ("config.json", "other model.metadata.json", "turbo.json"):
        before = found()
        (tmp_path / beside).write_text('{"decoder_block_out_channels": [8]}' if beside == "turbo.json" else "{}",
                                       encoding="utf-8")
        read = (beside == "config.json" and name == "text_encoder") or (beside == file.replace("safetensors", "json"))
        assert (found() != before) == read, "the settings that it reads count, too, and no others"
    assert found(DEMO) not in {None, first, second}
    assert found(None) is None, "another node gives it, so nothing can be told yet"


def test_shards_beside_other_files_are_one_choice(models, tmp_path, monkeypatch):
    """In the model folder itself, where a folder would stand for all that lies there."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    weights = dict(open_checkpoint(models / "diffusion_models/magihuman/distill").items())
    keys, shards = sorted(weights), [f"mine-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for shard, part in zip(shards, (keys[::2], keys[1::2]), strict=True):
        comfy.utils.save_torch_file({key: weights[key].contiguous() for key in part}, tmp_path / shard)
    comfy.utils.save_torch_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert files.choices("diffusion_models") == [DEMO, shards[0], "other.safetensors"]
    node, inputs = loaders.MagiHumanModelLoader, {"model": shards[0], "role": "distilled"}
    before = node.fingerprint_inputs(**inputs)
    assert run(node, **inputs, weight_dtype="fp32").model.role == "distilled"
    (tmp_path / "other.safetensors").unlink()
    assert node.fingerprint_inputs(**inputs) == before
    (tmp_path / shards[1]).unlink()
    assert node.fingerprint_inputs(**inputs) != before
    with pytest.raises(CheckpointError, match=r"missing.*00002-of-00002"):
        run(node, **inputs, weight_dtype="fp32")


def write_gguf(tensors, path):
    """Of fp32 tensors, without any value."""
    header, offset = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0), 0
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]
        header += struct.pack("<Q", len(name)) + name.encode() + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        header += struct.pack("<IQ", 0, offset)
        offset += tensor.numel() * 4
    header += bytes(-len(header) % 32)
    path.write_bytes(header + b"".join(tensor.float().contiguous().numpy().tobytes() for tensor in tensors.values()))


def test_a_file_is_offered_by_our_endings_and_not_by_those_that_comfyui_reads(models, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    for folder in ("diffusion_models", "vae"):
        own_endings = folder_paths.folder_names_and_paths[folder][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, ([str(tmp_path)], own_endings))
    (tmp_path / "distill").mkdir()
    weights = dict(open_checkpoint(models / "diffusion_models/magihuman/distill").items())
    write_gguf(weights, tmp_path / "distill/net.GGUF")
    comfy.utils.save_torch_file(weights, tmp_path / "distill.sft")
    (tmp_path / "wan.pth").write_bytes(b"\x80\x02}")  # which is refused with a sentence
    (tmp_path / "notes.txt").touch()
    names = ["distill.sft", "distill/net.GGUF", "wan.pth"]
    assert files.choices("diffusion_models") == files.choices("vae") == [DEMO, *names]
    for name in names[:2]:
        assert loaders.MagiHumanModelLoader.fingerprint_inputs(model=name, role="auto")
        model = run(loaders.MagiHumanModelLoader, model=name, role="auto", weight_dtype="fp32").model
        assert model.role == "distilled"
        assert f"{name}: taken as distilled (" in caplog.text
        assert max_error(model.diffusion_model.state_dict()["final_linear_video.weight"],
                         weights["final_linear_video.weight"]) == 0
    with pytest.raises(CheckpointError, match=r"pickle"):
        run(loaders.MagiHumanVideoVAELoader, vae="wan.pth")


def test_each_checkpoint_in_shards_is_a_choice_that_can_be_opened(models, tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    weights = dict(open_checkpoint(models / "diffusion_models/magihuman/distill").items())
    keys = sorted(weights)

    def put(stem, index):
        folder = tmp_path / stem.rpartition("/")[0]
        folder.mkdir(exist_ok=True)
        places = {}
        for number, part in ((1, keys[::2]), (2, keys[1::2])):
            path = tmp_path / f"{stem}-0000{number}-of-00002.safetensors"
            comfy.utils.save_torch_file({key: weights[key].contiguous() for key in part}, path)
            places |= dict.fromkeys(part, path.name)
        if index:
            (tmp_path / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

    put("alone/distill", False)  # stands for its folder, as one with an index does whatever is beside it
    put("listed/distill", True)
    put("beside/distill", False)
    for stem, index in (("two/distill", False), ("two/base", True)):
        put(stem, index)
    for folder in ("listed", "beside"):
        comfy.utils.save_torch_file({"a": torch.zeros(1)}, tmp_path / folder / "a.safetensors")
    first = "distill-00001-of-00002.safetensors"
    roles = {"alone/": "distilled", "listed/": "distilled", f"beside/{first}": "distilled", f"two/{first}": "distilled",
             "two/base.safetensors.index.json": "base"}
    assert set(files.choices("diffusion_models")) == {DEMO, "listed/a.safetensors", "beside/a.safetensors", *roles}
    for choice, role in roles.items():
        assert loaders.MagiHumanModelLoader.fingerprint_inputs(model=choice, role="auto")
        assert run(loaders.MagiHumanModelLoader, model=choice, role="auto", weight_dtype="fp32").model.role == role
