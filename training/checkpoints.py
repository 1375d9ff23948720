"""Numbered checkpoints of a stage: the last good ones are kept, a bad one is never written.

    <run>/<stage>/step_0000500.pt
"""

from contextlib import contextmanager

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
    if not kept:
        return "There is no checkpoint yet: begin with a lower --rate or another --seed."
    return (f"The last good checkpoint is {kept[-1]}. The same command would come to the same step: go on from there "
            "with a lower --rate or another --seed.")  # fmt: skip


def load(folder):
    """The newest state, or None where there is none. Tensors and plain values only; no code runs."""
    paths = checkpoints_in(folder)
    if not paths:
        return None
    remedy = "delete it to go on from the one before"
    try:
        state = torch.load(paths[-1], map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever damaged bytes make of themselves
        reason = " ".join(str(error).split())[:200]
        raise Stop(f"{paths[-1]} cannot be read ({type(error).__name__}: {reason}): {remedy}.") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise Stop(f"{paths[-1]} is no checkpoint of a stage: {remedy}.")
    return state


@contextmanager
def fitting(folder):
    """What the block makes of a checkpoint's content has to fit. Raises Stop, which names the newest of the folder."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Stop(f"{checkpoints_in(folder)[-1]} does not belong to this stage, or to another version of it "
                   f"({type(error).__name__}: {reason}): delete it, or its folder to begin anew.") from error


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
    with fitting(run / stage):
        if state and state["config"]["encoder"] != encoder:
            print(f"{run / stage} was trained for another encoder and is not used.")
            return None
    return state


def check_origins(folder, config, now):
    """Raises Stop where the stage in a folder was trained with others of these than they are now.

    config: what the stage recorded. now: {"latents", "text_encoder", ...: hashes}, see train_network.fit_network. What
    older versions did not record is said, and taken as it is.
    """
    for name, value in now.items():
        if name not in config:
            print(f"{folder.name}: which {name.replace('_', ' ')} it was trained with is not recorded")
        elif config[name] != value:
            raise Stop(f"{folder} was trained with {name.replace('_', ' ')} {config[name]}, the run's is now {value}: "
                       "delete its folder and train it again.")  # fmt: skip

