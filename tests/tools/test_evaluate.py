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
from evaluating.command import (
    limited,
    main,
    read_methods,
    read_settings,
    spread,
    with_settings,
)
from evaluating.marks import set_widgets
from evaluating.plan import Plan
from evaluating.pools import LocalPool
from evaluating.servers import Served, end_left_behind
from helpers_runs import make_run, write_data
from hosting.errors import HostError, ServerError
from hosting.layout import REPOSITORY
from retrace.evaluation.jobs import load_data
from retrace.evaluation.pie_bench import MAPPING
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


def test_damaged_entries_are_reported_by_id_and_the_rest_is_done(tmp_path, capfd):
    data = write_data(tmp_path / "data", 6)
    file = data / MAPPING
    entries = json.loads(file.read_text())
    entries["000000000000"]["image_path"] = "nowhere.png"
    entries["000000000001"]["mask"] = [3, 4, 5]
    entries["000000000002"]["editing_type_id"] = "17"
    entries["000000000003"]["blended_word"] = "cat"
    file.write_text(json.dumps(entries))
    out = tmp_path / "out"
    assert main(["--data", str(data), "--methods", "no-edit,exact-target", "--out", str(out)]) == 0
    said = capfd.readouterr()
    said = said.out + said.err
    for key, words in (("0", "nowhere.png is missing"), ("1", "has 3 numbers"), ("2", "'17'"),
                       ("3", "not two words")):  # fmt: skip
        assert re.search(rf"left out 00000000000{key}: .*{words}", said)
    report = (out / "report.md").read_text()
    assert "# 2 cases of data, 2 methods" in report and "4 damaged entries were left out" in report
    done = sorted(path.name for path in (out / "records" / "no-edit").iterdir())
    assert done == ["000000000004.json", "000000000005.json"]
    assert all((out / name).stat().st_size for name in ("sheet.jpg", "index.html"))


def test_widgets_are_set_in_all_workflows_or_in_one():
    methods = {"a": {}, "b": {}, "no-edit": None}
    found = read_settings(["steps=25", "b.steps=12", "b.mode=soft"], methods)
    assert found == {"a": {"steps": 25}, "b": {"steps": 12, "mode": "soft"}}
    assert with_settings(methods, {"a": {"steps": 25}})["a"] != with_settings(methods, {})["a"]
    prompt = {"1": {"inputs": {"steps": 50, "cfg": ["2", 0]}}, "2": {"inputs": {"steps": 9}}}
    changed = set_widgets("a", prompt, {"steps": 25})
    assert [node["inputs"]["steps"] for node in changed.values()] == [25, 25]
    assert prompt["1"]["inputs"]["steps"] == 50
    with pytest.raises(HostError, match=r"no node has a widget cfg.*--set METHOD\.cfg=3"):
        set_widgets("a", prompt, {"cfg": 3})


@pytest.mark.parametrize(("text", "words"), [
    ("steps", "write NAME=VALUE"), ("c.steps=2", "no workflow c"), ("no-edit.x=2", "no workflow"),
])  # fmt: skip
def test_settings_that_are_none_are_refused(text, words):
    with pytest.raises(HostError, match=words):
        read_settings([text], {"a": {}, "no-edit": None})


def test_a_run_that_has_ended_starts_no_server_again(tmp_path, monkeypatch):
    started = []

    class FakeServer:
        process = client = None

        def __init__(self, *_, **__):
            started.append(self)
            self.stopped = False

        def __enter__(self):
            self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            return self

        def check_pack(self):
            self.client = object()

        def stop(self):
            self.stopped = self.process.kill() or self.process.wait() != 0

    monkeypatch.setattr("evaluating.servers.Server", FakeServer)
    served = Served({"a": {}}, None, tmp_path, True)
    assert served.client() is served.client() is started[0].client
    served.end()
    assert started[0].stopped and not (tmp_path / "server.pid").exists()
    with pytest.raises(ServerError, match="has ended"):
        served.client()
    assert len(started) == 1


def test_the_server_of_a_worker_that_was_killed_is_ended_and_no_other(tmp_path):
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    left = subprocess.Popen([*sleep, str(tmp_path / "base")])
    other = subprocess.Popen(sleep)
    try:
        for process in (other, left):
            (tmp_path / "server.pid").write_text(str(process.pid))
            end_left_behind(tmp_path)
        left.wait(10)  # raises if it is still there
        assert other.poll() is None
    finally:
        left.kill()
        other.kill()
        left.wait()
        other.wait()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_five_random_moments_it_ends_with_the_same_table(tmp_path):
    data, cut = write_data(tmp_path / "data", 400), tmp_path / "cut"
    command = [*COMMAND, "--data", str(data), "--methods", "no-edit,exact-target",
               "--workers", "2", "--out"]  # fmt: skip
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    moments = random.Random(7)
    for count in sorted(moments.sample(range(20, 790), 5)):
        run = subprocess.Popen([*command, str(cut)])
        while sum(1 for _ in cut.glob("records/*/*.json")) < count:
            assert run.poll() is None
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.05))
        run.kill()
        assert run.wait() == -signal.SIGKILL
    subprocess.run([*command, str(cut)], check=True)
    for name in ("records", "edits"):
        assert contents(cut / name) == contents(tmp_path / "whole" / name)
    assert len(contents(cut / "records")) == 800
    assert (cut / "report.md").read_text() == (tmp_path / "whole" / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_of_a_ray_cluster_give_the_bytes_of_one_process(tmp_path):
    pytest.importorskip("ray")
    data = write_data(tmp_path / "data", 40)
    command = [*COMMAND, "--data", str(data), "--methods", "no-edit,exact-target", "--out"]
    subprocess.run([*command, str(tmp_path / "one")], check=True)
    ray = ["--ray", "local", "--workers", "2"]
    subprocess.run([*command, str(tmp_path / "ray"), *ray], check=True)
    for name in ("records", "edits"):
        assert contents(tmp_path / "ray" / name) == contents(tmp_path / "one" / name)
    assert (tmp_path / "ray" / "report.md").read_text() == (
        tmp_path / "one" / "report.md"
    ).read_text()


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
