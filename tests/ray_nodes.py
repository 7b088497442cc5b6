"""Real Ray nodes for tests, as processes of their own on loopback, started and stopped by their ids."""

import contextlib
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.waiting import wait_until

TOKEN = "0123456789abcdef0123456789abcdef"


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def start_head(folder: Path, num_cpus: int = 2) -> Iterator[dict[str, str]]:
    """A head node with token authentication that accepts jobs; gives the environment of a client of it.

    folder: for the token and the log. `RAY_API_SERVER_ADDRESS` is set for `ray job submit`; `RAY_ADDRESS` is not.
    """
    # Every port that has a default is given: with a Ray already on this machine the default is taken, and a node whose
    # agent cannot listen runs on without accepting jobs.
    gcs, dashboard, client, agent = free_ports(4)
    token = folder / "token"
    token.write_text(TOKEN)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": path}
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += ["--node-ip-address", "127.0.0.1", "--port", str(gcs), "--num-cpus", str(num_cpus)]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
    command += ["--ray-client-server-port", str(client), "--dashboard-agent-listen-port", str(agent)]
    log = folder / "head.log"
    answers = [""]

    def accepts_jobs() -> bool:
        """The dashboard answers some seconds before there is an agent that runs what is submitted."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{dashboard}/api/jobs/", b'{"entrypoint": "true"}', headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return bool(answer.status == 200)
        except OSError as error:
            answers[0] = f"{error}"
            return False

    with log.open("w") as output:
        head = subprocess.Popen(command, env=env, text=True, stdout=output, stderr=output)
    try:
        wait_until(accepts_jobs, head, 120, lambda: f"{answers[0]}\n{log.read_text()}")
        yield {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        head.terminate()
        head.wait(60)
