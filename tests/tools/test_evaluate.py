"""`host.py evaluate` without a server: workers, resuming, the command line."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from evaluating.command import limited, read_methods, spread
from evaluating.plan import Plan
from evaluating.pools import LocalPool
from helpers_runs import make_run, write_data
from hosting.errors import HostError
from hosting.layout import REPOSITORY
from retrace.evaluation.jobs import load_data
from retrace.evaluation.runner import in_this_process
from retrace.evaluation.worker import BUILT_IN

COMMAND = [sys.executable, str(REPOSITORY / "tools" / "evaluate.py")]


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file()}  # fmt: skip


@pytest.mark.timeout(120)
def test_two_workers_give_the_bytes_of_one_process_though_one_is_killed(tmp_path):
    data = write_data(tmp_path / "data", 12)
    one, worker = make_run(tmp_path / "one", data, dict(BUILT_IN))
    one.go(in_this_process(worker.do))
    two, _ = make_run(tmp_path / "two", data, dict(BUILT_IN))
    with LocalPool(Plan(dict.fromkeys(BUILT_IN), None, tmp_path / "servers"), 2) as pool:

        def killing(jobs):
            for number, result in enumerate(pool(jobs)):
                if number == 3:
                    os.kill(pool.hands[0].process.pid, signal.SIGKILL)
                yield result

        two.go(killing)
        processes = [hand.process for hand in pool.hands]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "one")) == 2 * 2 * 12
    assert not any(process.is_alive() for process in processes)


def test_methods_are_files_names_of_ours_or_built_in(tmp_path):
    (tmp_path / "mine.json").write_text('{"1": {"class_type": "X", "inputs": {}}}')
    found = read_methods(f"{tmp_path}/mine.json, no-edit,direct_p2p")
    assert list(found) == ["mine", "no-edit", "direct_p2p"]
    assert found["no-edit"] is None and "nodes" in found["direct_p2p"]


@pytest.mark.parametrize(("methods", "words"), [
    ("nothing", "no workflow nothing.*direct_p2p.*no-edit"), ("", "no method"),
    ("no-edit,no-edit", "two methods are called no-edit"),
])  # fmt: skip
def test_methods_that_are_none_are_refused(methods, words):
    with pytest.raises(HostError, match=words):
        read_methods(methods)


def test_a_limit_takes_cases_from_all_over_the_data(tmp_path):
    data = load_data(write_data(tmp_path / "data", 10))
    assert list(limited(data, 3).cases) == ["000000000001", "000000000005", "000000000008"]
    assert limited(data, 99) is data and spread([1, 2], 5) == [1, 2]


def test_ray_that_is_not_installed_is_said_in_one_sentence(monkeypatch):
    from evaluating.cluster import import_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HostError, match="pip install ray"):
        import_ray()


def table(out):
    """The report without its seconds, which differ from run to run."""
    report = (out / "report.md").read_text()
    return re.sub(r"\d+ cases of .*", "", report)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_moments_it_ends_with_the_same_table(tmp_path):
    data = write_data(tmp_path / "data", 400)
    arguments = ["--data", str(data), "--methods", "no-edit,exact-target", "--workers", "2"]
    began = time.monotonic()
    subprocess.run([*COMMAND, *arguments, "--out", str(tmp_path / "whole")], check=True)
    whole = time.monotonic() - began
    moments, killed = random.Random(7), 0
    while killed < 5:
        run = subprocess.Popen([*COMMAND, *arguments, "--out", str(tmp_path / "cut")])
        time.sleep(moments.uniform(0.3, 0.9) * whole)
        killed += run.poll() is None
        run.kill()
        run.wait()
        if run.returncode == 0:
            break
    subprocess.run([*COMMAND, *arguments, "--out", str(tmp_path / "cut")], check=True)
    assert killed >= 2
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    for name in ("records", "edits"):
        assert contents(tmp_path / "cut" / name) == contents(tmp_path / "whole" / name)
    assert len(contents(tmp_path / "cut" / "records")) == 800


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_cases_run_in_bounded_memory(tmp_path):
    peaks = {}
    for count in (100, 10_000):
        data = write_data(tmp_path / f"data{count}", count)
        out = tmp_path / f"out{count}"
        run = subprocess.Popen([*COMMAND, "--data", str(data), "--methods", "no-edit", "--out",
                                str(out)])  # fmt: skip
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
        assert run.returncode == 0
        peaks[count] = usage.ru_maxrss / 1024
        records = list((out / "records" / "no-edit").iterdir())
        assert len(records) == count
        assert not any(json.loads(file.read_text())["error"] for file in records[::100])
    assert peaks[10_000] < peaks[100] + 150, peaks
