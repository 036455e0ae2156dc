"""The Edit-Sampler: the only node where branches run."""

from comfy_api.latest import io, ui

from ..host.editing import run_edit
from . import types


class EditSampler(io.ComfyNode):
    """Edit-Sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceEditSampler",
            display_name="Edit-Sampler",
            description=(
                "Walks an inverted image back from noise with the target prompt, while the source "
                "branch and the model's controllers hold the picture together."
            ),
            search_aliases=["image editing", "p2p sampler", "resample", "edit"],
            inputs=[
                io.Model.Input("model", tooltip="With or without controllers."),
                types.Trajectory.Input("trajectory", tooltip="From an inversion node."),
                io.Conditioning.Input("positive", tooltip="Target prompt."),
                io.Conditioning.Input("negative",
                                      tooltip="Negative prompt; the papers use an empty one."),
                io.Float.Input("cfg", default=7.5, min=1.0, max=100.0, step=0.1, round=0.01,
                               tooltip=(
                                   "Guidance scale of the edit; 1 turns guidance off and halves "
                                   "the cost."
                               )),
                io.Int.Input("start_step", default=0, min=0, max=999,
                             tooltip=(
                                 "Steps skipped at the noisy end; 0 edits from full noise, more "
                                 "keeps more of the image."
                             )),
                io.Mask.Input("mask", optional=True,
                              tooltip="Where the edit may act; outside, the source is kept."),
                io.Boolean.Input("reconstruct", default=True, optional=True,
                                 tooltip=(
                                     "Sample a source branch that is not pinned to the end, so "
                                     "that the source output shows what the inversion lost. Off "
                                     "saves rows."
                                 )),
            ],
            outputs=[
                io.Latent.Output("edited", display_name="edited", tooltip="The edited image."),
                io.Latent.Output("source", display_name="source",
                                 tooltip="The source branch's end: the reconstruction."),
                io.Mask.Output("mask", display_name="mask",
                               tooltip="Where the edit could act (blend and user mask)."),
                io.String.Output("report", display_name="report",
                                 tooltip="Row-forwards, seconds, what was run."),
                io.Mask.Output("foreground_source", display_name="foreground source",
                               tooltip=(
                                   "MasaCtrl's foreground of the source at the last step, painted "
                                   "or from words; white everywhere without such masks."
                               )),
                io.Mask.Output("foreground_target", display_name="foreground target",
                               tooltip="The same of the target."),
            ],
        )

    @classmethod
    def execute(cls, model, trajectory, positive, negative, cfg, start_step, mask=None,
                reconstruct=True) -> io.NodeOutput:
        result = run_edit(
            model, trajectory, positive, negative, cfg=cfg, start_step=start_step, mask=mask,
            reconstruct=reconstruct,
        )
        report = types.report_text(result.report)
        return io.NodeOutput(
            {"samples": result.edited},
            {"samples": result.source},
            result.mask,
            report,
            result.foreground_source,
            result.foreground_target,
            ui=ui.PreviewText(report),
        )
