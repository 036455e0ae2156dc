"""EditEval's folder: its workbook as Excel writes it, its folders as they are spelled."""

import zipfile
from xml.sax.saxutils import escape

import pytest
from PIL import Image
from retrace.evaluation import edit_eval
from retrace.evaluation.jobs import load_data

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
ROWS = [
    ("Object Addition", "Source Prompt", "Target Prompt", "Instruction"),
    ("", "A deserted highway", "A red car on a highway", "Add a red car"),
    ("", "A lake & hills", "A canoe on the lake", "Add a canoe"),
    ("Object Removal", "A bench by a hill", "A hill", "Remove the bench"),
    ("", "A cup on a bed", "", "Remove the cup"),
    ("", "", "", ""),
]


def write_workbook(file, rows):
    texts = sorted({text for row in rows for text in row if text})
    shared = "".join(f"<si><t>{escape(text)}</t></si>" for text in texts)
    lines = "".join(
        f'<row r="{i}">'
        + "".join(
            f'<c r="{column}{i}" t="s"><v>{texts.index(text)}</v></c>'
            if text else f'<c r="{column}{i}" s="1"/>'
            for column, text in zip("ABCD", row, strict=True)
        )
        + "</row>"
        for i, row in enumerate(rows, 1)
    )  # fmt: skip
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="{MAIN}">{shared}</sst>')
        sheet = f'<worksheet xmlns="{MAIN}"><sheetData>{lines}</sheetData></worksheet>'
        archive.writestr("xl/worksheets/sheet1.xml", sheet)


@pytest.fixture
def folder(tmp_path):
    write_workbook(tmp_path / edit_eval.WORKBOOK, ROWS)
    for name in ("object_addition/1.jpg", "object_addition/2.jpeg", "object_removel/1.jpg",
                 "object_removel/2.jpg"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (90, 60), "green").save(tmp_path / name)
    return tmp_path


def test_rows_are_read_with_the_picture_of_their_number(folder):
    data = load_data(folder, 32)
    assert list(data.cases) == ["object_addition/1", "object_addition/2", "object_removal/1"]
    case = data.cases["object_addition/2"]
    assert (case.source_prompt, case.target_prompt) == ("A lake & hills", "A canoe on the lake")
    assert (case.instruction, case.type_name) == ("Add a canoe", "object addition")
    assert case.image_path.name == "2.jpeg" and case.image().shape == (32, 32, 3)
    assert data.cases["object_removal/1"].image_path.parent.name == "object_removel"


def test_a_case_has_no_mask_and_so_no_metrics_of_what_must_stay(folder):
    from retrace.evaluation.measures import measure_pictures

    data = load_data(folder, 32)
    job = data.job(data.cases["object_addition/1"], "m", (), None)
    found = measure_pictures(job, job.source)
    assert job.mask is None and job.exact is None
    assert all(value != value for value in found.values())


def test_rows_without_texts_or_pictures_are_named_with_their_reason(folder):
    (folder / "object_addition" / "1.jpg").unlink()
    data = load_data(folder, 32)
    assert data.damaged == {
        "object_addition/1": "object_addition has no picture 1",
        "object_removal/2": "a prompt or the instruction is empty",
    }


def test_a_file_that_is_no_workbook_is_refused(folder):
    (folder / edit_eval.WORKBOOK).write_text("prompts")
    with pytest.raises(ValueError, match="cannot be read as a workbook"):
        load_data(folder)


def test_a_folder_in_no_known_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither mapping_file\.json"):
        load_data(tmp_path)
