"""Groups of slots whose sums int8 codes, or that train apart: what a recipe says of them that makes no sense."""


def workers_are_for(recipe) -> str:
    """What asks for workers in a recipe, in words; "" where nothing does."""
    steps = recipe.optim.local_steps
    return "int8" if recipe.comm.wire == "int8" else f"optim.local_steps {steps}" * (steps > 1)


def worker_problems(recipe):
    """Yield (name, found, expected) for what does not go with workers, or with parts of sums."""
    comm, slots, asks = recipe.comm, recipe.batch.global_batch // recipe.batch.slot_batch, workers_are_for(recipe)
    coded, apart = comm.wire == "int8", recipe.optim.local_steps > 1
    if comm.workers & (comm.workers - 1) or slots % max(1, comm.workers):
        yield "comm.workers", comm.workers, f"a power of two that divides the {slots} slots of a batch"
    if not comm.workers and asks:
        yield "comm.workers", 0, f"with {asks} a power of two that divides the {slots} slots of a batch"
    if comm.shard_update and asks:
        yield "comm.shard_update", True, f"false with {asks}"
    whole = ("doubling", "tree")  # leave no parts of a sum
    if comm.algorithm in (*whole, "halving") if coded else comm.shard_update and comm.algorithm in whole:
        yield "comm.algorithm", comm.algorithm, f"auto or direct with {'int8' if coded else 'comm.shard_update'}"
    if comm.fc not in ("auto", "sum") and coded:
        yield "comm.fc", comm.fc, "auto or sum with int8, which codes every gradient"
    if apart and (recipe.compute.precision == "fp16" or recipe.compute.loss_scale != "auto"):
        yield "compute.loss_scale", recipe.compute.loss_scale, f"auto, and fp32 or bf16, with {asks}"
