"""`knltrain report`: runs as one HTML file that needs no other, and their curves as a figure for a paper.

`run` reads a folder, `panels` and `facts` compute, `chart` and `page` draw; `markup` alone turns text into HTML.
"""

from pathlib import Path

from ..claims.whole import write_whole
from .page import page
from .panels import panels
from .run import read_run


def write_report(
    folders: list[Path], out: Path | None, data: Path | None = None, figures: list[Path] = ()
) -> list[Path]:
    """Write the report of run folders; returns what was written.

    out: default `report.html` in the run folder, or here where there are several runs. data: the shards of the shown
    pictures, where they were moved. figures: a .pdf or .png each, of the curves. Raises ValueError for a folder that is
    no run or for `data` that is none, ImportError where a figure is asked for and matplotlib is missing, OSError.
    """
    if data and not data.is_dir():
        raise ValueError(f"{data}: found no folder, expected the shards of the shown pictures")
    folders = [Path(folder) for folder in folders]
    runs = [read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    out = Path(out) if out else (folders[0] if len(folders) == 1 else Path()) / "report.html"
    if figures:
        from ..tell.plots import curves

        for path in figures:
            curves(panels(runs), path)
    write_whole(out, page(runs, data), durable=False)
    return [out, *figures]


def _names(folders: list[Path]) -> list[str]:
    """Short and different; of a single run, which needs none, empty."""
    if len(folders) == 1:
        return [""]
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
