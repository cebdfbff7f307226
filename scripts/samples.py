#!/usr/bin/env python3
"""samples.py [WEIR]: makes the explorer's samples in docs/explore anew, as docs/explore/samples.toml says.

A sample of `sim` comes from a scenario of examples/. That of `run` is a program under weir run, whose recording differs each
time: it is made only where the host can page live, and only with --live.
"""
import pathlib
import subprocess
import sys
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "explore"


def samples():
    return tomllib.loads((FOLDER / "samples.toml").read_text())["sample"]


def make(weir, sample, out):
    """Makes one sample's page. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="weir-samples-") as scratch:
        recording = pathlib.Path(scratch) / "recording"
        if "sim" in sample:
            subprocess.run([weir, "sim", sample["sim"], "--quiet", "--record", recording], cwd=ROOT, check=True)
        else:
            subprocess.run([weir, "run", "--quiet", "--record", recording, *sample["run"]], cwd=ROOT, check=True,
                           stdout=subprocess.DEVNULL)
        subprocess.run([weir, "explore", recording, "-o", out, "--title", sample["title"], *sample["explore"]], cwd=ROOT, check=True)


def main():
    arguments = [a for a in sys.argv[1:] if a != "--live"]
    weir = arguments[0] if arguments else ROOT / "build" / "release" / "bin" / "weir"
    for sample in samples():
        if "sim" not in sample and "--live" not in sys.argv:
            continue
        make(weir, sample, FOLDER / f"{sample['name']}.html")
        print(f"docs/explore/{sample['name']}.html")


if __name__ == "__main__":
    main()
