"""Train the distilled network, which makes a clip in eight steps, by distribution matching (DMD2, arXiv 2405.14867).

    python -m training.train_distilled                       # goes on from its checkpoint when started again

Three networks, all of them the base network at first. The student makes clips. The teacher, which stays as it is, says
with guidance what a clip like that should rather be: its estimate is drawn to what is likely given the prompt. The fake
learns what the student's clips are like now: its estimate is drawn to what the student makes. Their difference is the
direction in which the student's clips become likelier, and no two clips are ever compared:

    x0 = the student's clip          x = x0 under noise of a random level
    gradient on x0 = (fake's estimate from x - teacher's estimate from x) / mean |x0 - teacher's estimate|

The student sees in training what it sees in use (backward simulation): pure noise, then its own estimates under the
noise of the next level. One of the eight steps, a random one, has gradients. After every step of the student the fake
has FAKE_STEPS steps on the clips that were just made. Before all that, for --warm-up steps, the student learns the
teacher's guided velocity, which is quick: its first clips are then already near.
"""

import argparse
import copy
from dataclasses import dataclass

import torch
from torch import nn

from magihuman_core import flow_sigmas, sample_renoise
from training import checkpoints
from training.common import autocast, weights_hash
from training.masks import Keep, draw_keep, dubbed, mouth_weight, noised, velocity_loss
from training.options import add_options, command, number, set_up, whole
from training.train_network import (
    CONFIG,
    fit_network,
    load_base,
    noise_levels,
    plain_attention,
    sampler_of,
    sources_of,
)

LEVELS = flow_sigmas(8)[:-1]  # the noise levels that the student is used at
FAKE_STEPS = 3  # of the fake after each of the student
FAKE_RATE = 3.0  # its learning rate, as a factor on the student's: it has to follow
REGRESSION = 0.1  # weight of the teacher's velocity on true clips, against falling back on few clips


@dataclass
class Made:
    """Clips of the student, with what belongs to them. video, audio: latents; ids: prompts; keep: what was given."""

    video: torch.Tensor
    audio: torch.Tensor
    ids: torch.Tensor
    keep: Keep

    def stored(self):
        return {"video": self.video, "audio": self.audio, "ids": self.ids,
                "keep": vars(self.keep)}  # fmt: skip

    @classmethod
    def restored(cls, state):
        return cls(state["video"], state["audio"], state["ids"], Keep(**state["keep"]))


def velocity(network, x, text):
    """Of both streams. Precision is switched for this call alone: weights cast without gradients stay so until then."""
    with autocast():
        return network(*x, text, attention=plain_attention)


def estimate(x, v, s, keep):
    """The clean latents that velocities v at level s point at; what was given stays."""
    return (torch.where(keep.video, x[0], x[0] - s * v[0].float()),
            torch.where(keep.audio, x[1], x[1] - s[:, :, :, 0, 0] * v[1].float()))  # fmt: skip


class Distillation:
    """The losses of student and fake.

    no_text: ids of the prompt that guidance leads away from. state: the checkpoint that is gone on from, or None.
    """

    def __init__(self, teacher, student, fake, encoder, no_text, options, state):
        self.teacher, self.student, self.fake, self.encoder, self.no_text = teacher, student, fake, encoder, no_text
        self.size, self.guidance, self.warm_up = options.batch, options.guidance, options.warm_up
        # Whatever a checkpoint needs to go on between two steps of the student: the clips that the fake learns from.
        self.extra = {"made": state.get("made") if state else None}

    def loss(self, batches, step):
        """A step of the student, then FAKE_STEPS of the fake; what a step does not train gets no gradient."""
        training = torch.is_grad_enabled()
        if step >= self.warm_up and step % (1 + FAKE_STEPS) and training and self.extra["made"]:
            return self.fake_loss(Made.restored(self.extra["made"]))
        video, audio, ids, other = batches.draw(self.size)
        keep, text = draw_keep(video, audio), self.text(ids)
        video = dubbed(video, other, keep)
        regression = self.regression_loss(video, audio, text, keep)
        numbers = {"regression": regression.detach()}
        if step < self.warm_up:
            return regression, numbers
        clean = self.simulate(video, audio, text, keep)
        if training:
            self.extra["made"] = Made(*(latent.detach() for latent in clean), ids, keep).stored()
        matching, differences = self.matching_loss(clean, text, keep)
        return matching + REGRESSION * regression, numbers | differences

    @torch.no_grad()
    def text(self, ids):
        return self.encoder(ids).float()

    def simulate(self, video, audio, text, keep):
        """The student's estimate of a clip in a random one of its steps, with gradients in this step alone."""
        last = int(torch.randint(len(LEVELS), ()))
        clean = video * keep.video, audio * keep.audio  # nothing is known of the rest: the first level is noise
        for place in range(last + 1):
            s = LEVELS[place].expand(len(video)).view(-1, 1, 1, 1, 1)
            x = noised(*clean, s, keep)[:2]
            with torch.set_grad_enabled(torch.is_grad_enabled() and place == last):
                clean = estimate(x, velocity(self.student, x, text), s, keep)
        return clean

    def regression_loss(self, video, audio, text, keep):
        """Error of the student's velocity on true clips, at one of its levels each, against the teacher's."""
        s = LEVELS[torch.randint(len(LEVELS), (len(video),))].view(-1, 1, 1, 1, 1)
        x = noised(video, audio, s, keep)[:2]
        return sum(velocity_loss(velocity(self.student, x, text), self.guided(x, text, s), keep, mouth_weight(video)))

    @torch.no_grad()
    def guided(self, x, text, s):
        """The teacher's velocities with guidance."""
        none = self.text(self.no_text).expand(len(text), -1, -1)
        with autocast():
            (v1, a1), (v0, a0) = self.teacher.forward_many([(*x, text), (*x, none)], attention=plain_attention)
        video_scale, audio_scale = self.guidance
        scale = torch.where(s > 0.5, video_scale, 1 + 0.5 * (video_scale - 1))
        return v0 + scale * (v1 - v0), a0 + audio_scale * (a1 - a0)

    def matching_loss(self, clean, text, keep):
        """Half the squared distance to what the two estimates say the clips should rather be."""
        with torch.no_grad():
            s = noise_levels(len(text)).clamp(0.02, 0.98)
            x = noised(*clean, s, keep)[:2]
            real = estimate(x, self.guided(x, text, s), s, keep)
            fake = estimate(x, velocity(self.fake, x, text), s, keep)
        loss, numbers = 0.0, {}
        weights = mouth_weight(clean[0]), torch.ones(())
        for name, x0, r, f, kept, weight in zip(("video", "audio"), clean, real, fake, (keep.video, keep.audio),
                                                weights, strict=True):  # fmt: skip
            free = (~kept).float().expand_as(x0)
            axes = tuple(range(1, x0.ndim))
            count = free.sum(axes, keepdim=True).clamp_min(1)
            size = ((x0 - r).abs() * free).sum(axes, keepdim=True) / count
            direction = (f - r) / size.clamp_min(1e-3) * free
            target = (x0 - direction).detach()
            heavy = free * weight
            loss = loss + 0.5 * ((x0 - target).square() * heavy).sum() / heavy.sum().clamp_min(1)
            numbers[f"{name} difference"] = (direction.abs().sum() / free.sum().clamp_min(1)).detach()
        return loss, numbers

    def fake_loss(self, made):
        """The base network's loss, on clips of the student."""
        s = noise_levels(len(made.ids))
        x_v, x_a, noise_v, noise_a = noised(made.video, made.audio, s, made.keep)
        found = velocity(self.fake, (x_v, x_a), self.text(made.ids))
        wanted = noise_v - made.video, noise_a - made.audio
        loss = sum(velocity_loss(found, wanted, made.keep, mouth_weight(made.video)))
        return loss, {"fake": loss.detach()}


def train(options):
    """Student and fake, each with an optimizer of its own."""
    teacher, encoder, base = load_base(options.run)
    for module in (teacher, encoder):
        module.requires_grad_(False)
    student, fake = (copy.deepcopy(teacher).train().requires_grad_(True) for _ in range(2))
    sources = sources_of(options, encoder.tokenizer, base)
    state = checkpoints.load(options.run / "distilled")
    distillation = Distillation(teacher, student, fake, encoder, sources[0].no_text[0], options, state)
    fit_network(options, "distilled", nn.ModuleList([student, fake]), distillation.loss, sources,
                sampler_of(options.run, sources[1], encoder, sample_renoise), CONFIG,
                factors=(1.0, FAKE_RATE), betas=(0.0, 0.97), extra=distillation.extra,
                origins={"text_encoder": weights_hash(encoder), "teacher": weights_hash(teacher)})  # fmt: skip


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, steps=4000, rate=1e-4, batch=8)
    parser.add_argument("--guidance", type=number, nargs=2, default=(2.5, 3.0), help="of the teacher: video, audio")
    parser.add_argument("--warm-up", type=whole(0), default=400, help="steps of the student alone")
    options = parser.parse_args()
    set_up(options)
    train(options)


if __name__ == "__main__":
    main()
