"""What of a clip is given and what is made. What is given stands in the input without noise, from the first step on.

The base network knows no other sign of a task: a clean first frame is a reference image, clean audio drives the
mouth, clean video asks for its sound. `USES` says how often it sees each.
"""

from dataclasses import dataclass

import torch

from training.canvas import View

USES = {
    "nothing": 0.20,
    "image": 0.12,  # clean first frame: reference image
    "audio": 0.08,  # all of the audio: driving sound
    "image and audio": 0.15,
    "video": 0.10,  # all of the video: video to sound
    "frames": 0.06,  # the last frame, or some, with or without the first
    "frames and audio": 0.04,
    "region": 0.11,  # all but a box, with the audio: dubbing
    "time": 0.07,  # both streams up to a moment, or but for a while: extending, retakes
    "time and audio": 0.07,  # the same with all of the audio: windows of live and driven clips
}
MOUTH_BOX = (0.25, 0.50, 0.75, 0.875)  # left, top, right, bottom in units of canvas.View
FACE_BOX = (0.125, 0.125, 0.875, 0.875)


@dataclass
class Keep:
    """Boolean masks, true where a latent is given. video: [n, 1, T, h, w]; audio: [n, 1, A].

    dubbed: [n, 1, 1, 1, 1], true for a clip of which all but a box is given.
    """

    video: torch.Tensor
    audio: torch.Tensor
    dubbed: torch.Tensor


def draw_keep(video, audio, uses=USES):
    """A use for each clip of a batch of latents [n, c, T, h, w] and [n, c, A], by torch's own random numbers."""
    keep = Keep(torch.zeros(len(video), 1, *video.shape[2:], dtype=torch.bool),
                torch.zeros(len(audio), 1, audio.shape[2], dtype=torch.bool),
                torch.zeros(len(video), 1, 1, 1, 1, dtype=torch.bool))  # fmt: skip
    names = list(uses)
    for i, place in enumerate(torch.multinomial(torch.tensor(list(uses.values())), len(video), replacement=True)):
        fill(names[place], keep.video[i, 0], keep.audio[i, 0])
        keep.dubbed[i] = names[place] == "region"
    return keep


def fill(use, video, audio):
    """Mark in masks of one clip, [T, h, w] and [A], what is given in this use."""
    driven = use in ("audio", "region") or use.endswith(" and audio")
    use = use.removesuffix(" and audio")
    if use == "image":
        video[0] = True
    elif use == "video":
        video[:] = True
        video[0] = not chance(0.1)  # not even the first frame decides whether there is a video
    elif use == "frames":
        video[0] = chance(0.6)
        video[-1] = chance(0.6)
        video[torch.randint(len(video), (int(torch.randint(3, ())),))] = True
    elif use == "region":
        video[:] = True
        rows, columns = some_box(video.shape[1:])
        video[int(chance(0.5)) :, rows, columns] = False
    elif use == "time":
        first = int(torch.randint(1, max(2, len(video) - 1), ()))
        last = len(video) if chance(0.6) else int(torch.randint(first + 1, len(video) + 1, ()))
        video[:], audio[:] = True, True
        video[first:last] = False
        audio[4 * first - 3 : len(audio) if last == len(video) else 4 * last - 3] = False
    if driven:
        audio[:] = True


def dubbed(video, other, keep):
    """Latents whose given surroundings are those of another take of the scene, where a box is made anew.

    Around its own mouth a clip shows how that moves: the head nods, and an encoder sees beyond its pixel. A network
    that learnt from this alone would follow the old words where a clip gets new ones.
    """
    return torch.where(keep.video & keep.dubbed, other, video)


def some_box(size):
    """Rows and columns of the mouth, the face or any box, of an image of (h, w) latent pixels."""
    view = View(*size)
    if chance(0.75):
        return view.box(*(MOUTH_BOX if chance(0.6) else FACE_BOX))
    spans = []
    for side in size:
        length = int(torch.randint(2, side + 1, ()))
        start = int(torch.randint(side - length + 1, ()))
        spans.append(slice(start, start + length))
    return spans


def chance(share):
    return bool(torch.rand(()) < share)


def noised(video, audio, s, keep):
    """(noisy video, noisy audio, both noises) at levels s [n, 1, 1, 1, 1]; what is given stays as it is.

    Noise is drawn on the CPU whatever the device: that generator's state is in checkpoints (see fit.py).
    """
    noise_v, noise_a = (torch.randn(x.shape, dtype=x.dtype).to(x.device) for x in (video, audio))
    x_v, x_a = torch.lerp(video, noise_v, s), torch.lerp(audio, noise_a, s[:, :, :, 0, 0])
    return torch.where(keep.video, video, x_v), torch.where(keep.audio, audio, x_a), noise_v, noise_a


def velocity_loss(found, wanted, keep, weight):
    """Mean squared errors (video, audio) over what is made; weight: of latent pixels, see mouth_weight."""
    losses = []
    for a, b, kept, heavier in zip(found, wanted, (keep.video, keep.audio), (weight, torch.ones(())), strict=True):
        heavy = (~kept) * heavier
        losses.append(((a - b).square() * heavy).sum() / (heavy.sum() * a.shape[1]).clamp_min(1))
    return losses


def mouth_weight(video, weight=4.0):
    """Weights [1, 1, 1, h, w] of latent pixels, heavier where the mouth is."""
    weights = torch.ones(1, 1, 1, *video.shape[3:])
    rows, columns = View(*video.shape[3:]).box(*MOUTH_BOX)
    weights[..., rows, columns] = weight
    return weights
