"""The proof of the system: ranks, threads, bucket sizes, kills and resumes change no bit of the result."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mpirun import ROOT, mpiexec, run_here, run_mpi
from ranks import on_ranks

from knltrain.data.shards import Row, finish_shard, write_shard
from knltrain.evaluate import evaluate_run
from knltrain.run.checkpoint import checkpoints, load

IMAGES, SIZE, CLASSES = 52, 28, ("cold", "warm", "green")
COLOURS = ((40, 60, 200), (210, 80, 40), (60, 190, 70))

RECIPE = """
[data]
train = "shards/train"
val = "shards/val"
augmentation = "crop_flip"
crop = 24
pad = 1
[batch]
global_batch = 16
slot_batch = 2
[optim]
variant = "mlperf"
trust_coefficient = 3.0
weight_decay = 1e-4
label_smoothing = 0.1
[schedule]
base_lr = 0.1
warmup_epochs = 1.0
[run]
epochs = 4.0
seed = 5
evaluate_every_epochs = 4
"""
NETWORKS = {
    "resnet": '[model]\nname = "resnet_cifar8"\nwidth = 8\n',
    "alexnet": '[model]\nname = "alexnet_bn"\nwidth = 0.125\nhidden = 32\nstem_size = 3\nstem_stride = 1\n'
    'init = "fan_in"\n',
}
STEPS = 12  # 4 epochs of 52 // 16 steps


def write_set(folder, count, seed, classes=CLASSES):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = i % len(classes)
        picture = rng.normal(COLOURS[label], 40, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
        rows.append(Row(picture, label, f"{classes[label]}/{i:03}.png"))
    temporary = folder / "part.tmp"
    write_shard(temporary, rows, encoding="raw", size=SIZE, first_row=0, class_names=list(classes))
    finish_shard(temporary, folder / "shard-00000.h5", count)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    write_set(folder / "shards" / "train", IMAGES, 1)
    write_set(folder / "shards" / "val", 11, 2)
    for name, model in NETWORKS.items():
        mixed = 'crop = 24\nmixup = 0.3\nmirror = "alternate"' if name == "alexnet" else "crop = 24"
        (folder / f"{name}.toml").write_text(model + RECIPE.replace("crop = 24", mixed))
    return folder


def _train(folder, run, *, ranks=1, threads=1, network="resnet", settings=(), resume=None, timeout=600, **more):
    arguments = ["train", str(folder / f"{network}.toml"), "--run", str(folder / run)]
    for setting in settings:
        arguments += ["--set", setting]
    if resume:
        arguments += ["--resume", resume]
    if ranks == 1:
        return run_here(*arguments, threads=threads)
    return run_mpi(ranks, "-m", "knltrain", *arguments, threads=threads, timeout=timeout, **more)


def _state(folder, run):
    newest = checkpoints(folder / run / "checkpoints")[-1]
    arrays, meta = load(newest)
    assert meta["step"] == STEPS
    return arrays


def _same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert np.array_equal(one[name], two[name]), name


@pytest.fixture(scope="module")
def serial(folder):
    """Final states of the uninterrupted runs on one rank and one thread."""
    states = {}
    for network in NETWORKS:
        run = _train(folder, f"serial-{network}", network=network)
        assert run.returncode == 0, run.stderr
        states[network] = _state(folder, f"serial-{network}")
    return states


@pytest.mark.parametrize(
    ("network", "ranks", "threads", "settings"),
    [
        ("resnet", 2, 1, ["bucket_bytes=0"]),
        ("resnet", 4, 2, ["bucket_bytes=4000", "pretended_nodes=2"]),
        ("alexnet", 1, 2, ["bucket_bytes=1000"]),
        ("alexnet", 4, 1, ["shard_update=true", "algorithm='halving'", "overlap=false"]),
        ("alexnet", 3, 1, ["bucket_bytes=20000", "shard_update=true"]),
    ],
)
def test_train__ranks_threads_and_settings_of_comm_change_no_bit(folder, serial, network, ranks, threads, settings):
    name = f"{network}-{ranks}-{threads}-{len(settings)}"
    settings = [f"comm.{setting}" for setting in settings]
    run = _train(folder, name, ranks=ranks, threads=threads, network=network, settings=settings)
    assert run.returncode == 0, run.stderr
    _same(_state(folder, name), serial[network])


def test_train__without_thread_multiple_exchanges_between_the_layers_and_says_so_once(folder, serial):
    environment = {"MPI4PY_RC_THREAD_LEVEL": "funneled"}
    run = _train(folder, "funneled", ranks=2, settings=["comm.bucket_bytes=9000"], **environment)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("this MPI gives no MPI_THREAD_MULTIPLE") == 1
    assert "exchanged between the layers" in run.stderr
    _same(_state(folder, "funneled"), serial["resnet"])


def test_train__with_too_little_shared_memory_sums_by_messages_and_says_so_once(folder):
    """In a mount namespace whose /dev/shm has room for MPI itself, but not for two gradients of 1.2 MB beside it."""
    small = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    small += ['mount -t tmpfs -o size=4m tmpfs /dev/shm; exec "$@"', "-"]
    if not shutil.which("unshare") or subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces for this user")
    wide = ["model.width=32", "run.epochs=1", "run.evaluate_every_epochs=0", "schedule.warmup_epochs=0"]
    one, two = _train(folder, "wide", settings=wide), _train(folder, "small", ranks=2, settings=wide, before=small)
    assert one.returncode == two.returncode == 0, two.stderr
    assert two.stderr.count("too little shared memory") == 1, two.stderr
    _same(*(load(checkpoints(folder / run / "checkpoints")[-1])[0] for run in ("wide", "small")))


def test_train__learns(folder, serial):
    records = [json.loads(line) for line in (folder / "serial-resnet" / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "step"]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    assert len(losses) == STEPS and losses[-1] < 0.9 * losses[0]
    assert [record["images"] for record in evaluations] == [11]


@pytest.mark.parametrize(("network", "first_ranks", "then_ranks"), [("resnet", 2, 3), ("alexnet", 3, 1)])
def test_train__killed_and_resumed_on_other_ranks_equals_uninterrupted(
    folder, serial, network, first_ranks, then_ranks
):
    name = f"killed-{network}"
    recipe = str(folder / f"{network}.toml")
    command = [mpiexec(), "-n", str(first_ranks), sys.executable, "-m", "knltrain", "train", recipe]
    command += ["--run", str(folder / name), "--set", "run.checkpoint_every_steps=1"]
    env = os.environ | {"NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True, **quiet)
    log = folder / name / "log.jsonl"
    stop_after, limit = {"resnet": 3, "alexnet": 5}[network], time.monotonic() + 100
    while not (log.exists() and log.read_text().count('"kind": "step"') >= stop_after):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    ranks = [place.rpartition(" ")[2] for place in json.loads((log.parent / "machine.json").read_text())["processes"]]
    while any(Path("/proc", rank).exists() for rank in ranks):  # the launcher's death ends them, a moment later
        assert time.monotonic() < limit
        time.sleep(0.01)
    left = load(checkpoints(folder / name / "checkpoints")[-1])[1]["step"]
    assert stop_after - 2 <= left < STEPS  # the newest may still have been in the writing
    run = _train(folder, name, ranks=then_ranks, network=network, resume="auto")
    assert run.returncode == 0, run.stderr
    _same(_state(folder, name), serial[network])


def test_train__a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(folder, serial):
    settings = ["run.checkpoint_every_steps=2"]
    run = _train(folder, "damaged", settings=[*settings, "run.max_steps=6"])
    assert run.returncode == 0, run.stderr
    newest = checkpoints(folder / "damaged" / "checkpoints")[-1]
    data = bytearray(newest.read_bytes())
    data[data.index(load(newest)[0]["value/conv1.w"].tobytes()) + 5] ^= 1
    newest.write_bytes(data)
    run = _train(folder, "damaged", resume="auto")
    assert run.returncode == 0, run.stderr
    assert newest.name in run.stderr and "; trying checkpoint-" in run.stderr
    assert "continuing after step 4" in run.stderr
    _same(_state(folder, "damaged"), serial["resnet"])
    for path in checkpoints(folder / "damaged" / "checkpoints"):
        path.write_bytes(b"")
    run = _train(folder, "damaged", resume="auto")
    assert run.returncode == 2 and "checkpoints are damaged; remove them" in run.stderr
    assert "go on with" not in run.stderr  # the command that has just failed


def test_train__sigterm_saves_and_a_resume_equals_uninterrupted(folder, serial):
    command = [sys.executable, "-m", "knltrain", "train", str(folder / "resnet.toml"), "--run", str(folder / "term")]
    env = os.environ | {"NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log, limit = folder / "term" / "log.jsonl", time.monotonic() + 100
    while not (log.exists() and '"kind": "step"' in log.read_text()):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.005)
    for _ in range(2):  # SLURM sends it to the ranks, and to srun, which sends it to the ranks
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert "stopped as asked after step" in stderr
    assert (folder / "term" / "status").read_text().startswith("stopped step ")
    run = _train(folder, "term", resume="auto")
    assert run.returncode == 0, run.stderr
    _same(_state(folder, "term"), serial["resnet"])


# ---- what bad input gets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "settings", "message"),
    [
        (3, ["batch.slot_batch=8"], "3 ranks cannot share 2 slots (global_batch / slot_batch); expected at most 2"),
        (1, ["batch.globel_batch=8"], "global_batch"),
        (1, ["data.train='nowhere'"], "nowhere"),
        (2, ["data.val='nowhere'"], "nowhere"),
        (1, ["model.name='resnet51'"], "expected one of 18, 34, 50"),
        (1, ["batch.global_batch=4000", "batch.slot_batch=4000"], "expected at most 52"),
        (1, ["optim.momentum='high'"], "momentum"),
    ],
)
def test_train__bad_input_is_one_line_and_leaves_nothing(folder, tmp_path, ranks, settings, message):
    run = tmp_path / "run"
    result = _train(folder, run, ranks=ranks, settings=settings, timeout=180)
    lines = [line for line in result.stderr.splitlines() if "error" in line and "knltrain" in line]
    assert result.returncode != 0
    assert len(lines) == 1 and message in lines[0], result.stderr
    assert "Traceback" not in result.stderr
    assert not run.exists()


def test_train__a_run_folder_is_not_overwritten(folder, serial):
    result = _train(folder, "serial-resnet")
    assert result.returncode != 0 and "--resume auto" in result.stderr
    _same(_state(folder, "serial-resnet"), serial["resnet"])


def test_train__a_checkpoint_of_another_model_is_refused(folder, serial):
    result = _train(folder, "serial-alexnet", network="resnet", resume="auto")
    assert result.returncode != 0 and "begun with model.name = 'alexnet_bn'" in result.stderr


def test_train__a_run_of_another_experiment_is_refused(folder, serial):
    before = (folder / "serial-resnet" / "recipe.toml").read_bytes()
    result = _train(folder, "serial-resnet", resume="auto", settings=["run.seed=6", "run.keep_checkpoints=5"])
    assert result.returncode != 0 and "begun with run.seed = 5, now it is 6" in result.stderr
    other = _train(folder, "serial-resnet", resume="auto", settings=["model.width=6"])
    assert "begun with model.width = " in other.stderr and ", now it is 6" in other.stderr
    assert (folder / "serial-resnet" / "recipe.toml").read_bytes() == before


def test_train__a_loss_that_is_not_finite_stops_all_ranks(folder, tmp_path):
    settings = ["schedule.base_lr=1e6", "schedule.policy=constant", "schedule.warmup_epochs=0"]
    settings += ["optim.trust_coefficient=0.0"]
    result = _train(folder, tmp_path / "run", ranks=2, network="alexnet", settings=settings, timeout=300)
    assert result.returncode != 0
    assert "the loss is not finite in step" in result.stderr and re.search(r"learning rate \d\S*e\+", result.stderr)
    assert "last good checkpoint: none" in result.stderr


def test_train__too_little_memory_says_how_much(monkeypatch):
    from knltrain.models import Model, build, model

    monkeypatch.setattr(model, "memory_free", lambda: 3 << 30)
    with pytest.raises(ValueError, match=r"slot_batch 512 needs 3\d\.\d GiB, this machine has 3.0 GiB free"):
        Model(*build("resnet50"), 512)


FAILING = """
import sys
from knltrain.cli import all_ranks
from knltrain.comm import world
with all_ranks(world()) as comm:
    if comm.rank == 1:
        {what}
    comm.barrier()
"""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("{}['missing']", "KeyError: 'missing'"),
        ("raise SystemExit(3)", "rank 1"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ""),
    ],
)
def test_ranks__one_failing_rank_ends_all(tmp_path, what, message):
    script = tmp_path / "failing.py"
    script.write_text(FAILING.format(what=what))
    begin = time.monotonic()
    result = run_mpi(2, str(script), timeout=180)
    assert result.returncode != 0
    assert message in result.stderr
    assert time.monotonic() - begin < 30


# ---- evaluation ------------------------------------------------------------------------------------------------


def _evaluate_as_threads(run, ranks, capsys):
    on_ranks(ranks, lambda comm: evaluate_run(run, None, [], False, comm))
    return capsys.readouterr().out


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_evaluate__counts_every_image_once_on_any_number_of_ranks(folder, serial, ranks, capsys):
    run = folder / "serial-resnet"
    if ranks == 3:
        result = run_mpi(ranks, "-m", "knltrain", "evaluate", str(run))
        assert result.returncode == 0, result.stderr
    lines = (result.stdout if ranks == 3 else _evaluate_as_threads(run, ranks, capsys)).splitlines()
    assert len(lines) == 2 and "11 images, each counted once" in lines[0]
    records = [json.loads(line) for line in (folder / "serial-resnet" / "log.jsonl").read_text().splitlines()]
    top1 = next(record["top1"] for record in records if record["kind"] == "evaluation")
    assert lines[1].startswith(f"top-1 {top1:.2%}")


def test_evaluate__refuses_data_with_other_classes(folder, serial, tmp_path):
    write_set(tmp_path / "val", 9, 3, ("cold", "green", "warm"))
    result = run_here("evaluate", folder / "serial-resnet", "--data", tmp_path / "val")
    assert result.returncode != 0 and "other classes" in result.stderr


def test_evaluate__falls_back_when_the_best_checkpoint_is_damaged(folder, serial):
    assert _train(folder, "fallback").returncode == 0
    best = folder / "fallback" / "checkpoints" / f"checkpoint-{STEPS:07}.h5"
    best.write_bytes(best.read_bytes()[:-100])
    result = run_here("evaluate", folder / "fallback")
    assert result.returncode == 0 and best.name in result.stderr and f"(step {STEPS - 3})" in result.stdout


def test_evaluate__says_that_the_note_of_the_best_checkpoint_is_damaged(folder, serial):
    assert _train(folder, "noteless").returncode == 0
    (folder / "noteless" / "checkpoints" / "best.json").write_text("{broken")
    result = run_here("evaluate", folder / "noteless")
    assert result.returncode == 0 and "best.json: damaged" in result.stderr and f"(step {STEPS})" in result.stdout


@pytest.mark.parametrize("path", ["nowhere", "shards/train", "resnet.toml"])
def test_evaluate__names_what_is_no_run(folder, path):
    result = run_here("evaluate", folder / path)
    assert result.returncode != 0 and f"{folder / path}: no run folder" in result.stderr
