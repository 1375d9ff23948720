"""Train the distilled network further where the sound is given: long speech in windows, dubbing, live.

    python -m training.train_driven                          # after train_distilled; goes on from its checkpoint

With the sound given, what the mouth does is no matter of taste: the target is the true clip's velocity, at the
noise levels of the eight steps, without a teacher whose guidance overdoes it. Three steps in four are of windows
(window_batches.py), for windows are what the pipeline gives the network: they begin anywhere in a clip, and their
prompt has the words of its beginning. In the others the network is held to what it made before, in the uses without
given sound.
"""

import argparse
import copy

import torch
from torch import nn

from magihuman_core import sample_renoise
from training import checkpoints
from training.common import weights_hash
from training.masks import draw_keep, dubbed, mouth_weight, noised, velocity_loss
from training.options import add_options, command, set_up
from training.train_distilled import LEVELS, velocity
from training.train_network import CONFIG, fit_network, load_base, load_network, sampler_of, sources_of
from training.window_batches import WindowBatches

DRIVEN = 0.75  # share of steps on windows with given sound
# What is given of a window, see masks.USES: of the beginning of a clip, of one that sees its first frame, of any other.
AT_START = {"image and audio": 0.5, "audio": 0.2, "region": 0.2, "time and audio": 0.1}
ANCHORED = {"image and audio": 1.0}
LATER = {"audio": 0.35, "time and audio": 0.35, "region": 0.25, "frames and audio": 0.05}
HELD = {"nothing": 0.4, "image": 0.25, "video": 0.15, "frames": 0.1, "time": 0.1}  # in the other steps


def loss_of(student, before, encoder, size):
    """The loss of the student; before: the network as it was."""

    def loss(batches, step):
        driven = batches.random.random() < DRIVEN
        if driven:
            cut = batches.cut(size)
            video, audio, ids, other = cut.video, cut.audio, cut.ids, cut.other
            keep = draw_keep(video, audio, AT_START if cut.at_start else ANCHORED if cut.anchored else LATER)
        else:
            video, audio, ids, other = batches.draw(size)
            keep = draw_keep(video, audio, HELD)
        s = LEVELS[torch.randint(len(LEVELS), (len(video),))].view(-1, 1, 1, 1, 1)
        x_v, x_a, noise_v, noise_a = noised(dubbed(video, other, keep), audio, s, keep)
        with torch.no_grad():
            text = encoder(ids).float()
            wanted = (noise_v - video, noise_a - audio) if driven else velocity(before, (x_v, x_a), text)
        found = velocity(student, (x_v, x_a), text)
        value = sum(velocity_loss(found, wanted, keep, mouth_weight(video)))
        return value, {"driven" if driven else "held": value.detach()}

    return loss


def train(options):
    _, encoder, base = load_base(options.run)
    before, distilled = load_network(options.run, "distilled")
    for module in (encoder, before):
        module.requires_grad_(False)
    student = copy.deepcopy(before).train().requires_grad_(True)
    text_encoder = {"text_encoder": weights_hash(encoder)}
    checkpoints.check_origins(options.run / "distilled", distilled["config"], text_encoder)
    sources = sources_of(options, encoder.tokenizer, base, WindowBatches)
    fit_network(options, "driven", nn.ModuleList([student]), loss_of(student, before, encoder, options.batch), sources,
                sampler_of(options.run, sources[1], encoder, sample_renoise), CONFIG,
                origins={**text_encoder, "distilled": weights_hash(before)})  # fmt: skip


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, steps=1200, rate=1.5e-4, batch=8)
    options = parser.parse_args()
    set_up(options)
    train(options)


if __name__ == "__main__":
    main()
