"""MagiHuman as ComfyUI's samplers know a model: the network with its schedule, latents, conditions and memory."""

import logging
import math

import comfy.conds
import comfy.model_base
import comfy.supported_models_base
import comfy.utils
import torch

from ...magihuman_core.checkpoint.finite import is_finite
from ...magihuman_core.errors import CheckpointError, InputError
from ...magihuman_core.model.config import PATCH, DiTConfig
from ...magihuman_core.recipes import RECIPES
from ...magihuman_core.runtime.memory import network_activations
from ...magihuman_core.sampling.super_resolution import cover_audio
from ...magihuman_core.sizes import AUDIO_PER_FRAME, FPS, TEXT_TOKENS
from ...magihuman_core.text.script import check_length
from .conds import SCRIPT, LengthCond, ScriptCond, TextCond
from .flow import FlowSampling, with_start_state
from .latent_format import LatentFormat, Preview
from .lora import is_alias, wrapped_names
from .network import ComfyDiT
from .ops import copied_bytes
from .streams import check_channels, check_shapes, nested

BaseModel = comfy.model_base.BaseModel
log = logging.getLogger(__name__)


class MagiHumanModel(comfy.model_base.Kandinsky5):
    """The network with its schedule, its latents and its conditions.

    Core's LoRA loader tells by a model's class which names a file may have for a layer. As a Kandinsky5 it looks for
    ours with `transformer.` before them and bare, besides its usual prefixes; nothing else of that class is used.

    While ComfyUI samples, both streams are one packed vector [B, 1, n], the video's values before the audio's;
    `latent_shapes` holds their shapes, [B, C, T, H, W] and [B, c, A]. The network gets them unpacked.
    """

    def __init__(self, model_config: "ModelConfig", device=None):
        BaseModel.__init__(self, model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=ComfyDiT)
        self.model_sampling = FlowSampling(model_config)
        self.role = model_config.role
        self.window = RECIPES[self.role].window  # seconds that it makes in one piece
        if self.super_resolution:
            self.model_sampling.noise_level = RECIPES[self.role].noise_level

    encode_adm = BaseModel.encode_adm
    concat_cond = BaseModel.concat_cond

    def __setattr__(self, name, value):
        # A node that sets another schedule replaces the object that knows what super-resolution starts from.
        if name == "model_sampling" and name in self.__dict__.get("_modules", ()):
            value = with_start_state(value, self.model_sampling)
        super().__setattr__(name, value)

    def state_dict(self, *args, **kwargs):
        """With the names besides that LoRA files of some trainers have: core's loader looks for them here."""
        found = super().state_dict(*args, **kwargs)
        if not args and not kwargs:
            found.update(wrapped_names(self.diffusion_model.official_config))
        return found

    @property
    def super_resolution(self) -> bool:
        return RECIPES[self.role].super_resolution

    @property
    def network_config(self) -> DiTConfig:
        return self.diffusion_model.config

    def get_dtype_inference(self):
        # Latents and text reach the network as they are; it casts where it computes in less.
        return torch.float32

    def extra_conds_shapes(self, **kwargs):
        """Asked of every conditioning before anything is done with it: raises InputError for what cannot be."""
        if kwargs.get("area") is not None or kwargs.get("mask") is not None:
            raise InputError("The conditioning is for an area of the picture, or has a mask, which MagiHuman cannot "
                             "do: picture and sound have one prompt. Leave out the node that sets it.")
        return {}

    def extra_conds(self, **kwargs):
        """What the network gets besides the latents: the text [B, n, d], with the streams' shapes for unpacking."""
        config = self.network_config
        shapes = kwargs.get("latent_shapes")
        found = [tuple(shape) for shape in shapes or [kwargs["noise"].shape]]
        if not (torch.is_grad_enabled() and len(found) == 1):  # core's training has the video alone
            check_shapes(found, (config.video_channels, config.audio_channels))
        out = BaseModel.extra_conds(self, **kwargs)
        out["latent_shapes"] = comfy.conds.CONDConstant(shapes)
        text = kwargs.get("cross_attn")
        if text is None or text.shape[-1] != config.text_channels:
            given = "none" if text is None else f"{text.shape[-1]} channels"
            raise InputError(f"The conditioning has {given}, but this model takes text of {config.text_channels}: "
                             "encode the prompt with a CLIP from Load MagiHuman Text Encoder.")
        # Never one that repeats tokens to make batches: attention is joint, every token counts.
        script = kwargs.get(SCRIPT)
        if script is not None and not torch.equal(text, script.texts[0].to(text)):
            log.warning("A node changed the conditioning of MagiHuman Script: its result is used for the whole clip.")
            script = None
        if script is not None:
            if len(found) > 1:
                check_length(script.segments, found[1][2] / FPS, "the clip has")
            text = script.at(found[0][2] / 2)
        out["c_crossattn"] = TextCond.of(text, script)
        out["text_lengths"] = LengthCond.of(text, script)
        return out

    def resize_cond_for_context_window(self, cond_key, cond_value, window, x_in, device, retain_index_list=()):
        """Conditions of a window of core's Context Windows: the text alone differs, by a script."""
        frames = window.index_list
        return cond_value.at(min(frames) + len(frames) / 2) if isinstance(cond_value, ScriptCond) else None

    def map_context_window_to_modalities(self, primary_indices, latent_shapes, dim):
        """Which latents of each stream belong to a window: of audio the four of every latent frame."""
        if len(latent_shapes) < 2:
            return [primary_indices]
        frames, length = latent_shapes[0][dim], latent_shapes[1][dim]
        audio = [index for frame in primary_indices
                 for index in range(AUDIO_PER_FRAME * frame,
                                    length if frame == frames - 1 else min(AUDIO_PER_FRAME * (frame + 1), length))]
        return [primary_indices, audio]

    @property
    def _packed(self) -> bool:
        """Whether a vector of this sampling run holds both streams."""
        return self.latent_shapes is not None and len(self.latent_shapes) > 1

    def scale_latent_inpaint(self, sigma, noise, latent_image, **kwargs):
        """What the network sees of frozen content: clean values; in super-resolution, of audio a noised context."""
        if not self.super_resolution or not self._packed:
            return latent_image
        start = math.prod(self.latent_shapes[0][1:])  # where the audio begins in the packed vector
        seen = latent_image.clone()
        seen[..., start:] = cover_audio(latent_image[..., start:], noise[..., start:])
        return seen

    def process_latent_in(self, latent):
        return self._change_video(latent, self.latent_format.process_in)

    def process_latent_out(self, latent):
        """Raw latents of what was sampled. Raises CheckpointError or InputError for values that are not finite.

        All of ComfyUI's samplers end here: what is no number would else become black frames, or stop a node behind.
        """
        streams = latent.unbind() if latent.is_nested else [latent]
        if not all(bool(torch.isfinite(stream).all()) for stream in streams):
            self.explain_not_finite()
        return self._change_video(latent, self.latent_format.process_out)

    def explain_not_finite(self):
        """Say what may be the cause, after a look at the weights."""
        for key, weight in self.diffusion_model.named_parameters():
            if type(weight.data) is torch.Tensor and not is_finite(weight.data):
                raise CheckpointError(f"The network's weight {key} holds values that are not numbers. The file is "
                                      "damaged, or a LoRA or merge made them: download the file again, or leave that "
                                      "out.")
        raise InputError("Sampling gave values that are not numbers. A number that is connected to it may be none "
                         "(shift, cfg, guidance, sigmas, the latent), or the weight dtype is too narrow: try bf16 or "
                         "fp32 in Load MagiHuman Model.")

    def _change_video(self, latent, change):
        """Apply a function to the video stream, of a nested latent or of the packed vector."""
        if latent.is_nested:
            video, *rest = latent.unbind()
            return nested(self._change_video(video, change), *rest)
        if latent.ndim == 5:  # also from core's nodes, which may have it of another model
            check_channels("video", tuple(latent.shape), self.network_config.video_channels)
            return change(latent)
        if not self._packed:
            return latent
        video, *rest = comfy.utils.unpack_latents(latent, self.latent_shapes)
        return comfy.utils.pack_latents([change(video), *rest])[0]

    def memory_required(self, input_shape, cond_shapes=None, **_):
        """Bytes that activations take at their peak, by the packed latent's size, and the weights copied for them."""
        config = self.network_config
        batch, values = input_shape[0], math.prod(input_shape[1:])
        # Texts that ComfyUI joins, such as prompt and negative prompt, are packed into one sequence; see by_text.
        texts = len((cond_shapes or {}).get("text_lengths", ())) or 1
        # The packed size does not tell the clip's shape: one row with as many tokens stands for it. The few
        # values of the audio count as video here, which makes up for its narrower tokens.
        row = (1, PATCH, PATCH * max(1, values // (config.video_channels * PATCH**2)))
        one, two = (self.activations(row, 1, TEXT_TOKENS, guided) for guided in (False, texts > 1))
        return -(-batch // texts) * (one + (texts - 1) * (two - one)) + self.copied_weights()

    def activations(self, latent: tuple[int, int, int], audio: int, text: int, guided: bool) -> int:
        """Bytes of activations of one clip. latent: (T, H, W); audio, text: tokens; guided: with a negative prompt."""
        return network_activations(self.network_config, latent, audio, text, self.diffusion_model.compute_dtype, "cuda",
                                   guided)

    def copied_weights(self) -> int:
        """Bytes of the largest weights that are decoded or cast to compute with them: an MLP's two, held together."""
        network = self.diffusion_model
        experts = (expert for block in network.blocks for expert in block.experts.values())
        return max(copied_bytes((expert.mlp.up_gate_proj, expert.mlp.down_proj), network.compute_dtype)
                   for expert in experts)


class NetworkOptions(dict):
    """What the network is built with, where nodes that patch U-Nets look for the parts of one."""

    def __missing__(self, key):
        raise InputError(f"A node asks the model for its {key}, as U-Nets such as Stable Diffusion's have one, but "
                         "MagiHuman's network is a transformer. Take off the node: FreeU and the like are not for it.")


class ModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a model before it is built."""

    unet_config: dict = {"image_model": "magihuman"}
    unet_extra_config: dict = {}
    sampling_settings = {"shift": 5.0, "multiplier": 1000}
    latent_format = LatentFormat
    memory_usage_factor = 1.0  # not used: MagiHumanModel.memory_required computes bytes
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def __init__(self, config: DiTConfig, role: str, preview: Preview | None = None):
        super().__init__({"image_model": "magihuman", "config": config})
        self.unet_config = NetworkOptions(self.unet_config)
        self.latent_format = LatentFormat(config.video_channels, config.audio_channels, preview)
        self.role = role

    def get_model(self, state_dict, prefix="", device=None):
        return MagiHumanModel(self, device=device)

    def clip_target(self, state_dict=None):
        return None  # the text encoder is a file of its own

    def process_unet_state_dict_for_saving(self, state_dict):
        kept = {key: value for key, value in state_dict.items() if not is_alias(key)}
        return super().process_unet_state_dict_for_saving(kept)
