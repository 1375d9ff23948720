"""Numbered checkpoints of a stage: the last good ones are kept, a bad one is never written.

    <run>/<stage>/step_0000500.pt
"""

import pickle

import torch

from magihuman_core.atomic import whole_file
from training.common import Stop

KEPT = 3
COMMANDS = {  # what makes each stage
    "video_vae": "training.train_video_vae",
    "audio_vae": "training.train_audio_vae",
    "text": "training.train_network text",
    "base": "training.train_network base",
    "distilled": "training.train_distilled",
    "driven": "training.train_driven",
    "super_resolution": "training.train_super_resolution train",
}


def checkpoints_in(folder):
    """Their paths, oldest first."""
    return sorted(folder.glob("step_*.pt"))


def all_finite(value):
    """Whether no tensor in nested dictionaries and lists holds infinity or what is not a number."""
    if torch.is_tensor(value):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        value = value.values()
    return all(map(all_finite, value)) if not isinstance(value, (str, bytes)) and hasattr(value, "__iter__") else True


def save(folder, state):
    """Write a state that holds "step", whole or not at all, and delete all but the last few of this folder."""
    step = state["step"]
    if not all_finite(state):
        raise Stop(f"Step {step} of {folder.name}: weights or optimizer are not finite; not saved. {advice(folder)}")
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / f"step_{step:07}.pt") as file:
        torch.save(state, file)
    for path in checkpoints_in(folder)[:-KEPT]:
        path.unlink()


def advice(folder):
    """What a run that failed has left."""
    kept = checkpoints_in(folder)
    return f"The last good checkpoint is {kept[-1]}." if kept else "There is no checkpoint yet."


def load(folder):
    """The newest state, or None where there is none. Tensors and plain values only; no code runs."""
    paths = checkpoints_in(folder)
    if not paths:
        return None
    try:
        return torch.load(paths[-1], map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise Stop(f"{paths[-1]} cannot be read ({error}): delete it to go on from the one before.") from error


def load_stage(run, stage):
    """The newest state of an earlier stage. Raises Stop where it has not been trained."""
    state = load(run / stage)
    if state is None:
        raise Stop(f"{run / stage} holds no checkpoint: run python -m {COMMANDS[stage]} --run {run} first.")
    return state


def load_further(run, stage, encoder):
    """The newest state of a decoder that was trained further, or None where there is none for this encoder.

    encoder: weights_hash of the encoder whose latents it is to decode.
    """
    state = load(run / stage)
    if state and state["config"]["encoder"] != encoder:
        print(f"{run / stage} was trained for another encoder and is not used.")
        return None
    return state
