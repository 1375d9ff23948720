"""A ComfyUI server as a child process, and a client for its HTTP and websocket API."""

import base64
import importlib.util
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FLAGS = ("--cpu", "--listen", "127.0.0.1", "--disable-api-nodes", "--dont-print-server", "--disable-auto-launch",
         "--database-url", "sqlite:///:memory:", "--preview-method", "auto")
FINAL = ("execution_success", "execution_error", "execution_interrupted")


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
    """The server did not take a prompt; `answer` is what it said."""

    def __init__(self, answer: dict):
        super().__init__(json.dumps(answer)[:2000])
        self.answer = answer


class ExecutionError(Exception):
    """A node raised; `message` is what the user reads."""

    def __init__(self, data: dict):
        self.node, self.message = data.get("node_type"), data.get("exception_message", "").strip()
        super().__init__(f"{self.node}: {self.message}\n{''.join(data.get('traceback', []))}")


class Server:
    """One running ComfyUI."""

    def __init__(self, python: str, comfyui: Path, base: Path, *flags: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.base = base
        self.log_path = base / f"server-{self.port}.log"
        self.log_file = self.log_path.open("w", encoding="utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        command = [python, "main.py", *FLAGS, "--port", str(self.port), "--base-directory", str(base), *flags]
        self.process = subprocess.Popen(command, cwd=comfyui, stdout=self.log_file, stderr=subprocess.STDOUT,
                                        env=environment)

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

    def get(self, path: str, raw: bool = False):
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            data = answer.read()
        return data if raw else json.loads(data)

    def post(self, path: str, body: dict | None = None):
        request = urllib.request.Request(self.url + path, json.dumps(body or {}).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                data = answer.read()
        except urllib.error.HTTPError as error:
            raise PromptError(json.loads(error.read() or b"{}")) from None
        return json.loads(data) if data else None

    def run(self, graph: dict, on_message=None) -> "Result":
        """Queue an API-format graph and follow it to its end. Raises PromptError and ExecutionError.

        on_message(kind, data) is called for each message; kind is "preview" for a binary one.
        """
        client = uuid.uuid4().hex
        messages, previews = [], []
        with WebSocket(self.port, f"/ws?clientId={client}") as stream:
            prompt = self.post("/prompt", {"prompt": graph, "client_id": client})["prompt_id"]
            while True:
                binary, payload = stream.receive()
                if binary:
                    previews.append(payload)
                    kind, data = "preview", payload
                else:
                    message = json.loads(payload)
                    kind, data = message["type"], message.get("data", {})
                    messages.append((kind, data))
                if on_message:
                    on_message(kind, data)
                if kind in FINAL and data.get("prompt_id") == prompt:
                    break
        if kind == "execution_error":
            raise ExecutionError(data)
        for _ in range(100):  # the history comes a moment later than the last message
            history = self.get(f"/history/{prompt}")
            if prompt in history:
                break
            time.sleep(0.05)
        return Result(self, kind, history.get(prompt, {}).get("outputs", {}), messages, previews)

    def interrupt(self) -> None:
        self.post("/interrupt")


class Result:
    """What a run gave."""

    def __init__(self, server: Server, end: str, outputs: dict, messages: list, previews: list[bytes]):
        self.server, self.end, self.outputs, self.messages, self.previews = server, end, outputs, messages, previews

    def files(self, node: str) -> list[Path]:
        """Paths of the files that a node saved."""
        folders = {"output": "output", "temp": "temp", "input": "input"}
        return [self.server.base / folders[entry["type"]] / entry["subfolder"] / entry["filename"]
                for entries in self.outputs[node].values() if isinstance(entries, list)
                for entry in entries if isinstance(entry, dict) and "filename" in entry]


class WebSocket:
    """Just enough of RFC 6455 to read messages of a server on loopback."""

    def __init__(self, port: int, path: str):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=280)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
                             f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                             "Sec-WebSocket-Version: 13\r\n\r\n").encode())
        self.file = self.socket.makefile("rb")
        status = self.file.readline()
        assert b"101" in status, status
        while self.file.readline() not in (b"\r\n", b""):
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def receive(self) -> tuple[bool, bytes]:
        """(binary?, payload) of the next message."""
        payload, kind = b"", None
        while True:
            first, second = self._exactly(2)
            length = second & 127
            if length > 125:
                form, size = (">H", 2) if length == 126 else (">Q", 8)
                length = struct.unpack(form, self._exactly(size))[0]
            data = self._exactly(length)
            code = first & 15
            if code == 8:
                raise ConnectionError("the server closed the websocket")
            if code == 9:
                self._pong(data)
                continue
            if code in (1, 2):
                kind = code
            if code in (0, 1, 2):
                payload += data
                if first & 128:
                    return kind == 2, payload

    def _exactly(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise ConnectionError("the websocket ended")
        return data

    def _pong(self, data: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        self.socket.sendall(bytes([0x8A, 0x80 | len(data)]) + mask + masked)
