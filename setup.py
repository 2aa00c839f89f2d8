"""The one part of the build that pyproject.toml has no settled words for: the C kernels."""

from glob import glob

from setuptools import Extension, setup

KERNELS = "src/rerankd/layers/native"

setup(
    ext_modules=[
        Extension(
            "rerankd.layers.native._kernels",
            sources=sorted(glob(f"{KERNELS}/*.c")),
            depends=sorted(glob(f"{KERNELS}/*.h")),
            extra_compile_args=["-O3", "-fopenmp", "-fno-math-errno"],
            extra_link_args=["-fopenmp"],
            # It is loaded by ctypes and knows nothing of Python: one build serves every version.
            py_limited_api=True,
            # Without a C compiler the package installs all the same, and torch's own functions do the work.
            optional=True,
        )
    ]
)
