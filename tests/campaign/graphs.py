"""Random graphs through a real ComfyUI server, one for all of them, and what becomes of each."""

import contextlib
import functools
import hashlib
import json
import random
import re
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.comfyui.base import fill_base, make_base
from tests.comfyui.graphs import MODELS, node
from tests.comfyui.server import PromptError, Server, find_comfyui, find_python

from .draw_graph import Drawing
from .judge import HANGS, Case, Verdict, anonymous_memory, read_whole
from .workshop import Workshop

OURS = re.compile(r'File "[^"]*custom_nodes[/\\]magihuman[/\\]')
FILE = re.compile(r'File "([^"]+)", line')
ERRORS = ("InputError", "CheckpointError")
UNHANDLED = re.compile(r"Error handling request|Exception in thread|Task exception was never|Fatal Python error"
                       r"|Segmentation fault")
# What the server says of a whole prompt, and not of an input.
WHOLE_PROMPT = {"prompt_no_outputs", "missing_node_type"}
SPACE = 14 * 2**30  # of addresses, so that an absurd size is refused by the system and not felt by it
WAYS = ["interrupt", "interrupt", "interrupt this", "delete"]


class KnownServer:
    """A server that works, and a graph whose result is known."""

    def __init__(self, folder: Path) -> None:
        self.base = fill_base(make_base(folder / "comfyui"))
        _odd_media(self.base / "input")
        comfyui = find_comfyui()
        if comfyui is None:
            raise RuntimeError("NO COMFYUI FOUND")
        self.count = 0
        self.start = functools.partial(Server, find_python(comfyui), comfyui, self.base)
        self.server = self.start()
        try:
            self.begin()
            self.info = self.server.get("/object_info")
            self.wanted = self.plain()
        except BaseException:
            self.server.stop()
            raise

    def begin(self) -> None:
        """Wait for the server, and bound what it may take."""
        self.server.wait()
        if hasattr(resource, "prlimit"):
            resource.prlimit(self.server.process.pid, resource.RLIMIT_AS, (SPACE, SPACE))

    def again(self) -> None:
        """A new server, where the old one has ended or hangs."""
        self.server.stop()
        self.server = self.start()
        self.begin()

    def plain(self) -> str:
        """Of a graph that is sound, the latents, as a hash. It may be remembered by the server, but for the end."""
        self.count += 1
        graph = {
            "model": node("MagiHumanModelLoader", model=MODELS["distilled"], role="auto", weight_dtype="default"),
            "encoder": node("MagiHumanTextEncoderLoader", text_encoder="t5gemma-9b-9b-ul2/",
                            tokenizer="beside the weights", weight_dtype="default"),
            "text": node("MagiHumanTextEncode", clip=["encoder", 0], prompt="Hello there.", negative=""),
            "empty": node("EmptyMagiHumanLatent", width=64, height=64, seconds=0.2),
            "sample": node("MagiHumanSampler", model=["model", 0], positive=["text", 0], latent_image=["empty", 0],
                           seed=5, mode="auto", steps=1, sr_noise_level=220),
            "parts": node("LTXVSeparateAVLatent", av_latent=["sample", 0]),
            "save": node("SaveLatent", samples=["parts", 0], filename_prefix=f"plain/{self.count}"),
        }
        self.server.run(graph)
        (path,) = (self.base / "output/plain").iterdir()
        content = path.read_bytes()
        path.unlink()
        return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little"):]).hexdigest()


def _odd_media(folder: Path) -> None:
    """Beside those of all tests: pictures of one pixel and of three columns, half transparent; sound that is short."""
    import numpy as np
    import soundfile
    from PIL import Image

    for name, size in (("narrow.png", (3, 200)), ("point.png", (1, 1))):
        Image.new("RGBA", size, (200, 0, 0, 120)).save(folder / name)
    for name, rate, shape in (("mono.wav", 8000, 240), ("stereo.wav", 48000, (9600, 2)), ("none.wav", 44100, 0)):
        soundfile.write(folder / name, np.zeros(shape), rate)


@dataclass
class GraphCase(Case):
    """A graph for a server, judged by its answer. cancel: (way, seconds after which) or None."""

    known: Any = None
    graph: Any = None
    cancel: tuple[str, float] | None = None

    def judged(self) -> Verdict:
        """What became of it, and whether all is as before."""
        known, server = self.known, self.known.server
        before, written = _files(known.base, "input", "models"), _files(known.base, "output")
        seen = len(server.log)
        process = server.process.pid
        seconds, memory = _seconds(process), anonymous_memory(process)
        try:
            verdict, most = self._answer(server)
        except OSError as error:
            verdict, most = Verdict("fault", str(error), 0, 0, "the server does not answer"), 0
        verdict.struck = verdict.kind == "stopped"
        verdict.seconds, verdict.memory = _seconds(process) - seconds, max(0, most - memory)
        why = verdict.why or self._left(before, written, server.log[seen:])
        if server.process.poll() is not None:
            why = f"the server ended, {server.process.returncode}: {server.log[-1500:]}"
            known.again()
        elif broken := self._works(known):
            why = why or broken
            known.again()
        if why:
            verdict.kind, verdict.why = "fault", why
        return verdict

    def _answer(self, server: Server) -> tuple[Verdict, int]:
        """(the verdict, the most memory that the server held)."""
        most, begin, cancelled, late = 0, time.monotonic(), False, False
        try:
            prompt = server.post("/prompt", {"prompt": self.graph})["prompt_id"]
        except PromptError as error:
            return _refused(str(error)), 0
        while True:
            history = server.get(f"/history/{prompt}")
            most, spent = max(most, anonymous_memory(server.process.pid)), time.monotonic() - begin
            if prompt in history:
                return _ended(history[prompt]["status"]["messages"][-1]), most
            if self.cancel is not None and not cancelled and spent > self.cancel[1]:
                cancelled = True
                way = self.cancel[0]
                server.post("/queue" if way == "delete" else "/interrupt",
                            {"delete": [prompt]} if way == "delete" else {"prompt_id": prompt} if "this" in way else {})
            if spent > HANGS and not late:  # what honestly takes long can be stopped
                late = True
                server.post("/interrupt")
            if spent > 1.5 * HANGS:
                why = f"cannot be stopped after {HANGS:g} s"
                return Verdict("fault", json.dumps(self.graph), spent, most, why), most
            time.sleep(0.02)

    @staticmethod
    def _works(known: KnownServer) -> str:
        """What is wrong with a sound graph afterwards."""
        try:
            return "" if known.plain() == known.wanted else "a sound graph gives another result afterwards"
        except Exception as error:
            return f"a sound graph does not run afterwards: {error}"

    def _left(self, before: dict, written: dict, log: str) -> str:
        """What is wrong with the files, or with the server's log; empty if nothing is."""
        after = _files(self.known.base, "input", "models")
        if changed := sorted(str(path) for path in before.keys() | after.keys()
                             if before.get(path) != after.get(path)):
            return f"changed: {changed[0]}"
        if found := UNHANDLED.search(log):
            return f"not handled: {log[max(0, found.start() - 200):][:3000]}"
        for path in sorted(_files(self.known.base, "output").keys() - written.keys()):
            if path.suffix == ".part":
                return f"left behind: {path.name}"
            try:
                read_whole(path)
            except Exception as error:
                return f"{path.name} is not whole: {error}"
            path.unlink()
        return ""


def _refused(answer: str) -> Verdict:
    """Of a prompt that the server does not take."""
    verdict = Verdict("refused", answer, 0, 0)
    try:
        told = json.loads(answer)
    except ValueError:
        verdict.why = "the server's own error, in place of an answer"
        return verdict
    errors = [error for entry in told["node_errors"].values() for error in entry["errors"]]
    verdict.said = told["error"]["message"] + "".join(f"; {error['message']}: {error['details']}" for error in errors)
    traces = "".join(line for error in errors for line in error["extra_info"].get("traceback", []))
    if OURS.search(traces):
        verdict.why = "an exception of ours while the prompt is checked"
    elif not errors and told["error"]["type"] not in WHOLE_PROMPT:
        verdict.why = "no input is named"
    return verdict


def _ended(message: list) -> Verdict:
    """Of a prompt that ran."""
    kind, data = message
    if kind == "execution_success":
        return Verdict("done", kind, 0, 0)
    if kind == "execution_interrupted":
        return Verdict("stopped", kind, 0, 0)
    said = data["exception_message"].strip()
    name = data["exception_type"].rpartition(".")[2]
    verdict = Verdict("refused", f"{data['node_type']}: {name}: {said}", 0, 0)
    trace = data["traceback"]
    if name in ERRORS:
        if len(said) < 16 or "\n" in said:
            verdict.why = "no clear sentence"
    elif is_core(trace, data["node_type"]):
        verdict.kind = "core"
    else:
        verdict.why = f"{data['exception_type']}, not a sentence of ours"
        verdict.said += "\n" + "".join(trace[-6:])
    return verdict


def is_core(trace: list[str], node_type: str) -> bool:
    """Whether an error is core's own: no code of ours took part, or a node of core's patched its code into ours.

    trace: of the frames, from the outermost to the innermost.
    """
    ours = [bool(OURS.search(line)) for line in trace]
    if not any(ours):
        return "MagiHuman" not in node_type
    behind = trace[len(ours) - ours[::-1].index(True):]
    return any("comfy_extras" in line for line in behind)


def _files(base: Path, *folders: str) -> dict[Path, tuple]:
    found = {}
    for folder in folders:
        for path in sorted((base / folder).rglob("*")):
            with contextlib.suppress(OSError):
                status = path.stat()
                if path.is_file():
                    found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _seconds(process: int) -> float:
    """Of the processor that a process has spent; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100
    return 0.0


def graphs(workshop: Workshop, chance: random.Random) -> Case:
    """A random graph of our nodes and core's through a real ComfyUI server, with a cancel or not"""
    known = workshop.comfyui
    graph = Drawing(known.info, chance).draw()
    cancel = (chance.choice(WAYS), chance.uniform(0, 3)) if chance.random() < 0.15 else None
    kinds = " ".join(entry["class_type"] for entry in graph.values())
    return GraphCase(run=lambda: 0, folder=workshop.case_folder(), words=f"{kinds}, cancel {cancel}", known=known,
                     graph=graph, cancel=cancel)


KINDS = {"graphs": graphs} if find_comfyui() else {}
