"""What must be true before Numba is imported: two threads exist, also on one core, so that 1 and 2 can be compared."""

import os

os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, len(os.sched_getaffinity(0)))))
