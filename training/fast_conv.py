"""A Conv3d that CPUs compute faster: time folded into the channels of a 2-d convolution.

Handed to the video autoencoders through their `operations` seam; parameters, keys and results are those of
torch.nn.Conv3d.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


class Conv3d(nn.Conv3d):
    """The same layer; for kernels (k, n, n) with strides in time only along with time kernels."""

    def forward(self, x):
        k = self.kernel_size[0]
        if self.groups != 1:
            return super().forward(x)
        B, T = x.shape[0], x.shape[2]
        step = self.stride[0]
        frames = x.transpose(1, 2)  # [B, T, C, H, W]
        count = (T - k) // step + 1
        if k > 1:
            shifts = [frames[:, i : i + (count - 1) * step + 1 : step] for i in range(k)]
            frames = torch.cat(shifts, dim=2)  # [B, count, k*C, H, W]
        weight = self.weight.transpose(1, 2).flatten(1, 2)  # [O, k*C, n, n]
        y = F.conv2d(
            frames.flatten(0, 1).contiguous(memory_format=torch.channels_last),
            weight.contiguous(memory_format=torch.channels_last),
            self.bias,
            self.stride[1:],
            self.padding[1:],
        )
        return y.unflatten(0, (B, count)).transpose(1, 2)


operations = SimpleNamespace(**{**vars(nn), "Conv3d": Conv3d})
