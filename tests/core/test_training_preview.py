"""Colours of latents for live previews: fitted to clips, kept in the metadata of the networks' files."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from magihuman_core import load_video_vae
from magihuman_core.tools.convert import convert
from training import preview
from training.clips import make_clip
from training.files import DEMO


def networks(folder):
    return [next((folder / part).glob("*.safetensors")) for part in preview.NETWORKS]


def stored(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["preview"])


def test_the_fit_finds_a_linear_function():
    random = np.random.default_rng(0)
    factors, bias = random.normal(0, 0.1, (6, 3)), random.normal(0, 0.1, 3)
    latent = random.normal(0, 1, (6, 3, 2, 4))
    small = (np.moveaxis(latent, 0, -1) @ factors + bias + 1) * 127.5
    frames = np.concatenate([small[:1], small[1:].repeat(4, axis=0)]).repeat(16, axis=1).repeat(16, axis=2)
    found = preview.fit_preview([(latent, frames)])
    np.testing.assert_allclose(found[0], factors, atol=1e-5)
    np.testing.assert_allclose(found[1], bias, atol=1e-5)


def test_what_the_demos_files_say_shows_the_picture():
    """With the factors of the released latents the correlation is 0.09."""
    clip = make_clip(3, seconds=1)
    vae = load_video_vae(next((DEMO / "vae").glob("*.safetensors")), dtype=torch.float32)
    with torch.inference_mode():
        latent = vae.encode(torch.from_numpy(clip.video).permute(3, 0, 1, 2)[None] / 127.5 - 1)[0].numpy()
    wanted = preview.colours(clip.video)
    for path in networks(DEMO):
        found = stored(path)
        shown = np.moveaxis(latent, 0, -1) @ np.array(found["factors"]) + np.array(found["bias"])
        assert np.corrcoef(shown.ravel(), wanted.ravel())[0, 1] > 0.97
        assert np.abs(shown - wanted).mean() < 0.1


def test_adding_a_preview_changes_no_tensor_and_conversion_keeps_it(tmp_path):
    source = networks(DEMO)[0]
    (tmp_path / "base").mkdir()
    copy = tmp_path / "base" / "magihuman_base.safetensors"
    copy.write_bytes(source.read_bytes())
    preview.add_to_files(tmp_path, '{"factors":[[1,2,3]],"bias":[0,0,0]}')
    with safe_open(source, "pt") as before, safe_open(copy, "pt") as after:
        assert before.keys() == after.keys()
        assert all(torch.equal(before.get_tensor(key), after.get_tensor(key)) for key in list(before.keys())[:40])
        kept = {key: value for key, value in before.metadata().items() if key != "preview"}
        assert {key: value for key, value in after.metadata().items() if key != "preview"} == kept
    convert(copy, tmp_path / "converted.safetensors", dtype="bf16")
    assert stored(tmp_path / "converted.safetensors") == {"factors": [[1, 2, 3]], "bias": [0, 0, 0]}


@pytest.mark.parametrize("part", preview.NETWORKS)
def test_a_preview_is_small(part):
    assert len(json.dumps(stored(next((DEMO / part).glob("*.safetensors"))))) < 2500
