"""knltrain for Spack, built from a checkout: docs/containers.md has the commands."""

from spack.package import depends_on, license, variant, version
from spack_repo.builtin.build_systems.python import PythonPackage


class PyKnltrain(PythonPackage):
    """Synchronous large-batch training of convolutional networks on CPU clusters."""

    license("MIT")

    version("0.1.0")  # no archive: `spack develop` names the checkout

    variant("jpeg", default=True, description="Read JPEG files, in training and packing")
    variant("plots", default=False, description="Draw figures")
    variant("parquet", default=False, description="Pack parquet files of pictures")

    depends_on("python@3.11:", type=("build", "run"))
    depends_on("py-setuptools@64:", type="build")
    depends_on("py-numpy", type=("build", "run"))
    depends_on("py-numba", type=("build", "run"))
    depends_on("py-h5py", type=("build", "run"))
    depends_on("py-mpi4py", type=("build", "run"))  # for the MPI that Spack is told to use
    depends_on("py-pillow +jpeg", type=("build", "run"), when="+jpeg")
    depends_on("py-matplotlib", type=("build", "run"), when="+plots")
    depends_on("py-pyarrow +parquet", type=("build", "run"), when="+parquet")
