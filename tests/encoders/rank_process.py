"""One process of the ``ranks`` fixture: joins the others, then calls functions of test files.

Run by path, since a test file has no module name that another process could import.
"""

import datetime
import os
import runpy
import sys
import traceback
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist


def serve(connection: Connection, rank: int, world_size: int, meeting_point: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_point}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    files: dict[str, dict[str, object]] = {}
    while (request := connection.recv()) is not None:
        file, name, arguments = request
        try:
            if file not in files:
                files[file] = runpy.run_path(file)
            connection.send((True, files[file][name](*arguments)))
        except Exception:  # noqa: BLE001 - any failure is the answer
            connection.send((False, traceback.format_exc()))
    dist.barrier()  # none leaves while another is still joining
    dist.destroy_process_group()


serve(*globals()["SERVE_ARGUMENTS"])
