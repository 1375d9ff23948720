"""The network against the recorded numbers, through our own packing, and what must hold at any size."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from magihuman_core import DiTConfig, InputError, MagiHumanDiT, load_dit
from magihuman_core.model.dit import add, join
from magihuman_core.weights.dit_keys import official_state_dict, split_official
from magihuman_core.weights.fused import fused_parts
from magihuman_core.weights.open import open_checkpoint

from .golden import DATA, random_clip, real_model, recorded_network, relative, shapes_of

CASES = ["v2_basic", "v2_text_padded", "v1_basic", "post_norm", "local_attn"]


@pytest.fixture(scope="module")
def weights():
    return recorded_network()


class Case:
    def __init__(self, name, weights):
        self.tensors = load_file(DATA / "dit" / f"{name}.safetensors")
        self.facts = json.loads((DATA / "dit" / f"{name}.json").read_text())
        extra = {k.removeprefix("extra_weights."): v for k, v in self.tensors.items() if k.startswith("extra_weights.")}
        self.weights = {**weights, **extra}

    def load(self, dtype):
        overrides = {"positions": self.facts["coords_style"]}
        local = self.facts["config"]["local_attn_layers"]
        if local:
            overrides |= {"local_layers": tuple(local), "local_radius": self.facts["frame_receptive_field"]}
        return load_dit(self.weights, dtype=dtype, **overrides)

    def inputs(self):
        t = self.tensors
        return t["in.x_t"], t["in.audio_x_t"].transpose(1, 2), t["in.txt_feat"][:, : self.facts["txt_feat_len"]]


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", CASES)
def test_vectors_fp32(name, grad, weights):
    case = Case(name, weights)
    dit = case.load(torch.float32)
    with torch.set_grad_enabled(grad):
        video, audio = dit(*case.inputs())
    assert (video - case.tensors["fp32.x_video"]).abs().max() < 1e-4
    assert (audio.transpose(1, 2) - case.tensors["fp32.x_audio"]).abs().max() < 1e-4
    assert relative(video, case.tensors["fp32.x_video"]) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_vectors_bf16(name, weights):
    case = Case(name, weights)
    with torch.inference_mode():
        video, audio = case.load(torch.bfloat16)(*case.inputs())
    assert video.dtype == audio.dtype == torch.float32
    assert relative(video, case.tensors["bf16.x_video"]) < 2e-2
    assert relative(audio.transpose(1, 2), case.tensors["bf16.x_audio"]) < 2e-2


@pytest.mark.parametrize("name,layers", [("v2_basic", (0, 2, 4)), ("local_attn", (2,))])
def test_vectors_layer_by_layer(name, layers, weights):
    case = Case(name, weights)
    seen = {}

    def run_block(index, block, x, layout, attention):
        seen[index] = block(x, layout, attention).clone()
        return seen[index].clone()

    with torch.inference_mode():
        case.load(torch.float32)(*case.inputs(), run_block=run_block)
    for layer in layers:
        expected = case.tensors[f"fp32.layer{layer}.hidden_out"]
        assert (seen[layer][0] - expected).abs().max() < 1e-4, layer


def test_vectors_inside_the_first_layer(weights):
    """Single operations of a sandwich layer, which pin the order of rows, the norms, rotation and activation."""
    case = Case("v2_basic", weights)
    for mode, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        dit = case.load(dtype)
        linear, proj = [], []
        for expert in dit.blocks[0].experts.values():
            a, m = expert.attention, expert.mlp
            a.linear_qkv.register_forward_hook(lambda mod, i, out, got=linear: got.append(out))
            m.down_proj.register_forward_pre_hook(lambda mod, i, got=proj: got.append(i[0]))
        roped = []
        with torch.inference_mode():
            dit(*case.inputs(), attention=lambda q, k, v, got=roped: (got.append(q), q)[1])
        qkvg = case.tensors[f"{mode}.layer0.attn.qkv_out"]
        qkv = torch.cat(linear, 1)[0].float()
        gate_rows = qkvg.shape[1] - qkv.shape[1]
        assert gate_rows == dit.config.heads
        expected = qkvg[:, :-gate_rows].float()
        if mode == "fp32":
            assert (qkv - expected).abs().max() < 1e-5
            q = case.tensors["fp32.layer0.attn.q_roped"]
            assert (roped[0][0].flatten(1) - q.flatten(1)).abs().max() < 1e-5
        else:  # equal up to one bf16 step on few elements
            step = expected.abs().clamp_min(1e-3) * torch.finfo(torch.bfloat16).eps
            assert ((qkv - expected).abs() <= step).all() and (qkv != expected).float().mean() < 0.01


def test_real_keys_are_all_accounted_for():
    """The released network's 331 tensors: every key, shape and row finds its place, and comes back."""
    official = real_model("network")
    assert len(official) == 331
    config = DiTConfig.from_state_dict(official)
    assert (config.layers, config.hidden, config.head_dim, config.heads, config.kv_heads) == (40, 5120, 128, 40, 8)
    assert config.sandwich_layers == (0, 1, 2, 3, 36, 37, 38, 39) and config.gelu_layers == (0, 1, 2, 3)
    assert (config.gelu_width, config.swiglu_width, config.text_channels) == (20480, 13652, 3584)
    dit = MagiHumanDiT(config, dtype=torch.bfloat16, device="meta")
    split = split_official(open_checkpoint(official), config)
    assert shapes_of(dit.state_dict()) == {key: split.shape(key) for key in split}
    back = official_state_dict(dit)
    assert shapes_of(back) == shapes_of(official)
    assert {key: value.dtype for key, value in back.items()} == {key: value.dtype for key, value in official.items()}
    # fp8 matrix units want multiples of 16: keeping the gate apart gives them that.
    attention = dit.blocks[8].experts["shared"].attention
    assert attention.linear_qkv.weight.shape[0] % 16 == 0 and attention.linear_gate.weight.shape[0] == 40


def test_weights_come_back_bit_for_bit_and_only_the_blocks_linears_are_bf16(weights):
    dit = load_dit(weights, dtype=torch.bfloat16)
    back = official_state_dict(dit)
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert back[key].dtype == value.dtype and torch.equal(back[key], value), key
    for key, value in dit.state_dict().items():
        low = ("linear_" in key and "final" not in key) or "_proj" in key
        assert value.dtype == (torch.bfloat16 if low else torch.float32), key


def random_dit(seed, **changes):
    sizes = {
        "layers": 3, "hidden": 32, "head_dim": 16, "heads": 2, "kv_heads": 1, "video_channels": 4, "audio_channels": 6,
        "text_channels": 10, "gelu_width": 48, "swiglu_width": 36, "sandwich_layers": (0,), "gelu_layers": (0,),
    }  # fmt: skip
    torch.manual_seed(seed)
    dit = MagiHumanDiT(DiTConfig(**{**sizes, **changes}))
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return dit.eval()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    head_dim=st.sampled_from([8, 16, 24]),
    sandwich=st.sampled_from([(), (0,), (0, 2)]),
    positions=st.sampled_from(["v1", "v2"]),
    sizes=st.tuples(st.integers(1, 5), st.sampled_from([2, 4]), st.sampled_from([2, 6]), st.integers(2, 20),
                    st.integers(2, 9)),
)
def test_any_small_network(seed, heads, head_dim, sandwich, positions, sizes):
    dit = random_dit(seed, heads=heads[0], kv_heads=heads[1], head_dim=head_dim, sandwich_layers=sandwich,
                     positions=positions)
    T, H, W, audio, text = sizes
    clip = random_clip(dit.config, T, H, W, audio, text)
    with torch.inference_mode():
        first = dit(*clip)
        dit(*random_clip(dit.config, T + 1, H, W, audio + 3, text + 1))  # another clip in between changes nothing
        again = dit(*clip)
        pair = dit.forward_many([clip, random_clip(dit.config, T, H, W, audio, text + 2)])[0]
    for a, b, c in zip(first, again, pair, strict=True):
        assert torch.isfinite(a).all() and torch.equal(a, b) and torch.equal(a, c)
    assert first[0].shape == clip[0].shape and first[1].shape == clip[1].shape
    official = official_state_dict(dit)
    config = DiTConfig.from_state_dict(official, positions=positions)
    assert config == dit.config
    assert set(official) == set(fused_parts(config))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), frames=st.integers(1, 8), radius=st.integers(0, 4), audio=st.integers(1, 12))
def test_local_attention_is_masked_full_attention(seed, frames, radius, audio):
    dit = random_dit(seed, local_layers=(0, 1, 2), local_radius=radius)
    full = random_dit(seed)
    clip = random_clip(dit.config, T=frames, audio=audio, text=5)
    clip_layout = dit.layout(((frames, 4, 4), audio, 5)).clips[0]
    frame = torch.arange(clip_layout.video) // (clip_layout.video // frames)
    seen = torch.ones(clip_layout.tokens, clip_layout.tokens, dtype=torch.bool)
    seen[: clip_layout.video, : clip_layout.video] = (frame[:, None] - frame[None, :]).abs() <= radius

    def masked(q, k, v):
        q, k, v = (t.transpose(1, 2) for t in (q, k.expand_as(q), v.expand_as(q)))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)

    with torch.inference_mode():
        for a, b in zip(dit(*clip), full(*clip, attention=masked), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_batches_and_pieces_change_nothing():
    dit = random_dit(1)
    clip = random_clip(dit.config, batch=2)
    with torch.inference_mode():
        whole = dit(*clip)
        for i in range(2):
            one = dit(*(t[i : i + 1] for t in clip))
            torch.testing.assert_close(one[0], whole[0][i : i + 1], atol=1e-5, rtol=1e-5)
        dit.piece = 5
        for a, b in zip(dit(*clip), whole, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_weights_are_let_go_where_what_takes_the_pieces_fails():
    """The branch waits at a piece when the sum fails; the error, which holds its frame, may be kept by anybody."""
    held = []

    def branch():
        held.append(True)
        try:
            for start in range(0, 8, 4):
                yield slice(start, start + 4), torch.zeros(1, 4, 3)
        finally:
            held.clear()

    def parts(pieces):
        for span, piece in pieces:
            yield span, (piece, piece if span.start == 0 else None)  # the second piece cannot be written

    with torch.no_grad(), pytest.raises(RuntimeError) as kept:
        pieces = branch()
        add(torch.zeros(1, 8, 2), pieces)
    assert kept.value.__traceback__ and held == []
    with torch.no_grad(), pytest.raises(TypeError):
        pieces = parts(branch())
        join(pieces, 8)
    with pytest.raises(StopIteration):
        next(pieces)  # it is closed


def test_gradients_reach_every_weight():
    dit = random_dit(2)
    dit.requires_grad_(True)
    video, audio = dit(*random_clip(dit.config))
    (video.square().mean() + audio.square().mean()).backward()
    unused = {name for name, p in dit.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert not unused


def test_training_after_inference():
    """The layout kept from an inference pass must not poison the next backward pass."""
    dit = random_dit(3)
    clip = random_clip(dit.config)
    with torch.inference_mode():
        dit(*clip)
    dit.requires_grad_(True)
    sum(part.square().mean() for part in dit(*clip)).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in dit.parameters())


@pytest.mark.parametrize(("place", "shape", "message"), [
    (0, (1, 5, 3, 4, 6), "video has shape"), (0, (1, 4, 3, 4, 5), "even height and width"),
    (1, (1, 9, 6), "audio has shape"), (1, (1, 6, 1), "audio has 1 token for 3 latent frames"),
    (2, (1, 5, 11), "text has shape"), (2, (1, 1, 10), "text has 1 tokens, too few"),
])  # fmt: skip
def test_bad_inputs(place, shape, message):
    dit = random_dit(0, positions="v1")
    clip = random_clip(dit.config)
    clip[place] = torch.zeros(shape)
    with pytest.raises(InputError, match=message):
        dit(*clip)


def test_unknown_positions_are_refused(weights):
    with pytest.raises(InputError, match="positions"):
        load_dit(weights, positions="v3")
