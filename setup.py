"""What is installed, what it needs, and the one command. Tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+?)"', (here / "knltrain" / "__init__.py").read_text(encoding="utf-8")).group(1)


def with_all(extras):
    """The extras, and "all": what any command can use."""
    used = {package for name, some in extras.items() if name not in ("dev", "docs", "parity") for package in some}
    return extras | {"all": sorted(used)}


setup(
    name="knltrain",
    version=version,
    description="Synchronous large-batch training of AlexNet and ResNet on many CPU ranks",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["knltrain", "knltrain.*"]),
    package_data={
        "knltrain": [
            "tools/demo.toml", "py.typed", "recipes/*.toml", "report/*.css", "report/*.js", "plan/*.toml",
            "plan/machines/*.toml",
        ],
    },  # fmt: skip
    install_requires=[
        "numpy",
        "mpi4py",
        "numba",
        "h5py",
        'intel-openmp; platform_machine == "x86_64" and sys_platform == "linux"',
    ],
    extras_require=with_all({
        "docs": ["sphinx", "myst-nb", "furo", "matplotlib"],
        "jpeg": ["simplejpeg", "pillow"],
        "mpi": ["mpich"],
        "plots": ["matplotlib"],
        "parquet": ["pyarrow"],
        "live": ["rich"],
        "tensorboard": ["tensorboardX"],
        "mlflow": ["mlflow-skinny"],
        "exchange": ["safetensors", "onnx"],
        "dev": [
            "pytest", "pytest-xdist", "ruff", "pyarrow", "rich", "tensorboardX", "tensorboard", "safetensors", "onnx",
            "onnxruntime", "nbclient", "ipykernel", "wheel",
        ],  # fmt: skip
        "parity": ["optax", "torch", "mlperf-logging"],  # what some tests compare with; a gigabyte
    }),
    entry_points={"console_scripts": ["knltrain = knltrain.cli:main"]},
)
