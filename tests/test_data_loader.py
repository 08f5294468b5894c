"""knltrain/data/augment.py and loader.py: a batch depends on seed, epoch and rows, and on nothing else."""

import importlib
import io

import numpy as np
import pytest

from knltrain.data import Augment, DataSet, EvalLoader, Loader, Order, ShardError, Synthetic, eval_rows, read_mean_image
from knltrain.data.shards import Row, finish_shard, write_shard

decode_module = importlib.import_module("knltrain.data.decode")
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)


def augment(level="scale_aspect", crop=16, **options):
    return Augment(level, crop, MEAN, STD, seed=5, **options)


def batches(loader, count):
    return [(b.images.copy(), b.labels, b.rows, b.epoch) for b, _ in zip(loader, range(count), strict=False)]


def same(a, b):
    for one, other in zip(a, b, strict=True):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)


# ---- augmentation --------------------------------------------------------------------------------------------


def test_augment__none_takes_the_centre():
    image = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    out = np.empty((16, 16, 3), np.float32)
    augment("none").apply(image, 3, 7, out)
    np.testing.assert_allclose(out, (image[2:18, 7:23] - np.array(MEAN)) / STD, atol=1e-5)


def test_augment__windows_stay_in_the_picture():
    for level, pad in (("crop_flip", 0), ("crop_flip", 4), ("scale_aspect", 0)):
        for height, width in ((20, 31), (16, 16), (200, 20), (8, 300), (1, 1)):
            windows = [augment(level, pad=pad).window(height, width, 0, row) for row in range(50)]
            for w in windows:
                room = pad if w.height == w.width == 16 else 0
                assert -room <= w.top and w.top + w.height <= height + room and w.height > 0
                assert -room <= w.left and w.left + w.width <= width + room and w.width > 0


def test_augment__crop_flip_reaches_every_corner():
    windows = {augment("crop_flip", pad=1).window(16, 16, 0, row) for row in range(300)}
    assert len(windows) == 3 * 3 * 2


def test_augment__scale_aspect_has_the_right_distribution():
    windows = [augment(min_area=0.08).window(256, 256, 1, row) for row in range(2000)]
    areas = np.array([w.height * w.width for w in windows]) / 256**2
    aspects = np.array([w.width / w.height for w in windows])
    assert 0.07 < areas.min() < 0.1 and 0.45 < areas.mean() < 0.5  # below 0.54: large boxes fit less often
    assert 0.7 < aspects.min() < 0.8 and 1.25 < aspects.max() < 1.4 and abs(np.log(aspects).mean()) < 0.02
    assert 0.45 < np.mean([w.mirror for w in windows]) < 0.55


def test_augment__depends_on_seed_epoch_and_row():
    windows = {augment().window(256, 256, epoch, row) for epoch in range(5) for row in range(20)}
    assert len(windows) == 100
    assert augment().window(256, 256, 0, 0) != Augment("scale_aspect", 16, MEAN, STD, seed=6).window(256, 256, 0, 0)


@pytest.mark.parametrize("level", ["none", "crop_flip", "scale", "scale_aspect"])
def test_augment__enlarges_small_pictures(level):
    image = np.full((5, 9, 3), 200, np.uint8)
    out = np.full((16, 16, 3), np.nan, np.float32)
    augment(level, pad=2).apply(image, 0, 0, out)
    np.testing.assert_allclose(out, np.broadcast_to((200 - np.array(MEAN)) / STD, out.shape), atol=1e-4)


def test_augment__alternating_mirrors_show_both_sides_in_two_epochs():
    both = augment("crop_flip", mirror="alternate")
    mirrors = np.array([[both.window(20, 20, epoch, row).mirror for row in range(300)] for epoch in range(4)])
    assert 0.4 < mirrors[0].mean() < 0.6
    assert (mirrors[0] != mirrors[1]).all() and (mirrors[0] == mirrors[2]).all() and (mirrors[1] == mirrors[3]).all()
    plain = [augment("crop_flip").window(20, 20, 1, row)[:4] for row in range(30)]
    assert plain == [both.window(20, 20, 1, row)[:4] for row in range(30)]  # what else is drawn stays


def test_augment__mixes_each_sample_with_the_next():
    samples = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype(np.float32)
    mixed, rows, mixing = samples.copy(), np.array([7, 3, 9, 1, 4]), augment(mixup=1.0)
    shares = mixing.mix(mixed, 2, rows)
    own = shares.astype(np.float64)[:, None, None, None]
    np.testing.assert_allclose(mixed, own * samples + (1 - own) * np.roll(samples, -1, 0), atol=1e-6)
    again = mixing.mix(samples[[0, 3]].copy(), 2, np.array([7, 1]))
    assert np.array_equal(again, shares[[0, 3]])  # a share is its row's and epoch's, whatever else is in the slot
    assert not np.array_equal(mixing.mix(samples.copy(), 3, rows), shares)


@pytest.mark.parametrize("a", [0.2, 1.0])
def test_augment__shares_are_of_a_beta_distribution(a):
    shares = augment(mixup=a).mix(np.zeros((4000, 1, 1, 3), np.float32), 0, np.arange(4000))
    assert abs(shares.mean() - 0.5) < 0.03 and abs(shares.var() - 1 / (4 * (2 * a + 1))) < 0.01


def test_loader__mixes_pictures_and_labels_alike():
    data = Synthetic(60, 16, 10)
    sets = []
    for mixup, threads in ((0.0, 1), (1.0, 1), (1.0, 3)):
        how = augment("crop_flip", mixup=mixup)
        with Loader(data, Order(60, data.page_rows, 2, 4, 5), how, slots=range(2), threads=threads) as loader:
            sets.append([(b.images.copy(), b.labels, b.mixed) for b, _ in zip(loader, range(6), strict=False)])
    for (plain, labels, nothing), (images, _, (others, shares)), (again, *_) in zip(*sets, strict=True):
        share = shares[:, None, None, None]
        np.testing.assert_allclose(images, share * plain + (1 - share) * np.roll(plain, -1, 0), atol=1e-5)
        assert nothing is None and np.array_equal(others, np.roll(labels, -1)) and np.array_equal(images, again)


WRONG = [{"level": "wild"}, {"crop": 0}, {"pad": -1}, {"min_area": 0}, {"cutout": -1}, {"mirror": "no"}, {"mixup": 2}]


@pytest.mark.parametrize("options", WRONG)
def test_augment__rejects_wrong_numbers(options):
    with pytest.raises(ValueError, match="expected"):
        augment(**options)


def test_augment__cutout_lays_one_square_and_changes_nothing_else():
    image = np.full((16, 16, 3), 255, np.uint8)
    whole, cut, blanks = np.empty((16, 16, 3), np.float32), np.empty((16, 16, 3), np.float32), []
    for row in range(200):
        augment("crop_flip").apply(image, 0, row, whole)
        augment("crop_flip", cutout=5).apply(image, 0, row, cut)
        blank = (cut == 0).all(-1)
        assert whole.all() and np.array_equal(cut[~blank], whole[~blank])
        rows, columns = blank.any(1), blank.any(0)
        assert np.array_equal(blank, rows[:, None] & columns[None]) and 3 <= rows.sum() <= 5 and 3 <= columns.sum() <= 5
        blanks.append(blank)
    often = np.mean(blanks, 0)
    assert 0.01 < often.min() and often.max() < 0.2  # anywhere, and not always at one place
    augment("none", cutout=5).apply(image, 0, 0, cut)
    assert cut.all()


def test_augment__color_changes_colours_around_the_same_window():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    plain, colored = np.empty((16, 16, 3), np.float32), np.empty((16, 16, 3), np.float32)
    augment("scale_aspect").apply(image, 0, 3, plain)
    augment("color").apply(image, 0, 3, colored)
    pixels = plain.reshape(-1, 3) * STD + MEAN
    solution, residual, *_ = np.linalg.lstsq(np.c_[pixels, np.ones(256)], colored.reshape(-1, 3) * STD + MEAN)
    assert residual.max() < 1e-3 and np.abs(solution[:3] - np.eye(3)).max() > 0.05  # another linear map, and only that


def test_augment__takes_the_mean_picture_of_caffe(tmp_path):
    mean = np.random.default_rng(0).uniform(0, 255, (3, 20, 20))
    np.save(tmp_path / "caffe.npy", mean)
    np.save(tmp_path / "rgb.npy", mean[::-1].transpose(1, 2, 0))
    pictures = [read_mean_image(tmp_path / name, 20) for name in ("caffe.npy", "rgb.npy")]
    np.testing.assert_array_equal(*pictures)
    image = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    out = np.empty((16, 16, 3), np.float32)
    Augment("none", 16, pictures[0], STD).apply(image, 0, 0, out)
    np.testing.assert_allclose(out, ((image - pictures[0]) / STD)[2:18, 2:18], atol=1e-4)
    with pytest.raises(ValueError, match="crop_flip"):
        Augment("scale_aspect", 16, pictures[0], STD)
    with pytest.raises(ValueError, match=r"found shape \(3, 20, 20\), expected a mean picture of \(32, 32, 3\)"):
        read_mean_image(tmp_path / "caffe.npy", 32)
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(ValueError, match="text.npy: found no NumPy array"):
        read_mean_image(tmp_path / "text.npy", 32)
    with pytest.raises(ValueError, match="found no such file, expected a mean picture: knltrain shards DIR --mean"):
        read_mean_image(tmp_path / "none.npy", 32)


def test_identity__knows_a_mean_picture_by_what_is_in_it(tmp_path):
    """Two places with the same picture are one experiment, two pictures in one place are two."""
    from knltrain.recipe.config import load_recipe
    from knltrain.recipe.experiment import identity

    class Data:
        encoding, size, fit, class_names, digest = "raw", 4, "crop", ["a", "b"], "0"

        def __len__(self):
            return 8

    def facts(name):
        recipe = '[model]\nname = "alexnet"\n[data]\ntrain = "t"\n[batch]\nglobal_batch = 8\nslot_batch = 8\n'
        (tmp_path / "r.toml").write_text(recipe)
        return identity(load_recipe(tmp_path / "r.toml", [f"data.mean_image={tmp_path / name}"]), Data())

    for name, value in (("one.npy", 1), ("same.npy", 1), ("other.npy", 2)):
        np.save(tmp_path / name, np.full((4, 4, 3), value, np.float32))
    assert facts("one.npy") == facts("same.npy") != facts("other.npy")


def photos():
    Image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for sampling in (0, 1, 2):
        for progressive in (False, True):
            for mode in ("RGB", "L"):
                colours = random.integers(0, 256, (3, 4, 3), dtype=np.uint8)
                picture = Image.fromarray(colours).resize((331, 247), Image.Resampling.BICUBIC).convert(mode)
                out = io.BytesIO()
                picture.save(out, "JPEG", quality=90, subsampling=sampling, progressive=progressive)
                yield np.frombuffer(out.getvalue(), np.uint8).copy()


@pytest.mark.parametrize("fast", [True, False])
def test_decode_part__has_the_pixels_of_the_whole(fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(decode_module, "simplejpeg", None)
    elif decode_module.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    for data in photos():
        header = decode_module.jpeg_header(data)
        assert header[:2] == (247, 331)
        whole = decode_module.decode(data)
        for bottom in (1, 16, 17, 100, 200, 246, 247):
            part = decode_module.decode_part(data.copy(), header, bottom, 1)
            assert bottom <= len(part) <= 247 and part.shape[1:] == (331, 3)
            np.testing.assert_array_equal(part[:bottom], whole[:bottom])
        for shrink in (2, 4, 8):
            part = decode_module.decode_part(data.copy(), header, 247, shrink)
            assert part.shape == (-(-247 // shrink), -(-331 // shrink), 3)
            means = whole[:240, :328].reshape(240 // shrink, shrink, 328 // shrink, shrink, 3).mean((1, 3))
            assert np.abs(part[: 240 // shrink, : 328 // shrink] - means).mean() < 4


@pytest.mark.parametrize("level, whole", [("none", True), ("crop_flip", False)])
def test_decode__leaves_the_pixels_of_an_evaluation_whole(level, whole):
    augment = Augment(level, 28, (0, 0, 0), (1, 1, 1), short_side=32)  # a window of 216 of 247 rows
    for data in photos():
        expected = decode_module.decode(data)
        pixels, window = augment.decode(data.copy(), 0, 0)
        if whole:
            assert window.height > 200 and np.array_equal(pixels, expected[: len(pixels)])
        else:
            assert pixels.shape[1] == 83  # a quarter of 331


def test_decode_part__shrinks_alike_with_either_decoder(monkeypatch):
    if decode_module.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    cases = [(data, shrink) for data in photos() for shrink in (1, 2, 4, 8)]
    header, part = decode_module.jpeg_header, decode_module.decode_part
    fast = [part(data.copy(), header(data), 247, shrink) for data, shrink in cases]
    monkeypatch.setattr(decode_module, "simplejpeg", None)
    for (data, shrink), pixels in zip(cases, fast, strict=True):
        np.testing.assert_array_equal(pixels, part(data, header(data), 247, shrink))


def test_augment__of_a_jpeg_is_that_of_its_pixels():
    for row, data in enumerate(photos()):
        whole = decode_module.decode(data)
        for level in ("none", "crop_flip", "scale", "scale_aspect", "color"):
            for crop, short_side in ((200, 224), (16, 32)):
                a = augment(level, crop, min_area=0.08, short_side=short_side)
                expected, out = (np.empty((crop, crop, 3), np.float32) for _ in range(2))
                a.apply(whole, 0, row, expected)
                image, window = a.decode(data.copy(), 0, row)
                a.cut(image, window, 0, row, out)
                if image.shape[1] == whole.shape[1]:
                    np.testing.assert_array_equal(out, expected)
                else:  # shrunk while decoding: another filter, nearly the same picture
                    assert np.abs(out - expected).mean() < 0.1


# ---- loader --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads, prefetch", [(1, 1), (2, 2), (4, 7)])
def test_loader__is_the_same_with_any_number_of_threads(threads, prefetch):
    data, order = Synthetic(100, 20, 4), Order(100, 3, 4, 6, seed=2)
    with Loader(data, order, augment(), slots=range(4)) as loader:
        expected = batches(loader, 30)
    with Loader(data, order, augment(), slots=range(4), threads=threads, prefetch=prefetch) as loader:
        same(batches(loader, 30), expected)


def test_loader__holds_a_batch_until_the_next():
    with Loader(Synthetic(100, 20, 4), Order(100, 3, 2, 6, seed=2), augment(), slots=range(2), threads=3) as loader:
        for batch, _ in zip(loader, range(20), strict=False):
            before = batch.images.copy()
            for future in loader._pending:
                future.result()
            np.testing.assert_array_equal(batch.images, before)


def test_loader__continues_anywhere_and_splits_over_ranks():
    data, order = Synthetic(100, 20, 4), Order(100, 3, 4, 6, seed=2)
    with Loader(data, order, augment(), slots=range(4)) as loader:
        expected = batches(loader, 4 * 12)  # three epochs of four steps
        for step in (7, 0, 3):
            loader.seek(step)
            same(batches(loader, 5), expected[4 * step : 4 * step + 5])
        assert loader.stall_seconds > 0
    with Loader(data, order, augment(), slots=range(2, 4), threads=2) as loader:
        loader.seek(5)
        same(batches(loader, 4), [*expected[22:24], *expected[26:28]])


def test_loader__gives_the_labels_of_its_rows():
    data = Synthetic(100, 20, 4)
    with Loader(data, Order(100, 3, 4, 6, seed=2), augment("none"), slots=range(4)) as loader:
        for images, labels, rows, _ in batches(loader, 17):
            np.testing.assert_array_equal(labels, data.labels[rows])
            assert images.dtype == np.float32 and labels.dtype == rows.dtype == np.int64
        assert next(loader).epoch == 1


def test_eval_loader__gives_every_row_once_and_a_short_last_batch():
    data, seen = Synthetic(50, 20, 4), []
    for rank in range(3):
        with EvalLoader(data, eval_rows(50, rank, 3, 7), augment("none"), threads=2) as loader:
            for batch in loader:
                assert len(batch.images) == len(batch.rows) == len(batch.labels) <= 7
                seen += batch.rows.tolist()
    assert sorted(seen) == list(range(50))
    with EvalLoader(data, [], augment("none")) as loader:
        assert list(loader) == []


def test_loader__raises_the_error_of_a_thread_and_ends(tmp_path):
    rows = [Row(np.full((20, 20, 3), i, np.uint8), 0, f"a/{i}") for i in range(12)]
    path = tmp_path / "shard-00000.h5"
    write_shard(path, rows, encoding="raw", size=20, first_row=0, class_names=["a"])
    finish_shard(path, path, 12)
    data = bytearray(path.read_bytes())
    data[bytes(data).index(bytes(rows[9].data)) + 600] ^= 255
    path.write_bytes(data)
    loader = EvalLoader(DataSet(tmp_path), eval_rows(12, 0, 1, 4), augment("none"), threads=2)
    assert next(loader).rows.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(next(loader).images[0, 0, 0, 0], (4 - 120) / 60, rtol=1e-6)
    with pytest.raises(ShardError, match="row 9"):
        next(loader)
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_loader__reads_jpeg_rows(tmp_path):
    pytest.importorskip("PIL.Image")
    from knltrain.data.decode import encode_jpeg

    rows = [Row(encode_jpeg(np.full((20, 20 + i, 3), 20 * i, np.uint8)), i % 2, f"{i % 2}/{i}") for i in range(12)]
    path = tmp_path / "shard-00000.h5"
    write_shard(path, rows, encoding="jpeg", size=20, first_row=0, class_names=["0", "1"])
    finish_shard(path, path, 12)
    data = DataSet(tmp_path)
    with Loader(
        data, Order(12, data.page_rows, 2, 3, seed=0), augment("crop_flip"), slots=range(2), threads=2
    ) as loader:
        for images, labels, rows, _ in batches(loader, 4):
            np.testing.assert_array_equal(labels, rows % 2)
            np.testing.assert_allclose(images[:, 8, 8, 1], (20 * rows - 110) / 50, atol=0.05)
