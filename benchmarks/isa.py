"""This process again, told of fewer instruction sets than the processor has.

rerankd has a cap of its own, RERANKD_ISA. The engines beside it choose their kernels by CPUID. By CPUID faulting, which
Intel's processors have since Ivy Bridge, `isa_cap.c` answers in the processor's place, and to all of them alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("isa_cap.c")
CAPS = ("avx2", "avx512", "avx512_vnni")
VARIABLE = "ISA_CAP"


def run_capped(module: str, cap: str) -> None:
    """Starts this process's command anew under the cap, unless it runs under one already; returns if it does.

    module: what `python -m` runs
    cap: the newest instruction set that programs are told of, one of CAPS

    Ends the process, with a line on stderr, where the processor or the system has no CPUID faulting.
    """
    if os.environ.get(VARIABLE):
        return
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "isa_cap.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", SOURCE, "-o", library], check=True)
        preloads = " ".join(filter(None, [str(library), os.environ.get("LD_PRELOAD")]))
        environment = {**os.environ, VARIABLE: cap, "LD_PRELOAD": preloads}
        sys.exit(subprocess.run([sys.executable, "-m", module, *sys.argv[1:]], env=environment).returncode)
