"""Plans of runs: what a training would take on machines that are only described, and how to set it up there."""
