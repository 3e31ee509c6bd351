"""What one training step of the full climate preset takes on this machine: time and memory.

    python benchmarks/climate_full.py [--threads 2] [--limit GIB] [--network NAME] [--precision fp32] [--json FILE]
        [--quick]

The full preset (768 x 1152 points, 16 channels, one sample per step, LARC, gradients late by a step) with its own
network, the published Tiramisu, and with the published DeepLabv3+, in fp32 and bf16, by the Trainer on one rank. What
differs: a single snapshot is generated to learn from, and the rank reads it itself. Each case is a process of its own
and makes two steps: the first also prepares kernels and counts operations, and has no gradient to apply yet; the second
is as all that follow. Told are wall and CPU time, and the largest amount of memory that was resident so far. A case
that comes to need more than the limit is ended, and said to.

FLOPs are counted as executed, and as the publication did, beside the number that it states (for the Tiramisu with
64 features at first). --quick takes 96 x 144 points; published numbers are then of other fields, and not shown.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from exafield import Trace, Trainer, World, assembly
from exafield.climate.fields import CHANNELS
from exafield.climate.generate import Generation, generate
from exafield.climate.operations import PUBLISHED, as_published
from exafield.precision import Precision
from exafield.question import NETWORK, Climate
from exafield.report import Report
from exafield.run import Run, full
from exafield.summary import PHASES, summarise
from exafield.taskbench.memory import available_memory

FORMATS: tuple[Precision, ...] = ("fp32", "bf16")
# None: the network of the preset.
NETWORKS: Mapping[str, str | None] = {"Tiramisu": None, "DeepLabv3+": "deeplab"}
GIB = 2**30
# How often memory is looked at [s], and the share of what is free that a case may take; our choice.
LOOK, SHARE = 0.1, 0.9


# ---- one case, in a process of its own ----


def memory(kind: str, process: int | str = "self") -> int:
    """Of a process [bytes]: "VmRSS" is resident now, "VmHWM" was at most; 0 if it is gone or the system does not tell.

    Not by getrusage(): there a process starts with the most that its parent had.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:")), 0)


def chosen(name: str, precision: Precision, folder: Path, rows: int, columns: int) -> tuple[Run, Climate]:
    """The full preset with network and format of a case, and its question."""
    run = full("climate")
    question = asked(run)
    data = replace(question.data, store=str(folder), latitudes=rows, longitudes=columns, train=1, validation=1, test=1)
    question = replace(question, data=data, network=NETWORKS[name] or question.network, workers=0)
    training = replace(run.training, precision=precision, device="cpu")
    return replace(run, problem=question, training=training), question


def asked(run: Run) -> Climate:
    """What a run is about."""
    assert isinstance(run.problem, Climate)
    return run.problem


def case(run: Run, question: Climate, threads: int) -> dict[str, Any]:
    """Two steps, and what they took."""
    torch.set_num_threads(threads)
    imported = memory("VmHWM")
    with World.single("cpu") as world:
        trace = Trace()
        training = run.training
        problem = assembly.problem(run)
        trainer = Trainer(
            problem,
            world,
            assembly.reducer(run.reduction),
            batch_size=training.batch_size,
            seed=training.seed,
            precision=training.precision,
            clip=training.clip,
            accumulate=training.accumulate,
            trace=trace,
            report=Report(show=False),
        )
        prepared, steps = memory("VmHWM"), []
        for _ in range(2):
            trace.clear()
            began, cpu = time.perf_counter(), time.process_time()
            trainer.step()
            step = {"wall [s]": time.perf_counter() - began, "CPU [s]": time.process_time() - cpu}
            phases = summarise(trace).phases
            step |= {f"{name} [s]": phases[name] for name in PHASES if name in phases}
            steps.append(step | {"peak [GiB]": memory("VmHWM") / GIB})
        rows, columns = question.data.latitudes, question.data.longitudes
        with torch.device("meta"):
            flat = NETWORK.build(question.network, channels=len(CHANNELS), periodic=False)
        result = {
            "network": question.network,
            "weights": sum(p.numel() for p in problem.model.parameters()),
            "loss": trainer.metrics()["loss"],
            "FLOP executed": trainer.meter.flops,
            "FLOP as published": as_published(flat, len(CHANNELS), rows, columns),
            "imported [GiB]": imported / GIB,
            "prepared [GiB]": prepared / GIB,
            "steps": steps,
        }
        trainer.close()
        problem.source.close()
        return result


# ---- all of them, one after the other ----


def watched(command: list[str], limit: float) -> dict[str, Any]:
    """What a case says; why it says nothing, if it fails or needs more memory than the limit [bytes]."""
    most = 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, text=True)
        try:
            while process.poll() is None:
                most = max(most, memory("VmRSS", process.pid))
                if most > limit:
                    return {"ended": f"it needs more than {limit / GIB:.1f} GiB of memory, the limit here"}
                time.sleep(LOOK)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        lines = [line for line in said if line.startswith("RESULT ")]
    if process.returncode or not lines:
        return {"ended": f"its process ended with {process.returncode}, {most / GIB:.1f} GiB resident at most"}
    return dict(json.loads(lines[0].removeprefix("RESULT ")))


def show(name: str, precision: str, result: Mapping[str, Any], quick: bool) -> None:
    """Prints a case."""
    if "ended" in result:
        print(f"{name:10s} {precision}: {result['ended']}", flush=True)
        return
    executed, counted = result["FLOP executed"], result["FLOP as published"]
    stated = "" if quick else f" (stated {PUBLISHED[f'{name}, 16 channels'] / 1e12:.3f})"
    print(
        f"{name:10s} {precision}: {result['network']}, {result['weights'] / 1e6:.2f} million weights, "
        f"{executed / 1e12:.3f} TFLOP executed, {counted / 1e12:.3f} as published{stated}"
    )
    for word, step in zip(("first", "second"), result["steps"], strict=True):
        phases = ", ".join(f"{p} {step[f'{p} [s]']:.2f}" for p in PHASES if f"{p} [s]" in step)
        print(
            f"  {word:6s} step {step['wall [s]']:7.2f} s, CPU {step['CPU [s]']:7.2f} s, "
            f"{executed / step['wall [s]'] / 1e9:6.1f} GFLOP/s; at most {step['peak [GiB]']:.2f} GiB ({phases})"
        )
    print(f"  before: {result['prepared [GiB]']:.2f} GiB, {result['imported [GiB]']:.2f} of it programs", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, help="of memory for a case [GiB]; default: nine tenths of what is free")
    parser.add_argument("--network", choices=list(NETWORKS), help="this one only")
    parser.add_argument("--precision", choices=FORMATS, help="this one only")
    parser.add_argument("--json", type=Path, help="write all numbers there, after each case")
    parser.add_argument("--quick", action="store_true", help="small fields: to see that it works")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    preset = asked(full("climate")).data
    rows, columns = (96, 144) if arguments.quick else (preset.latitudes, preset.longitudes)
    if arguments.case:
        name, precision, folder = arguments.case
        run, question = chosen(name, precision, Path(folder), rows, columns)
        print("RESULT " + json.dumps(case(run, question, arguments.threads)), flush=True)
        return
    about = {"benchmark": "climate_full", "format": 1, "torch": torch.__version__, "cores": os.cpu_count()}
    about |= {"threads": arguments.threads, "rows": rows, "columns": columns, "quick": arguments.quick}
    began, found = time.monotonic(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as place:
        generate(Path(place) / "climate", Generation(rows, columns, train=1, validation=1, test=1))
        for name in [arguments.network] if arguments.network else NETWORKS:
            for precision in [arguments.precision] if arguments.precision else FORMATS:
                free = available_memory()
                limit = arguments.limit * GIB if arguments.limit else (free or sys.maxsize) * SHARE
                command = [sys.executable, __file__, "--case", name, precision, str(Path(place) / "climate")]
                command += ["--threads", str(arguments.threads), *(["--quick"] if arguments.quick else [])]
                result = watched(command, limit)
                show(name, precision, result, arguments.quick)
                found.append({"case": name, "precision": precision, "limit [GiB]": limit / GIB, **result})
                if arguments.json:
                    arguments.json.write_text(json.dumps({**about, "cases": found}, indent=1))
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
