"""The inner loops for CPUs with bf16 instructions, and for those without, read in the assembly generated for them.

Compiled in processes of their own, without running: no such CPU is needed. Types are those of convolutions that this
process ran before. What was compiled is kept beside the usual cache of these kernels.
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
# CPU → nest, kind of tensors
WANTED = {
    "sapphirerapids": [
        *((nest, "bf16 in tiles") for nest in ("tiles", "tiles weight")),
        *((nest, "bf16 in pairs") for nest in ("rows", "outer")),
    ],
    "cooperlake": [("outer", "bf16 in pairs")],
    "znver4": [("rows", "bf16 in pairs"), ("rows", "fp32")],
    "haswell": [("outer", "bf16 widened")],
}
COMPILE = """
import os, pickle, sys
from pathlib import Path
from test_kernels_assembly import NESTS
for nest, kind, signature in pickle.loads(Path(sys.argv[1]).read_bytes()):
    NESTS[nest].compile(signature)
    path = Path(sys.argv[2], f"{nest}, {kind}.s")
    path.with_suffix(".tmp").write_text(NESTS[nest].inspect_asm(signature))
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
    """(CPU, nest, kind) → text; all CPUs are compiled for at once."""
    kept, running = Path(f"{kernels.cache_folder()}-assembly"), []
    path = os.pathsep.join([*map(str, Path(__file__).parents[:2]), os.environ.get("PYTHONPATH", "")])
    files = {(cpu, *one): kept / cpu / f"{one[0]}, {one[1]}.s" for cpu, nests in WANTED.items() for one in nests}
    for cpu, nests in WANTED.items():
        (kept / cpu).mkdir(parents=True, exist_ok=True)
        if left := [(*one, signature(*one)) for one in nests if not files[cpu, *one].exists()]:
            folder = tmp_path_factory.mktemp(cpu)
            (folder / "signatures").write_bytes(pickle.dumps(left))
            own = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(folder)}
            command = [sys.executable, "-c", COMPILE, folder / "signatures", kept / cpu]
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
