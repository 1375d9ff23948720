"""Whether all paths through the network give the same numbers on a device.

Recorded numbers of the reference in fp32 and bf16 (tests/data, where it is there), and a small random network: plain on
the CPU in fp32 against the device, fused, streamed, in 8 bits, and with each of PyTorch's attention kernels.
"""

import json
import lzma
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from math import isfinite
from pathlib import Path

import torch
from safetensors.torch import load, load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from magihuman_core import DiTConfig, InputError, MagiHumanDiT, load_dit
from magihuman_core.runtime.devices import check_dtype
from magihuman_core.runtime.fuse import fuse_elementwise, why_not
from magihuman_core.weights.dit_keys import official_state_dict

from .measure import Row, attempt, fill_randomly, reason

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
# What PyTorch says on a card and on a CPU where the chosen kernel is not there. Any other error is a fault.
NO_KERNEL = ("No available kernel", "No viable backend for scaled_dot_product_attention")
Outs = tuple[Tensor, Tensor]  # velocities of video and audio


@torch.inference_mode()
def rows(quick: bool = False, device: str | torch.device = "cpu") -> Iterator[Row]:
    """Relative errors, with limits. quick: makes no difference."""
    device = torch.device(device)
    if (DATA / "weights_main.safetensors.xz").is_file():
        yield from attempt("recorded numbers", lambda: recorded(device))
    else:
        yield Row("recorded numbers", None, note=f"skipped: {DATA} is not there; run it in a clone of the repository")
    yield from attempt("random network", lambda: random_network(device))


def recorded(device: torch.device) -> Iterator[Row]:
    """Against the numbers that the reference gave."""
    weights = load(lzma.decompress((DATA / "weights_main.safetensors.xz").read_bytes()))
    for case in CASES:
        tensors = load_file(DATA / f"{case}.safetensors")
        facts = json.loads((DATA / f"{case}.json").read_text(encoding="utf-8"))
        own = {key.removeprefix("extra_weights."): value for key, value in tensors.items() if "extra_weights." in key}
        overrides = {"positions": facts["coords_style"]}
        if local := facts["config"]["local_attn_layers"]:
            overrides |= {"local_layers": tuple(local), "local_radius": facts["frame_receptive_field"]}
        clip = (tensors["in.x_t"], tensors["in.audio_x_t"].transpose(1, 2),
                tensors["in.txt_feat"][:, : facts["txt_feat_len"]])
        for name, dtype, limit in (("fp32", FP32, EXACT), ("bf16", BF16, ROUNDED)):
            expected = tensors[f"{name}.x_video"], tensors[f"{name}.x_audio"].transpose(1, 2)
            build = partial(load_dit, weights | own, dtype=dtype, device=device, fuse=False, **overrides)
            yield compare(f"recorded numbers, {case}, {name}",
                          lambda build=build, clip=clip: build()(*(x.to(device) for x in clip)),
                          lambda expected=expected: expected, limit)


def random_network(device: torch.device) -> Iterator[Row]:
    """Against the plain network in fp32 on the CPU; paths in bf16 against the plain network in bf16 on the device."""
    weights = official_state_dict(fill_randomly(MagiHumanDiT(CONFIG, device="meta"), "cpu"))
    generator = torch.Generator().manual_seed(1)
    clip = [torch.randn(shape, generator=generator) for shape in ((1, 48, 7, 8, 8), (1, 64, 25), (1, 40, 256))]

    def network(place: torch.device = device, **options) -> MagiHumanDiT:
        return load_dit(weights, **{"device": place, "fuse": False, "positions": "v1", "local_radius": 2,
                                    "local_layers": CONFIG.local_layers} | options)

    def outs(place: torch.device = device, **options) -> Outs:
        return network(place, **options)(*(x.to(place) for x in clip))

    exact = cache(partial(outs, torch.device("cpu"), dtype=FP32))
    plain = cache(partial(outs, dtype=BF16))
    yield compare("plain, fp32, against the CPU", partial(outs, dtype=FP32), exact, EXACT)
    yield compare("plain, bf16, against fp32", plain, exact, ROUNDED)

    def fused() -> Outs:
        dit = network(dtype=BF16)
        fuse_elementwise(dit, True, device)
        return dit(*(x.to(device) for x in clip))

    if lacking := why_not(device):
        yield Row("fused, against plain", None, note=f"not available here: {lacking}"[:160])
    else:
        yield compare("fused, against plain", fused, plain, REORDERED)
    for source in ("file", "memory"):
        yield compare(f"streamed from {source}, against resident",
                      partial(outs, dtype=BF16, resident_blocks=1, stream_from=source), plain, 0)
    for name, dtype in (("int8", torch.int8), ("fp8", torch.float8_e4m3fn)):
        narrow = cache(partial(outs, dtype=dtype))
        try:
            check_dtype(dtype, device)
        except InputError as refused:  # MPS holds no fp8
            yield Row(f"weights in {name}", None, note=f"not available here: {refused}")
            continue
        yield compare(f"weights in {name}, against bf16", narrow, plain, NARROW)
        yield compare(f"{name}, streamed against resident",
                      partial(outs, dtype=dtype, resident_blocks=0, stream_from="memory"), narrow, 0)

    def two() -> Outs:
        placed = [x.to(device) for x in clip]
        return network(dtype=BF16).forward_many([placed, placed])[1]

    yield compare("two clips at once, against one", two, plain, REORDERED)
    for name, backend in BACKENDS.items():
        for dtype, words, limit in ((BF16, "bf16", ROUNDED), (FP32, "fp32", EXACT)):
            yield compare(f"attention by the {name} kernel, {words}", partial(outs, dtype=dtype), exact, limit, backend)


def compare(what: str, run: Callable[[], Outs], expected: Callable[[], Outs], limit: float,
            kernel: SDPBackend | None = None) -> Row:
    """The relative error of what run() gives, video and audio together; kernel: attention's, which need not be there.
    Any other error, of what is expected too, fails the check."""
    try:
        wanted = expected()
        with nullcontext() if kernel is None else sdpa_kernel(kernel):
            found = run()
        a, b = (torch.cat([part.double().cpu().flatten() for part in parts]) for parts in (found, wanted))
        error = float((a - b).norm() / b.norm())
    except Exception as failure:  # any, on somebody's machine
        if kernel is not None and any(words in str(failure) for words in NO_KERNEL):
            return Row(what, None, note="not available here: PyTorch has no such kernel for it")
        return Row(what, None, note=reason(failure), error=True)
    if not isfinite(error):
        return Row(what, None, note="some numbers are not finite", error=True)
    return Row(what, error, limit=limit, note=f"at most {limit:g}")
