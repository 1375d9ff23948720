"""Functions of a test module run by several processes at once, which talk by torch.distributed (gloo)."""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(count: int, function: Callable[..., Any], *arguments: Any, after: bool = True) -> list[Any]:
    """What function(*arguments) gives in each of so many processes; where one fails, so does this.

    after: whether they wait for each other at the end, which is not possible where one has left.
    """
    with tempfile.TemporaryDirectory() as folder:
        # A fork has imported everything already; elsewhere than on Linux libraries do not bear it.
        mp.start_processes(_run, (count, folder, function, arguments, after), nprocs=count,
                           start_method="fork" if sys.platform == "linux" else "spawn")
        return [torch.load(Path(folder, str(rank)), weights_only=True) for rank in range(count)]


def _run(rank: int, count: int, folder: str, function: Callable[..., Any], arguments: tuple, after: bool) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count,
                            timeout=timedelta(seconds=120))
    try:
        torch.save(function(*arguments), Path(folder, str(rank)))
    except BaseException:
        traceback.print_exc()
        raise
    if after:
        dist.barrier()
        dist.destroy_process_group()
