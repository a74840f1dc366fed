"""Run every benchmark, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

# The shipped tags choose bfloat16 where the processor has it; a step of `base` has a target in float32 too.
ARGUMENTS = {
    "bench_training": (
        [],
        ["--set", "precision=float32"],
        ["--tag", "demo", "--steps", "60"],
        ["--tag", "modern", "--steps", "20"],
        ["--tag", "base256", "--steps", "2", "--step-only"],
    )
}

for script in sorted(Path(__file__).parent.glob("bench_*.py")):
    for arguments in ARGUMENTS.get(script.stem, ([],)):
        print("==", script.stem, *arguments, flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{script.stem}", *arguments], check=True)
