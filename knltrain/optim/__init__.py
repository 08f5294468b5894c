"""What turns gradients into new weights: the schedule of the learning rate, and the optimizers, each in its file."""
