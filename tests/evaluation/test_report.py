"""Tables, Parquet and the page of a run."""

import math

import pytest
from helpers_runs import Counting, make_run, write_data
from retrace.evaluation.jobs import Result
from retrace.evaluation.page import write_page
from retrace.evaluation.report import ALL, average, make_report, write_parquet
from retrace.evaluation.runner import in_this_process

RESULTS = [
    Result("p2p", "1", "change", 2.0, 200, {"published_psnr": 20.0, "corrected_psnr": 18.0}),
    Result("p2p", "2", "style", 4.0, 200, {"published_psnr": math.nan}),
    Result("p2p", "3", "change", error="broken"),
    Result("ddim", "1", "change", 1.0, None, {"published_psnr": math.inf, "published_mse": 0.01}),
]


def cells(report: str, method: str) -> list[str]:
    line = next(line for line in report.splitlines() if line.startswith(f"| {method} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_leave_out_what_is_no_number_and_count_failures():
    means = average(RESULTS)
    one = means["p2p", ALL]
    assert (one.get("published_psnr"), one.seconds.value, one.rows.value) == (20.0, 3.0, 200.0)
    assert (one.edited, one.failed) == (2, 1)
    assert means["p2p", "style"].failed == 0
    assert math.isnan(means["p2p", "style"].get("published_psnr"))


def test_one_case_that_is_exact_hides_no_others():
    ddim = Result("ddim", "2", "change", 1.0, None, {"published_psnr": 30.0})
    report = make_report("A run", average([*RESULTS, ddim]), {})
    assert cells(report, "ddim")[2] == "30.00"
    assert "left out of the mean: ddim published psnr: 1 of 2." in report


def test_table_has_the_papers_columns_scales_and_says_what_is_absent():
    report = make_report("A run", average(RESULTS), {"clip": "no weights"})
    assert cells(report, "p2p") == [
        "p2p", "–", "20.00", "–", "–", "–", "absent", "absent", "3.0", "200", "2", "1",
    ]  # fmt: skip
    assert cells(report, "ddim")[2:5] == ["exact", "–", "100.00"]
    assert "CLIP similarity: absent, no weights" in report
    head = next(line for line in report.splitlines() if line.startswith("| method"))
    order = ["structure", "PSNR", "LPIPS", "MSE", "SSIM", "CLIP whole", "CLIP edited", "row-"]
    assert [head.index(word) for word in order] == sorted(head.index(word) for word in order)


def test_both_conventions_stand_side_by_side():
    report = make_report("A run", average(RESULTS), {})
    published, corrected = report.split("## ")[1:3]
    assert published.startswith("Published") and cells(published, "p2p")[2] == "20.00"
    assert corrected.startswith("Corrected") and cells(corrected, "p2p")[2] == "18.00"


def test_parquet_gives_back_every_case(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_parquet(tmp_path / "r.parquet", iter(RESULTS), ["published_psnr"])
    rows = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert [(row["method"], row["case"], row["error"]) for row in rows] == [
        (result.method, result.key, result.error) for result in RESULTS
    ]
    assert rows[0]["published_psnr"] == 20.0 and rows[2]["published_psnr"] is None
    assert rows[3]["row_forwards"] is None and math.isinf(rows[3]["published_psnr"])


def test_page_holds_every_picture_inside_itself(tmp_path):
    data = write_data(tmp_path / "data", 4)
    run, worker = make_run(tmp_path / "out", data, {"half <b>": Counting(("000000000002",))})
    run.go(in_this_process(worker.do))
    keys = list(run.data.cases)[1:3]
    write_page(tmp_path / "page.html", "A & B", run.data, keys, run.methods, run.store)
    text = (tmp_path / "page.html").read_text()
    assert text.count("<section ") == 2 and text.count("data:image/jpeg;base64,") == 4 + 3
    assert "too difficult" in text and "2 of 4 cases" in text
    assert "half &lt;b&gt;" in text and "half <b>" not in text and "A &amp; B" in text
    assert "http" not in text  # nothing is fetched
