# SPDX-License-Identifier: Apache-2.0
"""`make run`: Debian at a prompt, with disk and network, from the user's terminal on."""

import os
import re
import shutil
import subprocess
import time

import pytest

import testbed
from conftest import BUILD

MARK = b"written by the guest"


@pytest.fixture
def disks():
    """Fresh disks for the run, and the user's own out of the way meanwhile."""
    folder = os.path.join(testbed.TOP, "build", "run")
    kept = f"{folder}.kept"
    if os.path.isdir(kept):
        shutil.rmtree(folder, ignore_errors=True)
    elif os.path.isdir(folder):
        os.rename(folder, kept)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.isdir(kept):
        os.rename(kept, folder)


def test_make_run(disks):
    if BUILD != os.path.join(testbed.TOP, "build"):
        pytest.skip("make run takes the programs of build/, not those under test")
    here = testbed.Local()
    www = os.path.join(testbed.TOP, "build", "testbed", "www")
    os.makedirs(www, exist_ok=True)
    with open(f"{www}/file", "wb") as file:
        file.write(os.urandom(1 << 20))
    port = testbed._free_port()
    with here.spawn(f"exec /usr/bin/python3 -m http.server -b 127.0.0.1 -d {www} {port}",
                    terminal=False), \
            here.spawn(f"stty -g; {testbed.TOP}/tool/run; echo \"status=$?\"; stty -g; echo END",
                       columns=200) as session:
        session.expect(r"root@\w+:~# ", 240)
        address = "10.0.2.2"

        def command(line, answer, timeout=60):
            session.send(line + "\n")
            return session.expect(answer, timeout)

        command("uname -a", r"Linux hull .*x86_64 GNU/Linux")
        command("mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt && echo made-$((1+1))", r"made-2")
        command(f"echo '{MARK.decode()}' >/mnt/note; sync; umount /mnt; mount /dev/vdb /mnt; "
                "cat /mnt/note; echo read-$((1+1))", MARK.decode() + r"\r?\nread-2")
        command("umount /mnt; echo away-$((1+1))", "away-2")
        command("until ip addr show eth0 | grep -q 'inet '; do sleep 0.3; done; "
                f"curl -s http://{address}:{port}/file | sha256sum | tr 'a-f' 'A-F'",
                r"[0-9A-F]{64}", 90)
        digest = re.findall(r"\b[0-9A-F]{64}\b", session.output)[-1].lower()
        session.send("poweroff\n")
        session.expect("status=0", 90)
        session.expect("END", 10)
        states = re.findall(r"^[0-9a-f]+(?::[0-9a-f]+){10,}\r?$", session.output, re.MULTILINE)
    assert digest == here.run(f"sha256sum <{www}/file").out.split()[0]
    assert len(states) == 2 and states[0].strip() == states[1].strip()
    # The host sees the file system that the guest made, and the file in it.
    data = f"{disks}/data.img"
    debugfs = shutil.which("debugfs", path="/sbin:/usr/sbin:/bin:/usr/bin")
    note = subprocess.run([debugfs, "-R", "cat /note", data], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, check=True).stdout
    assert note.strip() == MARK
    e2fsck = shutil.which("e2fsck", path="/sbin:/usr/sbin:/bin:/usr/bin")
    for disk in (data, f"{disks}/root.img"):
        result = subprocess.run([e2fsck, "-f", "-n", disk], stdout=subprocess.PIPE, text=True,
                                stderr=subprocess.STDOUT, check=False)
        assert result.returncode == 0, result.stdout
    time.sleep(0.2)
