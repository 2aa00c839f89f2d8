"""The one part of the build that pyproject.toml has no settled words for: the C kernels."""

import os
from glob import glob
from pathlib import Path
from runpy import run_path

from setuptools import Extension, setup

KERNELS = "src/rerankd/backends/cpu/native"
# A build under sanitizers has a level of its own in CFLAGS, where the last level on the command line counts.
OPTIMISE = [] if "-fsanitize" in os.environ.get("CFLAGS", "") else ["-O3"]
DIGEST = run_path(f"{KERNELS}/sources.py")["digest"](Path(KERNELS))

setup(
    ext_modules=[
        Extension(
            "rerankd.backends.cpu.native._kernels",
            sources=sorted(glob(f"{KERNELS}/*.c")),
            depends=sorted(glob(f"{KERNELS}/*.h")),
            # `Kernels.load` compares this with the sources that lie beside the library.
            define_macros=[("RERANKD_SOURCES", f'"{DIGEST}"')],
            extra_compile_args=[*OPTIMISE, "-fopenmp", "-fno-math-errno"],
            extra_link_args=["-fopenmp"],
            # It is loaded by ctypes and knows nothing of Python: one build serves every version.
            py_limited_api=True,
            # Without a C compiler the package installs all the same, and torch's own functions do the work.
            optional=True,
        )
    ],
    options={
        # Always compiled: files' times do not tell which sources a library was compiled from.
        "build_ext": {"force": True},
        # One wheel serves every Python from the oldest one on.
        "bdist_wheel": {"py_limited_api": "cp310"},
    },
)
