"""Random graphs in ComfyUI's API format: our nodes and core's, wired by type, sound but for what is put wrong."""

import math
import random
from pathlib import Path
from typing import Any

from .wishes import WORDS

Link = list  # [node, slot]
NAN, INF = math.nan, math.inf
# Nodes that need no other one to make a thing of their type, and so end a chain.
ROOTS = {
    "MODEL": ["MagiHumanModelLoader"], "CLIP": ["MagiHumanTextEncoderLoader"],
    "VAE": ["MagiHumanTurboVAELoader", "MagiHumanVideoVAELoader", "MagiHumanAudioVAELoader"],
    "LATENT": ["EmptyMagiHumanLatent"], "CONDITIONING": ["MagiHumanTextEncode"], "IMAGE": ["LoadImage", "EmptyImage"],
    "AUDIO": ["LoadAudio", "EmptyAudio"], "VIDEO": ["LoadVideo"], "MASK": ["SolidMask"], "NOISE": ["RandomNoise"],
    "SIGMAS": ["MagiHumanScheduler"], "SAMPLER": ["KSamplerSelect"], "GUIDER": ["BasicGuider"],
    "STRING": ["PrimitiveString"], "INT": ["PrimitiveInt"], "FLOAT": ["PrimitiveFloat"],
    "BOOLEAN": ["PrimitiveBoolean"],
}
# Choices of loaders that go together, as most people's do.
SOUND: dict[str, list[dict]] = {
    "MagiHumanModelLoader": [{"model": f"magihuman/{name}/", "role": "auto", "weight_dtype": "default"}
                             for name in ("distill", "distill", "base", "base", "540p_sr")],
    "MagiHumanTextEncoderLoader": [{"text_encoder": "t5gemma-9b-9b-ul2/", "tokenizer": "beside the weights",
                                    "weight_dtype": "default"}],
    "MagiHumanTurboVAELoader": [{"vae": "turbo_vae/checkpoint-340000.ckpt"}],
    "MagiHumanVideoVAELoader": [{"vae": "wan2.2_vae.safetensors"}],
    "MagiHumanAudioVAELoader": [{"vae": "stable-audio-open-1.0/model.safetensors"}],
}
# What a VAE is meant for is told by the input's name, or by the node.
VAES = {"audio_vae": "MagiHumanAudioVAELoader", "MagiHumanDecode": "MagiHumanTurboVAELoader",
        "MagiHumanDecodeVideo": "MagiHumanTurboVAELoader", "VAEDecode": "MagiHumanTurboVAELoader",
        "VAEDecodeAudio": "MagiHumanAudioVAELoader", "VAEDecodeAudioTiled": "MagiHumanAudioVAELoader",
        "VAEEncodeAudio": "MagiHumanAudioVAELoader"}
CORE = Path(__file__).with_name("core_nodes.txt").read_text(encoding="utf-8").split()
ENDS = ["PreviewImage", "SaveImage", "SaveImage", "SaveAudio", *["SaveVideo"] * 5, "PreviewAudio", "SaveAudio",
        "SaveLatent", "MaskPreview", "PreviewAny", "MagiHumanCheck", "VAESave", "ModelSave"]
OFTEN = ["MagiHumanSampler", "MagiHumanDecode", "MagiHumanDecodeVideo"] * 2 + ["KSampler", "SamplerCustomAdvanced"]
# What would honestly take long, or much memory, is drawn from these.
SMALL: dict[str, list] = {
    "width": [64, 64, 96, 32, 48, 65, 1, 0], "height": [96, 96, 64, 32, 40, 1, 0], "seconds": [0.2, 0.4, 0.6],
    "steps": [1, 1, 2, 3], "batch_size": [1, 1, 2, 3], "amount": [1, 2], "length": [9, 5, 1, 17], "takes": [1, 2],
    "factor": [1.0, 1.5, 2.0], "scale_by": [0.5, 1.0, 1.5], "duration": [0.0, 0.2, 0.6], "max_seconds": [0.2, 1.0],
    "sample_rate": [44100, 8000, 48000], "frames_number": [9, 1], "frame_rate": [25],
    "multiplier": [1.0, 0.0, -1.0], "expand": [0, 3, -3], "left": [0, 8], "right": [0, 8], "top": [0, 8],
    "bottom": [0, 8], "target": ["factor"], "tile_size": [64, 512], "sigmas": ["1, 0.5, 0"],
    "window_seconds": [0.0, 0.4, 0.6], "overlap_seconds": [0.16, 0.16, 0.32, 0.8],
    "mode": [*["auto"] * 8, "distilled", "full CFG", "super-resolution"], "denoise": [1.0, 1.0, 1.0, 0.5, 0.01],
    "end_at_step": [1, 2, 10000], "start_at_step": [0, 1], "dim": ["t", "x", "-x"],
    "sampler_name": ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "lcm", "uni_pc", "uni_pc_bh2",
                     "res_multistep", "ddim", "er_sde", "gradient_estimation", "sa_solver", "seeds_2"],
    "filename_prefix": [*["out"] * 30, "a/b", "caf\u00e9", "..", "../../x", "a\x00b", "%date%", "", "/etc/x"],
}
WILD: list[Any] = [NAN, INF, -INF, -1, 0, -0.5, 1e300, 10**30, 2**63, "", "nan", "x", None, True, [], {}, [1],
                   "../../etc/passwd", "a\x00b", "\ud800", "1e400", 0.123456789, ["nowhere", 0], [7, 9]]
NUMBERS = [NAN, INF, -INF, -1.0, -0.5, 0.0, 1e300, 1e-300, 0.7]
WHOLE = [-1, 0, 2**62, -2**62, 10**9 + 1, 3]
FAULTS = ["value"] * 2 + ["linked"] * 4 + ["crossed"] * 2 + ["between"] * 4 + ["cut", "unknown"]


class Drawing:
    """A graph that is being drawn. info: what the server says of its nodes; chance: decides everything."""

    def __init__(self, info: dict[str, dict], chance: random.Random) -> None:
        self.info, self.chance = info, chance
        self.ours = sorted(name for name in info if "MagiHuman" in name)
        self.nodes = [name for name in [*self.ours, *self.ours, *CORE, *OFTEN * 4] if name in info]
        self.roots = {kind: [name for name in names if name in info] for kind, names in ROOTS.items()}
        self.graph: dict[str, dict] = {}
        self.made: dict[str, list[Link]] = {}

    def draw(self) -> dict[str, dict]:
        """The whole graph: one or two ends with what they need, and up to three things that are wrong."""
        for _ in range(self.chance.choice([1, 1, 2])):
            self.add(self.chance.choice([name for name in ENDS if name in self.info]), 0)
        for _ in range(self.chance.choice([0, 0, 0, 0, 1, 1, 2])):
            getattr(self, f"put_{self.chance.choice(FAULTS)}")()
        return self.graph

    def add(self, kind: str, depth: int, **given: Any) -> str:
        """A node with all that it needs; its key."""
        inputs = dict(given)
        if kind in SOUND and self.chance.random() < 0.93:
            inputs.update(self.chance.choice(SOUND[kind]))
        for name, (wanted, settings) in self.inputs(kind).items():
            if name not in inputs and not (settings.get("optional") and self.chance.random() < 0.3):
                inputs[name] = self.value(kind, name, wanted, settings, depth)
        key = str(len(self.graph) + 1)
        self.graph[key] = {"class_type": kind, "inputs": inputs}
        if kind == "SaveVideo":  # its choices are made of further ones
            inputs.update({"format": "auto", "format.codec": "auto", "codec": "auto"})
        for slot, made in enumerate(self.info[kind]["output"]):
            self.made.setdefault(str(made), []).append([key, slot])
        return key

    def inputs(self, kind: str) -> dict[str, tuple[Any, dict]]:
        """{name: (type or choices, settings)} of a node's inputs."""
        found = {}
        for part in ("required", "optional") if kind in self.info else ():
            for name, entry in self.info[kind]["input"].get(part, {}).items():
                settings = entry[1] if len(entry) > 1 else {}
                found[name] = (entry[0], {**settings, "optional": part == "optional"})
        return found

    def value(self, kind: str, name: str, wanted: Any, settings: dict, depth: int) -> Any:
        """Something that fits an input."""
        if isinstance(wanted, list) or wanted == "COMBO":
            choices = wanted if isinstance(wanted, list) else settings.get("options") or [""]
            if name in SMALL:
                choices = [choice for choice in SMALL[name] if choice in choices] or choices
            return settings["default"] if "default" in settings and name not in SMALL and self.chance.random() < 0.4 \
                else self.chance.choice(choices)
        if wanted in ("INT", "STRING") and depth < 4 and self.chance.random() < 0.08:
            return self.link(kind, name, wanted, depth)
        if name in SMALL and wanted in ("INT", "FLOAT", "STRING"):
            low, high = settings.get("min", -INF), settings.get("max", INF)
            fitting = [value for value in SMALL[name] if isinstance(value, str) or low <= value <= high]
            if fitting:
                return self.chance.choice(fitting)
        if wanted == "STRING":
            default = settings.get("default") or 'A woman says: "Good morning!"'
            return default if self.chance.random() < 0.8 else self.chance.choice(WORDS)
        if wanted == "BOOLEAN":
            return self.chance.random() < 0.5
        if wanted in ("INT", "FLOAT"):
            return self.number(wanted, settings)
        if str(wanted).startswith("COMFY_"):
            return "auto"
        return self.link(kind, name, str(wanted), depth)

    def number(self, wanted: str, settings: dict) -> float:
        """One that is allowed: the usual one, an end of the range, or another."""
        usual = settings.get("default", 1)
        low, high = max(settings.get("min", 0), -1000), min(settings.get("max", 100), 1000)
        if self.chance.random() < 0.5 or low > high:
            return usual
        if wanted == "INT":
            return self.chance.choice([low, min(high, 8), self.chance.randint(low, max(low, min(16, high)))])
        return self.chance.choice([low, high, self.chance.uniform(low, high)])

    def link(self, kind: str, name: str, wanted: str, depth: int) -> Link:
        """An output of this type that is there already, or a new node's."""
        if wanted == "VAE" and self.chance.random() < 0.93:
            loader = VAES.get(name) or VAES.get(kind) or "MagiHumanVideoVAELoader"
            return next((place for place in self.made.get("VAE", [])
                         if self.graph[place[0]]["class_type"] == loader), None) or [self.add(loader, depth + 1), 0]
        there = self.made.get(wanted, [])
        often = 0.8 if depth >= 4 or wanted in ("MODEL", "CLIP") else 0.4
        if there and self.chance.random() < often:
            return list(self.chance.choice(there))
        if wanted == "*":
            wanted = self.chance.choice(["LATENT", "STRING", "AUDIO", "SIGMAS"])
        makers = [node for node in self.nodes if wanted in self.info[node]["output"]]
        if wanted == "LATENT" and self.chance.random() < 0.7:  # most of core's take one stream only
            makers = [node for node in makers if node in self.ours or node in OFTEN]
        if depth >= 4 or not makers or (depth > 1 and self.chance.random() < 0.2):
            makers = self.roots.get(wanted) or makers
        maker = self.chance.choice(makers)
        key = self.add(maker, depth + 1)
        return [key, self.info[maker]["output"].index(wanted)]

    # What is put wrong.

    def place(self, ours: float = 0.7) -> tuple[str, str]:
        """(node, input) of the graph, mostly of a node of ours."""
        keys = sorted(self.graph)
        mine = [key for key in keys if "MagiHuman" in self.graph[key]["class_type"] and self.graph[key]["inputs"]]
        key = self.chance.choice(mine if mine and self.chance.random() < ours else keys)
        return key, self.chance.choice(sorted(self.graph[key]["inputs"]) or ["x"])

    def widgets(self) -> list[tuple[str, str, str]]:
        """(node, input, type) of what could be typed in."""
        return [(key, name, wanted) for key, node in self.graph.items()
                for name, (wanted, _) in self.inputs(node["class_type"]).items()
                if name in node["inputs"] and wanted in ("INT", "FLOAT", "STRING", "BOOLEAN")]

    def put_value(self) -> None:
        """A value that no widget would take."""
        key, name = self.place()
        self.graph[key]["inputs"][name] = self.chance.choice(WILD)

    def put_linked(self) -> None:
        """A value that a link brings past the widget."""
        mine = [place for place in self.widgets() if "MagiHuman" in self.graph[place[0]]["class_type"]]
        if not mine:
            return
        key, name, wanted = self.chance.choice(mine)
        if not self.roots[wanted]:
            return
        given = {"INT": WHOLE, "FLOAT": NUMBERS, "STRING": WORDS, "BOOLEAN": [True, False]}[wanted]
        maker = self.add(self.roots[wanted][0], 9, value=self.chance.choice(given))
        self.graph[key]["inputs"][name] = [maker, 0]

    def put_cut(self) -> None:
        """An input that is missing."""
        key, name = self.place()
        self.graph[key]["inputs"].pop(name, None)

    def put_crossed(self) -> None:
        """A link from another output: mostly one of the same type."""
        key, name = self.place()
        wanted = self.inputs(self.graph[key]["class_type"]).get(name, ("x", {}))[0]
        same = self.made.get(str(wanted)) if self.chance.random() < 0.8 else None
        self.graph[key]["inputs"][name] = list(self.chance.choice(
            same or [place for places in self.made.values() for place in places] or [["1", 0]]))

    def put_unknown(self) -> None:
        """A node or an output that is not there."""
        key, name = self.place()
        if self.chance.random() < 0.3:
            self.graph[key]["class_type"] = "NoSuchNode"
        else:
            self.graph[key]["inputs"][name] = [self.chance.choice(["99", key]), self.chance.choice([0, 7, -1])]

    def put_between(self) -> None:
        """A node that takes and gives the same type, in the middle of a link."""
        links = [(key, name) for key, node in self.graph.items() for name, value in node["inputs"].items()
                 if isinstance(value, list) and len(value) == 2 and value[0] in self.graph]
        if not links:
            return
        key, name = self.chance.choice(links)
        wanted = str(self.inputs(self.graph[key]["class_type"]).get(name, ("x", {}))[0])
        takes = [(node, other) for node in self.nodes if wanted in self.info[node]["output"]
                 for other, (kind, _) in self.inputs(node).items() if kind == wanted]
        if not takes:
            return
        node, other = self.chance.choice(takes)
        new = self.add(node, 3, **{other: self.graph[key]["inputs"][name]})
        self.graph[key]["inputs"][name] = [new, self.info[node]["output"].index(wanted)]
