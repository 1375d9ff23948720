"""Functions of a test module run by several processes at once, which talk by torch.distributed (gloo)."""

import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from magihuman_core.cli import main


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


def run_program(count: int, *arguments: str, breaks: Callable[[int], None] | None = None,
                seconds: float = 100) -> list[tuple[int | None, str]]:
    """Exit code and error output of each of so many processes of `magihuman`, as torchrun starts them.

    breaks(rank) is called in each before. Where one of them ends badly the others are told to, as torchrun does.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        context = mp.get_context("fork")
        processes = [context.Process(target=_main, args=(rank, count, port, folder, arguments, breaks))
                     for rank in range(count)]
        for process in processes:
            process.start()
        deadline, told = time.monotonic() + seconds, False
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)
            if not told and any(process.exitcode for process in processes):
                told = True
                time.sleep(0.2)
                for process in processes:
                    process.terminate()
        for process in processes:
            process.kill()
            process.join()
        return [(process.exitcode, Path(folder, str(rank)).read_text()) for rank, process in enumerate(processes)]


def _main(rank: int, count: int, port: int, folder: str, arguments: tuple,
          breaks: Callable[[int], None] | None) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "LOCAL_WORLD_SIZE": str(count), "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    with Path(folder, str(rank)).open("w") as said:
        os.dup2(said.fileno(), 2)
        sys.stderr = said
        if breaks is not None:
            breaks(rank)
        sys.exit(main(arguments))
