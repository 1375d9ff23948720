"""How much of decoding frames is convolutions, and how long a frame takes.

usage: python -m benchmarks.decoding [--quick] [--dtype fp32|bf16] [--threads N] [--repeats N]

Prints for the Turbo VAE and the Wan2.2 VAE, with random weights, the ratio (time of the bare convolutions of a decode,
of the same shapes in the same order in memory) / (time of the decode), both measured in turns in this process, the
seconds per frame, and how much memory a decode takes over the weights by the estimator. Without --quick the widths are
those of the released networks.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from magihuman_core.runtime.memory import decoding_activations
from magihuman_core.vae.turbo import TurboVAE, TurboVAEConfig
from magihuman_core.vae.video import VideoVAE, VideoVAEConfig

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


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(config: TurboVAEConfig | VideoVAEConfig, latent: tuple[int, int, int], dtype: torch.dtype,
            repeats: int) -> tuple[float, float, int]:
    """(seconds of the convolutions, seconds of a decode, its frames), the best of `repeats`."""
    vae = (TurboVAE if isinstance(config, TurboVAEConfig) else VideoVAE)(config, dtype=dtype).eval()
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    z = torch.randn(1, config.latent_channels, *latent, dtype=dtype)
    with Convolutions() as bare:
        frames = vae.decode(z).shape[2]
    bare.run()
    times = [(seconds(bare.run), seconds(lambda: vae.decode(z))) for _ in range(repeats)]
    convolutions, decode = (min(column) for column in zip(*times, strict=True))
    return convolutions, decode, frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks: seconds instead of a minute or more")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    for name, (config, latent) in (QUICK if args.quick else REAL).items():
        convolutions, decode, frames = measure(config, latent, dtype, args.repeats)
        width, height = (side * config.spatial_factor for side in latent[:0:-1])
        memory = decoding_activations(config, (1, config.latent_channels, *latent), dtype, "cpu")
        print(f"{name}, {width}x{height}, {args.dtype}: {decode / frames:.4f} s a frame; convolutions"
              f" {convolutions:.3f} s, decode {decode:.3f} s, ratio {convolutions / decode:.3f};"
              f" {memory / 2**20:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
