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
    """Does jobs one after the other: in a thread of its own, or where `threaded` is false at once; `watch` is told.

    finished: the jobs of the last step, as they were begun.
    """

    def __init__(self, threaded: bool, watch=None):
        self._watch = watch
        self._jobs = queue.SimpleQueue()
        self._of_step: list[Job] = []
        self.finished: list[Job] = []
        self.thread = None
        if threaded:
            self.thread = threading.Thread(target=self._loop, name="communication", daemon=True)
            self.thread.start()

    def submit(self, name: str, work: Callable[[], None]) -> Job:
        """Hand over a job; an error in it is raised by `wait`."""
        job = Job(name, work, queued=time.perf_counter())
        self._of_step.append(job)
        if self.thread:
            self._jobs.put(job)
        else:
            self._do(job)
            job.wanted, job.waited = job.begun, job.done - job.begun
        return job

    def do(self, name: str, work: Callable[[], None]):
        """Have a job done behind those that were handed over before, and wait for it."""
        self.wait(self.submit(name, work))

    def wait(self, job: Job):
        """Return when the job is done; raises what went wrong in it."""
        begin = time.perf_counter()
        job.wanted = job.wanted or begin
        job.finished.wait()
        job.waited += time.perf_counter() - begin
        if job.error:
            raise job.error

    def end_step(self):
        """All jobs of a step are done."""
        self.finished, self._of_step = sorted(self._of_step, key=lambda job: job.begun), []

    def seconds(self) -> dict[str, float]:
        """Of the last step: exchange the backward pass or the update had to wait for, and exchange that was hidden."""
        exposed = sum(job.waited for job in self.finished)
        busy = sum(job.done - job.begun for job in self.finished)
        return {"exchange_exposed_s": exposed, "exchange_hidden_s": max(0.0, busy - exposed)}

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
