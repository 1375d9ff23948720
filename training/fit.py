"""The loop of all stages: steps, a guard against what is not a number, checkpoints, log, curves and pictures.

A stage has a folder in its run:

    step_0000500.pt    the last three checkpoints
    log.jsonl          every 50 steps and at every checkpoint: losses, learning rate, gradient norm, seconds
    curves.png         the same as pictures (needs matplotlib)
    samples/           contact sheets, where the stage has pictures

Steps and a seed fix a run: one that was interrupted gives the same bits as one that was not.
"""

import copy
import json
import math
import signal
import time

import numpy as np
import torch

from training import checkpoints
from training.common import Stop, alone, duration, has_amx
from training.journal import Journal, Means, write_sheet

LOG_EVERY = 50
VALIDATION_BATCHES = 4
LATE = 1 << 30  # the first step's number in validation: beyond all warm-ups, so that held-out losses are of one kind
# In the configuration, but a run may go on with others.
RECORDED = ("steps", "rate", "seed", "threads", "torch", "bf16")


def fit(folder, modules, optimizer, loss, source, options, *, config, held_out=None, sample=None, extra=None,
        max_norm=1.0, decay=0.998):  # fmt: skip
    """Train until step `options.steps`, from the newest checkpoint where there is one. Returns the moving average.

    modules: what is trained and averaged. optimizer: see muon.Together. loss(source, step) -> (tensor, numbers for
    the log); step counts from 0, and from LATE on in validation. source: gives the data; all its randomness is in
    source.random, a numpy Generator, and in torch's own on the CPU: that of other devices is in no checkpoint.
    options: see common.add_options. config: plain values that must be the same when a run goes on.
    held_out: a source of clips that are not trained on, for validation. sample(average) -> rows of pictures, uint8
    [n, H, W, 3] each. extra: more for the checkpoint, which the stage reads by itself.
    Raises Stop where losses, gradients or weights are not finite, and where another process trains in this folder;
    saves and exits on SIGTERM and Ctrl-C.
    """
    with alone(folder):
        trainer = Trainer(folder, modules, optimizer, options, config, source, extra or {}, decay)
        if trainer.step < options.steps:
            trainer.run(loss, held_out, sample, max_norm)
        else:
            print(f"{folder.name}: step {trainer.step} of {options.steps} is done: raise --steps to train further.")
        return trainer.average.module


class Trainer:
    """The state of a run, and one step of it."""

    def __init__(self, folder, modules, optimizer, options, config, source, extra, decay):
        self.folder, self.modules, self.optimizer, self.source = folder, modules, optimizer, source
        self.options, self.extra = options, extra
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        self.average, self.step, self.seconds = Average(modules, decay), 0, 0.0
        config = {**config, "rate": options.rate, "batch": options.batch, "seed": options.seed, "steps": options.steps,
                  "threads": torch.get_num_threads(), "torch": torch.__version__, "bf16": has_amx()}
        self.config = json.loads(json.dumps(config))  # lists and tuples alike
        torch.manual_seed(options.seed)
        self.resume()
        self.journal = Journal(folder, self.step)
        self.since = time.monotonic()

    @property
    def rate(self):
        return self.options.rate * cosine_rate(self.step / self.options.steps)

    def resume(self):
        state = checkpoints.load(self.folder)
        if state is None:
            return
        with checkpoints.fitting(self.folder):
            if state["step"]:  # weights that training begins with may come from anywhere
                check_config(self.folder, state["config"], self.config)
            self.modules.load_state_dict(state["modules"])
            self.average.load_state_dict(state["average"])
            if state["optimizer"] is not None:  # weights of the demo come without
                self.optimizer.load_state_dict(state["optimizer"])
                if state["config"]["seed"] == self.config["seed"]:  # another one begins random numbers of its own
                    torch.set_rng_state(state["random"]["torch"])
                    self.source.random.bit_generator.state = state["random"]["source"]
            self.step, self.seconds = state["step"], state["seconds"]
        print(f"{self.folder.name}: goes on from step {self.step}", flush=True)

    def save(self):
        self.seconds, self.since = self.seconds + time.monotonic() - self.since, time.monotonic()
        checkpoints.save(self.folder, {
            "modules": self.modules.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds,
            "random": {"torch": torch.get_rng_state(), "source": self.source.random.bit_generator.state},
            "config": self.config, **self.extra,
        })  # fmt: skip

    def run(self, loss, held_out, sample, max_norm):
        """All steps until options.steps, --minutes or a signal. See `fit`."""
        options, started, first = self.options, time.monotonic(), self.step
        with Signals() as signals:
            while self.step < options.steps:
                self.train_step(loss, max_norm)
                late = options.minutes and time.monotonic() - started > options.minutes * 60
                last = bool(late or signals.caught or self.step == options.steps)
                if self.step % options.save_every == 0 or last:
                    held = None if signals.caught else self.validate(loss, held_out)
                    self.save()
                    if held is not None:
                        self.report(held, sample)
                elif self.step % LOG_EVERY == 0:
                    self.report()
                if last:
                    break
        used = duration(time.monotonic() - started)
        print(f"{self.folder.name}: saved at step {self.step} of {options.steps}, {self.step - first} steps in {used}")
        if signals.caught:
            print("Interrupted; the same command goes on from here.", flush=True)
            raise SystemExit(128 + signals.caught)
        if self.step < options.steps:
            print(f"Stopped after --minutes {options.minutes:g}; the same command goes on from here.")

    def train_step(self, loss, max_norm):
        value, numbers = loss(self.source, self.step)
        if not math.isfinite(value.item()):
            raise self.failure("the loss is")
        value.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, max_norm))
        if not math.isfinite(norm):
            raise self.failure("the gradients are")
        rate = self.rate
        self.optimizer.step(rate)
        self.average.update(self.modules)
        self.step += 1
        self.journal.add(**numbers, norm=norm, rate=rate)

    def failure(self, what):
        return Stop(f"Step {self.step + 1} of {self.folder.name}: {what} not finite; stopped, nothing saved. "
                    f"{checkpoints.advice(self.folder)}")  # fmt: skip

    def validate(self, loss, held_out):
        """Means over held-out clips. Raises Stop where one is not finite, before such weights are saved."""
        found = validate(loss, held_out)
        if bad := [name for name, value in found.items() if not math.isfinite(value)]:
            raise Stop(f"Step {self.step} of {self.folder.name}: held-out {', '.join(bad)} not finite; stopped, not "
                       f"saved. {checkpoints.advice(self.folder)}")  # fmt: skip
        return found

    def report(self, validation=None, sample=None):
        """Write the log; with validation also curves, and a contact sheet where the stage has pictures."""
        seconds = self.seconds + time.monotonic() - self.since
        self.journal.write(self.step, self.options.steps, seconds, validation or {})
        if validation is None:
            return
        self.journal.draw_curves()
        if sample:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                write_sheet(self.folder / "samples" / f"step_{self.step:07}.png", sample(self.average.module))


def validate(loss, held_out):
    """Means over a few batches of held-out clips, the same ones, noise and kind of loss every time."""
    means = Means()
    if held_out is not None:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(0)
            held_out.random = np.random.default_rng(0)
            for number in range(VALIDATION_BATCHES):
                means.add(loss(held_out, LATE + number)[1])
    return means.values()


def check_config(folder, before, now):
    """Stop where a run would go on under another configuration; say what else is different, or was not recorded."""
    changed = {key: f"{key} was {before[key]}, now {now[key]}" for key in sorted(before.keys() & now.keys())
               if before[key] != now[key]}  # fmt: skip
    for key in sorted(changed.keys() & set(RECORDED)):
        print(f"{folder.name}: {changed.pop(key)}")
    for key in sorted(now.keys() - before.keys()):  # a checkpoint of an older version
        print(f"{folder.name}: {key} was not recorded, now {now[key]}")
    if changed:
        raise Stop(f"{folder} was begun differently: {'; '.join(changed.values())}. Give the same, take another --run, "
                   "or delete the folder to begin anew.")  # fmt: skip


def cosine_rate(progress, warm_up=0.02, floor=0.02):
    """Factor on the learning rate: linear warm-up, then half a cosine down to `floor`. progress: 0..1."""
    if progress < warm_up:
        return (progress + 1e-3) / (warm_up + 1e-3)
    t = min(1.0, (progress - warm_up) / (1.0 - warm_up))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * t))


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


class Signals:
    """Notes SIGTERM and Ctrl-C instead of ending at once; a second Ctrl-C ends. caught: the signal's number or 0."""

    def __enter__(self):
        self.caught, self.before = 0, {}
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number, frame):
        self.caught = number
        print("Saving after this step ...", flush=True)
        signal.signal(signal.SIGINT, self.before[signal.SIGINT])

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)
