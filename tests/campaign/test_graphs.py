"""How random graphs are drawn, and how a server's answers are judged; without a server."""

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("resource")  # as for the campaign itself

from .draw_graph import Drawing
from .graphs import _ended, _refused

RECORD = Path(__file__).parents[1] / "data/comfyui/object_info.json"
INFO = json.loads(RECORD.read_text(encoding="utf-8"))["nodes"] | {
    name: {"input": {"required": {kind.lower(): [kind] for kind in takes.split()}}, "output": gives.split()}
    for name, takes, gives in (
        ("PreviewImage", "IMAGE", ""), ("PreviewAny", "*", ""), ("PrimitiveInt", "INT", "INT"),
        ("PrimitiveFloat", "FLOAT", "FLOAT"), ("PrimitiveString", "STRING", "STRING"),
        ("SamplerCustomAdvanced", "NOISE GUIDER SAMPLER SIGMAS LATENT", "LATENT LATENT"),
        ("RandomNoise", "INT", "NOISE"), ("SolidMask", "FLOAT", "MASK"), ("EmptyImage", "INT", "IMAGE"))}
OURS = '  File "/c/custom_nodes/magihuman/nodes/decode.py", line 1, in f\n'
CORE = '  File "/c/comfy/sd.py", line 1, in f\n'
EXTRA = '  File "/c/comfy_extras/nodes_sag.py", line 1, in f\n'
TORCH = '  File "/v/torch/functional.py", line 1, in f\n'
SENTENCE = "The latent holds nothing. Look at the node that cuts it."


def drawn(number: int) -> dict:
    return Drawing(INFO, random.Random(number)).draw()


def test_a_graph_is_drawn_again_by_its_number_and_reaches_every_node_of_ours():
    graphs = [drawn(number) for number in range(400)]
    assert json.dumps(graphs[7]) == json.dumps(drawn(7)) != json.dumps(graphs[8])
    kinds = {node["class_type"] for graph in graphs for node in graph.values()}
    assert {name for name in INFO if "MagiHuman" in name} <= kinds
    assert len(kinds) > 40


def test_without_faults_all_that_is_needed_is_there_and_of_its_type():
    for number in range(100):
        drawing = Drawing(INFO, random.Random(number))
        drawing.add(drawing.chance.choice(["SaveVideo", "PreviewImage", "PreviewAudio"]), 0)
        for node in drawing.graph.values():
            for name, (wanted, settings) in drawing.inputs(node["class_type"]).items():
                assert name in node["inputs"] or settings["optional"]
                if isinstance(value := node["inputs"].get(name), list):
                    maker, slot = value
                    assert INFO[drawing.graph[maker]["class_type"]]["output"][slot] == wanted


ENDS = {
    # what: (class of node, exception, its text, frames from the outermost, how it is judged)
    "a sentence of ours": ("MagiHumanDecode", "magihuman.errors.InputError", SENTENCE, [CORE, OURS], "refused"),
    "a sentence of ours in a node of core's": ("KSampler", "x.CheckpointError", SENTENCE, [CORE, OURS], "refused"),
    "no sentence": ("MagiHumanDecode", "magihuman.errors.InputError", "bad", [CORE, OURS], "fault"),
    "our code": ("MagiHumanDecode", "KeyError", "'x'", [CORE, OURS], "fault"),
    "our code in a node of core's": ("KSampler", "KeyError", "'x'", [CORE, OURS], "fault"),
    "a library that we call": ("MagiHumanDecode", "RuntimeError", SENTENCE, [CORE, OURS, TORCH], "fault"),
    "core that we call": ("MagiHumanDecode", "RuntimeError", SENTENCE, [CORE, OURS, CORE, TORCH], "fault"),
    "our node before it begins": ("MagiHumanDecode", "TypeError", SENTENCE, [CORE], "fault"),
    "core alone": ("LatentCut", "TypeError", "x", [CORE, EXTRA, TORCH], "core"),
    "a patch of core's in our network": ("KSampler", "AttributeError", "x", [CORE, OURS, CORE, EXTRA], "core"),
}


@pytest.mark.parametrize("what", ENDS)
def test_how_an_error_is_judged(what):
    node, exception, text, trace, kind = ENDS[what]
    verdict = _ended(["execution_error", {"node_type": node, "exception_type": exception, "exception_message": text,
                                          "traceback": trace}])
    assert ("fault" if verdict.why else verdict.kind) == kind and text in verdict.said


def refusal(*errors: dict, kind: str = "prompt_outputs_failed_validation") -> str:
    entries = {"1": {"errors": list(errors)}} if errors else {}
    return json.dumps({"error": {"type": kind, "message": "Prompt outputs failed validation"}, "node_errors": entries})


NAMED = {"message": "Value not in list", "details": "vae: 7 not in []", "extra_info": {"input_name": "vae"}}
RAISED = {"message": "Exception when validating node", "details": "x", "extra_info": {"traceback": [CORE, OURS]}}


@pytest.mark.parametrize(("answer", "fault"), [
    (refusal(NAMED), False), (refusal(kind="missing_node_type"), False), (refusal(), True), (refusal(RAISED), True),
    ("500 Internal Server Error", True)])
def test_how_a_refusal_is_judged(answer, fault):
    verdict = _refused(answer)
    assert bool(verdict.why) == fault
    assert fault or verdict.kind == "refused"
