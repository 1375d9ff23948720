"""Values that links bring past the limits of widgets, and numbers that are none."""

import math
from types import SimpleNamespace

import comfy.samplers
import pytest
import torch
from comfy_api.latest import InputImpl, Types
from comfy_extras.nodes_custom_sampler import RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from magihuman_pack.magihuman_core.errors import CheckpointError, InputError
from magihuman_pack.magihuman_core.sampling.solvers import flow_sigmas
from magihuman_pack.nodes import clips, conditioning, edit, extend, latents, sampling, voice, windows
from magihuman_pack.nodes.adapter.load_model import load_model
from magihuman_pack.nodes.adapter.streams import nested
from magihuman_pack.nodes.limits import may_be_missing
from safetensors.torch import save_file
from small_clip import AUDIO, OTHER, TEXT, VIDEO

import nodes

TEXTS = {"positive": [[TEXT, {}]], "negative": [[OTHER, {}]]}
EMPTY = {"samples": nested(torch.zeros_like(VIDEO), torch.zeros_like(AUDIO))}
NAN, INF = float("nan"), float("inf")
NODES = [node for module in (clips, conditioning, edit, extend, latents, sampling, voice, windows)
         for node in module.NODES]
RATE = {"sample_rate": 16000}
SOUND, PIXELS = torch.zeros(1, 2, 9), torch.zeros(2, 32, 32, 3)


def film(**parts):
    return InputImpl.VideoFromComponents(Types.VideoComponents(**{"images": PIXELS, "frame_rate": 25, **parts}))


USUAL = {"INT": 1, "FLOAT": 1.0, "STRING": "a", "BOOLEAN": True, "LATENT": EMPTY, "AUDIO": {"waveform": SOUND, **RATE},
         "CONDITIONING": TEXTS["positive"], "IMAGE": PIXELS, "MASK": torch.zeros(1, 9, 9), "VIDEO": film(),
         "MODEL": SimpleNamespace(model_options={}), "CLIP": SimpleNamespace(tokenize=lambda text: {}),
         "VAE": SimpleNamespace(decode=None)}
# Of a workflow that has something else in the place of a link, which ComfyUI lets pass; None is what core's loader of
# checkpoints gives for a CLIP or VAE that a file does not hold.
NO_LINK = ["nan", 7, [], [1], {}, True, None, object()]
LINKED = {
    # What nodes of other packs may give under the name of a type: empty batches, other axes, no numbers, parts missing.
    "MODEL": [], "CLIP": [], "VAE": [],
    "VIDEO": [film(frame_rate=0), film(frame_rate=NAN), film(frame_rate=1e-9), film(images=PIXELS * NAN),
              film(images=PIXELS[:0]), film(images=None), film(audio={"waveform": SOUND})],
    "IMAGE": [PIXELS[:0], PIXELS[0], PIXELS[..., :0], PIXELS[..., [0] * 5], PIXELS[:, :0], PIXELS.byte(),
              PIXELS * NAN, PIXELS + INF, [PIXELS]],
    "MASK": [torch.zeros(0, 9, 9), torch.zeros(9), torch.zeros(1, 9, 9, 3), torch.full((1, 9, 9), NAN)],
    "AUDIO": [{"waveform": SOUND}, {"waveform": SOUND[:0], **RATE}, {"waveform": SOUND[:, :0], **RATE},
              {"waveform": SOUND[0, 0], **RATE}, {"waveform": [[0.0]], **RATE}, {"waveform": None, **RATE},
              {"waveform": SOUND * NAN, **RATE}],
    "LATENT": [{"samples": None}, {"samples": [VIDEO, AUDIO]}, {"samples": nested(VIDEO * NAN, AUDIO)},
               {**EMPTY, "noise_mask": torch.zeros(0, 9, 9)}, {**EMPTY, "noise_mask": torch.full((1, 9, 9), NAN)},
               {**EMPTY, "noise_mask": [1]}],
    "CONDITIONING": [[[None, {}]], [[TEXT, None]], [[TEXT[0], {}]], [[TEXT[:, :0], {}]], [[TEXT * NAN, {}]]],
}
WRONG = {"INT": [-1, 10**30, NAN, 1.5, "4", True], "FLOAT": [NAN, INF, -INF, -1.0, 1e300, "4", True],
         "STRING": ["a \udce9 b", 7], "BOOLEAN": ["yes", 1], "COMBO": ["no such choice", 7, ""],
         **{kind: NO_LINK + values for kind, values in LINKED.items()}}


def given(node) -> dict:
    """Something for every input of a node; what comes before these are read is only that they are there."""
    return {known.id: known.options[0] if known.io_type == "COMBO" else
            getattr(known, "default", None) or USUAL.get(known.io_type, object())
            for known in node.define_schema().inputs}


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_no_value_passes_the_limits_of_its_widget(node):
    tried = 0
    for known in node.define_schema().inputs:
        for value in WRONG.get(known.io_type, []):
            if known.io_type == "FLOAT" and value == -1.0 and known.min < 0:
                continue
            if value is None and may_be_missing(known):
                continue
            tried += 1
            with pytest.raises(InputError, match=rf": {known.id} "):
                node.execute(**{**given(node), known.id: value})
    assert tried or not any(known.io_type in WRONG for known in node.define_schema().inputs)


def test_a_schedule_of_no_numbers_is_refused():
    for shift in (NAN, INF, 0.0):
        with pytest.raises(InputError, match="shift"):
            flow_sigmas(2, shift)


@pytest.mark.parametrize("bad", ["shift", "cfg", "sigmas", "latent", "text"])
def test_numbers_that_are_none_end_in_a_sentence_and_not_in_black_frames(model, bad):
    texts, latent, cfg, chosen = dict(TEXTS), EMPTY, 3.0, model
    if bad == "shift":
        chosen = ModelSamplingSD3().patch(model, NAN)[0]
    if bad == "cfg":
        cfg = NAN
    if bad == "latent":
        latent = {"samples": nested(torch.full_like(VIDEO, NAN), torch.zeros_like(AUDIO)),
                  "noise_mask": nested(torch.zeros_like(VIDEO[:, :1]), torch.ones_like(AUDIO[:, :1]))}
    if bad == "text":
        texts["positive"] = [[torch.full_like(TEXT, NAN), {}]]
    with pytest.raises(InputError, match="not numbers"):
        if bad == "sigmas":
            guider = sampling.MagiHumanGuider.execute(chosen, **TEXTS, guidance="none", video=5.0, video_late=2.0,
                                                      audio=5.0, sr_scale=3.5).args[0]
            SamplerCustomAdvanced.execute(
                noise=RandomNoise.execute(noise_seed=1).args[0], guider=guider, latent_image=latent,
                sampler=comfy.samplers.sampler_object("euler"),
                sigmas=torch.tensor([0.9, NAN, 0.0]))
        else:
            nodes.KSampler().sample(chosen, 7, 2, cfg, "euler", "simple", texts["positive"], texts["negative"], latent)


def test_a_damaged_weight_is_named(model):
    damaged = model.clone()
    weights = dict(damaged.model.diffusion_model.named_parameters())
    key = next(name for name in weights if name.endswith("down_proj.weight"))
    weight = weights[key]
    kept = weight.data[0, 0].item()
    try:
        weight.data[0, 0] = NAN
        with pytest.raises(CheckpointError, match=rf"weight {key} holds values that are not numbers"):
            nodes.KSampler().sample(damaged, 7, 2, 1.0, "euler", "simple", *TEXTS.values(), EMPTY)
    finally:
        weight.data[0, 0] = kept


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_damaged_file_is_refused_while_it_is_loaded(official, tmp_path, value):
    key = next(name for name, tensor in official.items() if tensor.ndim == 2 and "layers.0" in name)
    tensor = official[key].clone()
    tensor[-1, -1] = value
    save_file({**{name: tensor.contiguous() for name, tensor in official.items()}, key: tensor},
              tmp_path / "distill.safetensors")
    with pytest.raises(CheckpointError, match="not numbers"):
        load_model(tmp_path / "distill.safetensors", "distilled", torch.float32)


def test_an_area_of_the_conditioning_is_refused_in_words(model):
    for node, values in ((nodes.ConditioningSetArea(), (64, 64, 0, 0, 1.0)),
                         (nodes.ConditioningSetAreaPercentage(), (0.5, 0.5, 0.0, 0.0, 1.0)),
                         (nodes.ConditioningSetMask(), (torch.ones(1, 64, 96), "default", 1.0))):
        area = node.append(TEXTS["positive"], *values)[0]
        with pytest.raises(InputError, match="area"):
            sampling.MagiHumanSampler.execute(model, area, EMPTY, 7, "auto", 2, 220)
        with pytest.raises(InputError, match="area"):
            nodes.KSampler().sample(model, 7, 2, 1.0, "euler", "simple", area, TEXTS["negative"], EMPTY)


def test_sound_in_any_dtype_and_shape_has_one_level():
    from magihuman_pack.nodes.adapter.media import stereo

    sound = 0.5 * torch.sin(torch.arange(2000) / 9)
    for given in (sound[None, None], sound[None], (sound * 32767).short()[None, None]):
        waveform, rate = stereo({"waveform": given, "sample_rate": 24000})
        assert rate == 24000 and torch.allclose(waveform, sound.expand(2, -1), atol=1e-3)
    for bad in (torch.full((1, 1, 2000), NAN), torch.full((1, 1, 2000), math.inf)):
        with pytest.raises(InputError, match="not numbers"):
            stereo({"waveform": bad, "sample_rate": 24000})
