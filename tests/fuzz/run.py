"""`make fuzz`: every parser of strangers' bytes for its share of the time, two at once.

    python -m tests.fuzz.run [SECONDS]

C under libFuzzer with ASan and UBSan, Python under atheris. Seeds are tests/fuzz/corpus/TARGET;
what a run finds on its way stays in build/fuzz. A crash is written to build/fuzz/TARGET-crash-*:
put it into the corpus, where tests/unit/test_fuzz_corpus.py holds it, and mend the parser.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
AT_ONCE = 2
START_S = 2
"""What building and atheris' rewriting of bytecode take of a target's share."""
C_TARGETS = {
    "plan_c": ("plan.c", "../shim/plan.c"),
    "control_c": ("control.c", "../shim/control.c"),
}
PYTHON_TARGETS = (
    "layer", "header", "pax", "manifest", "config", "users", "plan", "exits", "ledger",
    "definition", "seccomp",
)  # fmt: skip


def build_c(name: str, sources: tuple[str, ...]) -> Path:
    """Compiles one target of csrc/fuzz."""
    program = BUILD / name
    subprocess.run(
        ["clang", "-g", "-O1", "-std=gnu11", "-fsanitize=fuzzer,address,undefined",
         "-fno-sanitize-recover=undefined", "-I", ROOT / "csrc/formats", "-o", program,
         *(ROOT / "csrc/fuzz" / source for source in sources)],
        check=True,
    )  # fmt: skip
    return program


def fuzz(name: str, command: list[str], seconds: float) -> tuple[str, int, str]:
    """Runs one target; its name, exit code and last lines."""
    kept = BUILD / f"{name}.corpus"
    kept.mkdir(parents=True, exist_ok=True)
    seeds = CORPUS / name.removesuffix("_c")
    done = subprocess.run(
        [*command, f"-max_total_time={max(1, int(seconds))}", "-timeout=5", "-rss_limit_mb=1024",
         "-max_len=65536", f"-artifact_prefix={BUILD}/{name}-", str(kept),
         *([str(seeds)] if seeds.is_dir() else [])],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return name, done.returncode, "\n".join(done.stderr.splitlines()[-25:])


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    BUILD.mkdir(parents=True, exist_ok=True)
    commands = {name: [str(build_c(name, sources))] for name, sources in C_TARGETS.items()}
    for name in PYTHON_TARGETS:
        commands[name] = [sys.executable, "-m", "tests.fuzz.one", name]
    share = seconds * AT_ONCE / len(commands) - START_S
    started, failed = time.monotonic(), 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [pool.submit(fuzz, name, command, share) for name, command in commands.items()]
        for run in runs:
            name, code, text = run.result()
            counted = [line for line in text.splitlines() if line.startswith(("Done ", "#"))]
            print(f"{name:12} {'ok' if code == 0 else 'FAILED'} {counted[-1] if counted else ''}")
            if code:
                failed += 1
                print(text)
    print(f"{len(commands)} targets in {time.monotonic() - started:.0f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
