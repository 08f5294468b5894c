"""`knltrain demo`: the whole path, from pictures to a trained network, in one folder and a few minutes.

draw JPEG files → pack them into shards → train on two MPI ranks → evaluate → draw the learning curve. Training and
evaluation are the same commands that a user types; they run as children under mpiexec.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

from ..node.launcher import find_mpiexec
from .pictures import CLASS_NAMES, SIZE, render

TRAIN_PER_CLASS, VAL_PER_CLASS = 400, 50
EXPECTED_TOP1 = 0.95  # the bits do not depend on the machine's ranks or threads, so less is a defect
SHEET_COLUMNS = 10


def demo(out: Path, *, ranks: int = 2, fresh: bool = False):
    """Run the demo in the folder `out`; drawn and packed pictures of an earlier run are used again unless `fresh`.

    Raises: ValueError if `out` holds anything but a demo, if there is no mpiexec or if the network ends below
    EXPECTED_TOP1; ChildProcessError if a child fails.
    """
    begin = time.perf_counter()
    launcher = [str(find_mpiexec()), "-n", str(ranks)] if ranks > 1 else []
    recipe, run = out / "demo.toml", out / "run"
    _claim(out, recipe)
    for folder in ("jpeg", "shards", "run") if fresh else ("run",):
        shutil.rmtree(out / folder, ignore_errors=True)
    for split, per_class in (("train", TRAIN_PER_CLASS), ("val", VAL_PER_CLASS)):
        _draw(out / "jpeg" / split, split, per_class)
        _pack(out / "jpeg" / split, out / "shards" / split)
    _sheet(out / "jpeg" / "val", out / "pictures.png")

    command = [*launcher, sys.executable, "-m", "knltrain"]
    _say(f"training {recipe} on {ranks} ranks")
    run_child([*command, "train", str(recipe), "--run", str(run)])
    _say("evaluating: every picture of the validation set once")
    run_child([*command, "evaluate", str(run)])

    from ..tell.journal import read_log
    from ..tell.plots import learning_curve

    records = read_log(run)
    learning_curve(records, out / "learning_curve.png", "AlexNet-BN with LARS on eight drawn shapes")
    top1 = [record["top1"] for record in records if record["kind"] == "evaluation"][-1]
    if top1 < EXPECTED_TOP1:
        raise ValueError(f"{out}: found top-1 {top1:.2%}, expected at least {EXPECTED_TOP1:.0%}: training is broken")
    _say(f"done in {time.perf_counter() - begin:.0f} s; now there is")
    for path, meaning in (
        (out / "jpeg", "the pictures, in class folders"),
        (out / "pictures.png", "some of them on one sheet"),
        (out / "shards", "the same pictures in HDF5 shards"),
        (recipe, "the recipe, to change and to train again"),
        (run, "log, checkpoints, resolved recipe, machine"),
        (out / "learning_curve.png", "loss and accuracy over epochs"),
    ):
        print(f"  {str(path):34}  {meaning}")


def run_child(command: list[str]):
    """Run a command with this terminal as its own; whatever ends us ends it and its ranks.

    Raises ChildProcessError if it fails.
    """
    # Without a terminal Python would hold the child's lines back until its buffer is full
    child = subprocess.Popen(command, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end by signal must pass through here too
    try:
        code = child.wait()
    except BaseException:
        child.terminate()  # mpiexec hands it on to all ranks
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
        child.kill()
        child.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise ChildProcessError(f"found exit code {code}, expected 0, of: {' '.join(command)}")


def _claim(out, recipe):
    """Make `out` a demo's folder: the recipe in it is the mark by which a later run knows that it may delete there."""
    if out.exists() and not recipe.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: found other files, expected an absent or empty folder or an earlier demo: use --out")
    out.mkdir(parents=True, exist_ok=True)
    if not recipe.exists():
        shutil.copyfile(files(__package__) / "demo.toml", recipe)


def _draw(folder, split, per_class):
    """The pictures of one split; the folder appears under its name only when it is complete."""
    if folder.exists():
        return _say(f"{folder} is there already")
    _say(f"drawing {per_class * len(CLASS_NAMES)} pictures into {folder}")
    partial = folder.with_name(f"{split}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    render(partial, split, per_class)
    partial.rename(folder)


def _pack(source, folder):
    if folder.exists() and any(folder.glob("*.h5")):
        return _say(f"{folder} is there already")
    _say(f"packing {source} into {folder}")
    from ..data import pack

    pack(source, folder, encoding="raw", size=SIZE)


def _sheet(folder, png):
    import numpy as np
    from PIL import Image

    from ..tell.plots import contact_sheet

    rows = []
    for name in CLASS_NAMES:
        some = sorted((folder / name).glob("*.jpg"))[:SHEET_COLUMNS]
        rows.append((name, [np.asarray(Image.open(path)) for path in some]))
    contact_sheet(rows, png, "what is to be told apart")


def _say(text):
    print(f"demo: {text}", flush=True)
