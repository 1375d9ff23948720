"""A ComfyUI server as a child process, and a client for its HTTP API."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FLAGS = ("--cpu", "--listen", "127.0.0.1", "--disable-api-nodes", "--dont-print-server", "--disable-auto-launch",
         "--database-url", "sqlite:///:memory:", "--preview-method", "auto")


def find_comfyui() -> Path | None:
    """The folder of a ComfyUI checkout, or None."""
    given = os.environ.get("COMFYUI_PATH")
    places = [Path(given)] if given else [REPOSITORY.parents[1], Path.home() / "comfy" / "ComfyUI"]
    return next((place for place in places if (place / "main.py").is_file() and (place / "comfy").is_dir()), None)


def find_python(comfyui: Path) -> str:
    """The Python that runs it."""
    given = os.environ.get("COMFYUI_PYTHON")
    if given:
        return given
    folders = [comfyui / "venv", comfyui / ".venv", comfyui.parent / "venv", comfyui.parent / ".venv"]
    programs = [folder / sub for folder in folders for sub in ("bin/python", "Scripts/python.exe")]
    return str(next((program for program in programs if program.is_file()), sys.executable))


def front_end_flags() -> tuple[str, ...]:
    """The page of this environment's comfyui-frontend-package; without it ComfyUI serves what its own brings."""
    found = importlib.util.find_spec("comfyui_frontend_package")
    return ("--front-end-root", str(Path(found.origin).with_name("static"))) if found else ()


class PromptError(Exception):
    """The server did not take a prompt; the text is what it said."""


class ExecutionError(Exception):
    """A node raised; `message` is what the user reads."""

    def __init__(self, data: dict):
        self.node, self.message = data.get("node_type"), data.get("exception_message", "").strip()
        super().__init__(f"{self.node}: {self.message}\n{''.join(data.get('traceback', []))}")


class Server:
    """One running ComfyUI; `with` waits until it answers, and ends it."""

    def __init__(self, python: str, comfyui: Path, base: Path, *flags: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.base = base
        self.log_path = base / f"server-{self.port}.log"
        self.log_file = self.log_path.open("w", encoding="utf-8")
        command = [python, "main.py", *FLAGS, "--port", str(self.port), "--base-directory", str(base), *flags]
        self.process = subprocess.Popen(command, cwd=comfyui, stdout=self.log_file, stderr=subprocess.STDOUT)

    def __enter__(self) -> "Server":
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait(self, seconds: float = 120) -> None:
        """Until it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, f"ComfyUI ended:\n{self.log[-6000:]}"
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.3)
        raise AssertionError(f"ComfyUI did not answer in {seconds} s:\n{self.log[-6000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log_file.close()

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: dict | None = None):
        request = urllib.request.Request(self.url + path, json.dumps(body or {}).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                data = answer.read()
        except urllib.error.HTTPError as error:
            raise PromptError(error.read().decode()) from None
        return json.loads(data) if data else None

    def run(self, graph: dict, cancel_when: str | None = None) -> "Result":
        """Run an API-format graph to its end. Raises PromptError and ExecutionError.

        cancel_when: a pattern; once the log has it, such as a progress bar's count, the run is cancelled.
        """
        seen = len(self.log)
        prompt = self.post("/prompt", {"prompt": graph})["prompt_id"]
        end = time.monotonic() + 280
        while prompt not in (history := self.get(f"/history/{prompt}")):
            assert time.monotonic() < end, f"the run did not end:\n{self.log[-6000:]}"
            if cancel_when and re.search(cancel_when, self.log[seen:]):
                self.post("/interrupt")
            time.sleep(0.05)
        kind, data = history[prompt]["status"]["messages"][-1]
        if kind == "execution_error":
            raise ExecutionError(data)
        return Result(self, kind, history[prompt]["outputs"])


class Result:
    """What a run gave."""

    def __init__(self, server: Server, end: str, outputs: dict):
        self.server, self.end, self.outputs = server, end, outputs

    def files(self, node: str) -> list[Path]:
        """Paths of the files that a node saved."""
        return [self.server.base / entry["type"] / entry["subfolder"] / entry["filename"]
                for entries in self.outputs[node].values() if isinstance(entries, list)
                for entry in entries if isinstance(entry, dict) and "filename" in entry]
