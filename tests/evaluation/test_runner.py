"""Runs: every case once, on disk before the next, gone on with after any end."""

import json
import math
import weakref
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from helpers_runs import Counting, make_run, write_data
from PIL import Image
from retrace.evaluation.jobs import Edit, Result
from retrace.evaluation.pie_bench import IMAGES
from retrace.evaluation.report import ALL, average
from retrace.evaluation.runner import Pace, clock, in_this_process
from retrace.evaluation.store import Store, StoreError, write
from retrace.evaluation.worker import BUILT_IN


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data", 6)


def test_every_case_is_edited_once_and_kept_with_its_picture(tmp_path, data):
    method = Counting()
    run, worker = make_run(tmp_path / "out", data, {"half": method})
    run.go(in_this_process(worker.do))
    assert method.calls == list(run.data.cases)
    for result in run.results():
        assert (result.seconds, result.rows, result.error) == (1.5, 20, "")
        picture = np.asarray(Image.open(run.store.picture("half", result.key)))
        assert (picture == run.data.cases[result.key].image() // 2 + 40).all()


def test_a_run_that_was_cut_off_goes_on_without_repeating(tmp_path, data):
    first, again = Counting(), Counting()
    run, worker = make_run(tmp_path / "out", data, {"half": first})
    run.go(lambda jobs: islice(map(worker.do, jobs), 2))
    run, worker = make_run(tmp_path / "out", data, {"half": again})
    run.go(in_this_process(worker.do))
    assert len(first.calls) == 2
    assert first.calls + again.calls == list(run.data.cases)


def test_a_record_that_is_not_whole_is_made_anew(tmp_path, data):
    run, worker = make_run(tmp_path / "out", data, {"half": Counting()})
    run.go(in_this_process(worker.do))
    key = next(iter(run.data.cases))
    run.store.record("half", key).write_text('{"method": "ha')
    method = Counting()
    run, worker = make_run(tmp_path / "out", data, {"half": method})
    run.go(in_this_process(worker.do))
    assert method.calls == [key]


def test_further_metrics_are_measured_without_editing_again(tmp_path, data):
    run, worker = make_run(tmp_path / "out", data, {"half": Counting()}, groups=())
    run.go(in_this_process(worker.do))
    assert not next(run.results()).metrics
    method = Counting()
    run, worker = make_run(tmp_path / "out", data, {"half": method})
    run.go(in_this_process(worker.do))
    assert not method.calls
    result = next(run.results())
    assert result.rows == 20 and math.isfinite(result.metrics["corrected_psnr"])


def test_a_failure_is_kept_with_its_reason_and_tried_again_only_if_asked(tmp_path, data):
    bad = "000000000003"
    run, worker = make_run(tmp_path / "out", data, {"half": Counting((bad,))})
    assert run.go(in_this_process(worker.do)).failed == 1
    assert run.store.read("half", bad).error == "too difficult"
    assert not list(run.todo())
    method = Counting()
    run, worker = make_run(tmp_path / "out", data, {"half": method}, again=True)
    run.go(in_this_process(worker.do))
    assert method.calls == [bad] and not run.store.read("half", bad).error


def test_a_picture_that_breaks_is_a_failure_of_its_cases_only(tmp_path, data):
    run, worker = make_run(tmp_path / "out", data, {"half": Counting()})
    file = data / IMAGES / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    run.go(in_this_process(worker.do))
    errors = {result.key: result.error for result in run.results()}
    assert [key for key, error in errors.items() if error] == ["000000000001", "000000000005"]
    assert "cannot be decoded" in errors["000000000001"]


def test_nothing_changed_measures_as_perfect_and_the_exact_result_as_exact(tmp_path, data):
    run, worker = make_run(tmp_path / "out", data, dict(BUILT_IN))
    run.go(in_this_process(worker.do))
    kept, exact = next(run.results(["no-edit"])), next(run.results(["exact-target"]))
    assert math.isinf(kept.metrics["published_psnr"]) and kept.metrics["corrected_mse"] == 0
    assert math.isfinite(kept.metrics["exact_psnr"])
    assert math.isinf(exact.metrics["exact_psnr"]) and exact.metrics["corrected_psnr"] < 20


def test_other_data_and_other_workflows_of_one_name_are_refused(tmp_path):
    store = Store(tmp_path)
    store.claim({"a": {"1": {}}}, "data")
    store.claim({"b": None}, "data")
    with pytest.raises(StoreError, match="other data"):
        store.claim({"a": {"1": {}}}, "others")
    with pytest.raises(StoreError, match="another workflow called a"):
        store.claim({"a": {"2": {}}}, "data")
    assert set(json.loads((tmp_path / "run.json").read_text())["methods"]) == {"a", "b"}


def test_keys_of_any_kind_name_files_inside_the_folder(tmp_path):
    store = Store(tmp_path)
    result = Result("a b", "../../x/1", "t", metrics={"m": math.inf, "n": math.nan}, picture=b"p")
    store.save(result)
    back = store.read("a b", "../../x/1")
    assert math.isinf(back.metrics["m"]) and math.isnan(back.metrics["n"])
    assert store.picture("a b", "../../x/1").read_bytes() == b"p"
    assert all(tmp_path in path.resolve().parents for path in tmp_path.rglob("*"))


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    file = tmp_path / "deep" / "file"
    write(file, b"one")
    write(file, b"two")
    assert file.read_bytes() == b"two" and [path.name for path in file.parent.iterdir()] == ["file"]


def test_memory_holds_one_case_at_a_time_however_many_there_are(tmp_path):
    data, alive, most = write_data(tmp_path / "data", 600), weakref.WeakValueDictionary(), []

    def watching(job):
        alive[job.key] = job
        most.append(len(alive))
        return Edit(job.source)

    run, worker = make_run(tmp_path / "out", data, {"watching": watching}, groups=())
    pace = run.go(in_this_process(worker.do))
    means = average(run.results())
    assert pace.done.total() == means["watching", ALL].edited == 600
    assert max(most) <= 2  # the one at work, and the one before it


def test_time_left_follows_each_methods_own_pace(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("retrace.evaluation.runner.time.monotonic", lambda: now[0])
    pace = Pace(began=0.0, last=0.0)
    pace.todo.update({"slow": 3, "quick": 2})
    result = Result("slow", "k", "t")
    now[0] = 10.0
    pace.add(result)
    assert pace.left == 2 * 10 + 2 * 10
    now[0] = 12.0
    pace.add(replace(result, method="quick"))
    assert pace.left == 2 * 10 + 1 * 2
    assert "slow: 1 of 3" in pace.line("slow") and "about 22 s left" in pace.line("slow")


def test_clock_reads_as_people_write_it():
    assert [clock(s) for s in (48, 725, 10810)] == ["48 s", "12:05", "3:00:10"]
