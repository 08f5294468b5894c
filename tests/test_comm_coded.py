"""One byte a number: the kernel is its twin, no bit depends on ranks, nothing is lost, nothing bad is hidden."""

import numpy as np
import pytest
from ranks import on_ranks
from sum_slots import slot_gradient, sum_slots
from tinyrun import newest_state, same, train, write_recipe

from knltrain.comm import Links, Shares, make_block
from knltrain.comm.communicator import Serial
from knltrain.kernels import INT8_BLOCK, decode_int8, encode_int8, reference
from knltrain.recipe.config import RecipeError, parse_recipe

HEAD, SIZES = 48, (16, 704, 16, 240)  # floats of scalars and statistic; of the tensors of sum_slots, padded
EDGES = {"one": [0, 1], "odd": [7, 8, 39, 295, 300], "whole": [0, 256, 512]}


def _numbers(size, seed=0):
    """Of every magnitude, some of them zeros, one block with the largest and one below all scales."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(size) * 10.0 ** rng.integers(-6, 6, size)).astype(np.float32)
    x[rng.random(size) < 0.1] = 0
    return x


def _through(x, residual, edges):
    coded, y = np.full(x.size + edges.size - 1, 77, np.uint8), np.empty_like(x)
    encode_int8(x, residual, edges, coded)
    decode_int8(coded, edges, y)
    return y


@pytest.mark.parametrize("factor", [1.0, 1e-38, 1e-44, 3e32])
@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)
def test_int8__is_its_twin_and_loses_nothing_for_good(edges, factor):
    edges = np.array(edges, np.int64)
    size, residual = edges[-1] - edges[0], np.zeros(edges[-1] - edges[0], np.float32)
    for step in range(4):
        x = _numbers(size, step) * np.float32(factor)
        total = x + residual
        expected, lost = reference.int8_round(x, residual, edges)
        y = _through(x, residual, edges)
        assert np.array_equal(y, expected) and np.array_equal(residual, lost)
        assert np.array_equal(y.astype(np.float64) + residual, total)  # exactly


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8__a_bad_number_makes_its_block_nan_and_leaves_the_residual(bad):
    x, edges = _numbers(600), np.array([0, 256, 512, 600])
    residual = _numbers(600, 1) * np.float32(1e-3)
    before = residual.copy()
    x[300] = bad
    y = _through(x, residual, edges)
    assert np.isnan(y[256:512]).all() and np.isfinite(y[:256]).all() and np.isfinite(y[512:]).all()
    assert np.array_equal(residual[256:512], before[256:512]) and not np.array_equal(residual[:256], before[:256])


def test_int8__the_mean_of_what_arrives_becomes_the_number():
    x, edges = _numbers(1000), np.array([*range(0, 1000, INT8_BLOCK), 1000])
    residual, total = np.zeros(1000, np.float32), np.zeros(1000)
    for _ in range(200):
        total += _through(x, residual, edges)
    largest = np.repeat(np.maximum.reduceat(np.abs(x), edges[:-1]), np.diff(edges))
    assert np.all(np.abs(total / 200 - x) <= largest / 64 / 200)


def _specified(slots, workers, steps):
    """Sums after some steps, by recursion along the tree and the twin of the kernel, tensor by tensor."""
    starts = HEAD + np.cumsum([0, *SIZES])
    edges = [edge for k, size in enumerate(SIZES) for edge in range(starts[k], starts[k] + size, INT8_BLOCK)]
    edges, size = np.array([*edges, starts[-1]]), starts[-1]
    residual = {}

    def coded(key, total):
        lost = residual.setdefault(key, np.zeros(size - HEAD, np.float32))
        arrived, residual[key] = reference.int8_round(total[HEAD:], lost, edges)
        return np.concatenate([total[:HEAD], arrived])

    def total(first, count):
        left = count // 2 if count % 2 == 0 else max(2**k for k in range(20) if 2**k < count or count == 1)
        found = slot_gradient(first, size) if count == 1 else total(first, left) + total(first + left, count - left)
        return coded(first, found) if count == slots // workers else found

    for _ in range(steps):
        result = coded("total", total(0, slots))
    return result


SHARED = [(4, {"layout": [2, 2]}), (8, {"layout": [4, 4]}), (5, {"layout": [2, 1, 2]}), (6, {"layout": [3, 3]})]
ALONE = [(ranks, {"pretended_nodes": ranks}) for ranks in (2, 3, 4, 6, 8)]


@pytest.mark.parametrize("bucket_bytes", [64, 1500])
@pytest.mark.parametrize(("ranks", "options"), [(1, {}), (4, {"overlap": False}), *ALONE, *SHARED])
def test_coded__sums_are_the_same_on_any_ranks_in_any_buckets(ranks, options, bucket_bytes):
    options = {"wire": "int8", "workers": 8, "steps": 3} | options
    layout = options.pop("layout", ())
    expected = _specified(24, 8, 3)
    for total in on_ranks(ranks, lambda comm: sum_slots(comm, 24, bucket_bytes, **dict(options)), layout):
        assert np.array_equal(total, expected)


def test_coded__workers_may_lie_on_several_ranks_of_a_node():
    for total in on_ranks(8, lambda comm: sum_slots(comm, 24, 700, wire="int8", workers=2, steps=2), [4, 4]):
        assert np.array_equal(total, _specified(24, 2, 2))


def test_coded__a_quarter_of_the_bytes_moves():
    def sent(comm, wire):
        shares = Shares.of(4, [1] * 4, 4 if wire == "int8" else 0)
        block = make_block(Links(comm, wire=wire, shares=shares, pretended_nodes=4), 1 << 16)
        before = comm.sent_bytes
        block.allreduce(0, 1 << 16)
        return comm.sent_bytes - before

    fp32, int8 = (on_ranks(4, lambda comm, wire=wire: sent(comm, wire))[0] for wire in ("fp32", "int8"))
    assert int8 == fp32 / 4 * (1 + 1 / INT8_BLOCK)


@pytest.mark.parametrize(
    ("ranks", "workers", "match"),
    [(3, 2, "3 nodes .* begins with slot 4, inside one of 2 workers of 6 slots; expected whole workers")],
)
def test_coded__half_a_worker_on_a_node_is_refused(ranks, workers, match):
    with pytest.raises(ValueError, match=match):
        on_ranks(ranks, lambda comm: sum_slots(comm, 12, 64, wire="int8", workers=workers, pretended_nodes=ranks))


def test_coded__other_algorithms_are_refused():
    with pytest.raises(ValueError, match="algorithm tree with wire int8; expected one of auto, hierarchical, direct"):
        Links(Serial(), "tree", "int8")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("comm.workers=0", "comm.workers is 0; expected with int8 a power of two that divides the 8 slots"),
        ("comm.workers=16", "comm.workers is 16; expected a power of two that divides the 8 slots"),
        ("comm.workers=3", "comm.workers is 3; expected a power of two"),
        ("comm.shard_update=true", "comm.shard_update is True; expected false with int8"),
        ("comm.algorithm=tree", "comm.algorithm is 'tree'; expected auto or direct with int8"),
        ("comm.wire=fp32", 'comm.workers is 4; expected 0 without comm.wire = "int8" or optim.local_steps above 1'),
        ("comm.fc=factors", "comm.fc is 'factors'; expected auto or sum with int8"),
    ],
)
def test_coded__recipes_that_make_no_sense_are_refused(setting, message):
    text = '[model]\nname = "alexnet"\n[data]\ntrain = "-"\n[comm]\nwire = "int8"\nworkers = 4\n'
    parse_recipe(text)
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, [setting])
    assert message in str(error.value)


def test_coded__goes_on_to_the_bit_on_other_ranks_and_in_another_batch(tmp_path):
    """Two ranks stop in the warm-up's next epoch, one goes on; from epoch 2 on the batch is half, the workers two."""
    write_recipe(tmp_path)
    with (tmp_path / "tiny.toml").open("a") as recipe:
        recipe.write("[[phase]]\nfrom_epoch = 2.0\nbatch.global_batch = 8\n")
    coded = ["comm.wire=int8", "comm.workers=2", "schedule.warmup_epochs=0.5"]
    options = [word for setting in coded for word in ("--set", setting)]
    assert train(tmp_path, "whole", *options).returncode == 0
    begun = ["--set", "comm.pretended_nodes=2", "--set", "run.max_steps=5"]
    assert train(tmp_path, "parts", *options, *begun, ranks=2).returncode == 0
    halfway = newest_state(tmp_path, "parts", 5)
    assert all(halfway["residual/fc.w"][number].any() for number in range(3))
    assert train(tmp_path, "parts", *options).returncode == 0
    same(newest_state(tmp_path, "parts", 18), newest_state(tmp_path, "whole", 18))
    other = train(tmp_path, "parts", *options, "--set", "comm.workers=1")
    assert other.returncode != 0 and "begun with comm.workers = 2, now it is 1" in other.stderr
