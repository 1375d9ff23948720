"""VAEs under diffusers' names -> the original names that our modules have.

Both sides number the same modules; only the words differ, and where diffusers' lists end, so the number of
residual blocks in a stage has to be counted.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint, renamed
from ..checkpoint.lazy_tensor import LazyTensor, Reshaped
from ..errors import CheckpointError

# A key that only the VAE under diffusers' names has.
MARKS = {"video_vae": "encoder.down_blocks.0.resnets.0.norm1.gamma", "audio_vae": "decoder.block.0.snake1.alpha"}
RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
            "conv_shortcut": "shortcut"}
VIDEO_ENDS = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
VIDEO_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
VIDEO = re.compile(
    r"(?P<side>encoder|decoder)\.(?:(?P<end>conv_in|norm_out|conv_out)"
    r"|mid_block\.(?P<middle>resnets\.[01]|attentions\.0)"
    r"|(?P<way>down|up)_blocks\.(?P<stage>\d+)\.(?:resnets\.(?P<block>\d+)|(?:down|up)sampler))\.(?P<rest>.+)"
)
AUDIO = re.compile(
    r"(?P<side>encoder|decoder)\.(?:(?P<end>conv1|snake1|conv2)"
    r"|block\.(?P<block>\d+)\.(?:res_unit(?P<unit>[123])\.(?P<inner>snake1|conv1|snake2|conv2)"
    r"|(?P<own>snake1|conv1|conv_t1)))\.(?P<rest>.+)"
)
UNIT = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}


def original_names(checkpoint: Checkpoint, kind: str | None) -> Checkpoint:
    """A video or audio VAE under its original names; any other checkpoint as it is. Raises CheckpointError."""
    if kind not in MARKS or MARKS[kind] not in checkpoint:
        return checkpoint
    if kind == "video_vae":
        return renamed(checkpoint, lambda key: _video_name(key, checkpoint))
    opened = renamed(checkpoint, lambda key: _audio_name(key, checkpoint))
    # diffusers keeps alpha and beta of a snake as [1, C, 1].
    entries = {key: _flat(entry) if key.endswith((".alpha", ".beta")) else entry
               for key, entry in opened.entries.items()}
    return opened.with_entries(entries)


def _video_name(key: str, checkpoint: Checkpoint) -> str:
    for theirs, ours in (("quant_conv.", "conv1."), ("post_quant_conv.", "conv2.")):
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    match = VIDEO.fullmatch(key)
    if match is None:
        return key
    side, rest = match["side"], match["rest"]
    if match["end"]:
        return f"{side}.{VIDEO_ENDS[match['end']]}.{rest}"
    first, _, last = rest.partition(".")
    rest = f"{RESIDUAL.get(first, first)}.{last}"
    if match["middle"]:
        # The attention block has a norm too, under the same name on both sides.
        return f"{side}.middle.{VIDEO_MIDDLE[match['middle']]}.{rest}"
    stage, block = match["stage"], match["block"]
    if block is None:  # the sampler comes after the residual blocks
        prefix = f"{side}.{match['way']}_blocks.{stage}.resnets."
        block = 0
        while f"{prefix}{block}.conv1.weight" in checkpoint:
            block += 1
    return f"{side}.{match['way']}samples.{stage}.{match['way']}samples.{block}.{rest}"


def _audio_name(key: str, checkpoint: Mapping[str, Tensor]) -> str:
    match = AUDIO.fullmatch(key)
    if match is None:
        return key
    side, rest = match["side"], match["rest"]
    if match["end"]:
        blocks = 0
        while f"{side}.block.{blocks}.snake1.alpha" in checkpoint:
            blocks += 1
        place = {"conv1": 0, "snake1": blocks + 1, "conv2": blocks + 2}[match["end"]]
        return f"{side}.layers.{place}.{rest}"
    block = f"{side}.layers.{int(match['block']) + 1}.layers"
    if match["unit"]:
        unit = int(match["unit"]) - 1 + (2 if side == "decoder" else 0)
        return f"{block}.{unit}.layers.{UNIT[match['inner']]}.{rest}"
    places = {"snake1": 3, "conv1": 4} if side == "encoder" else {"snake1": 0, "conv_t1": 1}
    if match["own"] not in places:
        raise CheckpointError(f"{getattr(checkpoint, 'name', key)}: {key} has no place in an audio VAE. "
                              "Choose another file.")
    return f"{block}.{places[match['own']]}.{rest}"


def _flat(entry: LazyTensor) -> LazyTensor:
    channels_only = len(entry.shape) == 3 and entry.shape[0] == entry.shape[2] == 1
    return Reshaped(entry, entry.shape[1:2]) if channels_only else entry
