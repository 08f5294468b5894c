"""The pictures of predictions, from the shards they were evaluated on, as the network saw them, small enough to lie in
the page."""

import base64
import io
from pathlib import Path

from ..data import DataSet

SIDE = 144  # pixels at most


def picture_urls(predictions: dict, folder: Path | None) -> tuple[dict[int, str], str]:
    """(data URL of each row that `best` and `worst` name, "") or ({}, why there are none).

    folder: of the shards, where they lie elsewhere by now.
    """
    try:
        from PIL import Image
    except ImportError:
        return {}, "pictures are left out: Pillow is not installed (pip install knltrain[jpeg])"
    try:
        data = DataSet(folder or predictions["data"])
        if data.digest != predictions["digest"]:
            where = "expected those that were evaluated: say where they are with --data"
            return {}, f"pictures are left out: {data.folder} holds other shards, {where}"
        urls = {}
        for row in {one["row"] for end in ("best", "worst") for one in predictions[end]}:
            picture, file = Image.fromarray(data.image(row)), io.BytesIO()
            picture = _seen(picture, predictions["crop"], predictions["short_side"])
            picture.thumbnail((SIDE, SIDE))
            picture.save(file, "JPEG", quality=82)
            urls[row] = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        return urls, ""
    except (OSError, ValueError, ImportError, IndexError) as error:
        return {}, f"pictures are left out: {error}"


def _seen(picture, crop: float, short_side: float):
    """The centre that is `crop` pixels once the short side is `short_side` (0: as it is); all where crop is 0."""
    width, height = picture.size
    least = min(width, height)
    side = min(1, crop / (short_side or least)) * least if crop > 0 else 0
    edges = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    return picture.crop(tuple(map(round, edges))) if side >= 1 else picture
