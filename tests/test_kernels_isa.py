"""One source, every instruction set: the kernel tests on code for other CPUs, and the assembly for KNL, line by line.

Other CPUs are compiled for in processes of their own, all at once, each into a cache of its own beside the usual one: a
second run of this file takes seconds. To read KNL's assembly no KNL is needed; to run it the host needs AVX-512.
"""

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from knl_scan import lacking, scan

from knltrain import kernels

HERE = Path(__file__).parent
HOST = {name for name, present in llvm.get_host_cpu_features().items() if present}
KNL_FEATURES = "+avx512f,+avx512cd,+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt"
# they start processes themselves
APART = (Path(__file__).name, *(f"test_kernels_{name}.py" for name in ("assembly", "bounds", "private")))
ALL = sorted(path.name for path in HERE.glob("test_kernels_*.py") if path.name not in APART)
# what tensors hold there, and what goes through Winograd's transforms: each is a compilation more of the largest loops
NUMBERS = {"knl": ("fp32 fp16", "fp32"), "haswell": ("fp32", "fp32"), "generic": ("fp32", "")}
# and so are results in float32 of 16-bit layers, and kernels that read 16 bits as those do that are left
LEAVE = ("-k", "not logits and not batchnorm__on_16 and not pools__on_16 and not softmax__on_16")
# CPU → what the host must have to run its code, tests to run
CPUS = {
    "knl": ({"avx512f", "avx512cd"}, ALL),
    "haswell": (
        {"avx2", "fma"},
        ["test_kernels_conv.py", "test_kernels_batchnorm.py", "test_kernels_pointwise.py"],  # which know its vectors
    ),
    "generic": (set(), ["test_kernels_conv.py::test_conv2d__equals_its_twin"]),
}


def start(cpu, *arguments, cache=None):
    """A process that compiles for `cpu`, or for this machine where that is None."""
    own = {"NUMBA_CPU_NAME": cpu, "NUMBA_CACHE_DIR": str(cache or f"{kernels.cache_folder()}-{cpu}")} if cpu else {}
    own |= {"NUMBA_CPU_FEATURES": KNL_FEATURES} if cpu == "knl" else {}
    numbers, winograd = NUMBERS.get(cpu or "knl", ("fp32", "fp32"))  # for this machine: what KNL's tests compile
    own |= {"TEST_NUMBERS": numbers, "TEST_WINOGRAD": winograd}
    own |= {"TEST_DOTS": "widen"}  # none of these CPUs multiplies pairs of bf16
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=HERE, env=os.environ | {"PYTHONPATH": path} | own, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process):
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.fixture(scope="module")
def runs():
    """CPU → its running process: tests, where the host can run them; for KNL first the assembly, unless it is kept."""
    running = {}
    able = {cpu: tests for cpu, (needs, tests) in CPUS.items() if needs <= HOST}
    try:
        if not (assembly_folder() / "complete").exists():
            shutil.rmtree(assembly_folder().parent, ignore_errors=True)  # a cache without its assembly
            assembly_folder().mkdir(parents=True)
            kept = (signatures(), assembly_folder())
            if "knl" in able:
                running["knl"] = start("knl", "isa.py", "run", *kept, *able.pop("knl"), *LEAVE)
            else:
                finish(start(None, "isa.py", "signatures", signatures(), *ALL, *LEAVE))
                running["knl"] = start("knl", "isa.py", "compile", *kept)
        for cpu, tests in able.items():
            running[cpu] = start(cpu, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests, *LEAVE)
        yield running
    finally:
        for process in running.values():
            process.kill()
            process.communicate()


def assembly_folder():
    return Path(f"{kernels.cache_folder()}-knl") / "assembly"


def signatures():
    return assembly_folder() / "signatures"


@pytest.mark.parametrize("cpu", CPUS)
def test_kernels__equal_their_twins_on_code_for(cpu, runs):
    needs, _ = CPUS[cpu]
    if not needs <= HOST:
        pytest.skip(f"this machine has no {', '.join(sorted(needs - HOST))}")
    assert " passed" in finish(runs[cpu])


@pytest.mark.parametrize(
    ("line", "needs"),
    [
        ("\tvaddps\t%ymm17, %ymm1, %ymm2", "AVX512VL"),
        ("\tvaddps\t(%rax){1to8}, %ymm1, %ymm2", "AVX512VL"),
        ("\tvmovups\t%xmm1, (%rax) {%k1}", "AVX512VL"),
        ("\tvcmpltps\t%ymm1, %ymm2, %k1", "AVX512VL"),
        ("\tvmovdqu64\t(%rax), %ymm1", "AVX512VL"),
        ("\tvpaddb\t%zmm1, %zmm2, %zmm3", "AVX512BW"),
        ("\tvmovdqu8\t(%rax), %zmm1", "AVX512BW"),
        ("\tkmovd\t%eax, %k1", "AVX512BW"),
        ("\tkmovb\t%eax, %k1", "AVX512DQ"),
        ("\tvandps\t%zmm1, %zmm2, %zmm3", "AVX512DQ"),
        ("\tvpmullq\t%zmm1, %zmm2, %zmm3", "AVX512DQ"),
        ("\tvcvtqq2pd\t%zmm1, %zmm2", "AVX512DQ"),
        ("\tvpdpbusd\t%zmm1, %zmm2, %zmm3", "newer than AVX-512F"),
        ("\tvaddph\t%zmm1, %zmm2, %zmm3", "newer than AVX-512F"),
        ("\tvfmadd231ps\t(%rax){1to16}, %zmm1, %zmm2", ""),
        ("\tvaddss\t%xmm17, %xmm1, %xmm2", ""),
        ("\tvmovss\t(%rax), %xmm1 {%k1} {z}", ""),
        ("\tvextractf64x4\t$1, %zmm1, %ymm17", ""),
        ("\tvpandd\t%zmm1, %zmm2, %zmm3", ""),
        ("\tvandps\t%ymm1, %ymm2, %ymm3", ""),
        ("\tvpcmpeqb\t%xmm1, %xmm2, %xmm3", ""),
        ("\tkmovw\t%eax, %k1", ""),
        ("\tvcvtps2ph\t$4, %zmm1, (%rax)", ""),
        ("\tmovq\t%rax, %rbx", ""),
    ],
)
def test_scan__knows_what_knl_lacks(line, needs):
    assert lacking(line) == needs


@pytest.fixture(scope="module")
def assembly(runs):
    """The files of assembly for KNL, one for each kernel that is called from Python, with all that it calls."""
    if "knl" in runs:
        finish(runs["knl"])
    files = sorted(assembly_folder().glob("*.s"))
    assert len(files) > 30
    return files


def test_assembly_for_knl__has_no_instruction_that_knl_lacks(assembly):
    assert not scan(assembly)


def test_scan__finds_what_skylake_has_more(assembly, tmp_path):
    some = {"maxpool._maxpool_backward": pickle.loads(signatures().read_bytes())["maxpool._maxpool_backward"]}
    (tmp_path / "signatures").write_bytes(pickle.dumps(some))
    finish(start("skylake-avx512", "isa.py", "compile", tmp_path / "signatures", tmp_path, cache=tmp_path))
    assert any("AVX512VL" in line for line in scan(tmp_path.glob("*.s")))


def inner_loop(file):
    """The block of instructions without a jump target inside that holds most multiply-adds on zmm registers."""
    blocks = re.split(r"^[^\s#]+:", file.read_text(), flags=re.MULTILINE)
    return max(blocks, key=lambda block: len(re.findall(r"vfmadd\d+ps\t.*%zmm", block)))


@pytest.mark.parametrize(("nest", "tile"), [("conv.rows._rows_nest", 14 * 2), ("conv.outer._weight_nest", 13 * 2)])
def test_assembly_for_knl__keeps_the_tile_in_registers(assembly, nest, tile):
    loops = [inner_loop(path) for path in assembly if path.name.startswith(nest)]
    assert loops  # one for each Number
    for loop in loops:
        assert "{1to16}" in loop or "vbroadcastss" in loop
        accumulators = set(re.findall(r"vfmadd\d+ps\t.*, (%zmm\d+)$", loop, flags=re.MULTILINE))
        assert len(accumulators) == tile  # each has a register of its own
        assert not re.findall(r".*%zmm.*\(%rsp.*|.*\(%rsp.*%zmm.*", loop)  # and no vector goes to the stack
