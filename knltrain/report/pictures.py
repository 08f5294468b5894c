"""The pictures of predictions, from the shards they were evaluated on, small enough to lie in the page."""

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
            picture.thumbnail((SIDE, SIDE))
            picture.save(file, "JPEG", quality=82)
            urls[row] = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        return urls, ""
    except (OSError, ValueError, ImportError, IndexError) as error:
        return {}, f"pictures are left out: {error}"
