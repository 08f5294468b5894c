"""The inner loops for CPUs with bf16 instructions, and for those without, read in the assembly generated for them.

Compiled in processes of their own, without running: no such CPU is needed. What CPUs with the same registers share is
LLVM's intermediate code, which takes longest; machine code is made of it for each. Types are those of convolutions that
this process ran before. What was compiled is kept beside the usual cache of these kernels.
"""

import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from test_kernels_conv import _case, _empty, _packed, _scratch

from knltrain import kernels
from knltrain.kernels.conv import outer, rows, tiles, tiles_weight

NESTS = {"rows": rows._rows_nest, "outer": outer._weight_nest}
NESTS |= {"tiles": tiles._tiles_nest, "tiles weight": tiles_weight._tiles_weight_nest}
WEIGHTS = ("outer", "tiles weight")
SHAPE = (1, 4, 4, 64, 32, 1, 1, 1, 0, 1)
# CPU that is compiled for → nest, kind of tensors → CPUs for which machine code is made of it
WANTED = {
    "sapphirerapids": {
        ("tiles", "bf16 in tiles"): ["sapphirerapids"],
        ("tiles weight", "bf16 in tiles"): ["sapphirerapids"],
        ("rows", "bf16 in pairs"): ["sapphirerapids", "znver4"],
        ("outer", "bf16 in pairs"): ["sapphirerapids", "cooperlake"],
        ("rows", "fp32"): ["znver4"],
    },
    "haswell": {("outer", "bf16 widened"): ["haswell"]},
}
COMPILE = """
import os, pickle, sys
from pathlib import Path
import isa, test_kernels_assembly as test
for nest, kind, signature, cpus in pickle.loads(Path(sys.argv[1]).read_bytes()):
    for cpu, text in isa.assembly(test.NESTS[nest], signature, cpus):
        path = Path(sys.argv[2], cpu, f"{nest}, {kind}.s")
        path.with_suffix(".tmp").write_text(text)
        os.replace(path.with_suffix(".tmp"), path)
"""


def signature(nest, kind):
    """With which types a nest is called for tensors of a kind."""
    plan, (x, w, _, dy), _ = _case(SHAPE, kind)
    number, method = plan.shape.number, plan.backward_weight if nest in WEIGHTS else plan.forward
    x, dy = number.narrow(x), number.narrow(dy)
    if nest in WEIGHTS:
        kernels.conv2d_backward_weight(plan, x, dy, _empty(plan.w_shape), _scratch(plan))
    else:
        kernels.conv2d_forward(plan, x, _packed(plan, w)[0], None, _empty(plan.y_shape, number), _scratch(plan))

    def holds(job):
        dtypes = {name: getattr(kind, "dtype", None) for name, kind in zip(job.fields, job.types, strict=True)}
        return str(dtypes["x"]) == number.dtype and str(dtypes.get("panels", dtypes.get("weights"))) == panels

    panels = method.panels.dtype
    return next(types for types in NESTS[nest].signatures if holds(types[1]))


@pytest.fixture(scope="module")
def assembly(tmp_path_factory):
    """(CPU, nest, kind) → text."""
    kept, running, files = Path(f"{kernels.cache_folder()}-assembly"), [], {}
    path = os.pathsep.join([*map(str, Path(__file__).parents[:2]), os.environ.get("PYTHONPATH", "")])
    for first, nests in WANTED.items():
        left = []
        for one, cpus in nests.items():
            own = {(cpu, *one): kept / cpu / f"{one[0]}, {one[1]}.s" for cpu in cpus}
            left += [] if all(file.exists() for file in own.values()) else [(*one, signature(*one), cpus)]
            for file in own.values():
                file.parent.mkdir(parents=True, exist_ok=True)
            files |= own
        if left:
            folder = tmp_path_factory.mktemp(first)
            (folder / "signatures").write_bytes(pickle.dumps(left))
            own = {"NUMBA_CPU_NAME": first, "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(folder)}
            command = [sys.executable, "-c", COMPILE, folder / "signatures", kept]
            how = {"env": os.environ | own | {"PYTHONPATH": path}, "stderr": subprocess.PIPE, "text": True}
            running.append(subprocess.Popen(command, **how))
    for process in running:
        error = process.communicate(timeout=600)[1]
        assert process.returncode == 0, error[-3000:]
    return {one: file.read_text() for one, file in files.items()}


def inner_loop(text, instruction):
    """Instructions of the block, without a jump target inside, that has most of one."""
    blocks = re.split(r"^[^\s#]+:", text, flags=re.MULTILINE)
    block = max(blocks, key=lambda block: len(re.findall(rf"^\s+{instruction}", block, flags=re.MULTILINE)))
    lines = [line.strip() for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith((".", "#"))]


@pytest.mark.parametrize(
    ("cpu", "nest", "kind", "dot", "sums"),
    [
        ("sapphirerapids", "rows", "bf16 in pairs", "vdpbf16ps", 28),
        ("sapphirerapids", "outer", "bf16 in pairs", "vdpbf16ps", 26),
        ("cooperlake", "outer", "bf16 in pairs", "vdpbf16ps", 26),
        ("znver4", "rows", "bf16 in pairs", "vdpbf16ps", 28),
        ("znver4", "rows", "fp32", "vfmadd231ps", 28),
    ],
)
def test_inner_loop__is_loads_and_dots_with_every_sum_in_a_register(assembly, cpu, nest, kind, dot, sums):
    loop = inner_loop(assembly[cpu, nest, kind], dot)
    counts = Counter(line.split()[0] for line in loop)
    steps = counts[dot] // sums
    assert counts[dot] == steps * sums and len({line.split()[-1] for line in loop if line.startswith(dot)}) == sums
    vectors = sum(counts[name] for name in counts if name.startswith(("vmov", "vbroadcast", "vpbroadcast")))
    assert counts[dot] + vectors <= 1.15 * steps * (sums + sums // 2 + 2)  # A one by one, two vectors of B
    assert not [line for line in loop if "zmm" in line and "(%rsp" in line]  # and no vector goes to the stack


@pytest.mark.parametrize("nest", ["tiles", "tiles weight"])
def test_inner_loop__of_tiles_is_four_loads_and_four_dots(assembly, nest):
    loop = inner_loop(assembly["sapphirerapids", nest, "bf16 in tiles"], "tdpbf16ps")
    counts = Counter(line.split()[0] for line in loop)
    assert counts["tdpbf16ps"] == counts["tileloadd"] >= 4 and counts["tilestored"] == 0
    text = assembly["sapphirerapids", nest, "bf16 in tiles"]
    assert "ldtilecfg" in text and "tilerelease" in text


def test_assembly__has_nothing_that_the_cpu_lacks_and_converts_without_calls(assembly):
    for (cpu, nest, kind), text in assembly.items():
        calls = re.findall(r"call\w*\s+\S*(?:trunc|extend)\w*", text)
        assert not calls, f"{cpu} {nest} {kind}: {calls[:3]}"
        lacking = {"haswell": "vdpbf16ps|tdpbf16ps|tileloadd|%zmm", "znver4": "tdpbf16ps|tileloadd"}
        lacking["cooperlake"] = lacking["znver4"]
        if cpu in lacking:
            assert not re.search(lacking[cpu], text)
