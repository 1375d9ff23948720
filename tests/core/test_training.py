"""The parts that all training scripts share, and that the demo's own weights can be trained on from."""

import pytest
import torch
from torch import nn

from training import start_from_demo
from training.checkpoints import load
from training.muon import Optimizers, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (24, 96), (96, 24)])
def test_muon_makes_steps_orthogonal(shape):
    generator = torch.Generator().manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=generator)))
    assert values.min() > 0.4 and values.max() < 1.3  # the quintic brings them near 1, not to it


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))


def train(net, optimizer, steps=60):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(4, 3, 8, 8, generator=generator)
        loss = (net(x) - x.roll(1, -1)).square().mean()
        loss.backward()
        optimizer.step(5e-3)
    return float(loss.detach())


def test_kernels_go_to_muon_and_the_rest_to_adamw():
    net = small_net()
    optimizer = Optimizers(net, 1e-3, weight_decay=0.0)
    muon, adamw = ([p for group in part.param_groups for p in group["params"]] for part in optimizer.parts)
    assert [tuple(p.shape) for p in muon] == [(16, 3, 3, 3)]  # the last has three outputs only
    assert len(adamw) == 3
    assert train(net, optimizer) < 0.5
    assert all(p.grad is None for p in net.parameters())


def test_training_goes_on_from_the_demos_files(tmp_path):
    from training import train_audio_vae, train_network, train_video_vae

    start_from_demo.start(tmp_path)
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == {"video_vae", "wan_decoder", "audio_vae", "text", "base", "distilled", "super_resolution"}
    vae, _ = train_video_vae.load_trained(tmp_path)
    with torch.inference_mode():
        wanted = start_from_demo.load_video_vae(start_from_demo.file_of("vae"), dtype=torch.float32)
        video = torch.zeros(1, 3, 5, 32, 32)
        torch.testing.assert_close(train_video_vae.encode(vae, video), wanted.encode(video), rtol=1e-4, atol=1e-4)
    train_audio_vae.load_trained(tmp_path)
    train_network.load_network(tmp_path, "distilled")
    before = load(tmp_path / "base")
    start_from_demo.start(tmp_path)  # a second time overwrites nothing
    assert torch.equal(before["modules"]["0.adapter.rope.bands"],
                       load(tmp_path / "base")["modules"]["0.adapter.rope.bands"])  # fmt: skip
