"""Whether all paths through the network give the same numbers on a device.

Recorded numbers of the reference in fp32 and bf16 (tests/data, where it is there), and a small random network: plain on
the CPU in fp32 against the device, fused, streamed, in 8 bits, and with each of PyTorch's attention kernels.
"""

import json
import lzma
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load, load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from magihuman_core import DiTConfig, InputError, MagiHumanDiT, load_dit
from magihuman_core.runtime.fuse import fuse_elementwise
from magihuman_core.weights.dit_keys import official_state_dict

from .measure import Row, fill_randomly, main

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "dit"
CASES = ("v2_basic", "v1_basic", "post_norm", "local_attn")
FP32, BF16 = torch.float32, torch.bfloat16
# Relative errors: of fp32; of bf16; of the same products in another order; of weights in 8 bits.
EXACT, ROUNDED, REORDERED, NARROW = 1e-4, 2e-2, 1e-2, 6e-2
CONFIG = DiTConfig(
    layers=5, hidden=512, head_dim=128, heads=4, kv_heads=2, video_channels=48, audio_channels=64, text_channels=256,
    gelu_width=2048, swiglu_width=512 * 8 // 3 // 4 * 4, sandwich_layers=(0, 4), gelu_layers=(0,), positions="v1",
    local_layers=(1, 2), local_radius=2,
)  # fmt: skip
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
            "cuDNN": SDPBackend.CUDNN_ATTENTION, "plain": SDPBackend.MATH}


@torch.inference_mode()
def rows(quick: bool = False, device: str | torch.device = "cpu") -> list[Row]:
    """Relative errors, with limits. quick: makes no difference."""
    return [*recorded(device), *random_network(device)]


def recorded(device: str | torch.device) -> Iterator[Row]:
    """Against the numbers that the reference gave."""
    if not (DATA / "weights_main.safetensors.xz").is_file():
        yield Row("recorded numbers", None, note=f"skipped: {DATA} is not there; run it in a clone of the repository")
        return
    weights = load(lzma.decompress((DATA / "weights_main.safetensors.xz").read_bytes()))
    for case in CASES:
        tensors, facts = load_file(DATA / f"{case}.safetensors"), json.loads((DATA / f"{case}.json").read_text())
        own = {key.removeprefix("extra_weights."): value for key, value in tensors.items() if "extra_weights." in key}
        overrides = {"positions": facts["coords_style"]}
        if local := facts["config"]["local_attn_layers"]:
            overrides |= {"local_layers": tuple(local), "local_radius": facts["frame_receptive_field"]}
        clip = [x.to(device) for x in (tensors["in.x_t"], tensors["in.audio_x_t"].transpose(1, 2),
                                       tensors["in.txt_feat"][:, : facts["txt_feat_len"]])]
        for name, dtype, limit in (("fp32", FP32, EXACT), ("bf16", BF16, ROUNDED)):
            dit = load_dit(weights | own, dtype=dtype, device=device, fuse=False, **overrides)
            expected = tensors[f"{name}.x_video"], tensors[f"{name}.x_audio"].transpose(1, 2)
            yield compare(f"recorded numbers, {case}, {name}", lambda dit=dit, clip=clip: dit(*clip), expected, limit)


def random_network(device: str | torch.device) -> Iterator[Row]:
    """Against the plain network in fp32 on the CPU; paths in bf16 against the plain network in bf16 on the device."""
    weights = official_state_dict(fill_randomly(MagiHumanDiT(CONFIG, device="meta"), "cpu"))
    generator = torch.Generator().manual_seed(1)
    clip = [torch.randn(shape, generator=generator) for shape in ((1, 48, 7, 8, 8), (1, 64, 25), (1, 40, 256))]
    placed = [x.to(device) for x in clip]

    def network(**options) -> MagiHumanDiT:
        return load_dit(weights, **{"device": device, "fuse": False, "positions": "v1", "local_radius": 2,
                                    "local_layers": CONFIG.local_layers} | options)

    exact = network(device="cpu", dtype=FP32)(*clip)
    yield compare("plain, fp32, against the CPU", lambda: network(dtype=FP32)(*placed), exact, EXACT)
    plain = network(dtype=BF16)(*placed)
    yield compare("plain, bf16, against fp32", lambda: plain, exact, ROUNDED)

    def fused() -> tuple[Tensor, Tensor]:
        dit = network(dtype=BF16)
        fuse_elementwise(dit, True, device)
        return dit(*placed)

    yield compare("fused, against plain", fused, plain, REORDERED, may_lack=True)
    for source in ("file", "memory"):
        yield compare(f"streamed from {source}, against resident", lambda source=source: network(
            dtype=BF16, resident_blocks=1, stream_from=source)(*placed), plain, 0)
    for name, dtype in (("int8", torch.int8), ("fp8", torch.float8_e4m3fn)):
        narrow = network(dtype=dtype)(*placed)
        yield compare(f"weights in {name}, against bf16", lambda narrow=narrow: narrow, plain, NARROW)
        yield compare(f"{name}, streamed against resident", lambda dtype=dtype: network(
            dtype=dtype, resident_blocks=0, stream_from="memory")(*placed), narrow, 0)
    two = network(dtype=BF16).forward_many([placed, placed])
    yield compare("two clips at once, against one", lambda: two[1], plain, REORDERED)
    for name, backend in BACKENDS.items():
        for dtype, words in ((BF16, "bf16"), (FP32, "fp32")):
            dit = network(dtype=dtype)
            yield compare(f"attention by the {name} kernel, {words}", lambda dit=dit: dit(*placed), exact,
                          ROUNDED if dtype == BF16 else EXACT, backend)


def compare(what: str, run: Callable[[], tuple[Tensor, Tensor]], expected: tuple[Tensor, Tensor], limit: float,
            kernel: SDPBackend | None = None, may_lack: bool = False) -> Row:
    """The relative error of what run() gives, video and audio together. kernel: attention's; may_lack: whether what it
    runs on need not be there. Any other error fails the check, and the rest goes on."""
    try:
        with nullcontext() if kernel is None else sdpa_kernel(kernel):
            found = run()
    except (InputError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:120]
        if may_lack or kernel is not None:
            return Row(what, None, note=f"not available here: {reason}")
        return Row(what, float("inf"), limit=limit, note=f"{type(error).__name__}: {reason}")
    a, b = (torch.cat([part.double().cpu().flatten() for part in parts]) for parts in (found, expected))
    return Row(what, float((a - b).norm() / b.norm()), limit=limit, note=f"at most {limit:g}")


if __name__ == "__main__":
    main(rows, __doc__)
