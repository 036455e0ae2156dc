"""Sentences about a word, from templates, so that an edit direction needs no language model."""

from ..diffusion.errors import TokenMapError

TEMPLATES = (
    "a photo of {}",
    "a photograph of {} in daylight",
    "a close-up of {}",
    "a picture of {} seen from the side",
    "{} in the foreground of a landscape",
    "{} in front of a plain background",
    "{} on a sunny day",
    "{} under a cloudy sky",
    "{} at sunset",
    "{} at night",
    "{} in the rain",
    "{} in the snow",
    "{} on a street",
    "{} in a park",
    "{} in a garden",
    "{} by the sea",
    "{} near a lake",
    "{} in the mountains",
    "{} in a forest",
    "{} on a meadow",
    "{} in a small room",
    "{} next to a window",
    "{} beside a wooden table",
    "{} on a carpet",
    "{} and a bench",
    "{} and a few people",
    "{} with trees behind",
    "{} with a wall behind",
    "a bright picture of {}",
    "a dark picture of {}",
    "a sharp picture of {}",
    "a black and white photo of {}",
    "an old photo of {}",
    "a painting of {}",
    "a drawing of {}",
    "a large picture of {}",
    "a small picture of {}",
    "the best view of {}",
    "two views of {}",
    "we see {} from above",
    "here is {}",
    "this picture shows {}",
)

VOWELS = "aeiou"

LARGEST_LIST = 2**20
"""Most bytes of a list of sentences: some ten thousand of them."""


def write_sentences(subject: str) -> list[str]:
    """Return a sentence per template about a subject: "cat" is written "a cat".

    A subject of several words, or with an article of its own, is taken as it is.
    Raises: TokenMapError for an empty subject.
    """
    words = subject.split()
    if not words:
        raise TokenMapError("the word is empty; type what the photo shows, for example 'cat'")
    phrase = " ".join(words)
    if len(words) == 1:
        phrase = f"{'an' if phrase[0].lower() in VOWELS else 'a'} {phrase}"
    return [template.format(phrase) for template in TEMPLATES]


def read_sentences(text: str, name: str) -> list[str]:
    """Return the lines of a text that are not empty. Raises: TokenMapError if there is none."""
    sentences = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if not sentences:
        raise TokenMapError(
            f"there is no {name} sentence; write one a line, or connect Sentence-Templates"
        )
    return sentences


def decode_sentences(data: bytes, name: str) -> list[str]:
    """Return the sentences of a text file, one a line.

    Raises: TokenMapError when it is empty, not text in UTF-8, or larger than `LARGEST_LIST`.
    """
    if len(data) > LARGEST_LIST:
        raise TokenMapError(
            f"{name!r} has {len(data) / 2**20:.1f} MB, more than a list of sentences may have "
            f"({LARGEST_LIST / 2**20:.0f} MB): keep a few hundred sentences"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenMapError(
            f"{name!r} is not text in UTF-8 (byte {error.start + 1}); save it as UTF-8, one "
            "sentence a line"
        ) from error
    if "\0" in text:
        raise TokenMapError(f"{name!r} is not a text file; choose one with one sentence a line")
    if not text.strip():
        raise TokenMapError(f"{name!r} holds no sentence; write one a line")
    return read_sentences(text, name)
