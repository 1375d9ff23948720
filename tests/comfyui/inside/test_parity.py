"""The reference's trajectories, through ComfyUI's guider, sampler and masks, to 1e-4 in fp32."""

import json
from pathlib import Path

import comfy.nested_tensor
import pytest
import torch
from magihuman_pack.magihuman_core import DiTConfig, Guidance, flow_sigmas
from magihuman_pack.magihuman_core.sampling.super_resolution import zero_snr_table
from magihuman_pack.magihuman_core.weights.dit_keys import split_official
from magihuman_pack.magihuman_core.weights.open import open_checkpoint
from magihuman_pack.nodes.adapter import sampling
from magihuman_pack.nodes.adapter.load_model import build_model
from safetensors.torch import load_file
from small_clip import max_error

FOLDER = Path(__file__).resolve().parents[2] / "data/pipeline"


def model_for(info: dict):
    role = "sr_1080p" if info["use_sr_model"] else "base" if info["cfg_number"] == 2 else "distilled"
    checkpoint = open_checkpoint(FOLDER / info["weights_file"])
    net = info["net_config"]
    config = DiTConfig.from_state_dict(checkpoint, positions=info["coords_style"],
                                       local_layers=tuple(net["local_attn_layers"]),
                                       local_radius=info["frame_receptive_field"])
    return build_model(split_official(checkpoint, config), config, role)


@pytest.mark.parametrize("name", ["distill_t2v", "distill_i2v", "base_t2v", "base_i2v", "base_a2v", "sr_cfg1"])
def test_trajectory_ends_where_the_references_does(name):
    info = json.loads((FOLDER / f"{name}.json").read_text())
    tensors = load_file(FOLDER / f"{name}.safetensors")
    model = model_for(info)
    video, audio = tensors["in.latent_video"], tensors["in.latent_audio"].transpose(1, 2).contiguous()
    video_mask, audio_mask = torch.ones_like(video[:, :1]), torch.ones_like(audio[:, :1])
    latent_video, latent_audio = torch.zeros_like(video), torch.zeros_like(audio)
    noise_video, noise_audio = video, audio
    if info["use_sr_model"]:
        # The vector enters after re-noising: choose a latent that re-noising with nothing brings there.
        latent_video, noise_video = video / float(zero_snr_table()[220]), torch.zeros_like(video)
        latent_audio, noise_audio, audio_mask = audio, audio, audio_mask * 0
    if info["is_a2v"]:
        latent_audio, audio_mask = audio, audio_mask * 0
    if "in.latent_image" in tensors:
        latent_video[:, :, :1] = tensors["in.latent_image"]
        video_mask[:, :, :1] = 0
    nested = comfy.nested_tensor.NestedTensor

    positive = [[tensors["in.context"][:, : info["context_len"]], {}]]
    negative = [[tensors["in.context_null"][:, : info["context_null_len"]], {}]]
    guided = info["cfg_number"] == 2 and not info["use_sr_model"]
    guider = sampling.StreamGuider(model, Guidance() if guided else None, positive, negative)
    steps = info["steps"]
    if info["cfg_number"] == 1 and not info["use_sr_model"]:
        drawn = [(tensors[f"noise.{i:03d}"], tensors[f"noise.{i + 1:03d}"].transpose(1, 2))
                 for i in range(0, 2 * steps, 2)]
        flat = iter([torch.cat([stream.reshape(1, 1, -1) for stream in pair], -1) for pair in drawn])
        sampler = sampling.make_sampler("renoise", noise_sampler=lambda *_: next(flat))
    else:
        sampler = sampling.make_sampler("unipc")
    out = guider.sample(nested([noise_video, noise_audio]), nested([latent_video, latent_audio]), sampler,
                        flow_sigmas(steps), denoise_mask=nested([video_mask, audio_mask]), seed=0, disable_pbar=True)
    got_video, got_audio = out.unbind()
    assert max_error(got_video, tensors["final.latent_video"]) <= 1e-4
    assert max_error(got_audio, tensors["final.latent_audio"].transpose(1, 2)) <= 1e-4
