"""The one seam through which layers with weights are made.

`torch.nn` is the default. ComfyUI's `comfy.ops` namespaces fit as well: they cast, offload and patch weights, so
that fp8, partial offload and LoRA need nothing from the modules that are built of them.
"""

from collections.abc import Callable
from typing import Protocol

from torch import nn

Layer = Callable[..., nn.Module]  # called like the layer of torch.nn that has its name


class Operations(Protocol):
    """A namespace of layer constructors. A module asks only for those it needs."""

    @property
    def Linear(self) -> Layer: ...  # noqa: N802 - torch.nn's own names
    @property
    def Embedding(self) -> Layer: ...  # noqa: N802
    @property
    def Conv1d(self) -> Layer: ...  # noqa: N802
    @property
    def ConvTranspose1d(self) -> Layer: ...  # noqa: N802
    @property
    def Conv2d(self) -> Layer: ...  # noqa: N802
    @property
    def Conv3d(self) -> Layer: ...  # noqa: N802
