"""`knltrain bench data`: the loader alone, by encoding, augmentation and threads, beside the decoder library alone.

The loader and the decoder are timed in turn, block by block, on the same rows, with the same number of threads: a
machine that others use too changes its speed from second to second, and shares of neighbours do not.
"""

import io
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..data import Augment, DataSet, Loader, Order, pack
from ..data.augment import LEVELS
from .ceiling import machine_line

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
BLOCKS = 5  # of the loader, and of the decoder, in turn
SLOT_BATCH = 32
PHOTOS, HEIGHT, WIDTH = 256, 375, 500  # what is drawn where no shards are named: the usual size of ImageNet's


def run(folders=(), *, levels=(), threads=(), crop=224, seconds=2.0, as_json=False) -> list[dict]:
    """Measure and print one line a combination; returns the records.

    folders : of shards; none: photos are drawn and packed for the occasion, as they are and as raw 256 x 256 pixels
    levels : of augmentation; none: all
    threads : numbers of reader threads; none: 1 and all cores of this process
    seconds : of each side of a combination
    """
    levels = levels or LEVELS
    threads = threads or sorted({1, len(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as temporary:
        folders = folders or _drawn(Path(temporary))
        if not as_json:
            print(f"{machine_line()}; crop {crop}, slots of {SLOT_BATCH}, page cache warm")
            print(HEAD)
        records = []
        for folder in folders:
            data = DataSet(folder)
            rows = [data.read(row) for row in range(min(len(data), 4096))]  # also warms the page cache
            for level in levels:
                for count in threads:
                    records.append(_measure(data, rows, level, count, crop, seconds) | {"folder": str(folder)})
                    if not as_json:
                        print(_line(records[-1]), flush=True)
    if as_json:
        print(json.dumps(records, indent=1))
    return records


def _measure(data, rows, level, threads, crop, seconds):
    augment = Augment(level, crop, MEAN, STD, min_area=0.08, short_side=0 if data.size else 256)
    order = Order(len(data), data.page_rows, 1, min(SLOT_BATCH, len(data)), seed=0)
    ours, alone, pillow = [], [], []
    with Loader(data, order, augment, slots=range(1), threads=threads, prefetch=threads + 1) as loader:
        _take(loader, 0.3)  # compiles
        before = dict(loader.work_seconds)
        for _ in range(BLOCKS):
            ours.append(_take(loader, seconds / BLOCKS))
            loader.pause()  # the readers fill the ring and rest while the others run
            if data.encoding == "jpeg":
                alone.append(_decode_alone(rows, threads, seconds / BLOCKS))
                pillow.append(_pillow_alone(rows, augment, threads, seconds / BLOCKS))
        work = {name: spent - before[name] for name, spent in loader.work_seconds.items()}
    total = sum(work.values())
    return {
        "encoding": data.encoding,
        "augmentation": level,
        "threads": threads,
        "images_per_s": statistics.median(ours),
        "decoder_alone_images_per_s": statistics.median(alone) if alone else None,
        "share_of_decoder": statistics.median(a / b for a, b in zip(ours, alone, strict=True)) if alone else None,
        "pillow_images_per_s": statistics.median(pillow) if pillow else None,
        "share_of_pillow": statistics.median(a / b for a, b in zip(ours, pillow, strict=True)) if pillow else None,
        "mb_per_s": statistics.median(ours) * sum(row.nbytes for row in rows) / len(rows) / 1e6,
        **{f"{name}_share": value / total for name, value in work.items()},
    }


def _take(loader, seconds):
    """Images per second over so many seconds; batches that were made before do not count."""
    for _ in range(loader.prefetch + 1):
        next(loader)
    images, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        images += len(next(loader).rows)
    return images / (time.perf_counter() - begin)


def _on_threads(work, rows, threads, seconds):
    """Rows per second of `work(row)` on so many threads, each on rows of its own, from memory."""

    def loop(thread):
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            work(rows[(thread + done * threads) % len(rows)])
            done += 1
        return done / (time.perf_counter() - begin)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(loop, range(threads)))


def _decode_alone(rows, threads, seconds):
    """Full decodes per second by the library, nothing else: simplejpeg, or Pillow where that is missing."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        from PIL import Image

        def decode_jpeg(data, colorspace):
            return np.asarray(Image.open(io.BytesIO(data)).convert(colorspace))

    return _on_threads(lambda data: decode_jpeg(data, "RGB"), rows, threads, seconds)


def _pillow_alone(rows, augment, threads, seconds):
    """The usual loop on Pillow, doing the same: decode, resize the same kind of box, mirror, normalize."""
    from PIL import Image

    mean, std = np.float32(MEAN), np.float32(STD)
    size = (augment.crop, augment.crop)

    def sample(data):
        with Image.open(io.BytesIO(data)) as image:
            window = augment.window(image.height, image.width, 0, len(data))
            left, top = max(0.0, window.left), max(0.0, window.top)
            box = left, top, min(left + window.width, image.width), min(top + window.height, image.height)
            picture = image.convert("RGB").resize(size, Image.Resampling.BILINEAR, box)
        if window.mirror:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return (np.asarray(picture, np.float32) - mean) / std

    return _on_threads(sample, rows, threads, seconds)


HEAD = (
    "encoding augmentation threads | images/s    MB/s | read decode augment | "
    "decoder alone  loader/decoder | Pillow loop  loader/Pillow"
)


def _line(record):
    shares = f"{record['read_share']:4.0%} {record['decode_share']:6.0%} {record['augment_share']:7.0%}"
    text = f"{record['encoding']:8} {record['augmentation']:12} {record['threads']:7} | {record['images_per_s']:8,.0f} "
    text += f"{record['mb_per_s']:7,.0f} | {shares} |"
    if record["decoder_alone_images_per_s"]:
        text += f" {record['decoder_alone_images_per_s']:13,.0f} {record['share_of_decoder']:15.0%} |"
        text += f" {record['pillow_images_per_s']:11,.0f} {record['share_of_pillow']:14.2f}"
    return text


def _drawn(folder):
    """Photos of nothing, as large and as hard to decode as real ones, packed both ways."""
    from PIL import Image

    random = np.random.default_rng(0)
    (folder / "photos" / "class").mkdir(parents=True)
    for i in range(PHOTOS):
        pixels = np.zeros((HEIGHT, WIDTH, 3))
        for grain in (60, 20, 6, 2):  # coarse shapes to fine texture
            noise = random.integers(0, 256, (HEIGHT // grain + 1, WIDTH // grain + 1, 3), dtype=np.uint8)
            noise = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            pixels += np.asarray(noise) / 255 * grain**0.5
        pixels *= 255 / pixels.max()
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / "class" / f"{i}.jpg", quality=92)
    pack(folder / "photos", folder / "jpeg", encoding="jpeg", size=0, report=None)
    pack(folder / "photos", folder / "raw", encoding="raw", size=256, report=None)
    return [folder / "raw", folder / "jpeg"]
