"""One network on several processes gives what it gives on one, whatever the sizes, and sends as much as it should."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from benchmarks.parallel import bytes_sent
from magihuman_core import InputError, LostRankError, apply_lora, load_dit, sequence_parallel
from magihuman_core.nn.elementwise import EAGER
from magihuman_core.runtime.parallel import share_heads, share_of

from .golden import random_clip, recorded_network, relative
from .ranks import run_ranks
from .test_dit import CASES, Case, random_dit

GROUPED = {"heads": 6, "kv_heads": 2, "head_dim": 8, "sandwich_layers": (0, 2)}
# Networks, and the clips packed in one pass: latent (T, H, W), audio and text tokens of each.
SHAPES = {
    "one clip": (GROUPED, [((3, 4, 6), 9, 7)]),
    "prompt and negative prompt": (GROUPED, [((3, 4, 6), 9, 7), ((3, 4, 6), 9, 11)]),
    "three clips of all sizes": (GROUPED, [((1, 2, 2), 1, 2), ((4, 6, 2), 13, 3), ((2, 4, 4), 5, 17)]),
    "local": (GROUPED | {"local_layers": (0, 1), "local_radius": 1, "positions": "v1"}, [((6, 4, 2), 21, 5)] * 2),
    "one key head": ({"heads": 5, "kv_heads": 1, "head_dim": 8}, [((3, 4, 6), 9, 7)]),
    "post norms": (GROUPED | {"post_norm_layers": (1,), "gelu_layers": ()}, [((3, 4, 6), 9, 7)]),
}


def errors(dit, expected_of, clips):
    """The relative error of each output against another network's, and whether all ranks have the same outputs."""
    with torch.inference_mode():
        expected, found = expected_of.forward_many(clips), dit.forward_many(clips)
    vector = torch.cat([part.flatten() for pair in found for part in pair])
    of_all = [torch.empty_like(vector) for _ in range(dist.get_world_size())]
    dist.all_gather(of_all, vector)
    assert all(torch.equal(other, vector) for other in of_all)
    return [relative(a, b) for pair in zip(found, expected, strict=True) for a, b in zip(*pair, strict=True)]


def vectors_of(weights, dtype):
    """The recorded numbers' errors, by a network on all ranks: of video and audio of each case."""
    found = {}
    prefix = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    for name in CASES:
        case = Case(name, weights)
        dit = sequence_parallel(case.load(getattr(torch, dtype)))
        with torch.inference_mode():
            video, audio = dit(*case.inputs())
        found[name] = [relative(video, case.tensors[f"{prefix}.x_video"]),
                       relative(audio.transpose(1, 2), case.tensors[f"{prefix}.x_audio"])]
    return found


def vectors(weights):
    return vectors_of(weights, "float32"), vectors_of(weights, "bfloat16")


@pytest.mark.parametrize("ranks", [2, 4])
def test_recorded_vectors(ranks):
    for fp32, bf16 in run_ranks(ranks, vectors, recorded_network()):
        assert set(fp32) == set(bf16) == set(CASES)
        assert max(max(found) for found in fp32.values()) < 1e-5
        assert max(max(found) for found in bf16.values()) < 2e-2


def all_shapes():
    found = {}
    for name, (changes, sizes) in SHAPES.items():
        dit = random_dit(1, **changes)
        clips = [random_clip(dit.config, *grid, audio, text, batch=2) for grid, audio, text in sizes]
        found[name] = errors(sequence_parallel(dit), dit, clips)
        dit.piece = 5
        found[name] += errors(sequence_parallel(dit), dit, clips)
    return found


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_all_shapes(ranks):
    """Tokens, heads and key heads that the ranks do not divide; packed clips; more ranks than key heads; batches."""
    for found in run_ranks(ranks, all_shapes):
        assert max(max(each) for each in found.values()) < 1e-5, found


def other_ways(folder):
    """Networks in 8 bits, streamed, with a LoRA, fused."""
    official, found = recorded_network(), {}
    for name, options in {"int8": {"dtype": torch.int8}, "streamed": {"dtype": torch.float32, "resident_blocks": 2},
                          "streamed int8": {"dtype": torch.int8, "resident_blocks": 0}}.items():
        plain, dit = load_dit(official, **options), load_dit(official, **options)
        spread = sequence_parallel(dit)
        found[name] = max(errors(spread, plain, [random_clip(dit.config)]))
    plain, dit = (load_dit(official, dtype=torch.float32) for _ in range(2))
    before = load_dit(official, dtype=torch.float32)
    spread = sequence_parallel(dit)
    for network in (plain, spread):
        apply_lora(network, f"{folder}/lora.safetensors", 0.5)
    found["lora"] = max(errors(spread, plain, [random_clip(dit.config)]))
    assert min(errors(spread, before, [random_clip(dit.config)])) > 1e-3
    fused = []  # what stands for compiled functions
    for module in spread.modules():
        if hasattr(module, "elementwise"):
            module.elementwise = replace(EAGER, gate=lambda *args: fused.append(1) or EAGER.gate(*args))
    found["fused"] = max(errors(spread, plain, [random_clip(dit.config)]))
    assert len(fused) >= len(dit.blocks)
    return found


def test_beside_8_bits_streaming_lora_and_fusing(tmp_path):
    name, generator = "block.layers.3.mlp.down_proj", torch.Generator().manual_seed(0)
    outputs, inputs = recorded_network()[f"{name}.weight"].shape
    save_file({f"{name}.lora_A.weight": torch.randn(2, inputs, generator=generator),
               f"{name}.lora_B.weight": torch.randn(outputs, 2, generator=generator)}, tmp_path / "lora.safetensors")
    for found in run_ranks(2, other_ways, str(tmp_path)):
        assert {name: error for name, error in found.items() if error > (2e-2 if "int8" in name else 1e-5)} == {}


def sent_bytes(changes, grid, dtype):
    """What this rank's collectives gave to others in one block, and in the whole pass beside the blocks."""
    dit = random_dit(1, **changes).to(getattr(torch, dtype))
    dit.compute_dtype = getattr(torch, dtype)
    for block in dit.blocks:
        for module in block.modules():
            if hasattr(module, "compute_dtype"):
                module.compute_dtype = dit.compute_dtype
    dit.adapter.float()
    for head in (dit.final_linear_video, dit.final_linear_audio):
        head.float()
    spread, counted, real = sequence_parallel(dit), [], dist.all_to_all_single

    def counting(output, given, output_sizes, sizes, group=None):
        others = sum(sizes) - sizes[dist.get_rank()]
        counted.append(others * given.itemsize)
        return real(output, given, output_sizes, sizes, group=group)

    dist.all_to_all_single = counting
    with torch.inference_mode():
        spread(*random_clip(dit.config, *grid))
    blocks = len(dit.blocks)
    return [sum(counted[: 2 * blocks]) / blocks, sum(counted[2 * blocks :])]


@pytest.mark.parametrize(("ranks", "changes", "dtype"), [(2, {"heads": 8, "kv_heads": 4}, "float32"),
                                                        (4, {"heads": 8, "kv_heads": 2}, "bfloat16")])
def test_bytes_sent(ranks, changes, dtype):
    """Each rank sends what the formula says; the rest of a pass, the velocities, is small beside it."""
    grid = (3, 10, 14)
    dit = random_dit(1, **changes)
    tokens = dit.layout((grid, 9, 7)).tokens
    expected = bytes_sent(dit.config, tokens, ranks, getattr(torch, dtype).itemsize)
    for in_a_block, beside in run_ranks(ranks, sent_bytes, changes, grid, dtype):
        assert in_a_block == pytest.approx(expected, rel=0.1)
        assert 0 < beside < in_a_block


def test_shares():
    """All tokens and heads belong to one rank, and each rank's queries are spread evenly over its keys."""
    assert share_of(10, 3) == [slice(0, 3), slice(3, 6), slice(6, 10)]
    for heads, kv_heads in ((40, 8), (6, 2), (5, 1), (8, 8)):
        for ranks in range(1, heads + 1):
            shares = share_heads(heads, kv_heads, ranks)
            assert [head for part, _ in shares for head in range(heads)[part]] == list(range(heads))
            for queries, keys in shares:
                group, own = heads // kv_heads, keys.stop - keys.start
                assert own and not (queries.stop - queries.start) % own
                assert {head // group for head in range(heads)[queries]} == set(range(kv_heads)[keys])


def refusals():
    said = []
    for run in (lambda: sequence_parallel(random_dit(1, heads=2, kv_heads=1)),
                lambda: sequence_parallel(random_dit(1, heads=4, kv_heads=1))(*random_clip(
                    random_dit(1).config, 1, 2, 2, 1, 1))):
        try:
            said.append(str(run()))
        except InputError as error:
            said.append(str(error))
    dit = random_dit(1, heads=4, kv_heads=1)
    spread = sequence_parallel(dit.requires_grad_(True))
    try:
        spread(*random_clip(dit.config))
    except InputError as error:
        said.append(str(error))
    alone = dist.new_group([0])
    if dist.get_rank() == 0:
        assert sequence_parallel(dit, alone) is dit
    else:
        with pytest.raises(InputError, match="not in the group"):
            sequence_parallel(dit, alone)
    return said


def test_what_is_refused_and_a_group_of_one():
    for said in run_ranks(4, refusals):
        assert said[0].startswith("4 processes cannot share the 2 attention heads")
        assert said[1].startswith("The clip has 3 tokens, fewer than the 4 processes")
        assert said[2].startswith("A network that is spread over several processes gives no gradients")
    with pytest.raises(InputError, match="torchrun"):
        sequence_parallel(random_dit(1))


def one_leaves():
    dit = random_dit(1, heads=4, kv_heads=1)
    spread = sequence_parallel(dit)
    if dist.get_rank() == 1:
        dist.destroy_process_group()
        return "left"
    with torch.inference_mode(), pytest.raises(LostRankError, match="Another process of this run has ended"):
        spread(*random_clip(dit.config))
    return "was told"


def test_a_rank_that_is_gone_ends_the_others():
    assert run_ranks(2, one_leaves, after=False) == ["was told", "left"]


def test_nothing_more_is_imported():
    """Neither does `import magihuman_core` bring in torch, nor its public names what torch itself leaves out."""
    program = ("import sys, magihuman_core; assert 'torch' not in sys.modules; import torch, {names}; "
               "before = set(sys.modules); magihuman_core.sequence_parallel; "
               "print([name for name in set(sys.modules) - before if name.startswith('torch.distributed')])")
    names = "scipy, numpy, psutil, tqdm, safetensors.torch, einops"
    done = subprocess.run([sys.executable, "-c", program.format(names=names)], capture_output=True, text=True,
                          check=False)
    assert done.stdout.strip() == "[]", done.stderr
