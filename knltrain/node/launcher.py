"""What starts several ranks on this node."""

import shutil
import sys
from pathlib import Path


def find_mpiexec() -> Path:
    """mpiexec beside this Python, where the extra `mpi` puts it, else the first one on the PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = beside if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise ValueError(
            f"found no mpiexec in {beside.parent} nor on the PATH, expected one to start several ranks: "
            "pip install knltrain[mpi], or use --ranks 1"
        )
    return Path(found)
