"""Lists of sentences from the host's folders."""

import pytest

pytestmark = pytest.mark.host


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch):
    """Return an empty input folder of the host's."""
    import folder_paths

    for kind in ("output", "input"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    return tmp_path / "input"


def test_a_list_is_found_and_read_line_by_line(folder):
    from retrace.host.sentence_files import list_sentence_files, load_sentences

    (folder / "pets").mkdir()
    (folder / "pets" / "cats.txt").write_bytes("\ufeffa cat\r\n\r\n  a café   cat \n".encode())
    (folder / "photo.png").write_bytes(b"no list")
    assert list_sentence_files() == ["pets/cats.txt"]
    assert load_sentences("pets/cats.txt") == ["a cat", "a café cat"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no sentence"),
        (b" \n\t\n", "no sentence"),
        (b"a cat\n" * 200_000, "more than a list"),
        ("a café".encode("latin-1"), "not text in UTF-8"),
        ("a cat".encode("utf-16"), "not text in UTF-8"),
        (b"a\0b", "not a text file"),
    ],
)
def test_files_that_are_no_list_are_refused_with_advice(data, said, folder):
    from retrace.diffusion.errors import TokenMapError
    from retrace.host.sentence_files import load_sentences

    (folder / "cats.txt").write_bytes(data)
    with pytest.raises(TokenMapError, match=said):
        load_sentences("cats.txt")


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname", "cats.txt [temp]", ""])
def test_names_outside_the_folders_are_refused(name, folder):
    from retrace.diffusion.errors import TokenMapError
    from retrace.host.sentence_files import load_sentences

    (folder.parent / "secret.txt").write_text("a cat")
    with pytest.raises(TokenMapError, match="put a text file"):
        load_sentences(name)


def test_a_changed_list_is_read_again(folder):
    from retrace.host.sentence_files import fingerprint

    (folder / "cats.txt").write_text("a cat")
    before = fingerprint("cats.txt")
    (folder / "cats.txt").write_text("two cats")
    assert fingerprint("cats.txt") != before
