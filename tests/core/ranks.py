"""Functions of a test module run by several processes at once, which talk by torch.distributed (gloo)."""

import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(count: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
    """What function(*arguments) gives in each of so many processes; where one fails, so does this."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (count, folder, function, arguments, timeout), nprocs=count)
        return [torch.load(Path(folder, str(rank)), weights_only=True) for rank in range(count)]


def _run(rank: int, count: int, folder: str, function: Callable[..., Any], arguments: tuple, timeout: float) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count,
                            timeout=timedelta(seconds=timeout))
    try:
        torch.save(function(*arguments), Path(folder, str(rank)))
    except BaseException:
        traceback.print_exc()
        raise
    dist.barrier()
    dist.destroy_process_group()
