"""StyleDiffusion: learned values of cross-attention."""

from comfy_api.latest import io, ui

from ..diffusion.value_network import STARTS
from ..host import style_diffusion
from . import types


class InvertStyleDiffusion(io.ComfyNode):
    """Invert-StyleDiffusion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceInvertStyleDiffusion",
            display_name="Invert-StyleDiffusion",
            description=(
                "Trains a small network at every step, from the picture's CLIP tokens to the "
                "values of cross-attention, until guided sampling retraces the inversion "
                "(StyleDiffusion, Li et al. 2023). The slowest inversion here: the paper's code "
                "takes 810 s a picture on an A40, six times null-text inversion, so try "
                "Invert-DirectInversion first, which keeps the source at no cost."
            ),
            search_aliases=["style diffusion", "stylediffusion", "prompt-embedding inversion"],
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The checkpoint's model: SD1.5, SD2.x or SDXL; controllers are ignored."
                )),
                types.Trajectory.Input("trajectory", tooltip="From Invert-DDIM, at its cfg 1."),
                io.Conditioning.Input("negative",
                                      tooltip="Negative prompt of the edit; an empty one."),
                io.ClipVision.Input("clip_vision", tooltip=(
                    "Encoder of the picture, from Load CLIP Vision: any that gives tokens, CLIP "
                    "ViT-H or ViT-L for one. The paper's ViT-B/16 is one the host cannot load."
                )),
                io.Image.Input("image", tooltip=(
                    "The picture that was inverted; the encoder sees its centre square."
                )),
                io.Float.Input("cfg", default=7.5, min=1.0, max=100.0, step=0.1, round=0.01,
                               tooltip="Guidance scale of the edit that follows: use the same."),
                io.Int.Input("inner_steps", default=100, min=1, max=1000,
                             tooltip=(
                                 "Training steps at the noisiest step; later steps have fewer (37 "
                                 "at the 11th, 1 at the 50th), some ten times this in all."
                             )),
                io.Float.Input("learning_rate", default=0.01, min=1e-5, max=1.0, step=0.001,
                               round=0.00001,
                               tooltip=(
                                   "Adam's rate at the noisiest step; it falls by a hundredth of "
                                   "itself per step, as published."
                               )),
                io.Float.Input("early_stop", default=1e-5, min=0.0, max=1.0, step=1e-6,
                               round=1e-7,
                               tooltip=(
                                   "A step ends when its loss is below this, plus 2e-5 per step "
                                   "walked; 0 leaves the 2e-5 per step."
                               )),
                io.Float.Input("map_weight", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01,
                               tooltip=(
                                   "Weight of keeping the words' attention maps as they were "
                                   "while inverting; 0 turns it off."
                               )),
                io.Combo.Input("start", options=list(STARTS), default="published",
                               tooltip=(
                                   "'published' starts the network at random, so the first step "
                                   "has to find the prompt's values again; 'identity' starts with "
                                   "the prompt's own values, so that no step begins from nothing."
                               )),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1,
                             control_after_generate=False,
                             tooltip="Of the network's first weights; the same seed, same bits."),
                types.checkpointing_input(),
            ],
            outputs=[
                types.Trajectory.Output("trajectory", display_name="trajectory",
                                        tooltip="The same states with learned values per step."),
                io.Image.Output("losses", display_name="loss curve",
                                tooltip="Loss over all inner steps, logarithmic."),
            ],
        )

    @classmethod
    def execute(cls, model, trajectory, negative, clip_vision, image, cfg, inner_steps,
                learning_rate, early_stop, map_weight, start, seed,
                checkpointing="auto") -> io.NodeOutput:
        trained, losses = style_diffusion.train(
            model, trajectory, negative, clip_vision, image, cfg=cfg, inner_steps=inner_steps,
            learning_rate=learning_rate, early_stop=early_stop, map_weight=map_weight,
            start=start, seed=seed, checkpointing=checkpointing,
        )
        report = types.report_text(dict(trained.report))
        return io.NodeOutput(trained, losses, ui=ui.PreviewText(report))


class StyleDiffusionWindow(io.ComfyNode):
    """StyleDiffusion-Window."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceStyleDiffusionWindow",
            display_name="StyleDiffusion-Window",
            description=(
                "For how long the edit's target uses the values learned from the picture "
                "(StyleDiffusion, Li et al. 2023). Costs nothing: the training is not run again."
            ),
            search_aliases=["style diffusion", "value replace", "tau_v"],
            inputs=[
                types.Trajectory.Input("trajectory", tooltip="From Invert-StyleDiffusion."),
                io.Float.Input("target_values", default=0.5, min=0.0, max=1.0, step=0.05,
                               round=0.01,
                               tooltip=(
                                   "Fraction of the steps, from the noisy end: more keeps more of "
                                   "the picture's looks, less lets new words look new; 0 gives "
                                   "the target no learned values. Good ones: 0.2 to 0.6."
                               )),
            ],
            outputs=[
                types.Trajectory.Output("trajectory", display_name="trajectory",
                                        tooltip="The same states and values with this window."),
            ],
        )

    @classmethod
    def execute(cls, trajectory, target_values) -> io.NodeOutput:
        return io.NodeOutput(style_diffusion.set_window(trajectory, target_values))
