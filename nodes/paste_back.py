"""The photo's own pixels, back around an edit."""

from comfy_api.latest import io, ui

from ..diffusion.paste_back import FEATHER, TOLERANCE, paste_back
from . import types

NOTHING = (
    "Nothing of the edit is left: it differs nowhere from the reconstruction by more than the "
    "tolerance, or the mask is black there"
)


class PasteBack(io.ComfyNode):
    """Paste-Back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetracePasteBack",
            display_name="Paste-Back",
            description=(
                "Puts the photo's own pixels back wherever the edit equals the reconstruction, so "
                "that what was not edited is the photo itself, untouched by the autoencoder."
            ),
            search_aliases=["composite", "restore photo", "keep background", "stitch", "paste"],
            inputs=[
                io.Image.Input("edited", tooltip="The Edit-Sampler's edited output, decoded."),
                io.Image.Input("source",
                               tooltip=(
                                   "The Edit-Sampler's source output, decoded with the same VAE."
                               )),
                io.Image.Input("image", tooltip="The photo that went into VAE Encode."),
                io.Float.Input("tolerance", default=TOLERANCE, min=0.0, max=255.0, step=1.0,
                               round=0.1,
                               tooltip=(
                                   "Levels of 255 by which edit and reconstruction may differ and "
                                   "the photo still stays; three times as much is all edit. 0: "
                                   "only where they are equal."
                               )),
                io.Int.Input("feather", default=FEATHER, min=0, max=64,
                             tooltip=(
                                 "Pixels to each side over which differences are averaged first: "
                                 "softer borders, fewer specks."
                             )),
                io.Mask.Input("mask", optional=True,
                              tooltip=(
                                  "Outside it the photo stays in any case. Not needed where the "
                                  "edit itself was kept inside a mask."
                              )),
            ],
            outputs=[
                io.Image.Output("image", display_name="image",
                                tooltip="The edit in the photo, of the photo's size."),
                io.Mask.Output("changed", display_name="changed",
                               tooltip="1 where the picture is the edit's, 0 where the photo's."),
            ],
        )

    @classmethod
    def execute(cls, edited, source, image, tolerance, feather, mask=None) -> io.NodeOutput:
        result, changed = paste_back(
            edited, source, image, mask, tolerance=tolerance, feather=feather
        )
        kept = f"{100 * float((changed == 0).float().mean()):.1f} % of the pixels are the photo's"
        said = kept if bool(changed.any()) else NOTHING
        return io.NodeOutput(result, changed, ui=ui.PreviewText(said))
