"""The public names of `magihuman_core`, where they come from."""

from .errors import CheckpointError, InputError, LostRankError
from .loading.dit import load_dit
from .loading.text_encoder import load_text_encoder
from .loading.vae import load_audio_vae, load_turbo_vae, load_video_vae
from .model.config import DiTConfig
from .model.dit import MagiHumanDiT
from .pipeline.clip import Clip
from .pipeline.pipeline import MagiHumanPipeline
from .recipes import Guidance
from .runtime.lora import apply_lora
from .runtime.parallel import sequence_parallel
from .sampling.denoiser import JointDenoiser
from .sampling.latents import pack_latents, unpack_latents
from .sampling.solvers import flow_sigmas, sample_renoise, sample_unipc
from .sampling.super_resolution import prepare_super_resolution

__all__ = ["CheckpointError", "Clip", "DiTConfig", "Guidance", "InputError", "JointDenoiser", "LostRankError",
           "MagiHumanDiT", "MagiHumanPipeline", "apply_lora", "flow_sigmas", "load_audio_vae", "load_dit",
           "load_text_encoder", "load_turbo_vae", "load_video_vae", "pack_latents",
           "prepare_super_resolution", "sample_renoise", "sample_unipc", "sequence_parallel",
           "unpack_latents"]
