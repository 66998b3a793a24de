"""Profile one stage of `gpu.py`: the slowest operations and functions, and the lines that wait for the GPU."""

import cProfile
import pstats
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from gpu_stages import Job, Setting
from torch.profiler import ProfilerActivity, profile

N_ROWS, N_LINES, N_FUNCTIONS = 20, 25, 60
PROFILED_AMOUNT = 2
"""Amount of work that is profiled, in units of the warm-up of the stage."""


def print_profile(job: Job, setting: Setting) -> None:
    """Print profiles of our stage: by time on the GPU and the CPU, by function, and by lines that wait for the GPU."""
    amount = min(PROFILED_AMOUNT * job.first_amount, job.max_amount)
    stage = job.open(job, setting)(amount)
    stage.ours()  # warm-up
    is_cuda = torch.device(setting.device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as profiler:
        stage.ours()
        if is_cuda:
            torch.cuda.synchronize()
    print(f"{job.name}: {amount} {job.unit}, {stage.amount:,.0f} {stage.unit.removesuffix('/s')}")
    averages = profiler.key_averages()
    for key in (["self_cuda_time_total"] if is_cuda else []) + ["self_cpu_time_total", "cpu_time_total"]:
        print(f"\nBy {key}:")
        print(averages.table(sort_by=key, row_limit=N_ROWS, max_name_column_width=50))
    with cProfile.Profile() as functions:  # a GPU often waits for Python
        stage.ours()
    for order in ("tottime", "cumulative"):
        pstats.Stats(functions).sort_stats(order).print_stats(N_FUNCTIONS)
    if is_cuda:
        print("\nLines that waited for the GPU, by how often:")
        for line, count in count_waits(stage.ours).most_common(N_LINES):
            print(f"{count:7,} {line}")


def count_waits(function: Callable[[], object]) -> Counter[str]:
    """Return how often each line of Python made the CPU wait for the GPU."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return Counter(f"{warning.filename}:{warning.lineno}" for warning in caught if "synchroniz" in str(warning.message))
