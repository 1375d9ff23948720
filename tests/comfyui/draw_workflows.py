"""Write example_workflows/*.json, from the descriptions in drawings/ and the recorded /object_info.

    python tests/comfyui/draw_workflows.py [SCREENSHOTS]

The files are plain workflows, free to be opened and saved in ComfyUI; this keeps them alike. Their
pictures are made of a folder of screenshots, which test_browser.py keeps where MAGIHUMAN_SCREENSHOTS says.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from drawings import clips, dub, extend_clip, keyframes_loop, long_speech, retake, seeds_batch, voice_draft  # noqa: E402
from drawings.drawing import FOLDER, Drawing  # noqa: E402


def draw_all() -> list[Drawing]:
    return [*clips.draw(), *(module.draw() for module in (extend_clip, long_speech, dub, retake, keyframes_loop,
                                                          seeds_batch, voice_draft))]


def write_jpeg(source: Path, target: Path, most: int = 145_000, width: int = 1600) -> None:
    """A screenshot as JPEG, as good as the size allows."""
    from PIL import Image

    image = Image.open(source).convert("RGB")
    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    for quality in range(88, 30, -4):
        image.save(target, quality=quality, optimize=True, progressive=True)
        if target.stat().st_size <= most:
            break


def main(screenshots: Path | None = None) -> None:
    for drawing in draw_all():
        (FOLDER / f"{drawing.name}.json").write_text(drawing.finished(), encoding="utf-8")
        if screenshots:
            write_jpeg(screenshots / f"{drawing.name}.png", FOLDER / f"{drawing.name}.jpg")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
