"""Trajectories as things: files, and pictures of what they hold."""

from comfy_api.latest import io, ui

from ..diffusion.errors import RetraceError
from ..host import trajectory_files, viewing
from . import types


class SaveTrajectory(io.ComfyNode):
    """Save-Trajectory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceSaveTrajectory",
            display_name="Save-Trajectory",
            description=(
                "Writes an inverted image to the output folder as a safetensors file with a "
                "readable header, so that it is inverted once and edited on any day."
            ),
            search_aliases=["save inversion", "export trajectory"],
            is_output_node=True,
            inputs=[
                types.Trajectory.Input("trajectory", tooltip="From any inversion node."),
                io.String.Input("filename_prefix", default="retrace/trajectory",
                                tooltip="Folder and start of the file name, in the output folder."),
            ],
            outputs=[
                io.String.Output("file", display_name="file",
                                 tooltip="The file's name, as Load-Trajectory takes it."),
            ],
        )

    @classmethod
    def execute(cls, trajectory, filename_prefix) -> io.NodeOutput:
        name = trajectory_files.save_trajectory(trajectory, filename_prefix)
        return io.NodeOutput(name, ui=ui.PreviewText(name))


class LoadTrajectory(io.ComfyNode):
    """Load-Trajectory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceLoadTrajectory",
            display_name="Load-Trajectory",
            description=(
                "Reads a trajectory that Save-Trajectory wrote; a file that is cut, altered or of "
                "another version is refused, and nothing in it is executed."
            ),
            search_aliases=["load inversion", "import trajectory"],
            inputs=[
                io.Combo.Input("file", options=trajectory_files.list_trajectories(),
                               tooltip="A trajectory file in the input or output folder."),
            ],
            outputs=[
                types.Trajectory.Output("trajectory", display_name="trajectory",
                                        tooltip="As it was saved, with its source prompt."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        try:
            trajectory_files.find_trajectory(file)
        except RetraceError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        return trajectory_files.fingerprint(file)

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(trajectory_files.load_trajectory(file))


class TrajectoryViewer(io.ComfyNode):
    """Trajectory-Viewer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceTrajectoryViewer",
            display_name="Trajectory-Viewer",
            description=(
                "Shows the states of an inversion as a filmstrip from clean to noisy and, with a "
                "model, how far sampling with the source prompt strays from them at every step."
            ),
            search_aliases=["inversion preview", "filmstrip", "round trip error"],
            is_output_node=True,
            inputs=[
                types.Trajectory.Input("trajectory", tooltip="From any inversion node."),
                io.Vae.Input("vae", tooltip="Decodes the states; the checkpoint's own."),
                io.Int.Input("frames", default=8, min=1, max=64,
                             tooltip="Pictures in the strip, evenly spread over the steps."),
                io.Model.Input("model", optional=True,
                               tooltip=(
                                   "Measures the round trip: samples back with the source prompt. "
                                   "Not connected: only the strip."
                               )),
                io.Float.Input("cfg", default=0.0, min=0.0, max=100.0, step=0.1, round=0.01,
                               optional=True,
                               tooltip=(
                                   "Guidance scale of the round trip; 0 takes the inversion's own, "
                                   "1 turns guidance off."
                               )),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="For a round trip at a cfg other than 1."),
            ],
            outputs=[
                io.Image.Output("strip", display_name="strip",
                                tooltip="States from clean to noisy, with step and sigma."),
                io.String.Output("report", display_name="report",
                                 tooltip="What made the trajectory, and its round-trip error."),
                io.Image.Output("plot", display_name="plot",
                                tooltip="Round-trip error per step; empty without a model."),
            ],
        )

    @classmethod
    def execute(cls, trajectory, vae, frames, model=None, cfg=0.0, negative=None) -> io.NodeOutput:
        strip, report, plot = viewing.view(
            trajectory, vae, frames, model=model, cfg=cfg or None, negative=negative
        )
        return io.NodeOutput(strip, types.report_text(report), plot,
                             ui=ui.PreviewImage(strip, cls=cls))
