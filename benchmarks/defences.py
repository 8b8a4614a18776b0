"""What each defence costs: microseconds at a container's launch, from the shim's own clock.

python -m benchmarks.defences [RUNS]     as root; rows for docs/security.md
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from fargatelite import Settings, run_task
from fargatelite.runtime.images import open_store
from tests.fixtures.images import build_oci_layout, busybox_files, tar_layer

DEFENCES = {
    "user_namespace": "user namespace, entered",
    "seccomp": "system-call filter, installed",
    "mask": "masked paths",
    "readonly": "read-only paths",
    "join_network": "network namespace, entered",
    "bounding": "bounding set",
    "user": "ids and groups",
    "capabilities": "capabilities",
    "keyring": "session keyring",
}


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    spent: dict[str, list[int]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        settings = Settings(data_root=str(root / "data"), run_root=str(root / "run"))
        layout = build_oci_layout(root / "layout", [tar_layer(busybox_files())])
        (image,) = open_store(settings).load(layout)
        definition = {
            "family": "cost", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
            "cpu": "256", "memory": "512",
            "containerDefinitions": [
                {"name": "app", "image": image.reference, "command": ["true"]}
            ],
        }  # fmt: skip
        for _ in range(runs):
            task = run_task(definition, settings=settings, pull="never", trace=True)
            task.wait(60)
            total: dict[str, int] = defaultdict(int)
            for text, microseconds in task.op_traces["app"]:
                total[text.split(" ", 1)[0]] += microseconds
                total["all"] += microseconds
            for name in (*DEFENCES, "all"):
                spent[name].append(total[name])
    whole = statistics.median(spent["all"])
    print("| Defence | us, median | of a container's set-up |\n|---|--:|--:|")
    for name, shown in DEFENCES.items():
        median = statistics.median(spent[name])
        print(f"| {shown} (`{name}`) | {median:.0f} | {100 * median / whole:.1f} % |")
    print(f"| a container's whole plan | {whole:.0f} | 100 % |")


if __name__ == "__main__":
    main()
