"""Two bytes a number: half the bytes move, the error is that of the rounding, the cut into buckets changes no bit."""

from contextlib import closing
from functools import partial

import numpy as np
import pytest
from ranks import ALONE, learned, on_ranks

from knltrain.assembly import make_trainer
from knltrain.comm import Links, make_block
from knltrain.data.arrays import Arrays
from knltrain.kernels import FP16_SCALE, decode_bf16, decode_fp16, digest, encode_bf16, encode_fp16
from knltrain.recipe.config import parse_recipe

SIZE = 100_000
UNIT = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}  # relative error of one rounding


def sums(comm, algorithm, nodes):
    """{wire: (bytes sent, largest and mean error, is the sum the same in buckets)} of sums of random numbers.

    Errors are relative to the sum of magnitudes, element by element.
    """
    numbers = [np.random.default_rng(rank).standard_normal(SIZE).astype(np.float32) for rank in range(comm.size)]
    exact, size, found = np.sum(numbers, axis=0, dtype=np.float64), np.sum(np.abs(numbers), axis=0), {}
    for wire in UNIT:
        block = make_block(Links(comm, algorithm, wire, nodes), SIZE)
        block.mine[:] = numbers[comm.rank]
        before = comm.sent_bytes
        block.allreduce(0, SIZE)
        sent, error, whole = comm.sent_bytes - before, np.abs(block.total - exact) / size, digest(block.total)
        assert len(set(comm.gather(whole))) == 1, f"{wire}: ranks disagree"
        block.mine[:] = numbers[comm.rank]
        block.release()
        for start in range(0, SIZE, 30_000):
            block.allreduce(start, min(SIZE, start + 30_000))
        found[wire] = sent, error.max(), error.mean(), whole == digest(block.total)
        comm.barrier()
    return found


@pytest.mark.parametrize(
    ("ranks", "algorithm", "nodes"),
    [(2, "halving", 0), (4, "halving", 0), (4, "auto", 2), (3, "tree", 0)],
)
def test_wire__half_the_bytes_and_the_error_of_the_rounding(ranks, algorithm, nodes):
    result = on_ranks(ranks, lambda comm: sums(comm, algorithm, nodes))[0]
    for wire, (sent, largest, mean, same_in_buckets) in result.items():
        roundings = 2 * ranks  # a number is rounded at most on each way down the sum, and once as a sum
        assert largest <= roundings * UNIT[wire]
        assert mean <= 1.5 * UNIT[wire]
        if wire != "fp32":
            assert 2 * sent == result["fp32"][0] > 0
            assert mean >= 0.01 * UNIT[wire]  # it was rounded
        assert same_in_buckets


LARGE = """
[model]
name = "resnet_cifar8"
width = 2
[data]
train = "unused"
crop = 4
[batch]
global_batch = 16384
slot_batch = 1024
[optim]
variant = "mlperf"
[schedule]
base_lr = 20.0
warmup_epochs = 0
[comm]
pretended_nodes = 2
[run]
epochs = 3.0
evaluate_every_epochs = 0
"""


def test_wire__trains_a_batch_of_16384_as_fp32_does():
    """The loss summed over 16,384 images of 1,000 classes is 113,000; 16 bits end at 65,504."""
    rng = np.random.default_rng(6)
    colours, noise = rng.integers(0, 200, (1000, 1, 1, 3)), rng.integers(0, 56, (100, 4, 4, 3))
    rows = np.arange(16_384)
    images, labels = (colours[rows % 1000] + noise[rows % 100]).astype(np.uint8), rows % 1000
    data = Arrays(images, labels, [f"{i:03}" for i in range(1000)])

    def train(comm, wire):
        with closing(make_trainer(parse_recipe(LARGE, [f"comm.wire={wire}"]), data, comm, ALONE)) as trainer:
            return learned(trainer, 3)

    fp32, fp16 = (on_ranks(2, partial(train, wire=wire))[0] for wire in ("fp32", "fp16"))
    losses, others = np.array(fp32.pop("loss")), np.array(fp16.pop("loss"))
    assert losses[-1] < losses[0] - 0.05
    assert others[0] == losses[0]  # before anything but the loss was exchanged
    assert np.abs(others - losses).max() <= 1e-4
    assert any(not np.array_equal(fp16[name], fp32[name]) for name in fp32)


@pytest.mark.parametrize("wire", ["bf16", "fp16"])
def test_wire__rounds_to_nearest_even(wire):
    bits = np.random.default_rng(3).integers(0, 2**32, 100_000, np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    x[:8] = 0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, 65519.0 / 1024, 1 + 2.0**-8
    short, back = np.empty(x.size, np.uint16), np.empty_like(x)
    encode, decode = {"bf16": (encode_bf16, decode_bf16), "fp16": (encode_fp16, decode_fp16)}[wire]
    encode(x, short)
    decode(short, back)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (x * np.float32(FP16_SCALE)).astype(np.float16).astype(np.float32) / np.float32(FP16_SCALE)
        expected = scaled if wire == "fp16" else _bf16(x)
    assert np.array_equal(back, expected, equal_nan=True)


def _bf16(x):
    """The nearer of the two neighbours with 16 bits, by exact arithmetic; of two equally near the even one."""
    finite, x = np.isfinite(x), x.copy()
    original, x[~finite] = x.copy(), 0
    low = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    high_bits = (low.view(np.uint32).astype(np.uint64) + 0x10000).astype(np.uint32)
    high = high_bits.view(np.float32).astype(np.float64)
    high = np.where(np.isinf(high), np.sign(low.astype(np.float64)) * 2.0**128, high)
    to_low, to_high = np.abs(x.astype(np.float64) - low), np.abs(high - x)
    odd = (low.view(np.uint32) >> 16 & 1).astype(bool)
    up = (to_high < to_low) | ((to_high == to_low) & odd)
    return np.where(finite, np.where(up, high_bits.view(np.float32), low), original)
