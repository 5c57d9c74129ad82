"""Parts of the acceptance run that use the GPU themselves.

    python bench/gpu_stages.py selftest|kernels|latency|sanitizer|small_set REPORT.json

gpu_acceptance.py runs each in a process of its own and reads the report, which is written anew
after every figure.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tnt_kernels.backends import BACKENDS
from tnt_kernels.dispatch import describe
from tnt_kernels.reference import SPECS

ROOT = Path(__file__).resolve().parents[1]
DEVICE = "cuda"
BATCH, PATCHES = 256, 196
ERROR_LIMIT = 2e-2
"""Relative error of a bfloat16 result against float32, checked before anything is timed."""
INPUT_SETS = 3  # together larger than the L2 cache, so that memory is timed
CALLS_PER_GRAPH = 2 * INPUT_SETS


def _inner(dim: int) -> dict:
    return {"P": BATCH * PATCHES, "S": 16, "C": dim, "heads": 4}


def _embed(dim: int) -> dict:
    return {"B": BATCH, "Cin": 3, "H": 224, "W": 224, "C": dim, "patch": 16, "stride": 4}


def _outward(dim: int, outer_dim: int) -> dict:
    case = {"B": BATCH, "N": PATCHES, "S": 16, "C": dim, "D": outer_dim}
    return {**case, "dialect": "published"}


# Operator, case, whether torch.compile is a contestant (it takes seconds of the run).
TIMED = (
    ("inner_block", _inner(24), True),
    ("inner_block", _inner(40), True),
    ("pixel_embed", _embed(24), False),
    ("pixel_embed", _embed(40), False),
    ("pixel_embed", {**_embed(24), "uint8": True}, False),
    ("pixel_to_patch", _outward(24, 384), True),
    ("pixel_to_patch", _outward(40, 640), False),
)


def time_us(work: Callable[[int], Any], rounds: int = 20) -> float:
    """Median time of work(i), i over the input sets: calls in a CUDA graph, so no launch gaps."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(INPUT_SETS):
            work(i)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(CALLS_PER_GRAPH):
            work(i % INPUT_SETS)
    graph.replay()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / CALLS_PER_GRAPH)
    return statistics.median(times)


def ceilings() -> dict:
    """What this GPU gives a copy and a bfloat16 matrix product: bytes and FLOPs per us."""
    size, side = 2**28, 8192
    source = torch.empty(INPUT_SETS, size, dtype=torch.uint8, device="cuda")
    copy_us = time_us(lambda i: source[i].clone())
    a = torch.randn(side, side, dtype=torch.bfloat16, device="cuda")
    return {"bytes": 2 * size / copy_us, "flops": 2 * side**3 / time_us(lambda i: a @ a, 5)}


def _differentiable(spec: Any, args: Mapping[str, Any]) -> list:
    """Names of the activation and the weights, as far as they are floating tensors."""
    names = (spec.activation, *spec.weights)
    return [n for n in names if isinstance(args[n], torch.Tensor) and args[n].is_floating_point()]


def _gradient_call(run: Callable, spec: Any, sets: list) -> Callable[[int], Any]:
    """Forward and backward with respect to the activation and every weight."""
    for args in sets:
        args.update({n: args[n].detach().requires_grad_() for n in _differentiable(spec, args)})
    dy = torch.randn_like(run(sets[0]))

    def work(i: int) -> Any:
        wanted = [sets[i][n] for n in _differentiable(spec, sets[i])]
        return torch.autograd.grad(run(sets[i]), wanted, dy)

    return work


def _floors(spec: Any, args: Mapping[str, Any], out: torch.Tensor, most: dict) -> dict:
    """Least times of a call and of a call with its backward, from bytes and from FLOPs.

    Backward reads what it differentiates and the gradient of `out`, writes the gradients of the
    activation and the weights, and makes two products of each; what it recomputes is not counted.
    """
    tensors = {name: x for name, x in args.items() if isinstance(x, torch.Tensor)}
    written = [tensors[name] for name in _differentiable(spec, args)]
    read = [x for name, x in tensors.items() if name != spec.passthrough]
    forward, flops = spec.bytes_moved(args), 2 * spec.macs(args)
    gradient = out.numel() * tensors[spec.typed_by(args)].element_size()
    both = forward + gradient + sum(x.numel() * x.element_size() for x in read + written)
    return {
        "bytes floor": forward / most["bytes"],
        "FLOPs floor": flops / most["flops"],
        "bytes floor with backward": both / most["bytes"],
        "FLOPs floor with backward": 3 * flops / most["flops"],
    }


def _contestants(spec: Any, with_compiled: bool) -> dict:
    found: dict = {
        name: lambda args, b=backend: b.run(spec.name, args) for name, backend in BACKENDS.items()
    }
    if with_compiled:
        compiled = torch.compile(spec.reference)
        found["compiled"] = lambda args: compiled(*args.values())
    return found


def _time_case(
    spec: Any, case: Mapping[str, Any], with_compiled: bool, most: dict, save: Callable
) -> None:
    sets = [spec.make_args(case, torch.bfloat16, DEVICE, seed) for seed in range(INPUT_SETS)]
    single = dict(sets[0])
    for name, value in single.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            single[name] = value.float()
    expected = spec.reference(*single.values())
    for name, figure in _floors(spec, sets[0], expected, most).items():
        save(name, figure)
    for name, run in _contestants(spec, with_compiled).items():
        for kind in ("forward", "with backward"):
            wants_gradient = kind != "forward"
            call = describe(spec.name, sets[0])._replace(differentiable=wants_gradient)
            reason = BACKENDS[name].refusal(call) if name in BACKENDS else None
            if reason is not None:
                save(f"{name} {kind}", f"refuses ({reason})")
                continue
            if not wants_gradient:
                with torch.no_grad():
                    error = (run(sets[0]).float() - expected).norm() / expected.norm()
                    if not error < ERROR_LIMIT:
                        raise SystemExit(f"{spec.name} {name}: relative error {error:.1e}")
                    save(f"{name} {kind}", time_us(lambda i, run=run: run(sets[i])))
            elif name != "compiled":
                copies = [dict(args) for args in sets]
                save(f"{name} {kind}", time_us(_gradient_call(run, spec, copies)))


def kernels(report: Path) -> None:
    """Every op, each backend and PyTorch, checked, then timed against the GPU's own ceilings."""
    found: dict = {}
    most = ceilings()
    for op, case, with_compiled in TIMED:
        row: dict = found.setdefault(f"{op} " + " ".join(f"{k}={v}" for k, v in case.items()), {})

        def save(name: str, figure: Any, row: dict = row, op: str = op) -> None:
            row[name] = figure
            print(op, name, figure, flush=True)
            report.write_text(json.dumps(found))

        try:
            _time_case(SPECS[op], case, with_compiled, most, save)
        except torch.cuda.OutOfMemoryError as error:
            save("stopped", str(error).splitlines()[0])
        torch.cuda.empty_cache()


def selftest(report: Path) -> None:
    """Every function of csrc/cuda/warp.cuh on the device."""
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder, "self_test"))
        flags = ["-std=c++17", "-Icsrc", "-arch=native", "-o", program]
        subprocess.run(["nvcc", *flags, "tests/gpu/warp_self_test.cu"], cwd=ROOT, check=True)
        subprocess.run([program], check=True)


def latency(report: Path) -> None:
    """One image through each TNT, launched one by one and replayed as a CUDA graph."""
    import tnt

    found: dict = {}
    image = torch.randn(1, 3, 224, 224, device="cuda")
    for name in ("tnt_s", "tnt_b"):
        model = getattr(tnt, name)().cuda().eval()
        autocast = torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False)
        with torch.inference_mode(), autocast:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                expected = model(image)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = model(image)
            graph.replay()
            if not torch.allclose(output, expected, rtol=1e-2, atol=1e-2):
                raise SystemExit(f"{name}: the replayed graph differs from the launched model")
            calls = {"launched_us": lambda m=model: m(image), "graph_us": graph.replay}
            found[name] = {key: _wall_us(call) for key, call in calls.items()}
        print(name, found[name], flush=True)
        report.write_text(json.dumps(found))


def _wall_us(call: Callable[[], Any], rounds: int = 50) -> float:
    """Median from launch to end, as a user of one image waits for it."""
    times = []
    for _ in range(rounds + 5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times[5:])


def sanitizer(report: Path) -> None:
    """compute-sanitizer over small_set; a tool that finds something fails the stage at its end."""
    found, failed = {}, False
    command = [sys.executable, "bench/gpu_stages.py", "small_set", str(report)]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for check in ("memcheck", "racecheck", "initcheck"):
        done = subprocess.run(
            [shutil.which("compute-sanitizer"), "--tool", check, "--error-exitcode", "9", *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        lines = done.stdout.strip().splitlines()
        found[check] = lines[-1] if lines else ""
        failed |= done.returncode != 0
        print(f"{check}: exit {done.returncode}", *lines[-8 if done.returncode else -1 :], sep="\n")
        sys.stdout.flush()
        report.write_text(json.dumps(found))
    if failed:
        raise SystemExit("compute-sanitizer found errors")


def small_set(report: Path) -> None:
    """Small odd cases of every op that the compiled kernels take, forward and backward."""
    native = BACKENDS["native"]
    for spec in SPECS.values():
        for case in spec.cases:
            args = spec.make_args(case, torch.bfloat16, DEVICE)
            call = describe(spec.name, args)
            if native.refusal(call) is None:
                native.run(spec.name, args)
            if native.refusal(call._replace(differentiable=True)) is None:
                for name in _differentiable(spec, args):
                    args[name].requires_grad_()
                native.run(spec.name, args).sum().backward()
    if DEVICE == "cuda":
        torch.cuda.synchronize()


PARTS = {part.__name__: part for part in (selftest, kernels, latency, sanitizer, small_set)}

if __name__ == "__main__":
    PARTS[sys.argv[1]](Path(sys.argv[2]))
