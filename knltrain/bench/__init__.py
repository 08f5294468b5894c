"""Benchmarks as commands: `knltrain bench kernels`, `step`, `checkpoint`, `data`, `feed`,
`allreduce`, `overlap`, `records`, `settings`, `compare`; see docs/benchmarks.md.

twins.py      is the result right? every call against NumPy, before anything is timed
ceiling.py    what the machine can do at this moment, measured in turn with the kernel
workload.py   the model, its synthetic batch and its step
kernels.py    the table of kernels          step.py    the table of the whole step
data.py       the loader beside the decoder alone      feed.py       packing, feeding, opening beside their limits
checkpoint.py what writing one beside training costs
allreduce.py  our sums over ranks beside MPI's own; docs/communication.md
overlap.py    how much of the exchange hides behind the backward pass
records.py    what logging and tracing cost a step
settings.py   steps of one recipe with other settings, in turn
compare.py    all of these, old code and new in turn
torch_process.py, torch_models.py           the same step in PyTorch, in a process of its own
"""
