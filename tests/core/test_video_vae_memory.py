"""VAEs decode and encode in memory that does not grow with the length of the clip, and as much as is said before."""

import json

import pytest
import torch

from magihuman_core.runtime.memory import decoding_activations, encoding_activations
from magihuman_core.vae import layers as video_layers
from magihuman_core.vae.audio import AudioVAE, AudioVAEConfig

from .golden import DATA, load_small
from .pretend_card import Peak


def peak_of(work, given):
    """The highest memory in use while work(given) gives its pieces, which are let go."""
    with torch.inference_mode(), Peak("cpu") as memory:
        for _ in work(given):
            pass
    assert memory.most > 0
    return memory.most


def latents(length):
    return torch.zeros(1, 48, length, 2, 2)


@pytest.fixture(scope="module")
def turbo():
    config = json.loads((DATA / "turbo_vaed" / "tiny_weights.json").read_text())["config"]
    return load_small("turbo_vae", config=config)


@pytest.fixture(scope="module")
def wan():
    return load_small("video_vae", dtype=torch.float32)


@pytest.mark.parametrize(("kind", "lengths"), [("turbo", (21, 70)), ("wan", (4, 12))])
def test_decoding_is_flat(kind, lengths, request):
    vae = request.getfixturevalue(kind)
    short, long = (peak_of(vae.decode_windows, latents(n)) for n in lengths)
    # Allowed to grow: the latents themselves, denormalized and padded.
    assert long < 1.02 * short + 3 * latents(lengths[1] - lengths[0]).nbytes


def test_turbo_layers_in_pieces_need_less(turbo, monkeypatch):
    whole = peak_of(turbo.decode_windows, latents(7))
    monkeypatch.setattr(video_layers, "PIECE_ELEMENTS", 4 * 8 * 16 * 16)
    assert peak_of(turbo.decode_windows, latents(7)) < 0.8 * whole


def test_wan_encode_is_flat(wan):
    short, long = (peak_of(lambda v: [wan.encode(v)], torch.zeros(1, 3, n, 32, 32)) for n in (9, 41))
    assert long < 1.02 * short + 4 * latents(8).nbytes


def test_activations_are_known_before_they_are_there(turbo, wan):
    audio = AudioVAE(AudioVAEConfig(widths=(4, 4, 4, 4, 8, 8)))
    latent, waveform = torch.zeros(1, 64, 900), torch.zeros(1, 2, 51200 * 40)
    video, frames = latents(21), torch.zeros(1, 3, 41, 32, 32)
    for vae, given, work in ((turbo, video, turbo.decode_windows), (wan, video, wan.decode_windows),
                             (audio, latent, lambda x: [audio.decode(x)])):
        said = decoding_activations(vae.config, given.shape, torch.float32, "cuda")
        assert 0.95 < said / (peak_of(work, given) + given.nbytes) < 1.25
    for vae, given, work in ((wan, frames, wan.encode), (audio, waveform, audio.encode_long)):
        said = encoding_activations(vae.config, tuple(given.shape), torch.float32, "cuda")
        assert 0.9 < said / (peak_of(lambda x, work=work: [work(x)], given) + given.nbytes) < 1.1
