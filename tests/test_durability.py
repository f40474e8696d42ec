# SPDX-License-Identifier: Apache-2.0
"""What a guest has synced survives the VMM being killed, at any moment, under write load."""

import os
import random
import re
import time

import pytest

from machine import SIGKILLED

KILLS = int(os.environ.get("HULL_KILLS") or 3)

# Two writers that sync, and say on the console what is on the disk for good; two that do not.
WRITERS = """
wait-for /dev/vda
mount -t ext4 /dev/vda /mnt || { echo CANNOT-MOUNT; exit 1; }
noise() {
    while :; do
        dd if=/dev/urandom of=/mnt/noise$1 bs=64k count=$((1 + RANDOM % 64)) 2>/dev/null
        rm -f /mnt/noise$1
    done
}
writer() {
    n=$(ls /mnt/synced$1 2>/dev/null | wc -l)
    mkdir -p /mnt/synced$1
    while :; do
        head -c $((RANDOM * 2 + 1)) /dev/urandom >/tmp/data$1
        sum=$(md5sum </tmp/data$1)
        dd if=/tmp/data$1 of=/mnt/synced$1/$n-${sum%% *} bs=4k conv=fsync 2>/dev/null && sync
        echo "SYNCED $1 $n"
        n=$((n + 1))
    done
}
echo WRITING
noise 0 & noise 1 & writer 0 & writer 1 & wait
"""


@pytest.mark.whole
@pytest.mark.needs("loop_devices")
def test_synced_data_survives_kills(hull):
    host = hull.host
    disk, mount = f"{host.work}/disk", f"{host.work}/mnt"
    seed = int(os.environ.get("HULL_SEED") or time.time())
    moment = random.Random(seed)
    host.run(f"truncate -s 512M {disk}; /sbin/mke2fs -q -t ext4 -F {disk}; mkdir {mount}").check()
    promised = {"0": set(), "1": set()}
    total = 0
    kills = KILLS if host.engine == "kvm" else max(KILLS - 1, 1)
    for kill in range(kills):
        session = hull.start(WRITERS, "--disk", disk, cpus=2, append="loglevel=1")
        session.expect("WRITING", 60)
        session.expect("SYNCED", 60)
        time.sleep(moment.uniform(0, 3))
        host.run("kill -9 $(pidof hull)").check()
        assert session.wait(20) == SIGKILLED
        for writer, number in re.findall(r"^SYNCED (\d) (\d+)\r?$", session.output, re.MULTILINE):
            promised[writer].add(int(number))
            total += 1
        session.close()
        where = f"kill {kill + 1} of {kills}, HULL_SEED={seed}"
        # The journal is replayed as after a power cut; then nothing may be wrong.
        host.run(f"e2fsck -p {disk} || [ $? -le 1 ]", timeout=60).check()
        host.run(f"e2fsck -f -n {disk}", timeout=60).check()
        host.run(f"mount -o loop {disk} {mount}").check()
        try:
            for writer, numbers in promised.items():
                check = (f"cd {mount}/synced{writer} && for f in *; do "
                         "echo \"${f%%-*} ${f#*-} $(md5sum <$f)\"; done")
                there = {}  # number -> its data are right; a kill may leave one unpromised and cut
                for line in host.run(check, timeout=120).check().out.splitlines():
                    number, wanted, found = line.split()[:3]
                    there[int(number)] = wanted == found
                missing = sorted(numbers - there.keys())
                wrong = sorted(n for n in numbers & there.keys() if not there[n])
                assert not missing and not wrong, \
                    f"{where}: writer {writer} lost {missing}, wrong are {wrong}, of {len(numbers)}"
            host.run(f"rm -f {mount}/noise*")
            if int(host.run(f"df -m {mount} | awk 'END {{print $4}}'").out) < 100:
                host.run(f"rm -rf {mount}/synced*")
                promised = {"0": set(), "1": set()}
        finally:
            host.run(f"umount {mount}").check()
    assert total > 0
