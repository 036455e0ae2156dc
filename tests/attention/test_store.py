"""The attention store: its size before it exists, what it returns, where it lives and dies."""

import copy
import gc
import threading
from pathlib import Path

import pytest
import torch
from retrace.attention.sites import Site, select_sites
from retrace.attention.store import (
    AttentionStore,
    Recorder,
    SiteShape,
    Slot,
    StoreSpec,
    fingerprint,
)
from retrace.diffusion.errors import BlockSelectionError, DivergenceError, PlanError

SELF = Site("self", "input", 1, 0, 0, 1)
CROSS = Site("cross", "input", 1, 0, 0, 1)
DEEP = Site("self", "output", 3, 0, 1, 2)


def make_spec(**changes) -> StoreSpec:
    fields = {
        "trajectory": "a", "negative": "", "steps": (2, 3), "total_steps": 5, "images": 2,
        "height": 4, "width": 6,
        "sites": ((SELF, SiteShape(8, 2)), (CROSS, SiteShape(16, 2)), (DEEP, SiteShape(8, 2))),
        "halves": ("cond",), "tokens": 7, "dtype": "fp32",
    }  # fmt: skip
    return StoreSpec(**{**fields, **changes})


def fill(spec: StoreSpec, place: str = "cpu", folder: Path | None = None) -> AttentionStore:
    recorder = Recorder(spec, place, folder=folder)
    for number, (slot, shape) in enumerate(spec.slots().items()):
        for step in spec.steps:
            wanted = shape if slot.part == "key" else shape[1:]
            recorder.write(slot, step, torch.full(wanted, float(100 * number + step)))
    return recorder.finish()


def test_the_size_is_what_the_tensors_take():
    spec = make_spec()
    hidden = 2 * 2 * 24 * 8 + 2 * 2 * 6 * 8
    cross = 2 * 2 * 24 * 16 + 2 * 7 * 16
    assert spec.size_bytes == pytest.approx(4 * (hidden + cross), abs=64 * 4)
    assert make_spec(dtype="fp16").size_bytes == pytest.approx(spec.size_bytes / 2, abs=64 * 4)
    store = fill(spec)
    held = sum(tensor.untyped_storage().nbytes() for tensor in store.tensors)
    assert store.size_bytes == pytest.approx(held, abs=64 * 4)


def test_a_store_over_its_budget_is_refused_with_both_sizes():
    spec = make_spec()
    spec.check_budget(spec.size_bytes, "cpu")
    with pytest.raises(PlanError, match=r"needs .* MB, but the budget is .* MB.*fp16.*disk"):
        spec.check_budget(spec.size_bytes - 1, "cpu")


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_what_was_written_is_read(place, tmp_path):
    store = fill(make_spec(), place, tmp_path)
    for number, slot in enumerate(store.slots):
        for step in (2, 3):
            expected = 100 * number + (3 if slot.part == "key" else step)
            assert bool((store.read(slot, step) == expected).all())


def test_values_come_back_in_the_dtype_that_is_asked_for():
    store = fill(make_spec(dtype="bf16"))
    like = torch.zeros(1, dtype=torch.float32)
    values = store.read(Slot("hidden", SELF), 2, like)
    assert values.dtype == torch.float32
    assert values.shape == (2, 24, 8)


def test_the_file_on_disk_goes_with_the_store(tmp_path):
    store = fill(make_spec(), "disk", tmp_path)
    path = Path(store.file.path)
    assert path.parent == tmp_path
    assert path.stat().st_size == store.size_bytes
    del store
    gc.collect()
    assert not path.exists()


def test_a_copy_of_a_model_shares_the_store():
    store = fill(make_spec())
    assert copy.deepcopy({"options": [store]})["options"][0] is store
    assert not any(hasattr(store, name) for name in ("to", "models", "cleanup"))


def test_threads_read_the_same_values(tmp_path):
    store = fill(make_spec(), "disk", tmp_path)
    slot, sums = Slot("hidden", DEEP), []

    def read() -> None:
        sums.extend(float(store.read(slot, 3).sum()) for _ in range(50))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sums) == 200
    assert len(set(sums)) == 1


def test_a_step_that_was_not_recorded_is_an_error():
    store = fill(make_spec())
    with pytest.raises(PlanError, match=r"no hidden of self input\.1\.0 .* at step 1"):
        store.read(Slot("hidden", SELF), 0)
    with pytest.raises(PlanError, match="uncond"):
        store.read(Slot("hidden", SELF, "uncond"), 2)


def test_an_unfinished_recording_makes_no_store():
    recorder = Recorder(make_spec())
    recorder.write(Slot("hidden", SELF), 2, torch.zeros(2, 24, 8))
    with pytest.raises(PlanError, match="not recorded"):
        recorder.finish()


def test_values_beyond_half_precision_are_an_error():
    recorder = Recorder(make_spec(dtype="fp16"))
    with pytest.raises(DivergenceError, match="bf16"):
        recorder.write(Slot("hidden", SELF), 2, torch.full((2, 24, 8), 1e6))


def test_fingerprints_tell_contents_and_shapes_apart():
    x = torch.arange(6.0)
    assert fingerprint([x]) == fingerprint([x.clone()])
    assert len({fingerprint([y]) for y in (x, x + 1, x.view(2, 3), x.double())}) == 4


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("all", "", [SELF, CROSS, DEEP]),
        ("self", "", [SELF, DEEP]),
        ("all", "output", [DEEP]),
        ("self", "1", [DEEP]),
        ("self", "0-1", [SELF, DEEP]),
        ("all", "input.1.0, output.3", [SELF, CROSS, DEEP]),
    ],
)
def test_layers_are_selected_by_kind_address_and_number(kind, text, expected):
    assert list(select_sites((SELF, CROSS, DEEP), kind, text)) == expected


@pytest.mark.parametrize("text", ["input.11", "7", "nothing"])
def test_a_selection_that_matches_nothing_names_what_there_is(text):
    with pytest.raises(BlockSelectionError, match=r"input\.1, output\.3"):
        select_sites((SELF, CROSS, DEEP), "all", text)
