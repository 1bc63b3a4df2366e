"""Runs a function in several processes of one group, on gloo."""

import os
import socket
import sys
from types import SimpleNamespace

import torch
import torch.multiprocessing as mp

from devices import processes


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(rank, size, port, **more):
    """What torchrun gives a process."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        **more,
    }  # fmt: skip


def in_processes(size, work, folder):
    """work(group) in `size` processes; returns their results by rank."""
    mp.spawn(_process, (size, free_port(), work, str(folder)), size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _process(rank, size, port, work, folder):
    torch.set_num_threads(1)
    os.environ.update(environment(rank, size, port))
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    group = processes.join(SimpleNamespace(dist_timeout=1.0, said={}))
    torch.save(work(group), os.path.join(folder, f"{rank}.pt"))
    os._exit(0)  # the threads of a group that has lost a process may abort the exit of Python
