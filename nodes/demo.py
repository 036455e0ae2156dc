"""The model that makes the pack work with nothing downloaded."""

from comfy_api.latest import io

from ..demo.architecture import KINDS
from ..demo.scenes import SCENES, as_image, as_mask
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
            inputs=[
                io.Combo.Input("network", options=list(KINDS), default="unet", optional=True,
                               tooltip=(
                                   "'unet' is built like SD1.5 and draws best; 'dit' is a small "
                                   "diffusion transformer of PixArt's class, which knows colours "
                                   "and grounds but draws shapes badly."
                               )),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The denoiser."),
                io.Clip.Output("clip", display_name="clip", tooltip="The text encoder."),
                io.Vae.Output("vae", display_name="vae", tooltip="The autoencoder, factor 8."),
            ],
        )

    @classmethod
    def execute(cls, network="unet") -> io.NodeOutput:
        from ..demo.bundle import load_demo

        return io.NodeOutput(*load_demo(kind=network))


class DemoScene(io.ComfyNode):
    """Demo-Scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceDemoScene",
            display_name="Demo-Scene",
            description=(
                "A drawn picture for the Demo-Model with its prompts and the exact result of one "
                "edit; takes the place of Load Image while trying the nodes."
            ),
            search_aliases=["retrace example image", "test image"],
            inputs=[
                io.Combo.Input("scene", options=list(SCENES), default="colour",
                               tooltip="Which picture, named by what its edit changes."),
            ],
            outputs=[
                io.Image.Output("image", display_name="image",
                                tooltip="The picture, 128 x 128 pixels."),
                io.String.Output("source", display_name="source",
                                 tooltip="What it shows, in the words the Demo-Model knows."),
                io.String.Output("target", display_name="target",
                                 tooltip="What it should show after the edit."),
                io.Image.Output("exact", display_name="exact",
                                tooltip="What a perfect edit looks like, to compare with."),
                io.Mask.Output("changed", display_name="changed",
                               tooltip="Where a perfect edit differs from the picture."),
            ],
        )

    @classmethod
    def execute(cls, scene) -> io.NodeOutput:
        shown = SCENES[scene]
        return io.NodeOutput(
            as_image(shown.image),
            *shown.prompts,
            as_image(shown.exact),
            as_mask(shown.changed),
        )


class DemoVision(io.ComfyNode):
    """Demo-Vision."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceDemoVision",
            display_name="Demo-Vision",
            description=(
                "A tiny image encoder with fixed random weights, for trying "
                "Invert-StyleDiffusion with nothing downloaded. It was never trained: it tells "
                "places of a picture apart but knows nothing of what they show, and is of no use "
                "to other nodes. With photos, use Load CLIP Vision."
            ),
            search_aliases=["retrace demo clip vision"],
            inputs=[],
            outputs=[
                io.ClipVision.Output("clip_vision", display_name="clip_vision",
                                     tooltip="The encoder, untrained."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..demo.vision import load_vision

        return io.NodeOutput(load_vision())
