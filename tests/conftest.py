"""What must be true before Numba is imported, and the order of files when several workers share them.

Two threads exist, also on one core, so that 1 and 2 can be compared; they do not spin where they wait, since other
workers (`pytest -n 5 --dist loadfile`) want the cores. Python keeps what it compiles, also where the environment says
otherwise: tests start some 300 processes, and reading the sources anew is a fifth of what one costs.
"""

import os

os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, len(os.sched_getaffinity(0)))))
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# the longest first: whoever takes one of these last would leave the other workers idle. The first of all has other
# processes compile, while its worker waits
LONG = (
    "test_kernels_isa", "test_jobs_slurm", "test_kernels_conv", "test_knltrain_train", "test_kernels_assembly",
    "test_docs_commands", "test_tools_drill", "test_run_survival", "test_comm_exchange", "test_packaging",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Sort files by LONG, then as they were found."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))
