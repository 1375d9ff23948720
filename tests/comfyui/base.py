"""A folder for a ComfyUI to work in, with this pack, small models under the names of the large ones, and media."""

import runpy
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def make_base(base: Path) -> Path:
    """A folder for ComfyUI to work in, with this pack as a symbolic link."""
    for name in ("custom_nodes", "input", "output", "temp", "user/default"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes/magihuman").symlink_to(REPOSITORY, target_is_directory=True)
    return base


def fill_base(base: Path) -> Path:
    """The same folder with models, and files to load."""
    from magihuman_core.tools.convert import convert

    made = runpy.run_path(str(REPOSITORY / "tests/make_random_models.py"))["make_models"](base / "made")
    (made / "text_encoder/model.safetensors").rename(made / "text_encoder/model-00001-of-00001.safetensors")
    for source, name in {
        **{network: f"diffusion_models/magihuman/{network}" for network in ("distill", "base", "540p_sr", "1080p_sr")},
        "text_encoder": "text_encoders/t5gemma-9b-9b-ul2",
        "turbo_vae": "vae/turbo_vae",
        "vae/wan2.2_vae.safetensors": "vae/wan2.2_vae.safetensors",
        "audio_vae": "vae/stable-audio-open-1.0",
    }.items():
        target = base / "models" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (made / source).rename(target)
    # The networks of the example workflows, in one file each or as other people cut them.
    folder = base / "models/diffusion_models"
    for source, name in {"distill": "magi_human_distill_quanto_bf16_int8", "base": "magi_human_quanto_bf16_int8",
                         "1080p_sr": "magi_human_sr1080_quanto_bf16_int8"}.items():
        convert(folder / "magihuman" / source, folder / f"{name}.safetensors")
    shutil.copytree(folder / "magihuman/540p_sr", folder / "magihuman/540p_sr_fp8")
    write_media(base / "input")
    return base


def write_media(folder: Path) -> None:
    """picture.png of 80x120, voice.wav of 0.6 s, clip.mp4 of 33 frames of 64x96 with audio."""
    import soundfile
    import torch
    from PIL import Image

    from magihuman_core.media.mp4 import write_mp4

    Image.linear_gradient("L").resize((80, 120)).convert("RGB").save(folder / "picture.png")
    soundfile.write(folder / "voice.wav", (0.3 * torch.sin(torch.arange(9600) * 0.08)).numpy(), 16000)
    frames = torch.tensor([90, 160, 0], dtype=torch.uint8).repeat(33, 96, 64, 1)
    frames[..., 2] = 5 * torch.arange(33)[:, None, None]
    write_mp4(folder / "clip.mp4", frames, 0.2 * torch.sin(torch.arange(58212) * 0.03).repeat(2, 1))
