"""What `cargo xtask bench` measures, in one run, in turn; each group is a module beside this one.

Absolute times of an emulated lab mean nothing outside it; ratios of medians do.
"""

import argparse
import json
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import boots
import clones
import compute
import data
import logs
import memory
import product
import starts

GROUPS = {
    "boots": boots.rows,
    "clones": clones.rows,
    "memory": memory.rows,
    "starts": starts.rows,
    "logs": logs.rows,
    "compute": compute.rows,
    "data": data.rows,
}
# Made of rows of several groups: name, what is divided by what.
RATIOS = [
    ("restore_vs_cold_boot", "restore_256_mib_ms", "cold_boot_ms"),
    ("jailed_restore_vs_jailed_boot", "restore_256_mib_ms", "jailed_boot_ms"),
    ("unjailed_restore_vs_cold_boot", "unjailed_restore_256_mib_ms", "cold_boot_ms"),
    ("template_start_vs_cold_start", "template_start_ms", "cold_start_ms"),
    ("first_output_of_clone_vs_cold", "run_task_to_first_output_of_clone_ms", "run_task_to_first_output_ms"),
    ("run_task_to_first_output_vs_qemu_boot", "run_task_to_first_output_ms", "cold_boot_qemu_ms"),
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=GROUPS, action="append", default=[])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    rows = []
    for name, group in GROUPS.items():
        if not options.only or name in options.only:
            rows += group(options.rounds)
    values = {name: value for name, value, _ in rows}
    rows += [(name, values[a] / values[b], "ratio") for name, a, b in RATIOS if a in values and b in values]
    rows = [{"name": name, "value": round(value, 3), "unit": unit} for name, value, unit in rows]
    for row in rows:
        print(f"{row['name']:40} {row['value']:>12} {row['unit']}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    shutil.rmtree(product.SCRATCH, ignore_errors=True)


if __name__ == "__main__":
    main()
