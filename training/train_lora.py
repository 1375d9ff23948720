"""Train a LoRA for a network, the released one or the demo's, on clips of one's own.

    python -m training.lora_clips --hats 32 --models demo --out /tmp/hats
    python -m training.train_lora --models demo --clips /tmp/hats --name hat --steps 300
    magihuman generate --models demo --lora training/runs/demo/lora_hat/hat.safetensors:1.0 ...

    python -m training.train_lora --models FOLDER --clips CLIPS --name me --dtype int8 --resident-blocks 8 --device cuda

The network's own weights never change, and only the adapters are in the checkpoints. They may be resident, in 8 bits,
or stream from the file: intermediate results are computed again block by block, so a network larger than memory needs
two passes over its weights a step, whatever the batch. A LoRA that was trained on the base network works on the
distilled one as well.
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch

from magihuman_core import JointDenoiser, flow_sigmas, load_dit, pack_latents, sample_renoise, unpack_latents
from magihuman_core.loading.folder import find_models
from magihuman_core.loading.vae import load_turbo_vae
from magihuman_core.recipes import RECIPES
from magihuman_core.weights.dit_keys import network_config
from magihuman_core.weights.open import open_checkpoint
from training import checkpoints
from training.adapters import LAYERS, Adapters, run_block
from training.common import Stop, contents_hash, files_hash
from training.data import split
from training.fit import fit
from training.lora_clips import load_clip
from training.masks import draw_keep, noised, velocity_loss
from training.muon import Together
from training.options import add_options, command, device, set_up, whole
from training.train_network import noise_levels
from training.train_video_vae import to_images

USES = {"nothing": 0.5, "image": 0.2, "audio": 0.15, "image and audio": 0.15}  # see masks.USES
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8, "fp8": torch.float8_e4m3fn}


class EncodedClips:
    """Clips as lora_clips.py left them; one in 25, from one to 16 of them, is held out."""

    def __init__(self, folder, seed, held_out=False):
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise Stop(f"{folder} holds no encoded clips: run python -m training.lora_clips first.")
        for path in paths:
            load_clip(path)
        self.contents = contents_hash(*paths)
        self.paths = [paths[i] for i in split(range(len(paths)), held_out, takes=1)]
        self.description = f"{len(paths)} clips, from {paths[0].name} to {paths[-1].name}"
        self.random = np.random.default_rng(seed)

    def check_fits(self, config):
        """Raises Stop where the clips are not of encoders that belong to a network with this DiTConfig."""
        for path in self.paths:
            tensors, _ = load_clip(path)
            found = {name: tensors[name].shape[2 if name == "text" else 1] for name in tensors}
            wanted = {name: getattr(config, f"{name}_channels") for name in found}
            if found != wanted:
                raise Stop(f"{path} has {found} channels, the network {wanted}: encode the clips with the models that "
                           "the network belongs to.")  # fmt: skip

    def draw(self, device):
        """(video, audio, text) of a random clip."""
        return self.get(int(self.random.integers(len(self.paths))), device)

    def get(self, index, device):
        tensors, _ = load_clip(self.paths[index])
        return tuple(tensors[name].to(device) for name in ("video", "audio", "text"))


def lora_loss(dit, options):
    """The flow-matching loss of a batch of clips, which may differ in shape: all go through the blocks together."""

    def loss(clips, step):
        inputs, wanted, keeps = [], [], []
        for _ in range(options.batch):
            video, audio, text = clips.draw(options.device)
            keep = draw_keep(video, audio, USES)
            keep.video, keep.audio = keep.video.to(options.device), keep.audio.to(options.device)
            x_v, x_a, noise_v, noise_a = noised(video, audio, noise_levels(1).to(options.device), keep)
            inputs.append((x_v, x_a, text))
            wanted.append((noise_v - video, noise_a - audio))
            keeps.append(keep)
        found = dit.forward_many(inputs, run_block=run_block)
        one = torch.ones((), device=options.device)
        losses = [torch.stack(velocity_loss(*parts, one)) for parts in zip(found, wanted, keeps, strict=True)]
        video, audio = torch.stack(losses).mean(0)
        return video + audio, {"video": video.detach(), "audio": audio.detach()}

    return loss


def sampler_of(dit, adapters, clips, turbo, device):
    """What `fit` shows: a held-out clip through the decoder, and its prompt without and with the LoRA."""
    video, audio, text = clips.get(0, device)

    def sample(average):
        kept = copy.deepcopy(adapters.state_dict())
        rows = [video]
        for strength in (0.0, 1.0):
            state = average.state_dict()
            adapters.load_state_dict({k: v * (strength if k.startswith("up") else 1) for k, v in state.items()})
            generator = torch.Generator().manual_seed(0)
            noise = (torch.randn(x.shape, generator=generator).to(device) for x in (video, audio))
            x, shapes = pack_latents(*noise)
            made = sample_renoise(JointDenoiser(dit, shapes, text), x, flow_sigmas(8), disable=True)
            rows.append(unpack_latents(made, shapes)[0])
        adapters.load_state_dict(kept)
        return [to_images(turbo.decode(row), 8) for row in rows]

    return sample


def load_network(options):
    """(network, folder of models, what tells the network from others); it is kept as the options want it."""
    models = find_models(options.models)
    path = models[models.require(options.role, "training a LoRA")]
    overrides = RECIPES[options.role].overrides(network_config(open_checkpoint(path, "network")).layers)
    dit = load_dit(path, dtype=DTYPES[options.dtype], device=options.device, resident_blocks=options.resident_blocks,
                   **overrides)  # fmt: skip
    return dit, models, f"{files_hash(path)} in {options.dtype}"


def train(options):
    """Returns the path of the LoRA's file."""
    folder = options.run / f"lora_{options.name}"
    clips, held_out = (EncodedClips(options.clips, options.seed, held) for held in (False, True))
    dit, models, network = load_network(options)
    for part in (clips, held_out):
        part.check_fits(dit.config)
    torch.manual_seed(options.seed)
    adapters = Adapters(dit, options.rank, options.layers).to(options.device).attach(dit)
    sample = None
    if "turbo_vae" in models:
        turbo = load_turbo_vae(models["turbo_vae"], dtype=torch.float32, device=options.device)
        sample = sampler_of(dit, adapters, held_out, turbo, options.device)
    optimizer = Together(torch.optim.AdamW(adapters.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.0))
    config = {"rank": options.rank, "layers": adapters.layers, "role": options.role, "network": network,
              "clips": clips.description, "contents of clips": clips.contents}  # fmt: skip
    average = fit(folder, adapters, optimizer, lora_loss(dit, options), clips, options, config=config,
                  held_out=held_out, sample=sample, decay=0.99)  # fmt: skip
    adapters.load_state_dict(average.state_dict())
    path = folder / f"{options.name}.safetensors"
    size = adapters.save(path, steps=str(checkpoints.load(folder)["step"]), rank=str(options.rank), role=options.role)
    print(f"{path}: {size / 1e6:.1f} MB")
    return path


def file_name(text):
    """The type of an option: a part of a file's name."""
    if not text or text != Path(text).name or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r} is not possible, expected a name without folders")
    return text


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", required=True, help="folder of models, or demo")
    parser.add_argument("--clips", type=Path, required=True, help="folder of encoded clips")
    parser.add_argument("--name", type=file_name, required=True, help="of the LoRA")
    parser.add_argument("--role", default="base", choices=("base", "distilled"), help="which network")
    parser.add_argument("--rank", type=whole(1), default=16)
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), help="endings of the official layers' names")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of the network's blocks")
    parser.add_argument("--resident-blocks", type=whole(0), help="the others stream from the file")
    parser.add_argument("--device", type=device, default="cpu")
    add_options(parser, steps=400, rate=1e-3, batch=2)
    parser.set_defaults(save_every=100)
    return parser.parse_args(arguments)


@command
def main():
    options = parse()
    set_up(options)
    train(options)


if __name__ == "__main__":
    main()
