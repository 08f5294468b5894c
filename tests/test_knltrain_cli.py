"""The command: one line for what a user can mend, a traceback for a defect, and no rank left behind."""

import os
import subprocess
import sys

import pytest
from mpirun import run_mpi

from knltrain import __version__, arguments, cli
from knltrain.comm import communicator
from knltrain.run.checkpoint import CheckpointError


class FakeRank:
    """A communicator that notes how it was aborted."""

    def __init__(self, rank, size):
        self.rank, self.size, self.code = rank, size, None

    def abort(self, code):
        self.code = code


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "knltrain", *arguments], capture_output=True, text=True, timeout=60)


def run_with(monkeypatch, function):
    """Exit code of `knltrain describe x` when describing is `function`."""
    monkeypatch.setitem(cli.COMMANDS, "describe", lambda args: function())
    return cli.main(["describe", "x"])


def raising(error):
    def function():
        raise error

    return function


our_check = raising(ValueError("found 3, expected 4: change it"))


def test_version__is_printed():
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"knltrain {__version__}\n")


def test_help__imports_nothing_heavy():
    program = (
        "import sys; from knltrain.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit(str({'numpy', 'numba', 'mpi4py', 'h5py'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "set()"


def test_command__misspelt_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["trian"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "knltrain: error: no command 'trian'; did you mean 'train'; try knltrain --help\n"


def test_command__missing_argument_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["pack", "only-one"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "out" in error


def test_error__of_our_check_is_one_line(monkeypatch, capsys):
    assert run_with(monkeypatch, our_check) == 2
    assert capsys.readouterr().err == "knltrain: error: found 3, expected 4: change it\n"


def test_error__of_our_check_has_a_traceback_on_demand(monkeypatch, capsys):
    monkeypatch.setenv("KNLTRAIN_DEBUG", "1")
    assert run_with(monkeypatch, our_check) == 2
    assert "Traceback" in capsys.readouterr().err


def test_error__of_a_path_names_it(monkeypatch, capsys, tmp_path):
    assert run_with(monkeypatch, lambda: open(tmp_path / "absent")) == 2
    assert capsys.readouterr().err == f"knltrain: error: {tmp_path / 'absent'}: No such file or directory\n"


@pytest.mark.parametrize("kind", [ImportError, MemoryError, FloatingPointError, CheckpointError, ChildProcessError])
def test_error__that_the_user_can_mend_is_one_line(kind, monkeypatch, capsys):
    assert run_with(monkeypatch, raising(kind("found this"))) == 2
    assert capsys.readouterr().err == "knltrain: error: found this\n"


@pytest.mark.parametrize("kind", [TypeError, RuntimeError, IndexError, AttributeError])
def test_error__of_another_kind_is_a_defect_with_traceback(kind, monkeypatch, capsys):
    assert run_with(monkeypatch, raising(kind("no such thing"))) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1] == f"knltrain: error: {kind.__name__}: no such thing"


def test_interrupt__is_one_line_and_130(monkeypatch, capsys):
    assert run_with(monkeypatch, raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "knltrain: interrupted\n"


def test_output__that_nobody_reads_ends_the_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        program = [sys.executable, "-m", "knltrain", "describe", "resnet_cifar20"]
        done = subprocess.run(program, stdout=closed, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (141, b"")


def test_launcher__of_another_mpi_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # importing it fails
    assert cli.main(["train", "recipe.toml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("knltrain: error: the launcher started 4 ranks and no MPI") and error.count("\n") == 1


def test_command__returns_its_own_exit_code(monkeypatch):
    assert run_with(monkeypatch, lambda: 143) == 143


def test_setting__is_toml_or_plain_text():
    words = ["describe", "any", "--set", "width=0.25", "--set", "norm=jia", "--set", "affine=true"]
    assert cli.parser().parse_args(words).set == {"width": 0.25, "norm": "jia", "affine": True}
    assert cli.parser().parse_args(words[:2]).set == {}


def test_describe__prints_the_table(capsys):
    assert cli.main(["describe", "resnet_cifar20", "--set", "classes=7"]) == 0
    assert "total" in capsys.readouterr().out


def test_pack__of_an_absent_folder_is_one_line(capsys, tmp_path):
    assert cli.main(["pack", str(tmp_path / "absent"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["foo", "inf", "nan", "-1", "1.5", "²"])
def test_max_bad__explains_a_wrong_value(value, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["pack", "src", "out", "--max-bad", value])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"argument --max-bad: found '{value}', expected a count such as 5, or a share" in error


def test_max_bad__tells_counts_from_shares():
    values = [arguments._count_or_share(text) for text in ("1", "1.0", "0", "0.05")]
    assert values == [1, 1.0, 0, 0.05] and [type(value) for value in values] == [int, float, int, float]


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks__abort_with_rank_and_traceback(rank, capsys):
    comm = FakeRank(rank, 2)
    with cli.all_ranks(comm):
        _ = {}["absent"]
    lines = capsys.readouterr().err.splitlines()
    assert comm.code == 1
    assert lines[0] == f"knltrain: rank {rank}: Traceback (most recent call last):"
    assert all(line.startswith(f"knltrain: rank {rank}: ") for line in lines)


def test_all_ranks__leave_the_error_alone_on_one_rank():
    with pytest.raises(KeyError), cli.all_ranks(FakeRank(0, 1)):
        _ = {}["absent"]


def test_world__alone_in_a_job_of_several_tasks_says_so(monkeypatch, capsys):
    for name in communicator._LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for tasks, lines in (("1", 0), ("4", 1)):
        monkeypatch.setenv("SLURM_NTASKS", tasks)
        assert communicator.world().size == 1
        error = capsys.readouterr().err
        assert error.count("\n") == lines and ("start it with srun" in error) == bool(lines)


FAIL_ON_RANK_1 = """
from knltrain.cli import all_ranks
from knltrain.comm import world
with all_ranks(world()) as comm:
    if comm.rank == 1:
        {}["absent"]
    comm.barrier()
"""


@pytest.mark.parametrize(
    "command, expected",
    [
        (["pack", "a", "b", "--shard-bytes", str(2**63)], "at most 1099511627776"),
        (["pack", "a", "b", "--size", "-1"], "0 or more"),
        (["verify", "a", "--threads", "0"], "1 or more"),
        (["bench", "data", "--seconds", "inf"], "a finite number"),
        (["drill", "--ranks", "9" * 5000], "a whole number"),
        (["train", "a.toml", "b.toml"], "unrecognized arguments: b.toml; try knltrain train --help"),
        (["--verbos", "watch", "runs/a"], "unrecognized arguments: --verbos; try knltrain watch --help"),
        (["describe", "resnet_cifar1048574"], "1 <= depth <= 1202"),
        (["describe", "resnet\n\x1b[2A"], r"model 'resnet\n\x1b[2A' is unknown"),
        (["describe", "alexnet", "--set", "\n\x1b[2A"], r"\n\x1b[2A"),
        (["\n\x1b[2A"], r"no command '\n\x1b[2A'"),
    ],
)
def test_numbers__have_bounds_and_names_are_escaped(command, expected, capsys):
    try:
        code = cli.main(command)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and expected in error and error.count("\n") == 1 and error[:-1].isprintable()


def test_all_ranks__end_when_one_fails():
    done = run_mpi(2, "-c", FAIL_ON_RANK_1, timeout=120)
    assert done.returncode != 0
    assert "knltrain: rank 1: error: KeyError: 'absent'" in done.stderr
    assert "rank 0: error" not in done.stderr


def test_train__of_an_absent_recipe_is_said_once(tmp_path):
    done = run_mpi(2, "-m", "knltrain", "train", str(tmp_path / "absent.toml"), timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("knltrain: ") == 1
