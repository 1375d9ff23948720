"""Attention with shared keys and local in time: what is computed and by which kernel; weights that come in once."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from magihuman_core import load_dit
from magihuman_core.model.attention import local_attention, sdpa
from magihuman_core.model.sequence import Segments

from .golden import random_clip, relative
from .test_dit import random_dit

MATH = 0  # PyTorch's number of the kernel that holds all scores


def heads_of(q_heads, kv_heads, length, keys, dtype=torch.float32, d=16):
    return (torch.randn(2, length, q_heads, d, dtype=dtype), torch.randn(2, keys, kv_heads, d, dtype=dtype),
            torch.randn(2, keys, kv_heads, d, dtype=dtype))


@settings(max_examples=30, deadline=None)
@given(groups=st.integers(1, 5), kv_heads=st.integers(1, 4), length=st.integers(1, 9), keys=st.integers(1, 9))
def test_folded_heads_are_grouped_query_attention(groups, kv_heads, length, keys):
    q, k, v = heads_of(groups * kv_heads, kv_heads, length, keys)
    wanted = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), enable_gqa=True)
    torch.testing.assert_close(sdpa(q, k, v), wanted.transpose(1, 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_kernel_has_to_share_heads(dtype):
    """So that none that can do without all scores is ruled out, on any device; here PyTorch is asked which it takes."""
    asked = []

    class Ask(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.scaled_dot_product_attention:
                asked.append((args, kwargs))
            return func(*args, **(kwargs or {}))

    with Ask(), torch.inference_mode():
        sdpa(*heads_of(10, 2, 70, 70, dtype))
    [((q, k, v), options)] = asked
    assert q.shape[1] == k.shape[1] == v.shape[1] == 2 and not options
    assert torch._fused_sdp_choice(q, k, v) != MATH


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(1, 12), radius=st.integers(0, 4), count=st.integers(1, 4), tail=st.integers(1, 5),
       grad=st.booleans())
def test_local_attention_sees_its_window(frames, radius, count, tail, grad):
    clip = Segments(0, frames * count, tail, 0, frames)
    q, k, v = heads_of(4, 2, clip.tokens, clip.tokens)
    frame = torch.arange(clip.video) // count
    seen = torch.ones(clip.tokens, clip.tokens, dtype=torch.bool)
    seen[: clip.video, : clip.video] = (frame[:, None] - frame).abs() <= radius
    heads_first = [t.transpose(1, 2) for t in (q, k.repeat_interleave(2, 2), v.repeat_interleave(2, 2))]
    wanted = F.scaled_dot_product_attention(*heads_first, attn_mask=seen).transpose(1, 2)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(local_attention(q, k, v, clip, radius, sdpa), wanted, atol=1e-5, rtol=1e-5)


def test_windows_of_a_long_clip_share_one_buffer():
    """What is copied is a frame for each frame, not a window for each."""
    clip, radius = Segments(0, 40 * 8, 6, 0, 40), 5
    q, k, v = heads_of(4, 2, clip.tokens, clip.tokens)
    copied = Counter()

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.cat.default and args[0][0].shape[2] == 2:
                copied["windows"] += 1
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Copies():  # in inference mode operations are not seen
        local_attention(q, k, v, clip, radius, sdpa)
    assert copied["windows"] == 2 * radius  # of keys and values, for the last frames, whose windows shrink


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("clips", [1, 2])
def test_8_bit_weights_are_decoded_once_for_a_block_and_forward(official, dtype, clips):
    dit = load_dit(official, dtype=dtype)
    dit.piece = 7
    packed = [random_clip(dit.config, text=3 + n) for n in range(clips)]
    names = {p.data_ptr(): name for name, p in dit.named_parameters() if p.dtype == dtype}
    decoded = Counter()

    class Decoding(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in names:
                decoded[names[args[0].data_ptr()]] += 1
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Decoding():
        got = dit.forward_many(packed)
    assert decoded == Counter(dict.fromkeys(names.values(), 1)) and len(names) > 10
    with torch.inference_mode():
        dit.piece = 1 << 20
        for a, b in zip(got, dit.forward_many(packed), strict=True):
            assert max(relative(x, y) for x, y in zip(a, b, strict=True)) < 0.02


def test_pieces_are_of_about_equal_size():
    dit = random_dit(0)
    dit.piece = 16
    layout = dit.layout(((5, 4, 4), 7, 6), ((5, 4, 4), 7, 9))
    for by_modality in (False, True):
        spans = sorted((span.start, span.stop) for spans in layout.pieces(by_modality).values() for span in spans)
        assert [span[0] for span in spans] == [0, *(span[1] for span in spans[:-1])] and spans[-1][1] == layout.tokens
    lengths = [span.stop - span.start for span in layout.pieces(False)["shared"]]
    assert max(lengths) <= 16 and max(lengths) - min(lengths) <= 1
