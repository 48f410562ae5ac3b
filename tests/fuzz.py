"""Inputs that nobody meant, and what must hold for every one of them.

    python tests/fuzz.py                                    3,000 inputs, those of the test suite
    python tests/fuzz.py --inputs 100000 --seed 7           a long run, on two processes
    python tests/fuzz.py --targets recipe tasks             of some targets only
    python tests/fuzz.py --seed 7 --only 1234               one input again, in this process

An input is a number: with the seed and the targets it draws all else. It either succeeds, with finite
vectors of unit length, or ends in an `EmbeddingGemmaError` (a TypeError for arguments of a wrong type)
of one short line. It leaves no half-written folder, takes bounded time and memory, and never kills its
process. Inputs run in processes of their own, which are watched: one that dies or hangs is named too.
"""

import argparse
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"  # an invented name must not be asked for

import fuzz_targets

CPU_SECONDS, WALL_SECONDS = 20, 180
MEMORY = 12 * 2**30
LONGEST = 1000  # characters of a message


class Fault(NamedTuple):
    """An input for which something did not hold."""

    number: int
    target: str
    what: str


def run(
    inputs: int, seed: int = 0, targets: Sequence[str] = (*fuzz_targets.TARGETS,), jobs: int = 2
) -> list[Fault]:
    """The faults of the first `inputs` inputs, taken from the targets in turns."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, ThreadPoolExecutor(jobs) as pool:
        base = fuzz_targets.make_base(Path(folder) / "base")
        runs = [
            pool.submit(watch, range(job, inputs, jobs), seed, targets, base, Path(folder) / str(job))
            for job in range(jobs)
        ]
        return sorted(fault for one in runs for fault in one.result())


def watch(numbers: range, seed: int, targets: Sequence[str], base: Path, scratch: Path) -> list[Fault]:
    """The faults of these inputs, run in a process that is started again where one kills it."""
    faults = []
    while numbers:
        command = [sys.executable, __file__, "--worker", str(scratch), "--base", str(base)]
        command += [
            "--seed",
            str(seed),
            "--numbers",
            *map(str, (numbers[0], numbers[-1] + 1, numbers.step)),
        ]
        worker = subprocess.Popen(
            [*command, "--targets", *targets],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        assert worker.stdout is not None
        with worker.stdout as answers:
            while numbers:
                ready = select.select([answers], [], [], WALL_SECONDS)[0]
                line = answers.readline() if ready else b""
                if line:
                    what = json.loads(line)
                else:
                    worker.kill()
                    what = f"the process ended with {worker.wait()}" if ready else "it hangs"
                if what:
                    faults.append(Fault(numbers[0], targets[numbers[0] % len(targets)], what))
                numbers = numbers[1:]
                if not line:
                    break
        worker.kill()
        worker.wait()
    return faults


def work(numbers: range, seed: int, targets: Sequence[str], base: Path, scratch: Path) -> None:
    """In a process of its own: runs inputs, and answers each with a line, null or what is wrong."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what an input prints is no answer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for number in numbers:
        print(json.dumps(fault_of(number, seed, targets, base, scratch)), file=answers, flush=True)


def fault_of(
    number: int, seed: int, targets: Sequence[str], base: Path, scratch: Path, show: bool = False
) -> str | None:
    """Runs one input; what did not hold, or None."""
    target = targets[number % len(targets)]
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    os.chdir(scratch)  # relative names that an input writes to end here
    started = time.process_time()
    error: BaseException | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fuzz_targets.TARGETS[target](random.Random(f"{seed} {number}"), base, scratch)
    except BaseException as caught:  # a panic of tokenizers is no Exception
        if isinstance(caught, KeyboardInterrupt):
            raise
        error = caught
        if show:
            traceback.print_exc()
    seconds = time.process_time() - started
    if error is not None and (what := complaint(error)):
        return what
    if seconds > CPU_SECONDS:
        return f"took {seconds:.0f} s"
    left = [path.name for path in scratch.iterdir() if ".partial-" in path.name or ".old-" in path.name]
    if left or (error is not None and (scratch / "out").exists()):
        return f"left {left or 'a folder'} behind"
    return None


def complaint(error: BaseException) -> str | None:
    """What is wrong with how an input ended, None if it was told well."""
    from mlx_embeddinggemma import EmbeddingGemmaError

    text = str(error)
    told = isinstance(error, EmbeddingGemmaError) or (
        isinstance(error, TypeError) and "expected" in text
    )
    if not told:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [
            frame
            for frame in frames
            if "mlx_embeddinggemma" in frame.filename
            or "/bench/" in frame.filename
            or "/convert/" in frame.filename
        ]
        frame = (ours or frames)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return f"{place} {type(error).__name__}: {' '.join(text.split()):.160}"
    if len(text) >= LONGEST:
        return f"a message of {len(text)} characters: {text:.160}"
    if "\n" in text and " bad row" not in text:
        return f"a message of several lines: {text!r:.160}"
    return None


def main() -> int:
    """The command line; a fault is a line, and makes the exit status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--targets", nargs="+", choices=fuzz_targets.TARGETS, default=[*fuzz_targets.TARGETS]
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int, metavar="NUMBER")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--numbers", type=int, nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(range(*args.numbers), args.seed, args.targets, args.base, args.worker)
        return 0
    if args.only is not None:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        base = fuzz_targets.make_base(folder / "base")
        print(fault_of(args.only, args.seed, args.targets, base, folder / "scratch", show=True))
        print(f"its files are in {folder / 'scratch'}")
        return 0
    faults = run(args.inputs, args.seed, args.targets, args.jobs)
    for fault in faults:
        print(f"{fault.number} {fault.target}: {fault.what}")
    print(f"{args.inputs:,} inputs, {len(faults)} faults", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
