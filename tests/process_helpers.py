"""Runs a function in several processes of one group, on gloo."""

import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.multiprocessing as mp

from devices import processes

# Forked, since each process that begins anew imports torch first. Torch forbids it beside a card.
CAN_FORK = sys.platform == "linux" and not torch.cuda.device_count()


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
    method = "fork" if CAN_FORK else "spawn"
    mp.start_processes(_process, (size, free_port(), work, str(folder)), size, start_method=method)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def run_together(folder, main, words_of_each):
    """main(words) in a process for each of `words_of_each`, of one group. Returns [(exit code, what
    it said on standard error)]."""
    port, started = free_port(), []
    for rank, words in enumerate(words_of_each):
        process = os.fork()
        if process == 0:
            os._exit(_run(main, words, folder, environment(rank, len(words_of_each), port)))
        started.append(process)
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]
    return [(code, Path(f"{folder}-stderr-{rank}").read_text()) for rank, code in enumerate(codes)]


def _run(main, words, folder, variables):
    try:
        signal.alarm(300)  # not for ever
        os.chdir(folder)
        os.environ.update(variables)
        for name, number in ("stdout", 1), ("stderr", 2):  # open until the process ends
            stream = open(f"{folder}-{name}-{variables['RANK']}", "w")  # noqa: SIM115
            os.dup2(stream.fileno(), number)
            setattr(sys, name, stream)
        main(words)
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 98
    except BaseException:
        traceback.print_exc()
        return 99
    finally:
        sys.stderr.flush()


def _process(rank, size, port, work, folder):
    torch.set_num_threads(1)
    os.environ.update(environment(rank, size, port))
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    group = processes.join(SimpleNamespace(dist_timeout=1.0, said={}))
    torch.save(work(group), os.path.join(folder, f"{rank}.pt"))
    os._exit(0)  # the threads of a group that has lost a process may abort the exit of Python
