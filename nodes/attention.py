"""Attention as a thing: recorded over a trajectory for replay, and drawn as heat maps."""

from comfy_api.latest import io, ui

from ..attention.heatmaps import heat_sheets
from ..attention.maps import chosen_words, word_maps
from ..host.announce import announce
from ..host.capture import capture_attention, temporary_folder
from . import types


class AttentionCapture(io.ComfyNode):
    """Attention-Capture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceAttentionCapture",
            display_name="Attention-Capture",
            description=(
                "Records the source's attention over a trajectory once, so that every edit whose "
                "controllers are given it costs the target's rows only (the maps of "
                "Prompt-to-Prompt, Hertz et al. 2022, kept as the values they come from). The edit "
                "needs Invert-DirectInversion."
            ),
            search_aliases=["attention store", "record attention", "attention bank"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint's model; controllers are ignored."),
                types.Trajectory.Input("trajectory", tooltip="From an inversion node."),
                io.Combo.Input("sites", options=["all", "self", "cross"], default="all",
                               tooltip=(
                                   "Kind of attention layers: Prompt-to-Prompt reads both, "
                                   "MasaCtrl 'self', the Attention-Viewer 'cross'."
                               )),
                io.Combo.Input("dtype", options=["fp16", "bf16", "fp32"], default="fp16",
                               tooltip=(
                                   "Number format of the store; fp32 is exact and twice as large."
                               )),
                io.Int.Input("budget_mb", default=4096, min=1, max=1048576,
                             tooltip=(
                                 "Most megabytes the store may take; a larger one is refused "
                                 "before the run starts."
                             )),
                io.Combo.Input("device", options=["cpu", "gpu", "disk"], default="cpu",
                               tooltip=(
                                   "Where the store lives; 'disk' is a file in the host's temp "
                                   "folder that goes with the store."
                               )),
                io.String.Input("layers", default="", optional=True,
                                tooltip=(
                                    "Only these layers: 'output', 'output.5', or numbers in call "
                                    "order such as '10-15'; empty for all."
                                )),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.05, round=0.01,
                               optional=True,
                               tooltip="First step as a fraction of all; 0 is the noisiest."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.05, round=0.01,
                               optional=True,
                               tooltip=(
                                   "Where to stop, as a fraction of the steps; 0.6 is enough for "
                                   "Prompt-to-Prompt's own windows."
                               )),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip=(
                                          "The edit's negative prompt: records the unconditional "
                                          "half too, which MasaCtrl reads. Twice the rows."
                                      )),
            ],
            outputs=[
                types.Attention.Output("attention", display_name="attention",
                                       tooltip="For controllers and the Attention-Viewer."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, trajectory, sites, dtype, budget_mb, device, layers="", start=0.0,
                end=1.0, negative=None) -> io.NodeOutput:
        store, report = capture_attention(
            model, trajectory, kind=sites, layers=layers, window=(start, end), dtype=dtype,
            place=device, budget_mb=budget_mb, negative=negative, folder=temporary_folder(),
            announce=lambda text: announce(getattr(cls.hidden, "unique_id", None), text),
        )
        return io.NodeOutput(store, ui=ui.PreviewText(types.report_text(report)))


class AttentionViewer(io.ComfyNode):
    """Attention-Viewer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceAttentionViewer",
            display_name="Attention-Viewer",
            description=(
                "Draws where each word of the source prompt looks: heat maps over the image, from "
                "recorded cross-attention (as in Fig. 4 of Hertz et al. 2022)."
            ),
            search_aliases=["attention heat map", "daam", "word map", "cross attention"],
            inputs=[
                types.Attention.Input("attention",
                                      tooltip="From Attention-Capture; sites 'all' or 'cross'."),
                types.Prompts.Input("prompts",
                                    tooltip="The Prompt-Pair whose source prompt was inverted."),
                io.String.Input("words", default="",
                                tooltip=(
                                    "Words or phrases of the source prompt, separated by commas; "
                                    "empty for all."
                                )),
                io.Image.Input("image", tooltip="The photo that was inverted."),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.05, round=0.01,
                               optional=True,
                               tooltip="First step as a fraction of all; 0 is the noisiest."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.05, round=0.01,
                               optional=True,
                               tooltip="Where to stop, as a fraction of the steps; 1 for the end."),
                io.String.Input("layers", default="", optional=True,
                                tooltip=(
                                    "Layers to average: empty for the published group (a quarter "
                                    "of the latent's side), 'all', 'output.5', or numbers in call "
                                    "order."
                                )),
                io.Mask.Input("mask", optional=True,
                              tooltip="A mask to show beside them, such as the Edit-Sampler's."),
                io.Mask.Input("foreground_source", optional=True,
                              tooltip=(
                                  "MasaCtrl's foreground of the source, from the Edit-Sampler, to "
                                  "show too."
                              )),
                io.Mask.Input("foreground_target", optional=True,
                              tooltip="The same of the target."),
            ],
            outputs=[
                io.Image.Output("heat_maps", display_name="heat maps",
                                tooltip=(
                                    "One sheet for each image: the photo, a tile a word, the masks."
                                )),
            ],
        )

    @classmethod
    def execute(cls, attention, prompts, words, image, start=0.0, end=1.0, layers="",
                mask=None, foreground_source=None, foreground_target=None) -> io.NodeOutput:
        chosen = chosen_words(prompts.source, words)
        maps = word_maps(
            attention, prompts.source, chosen, window=(start, end), layers=layers
        )
        masks = {
            "mask": mask,
            "source foreground": foreground_source,
            "target foreground": foreground_target,
        }
        sheets = heat_sheets(
            image, chosen, maps, {name: m for name, m in masks.items() if m is not None}
        )
        return io.NodeOutput(sheets, ui=ui.PreviewImage(sheets, cls=cls))
