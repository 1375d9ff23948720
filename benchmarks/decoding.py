"""How much of decoding frames is convolutions, and how long a frame takes.

usage: python -m benchmarks.decoding [--quick]

The ratio is (time of the bare convolutions of a decode, of the same shapes in the same order in memory) / (time of the
decode), both measured in turns in one process, with random weights: 1 where nothing else took any time. Without --quick
the widths are those of the released networks.
"""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from magihuman_core.runtime.memory import decoding_activations
from magihuman_core.vae.turbo import TurboVAE, TurboVAEConfig
from magihuman_core.vae.video import VideoVAE, VideoVAEConfig

from .measure import Row, command_line, fill_randomly, interleaved, main

QUICK = {
    "Turbo VAE": (TurboVAEConfig(decoder_block_out_channels=(16, 16, 32, 32), decoder_layers_per_block=(1, 1, 1, 1, 1)),
                  (3, 4, 4)),
    "Wan2.2 VAE": (VideoVAEConfig(encoder_dim=8, decoder_dim=8, blocks=1), (2, 4, 4)),
}
REAL = {"Turbo VAE": (TurboVAEConfig(), (7, 6, 6)), "Wan2.2 VAE": (VideoVAEConfig(), (2, 6, 6))}


class Convolutions(TorchDispatchMode):
    """Notes every convolution that runs inside: how often one of the same shapes and order in memory, and on what."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter = Counter()
        self.arguments: dict = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "conv" in func.__name__:
            key = func, *((a.shape, a.stride()) if isinstance(a, Tensor) else str(a) for a in args)
            self.calls[key] += 1
            self.arguments.setdefault(key, [torch.randn_like(a) if i == 0 else a for i, a in enumerate(args)])
        return func(*args, **(kwargs or {}))

    def run(self) -> None:
        for key, times in self.calls.items():
            for _ in range(times):
                key[0](*self.arguments[key])


@torch.inference_mode()
def rows(quick: bool = False) -> Iterator[Row]:
    """Ratios, seconds a frame and memory, of both decoders in fp32 and bf16."""
    torch.manual_seed(0)
    for name, (config, latent) in (QUICK if quick else REAL).items():
        width, height = (side * config.spatial_factor for side in latent[:0:-1])
        for dtype in (torch.float32, torch.bfloat16):
            vae = (TurboVAE if isinstance(config, TurboVAEConfig) else VideoVAE)(config, dtype=dtype, device="meta")
            fill_randomly(vae.eval(), "cpu")
            z = torch.randn(1, config.latent_channels, *latent, dtype=dtype)
            with Convolutions() as bare:
                frames = vae.decode(z).shape[2]
            bare.run()
            convolutions, decode = interleaved(bare.run, lambda vae=vae, z=z: vae.decode(z), repeats=2 if quick else 3)
            memory = decoding_activations(config, (1, config.latent_channels, *latent), dtype, "cpu")
            yield Row(f"bare convolutions / decode, {name}, {width}x{height}, {str(dtype)[6:]}", convolutions / decode,
                      note=f"{decode / frames:.4f} s a frame; {memory / 1e6:.0f} MB of activations, estimated")


if __name__ == "__main__":
    raise SystemExit(main(rows, command_line(__doc__)))
