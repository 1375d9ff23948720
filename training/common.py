"""What all training scripts share: threads, checkpoints, learning rate, moving averages, progress lines."""

import copy
import math
import time
from pathlib import Path

import torch

from magihuman_core import DiTConfig

RUNS = Path(__file__).parent / "runs"
TRAIN_SEEDS = 100_000  # first seed of the training clips; everything below is held out for evaluation


def set_up(threads):
    """Use so many processor threads; denormals only cost time."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def autocast():
    """Autocast to bf16 where the processor computes it in hardware; elsewhere it is tens of times slower."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


def save_atomically(state, path):
    """torch.save that leaves either the old file or the new one, never half of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def load_checkpoint(path):
    """The saved state, or None where there is none yet. Tensors, plain values and a DiTConfig; no code runs."""
    path = Path(path)
    if not path.exists():
        return None
    with torch.serialization.safe_globals([DiTConfig]):
        return torch.load(path, map_location="cpu", weights_only=True)


def resume(path, modules, average, optimizer):
    """Take up a checkpoint that `checkpoint` made: (state or None, steps, minutes) so far."""
    state = load_checkpoint(path)
    if state is None:
        return None, 0, 0.0
    modules.load_state_dict(state["modules"])
    average.load_state_dict(state["average"])
    # Weights of the demo come without; weights under older names would have theirs in another order.
    if state["optimizer"] is not None and state["modules"].keys() == modules.state_dict().keys():
        optimizer.load_state_dict(state["optimizer"])
    return state, state["step"], state["spent"]


def checkpoint(path, modules, average, optimizer, step, spent, **more):
    """Save what `resume` takes up."""
    save_atomically({"modules": modules.state_dict(), "average": average.state_dict(),
                     "optimizer": optimizer.state_dict(), "step": step, "spent": spent, **more}, path)


def cosine_rate(progress, warm_up=0.02, floor=0.02):
    """Factor on the learning rate: linear warm-up, then half a cosine down to `floor`. progress: 0..1."""
    if progress < warm_up:
        return (progress + 1e-3) / (warm_up + 1e-3)
    t = min(1.0, (progress - warm_up) / (1.0 - warm_up))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * t))


class Clock:
    """Progress in time, not in steps: the runs are cut to fit a number of minutes on any machine."""

    def __init__(self, minutes, spent=0.0):
        self.minutes, self.spent, self.started = minutes, spent, time.monotonic()

    @property
    def used(self):
        """Minutes of training so far, earlier runs included."""
        return self.spent + (time.monotonic() - self.started) / 60

    @property
    def progress(self):
        return self.used / self.minutes


class Average:
    """Exponential moving average of a module's weights, with a start that forgets quickly."""

    def __init__(self, module, decay=0.999):
        self.decay, self.steps = decay, 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module):
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        mine, new = list(self.module.parameters()), [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(mine, new, 1 - decay)

    def state_dict(self):
        return {"steps": self.steps, "module": self.module.state_dict()}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        self.module.load_state_dict(state["module"])


class Run:
    """One training run: takes up its checkpoint, moves the average along, counts, reports and saves.

    more: a function that gives what else the checkpoint keeps (in `state` when it is taken up; None at first).
    """

    def __init__(self, path, modules, optimizer, options, decay=0.998, more=dict):
        self.path, self.modules, self.optimizer, self.more = path, modules, optimizer, more
        self.average, self.meter, self.top_rate = Average(modules, decay), Meter(), options.rate
        self.state, self.step, spent = resume(path, modules, self.average, optimizer)
        self.clock = Clock(options.minutes, spent)

    @property
    def unfinished(self):
        return self.clock.progress < 1

    @property
    def rate(self):
        """The learning rate for now."""
        return self.top_rate * cosine_rate(self.clock.progress)

    def count(self, every, **numbers):
        """A step is done: say so now and then. Whether it is time to save, which is so every `every` steps."""
        self.average.update(self.modules)
        self.step += 1
        self.meter.add(**numbers)
        if self.step % 50 == 0:
            print(f"step {self.step}  {self.clock.used:.1f} min  {self.meter.line()}", flush=True)
        return self.step % every == 0

    def save(self):
        checkpoint(self.path, self.modules, self.average, self.optimizer, self.step, self.clock.used, **self.more())


class Meter:
    """Means of named numbers between two progress lines."""

    def __init__(self):
        self.sums, self.count, self.last = {}, 0, time.monotonic()

    def add(self, **values):
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def line(self):
        """The means and seconds per step since the last call, as text."""
        now = time.monotonic()
        parts = [f"{name} {value / self.count:.4f}" for name, value in self.sums.items()]
        text = "  ".join([*parts, f"{(now - self.last) / max(1, self.count):.2f} s/step"])
        self.sums, self.count, self.last = {}, 0, now
        return text
