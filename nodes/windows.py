"""The node for clips of any length."""

from comfy_api.latest import io

from .adapter.windows import with_windows


class MagiHumanWindows(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanWindows",
            display_name="MagiHuman Windows",
            category="MagiHuman/sampling",
            description="Makes clips of any length: the model sees overlapping windows, which are blended in every "
                        "step. The overlap carries face and voice on, and memory is that of one window.",
            search_aliases=["long video", "context windows", "any length", "minutes", "infinite", "magihuman"],
            inputs=[
                io.Model.Input("model", tooltip="From Load MagiHuman Model, or from a LoRA loader. Works with "
                                                "MagiHuman Sampler, KSampler and SamplerCustomAdvanced."),
                io.Float.Input("window_seconds", default=0.0, min=0.0, max=60.0, step=0.2, tooltip=(
                    "Seconds that are made in one piece, 0 to 60. 0: what the model was trained on, 5 for the "
                    "released models. A clip that is no longer is made as without this node.")),
                io.Float.Input("overlap_seconds", default=0.8, min=0.16, max=30.0, step=0.16, advanced=True, tooltip=(
                    "Seconds that neighbouring windows share, 0.16 to 30. More holds them together better, and costs "
                    "time.")),
                io.Boolean.Input("anchor", default=True, advanced=True, tooltip=(
                    "Each window sees the last picture that is given before it, such as the clip's first, so that face "
                    "and colors stay. Turn it off where the scene changes. Where none is given it does nothing.")),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, window_seconds, overlap_seconds, anchor=True) -> io.NodeOutput:
        return io.NodeOutput(with_windows(model, window_seconds, overlap_seconds, anchor))


NODES = [MagiHumanWindows]
