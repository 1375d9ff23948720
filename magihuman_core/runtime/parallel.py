"""One forward pass on several devices: each rank of a torch.distributed group computes a part of the tokens.

Everything but attention looks at one token at a time, so each rank embeds its part of the sequence, runs norms, linear
layers and MLPs on it, and keeps its part of the residual stream. Around attention the parts change places (Ulysses,
arXiv 2309.14509): before it each rank gets some heads of all tokens, so that attention itself, whole or local, runs as
on one device; after it each gets all heads of its own tokens again.

    own tokens, all heads -> all to all -> all tokens, own heads -> all to all -> own tokens, all heads

Both are one all_to_all_single with pieces of different sizes, so any number of tokens does. Ranks that outnumber the
key heads share them: each of them gets the same keys, and a part of the queries that go with these. Every rank calls
the network with the same inputs and gets the same outputs. For inference only.

The network knows nothing of it: where tokens lie is what its Layout says (model/sequence.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InputError, LostRankError
from ..model.config import DiTConfig
from ..model.dit import MagiHumanDiT
from ..model.sequence import ClipAttention, Layout
from ..sampling.windows import Evaluate, Window


def sequence_parallel(dit: MagiHumanDiT, group: dist.ProcessGroup | None = None) -> MagiHumanDiT:
    """The same network, whose forward pass is shared by the ranks of a group, all of which have to call it alike.

    dit: loaded on each rank, in any way; its weights are used, not copied, so LoRA may be applied to either. group: of
    torch.distributed, set up with a backend for the device (nccl for CUDA, gloo for the CPU); None: all ranks. A group
    of one gives dit itself. Raises InputError where there is no group, or with more ranks than heads.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError("sequence_parallel needs a group of processes. Start them with torchrun, and call "
                         "torch.distributed.init_process_group first.")
    ranks = dist.get_world_size(group)
    if ranks < 1 or dist.get_rank(group) < 0:
        raise InputError("sequence_parallel was called by a process that is not in the group. Call it in the "
                         "others only.")
    if ranks == 1:
        return dit
    check_ranks(dit.config, ranks)
    return SequenceParallelDiT(dit, group)


def check_ranks(config: DiTConfig, ranks: int) -> None:
    """Raise InputError for more ranks than one network can be spread over."""
    if ranks > config.heads:
        raise InputError(f"{ranks} processes cannot share the {config.heads} attention heads of this network. Start at "
                         f"most {config.heads}.")


def share_of(count: int, ranks: int) -> list[slice]:
    """Consecutive parts of about equal size, one for each rank."""
    return [slice(*edges) for edges in pairwise(count * rank // ranks for rank in range(ranks + 1))]


def share_heads(heads: int, kv_heads: int, ranks: int) -> list[tuple[slice, slice]]:
    """The query heads of each rank, and the key heads that go with them, which several ranks may share."""
    group = heads // kv_heads
    if ranks <= kv_heads:
        return [(slice(group * kv.start, group * kv.stop), kv) for kv in share_of(kv_heads, ranks)]
    shares = []
    for kv, members in enumerate(share_of(ranks, kv_heads)):
        for part in share_of(group, members.stop - members.start):
            shares.append((slice(kv * group + part.start, kv * group + part.stop), slice(kv, kv + 1)))
    return shares


@contextmanager
def talking() -> Iterator[None]:
    """Around a call that waits for other ranks: raises LostRankError where one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:200]
        raise LostRankError(f"Another process of this run has ended or cannot be reached ({reason}).") from error


def exchange(outgoing: Sequence[Tensor], incoming: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    """Give each rank its tensor, and get what all ranks gave to this one, one after another in a flat tensor.

    incoming: numbers that come from each.
    """
    sent = torch.cat([part.reshape(-1) for part in outgoing])
    received = sent.new_empty(sum(incoming))
    with talking():
        dist.all_to_all_single(received, sent, list(incoming), [part.numel() for part in outgoing], group=group)
    return received


@dataclass(frozen=True)
class SharedLayout(Layout):
    """The layout of the tokens that one rank holds. `clips` still tells of the whole sequence.

    sin, cos: of its own tokens.
    """

    tokens_of: Sequence[slice]  # of each rank
    heads_of: Sequence[tuple[slice, slice]]  # the query heads of each rank, and its key heads
    rank: int
    group: dist.ProcessGroup | None

    @property
    def own(self) -> slice:
        return self.tokens_of[self.rank]

    @property
    def tokens(self) -> int:
        return self.own.stop - self.own.start

    def spans(self, by_modality: bool) -> Iterator[tuple[str, slice]]:
        for name, span in super().spans(by_modality):
            yield name, overlap(span, self.own, self.own.start)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attention: ClipAttention) -> list[Tensor]:
        q, k, v = self._some_heads(q, k, v)
        attended = super().attend(q, k, v, attention)
        del q, k, v
        return [self._all_heads(attended[0] if len(attended) == 1 else torch.cat(attended, 1))]

    def _some_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """All heads [B, own tokens, heads, d] -> own heads [B, all tokens, own heads, d]."""
        outgoing = [torch.cat([q[:, :, heads], k[:, :, kv], v[:, :, kv]], 2) for heads, kv in self.heads_of]
        B, _, own, d = outgoing[self.rank].shape
        counts = [tokens.stop - tokens.start for tokens in self.tokens_of]
        received = exchange(outgoing, [B * count * own * d for count in counts], self.group)
        heads, kv = (part.stop - part.start for part in self.heads_of[self.rank])
        return joined(received, B, counts, own, d).split([heads, kv, kv], 2)

    def _all_heads(self, attended: Tensor) -> Tensor:
        """Own heads [B, all tokens, own heads, d] -> all heads [B, own tokens, heads, d]."""
        B, _, _, d = attended.shape
        counts = [heads.stop - heads.start for heads, _ in self.heads_of]
        received = exchange([attended[:, tokens] for tokens in self.tokens_of],
                            [B * self.tokens * count * d for count in counts], self.group)
        parts = received.split([B * self.tokens * count * d for count in counts])
        return torch.cat([part.view(B, self.tokens, -1, d) for part in parts], 2)

    def gather(self, held: Tensor, span: slice) -> Tensor:
        """All tokens of a span of the whole sequence, of which this rank holds some; each [B, n, channels]."""
        counts = [part.stop - part.start for part in (overlap(span, own) for own in self.tokens_of)]
        B, _, channels = held.shape
        received = exchange([held] * len(counts), [B * count * channels for count in counts], self.group)
        return joined(received, B, counts, channels)


def overlap(span: slice, own: slice, origin: int = 0) -> slice:
    """What of a span lies within another, counted from origin; empty where nothing does."""
    start = max(span.start, own.start)
    return slice(start - origin, max(start, min(span.stop, own.stop)) - origin)


def joined(received: Tensor, B: int, counts: Sequence[int], *rest: int) -> Tensor:
    """Parts [B, count, *rest] that lie flat one after another -> [B, sum of counts, *rest]."""
    if B == 1:
        return received.view(1, -1, *rest)
    size = received.numel() // max(sum(counts), 1)
    return torch.cat([part.view(B, -1, *rest) for part in received.split([count * size for count in counts])], 1)


class SequenceParallelDiT(MagiHumanDiT):
    """A network that computes with the other ranks of a group. Its weights, hooks and settings are those of `dit`."""

    def __init__(self, dit: MagiHumanDiT, group: dist.ProcessGroup | None) -> None:
        self.__dict__ = dict(vars(dit))
        self._layouts = {}
        self.group = group

    def layout(self, *sizes: tuple[tuple[int, int, int], int, int], device: torch.device | None = None) -> Layout:
        whole, ranks = super().layout(*sizes, device=device), dist.get_world_size(self.group)
        if whole.tokens < ranks:
            raise InputError(f"The clip has {whole.tokens} tokens, fewer than the {ranks} processes that share it. "
                             "Start fewer, or make a larger clip.")
        tokens_of, rank = share_of(whole.tokens, ranks), dist.get_rank(self.group)
        own = tokens_of[rank]
        return SharedLayout(whole.clips, whole.piece, whole.sin[own], whole.cos[own], tokens_of,
                            share_heads(self.config.heads, self.config.kv_heads, ranks), rank, self.group)

    def _embed(self, clips: list[tuple[Tensor, Tensor, Tensor]], layout: Layout) -> Tensor:
        assert isinstance(layout, SharedLayout)  # noqa: S101  as `layout` above made it
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            raise InputError("A network that is spread over several processes gives no gradients. Use it under "
                             "torch.inference_mode(), and train on one device.")
        held = []
        for clip, tokens in zip(layout.clips, clips, strict=True):
            spans = clip.spans(by_modality=True)
            video, audio, text = (part[:, overlap(span, layout.own, span.start)]
                                  for part, (_, span) in zip(tokens, spans, strict=True))
            held.append((video, audio, text))
        return super()._embed(held, layout)

    def _heads(self, x: Tensor, layout: Layout) -> list[tuple[Tensor, Tensor]]:
        assert isinstance(layout, SharedLayout)  # noqa: S101
        spans = [[span for _, span in clip.spans(by_modality=True)] for clip in layout.clips]
        return [(layout.gather(video, video_span), layout.gather(audio, audio_span))
                for (video, audio), (video_span, audio_span, _) in zip(super()._heads(x, layout), spans, strict=True)]


@dataclass(frozen=True)
class SharedWindows:
    """The windows of a long clip shared by all ranks, for WindowedDenoiser: called as map on every rank, which all get
    all estimates.

    Each rank computes one window by itself, while the others compute the next ones. What is left at the end, fewer
    windows than ranks, all compute together.
    """

    alone: MagiHumanDiT  # the network that does not wait for other ranks
    group: dist.ProcessGroup | None = None

    def __call__(self, evaluate: Evaluate, windows: Sequence[Window]) -> Iterator[tuple[Tensor, Tensor]]:
        ranks, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        rest = len(windows) - len(windows) % ranks
        for start in range(0, rest, ranks):
            streams = evaluate(windows[start + rank], self.alone)  # of one size in all windows
            yield from zip(*(exchange([stream] * ranks, [stream.numel()] * ranks, self.group).view(ranks, *stream.shape)
                             for stream in streams), strict=True)
        for window in windows[rest:]:
            yield evaluate(window)
