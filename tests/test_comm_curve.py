"""The curve of time against size: what is put in comes out."""

import pytest

from knltrain.comm.curve import ASIDE, LARGEST, SMALLEST, Curve, fit

SIZES = [1 << k for k in range(10, 24, 2)]


def test_fit__finds_latency_and_bandwidth():
    true = Curve(50e-6, 8e9)
    curve = fit([(n, true.alpha + n / true.beta) for n in SIZES])
    assert curve.alpha == pytest.approx(true.alpha) and curve.beta == pytest.approx(true.beta)


@pytest.mark.parametrize("points", [[(1 << 20, 1e-3)], [(n, 1e-4) for n in SIZES], [(n, n * 1e-9) for n in SIZES],
                                    [(1024, 1e-3), (1 << 20, 1e-4)]])  # fmt: skip
def test_fit__gives_usable_numbers_for_odd_points(points):
    curve = fit(points)
    assert curve.alpha > 0 and curve.beta > 0
    assert SMALLEST <= curve.bucket_bytes(1 << 28) <= LARGEST


def test_bucket_bytes__is_the_best_power_of_two():
    curve, total = Curve(100e-6, 1e9), 100 << 20

    def exposed(bucket):
        return total / bucket * (curve.alpha + ASIDE) + bucket / curve.beta

    sizes = [1 << k for k in range(18, 27)]
    assert exposed(curve.bucket_bytes(total)) <= 1.1 * min(map(exposed, sizes))
