"""The communication thread: exchanges happen here, in the order in which they are asked for, while others compute.

It hides anything only because the kernels let go of the GIL. Where MPI may not be called from a second thread, or a
user switches the overlap off, the same work is done at once by whoever asks.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Job:
    """One exchange: what to do, and when what happened to it, in seconds of time.perf_counter()."""

    name: str
    work: Callable[[], None]
    queued: float = 0.0
    begun: float = 0.0
    done: float = 0.0
    wanted: float = 0.0  # when somebody began to wait for it
    waited: float = 0.0  # and how long
    error: BaseException | None = None
    finished: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Does jobs one after the other: in a thread of its own, or where `threaded` is false at once; `watch` is told."""

    def __init__(self, threaded: bool, watch=None):
        self._watch = watch
        self._jobs = queue.SimpleQueue()
        self.thread = None
        if threaded:
            self.thread = threading.Thread(target=self._loop, name="communication", daemon=True)
            self.thread.start()

    def submit(self, job: Job):
        """Hand over a job; an error in it is raised by `wait`."""
        job.queued = time.perf_counter()
        if self.thread:
            self._jobs.put(job)
        else:
            self._do(job)
            job.wanted, job.waited = job.begun, job.done - job.begun

    def wait(self, job: Job):
        """Return when the job is done; raises what went wrong in it."""
        begin = time.perf_counter()
        job.wanted = job.wanted or begin
        job.finished.wait()
        job.waited += time.perf_counter() - begin
        if job.error:
            raise job.error

    def close(self):
        """Let the thread end when its jobs are done; harmless when repeated."""
        if self.thread:
            self._jobs.put(None)
            self.thread = None

    def _loop(self):
        while (job := self._jobs.get()) is not None:
            self._do(job)

    def _do(self, job):
        job.begun = time.perf_counter()
        try:
            if self._watch:
                self._watch.enter(job.name)
            job.work()
            if self._watch:
                self._watch.leave()
        except BaseException as error:  # it belongs to whoever waits
            job.error = error
        job.done = time.perf_counter()
        job.finished.set()
