"""What other nodes set for guidance, held to what it is to give."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ...magihuman_core.errors import InputError

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
else:
    ModelPatcher = object  # CheckedGuidance is mixed into whichever of ComfyUI's patchers there is


class CheckedGuidance(ModelPatcher):
    """A patcher whose function for guidance, where a node sets one, gives the shape that it got or says why not.

    A node that wants to see a U-Net's self-attention, to guide by it, is told that there is none.
    """

    def set_model_sampler_cfg_function(self, *args, **kwargs):
        super().set_model_sampler_cfg_function(*args, **kwargs)
        self.model_options["sampler_cfg_function"] = of_one_shape(self.model_options["sampler_cfg_function"])

    def set_model_attn1_replace(self, patch, block_name, number, transformer_index=None):
        raise InputError(f"A node replaces self-attention in the model's {block_name} block {number}, as U-Nets such "
                         "as Stable Diffusion's have one, but MagiHuman's network is a transformer. Take off the node: "
                         "Self-Attention Guidance and the like are not for it.")


def of_one_shape(guide: Callable[[dict], Tensor]) -> Callable[[dict], Tensor]:
    """The same function, which raises InputError where it was made for latents of another form."""

    @functools.wraps(guide)
    def checked(args: dict) -> Tensor:
        result, wanted = guide(args), args["cond"]
        if result.shape != wanted.shape:
            raise InputError(f"A node sets how guidance is computed, and makes {list(result.shape)} of "
                             f"{list(wanted.shape)}: it is for models that hold frames in another way, such as Stable "
                             "Video Diffusion. Take off that node (VideoLinearCFGGuidance and the like).")
        return result

    return checked
