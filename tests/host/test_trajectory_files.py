"""Trajectory files through the host's folders."""

import pytest
import torch

pytestmark = pytest.mark.host


@pytest.fixture
def folders(comfy, tmp_path, monkeypatch):
    """Point the host's output and input folders at an empty place."""
    import folder_paths

    for kind in ("output", "input"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    return tmp_path


def make_trajectory(family="test"):
    from retrace.diffusion.trajectory import ModelFacts, Trajectory

    states = torch.arange(3 * 4 * 4, dtype=torch.float32).reshape(3, 1, 1, 4, 4)
    return Trajectory(states, torch.tensor([0.0, 1.0, 2.0]), states[0],
                      ModelFacts(family, "eps", "SD15", 1), source=[[torch.ones(1, 2, 3), {}]])


def test_a_saved_trajectory_is_listed_and_loads(folders):
    from retrace.host.trajectory_files import list_trajectories, load_trajectory, save_trajectory

    name = save_trajectory(make_trajectory(), "retrace/photo")
    assert name == "retrace/photo_00001_.trajectory.safetensors [output]"
    assert list_trajectories() == [name]
    assert torch.equal(load_trajectory(name).latents, make_trajectory().latents)


def test_a_second_file_gets_the_next_number_and_no_part_stays(folders):
    from retrace.host.trajectory_files import save_trajectory

    save_trajectory(make_trajectory(), "photo")
    assert save_trajectory(make_trajectory(), "photo").startswith("photo_00002_")
    assert len(list((folders / "output").iterdir())) == 2


def test_a_file_in_the_input_folder_loads_by_its_plain_name(folders):
    from retrace.diffusion.trajectory_file import to_bytes
    from retrace.host.trajectory_files import list_trajectories, load_trajectory

    path = folders / "input" / "mine.trajectory.safetensors"
    path.write_bytes(to_bytes(make_trajectory()))
    assert list_trajectories() == [path.name]
    assert load_trajectory(path.name).steps == 2


@pytest.mark.parametrize("name", ["nowhere", "../secret", "/etc/hostname", "../secret [output]",
                                  "x [temp]", ""])
def test_names_outside_the_folders_are_refused(name, folders):
    from retrace.diffusion.errors import TrajectoryError
    from retrace.host.trajectory_files import load_trajectory

    (folders / "secret").write_bytes(b"0")
    with pytest.raises(TrajectoryError, match="no trajectory file"):
        load_trajectory(name)


def test_a_prefix_outside_the_output_folder_is_refused(folders):
    from retrace.diffusion.errors import TrajectoryError
    from retrace.host.trajectory_files import save_trajectory

    with pytest.raises(TrajectoryError, match="inside the output folder"):
        save_trajectory(make_trajectory(), "../photo")


def test_the_fingerprint_follows_the_content(folders):
    from retrace.host.trajectory_files import find_trajectory, fingerprint, save_trajectory

    name = save_trajectory(make_trajectory(), "photo")
    before = fingerprint(name)
    find_trajectory(name).write_bytes(b"other")
    assert fingerprint(name) != before


def test_a_loaded_trajectory_of_another_model_is_refused_by_the_edit(folders, tiny3):
    from retrace.diffusion.errors import TrajectoryError
    from retrace.host.editing import run_edit
    from retrace.host.trajectory_files import load_trajectory, save_trajectory

    loaded = load_trajectory(save_trajectory(make_trajectory("SDXL:UNetModel"), "photo"))
    with pytest.raises(TrajectoryError, match="SDXL"):
        run_edit(tiny3, loaded, [[torch.ones(1, 2, 3), {}]], None, cfg=1.0)
