# SPDX-License-Identifier: Apache-2.0
"""--gdb: real GDB, on this machine, debugs a guest on the host."""

import contextlib
import re
import shutil
import socket
import subprocess
import threading

import pytest

import guests
from machine import POWEROFF

PORT = 1234


@contextlib.contextmanager
def relay(host, port):
    """The number of a port on this machine that leads to the host's."""
    with socket.create_server(("127.0.0.1", 0)) as listener, \
            host.spawn(f"exec nc 127.0.0.1 {port}", terminal=False) as session, \
            open("/dev/null", "wb") as nothing:
        connection = []

        def forward():
            sock = listener.accept()[0]
            connection.append(sock)
            session.pipe_to(sock.fileno(), nothing.fileno())
            with contextlib.suppress(OSError):
                while data := sock.recv(65536):
                    session.send(data)
            session.send_end()

        thread = threading.Thread(target=forward, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(5)
        session.close()
        for sock in connection:
            sock.close()


def test_debugger(hull):
    """It stops the kernel at an address, reads memory and registers, steps, and lets it go."""
    if not shutil.which("gdb"):
        pytest.skip("no gdb on this machine")
    with open(guests.kernel("cloud").vmlinux, "rb") as file:
        entry = int.from_bytes(file.read(0x20)[0x18:], "little")
    session = hull.start("true", "--gdb", f"127.0.0.1:{PORT},wait")
    hull.host.run(f"until netstat -lnt | grep -q :{PORT}; do usleep 50000; done", timeout=30).check()
    with relay(hull.host, PORT) as port:
        # The emulated processor of the testbed gives KVM no breakpoints of either kind.
        breaks = hull.host.name != "testbed-kvm"
        script = [f"target remote 127.0.0.1:{port}",
                  *([f"hbreak *{entry}", "continue"] if breaks else []), "p/x $pc", "x/4xb $pc",
                  "stepi", "p/x $pc", "p/x $cr0", "info threads", "monitor registers", "delete",
                  "detach"]
        words = [word for line in script for word in ("-ex", line)]
        output = subprocess.run(["gdb", "-batch", "-nx", *words], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, timeout=120, check=False).stdout
    first, second = (int(pc, 16) for pc in re.findall(r"(?m)^\$[12] = (0x[0-9a-f]+)", output))
    assert first == entry or not breaks, output
    assert first < second <= first + 15, output
    assert "vCPU 0" in output, output
    assert re.search(r"efer \d+", output), output
    assert session.wait(240) == POWEROFF, session.output
