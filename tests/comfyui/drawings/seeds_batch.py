"""Several clips at once."""

from .drawing import Drawing
from .parts import add_loaders, add_prompt, add_sampler


def draw() -> Drawing:
    d = Drawing("seeds_batch", (
        "# Four seeds, four clips\n\n`batch_size` of *Empty MagiHuman Latent* (an advanced input) says how many "
        "clips are made, "
        "one after another, from the seed, the seed + 1 and so on. *MagiHuman Decode* gives a list, and *Save Video* "
        "saves "
        "each. To make one of them again, set its seed and a batch of 1.\n\n"), 440)
    add_loaders(d, "distill", wan=False)
    add_prompt(d)
    d.group("Clips").add("empty", "EmptyMagiHumanLatent", seconds=4.0, batch_size=4)
    add_sampler(d, "sample", "empty")
    d.group("Films").add("decode", "MagiHumanDecode", vae="turbo", audio_vae="audio_vae", latent="sample")
    return d.add("save", "SaveVideo", video="decode", filename_prefix="video/magihuman_seed")
