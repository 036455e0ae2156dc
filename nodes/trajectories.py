"""Trajectories as things: files, and pictures of what they hold."""

from comfy_api.latest import io, ui

from ..diffusion.errors import RetraceError
from ..host import trajectory_files
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
