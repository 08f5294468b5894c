"""The trace of some steps of a whole job: what every rank did when, on one clock, and what that cost.

`tracer` writes a file a rank while the job runs; `reading`, `chrome`, `stragglers` and `critical` make of these one
file for a viewer, a table and a path. `knltrain trace RUN` is `show`.
"""

from .tracer import FOLDER, Tracer

__all__ = ["FOLDER", "Tracer"]
