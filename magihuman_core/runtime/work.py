"""How much work a part of the model does, and how long a card takes for it, known before anything is loaded.

As in memory.py a part's own code runs on the meta device, and so the count follows it in all it does: pieces,
windows, local attention. What each operation computes and moves is noted; of equal blocks and windows one is run.
A card needs for a kernel what takes longer, its arithmetic or its memory traffic (the roofline):

    seconds = sum over kernels of max(operations / rate, bytes / bandwidth)

Plain PyTorch writes and reads a tensor for each elementwise step. Where these steps are fused, what a matrix product,
convolution or attention reads was written once before, what it writes is read once after, and residual additions
stay; that is what `fused` counts.

Not counted: starting kernels, which matters for small models only, and waiting for the host.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import InputError
from ..model.config import PATCH, DiTConfig
from ..model.dit import PIECE
from ..recipes import BASE
from ..sizes import FPS, PIXELS_PER_TOKEN, TEXT_TOKENS, audio_length, latent_frames
from ..text.config import TextEncoderConfig
from ..vae.audio import SAMPLE_RATE, AudioVAEConfig
from ..vae.video import VideoVAEConfig
from .build import Config, on_meta, one_of_each_kind
from .cards import Card, this_card

MATRIX, ATTENTION, CONVOLUTION, ELEMENTWISE = "matrix", "attention", "convolution", "elementwise"
KEPT = "kept"  # elementwise work that fusing does not remove: residual additions, decoding of 8-bit weights

log = logging.getLogger(__name__)
aten = torch.ops.aten


@dataclass(frozen=True)
class Kernel:
    """One operation on the device."""

    kind: str
    flops: int  # multiplications and additions; elementwise arithmetic is not counted
    bytes: int  # read and written
    activations: int = 0  # the share of bytes that is not weights, where it is no elementwise operation


@dataclass(frozen=True)
class Work:
    """What a part does in one pass, kernel by kernel."""

    kernels: tuple[tuple[Kernel, int], ...]  # and how many there are of each

    @property
    def flops(self) -> int:
        return sum(kernel.flops * count for kernel, count in self.kernels)

    @property
    def bytes(self) -> int:
        """Bytes moved between the card's memory and its processors by plain PyTorch."""
        return sum(kernel.bytes * count for kernel, count in self.kernels)

    @property
    def fused_bytes(self) -> int:
        """The same where elementwise steps are fused."""
        return sum(count * moved for moved, _, count in self._fused())

    def flops_of(self, kind: str) -> int:
        return sum(kernel.flops * count for kernel, count in self.kernels if kernel.kind == kind)

    def seconds(self, card: Card, fused: bool = False) -> float:
        """The least time by the card's rates, see cards.py."""
        if fused:
            return sum(count * _roof(moved, kernel, card) for moved, kernel, count in self._fused())
        return sum(count * _roof(kernel.bytes, kernel, card) for kernel, count in self.kernels)

    def _fused(self) -> Iterator[tuple[int, Kernel, int]]:
        """(bytes, kernel, count) of what is left, and of the fused steps between."""
        for kernel, count in self.kernels:
            if kernel.kind != ELEMENTWISE:
                yield kernel.bytes, kernel, count
            if kernel.activations:
                yield kernel.activations, Kernel(ELEMENTWISE, 0, kernel.activations), count


def _roof(moved: int, kernel: Kernel, card: Card) -> float:
    rate = {MATRIX: card.matrix, ATTENTION: card.attention, CONVOLUTION: card.convolution}.get(kernel.kind)
    return max(kernel.flops / rate if rate else 0.0, moved / card.bandwidth)


def work(config: Config, *, width: int = BASE.width, height: int = BASE.height, seconds: float = 4,
         dtype: torch.dtype = torch.bfloat16, guided: bool = False, text_tokens: int = TEXT_TOKENS,
         tokens: int | None = None, encode: bool = False) -> Work:
    """The work of a network's step, of encoding a text, or of decoding (encode: encoding) a clip by a VAE.

    Arguments as for memory.estimate. encode, with a video VAE: of one frame, the reference picture.
    Raises InputError for sizes that no clip can have.
    """
    tokens = audio_length(seconds) if tokens is None else tokens
    if min(width, height) < PIXELS_PER_TOKEN or tokens < 1 or text_tokens < 1:
        raise InputError(f"There is no clip of {width}x{height} pixels, {tokens} audio and {text_tokens} text tokens.")
    with torch.inference_mode(False):  # in which operations are not taken apart before they are seen
        return _count(config, width // PIXELS_PER_TOKEN, height // PIXELS_PER_TOKEN, tokens, dtype, 1 + guided,
                      text_tokens, encode)


@lru_cache(maxsize=64)
def _count(config: Config, columns: int, rows: int, tokens: int, dtype: torch.dtype, clips: int, text_tokens: int,
           encode: bool) -> Work:
    counter = Counting()
    latent = latent_frames(tokens), rows * PATCH, columns * PATCH
    if isinstance(config, DiTConfig):
        run = _network(counter, config, latent, tokens, text_tokens, dtype, clips)
    elif isinstance(config, TextEncoderConfig):
        encoder = on_meta(replace(config, num_hidden_layers=1, layer_types=None), dtype)
        repeated(counter, encoder.encoder.layers[0], config.num_hidden_layers)
        run = partial(encoder, torch.empty(1, text_tokens, dtype=torch.long, device="meta"))
    else:
        vae = on_meta(config, dtype)
        if isinstance(config, AudioVAEConfig):
            samples = max((tokens - 1) * SAMPLE_RATE // FPS, 1)
            run = (partial(vae.encode_long, _empty(1, config.audio_channels, samples)) if encode
                   else partial(vae.decode, _empty(1, config.latent_channels, tokens)))
        elif not encode:
            windows = vae.decode_windows(_empty(1, config.latent_channels, *latent))
            run = partial(_run_windows, counter, config, windows, latent[0])
        elif isinstance(config, VideoVAEConfig):
            run = partial(vae.encode, _empty(1, 3, 1, rows * PIXELS_PER_TOKEN, columns * PIXELS_PER_TOKEN))
        else:
            raise InputError("The Turbo VAE only decodes. Give a video VAE's configuration.")
    with torch.no_grad(), _Attention(counter), counter:
        run()
    return Work(tuple(counter.kernels.items()))


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="meta")


def _network(counter: "Counting", config: DiTConfig, latent: tuple[int, int, int], tokens: int, text_tokens: int,
             dtype: torch.dtype, clips: int) -> Callable[[], object]:
    small, counts = one_of_each_kind(config)
    dit = on_meta(small, dtype)
    dit.piece = dit.piece or PIECE
    for block, count in zip(dit.blocks, counts, strict=True):
        repeated(counter, block, count)
    clip = (_empty(1, config.video_channels, *latent), _empty(1, config.audio_channels, tokens),
            _empty(1, text_tokens, config.text_channels))
    dit.layout(*[(latent, tokens, text_tokens)] * clips)  # made once for all steps
    return partial(dit.forward_many, [clip] * clips)


def _run_windows(counter: "Counting", config: Config, windows: Iterator[Tensor], frames: int) -> None:
    """Decode window by window. Those of the video VAE are equal from the third on, so one of these is run for all."""
    equal = frames - 2 if isinstance(config, VideoVAEConfig) else 1
    for _ in islice(windows, 2):
        pass
    counter.times = max(equal, 1)
    for _ in islice(windows, 1 if equal > 1 else None):
        pass


def repeated(counter: "Counting", module: nn.Module, times: int) -> None:
    """Let what this module does count as often as there are such modules."""
    def begin(*_) -> None:
        counter.times *= times

    def end(*_) -> None:
        counter.times //= times

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)


class Counting(TorchDispatchMode):
    """Notes every operation. `times`: how often what runs now is to count."""

    def __init__(self):
        super().__init__()
        self.kernels: Counter[Kernel] = Counter()
        self.times = 1

    def add(self, kind: str, flops: int, moved: int, activations: int = 0) -> None:
        self.kernels[Kernel(kind, flops, moved, activations)] += self.times

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = list(_tensors((out,)))
        if not made or func.is_view or func in WITHOUT_WORK or _onto_itself(func, args):
            return out
        given = list(_tensors(args[1:] if func is aten.copy_.default else args))
        moved = sum(map(_nbytes, given)) + sum(map(_nbytes, made))
        if func in WEIGHT_AT:
            kind, at = WEIGHT_AT[func]
            weight = None if at is None else args[at]
            self.add(kind, _flops(func, args, made[0]), moved, moved - (0 if weight is None else _nbytes(weight)))
        else:
            decodes = func is aten._to_copy.default and given[0].itemsize == 1
            self.add(KEPT if decodes or func in RESIDUAL else ELEMENTWISE, 0, moved)
        return out


class _Attention(TorchFunctionMode):
    """Attention as one kernel, as a card runs it, where the meta device would compute all scores."""

    def __init__(self, counter: Counting):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args[:3]
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        pairs = prod(q.shape[:-1]) * k.shape[-2]
        moved = sum(map(_nbytes, (q, k, v, out)))
        self.counter.add(ATTENTION, 2 * pairs * (q.shape[-1] + v.shape[-1]), moved, moved)
        return out


# Operations of arithmetic, and which of their arguments is the weight.
WEIGHT_AT = {aten.mm.default: (MATRIX, 1), aten.addmm.default: (MATRIX, 2), aten.bmm.default: (MATRIX, None),
             aten.convolution.default: (CONVOLUTION, 1)}
RESIDUAL = {aten.add.Tensor, aten.add_.Tensor}
WITHOUT_WORK = {aten.empty.memory_format, aten.new_empty.default, aten.empty_like.default, aten.detach.default,
                aten._unsafe_view.default, aten.lift_fresh.default}


def _tensors(values: Iterable) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _nbytes(tensor: Tensor) -> int:
    """What reading it takes: of what is repeated by a stride of 0 once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.itemsize * prod(size for size, stride in sizes if stride or not size)


def _onto_itself(func, args) -> bool:
    """Whether it copies a view onto the same view, as x[a:b] += y does last; PyTorch does nothing then."""
    if func is not aten.copy_.default:
        return False
    to, source = args[:2]
    return to.untyped_storage()._cdata == source.untyped_storage()._cdata and (
        to.storage_offset(), to.stride(), to.shape) == (source.storage_offset(), source.stride(), source.shape)


def _flops(func, args, out: Tensor) -> int:
    if func is not aten.convolution.default:
        inner = args[1] if func is aten.addmm.default else args[0]
        return 2 * out.numel() * inner.shape[-1]
    x, weight, transposed = args[0], args[1], args[6]
    return 2 * (x if transposed else out).numel() * weight.numel() // weight.shape[0]


def log_seconds(config: DiTConfig, *, device: str | torch.device, steps: int, streamed: int = 0, **options) -> None:
    """Log how long sampling will take on this card, where its rates are known and somebody reads the log.

    streamed: bytes that come in at each step; options: as for work.
    """
    card = this_card(device) if log.isEnabledFor(logging.INFO) else None
    if card is None:
        return
    step = max(work(config, **options).seconds(card), streamed / card.link)
    log.info("About %s for each of %d steps on this card (%s): estimated, never measured.", duration(step), steps,
             card.name)


def in_words(found: Work, cards: Iterable[Card]) -> str:
    """One line: operations, bytes, and seconds on these cards."""
    times = ", ".join(f"{duration(found.seconds(card))} on an {card.name}" for card in cards)
    return f"{scaled(found.flops)}FLOP, {scaled(found.bytes)}B moved; {times} (estimated)"


def scaled(number: float) -> str:
    """A number with the letter for its size: 3.9 P, 110 T, 28 G."""
    for unit, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= unit:
            return f"{number / unit:.{1 if number < 10 * unit else 0}f} {letter}"
    return f"{number / 1e6:.1f} M"


def duration(seconds: float) -> str:
    """Seconds for people: 4 ms, 0.45 s, 3.2 s, 45 s, 12 min, 2.5 h."""
    if seconds < 0.1:
        return f"{max(1000 * seconds, 1):.0f} ms"
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.{1 if seconds < 10 * unit else 0}f} {name}"
    return f"{seconds:.{2 if seconds < 1 else 1 if seconds < 10 else 0}f} s"
