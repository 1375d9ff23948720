"""The one seam through which layers with weights are made, and through which their weights come in.

`torch.nn` is the default. ComfyUI's `comfy.ops` namespaces fit as well: they cast, offload and patch weights, so
that fp8, partial offload and LoRA need nothing from the modules that are built of them.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from torch import Tensor, nn

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


@contextmanager
def weights_held(x: Tensor, *layers: nn.Module) -> Iterator[None]:
    """While it lasts these layers may be called on many pieces like x, and bring their weights in once.

    What a weight costs before it can be multiplied (a copy to the device, a cast, decoding, a patch) is paid by
    layers that have a method hold(x), a context manager too; others have their weights at hand.
    """
    with ExitStack() as stack:
        for layer in layers:
            hold = getattr(layer, "hold", None)
            if hold is not None:
                stack.enter_context(hold(x))
        yield
