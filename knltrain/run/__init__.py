"""The life of a run: its folder, its owner, its checkpoints, signals, faults, and what its ranks own."""
