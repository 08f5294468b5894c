"""Time of an exchange against its size: t(n) = alpha + n / beta, fitted, and what follows for buckets.

alpha: seconds before the first byte is useful, beta: bytes per second after that (Hockney 1994).
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

LARGEST_TRIED = 1 << 22  # bytes, at start: milliseconds on a fast machine
SMALLEST, LARGEST = 1 << 18, 1 << 26  # bytes, of an automatic bucket
ASIDE = 2e-4  # seconds: what a sum costs beside computing, as threads take turns and the caches are filled anew


class Curve(NamedTuple):
    alpha: float  # seconds
    beta: float  # bytes per second

    def __str__(self):
        return f"{self.alpha * 1e6:.1f} us + bytes / ({self.beta / 1e9:.2f} GB/s)"

    def bucket_bytes(self, total_bytes: int) -> int:
        """The bucket size that leaves least time exposed, as a power of two.

        N bytes in buckets of b cost N/b latencies and turns, and the last bucket, b/beta, hides behind nothing:
        N/b (alpha + ASIDE) + b/beta is least at b = sqrt(N (alpha + ASIDE) beta).
        """
        best = math.sqrt(total_bytes * (self.alpha + ASIDE) * self.beta)
        return 1 << round(math.log2(min(max(best, SMALLEST), LARGEST)))


def measure(run: Callable[[int], None], sizes, gather: Callable, repeats: int = 5) -> list[tuple[int, float]]:
    """(bytes, seconds) of run(bytes), which all ranks do together: the best of `repeats`, of the slowest rank.

    gather: a value → those of all ranks; so every rank gets the same numbers. One run of each size goes before.
    """
    points = []
    for nbytes in sizes:
        run(nbytes)
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            run(nbytes)
            times.append(time.perf_counter() - begin)
        points.append((nbytes, max(gather(min(times)))))
    return points


def fit(points: list[tuple[int, float]]) -> Curve:
    """Least squares of the relative error, with alpha and 1/beta not negative."""
    w = [1 / t**2 for _, t in points]
    n, t = [p[0] for p in points], [p[1] for p in points]
    sw, swn, swt = sum(w), _dot(w, n), _dot(w, t)
    swnn, swnt = _dot(w, [x * x for x in n]), _dot(w, [x * y for x, y in zip(n, t, strict=True)])
    determinant = sw * swnn - swn * swn
    slope = (sw * swnt - swn * swt) / determinant if determinant > 0 else swnt / swnn
    alpha = (swt - slope * swn) / sw
    if alpha <= 0:
        alpha, slope = 1e-7, swnt / swnn
    if slope <= 0:
        alpha, slope = swt / sw, 1e-15
    return Curve(alpha, 1 / slope)


def _dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))
