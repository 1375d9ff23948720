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
    """A patcher whose function for guidance, where a node sets one, gives the shape that it got or says why not."""

    def set_model_sampler_cfg_function(self, *args, **kwargs):
        super().set_model_sampler_cfg_function(*args, **kwargs)
        self.model_options["sampler_cfg_function"] = of_one_shape(self.model_options["sampler_cfg_function"])


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
