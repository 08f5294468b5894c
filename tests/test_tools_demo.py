"""The demo's pictures, its folder, its children and its figures; the whole demo is a target of its own."""

import subprocess
import sys
import time

import numpy as np
import pytest

from knltrain.node import launcher
from knltrain.tell import plots
from knltrain.tools import demo, pictures


def test_picture__is_a_function_of_its_key():
    one, same, other = (pictures.picture(pictures.star, np.random.default_rng(key)) for key in (1, 1, 2))
    assert one.shape == (pictures.SIZE, pictures.SIZE, 3) and one.dtype == np.uint8
    assert (one == same).all() and (one != other).any()


@pytest.mark.parametrize("shape", pictures.SHAPES, ids=pictures.CLASS_NAMES)
def test_shape__is_a_distance_within_the_unit_disk(shape):
    v, u = np.mgrid[-1.5:1.5:121j, -1.5:1.5:121j]
    d = shape(u, v)
    steepest = np.hypot(*np.gradient(d, 3 / 120)).max()
    assert (d[np.hypot(u, v) > 1.21] > 0).all()  # the corners of the square are at 1.202
    assert 0.15 < (d < 0).mean() * 9 / np.pi < 1.01  # covered share of the unit disk
    assert 0.9 < steepest < 1.5  # so that one pixel of distance is about one pixel of edge


def test_classes__are_sorted_as_their_folders_will_be():
    assert sorted(pictures.CLASS_NAMES) == list(pictures.CLASS_NAMES)


def test_render__writes_class_folders(tmp_path):
    pictures.render(tmp_path / "val", "val", 2)
    assert sorted(path.name for path in (tmp_path / "val").iterdir()) == list(pictures.CLASS_NAMES)
    assert len(list((tmp_path / "val").glob("*/*.jpg"))) == 16


def test_mean_colour__does_not_tell_the_class():
    """Means of the classes differ by less than pictures of one class do: nothing to learn from colour alone."""
    rng = np.random.default_rng(0)
    means = np.array([[pictures.picture(s, rng).mean((0, 1)) for _ in range(40)] for s in pictures.SHAPES])
    assert means.mean(1).std(0).max() < 0.5 * means.std(1).mean()


def test_folder__with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="use --out"):
        demo.demo(tmp_path, ranks=1, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_mpiexec__absent_names_the_cure(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"pip install knltrain\[mpi\]"):
        launcher.find_mpiexec()


def test_child__that_fails_is_an_error():
    with pytest.raises(ChildProcessError, match="found exit code 3, expected 0"):
        demo.run_child([sys.executable, "-c", "raise SystemExit(3)"])


def test_child__ends_with_its_parent(monkeypatch):
    started = []

    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            if not started:
                started.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        demo.run_child([sys.executable, "-c", "import time; time.sleep(60)"])
    assert started[0].returncode is not None and time.monotonic() - begin < 10


def test_curve__is_drawn_from_a_log(tmp_path):
    records = [{"kind": "step", "step": i, "epoch": i / 10, "loss": 2 / (i + 1), "lr": 0.1} for i in range(50)]
    records += [{"kind": "evaluation", "step": 10 * e, "epoch": e, "top1": e / 5, "top5": 1.0} for e in range(1, 6)]
    plots.learning_curve(records, tmp_path / "curve.png", "a run")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_curve__of_an_empty_log_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no training step"):
        plots.learning_curve([], tmp_path / "curve.png", "a run")


def test_running_mean__does_not_lag():
    line = np.arange(200.0)
    np.testing.assert_allclose(plots.smooth(line), line)
    step = np.repeat([0.0, 1.0], 100)
    np.testing.assert_allclose(plots.smooth(step)[97:103], [0, 0.2, 0.4, 0.6, 0.8, 1])  # a fortieth of 200: 5 values
