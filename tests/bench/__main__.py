"""`make bench`: what engine and dashboard cost beside a plain torch loop, medians of interleaved repeats."""

from __future__ import annotations

import os
import platform

import torch

from tests.bench import growth, observed, steps, viewers


def main() -> None:
    """Print every table."""
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "1")))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
    )
    steps.report()
    observed.report()
    growth.report()
    viewers.report()


if __name__ == "__main__":
    main()
