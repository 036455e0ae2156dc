"""pix2pix-zero's edit directions: sentences, their difference, its files."""

from comfy_api.latest import io, ui

from ..attention.edit_direction import add_direction
from ..attention.sentences import read_sentences, write_sentences
from ..diffusion.errors import RetraceError
from ..host import edit_direction, sentence_files
from . import types

STRENGTH = {
    "default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05, "round": 0.01,
    "tooltip": "Length of the move along the direction: 1 is the paper's, 0 turns it off.",
}


class SentenceTemplates(io.ComfyNode):
    """Sentence-Templates."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceSentenceTemplates",
            display_name="Sentence-Templates",
            description=(
                "Writes some forty sentences about each of two words, for Edit-Direction; "
                "pix2pix-zero (Parmar et al. 2023) asks a language model for them."
            ),
            search_aliases=["pix2pix-zero sentences", "prompt templates"],
            inputs=[
                io.String.Input("source_word", default="cat",
                                tooltip="What the photo shows: a word, or a phrase with article."),
                io.String.Input("target_word", default="dog",
                                tooltip="What the result should show instead."),
            ],
            outputs=[
                io.String.Output("source_sentences", display_name="source sentences",
                                 tooltip="One a line."),
                io.String.Output("target_sentences", display_name="target sentences",
                                 tooltip="One a line, in the same order."),
            ],
        )

    @classmethod
    def execute(cls, source_word, target_word) -> io.NodeOutput:
        return io.NodeOutput("\n".join(write_sentences(source_word)),
                             "\n".join(write_sentences(target_word)))


class LoadSentences(io.ComfyNode):
    """Load-Sentences."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceLoadSentences",
            display_name="Load-Sentences",
            description=(
                "Reads your own list of sentences about one thing for Edit-Direction: a text file, "
                "one sentence a line (pix2pix-zero, Parmar et al. 2023, takes about a thousand)."
            ),
            search_aliases=["pix2pix-zero sentences", "load prompts", "text file"],
            inputs=[
                io.Combo.Input("file", options=sentence_files.list_sentence_files(),
                               tooltip=(
                                   "A .txt file in the input or output folder, UTF-8, at most "
                                   "1 MB; empty lines are left out."
                               )),
            ],
            outputs=[
                io.String.Output("sentences", display_name="sentences",
                                 tooltip="One a line, for one side of Edit-Direction."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        try:
            sentence_files.find_sentences(file)
        except RetraceError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        return sentence_files.fingerprint(file)

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput("\n".join(sentence_files.load_sentences(file)))


class EditDirectionNode(io.ComfyNode):
    """Edit-Direction."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceEditDirection",
            display_name="Edit-Direction",
            description=(
                "Moves a caption's embedding by the mean difference of two sets of sentences "
                "(pix2pix-zero, Parmar et al. 2023): an edit with no target prompt."
            ),
            search_aliases=["pix2pix-zero", "edit direction", "concept direction"],
            inputs=[
                io.Clip.Input("clip", tooltip="Text encoder of the checkpoint."),
                io.String.Input("source_sentences", multiline=True, default="a photo of a cat",
                                tooltip="Sentences about what the photo shows, one a line."),
                io.String.Input("target_sentences", multiline=True, default="a photo of a dog",
                                tooltip="Sentences about what it should show, one a line."),
                io.Conditioning.Input("conditioning",
                                      tooltip="The source prompt: the caption of the inversion."),
                io.Float.Input("strength", **STRENGTH),
            ],
            outputs=[
                io.Conditioning.Output("conditioning", display_name="conditioning",
                                       tooltip="The Edit-Sampler's positive."),
                types.Direction.Output("direction", display_name="direction",
                                       tooltip="For Save-Direction and Apply-Direction."),
            ],
        )

    @classmethod
    def execute(cls, clip, source_sentences, target_sentences, conditioning,
                strength) -> io.NodeOutput:
        direction = edit_direction.make_direction(
            clip,
            read_sentences(source_sentences, "source"),
            read_sentences(target_sentences, "target"),
        )
        return io.NodeOutput(add_direction(conditioning, direction, strength), direction)


class ApplyDirection(io.ComfyNode):
    """Apply-Direction."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceApplyDirection",
            display_name="Apply-Direction",
            description=(
                "Moves a conditioning along a direction that was made or loaded before "
                "(pix2pix-zero, Parmar et al. 2023)."
            ),
            search_aliases=["pix2pix-zero", "apply edit direction"],
            inputs=[
                types.Direction.Input("direction",
                                      tooltip="From Edit-Direction or Load-Direction."),
                io.Conditioning.Input("conditioning", tooltip="The source prompt."),
                io.Float.Input("strength", **STRENGTH),
            ],
            outputs=[
                io.Conditioning.Output("conditioning", display_name="conditioning",
                                       tooltip="The Edit-Sampler's positive."),
            ],
        )

    @classmethod
    def execute(cls, direction, conditioning, strength) -> io.NodeOutput:
        return io.NodeOutput(add_direction(conditioning, direction, strength))


class SaveDirection(io.ComfyNode):
    """Save-Direction."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceSaveDirection",
            display_name="Save-Direction",
            description=(
                "Writes an edit direction to the output folder as a safetensors file, to use again "
                "or to share."
            ),
            search_aliases=["save edit direction"],
            is_output_node=True,
            inputs=[
                types.Direction.Input("direction", tooltip="From Edit-Direction."),
                io.String.Input("filename_prefix", default="retrace/direction",
                                tooltip="Folder and start of the file name, in the output folder."),
            ],
            outputs=[
                io.String.Output("file", display_name="file",
                                 tooltip="The file's name, as Load-Direction takes it."),
            ],
        )

    @classmethod
    def execute(cls, direction, filename_prefix) -> io.NodeOutput:
        name = edit_direction.save_direction(direction, filename_prefix)
        return io.NodeOutput(name, ui=ui.PreviewText(name))


class LoadDirection(io.ComfyNode):
    """Load-Direction."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceLoadDirection",
            display_name="Load-Direction",
            description=(
                "Reads an edit direction that Save-Direction wrote; nothing in it is executed."
            ),
            search_aliases=["load edit direction"],
            inputs=[
                io.Combo.Input("file", options=edit_direction.list_directions(),
                               tooltip="A direction file in the input or output folder."),
            ],
            outputs=[
                types.Direction.Output("direction", display_name="direction",
                                       tooltip="For Apply-Direction."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        try:
            edit_direction.find_direction(file)
        except RetraceError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        return edit_direction.fingerprint(file)

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(edit_direction.load_direction(file))
