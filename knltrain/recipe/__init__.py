"""The recipe: one file that defines an experiment, what follows from it, and what speaks against it."""
