"""The node that says, before any wait, whether all is there for a clip."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..magihuman_core.loading.folder import ModelFolder, find_models
from ..magihuman_core.loading.ready import check_models
from ..magihuman_core.loading.wishes import parse_wish
from .adapter.notices import show_here

KINDS = ("diffusion_models", "text_encoders", "vae")  # ComfyUI's folders that hold parts of the model
STARTS = {"text": "text", "picture": "picture", "voice": "voice", "picture and voice": "picture voice"}
SMALL, SIZES = "448x256", ("540p", "1080p")


def all_models() -> ModelFolder:
    """The parts that lie in ComfyUI's folders, wherever these are."""
    found: dict[str, list[Path]] = {}
    problems: dict[Path, str] = {}
    unsearched: list[Path] = []
    roots = list(dict.fromkeys(Path(root) for kind in KINDS for root in folder_paths.get_folder_paths(kind)))
    for root in filter(Path.is_dir, roots):
        models = find_models(root)
        for part, paths in models.found.items():
            known = found.setdefault(part, [])
            known += [path for path in paths if path not in known]
        problems |= models.problems
        unsearched += models.unsearched
    return ModelFolder(Path(folder_paths.models_dir), found, problems, unsearched)


class MagiHumanCheck(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanCheck",
            display_name="MagiHuman Check",
            category="MagiHuman",
            description="Says what is there for a clip, what is missing and where to get it, what fits on this card, "
                        "and what to set. It loads and downloads nothing.",
            search_aliases=["missing models", "download", "requirements", "vram", "magihuman"],
            inputs=[
                io.Combo.Input("start", options=list(STARTS), default="picture and voice",
                               tooltip="What the clip is made from, besides the prompt."),
                io.Combo.Input("size", options=[SMALL, *SIZES], default="540p",
                               tooltip="448x256 needs one network, 540p and 1080p a second one that enlarges."),
                io.Boolean.Input("upright", default=False, tooltip="Higher than wide, as for a phone."),
                io.Boolean.Input("base", default=False, tooltip="The slow base network instead of the distilled one."),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="All of it as text.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs) -> float:
        """Files come and go: the node runs each time."""
        return float("nan")

    @classmethod
    def execute(cls, start, size, upright, base) -> io.NodeOutput:
        words = [STARTS[start], size if size in SIZES else "", "upright" if upright else "", "base" if base else ""]
        lines, _ = check_models(parse_wish(" ".join(words)), all_models())
        report = "\n".join(lines)
        show_here(report)
        return io.NodeOutput(report, ui=ui.PreviewText(report))  # for the history, which the API gives


NODES = [MagiHumanCheck]
