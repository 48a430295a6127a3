"""HAProxy and nginx as load balancers on layer 4, configured as docs/load-balancer.md says, with ports of the test.

with load_balancer("haproxy", directory, {8883: broker.port}) as ports:
    ports[8883]
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from device_sim.stage.foreign_process import free_port
from tests.support.broker_process import wait_until
from tests.support.needed import needed
from tests.support.programs import REPOSITORY

PATIENCE = 60.0
_NGINX = """\
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{}}
"""


def documented(program: str) -> str:
    """Return the configuration of *program* on the page for operators."""
    page = (REPOSITORY / "docs" / "load-balancer.md").read_text(encoding="utf-8")
    found = re.search(rf"^```{program}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@contextlib.contextmanager
def load_balancer(
    program: str, directory: Path, targets: Mapping[int, int], changes: Mapping[str, str] | None = None
) -> Iterator[dict[int, int]]:
    """Run *program*, and yield its port for each documented one of *targets*, which name the service's port.

    *changes* are replacements in the documented configuration.
    """
    directory.mkdir()
    ports = {port: free_port() for port in targets}
    config = documented(program)
    for old, new in (changes or {}).items():
        assert old in config, old
        config = config.replace(old, new)
    for port, target in targets.items():
        config = re.sub(rf"10\.0\.0\.\d:{port}\b", f"127.0.0.1:{target}", config)
        config = re.sub(rf"(bind |listen ):?{port}\b", rf"\g<1>127.0.0.1:{ports[port]}", config)
    if program == "haproxy":  # A section for a service that the test has not got is left out.
        config = "\n\n".join(part for part in config.split("\n\n") if not re.search(r"bind :\d|10\.0\.0\.", part))
        command = [needed("haproxy"), "-db", "-f"]
    else:
        config = _NGINX.format(directory=directory) + config
        command = [needed("nginx"), "-e", str(directory / "nginx.log"), "-p", str(directory), "-c"]
    file, log = directory / f"{program}.conf", directory / "output"
    file.write_text(config + "\n")
    with listening([*command, str(file)], ports.values(), log):
        yield ports


@contextlib.contextmanager
def listening(command: Sequence[str], ports: Iterable[int], log: Path) -> Iterator[None]:
    """Run *command* from when it listens at *ports*; its last argument is the file of its configuration."""
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            for port in ports:
                wait_until(lambda: process.poll() is not None or _listens(port), command[0])
            assert process.poll() is None, log.read_text() + os.linesep + Path(command[-1]).read_text()
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _listens(port: int) -> bool:
    """Whether a process listens at *port*, without connecting to it."""
    wanted = f"0100007F:{port:04X}"
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return any(fields[1] == wanted and fields[3] == "0A" for fields in map(str.split, lines))
