#!/usr/bin/env python3
"""A region over twice its RAM against the kernel's own zram swap in a memory cgroup: same harness, same machine, one after the other.

    run_region_bench.py BENCH_REGION [--seconds S] [--patterns ur,uw,sr,sw] [--threads 1,2] [--json FILE]

Both keep as many pages of the 512 MiB uncompressed. The kernel: cgroup v1 with 256 MiB, zram0 with lz4, whose compressed pages lie
outside the group. The region: its budget holds compressed pages and tables too, so it is set by trial: short runs, until 256 MiB of its
pages are resident (within 1 %). The column `resident` has what each run ended with. Needs root, the cgroup v1 memory controller and zram; without one of them the
kernel's half is left out and it says so. Whatever it sets up it takes down again, also when it fails.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

SIZE_MIB, RAM_MIB = 512, 256
FIRST_GUESS_MIB = 424  # a region's budget of which 256 MiB are left when the rest is compressed to a little over a half
GROUP = pathlib.Path("/sys/fs/cgroup/memory/weir-bench")
ZRAM = pathlib.Path("/sys/block/zram0")
FIELDS = ["us_per_access", "us_per_fault", "fault_mean", "fault_p50", "fault_p99", "cpu_us_per_fault"]


class KernelSwap:
    """The cgroup and the swap device; gone again at the end of a `with`."""

    def __init__(self):
        self.done = []

    def __enter__(self):
        try:
            self.set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def set_up(self):
        if os.geteuid() != 0:
            raise OSError("root is needed for the kernel's swap")
        if not (GROUP.parent / "memory.limit_in_bytes").exists():
            raise OSError("no cgroup v1 memory controller at " + str(GROUP.parent))
        if not ZRAM.exists():
            subprocess.run(["modprobe", "zram"], check=False, capture_output=True)
        if not ZRAM.exists() or (ZRAM / "disksize").read_text().strip() != "0":
            raise OSError("zram0 is not there, or in use")
        GROUP.mkdir()
        self.done.append(self.remove_group)
        (GROUP / "memory.limit_in_bytes").write_text(str(RAM_MIB << 20))
        before = (ZRAM / "comp_algorithm").read_text()
        self.algorithm = before[before.index("[") + 1 : before.index("]")]
        self.done.append(self.reset_zram)
        (ZRAM / "comp_algorithm").write_text("lz4")
        (ZRAM / "disksize").write_text("3G")
        subprocess.run(["mkswap", "/dev/zram0"], check=True, capture_output=True)
        subprocess.run(["swapon", "/dev/zram0"], check=True)
        self.done.append(lambda: subprocess.run(["swapoff", "/dev/zram0"], check=True))

    def remove_group(self):
        for _ in range(50):
            try:
                GROUP.rmdir()
                return
            except OSError:
                time.sleep(0.1)
        print(f"run_region_bench: {GROUP} could not be removed", file=sys.stderr)

    def reset_zram(self):
        (ZRAM / "reset").write_text("1")
        (ZRAM / "comp_algorithm").write_text(self.algorithm)

    def __exit__(self, *unused):
        time.sleep(0.3)
        while self.done:
            try:
                self.done.pop()()
            except (OSError, subprocess.CalledProcessError) as e:
                print(f"run_region_bench: clean-up: {e}", file=sys.stderr)


def join_group():
    (GROUP / "tasks").write_text(str(os.getpid()))


def measure(bench, backend, pattern, threads, seconds, budget=0, delivery="signal"):
    """One run; a process that the kernel's OOM killer ended is started again, and counted."""
    killed = 0
    command = [bench, "--backend", backend, "--pattern", pattern, "--threads", str(threads), "--size", str(SIZE_MIB), "--seconds", str(seconds)]
    if backend == "region":
        command += ["--ram", str(budget), "--delivery", delivery]
    while True:
        run = subprocess.run(command, capture_output=True, text=True, preexec_fn=join_group if backend == "plain" else None)
        if run.returncode == 0:
            return json.loads(run.stdout) | {"killed": killed, "delivery": delivery}
        killed += 1
        if run.returncode != -9 or killed == 8:
            raise RuntimeError(f"{' '.join(command)}: {run.returncode}: {run.stderr}")


def budget_for(bench, resident):
    """MiB of budget that leave `resident` MiB of a region's pages uncompressed."""
    budget, best = FIRST_GUESS_MIB, None
    for _ in range(5):
        got = measure(bench, "region", "ur", 1, 0.5, budget)["resident_mib"]
        if best is None or abs(got - resident) < abs(best[1] - resident):
            best = budget, got
        if abs(got - resident) < resident / 100:
            break
        # A page more that stays uncompressed takes its own frame and gives back a little over half of one.
        budget += round((resident - got) * 0.45) or (1 if got < resident else -1)
    print(f"The region's budget: {best[0]} MiB, of which {best[1]:.0f} MiB are resident pages; the kernel's group has {resident} MiB.\n", flush=True)
    return best[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--patterns", default="ur,uw,sr,sw")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--json")
    args = parser.parse_args()

    results = []
    cases = [(p, int(t)) for t in args.threads.split(",") for p in args.patterns.split(",")]
    try:
        with KernelSwap():
            for pattern, threads in cases:
                results.append(measure(args.bench, "plain", pattern, threads, args.seconds))
    except OSError as e:
        print(f"Without the kernel's half: {e}.\n")
    budget = budget_for(args.bench, RAM_MIB)
    for pattern, threads in cases:
        results.append(measure(args.bench, "region", pattern, threads, args.seconds, budget))

    kernel = {(r["pattern"], r["threads"]): r for r in results if r["backend"] == "plain"}
    print(f"{SIZE_MIB} MiB over {RAM_MIB} MiB, half-compressible pages; us; ratio = region / kernel\n")
    print("| pattern | threads | | " + " | ".join(FIELDS) + " | faults/access | resident | killed |\n" + "| --- " * (6 + len(FIELDS)) + "|")
    for region in (r for r in results if r["backend"] == "region"):
        key = region["pattern"], region["threads"]
        rows = ([("kernel", kernel[key])] if key in kernel else []) + [("region", region)]
        for name, row in rows:
            print(f"| {key[0]} | {key[1]} | {name} | " + " | ".join(f"{row[f]:.2f}" for f in FIELDS) + f" | {row['faults_per_access']:.3f} | {row.get('resident_mib', RAM_MIB):.0f} | {row['killed']} |")
        if key in kernel:
            ratios = [region[f] / kernel[key][f] if kernel[key][f] else float("nan") for f in FIELDS]
            print(f"| {key[0]} | {key[1]} | **ratio** | " + " | ".join(f"{r:.2f}" for r in ratios) + " | | | |")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
