"""Train the Oobleck autoencoder on the drawn voices.

    python -m training.train_audio_vae                       # goes on from its checkpoint when started again
    python -m training.train_audio_vae --decoder             # the decoder alone, once clips are encoded

Spectra at several resolutions say whether a voice sounds right; a little of the waveform itself gives them a
start. As for images the latent is held at mean 0, variance 1, and decoded with noise.
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from magihuman_core.vae.audio import AudioVAE, AudioVAEConfig, ResidualUnit
from training import checkpoints
from training.common import weights_hash
from training.data import Clips, choice_by_size, sets_in, split
from training.fit import fit
from training.muon import Together
from training.options import add_options, command, set_up
from training.voice import SHAPES, speech_curves

CONFIG = AudioVAEConfig(widths=(8, 16, 32, 64, 128, 160))
NOISE = 0.12
WINDOWS = (256, 512, 1024, 2048, 4096)


def build():
    """An untrained AudioVAE whose signals keep their size, and whose residual branches start small."""
    vae = weight_normed(AudioVAE(CONFIG))
    with torch.no_grad():
        for conv in convolutions(vae):
            gain(conv).mul_(3**0.5)
            if conv.bias is not None:
                conv.bias.zero_()
            if conv.transposed:
                gain(conv).mul_(conv.stride[0] ** 0.5)  # only every stride-th tap meets a sample
        for module in vae.modules():
            if isinstance(module, ResidualUnit):
                gain(module.layers[3]).mul_(0.2)
        gain(vae.encoder.layers[0]).mul_(10.0)  # speech has an RMS of about 0.06
        gain(vae.decoder.layers[-1]).mul_(0.03)
    return vae


def convolutions(vae):
    return [module for module in vae.modules() if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d))]


def weight_normed(vae):
    """The same AudioVAE with every convolution's weight as length and direction, as the released one was trained.

    Its state dict has torch's names for the two; it also loads the official ones (weight_g, weight_v).
    """
    for conv in convolutions(vae):
        weight_norm(conv)
    return vae


def gain(conv):
    """The lengths of a weight-normed convolution's weights, [n, 1, 1]."""
    return conv.parametrizations.weight.original0


def spectrum(audio, window):
    """Magnitudes [B, bins, frames] of audio [B, n], about the amplitude of a sine at its bin."""
    shape = torch.hann_window(window)
    found = torch.stft(audio, window, window // 4, window=shape, return_complex=True)
    return torch.sqrt(torch.view_as_real(found).square().sum(-1) + 1e-12) * (2 / shape.sum())


def band_matrix(window, bands=40, low=80.0, high=8000.0):
    """Triangular bands on the mel scale: [bands, bins]."""
    f = torch.linspace(0, 25600, window // 2 + 1)
    mel = 2595 * torch.log10(1 + f / 700)
    ends = 2595 * torch.log10(1 + torch.tensor([low, high]) / 700)
    edges = torch.linspace(float(ends[0]), float(ends[1]), bands + 2)
    rise = (mel - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - mel) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp_min(0)


BAND_WINDOW = 2048
BANDS = band_matrix(BAND_WINDOW)


def audio_loss(found, wanted):
    """Difference of spectra, logarithmic (down to -80 dB) and linear, and of waveforms. [B, n] both."""
    loss = 0.5 * (found - wanted).abs().mean() / 0.05
    for window in WINDOWS:
        a, b = spectrum(found, window), spectrum(wanted, window)
        weight = 1.0 / len(WINDOWS)
        low = window * 7000 // 51200  # nearly all of a voice is below: the rest is only kept silent
        logs = (torch.log(a + 1e-4) - torch.log(b + 1e-4)).abs()
        loss = loss + weight * (1.5 * logs[:, :low].mean() + 0.3 * logs[:, low:].mean())
        loss = loss + weight * 2.0 * ((a - b).square().sum() / (b.square().sum() + 1e-3)).sqrt()
        if window == BAND_WINDOW:  # the formants, whatever the harmonics under them
            bands = [(BANDS @ m.square() + 1e-8).log() for m in (a, b)]
            loss = loss + 3.0 * (bands[0] - bands[1]).abs().mean()
    return loss


class Windows:
    """Random windows of audio [B, 2, n]."""

    def __init__(self, folder, seed, held_out=False):
        self.sets, self.random = [Clips(part) for part in sets_in(folder)], np.random.default_rng(seed)
        self.held_out = held_out

    @property
    def description(self):
        return [clips.description for clips in self.sets]

    def batch(self, count, length):
        """Audio, and the share of every speech sound (the last: silence) in each latent, [B, length, 8]."""
        parts, shares, samples = [], [], length * 2048
        for _ in range(count):
            clips = choice_by_size(self.random, self.sets)
            index = self.random.choice(split(range(len(clips)), self.held_out))
            audio = clips.audio[index]
            start = self.random.integers(len(audio) - samples + 1)
            gain = self.random.uniform(0.5, 1.3) if self.random.random() < 0.3 else 1.0
            parts.append(torch.from_numpy(audio[start : start + samples].astype(np.float32)) * gain)
            moments = (start + 2048 * (np.arange(length) + 0.5)) / 51200
            timbre = speech_curves(clips.meta[index]["syllables"], moments)["timbre"]
            silence = 1 - timbre.sum(1, keepdims=True)
            shares.append(torch.from_numpy(np.concatenate([timbre, silence], 1)).float())
        return torch.stack(parts)[:, None].expand(-1, 2, -1).contiguous(), torch.stack(shares)


def with_noise(latent):
    """The latent with noise of a random size."""
    return latent + NOISE * 2 * torch.rand(len(latent), 1, 1) * torch.randn_like(latent)


def decoded_loss(found, audio):
    """audio_loss of one channel, as both are alike, and a price on being unlike."""
    return audio_loss(found.mean(1), audio[:, 0]) + 5.0 * (found[:, 0] - found[:, 1]).abs().mean()


def with_reader(vae):
    """The autoencoder and a linear reader of its latent, which keeps speech sounds apart in it."""
    return nn.ModuleList([vae, nn.Linear(CONFIG.latent_channels, len(SHAPES) + 1)])


def train(options):
    """Encoder and decoder together."""
    vae, reader = modules = with_reader(build())

    def loss(windows, step):
        audio, shares = windows.batch(options.batch, 8)
        latent = vae.encoder(audio)[:, : CONFIG.latent_channels]
        noisy = with_noise(latent)
        found = vae.decoder(noisy)
        spectra = decoded_loss(found, audio)
        spread = latent.square().mean()
        regular = (spread - 1).square() + 0.3 * latent.mean(dim=(0, 2)).square().mean()
        read = nn.functional.cross_entropy(reader(noisy.transpose(1, 2)).flatten(0, 1), shares.flatten(0, 1))
        error = (found - audio).detach().square().mean() / audio.square().mean()
        numbers = {"loss": spectra.detach(), "error": error, "spread": spread.detach(), "read": read.detach()}
        return spectra + regular + read, numbers

    run_fit(options, "audio_vae", modules, loss, {})


def train_decoder(options):
    """The decoder further, for the frozen encoder that the networks' latents were made with."""
    vae = load_trained(options.run).requires_grad_(False)
    decoder = vae.decoder.train().requires_grad_(True)

    def loss(windows, step):
        audio, _ = windows.batch(options.batch, 8)
        with torch.no_grad():
            latent = vae.encoder(audio)[:, : CONFIG.latent_channels]
        spectra = decoded_loss(decoder(with_noise(latent)), audio)
        return spectra, {"loss": spectra.detach()}

    run_fit(options, "audio_decoder", decoder, loss, {"encoder": weights_hash(vae.encoder)})


def run_fit(options, stage, modules, loss, config):
    """What both have in common."""
    optimizer = Together(torch.optim.AdamW(modules.parameters(), options.rate, (0.9, 0.99), weight_decay=1e-4))
    windows, held_out = (Windows(options.run / "clips", options.seed, held) for held in (False, True))
    fit(options.run / stage, modules, optimizer, loss, windows, options, held_out=held_out, max_norm=5.0,
        config={**config, "clips": windows.description})  # fmt: skip


def load_trained(run):
    """The AudioVAE as trained so far (moving averages); a decoder trained further for this encoder is taken."""
    vae = build()
    state = checkpoints.load_stage(run, "audio_vae")
    with checkpoints.fitting(run / "audio_vae"):
        with_reader(vae).load_state_dict(state["average"]["module"])
    if state := checkpoints.load_further(run, "audio_decoder", weights_hash(vae.encoder)):
        with checkpoints.fitting(run / "audio_decoder"):
            vae.decoder.load_state_dict(state["average"]["module"])
    return vae.eval()


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--decoder", action="store_true", help="the decoder alone")
    add_options(parser, steps=5700, rate=8e-4, batch=4)
    options = parser.parse_args()
    set_up(options)
    (train_decoder if options.decoder else train)(options)


if __name__ == "__main__":
    main()
