"""A table of core's nodes on a clip's latent: same, other, or words of the error; and what is saved between nodes.

Most of core's latent nodes work on one tensor. A clip has two streams: separated by LTXV Separate AV Latent, each of
them is one. What test_saved.py saves, whole models, is not repeated here.
"""

import comfy_extras.nodes_post_processing  # noqa: F401  before nodes_latent: they import each other
import folder_paths
import pytest
import torch
from comfy_extras import nodes_latent as latent_nodes
from comfy_extras.nodes_lora_extract import LoraSave, LORAType
from comfy_extras.nodes_lt import LTXVConcatAVLatent, LTXVSeparateAVLatent
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_model_merging import ModelMergeSimple, ModelSave, ModelSubtract
from comfy_extras.nodes_rebatch import LatentRebatch
from comfy_extras.nodes_wan import TrimVideoLatent
from magihuman_pack.nodes.adapter.load_model import load_model
from magihuman_pack.nodes.adapter.streams import nested
from magihuman_pack.nodes.windows import MagiHumanWindows
from safetensors.torch import load_file
from small_clip import AUDIO, VIDEO, max_error, relative_error, sample, with_lora
from test_mixed import base, one_node, run, stock  # noqa: F401  base is a fixture
from test_saved import VAES, lora_for, saved  # noqa: F401  a fixture

import nodes

CLIP = {"samples": nested(VIDEO, AUDIO)}
ZERO = {"samples": nested(torch.zeros_like(VIDEO), torch.zeros_like(AUDIO))}
TWO = (2 * VIDEO, 2 * AUDIO)


def old(node, *args):
    """What a node of the older kind gives."""
    return getattr(node(), node.FUNCTION)(*args)[0]


WHOLE = {
    # node: (what it gives for a clip, [video, audio] or words of the error)
    "LatentAdd": (lambda: run(latent_nodes.LatentAdd, CLIP, CLIP), TWO),
    "LatentSubtract": (lambda: run(latent_nodes.LatentSubtract, CLIP, ZERO), (VIDEO, AUDIO)),
    "LatentMultiply": (lambda: run(latent_nodes.LatentMultiply, CLIP, 2.0), TWO),
    "LatentBlend": (lambda: old(nodes.LatentBlend, CLIP, ZERO, 0.5), (VIDEO / 2, AUDIO / 2)),
    "LatentInterpolate": (lambda: run(latent_nodes.LatentInterpolate, CLIP, ZERO, 0.5), "NestedTensor"),
    "LatentBatch": (lambda: run(latent_nodes.LatentBatch, CLIP, CLIP), "NestedTensor"),
    "LatentConcat": (lambda: run(latent_nodes.LatentConcat, CLIP, CLIP, "t"), "NestedTensor"),
    "LatentCut": (lambda: run(latent_nodes.LatentCut, CLIP, "t", 0, 1), "NestedTensor"),
    "RepeatLatentBatch": (lambda: old(nodes.RepeatLatentBatch, CLIP, 2), "NestedTensor"),
    "LatentFromBatch": (lambda: old(nodes.LatentFromBatch, CLIP, 0, 1), "NestedTensor"),
    "SaveLatent": (lambda: old(nodes.SaveLatent, CLIP), "NestedTensor"),
}


@pytest.mark.parametrize("node", WHOLE)
def test_a_node_on_a_whole_clip(node):
    do, outcome = WHOLE[node]
    if isinstance(outcome, str):
        with pytest.raises((TypeError, AttributeError), match=outcome):
            do()
    else:
        assert max_error(do()["samples"].unbind(), outcome) < 1e-6


def video_of(change):
    """A clip whose video went through a node, joined with its audio again."""
    video, audio = LTXVSeparateAVLatent.execute(CLIP).args
    return run(LTXVConcatAVLatent, change(video), audio)


PARTS = {
    # node: (of a video latent, shape of what is sampled or words of the error)
    "LatentAdd": (lambda video: run(latent_nodes.LatentAdd, video, video), (1, 48, 3, 4, 6)),
    "LatentInterpolate": (lambda video: run(latent_nodes.LatentInterpolate, video, video, 0.5), (1, 48, 3, 4, 6)),
    "LatentCut then LatentConcat": (lambda video: run(
        latent_nodes.LatentConcat, run(latent_nodes.LatentCut, video, "t", 0, 1),
        run(latent_nodes.LatentCut, video, "t", 1, 2), "t"), (1, 48, 3, 4, 6)),
    "LatentFlip": (lambda video: video | {"samples": video["samples"].flip(-1)}, (1, 48, 3, 4, 6)),
    "LatentRebatch": (lambda video: LatentRebatch.execute([video], [1]).args[0][0], (1, 48, 3, 4, 6)),
    "LatentCut": (lambda video: run(latent_nodes.LatentCut, video, "t", 0, 2), (1, 48, 2, 4, 6)),
    "LatentCut, width": (lambda video: run(latent_nodes.LatentCut, video, "x", 0, 3), "even numbers"),
    "LatentCut, height": (lambda video: run(latent_nodes.LatentCut, video, "y", 0, 2), (1, 48, 3, 2, 6)),
    "LatentConcat": (lambda video: run(latent_nodes.LatentConcat, video, video, "t"), (1, 48, 6, 4, 6)),
    "TrimVideoLatent": (lambda video: run(TrimVideoLatent, video, 1), (1, 48, 2, 4, 6)),
    "TrimVideoLatent, all": (lambda video: run(TrimVideoLatent, video, 3), "holds nothing"),
    "RepeatLatentBatch": (lambda video: old(nodes.RepeatLatentBatch, video, 2), "2 videos but 1 sounds"),
    "LatentBatch": (lambda video: run(latent_nodes.LatentBatch, video, video), "2 videos but 1 sounds"),
    "LatentUpscaleBy": (lambda video: old(nodes.LatentUpscaleBy, video, "bilinear", 2.0), (1, 48, 3, 8, 12)),
}


@pytest.mark.parametrize("node", PARTS)
def test_a_node_on_the_video_of_a_clip(base, node):  # noqa: F811
    change, outcome = PARTS[node]
    if isinstance(outcome, str):
        with pytest.raises(ValueError, match=outcome):
            one_node(base, video_of(change))
        return
    got = one_node(base, video_of(change))
    assert tuple(got[0].shape) == outcome and got[1].shape == AUDIO.shape
    assert all(bool(torch.isfinite(stream).all()) for stream in got)


def test_a_latent_without_frames_is_named_by_every_sampler(base):  # noqa: F811
    for latent in ({"samples": VIDEO[:, :, :0]}, {"samples": nested(VIDEO, AUDIO[..., :0])}):
        for sample_it in (one_node, stock):
            with pytest.raises(ValueError, match="holds nothing"):
                sample_it(base, latent)


@pytest.mark.parametrize(("kind", "other"), [("audio", VIDEO), ("wan", AUDIO), ("turbo", AUDIO),
                                             ("wan", VIDEO[:, :16])])
def test_a_latent_of_another_kind_is_named_before_memory_is_taken(models, kind, other):
    """By core's tiled decoding, which would make room for 5 TB of sound for a small video's latent."""
    path, load, _ = VAES[kind]
    with pytest.raises(ValueError, match=r"The latent has shape .* but this VAE decodes \[B, "):
        nodes.VAEDecodeTiled().decode(load(models / path), {"samples": other}, 512)


def test_clips_in_one_batch_are_each_as_alone(base):  # noqa: F811
    """Repeated stream by stream; the second has the seed after the first one's."""
    video, audio = LTXVSeparateAVLatent.execute(ZERO).args
    both = run(LTXVConcatAVLatent, *(old(nodes.RepeatLatentBatch, part, 2) for part in (video, audio)))
    got = one_node(base, both)
    assert [tuple(stream.shape) for stream in got] == [(2, 48, 3, 4, 6), (2, 64, 9)]
    assert max_error([stream[:1] for stream in got], one_node(base, ZERO)) == 0
    assert max_error([stream[1:] for stream in got], [stream[:1] for stream in got]) > 1e-2


def test_a_clip_is_saved_stream_by_stream(base, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda *_: str(tmp_path))
    parts = []
    for part in LTXVSeparateAVLatent.execute(CLIP).args:
        saver = nodes.SaveLatent()
        saver.output_dir = str(tmp_path)
        (entry,) = saver.save(part)["ui"]["latents"]
        parts.append(nodes.LoadLatent().load(entry["filename"])[0])
    again = run(LTXVConcatAVLatent, *parts)
    assert max_error(again["samples"].unbind(), [VIDEO, AUDIO]) == 0
    assert max_error(one_node(base, again), one_node(base, CLIP)) == 0


SAVED = {
    # what is saved, of the distilled model, the base model and a LoRA
    "merge": lambda model, other, lora: ModelMergeSimple().merge(model, other, 0.3)[0],
    "merge of a model with LoRA": lambda model, other, lora: ModelMergeSimple().merge(
        with_lora(model, lora), other, 0.3)[0],
    # These two patch sampling and not weights: the file is the model's own.
    "windows": lambda model, other, lora: run(MagiHumanWindows, model, 60.0, 0.16),
    "shift": lambda model, other, lora: ModelSamplingSD3().patch(model, 5.0)[0],
}


@pytest.mark.parametrize("what", SAVED)
def test_a_model_of_other_nodes_is_saved_and_read(model, base, official, saved, what):  # noqa: F811
    made = SAVED[what](model, base, lora_for(official))
    again = load_model(saved(ModelSave, made), "distilled", torch.float32)
    assert max_error(sample(again), sample(made)) < 1e-4


@pytest.mark.parametrize("kind", LORAType)
def test_an_extracted_lora_is_saved_and_does_what_the_first_did(model, plain, official, tmp_path, monkeypatch, kind):
    """Of rank 4, which the first one has, but core cuts off the largest hundredth; or as whole differences, in half."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    lora = {key: tensor for key, tensor in lora_for(official).items()
            if kind == LORAType.FULL_DIFF or not key.endswith(".diff")}
    changed = with_lora(model, lora, 0.1)
    difference = ModelSubtract().merge(changed, model, 1.0)[0]
    LoraSave.execute("lora", 4, kind.name.lower(), False, difference)
    (path,) = tmp_path.glob("lora*.safetensors")
    got = with_lora(model, load_file(path), 1.0)
    effect = relative_error(sample(changed), plain)
    assert effect > 0.05
    assert relative_error(sample(got), sample(changed)) < effect * (0.05 if kind == LORAType.FULL_DIFF else 0.5)
