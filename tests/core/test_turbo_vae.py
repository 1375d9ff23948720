"""The Turbo VAE against recorded numbers, and what it does with files, windows, tiles and bad input."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from magihuman_core.errors import CheckpointError, InputError
from magihuman_core.loading.vae import load_turbo_vae
from magihuman_core.vae import layers as video_layers
from magihuman_core.vae.latent_statistics import LATENT_MEAN, LATENT_STD
from magihuman_core.vae.turbo import TurboVAE
from magihuman_core.vae.turbo_config import TurboVAEConfig

from .golden import DATA as ALL_DATA

DATA = ALL_DATA / "turbo_vaed"
NETS = ["tiny", "dw_split"]


def weights_of(net):
    return {k: v for k, v in load_file(DATA / f"{net}_weights.safetensors").items() if not k.startswith("__")}


def config_of(net):
    return json.loads((DATA / f"{net}_weights.json").read_text())["config"]


def load(net, **kwargs):
    return load_turbo_vae(weights_of(net), config=config_of(net), **kwargs)


@pytest.fixture(scope="module")
def tiny():
    return load("tiny")


@pytest.fixture
def z():
    return torch.randn(1, 48, 9, 2, 3, generator=torch.Generator().manual_seed(0))


CASES = [(net, case) for net in NETS for case in json.loads((DATA / f"{net}_decode.json").read_text())["cases"]]


@pytest.mark.parametrize(("net", "case"), CASES)
def test_decode_gives_the_recorded_frames(net, case):
    recorded = load_file(DATA / f"{net}_decode.safetensors")
    with torch.inference_mode():
        out = load(net).decode(recorded[f"{case}.z"].float())
    expected = recorded[f"{case}.out"]
    atol = 1e-4 if expected.dtype == torch.float32 else 3e-3  # some are stored in half precision
    torch.testing.assert_close(out, expected.float(), atol=atol, rtol=0)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("grad", [False, True])
def test_every_block_of_the_network_gives_the_recorded_values(net, grad):
    tensors = load_file(DATA / f"{net}_decode.safetensors")
    recorded = {key[4:]: value for key, value in tensors.items() if key.startswith("raw.")}
    decoder = load(net).decoder
    seen = {}
    blocks = {"conv_in": decoder.conv_in, "mid_block": decoder.mid_block,
              **{f"up{i}": list(block.layers())[-1] for i, block in enumerate(decoder.up_blocks)}}
    for name, block in blocks.items():
        block.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.clone()}))
    with torch.set_grad_enabled(grad):
        seen["out"] = decoder(recorded["z"], first_chunk=True)
        for name, value in seen.items():
            torch.testing.assert_close(value, recorded[f"first.{name}"], atol=1e-4, rtol=0, msg=name)
        later = decoder(recorded["z"], first_chunk=False)
    torch.testing.assert_close(later, recorded["later.out"], atol=1e-4, rtol=0)
    assert len(seen) == 7


@pytest.mark.parametrize("frames", range(1, 17))
def test_every_length_gives_4t_minus_3_frames(tiny, frames):
    pieces = list(tiny.decode_windows(torch.zeros(1, 48, frames, 1, 1)))
    whole = tiny.decode(torch.zeros(1, 48, frames, 1, 1))
    assert whole.shape == (1, 3, 4 * frames - 3, 16, 16)
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, atol=0, rtol=0)


@torch.inference_mode()
def test_windows_follow_the_schedule_of_the_description(tiny):
    # Written out by hand for T = 15: windows of 7, 7 and 7 (6 of them padding), one latent of context.
    z = torch.randn(1, 48, 15, 1, 1, generator=torch.Generator().manual_seed(1))
    raw = z * torch.tensor(LATENT_STD).view(1, -1, 1, 1, 1) + torch.tensor(LATENT_MEAN).view(1, -1, 1, 1, 1)
    padded = torch.cat([raw, *[raw[:, :, -1:]] * 6], dim=2)
    expected = torch.cat([
        tiny(padded[:, :, 0:8], True)[:, :, :-4],
        tiny(padded[:, :, 6:15], False)[:, :, 4:-4],
        tiny(padded[:, :, 13:21], False)[:, :, 4:-24],
    ], dim=2)
    torch.testing.assert_close(tiny.decode(z), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(tiny.decode(raw, normalized=False), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("net", NETS)
@torch.inference_mode()
def test_layers_that_run_in_pieces_of_time_give_the_same(net, z, monkeypatch):
    vae, z = load(net, dtype=torch.float64), z.double()  # other shapes, other kernels: fp32 shows their rounding
    whole = vae.decode(z)
    monkeypatch.setattr(video_layers, "PIECE_ELEMENTS", 700)
    torch.testing.assert_close(vae.decode(z), whole, atol=1e-9, rtol=0)


@torch.inference_mode()
def test_tiles_blend_into_the_whole_picture():
    config = {**config_of("tiny"), "first_chunk_size": 1, "step_size": 1}
    tiny = load_turbo_vae(weights_of("tiny"), config=config)
    z = torch.randn(1, 48, 1, 20, 9, generator=torch.Generator().manual_seed(2))
    whole = tiny.decode(z)
    tiled = tiny.decode(z, tile=16, overlap=12)
    assert tiled.shape == whole.shape
    # Zeros beyond a tile's edge reach a few latent pixels into it; the weights there are small.
    assert (tiled - whole).abs().mean() < 0.02 * whole.abs().mean()
    # Far from the seams (rows 0 to 4 are covered by the first tile alone) nothing changes.
    torch.testing.assert_close(tiled[..., : 16 * 4, :], whole[..., : 16 * 4, :], atol=1e-4, rtol=0)
    torch.testing.assert_close(tiny.decode(z, tile=20, overlap=3), whole, atol=0, rtol=0)


@pytest.mark.parametrize(("tile", "overlap"), [(4, 4), (4, -1), (0, 0)])
def test_impossible_tiles_are_refused(tiny, z, tile, overlap):
    with pytest.raises(InputError, match="overlap"):
        tiny.decode(z, tile=tile, overlap=overlap)


@pytest.mark.parametrize("net", NETS)
def test_gradients_reach_the_latent_and_every_weight(net, z):
    decoder = load(net).decoder.requires_grad_(True)
    z = z[:, :, :2].clone().requires_grad_(True)
    decoder(z).square().mean().backward()
    assert z.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0
               for p in decoder.parameters())


@pytest.mark.parametrize("net", NETS)
def test_sizes_are_inferred_from_shapes(net):
    inferred = load_turbo_vae(weights_of(net)).config
    given = TurboVAEConfig.from_mapping(config_of(net))
    for field in given.__dataclass_fields__:
        if field not in ("first_chunk_size", "step_size"):  # shapes do not tell
            assert getattr(inferred, field) == getattr(given, field), field
    assert (inferred.first_chunk_size, inferred.step_size) == (7, 7)


def test_other_latent_widths_have_mean_0_and_std_1_unless_the_file_says_otherwise():
    config = TurboVAEConfig(latent_channels=6, decoder_block_out_channels=(4, 4, 4, 4),
                            decoder_layers_per_block=(1, 1, 1, 1, 1))
    tensors = {k: torch.randn(v.shape) * 0.1 for k, v in TurboVAE(config).state_dict().items()}
    z = torch.randn(1, 6, 1, 1, 1)
    plain = load_turbo_vae(tensors)
    torch.testing.assert_close(plain.decode(z), plain.decode(z, normalized=False), atol=0, rtol=0)
    mean, std = torch.arange(6.0), torch.arange(6.0) + 1
    vae = load_turbo_vae({**tensors, "latent_mean": mean, "latent_std": std})
    raw = z * std.view(1, -1, 1, 1, 1) + mean.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(vae.decode(z), plain.decode(raw))
    with pytest.raises(CheckpointError, match="latent_std"):
        load_turbo_vae({**tensors, "latent_mean": mean})


def test_training_checkpoint_beside_its_json(tmp_path, z):
    tensors = {f"module.{k}": v for k, v in weights_of("dw_split").items()}
    tensors["module.decoder.up_blocks.0.aligned_conv.weight"] = torch.ones(2)
    tensors["module.aligned_blocks.0.weight"] = torch.ones(2)
    tensors["module.encoder.conv_in.weight"] = torch.ones(2)
    torch.save({"ema_state_dict": tensors, "step": 3}, tmp_path / "checkpoint.ckpt")
    (tmp_path / "other.json").write_text('{"model_type": "something else"}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "TurboV3.json").write_text(json.dumps(config_of("dw_split")))
    expected = load("dw_split")
    for source in (tmp_path / "checkpoint.ckpt", str(tmp_path)):
        vae = load_turbo_vae(source)
        assert vae.config == expected.config
        torch.testing.assert_close(vae.decode(z), expected.decode(z), atol=0, rtol=0)
    # A JSON of the same name goes before any other, and one that is given before both.
    file, given = tmp_path / "checkpoint.ckpt", tmp_path / "TurboV3.json"
    (tmp_path / "checkpoint.json").write_text(json.dumps({**config_of("dw_split"), "step_size": 4}))
    assert load_turbo_vae(file).config.step_size == 4
    assert load_turbo_vae(file, config=given).config.step_size == 5


def test_safetensors_file_without_json(tmp_path, tiny):
    save_file(weights_of("tiny"), tmp_path / "turbo.safetensors")
    assert load_turbo_vae(tmp_path / "turbo.safetensors").config == tiny.config


@pytest.mark.parametrize(("change", "field"), [
    (config_of("dw_split"), "do not fit"),
    ({"decoder_layers_per_block": [1] * 5}, "unexpected"),
    ({"decoder_layers_per_block": [1, 1]}, "decoder_layers_per_block"),
    ({"decoder_block_out_channels": "wide"}, "decoder_block_out_channels"),
    ({"decoder_spatio_only": [0, 1, 0, 0]}, "decoder_spatio_only"),
    ({"step_size": 0}, "step_size"),
    ({"first_chunk_size": True}, "first_chunk_size"),
    ({"patch_size_t": 2}, "patch_size_t"),
    ({"patch_size": 4, "use_unpatchify": False}, "patch_size"),
    ({"decoder_dw_kernel_size": 4}, "decoder_dw_kernel_size"),
])
def test_bad_configurations_name_the_field(change, field):
    with pytest.raises(CheckpointError, match=field):
        load_turbo_vae(weights_of("tiny"), config={**config_of("tiny"), **change})


def test_unreadable_configuration_file_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[1, 2]")
    for name in ("config.json", "absent.json"):
        with pytest.raises(CheckpointError, match=name):
            load_turbo_vae(weights_of("tiny"), config=tmp_path / name)
