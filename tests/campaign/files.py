"""Files as disks, downloads and other programs leave them: weights of every kind, their notes, and media."""

import json
import random
import struct
from pathlib import Path
from typing import Any

from .judge import Case
from .workshop import Workshop, command, damaged, replace

ODD: list[Any] = [None, True, -1, 0, 1, 2**31, 2**63, 2**64, 1e300, -0.0, "", "x", "..", "../../etc/passwd", "a\x00b",
                  [], {}, [[[]]], {"a": {}}, "F32", "I8", "F8_E4M3", [0, 0], [2**40, 2**40], "x" * 10000, float("nan"),
                  "(a+)+$", list(range(5000))]


def twisted(value: Any, chance: random.Random) -> Any:
    """A JSON value in which one thing is another, gone, doubled or renamed."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        rest = {name: other for name, other in value.items() if name != key}
        way = chance.random()
        if way < 0.7:
            return rest | {key: twisted(value[key], chance)}
        other = chance.choice(["", "x", "__metadata__", key + ".x", "\ud800"])
        return rest if way < 0.8 else rest | {other: value[key]}
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        return [*value[:place], twisted(value[place], chance), *value[place + 1:]]
    return chance.choice(ODD)


def weights(workshop: Workshop, chance: random.Random) -> Case:
    """One file of the models with damaged bytes."""
    folder = workshop.case_folder()
    models = workshop.copy_models(folder)
    path = chance.choice(sorted(file for file in models.rglob("*") if file.is_file()))
    content, way = damaged(path.read_bytes(), chance)
    replace(path, content)
    return _used(workshop, chance, folder, models, path, way)


def headers(workshop: Workshop, chance: random.Random) -> Case:
    """A safetensors file whose header is JSON, and wrong."""
    folder = workshop.case_folder()
    models = workshop.copy_models(folder)
    path = chance.choice(sorted(models.rglob("*.safetensors")))
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8:8 + length])
    for _ in range(chance.randrange(1, 4)):
        header = twisted(header, chance)
    text = json.dumps(header).encode()
    replace(path, struct.pack("<Q", len(text)) + text + content[8 + length:])
    return _used(workshop, chance, folder, models, path, "header")


def notes(workshop: Workshop, chance: random.Random) -> Case:
    """An index, configuration or tokenizer that is JSON, and wrong."""
    folder = workshop.case_folder()
    models = workshop.copy_models(folder)
    path = chance.choice(sorted(models.rglob("*.json")))
    value = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(chance.randrange(1, 4)):
        value = twisted(value, chance)
    replace(path, json.dumps(value).encode())
    return _used(workshop, chance, folder, models, path, "JSON")


def _used(workshop: Workshop, chance: random.Random, folder: Path, models: Path, path: Path, way: str) -> Case:
    """Ask what the file is, read it all, convert it, or make a clip with it."""
    use = chance.choice(["inspect", "inspect", "read", "convert", "generate", "generate"])
    words = f"{use} {path.relative_to(models)} ({way})"
    if use in ("inspect", "read"):
        target = chance.choice([path, path.parent, models])
        return Case(command("inspect", target, *["--read-all"] * (use == "read")), folder, words, problems=True,
                    writes=False)
    if use == "convert":
        out = folder / "out.safetensors"
        options = chance.choice([[], ["--dtype", "int8"], ["--dtype", "fp8"], ["--dtype", "bf16"]])
        return Case(command("convert", chance.choice([path, path.parent]), out, *options), folder, words, outputs=[out])
    out = folder / "out.mp4"
    upscale = ["--upscale", "64x64"] if "540p" in str(path) else []
    return Case(workshop.generate(out, *upscale, models=models), folder, words, outputs=[out])


def gguf(workshop: Workshop, chance: random.Random) -> Case:
    """A damaged GGUF file."""
    return _damaged_part(workshop, chance, workshop.gguf)


def lora(workshop: Workshop, chance: random.Random) -> Case:
    """A damaged LoRA."""
    return _damaged_part(workshop, chance, workshop.lora)


def _damaged_part(workshop: Workshop, chance: random.Random, source: Path) -> Case:
    folder = workshop.case_folder()
    path = folder / source.name
    content, way = source.read_bytes(), "JSON"
    if source.suffix == ".safetensors" and chance.random() < 0.5:
        (length,) = struct.unpack("<Q", content[:8])
        text = json.dumps(twisted(json.loads(content[8:8 + length]), chance)).encode()
        content = struct.pack("<Q", len(text)) + text + content[8 + length:]
    else:
        content, way = damaged(content, chance)
    path.write_bytes(content)
    if chance.random() < 0.4:
        return Case(command("inspect", path, *["--read-all"] * chance.randrange(2)), folder, f"inspect {path.name}",
                    problems=True, writes=False)
    out = folder / "out.mp4"
    if source == workshop.lora:
        strength = chance.choice(["", ":0.5", ":nan", ":1e300", ":-1"])
        return Case(workshop.generate(out, "--lora", f"{path}{strength}"), folder, f"--lora {way} {strength}",
                    outputs=[out])
    return Case(workshop.generate(out, "--part", f"distilled={path}"), folder, f"--part {way}", outputs=[out])


def pictures(workshop: Workshop, chance: random.Random) -> Case:
    """A damaged picture as the first frame, a keyframe or a mask."""
    folder = workshop.case_folder()
    source = workshop.media / chance.choice(["a.png", "a.jpg", "a.webp", "a.tiff", "a.gif", "a.bmp"])
    path, way = _damaged_copy(folder, source, chance)
    out = folder / "out.mp4"
    option = chance.choice([["--image", path], ["--keyframe", f"0.1={path}"], ["--keyframe", f"last={path}"]])
    return Case(workshop.generate(out, *option), folder, f"{option[0]} {path.name} ({way})", outputs=[out])


def recordings(workshop: Workshop, chance: random.Random) -> Case:
    """A damaged recording that drives the clip."""
    folder = workshop.case_folder()
    source = workshop.media / chance.choice(["a.wav", "a.mp3", "a.flac", "a.m4a", "a.mp4"])
    path, way = _damaged_copy(folder, source, chance)
    out = folder / "out.mp4"
    return Case(workshop.generate(out, "--audio", path), folder, f"--audio {path.name} ({way})", outputs=[out])


def videos(workshop: Workshop, chance: random.Random) -> Case:
    """A damaged video that is dubbed, retaken, extended or made anew, or damaged latents."""
    folder = workshop.case_folder()
    latents = chance.random() < 0.2
    path, way = _damaged_copy(folder, workshop.media / ("latents.safetensors" if latents else "a.mp4"), chance)
    out = folder / "out.mp4"
    models = ["--models", workshop.models, "--device", "cpu", "--out", out]
    if latents:
        return Case(command("decode", path, *models), folder, f"decode ({way})", outputs=[out])
    small = ["--width", "64", "--height", "32", "--steps", "1", "--prompt", "hello"]
    line = chance.choice([
        ["dub", path, "--audio", workshop.media / "a.wav", "--mouth", "0.5,0.5,0.4,0.4"],
        ["retake", path, "--start", "0.04", "--end", "0.12"], ["extend", path, "--seconds", "0.2"]])
    if chance.random() < 0.25:
        return Case(workshop.generate(out, "--from", path, "--denoise", "0.5"), folder, f"--from ({way})",
                    outputs=[out])
    return Case(command(*line, *models, *small), folder, f"{line[0]} ({way})", outputs=[out])


def texts(workshop: Workshop, chance: random.Random) -> Case:
    """A prompt or script of any characters."""
    folder = workshop.case_folder()
    path, out = folder / "text.txt", folder / "out.mp4"
    pieces = ["hello ", "0.2 A woman says: \"ma\"\n", "{\"seconds\": 0.2, \"prompt\": \"ma\"}\n",
              "<a>: ", "\"", "\u201c", "\n\n",
              " " * 500, ",", "a,", "\x00", "\u202e", "\ufeff", "\U0001f600", "[[[", "nan x\n", "-1 x\n",
              "1e400 x\n", "Dialogue:\n", "\\", "%s", "{0}"]
    text = "".join(chance.choice(pieces) * chance.choice([1, 1, 1, 30]) for _ in range(chance.randrange(12)))
    data = text.encode(chance.choice(["utf-8", "utf-8", "utf-16", "utf-8-sig"]))
    path.write_bytes(damaged(data, chance)[0] if data and chance.random() < 0.3 else data)
    option = chance.choice(["--prompt-file", "--script", "--negative-file"])
    prompt = ["--prompt-file", path] if option == "--negative-file" else []
    return Case(workshop.generate(out, option, path, *prompt), folder, option, outputs=[out])


def _damaged_copy(folder: Path, source: Path, chance: random.Random) -> tuple[Path, str]:
    content, way = damaged(source.read_bytes(), chance)
    path = folder / source.name
    path.write_bytes(content)
    return path, way


KINDS = {"weights": weights, "headers": headers, "notes": notes, "gguf": gguf, "lora": lora, "pictures": pictures,
         "recordings": recordings, "videos": videos, "texts": texts}
