"""daVinci-MagiHuman in plain PyTorch: one Transformer that makes a speaking person's picture and sound.

The public names below are imported when they are first asked for, so that a program which only needs
the sampler does not pay for the rest.
"""

from importlib import import_module

_HOME = {
    "DiTConfig": "config",
    "MagiHumanDiT": "dit",
    "load_dit": "dit",
    "flow_sigmas": "sampling",
    "sample_unipc": "sampling",
    "sample_renoise": "sampling",
    "pack_latents": "sequence",
    "unpack_latents": "sequence",
    "Guidance": "guidance",
    "JointDenoiser": "guidance",
    "prepare_super_resolution": "super_resolution",
    "load_turbo_vae": "turbo_vae",
    "load_video_vae": "video_vae",
    "load_audio_vae": "audio_vae",
    "load_text_encoder": "text_encoder",
    "MagiHumanPipeline": "pipeline",
    "Clip": "clip",
    "apply_lora": "lora",
    "InputError": "errors",
    "CheckpointError": "errors",
}

__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
