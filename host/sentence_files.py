"""Lists of sentences: text files of the user's in the host's folders, one sentence a line."""

from ..attention.sentences import LARGEST_LIST, decode_sentences
from ..diffusion.errors import TokenMapError
from .link_files import FileKind

SUFFIX = ".txt"
FILES = FileKind(
    "sentence", SUFFIX, "retrace/cats", TokenMapError,
    advice="put a text file with one sentence a line there",
)  # fmt: skip

list_sentence_files = FILES.list
find_sentences = FILES.find
fingerprint = FILES.fingerprint


def load_sentences(name: str) -> list[str]:
    """Read the sentences of a file. Raises: TokenMapError (see attention/sentences.py)."""
    with FILES.find(name).open("rb") as file:
        return decode_sentences(file.read(LARGEST_LIST + 1), name)
