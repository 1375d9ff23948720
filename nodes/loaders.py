"""Nodes that load weights."""

import logging
from pathlib import Path

import torch
from comfy_api.latest import io

from ..magihuman_core.errors import InputError
from ..magihuman_core.loading.folder import find_models
from ..magihuman_core.loading.text_encoder import sibling_file
from ..magihuman_core.loading.vae import turbo_configs
from ..magihuman_core.recipes import RECIPES
from ..magihuman_core.weights.open import open_checkpoint
from ..magihuman_core.weights.roles import find_role
from .adapter.clip import load_clip
from .adapter.load_model import load_model
from .adapter.vae import load_audio, load_turbo, load_video
from .files import DEMO, choices, contents, resolve, resolve_tokenizer, tokenizers

log = logging.getLogger(__name__)

CATEGORY = "MagiHuman/loaders"
AUTO = "auto"
DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
# What only a network can be kept in besides: ComfyUI's formats, and whether to multiply in them.
FORMATS = {
    "fp8_e4m3fn_fast": ("float8_e4m3fn", True),
    "int8": ("int8_tensorwise", False),
    "nvfp4": ("nvfp4", False),
    "nvfp4_fast": ("nvfp4", True),
}
FUSE = {AUTO: None, "on": True, "off": False}
DTYPE_TIP = (
    "How weights are kept in memory. default: what suits the device and the file. fp8 takes half of bf16 and loses a "
    "little detail; embeddings, norms and heads always keep their precision."
)
DEMO_TIP = "'built-in demo' is a small model that comes with the nodes: no download, and a CPU is enough."


def _file(folder: str, name: str, tip: str) -> io.Combo.Input:
    return io.Combo.Input(name, options=choices(folder), default=DEMO, tooltip=f"{tip} {DEMO_TIP}")


def demo_file(part: str) -> Path:
    """The demo's file for a part, such as "turbo_vae". Raises InputError where it has none."""
    models = find_models("demo")
    if part not in models:
        raise InputError(f"The built-in demo has no {part} network: choose another role, or a file.")
    return models[part]


class MagiHumanModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanModelLoader",
            display_name="Load MagiHuman Model",
            category=CATEGORY,
            description="Loads one of MagiHuman's four networks: base, distilled, or a super-resolution model.",
            search_aliases=["davinci", "magihuman", "load diffusion model", "unet loader", "talking head", "avatar"],
            inputs=[
                _file("diffusion_models", "model", "A file, or a folder of shards, in models/diffusion_models."),
                io.Combo.Input("role", options=[AUTO, *RECIPES], default=AUTO, tooltip=(
                    "Which of the four networks it is. They differ in nothing that a file shows, so auto goes by the "
                    "names of file and folder (base, distill, 540p, 1080p). A wrong role spoils the result.")),
                io.Combo.Input("weight_dtype", options=[*DTYPES, *FORMATS], default="default", advanced=True, tooltip=(
                    DTYPE_TIP + " int8 takes as much as fp8 and is closer to bf16; nvfp4 takes half of that and loses "
                                "more. Names in _fast also multiply so, on cards that can (fp8: Ada and newer, nvfp4: "
                                "Blackwell): faster, and less exact.")),
                io.Combo.Input("fuse", options=[*FUSE], default=AUTO, optional=True, advanced=True, tooltip=(
                    "Whether norms, activations and gates are compiled into single kernels: faster, and the same "
                    "picture; the first step takes some seconds more. auto: on NVIDIA cards with Triton.")),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, role, weight_dtype, fuse=AUTO) -> io.NodeOutput:
        path, found = cls.find(model, role)
        if role == AUTO:  # a wrong one spoils the result
            log.info("%s: taken as %s (%s).", model, found, RECIPES[found].description)
        quantize, fast = FORMATS.get(weight_dtype, (None, False))
        return io.NodeOutput(load_model(path, found, DTYPES.get(weight_dtype), quantize, fast, FUSE[fuse]))

    @classmethod
    def fingerprint_inputs(cls, model, role, **_):
        return contents(cls.find(model, role)[0]) if model and role else None  # unknown where another node gives them

    @staticmethod
    def find(choice: str, role: str) -> tuple[Path, str]:
        """(path, role) of a choice. Raises InputError where the role cannot be told."""
        if choice == DEMO:
            role = "distilled" if role == AUTO else role
            return demo_file(role), role
        path = resolve("diffusion_models", choice)
        found: str | None = role
        if role == AUTO:
            opened = open_checkpoint(path)
            found = find_role(opened.path, opened.metadata)
        if found is None:
            raise InputError(f"Nothing in the name of {choice!r} tells which of MagiHuman's networks it is: set role "
                             f"to one of {', '.join(RECIPES)}.")
        return path, found


class MagiHumanTextEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanTextEncoderLoader",
            display_name="Load MagiHuman Text Encoder",
            category=CATEGORY,
            description="Loads T5Gemma-9B-UL2's encoder. Core's Load CLIP takes its file for a smaller relative.",
            search_aliases=["t5gemma", "load clip", "clip loader", "text encoder", "magihuman"],
            inputs=[
                _file("text_encoders", "text_encoder",
                      "T5Gemma-9B-UL2 in models/text_encoders: one file, or a folder of shards; the decoder is "
                      "skipped."),
                io.Combo.Input("tokenizer", options=tokenizers(), tooltip=(
                    "The tokenizer.json that belongs to the encoder; by default the one in the folder of the "
                    "weights.")),
                io.Combo.Input("weight_dtype", options=list(DTYPES), default="default", advanced=True,
                               tooltip=DTYPE_TIP),
            ],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, text_encoder, tokenizer, weight_dtype) -> io.NodeOutput:
        return io.NodeOutput(load_clip(*cls.find(text_encoder, tokenizer), DTYPES[weight_dtype]))

    @classmethod
    def fingerprint_inputs(cls, text_encoder, tokenizer, **_):
        if not (text_encoder and tokenizer):
            return None
        path, given = cls.find(text_encoder, tokenizer)
        return contents(path, given, sibling_file(path, "config.json"), sibling_file(path, "tokenizer.json"))

    @staticmethod
    def find(choice: str, tokenizer: str) -> tuple[Path, Path | None]:
        """The paths of a choice's weights and tokenizer; None: beside the weights. Raises InputError."""
        if choice == DEMO:
            return demo_file("text_encoder"), find_models("demo").get("tokenizer")
        return resolve("text_encoders", choice), resolve_tokenizer(tokenizer)


def vae_file(choice: str, part: str) -> Path:
    """The path of a choice of a VAE; part: which of the demo's files it is there."""
    return demo_file(part) if choice == DEMO else resolve("vae", choice)


class MagiHumanVideoVAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanVideoVAELoader",
            display_name="Load MagiHuman Video VAE",
            category=CATEGORY,
            description="Loads the Wan2.2 VAE, of any width: it encodes pictures, and decodes slower than the Turbo "
                        "VAE but with finer detail. Core's Load VAE does the same for the official file.",
            search_aliases=["wan2.2 vae", "load vae", "magihuman"],
            inputs=[_file("vae", "vae", "wan2.2_vae.safetensors in models/vae.")],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae) -> io.NodeOutput:
        return io.NodeOutput(load_video(vae_file(vae, "video_vae")))

    @classmethod
    def fingerprint_inputs(cls, vae):
        return contents(vae_file(vae, "video_vae")) if vae else None


class MagiHumanTurboVAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanTurboVAELoader",
            display_name="Load MagiHuman Turbo VAE",
            category=CATEGORY,
            description="Loads the fast video decoder. It only decodes: to encode a picture, load the Video VAE as "
                        "well.",
            search_aliases=["turbo vae", "fast vae", "load vae", "magihuman"],
            inputs=[_file("vae", "vae", "The Turbo VAE's checkpoint in models/vae, with its JSON file beside it.")],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae) -> io.NodeOutput:
        return io.NodeOutput(load_turbo(vae_file(vae, "turbo_vae")))

    @classmethod
    def fingerprint_inputs(cls, vae):
        if not vae:
            return None
        path = vae_file(vae, "turbo_vae")
        return contents(path, *turbo_configs(path))


class MagiHumanAudioVAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanAudioVAELoader",
            display_name="Load MagiHuman Audio VAE",
            category=CATEGORY,
            description="Loads the audio VAE of Stable Audio Open 1.0, alone or inside the whole model's file.",
            search_aliases=["oobleck", "stable audio", "load vae", "magihuman"],
            inputs=[_file("vae", "vae", "Stable Audio Open's model.safetensors, or the VAE taken from it, in "
                                        "models/vae.")],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae) -> io.NodeOutput:
        return io.NodeOutput(load_audio(vae_file(vae, "audio_vae")))

    @classmethod
    def fingerprint_inputs(cls, vae):
        return contents(vae_file(vae, "audio_vae")) if vae else None


NODES = [MagiHumanModelLoader, MagiHumanTextEncoderLoader, MagiHumanVideoVAELoader, MagiHumanTurboVAELoader,
         MagiHumanAudioVAELoader]
