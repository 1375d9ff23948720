"""A linear latent to start from: principal components of 4 x 16 x 16 blocks of pixels.

Autoencoders whose layers all normalize take long to find a first common language. Here the encoder is told one,
the decoder hears it from the first step, and both then improve on it together. It also gives the latent an order
(large, slow structure in the first components) that a small diffusion network learns quickly.
"""

import torch

CHANNELS = 48


def blocks(video):
    """Frames [B, 3, 1 + 4n, h, w] -> [B, 1 + n, h/16, w/16, 3072]; the first frame stands for four."""
    video = torch.cat([video[:, :, :1].expand(-1, -1, 3, -1, -1), video], dim=2)
    x = video.unflatten(2, (-1, 4)).unflatten(-2, (-1, 16)).unflatten(-1, (-1, 16))  # [B, 3, T, 4, H, 16, W, 16]
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def principal_components(videos, weights):
    """(mean [3072], matrix [3072, 48]) of many clips; weights [n of blocks] say how often a block counts.

    Components are scaled to the square root of their share, so that fine ones are not lost in noise, and the
    latent as a whole to variance 1.
    """
    x = videos.double()
    share = weights.double() / weights.sum()
    mean = (share[:, None] * x).sum(0)
    x = x - mean
    values, vectors = torch.linalg.eigh((x * share[:, None]).T @ x)
    values, vectors = values.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
    wanted = values.sqrt() / values.sqrt().mean()  # variances of the latent's channels
    return mean.float(), (vectors * (wanted / values).sqrt()).float()


class Projection:
    """The fitted projection: frames [B, 3, F, h, w] in [-1, 1] -> latent [B, 48, T, h/16, w/16]."""

    def __init__(self, mean, matrix):
        self.mean, self.matrix = mean, matrix

    def __call__(self, video):
        return ((blocks(video) - self.mean) @ self.matrix).permute(0, 4, 1, 2, 3)
