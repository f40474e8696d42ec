# SPDX-License-Identifier: Apache-2.0
"""Full boots of a Hull built with the address and undefined behaviour sanitizers, and with the
thread sanitizer: disk, user network, restart, all at once."""

import os

import pytest

import testbed
from machine import POWEROFF

OPTIONS = {
    "asan": "ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:exitcode=99 "
            "UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:exitcode=99",
    "tsan": "TSAN_OPTIONS=exitcode=99:second_deadlock_stack=1:report_thread_leaks=1",
}

WORK = """
net-up || exit 1
wait-for /dev/vda
if [ "$(dd if=/dev/vda bs=5 count=1 2>/dev/null)" != again ]; then
    (for n in 1 2 3 4; do dd if=/dev/urandom of=/dev/vda bs=64k seek=$((n * 16)) count=16 oflag=direct 2>/dev/null & done; wait)
    echo again | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null
    reboot -f
    sleep 100
fi
dd if=/dev/vda of=/dev/null bs=256k count=16 iflag=direct 2>/dev/null
dd if=/dev/hwrng of=/dev/null bs=64 count=4 2>/dev/null
timeout 5 wget -q -O /dev/null http://10.0.2.2:1/
seq 1 200
"""


@pytest.mark.not_on("local", reason="it changes a setting of the host's kernel")
@pytest.mark.parametrize("variant", ["asan", "tsan"])
def test_boot(hull, variant):
    for name in ("hull", "hull-slirp"):
        if not os.path.exists(os.path.join(testbed.TOP, "build", variant, name)):
            pytest.skip(f"build/{variant}/{name} is not built (make VARIANT={variant})")
    # The sanitizers' shadows want a plain layout of the address space.
    hull.host.run("sysctl -q -w vm.mmap_rnd_bits=28 kernel.randomize_va_space=1").check()
    disk = f"{hull.host.work}/disk"
    hull.host.run(["truncate", "-s", "16M", disk]).check()
    run = hull.boot(WORK, "--disk", disk, cpus=2, net="user", vmm=f"/{variant}/hull",
                    prefix=f"{OPTIONS[variant]} ", timeout=300, memory="256M")
    assert run.status == POWEROFF
    assert run.script_status == 0, run
    for word in ("Sanitizer", "runtime error"):
        assert word not in run.err, run.err
