"""Times that others published for this model, for 5 seconds of video at 448x256, 896x512 and 1920x1088.

Both fuse the whole network by a compiler of their own; the H100 also has kernels that are not in PyTorch.
"""

from magihuman_core.recipes import DISTILLED, SR_540P, SR_1080P

# Seconds of one step.
STEPS = {
    "H100 80GB HBM3": {DISTILLED.role: 1.6 / 8, SR_540P.role: 5.1 / 5, SR_1080P.role: 31.0 / 5},
    "RTX 5090": {DISTILLED.role: 0.56, SR_540P.role: 2.62, SR_1080P.role: 19.38},
}
# The same of a step that several RTX 5090 share, by their number.
SHARED_STEPS = {
    2: {DISTILLED.role: 0.47, SR_540P.role: 1.70, SR_1080P.role: 10.13},
    4: {DISTILLED.role: 0.45, SR_540P.role: 1.14, SR_1080P.role: 5.17},
}
# Seconds of decoding, with what lies between the decoder and the file.
DECODING = {"H100 80GB HBM3": {DISTILLED.role: 0.4, SR_540P.role: 1.3, SR_1080P.role: 5.8}}
SOURCES = ("H100: README of GAIR-NLP/daVinci-MagiHuman (distilled, 8 steps; super-resolution, 5 steps)",
           "RTX 5090: README of SandAI-org/MagiCompiler")


def beside(figures: dict[str, dict[str, float]], role: str) -> str:
    """The published figures for a role, in words."""
    found = [f"{card} {times[role]:.2f} s" for card, times in figures.items() if role in times]
    return f"published: {', '.join(found)}" if found else ""
