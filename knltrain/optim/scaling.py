"""The scale of the loss, which keeps 16-bit gradients in range: Micikevicius et al. 2018 (arXiv:1710.03740).

The gradient of the loss is multiplied by a power of two, so everything behind it is, exactly; the optimizer divides
where it multiplies anyway (`Lars.begin`). A step whose summed gradient holds an infinity or a NaN changes no weight.
"""

from ..layers import Program

FIRST, LARGEST = 2.0**16, 2.0**24  # of a dynamic scale; the least is 1
PATIENCE = 2000  # good steps in a row before a dynamic scale doubles
HOPELESS = 24  # skipped steps in a row; a dynamic scale is at 1 after 16, then something else is wrong


class LossScale:
    """A scale that stays, or a dynamic one (`fixed` None): half after each overflow, twice after PATIENCE good steps.

    good: steps since the last change; failed: skipped in a row; skipped: in all. With the scale they are its state,
    and a function of the sums alone: equal on all ranks.
    """

    def __init__(self, fixed: float | None = None):
        self.dynamic, self.scale = fixed is None, FIRST if fixed is None else float(fixed)
        self.good = self.failed = self.skipped = 0

    def apply(self, program: Program, loss) -> float:
        """Multiply the gradient that `loss` hands to the backward pass of `program` by the scale, which is returned."""
        for op in program.forward:
            if op.owner is loss and "scale" in op.arguments:
                op.arguments["scale"] = loss.scale * self.scale
        return self.scale

    def count(self, fits: bool):
        """A step is over; fits: no element of its gradient was out of range."""
        if fits:
            self.good, self.failed = self.good + 1, 0
            if self.dynamic and self.good == PATIENCE:
                self.scale, self.good = min(2 * self.scale, LARGEST), 0
            return
        self.good, self.failed, self.skipped = 0, self.failed + 1, self.skipped + 1
        if self.dynamic:
            self.scale = max(self.scale / 2, 1.0)

    @property
    def hopeless(self) -> bool:
        """Whether so many steps in a row were skipped that no scale will help."""
        return self.failed >= HOPELESS

    def state(self) -> dict:
        """What `restore` takes."""
        return {"scale": self.scale, "good": self.good, "failed": self.failed, "skipped": self.skipped}

    def restore(self, state: dict):
        """Go on from `state`."""
        self.scale, self.good, self.failed, self.skipped = (state[n] for n in ("scale", "good", "failed", "skipped"))
