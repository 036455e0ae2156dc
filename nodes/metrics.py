"""Numbers for an edit, in the graph."""

from comfy_api.latest import io, ui

from ..evaluation.edit_metrics import compare_images, mean
from . import types


class EditMetrics(io.ComfyNode):
    """Edit-Metrics."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceEditMetrics",
            display_name="Edit-Metrics",
            description=(
                "Compares two pictures by PSNR, SSIM and MSE outside and inside a mask, over the "
                "pixels of each part; the report also gives PnPInversion's published convention "
                "(Ju et al. 2023)."
            ),
            search_aliases=["psnr", "ssim", "mse", "compare images", "pie-bench"],
            inputs=[
                io.Image.Input("image", tooltip="The source picture, values 0 to 1."),
                io.Image.Input("edited", tooltip="The edited picture, of the same size."),
                io.Mask.Input("mask", optional=True,
                              tooltip=(
                                  "1 where the edit may act. Without it the whole picture counts "
                                  "as outside."
                              )),
            ],
            outputs=[
                io.String.Output("report", display_name="report",
                                 tooltip="All numbers, one region a line."),
                *(
                    io.Float.Output(f"{name}_{part}", display_name=f"{name}_{part}",
                                    tooltip=tooltip.format(part=part))
                    for part in ("outside", "inside")
                    for name, tooltip in (
                        ("psnr", "dB, {part} the mask; higher is nearer, infinite if equal."),
                        ("ssim", "At most 1, {part} the mask; 1 is equal."),
                        ("mse", "Of values 0 to 1, {part} the mask; 0 is equal."),
                    )
                ),
            ],
        )

    @classmethod
    def execute(cls, image, edited, mask=None) -> io.NodeOutput:
        found = compare_images(image, edited, mask)
        parts = [found.outside, found.inside]
        values = [
            float("nan") if part is None else mean(getattr(part, name))
            for part in parts
            for name in ("psnr", "ssim", "mse")
        ]
        report = found.report()
        return io.NodeOutput(report, *values, ui=ui.PreviewText(report))
