"""The model that makes the pack work with nothing downloaded."""

from comfy_api.latest import io

from . import types


class DemoModel(io.ComfyNode):
    """Demo-Model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceDemoModel",
            display_name="Demo-Model",
            description=(
                "A small diffusion model that comes with Retrace, trained on drawn scenes of "
                "128 x 128 pixels; for trying the nodes with nothing downloaded."
            ),
            search_aliases=["retrace demo", "example checkpoint"],
            inputs=[],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The denoiser."),
                io.Clip.Output("clip", display_name="clip", tooltip="The text encoder."),
                io.Vae.Output("vae", display_name="vae", tooltip="The autoencoder, factor 8."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..demo.bundle import load_demo

        return io.NodeOutput(*load_demo())
