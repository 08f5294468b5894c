"""The job scripts on a real SLURM of four emulated nodes: to the end, through time limits, crashes and arrays."""

import os
import re
import shlex
import sys
import time

import pytest
from mpirun import ROOT, mpiexec
from slurm import Cluster, missing
from tinyrun import STEPS, newest_state, same, train, write_recipe

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

OPTIONS = ["--cpus-per-task=4", "--time=10"]  # numbers only: everything else is the script's own
JOB = "jobs/alexnet_512knl.sh"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    write_recipe(folder)
    (folder / "train").symlink_to("shards")
    (folder / "val").symlink_to("shards")
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    mpiexec()  # skips where there is no MPI
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def whole(folder):
    result = train(folder, "whole")
    assert result.returncode == 0, result.stderr
    return newest_state(folder, "whole")


class Submitted:
    """A training job in the run folder `run`."""

    def __init__(self, cluster, folder, run, *arguments, nodes=4, options=(), **environment):
        self.cluster, self.run, self.out = cluster, folder / run, folder / f"{run}.out"
        env = {"DATA": str(folder), "RUN": str(self.run), "RECIPE": str(folder / "tiny.toml")}
        env |= {"KNLTRAIN_VENV": "none", "PATH": os.path.dirname(sys.executable) + os.pathsep + cluster.env["PATH"]}
        env |= {"NUMBA_NUM_THREADS": "1", "KNLTRAIN_BIND": "0"} | environment
        command = ["-N", str(nodes), *OPTIONS, "-o", str(self.out), *options, JOB, *arguments]
        self.id = cluster.submit(*command, env=env, cwd=ROOT)

    def text(self):
        return self.out.read_text(errors="replace") if self.out.exists() else ""

    def wait(self, *states, timeout=600):
        try:
            return self.cluster.wait(self.id, *([states] if states else []), timeout=timeout)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.text()}") from None

    def until_step(self, step, timeout=600):
        limit, log = time.monotonic() + timeout, self.run / "log.jsonl"
        while not (log.exists() and f'"step": {step},' in log.read_text()):
            assert time.monotonic() < limit, self.text()
            time.sleep(0.1)

    def warn(self):
        """What SLURM does before the time limit: USR1 to the batch script (it looks at limits only twice a minute)."""
        self.cluster.run("scancel", "--signal=USR1", "--batch", self.id)


SLOW = ("--inject", "slow:ms=300")


def test_job__runs_to_the_end_on_four_nodes_and_says_so_when_submitted_again(cluster, folder, whole):
    job = Submitted(cluster, folder, "plain")
    assert job.wait() == "COMPLETED", job.text()
    assert "on 4 ranks" in job.text() and f"status: done step {STEPS}" in job.text()
    same(newest_state(folder, "plain"), whole)
    again = Submitted(cluster, folder, "plain")
    assert again.wait() == "COMPLETED" and "nothing is left to train" in again.text()


def test_job__with_ranks_that_share_a_node_leaves_mpi_in_peace(cluster, folder, whole):
    """MPICH over OFI aborts in MPI_Finalize, after all work is done, where a shared window is left."""
    job = Submitted(cluster, folder, "shared", nodes=2, options=["--ntasks-per-node=2"])
    assert job.wait() == "COMPLETED", job.text()
    assert '"shared memory' in (job.run / "machine.json").read_text() and "the ranks ended with 0" in job.text()
    same(newest_state(folder, "shared"), whole)


def test_job__before_its_time_limit_saves_requeues_and_goes_on_with_two_nodes_for_four(cluster, folder, whole):
    job = Submitted(cluster, folder, "limit", *SLOW)
    job.until_step(3)
    begin = time.monotonic()
    job.warn()
    cluster.start_now(job.id, "NumNodes=2-2", "NumTasks=2")
    assert time.monotonic() - begin < 15
    assert job.wait() == "COMPLETED", job.text()
    text = job.text()
    assert "asked to stop" in text and "back into the queue" in text, text
    assert "on 4 ranks" in text and "on 2 ranks" in text and "continuing after step" in text, text
    same(newest_state(folder, "limit"), whole)


def test_tutorial__its_line_of_srun_trains(cluster, folder):
    (line,) = re.findall(r"```\n(srun .*?)```", (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"), re.DOTALL)
    smaller = {"=16": "=2", "=64": "=4", "my_recipe": str(folder / "tiny"), "runs/mine": str(folder / "tutorial")}
    for printed, here in smaller.items():
        assert line.count(printed) == 1
        line = line.replace(printed, here)
    path = os.path.dirname(sys.executable) + os.pathsep + cluster.env["PATH"]
    env = {"PATH": path, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1"}
    cluster.run(*shlex.split(line.replace("\\\n", " ")), "--set", "run.max_steps=2", timeout=600, env=env)
    assert (folder / "tutorial" / "DONE").exists()


def test_readme__its_doctor_looks_at_four_nodes(cluster, folder):
    """As printed; it may find that these emulated nodes are not well, and then says so."""
    (line,) = re.findall(r"\n(srun .*--data shards/train)", (ROOT / "README.md").read_text(encoding="utf-8"))
    words = shlex.split(line)
    assert words[:3] == ["srun", "-N", "4"]
    words[words.index("shards/train")] = str(folder / "shards")
    path = os.path.dirname(sys.executable) + os.pathsep + cluster.env["PATH"]
    env = {"PATH": path, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1", "KNLTRAIN_BIND": "0"}
    told = cluster.run(*words, timeout=300, env=env, check=False)
    assert re.search(r"\d+ wrong, \d+ findings on 4 ranks", told), told


def test_job__that_is_cancelled_saves_and_does_not_come_back(cluster, folder, whole):
    job = Submitted(cluster, folder, "cancel", *SLOW, nodes=2)
    job.until_step(3)
    cluster.run("scancel", job.id)
    assert job.wait() == "CANCELLED", job.text()
    limit = time.monotonic() + 30
    while "the ranks ended" not in job.text() and time.monotonic() < limit:
        time.sleep(0.2)
    assert "status: stopped step" in job.text() and "back into the queue" not in job.text(), job.text()
    assert cluster.job(job.id)["Restarts"] == "0"
    again = Submitted(cluster, folder, "cancel", nodes=1)
    assert again.wait() == "COMPLETED" and "continuing after step" in again.text(), again.text()
    same(newest_state(folder, "cancel"), whole)


def test_job__that_is_preempted_saves_within_the_grace_and_comes_back(cluster, folder, whole):
    """It ends before the grace does, and SLURM would take it as done: it has to go back by itself."""
    job = Submitted(cluster, folder, "preempted", *SLOW, nodes=2)
    job.until_step(3)
    cluster.submit("-p", "urgent", "-N", "4", "--time=1", "-o", "/dev/null", "--wrap", "true")
    cluster.start_now(job.id)
    assert job.wait() == "COMPLETED", job.text()
    text = job.text()
    lost = text.count("mpi/pmi2: failed to send temp kvs")  # SLURM's own, on a busy machine: the job queues once more
    assert "status: stopped step" in text and text.count("back into the queue") == 1 + lost, text
    assert "continuing after step" in text, text
    same(newest_state(folder, "preempted"), whole)


@pytest.mark.parametrize("old", ["done step 12", "stopped step 3", None])
def test_job__does_not_believe_an_old_status(cluster, folder, old):
    run = folder / f"stale{old and old[:4]}"
    if old:
        run.mkdir()
        (run / "status").write_text(old + "\n")
    job = Submitted(cluster, folder, run.name, "--set", "data.train=/nowhere", nodes=1)
    assert job.wait() == "FAILED", job.text()
    assert "status: failed ShardError" in job.text() and "back into the queue" not in job.text()
    assert (run / "status").read_text().startswith("failed ShardError: /nowhere")


def test_job__second_in_a_run_folder_is_refused_and_the_first_goes_on(cluster, folder):
    first = Submitted(cluster, folder, "shared_run", "--inject", "slow:ms=3000", nodes=2)
    first.until_step(1)
    second = Submitted(cluster, folder, "shared_run", nodes=2, options=["-o", str(folder / "second.out")])
    assert second.wait() == "FAILED"
    text = (folder / "second.out").read_text()
    assert "not started: " in text and "belongs to a run that is alive" in text and "job " + first.id in text, text
    assert not list(first.run.glob("stop*")) and not list(first.run.glob("refused*"))
    (first.run / "stop").touch()
    assert first.wait() == "COMPLETED" and "status: stopped step" in first.text(), first.text()


def test_job__whose_time_limit_is_shorter_than_the_warning_says_so_at_once(cluster, folder):
    job = Submitted(cluster, folder, "short", nodes=1, options=["--time=3"])
    assert job.wait() == "FAILED"
    assert "ask for a longer --time" in job.text() and not (folder / "short").exists()


def test_job__whose_node_dies_is_requeued_and_goes_on_on_the_others(cluster, folder, whole):
    settings = ["--set", "run.checkpoint_every_steps=1"]
    job = Submitted(cluster, folder, "node", *SLOW, *settings, nodes=2, options=["-w", "knl002,knl003"])
    job.until_step(4)
    cluster.kill_node("knl003")
    try:
        cluster.run("scontrol", "update", f"JobId={job.id}", "ReqNodeList=", check=False)
        cluster.start_now(job.id, "ReqNodeList=")
        assert job.wait() == "COMPLETED", job.text()
        assert "continuing after step" in job.text()
        same(newest_state(folder, "node"), whole)
    finally:
        cluster.start_node("knl003")
        cluster.run("scontrol", "update", "NodeName=knl003", "State=RESUME", check=False)


def test_job__whose_rank_dies_ends_soon_requeues_once_and_gives_up_where_nothing_is_gained(cluster, folder):
    job = Submitted(cluster, folder, "rank", "--inject", "kill:rank=1@step=2", nodes=2)
    cluster.start_now(job.id)
    assert job.wait() == "FAILED", job.text()
    assert "no checkpoint was gained" in job.text() and job.text().count("back into the queue") == 1


def test_job__is_not_tried_again_where_it_would_fail_again(cluster, folder):
    job = Submitted(cluster, folder, "nan", "--inject", "nan:rank=1@step=2", nodes=2)
    assert job.wait() == "FAILED"
    assert "status: failed FloatingPointError" in job.text() and "back into the queue" not in job.text()


def test_job__stops_requeueing_after_the_cap(cluster, folder):
    job = Submitted(cluster, folder, "cap", *SLOW, nodes=1, KNLTRAIN_RESTARTS="0")
    job.until_step(2)
    job.warn()
    assert job.wait() == "FAILED"
    assert "restarts are enough" in job.text() and "status: stopped step" in job.text()


def test_job__array_of_seeds(cluster, folder):
    """Two tasks of one array, one node each: the default RUN has the task's number."""
    script = folder / "seeds.sh"
    script.write_text(f'#!/bin/bash\nexec bash {JOB} --set "run.seed=$SLURM_ARRAY_TASK_ID"\n')
    env = {"DATA": str(folder), "SCRATCH": str(folder), "RECIPE": str(folder / "tiny.toml")}
    env |= {"KNLTRAIN_VENV": "none", "PATH": os.path.dirname(sys.executable) + os.pathsep + cluster.env["PATH"]}
    env |= {"NUMBA_NUM_THREADS": "1"}
    options = ["--array=1-2", "-N", "1", "-n", "1", *OPTIONS, "-o", str(folder / "seed-%a.out")]
    cluster.submit(*options, str(script), env=env, cwd=ROOT)
    limit = time.monotonic() + 60
    runs = [f"runs/alexnet_512knl-{i}" for i in (1, 2)]
    while not all((folder / run / "DONE").exists() for run in runs):
        assert time.monotonic() < limit, (folder / "seed-1.out").read_text()
        time.sleep(0.2)
    one, two = (newest_state(folder, run) for run in runs)
    assert (one["value/conv1.w"] != two["value/conv1.w"]).any()


def test_launch__as_worlds_of_one_is_refused(cluster, folder):
    """srun --mpi=none starts ranks that do not know of each other: each would train alone, with exit code 0."""
    job = Submitted(cluster, folder, "alone", nodes=2, SLURM_MPI_TYPE="none")
    assert job.wait() == "FAILED"
    assert "the launcher started 2 ranks and MPI sees 1" in job.text() and not (folder / "alone" / "DONE").exists()


def test_templates__are_accepted_unmodified_by_a_cluster_of_512_nodes(tmp_path):
    with Cluster(tmp_path, nodes=1, declared=512) as cluster:
        job = cluster.submit("--hold", JOB, cwd=ROOT)
        facts = cluster.job(job)
        assert facts["JobState"] == "PENDING" and facts["NumNodes"] in ("512", "512-512") and facts["NumTasks"] == "512"
