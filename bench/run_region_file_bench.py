#!/usr/bin/env python3
"""A file twice the RAM, read through a Region and by mmap in a memory cgroup: same harness, one after the other.

    run_region_file_bench.py BENCH_REGION_FILE [--seconds S] [--patterns ur,zr,sr] [--threads 1,2] [--folder DIR] [--json FILE]

The file has 512 MiB, the Region's budget 256 MiB, the cgroup (v1) a limit of 256 MiB, which mmap's pages count against. Random and
zipf reads are with MADV_RANDOM on both sides, sequential ones without advice; the device's readahead is 128 KiB for the time. Needs root
and the cgroup v1 memory controller; without them mmap has all of the machine's memory, and it says so.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

SIZE_MIB, RAM_MIB = 512, 256
GROUP = pathlib.Path("/sys/fs/cgroup/memory/weir-file-bench")
FIELDS = ["us_per_access", "cpu_us_per_access", "faults_per_access", "fault_mean", "fault_p50", "fault_p99"]


class Group:
    """The cgroup; gone again at the end of a `with`."""

    def __enter__(self):
        self.made = False
        try:
            GROUP.mkdir()
            self.made = True
            (GROUP / "memory.limit_in_bytes").write_text(str(RAM_MIB << 20))
        except OSError as e:
            print(f"mmap runs without a limit: {e}.\n")
        return self

    def join(self):
        if self.made:
            (GROUP / "tasks").write_text(str(os.getpid()))

    def __exit__(self, *unused):
        for _ in range(50):
            try:
                return self.made and GROUP.rmdir()
            except OSError:
                time.sleep(0.1)
        print(f"run_region_file_bench: {GROUP} could not be removed", file=sys.stderr)


class ReadAhead:
    """128 KiB of readahead on the file's device; what it was at the end of a `with`."""

    def __init__(self, file):
        device = os.stat(file).st_dev
        self.setting = pathlib.Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        self.before = None

    def __enter__(self):
        try:
            before = self.setting.read_text()
            self.setting.write_text("128")
            self.before = before
        except OSError as e:
            print(f"mmap's readahead is as it was: {e}.\n")

    def __exit__(self, *unused):
        if self.before is not None:
            self.setting.write_text(self.before)


def measure(bench, file, backend, pattern, threads, seconds, group):
    advice = "normal" if pattern == "sr" else "random"
    command = [bench, "--file", file, "--backend", backend, "--advice", advice, "--pattern", pattern, "--threads", str(threads),
               "--seconds", str(seconds), "--ram", str(RAM_MIB)]
    run = subprocess.run(command, capture_output=True, text=True, preexec_fn=group.join if backend == "mmap" else None)
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {run.returncode}: {run.stderr}")
    return json.loads(run.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--patterns", default="ur,zr,sr")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--folder", default="/var/tmp")
    parser.add_argument("--json")
    args = parser.parse_args()
    results = []
    with tempfile.NamedTemporaryFile(dir=args.folder) as file, Group() as group:
        for _ in range(SIZE_MIB):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        read_ahead = ReadAhead(file.name)
        print(f"{SIZE_MIB} MiB over {RAM_MIB} MiB; us; ratio = region / mmap\n")
        print("| pattern | threads | | " + " | ".join(FIELDS) + " |\n" + "| --- " * (3 + len(FIELDS)) + "|")
        for threads in args.threads.split(","):
            for pattern in args.patterns.split(","):
                with read_ahead:
                    rows = [measure(args.bench, file.name, backend, pattern, int(threads), args.seconds, group) for backend in ("mmap", "region")]
                for row in rows:
                    print(f"| {pattern} | {threads} | {row['backend']} | " + " | ".join(f"{row[f]:.2f}" for f in FIELDS) + " |")
                ratios = [rows[1][f] / rows[0][f] if rows[0][f] else float("nan") for f in FIELDS]
                print(f"| {pattern} | {threads} | **ratio** | " + " | ".join(f"{r:.2f}" for r in ratios) + " |", flush=True)
                results += rows
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
