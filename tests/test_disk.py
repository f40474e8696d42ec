# SPDX-License-Identifier: Apache-2.0
"""Disks: what the guest writes is what the host reads, the features of the device, and errors."""

import hashlib
import os
import re

import pytest

import machine
from machine import ERROR, NO_PART

BRIEF = pytest.mark.not_on("soft", reason=NO_PART)
MIB = 1 << 20
# Feature bits: virtio 1.2, sections 5.2.3 and 6.
BLK_SEG_MAX, BLK_RO, BLK_BLK_SIZE, BLK_FLUSH, BLK_TOPOLOGY, BLK_MQ = 2, 5, 6, 9, 10, 12
BLK_DISCARD, BLK_WRITE_ZEROES = 13, 14
INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_PACKED, RING_RESET = 28, 29, 32, 34, 40


def make_disk(hull, name="disk", size="64M"):
    path = f"{hull.host.work}/{name}"
    hull.host.run(["truncate", "-s", size, path]).check()
    return path


def features(run, name="features"):
    """The bits that driver and device agreed on: /sys gives them as a string, bit 0 first."""
    return {bit for bit, value in enumerate(run.value(name)) if value == "1"}


def test_host_sees_what_the_guest_wrote(hull):
    disk = make_disk(hull)
    data = os.urandom(3 * MIB)
    hull.host.put(f"{hull.host.work}/data", data)
    run = hull.boot("""
        wait-for /dev/vda
        dd if=/data of=/dev/vda bs=64k seek=17 conv=fsync 2>/dev/null
        echo sum=$(dd if=/dev/vda bs=64k skip=17 count=48 iflag=direct 2>/dev/null | sha256sum)
        """, "--disk", disk, files=[("/data", _local_file(data), "file")]).good()
    digest = hashlib.sha256(data).hexdigest()
    assert run.value("sum").split()[0] == digest
    assert hull.host.run(f"dd if={disk} bs=64k skip=17 count=48 2>/dev/null | sha256sum"
                         ).check().out.split()[0] == digest


def _local_file(data):
    path = os.path.join(machine.testbed.TOP, "build", "testbed", f"data-{os.getpid()}")
    with open(path, "wb") as file:
        file.write(data)
    return path


@pytest.mark.whole
def test_guest_reads_what_the_host_wrote(hull):
    disk = make_disk(hull, size="8M")
    hull.host.put(disk, bytes(range(256)) * (8 * MIB // 256))
    run = hull.boot("wait-for /dev/vda; echo sum=$(sha256sum </dev/vda); "
                    "echo size=$(cat /sys/block/vda/size)", "--disk", disk).good()
    assert run.value("sum").split()[0] == hashlib.sha256(bytes(range(256)) * (8 * MIB // 256)
                                                         ).hexdigest()
    assert run.value("size") == str(8 * MIB // 512)


@pytest.mark.needs("loop_devices")
def test_file_system(hull):
    """Made, mounted and filled in the guest; checked and read on the host."""
    disk = make_disk(hull, size="128M")
    hull.boot("""
        wait-for /dev/vda
        mke2fs /dev/vda >/dev/null 2>&1 || exit 1
        mount -t ext4 /dev/vda /mnt || exit 1
        mkdir /mnt/folder
        for n in $(seq 1 40); do dd if=/dev/urandom of=/mnt/folder/$n bs=100k count=1 2>/dev/null; done
        (cd /mnt/folder; sha256sum *) >/mnt/sums
        umount /mnt
        """, "--disk", disk, cpus=2).good()
    host = hull.host
    host.run(f"e2fsck -f -n {disk}").check()
    host.run(f"mkdir -p {host.work}/mnt; mount -o loop,ro {disk} {host.work}/mnt").check()
    try:
        result = host.run(f"cd {host.work}/mnt/folder && sha256sum -c ../sums").check()
        assert result.out.count(": OK") == 40
    finally:
        host.run(f"umount {host.work}/mnt").check()


@pytest.mark.whole
def test_features(hull):
    disk = make_disk(hull)
    run = hull.boot("""
        wait-for /dev/vda
        echo features=$(cat /sys/block/vda/device/features)
        echo serial=$(cat /sys/block/vda/serial)
        echo queues=$(ls /sys/block/vda/mq | wc -l)
        echo cache=$(cat "/sys/block/vda/queue/write_cache")
        echo discard=$(cat /sys/block/vda/queue/discard_max_bytes)
        echo zeroes=$(cat /sys/block/vda/queue/write_zeroes_max_bytes)
        echo logical=$(cat /sys/block/vda/queue/logical_block_size)
        echo physical=$(cat /sys/block/vda/queue/physical_block_size)
        echo readonly=$(cat /sys/block/vda/ro)
        """, "--disk", f"{disk},serial=HULL-0123456789ABCDE", cpus=4).good()
    agreed = features(run)
    for bit in (VERSION_1, INDIRECT_DESC, EVENT_IDX, RING_PACKED, RING_RESET, BLK_SEG_MAX,
                BLK_BLK_SIZE, BLK_FLUSH, BLK_TOPOLOGY, BLK_MQ, BLK_DISCARD, BLK_WRITE_ZEROES):
        assert bit in agreed, f"feature {bit} is missing: {sorted(agreed)}"
    assert BLK_RO not in agreed
    assert run.value("serial") == "HULL-0123456789ABCDE"
    assert run.value("queues") == "4"
    assert run.value("cache") == "write back"
    assert int(run.value("discard")) > 0
    assert int(run.value("zeroes")) > 0
    assert run.value("logical") == "512"
    assert int(run.value("physical")) >= 512
    assert run.value("readonly") == "0"


def test_discard_gives_space_back(hull):
    """On a file system that can punch holes."""
    disk = make_disk(hull)
    blocks = f"stat -c %b {disk}"
    run = hull.boot("""
        wait-for /dev/vda
        dd if=/dev/urandom of=/dev/vda bs=1M count=32 oflag=direct 2>/dev/null
        sync
        echo WRITTEN
        /sbin/blkdiscard -o 0 -l $((16 << 20)) /dev/vda || exit 1
        /sbin/blkdiscard -z -o $((16 << 20)) -l $((8 << 20)) /dev/vda || exit 1
        echo zero=$(dd if=/dev/vda bs=1M skip=16 count=8 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c)
        echo rest=$(dd if=/dev/vda bs=1M skip=24 count=8 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c)
        """, "--disk", disk, files=[("/sbin/blkdiscard", "/sbin/blkdiscard", "program")]).good()
    assert run.value("zero") == "0"
    assert int(run.value("rest")) > 8 * MIB * 0.99
    assert int(hull.host.run(blocks).out) * 512 < 18 * MIB


def test_read_only(hull):
    disk = make_disk(hull)
    hull.host.put(disk, b"x" * MIB)
    run = hull.boot("""
        wait-for /dev/vda
        echo readonly=$(cat /sys/block/vda/ro)
        echo hello 2>/dev/null >/dev/vda && echo wrote=yes || echo wrote=no
        """, "--disk", f"{disk},readonly").good()
    assert run.value("readonly") == "1"
    assert run.value("wrote") == "no"
    assert hull.host.get(disk) == b"x" * MIB


@pytest.mark.whole
def test_several_disks_in_order(hull):
    words = []
    for n in range(5):
        path = make_disk(hull, f"disk{n}", "1M")
        hull.host.put(path, f"disk number {n}".encode().ljust(MIB, b"\0"))
        words += ["--disk", path]
    run = hull.boot("""
        wait-for /dev/vde
        for d in a b c d e; do dd if=/dev/vd$d bs=13 count=1 2>/dev/null | tr -d '\\0'; echo; done
        """, *words).good()
    assert re.findall(r"disk number (\d)", run.text) == list("01234")


@pytest.mark.whole
@pytest.mark.parametrize("cache", [
    pytest.param("auto", marks=BRIEF), "direct", pytest.param("writeback", marks=BRIEF)])
def test_cache_modes(hull, cache):
    disk = make_disk(hull)
    run = hull.boot("""
        wait-for /dev/vda
        dd if=/dev/urandom of=/tmp/a bs=1M count=8 2>/dev/null
        dd if=/tmp/a of=/dev/vda bs=4k conv=fsync 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches
        [ "$(md5sum </tmp/a)" = "$(dd if=/dev/vda bs=1M count=8 2>/dev/null | md5sum)" ] && echo same=yes
        """, "--disk", f"{disk},cache={cache}").good()
    assert run.value("same") == "yes"


@pytest.mark.needs("loop_devices")
def test_block_device(hull):
    """A block device of the host, with O_DIRECT and its own sector size."""
    file = make_disk(hull)
    device = hull.host.run(["losetup", "-f"]).check().out.strip()
    hull.host.run(["losetup", device, file]).check()
    try:
        run = hull.boot("""
            wait-for /dev/vda
            echo size=$(cat /sys/block/vda/size)
            echo hello world | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null
            """, "--disk", device).good()
    finally:
        hull.host.run(["losetup", "-d", device]).check()
    assert run.value("size") == str(64 * MIB // 512)
    assert hull.host.run(["head", "-c", "11", file]).out == "hello world"


@pytest.mark.whole
def test_full_host(hull):
    """No space on the host is an I/O error in the guest, not the end of the VM."""
    work = hull.host.work
    hull.host.run(f"mkdir {work}/small; mount -t tmpfs -o size=4M tmpfs {work}/small; "
                  f"truncate -s 32M {work}/small/disk").check()
    try:
        run = hull.boot("""
            wait-for /dev/vda
            dd if=/dev/urandom of=/dev/vda bs=1M count=16 oflag=direct 2>/tmp/error && echo wrote=all
            grep -ciE 'error|space' /tmp/error
            dd if=/dev/vda of=/dev/null bs=1M count=1 iflag=direct 2>/dev/null && echo read=yes
            """, "--disk", f"{work}/small/disk").good()
    finally:
        hull.host.run(f"umount -l {work}/small")
    assert "wrote=all" not in run.text
    assert run.value("read") == "yes"


@pytest.mark.whole
def test_disk_of_another_vm_is_refused(hull):
    disk = make_disk(hull)
    session = hull.start("echo READY; sleep 100", "--disk", disk)
    session.expect("READY", 60)
    result = hull.host.run(hull.command("true", "--disk", disk), timeout=20)
    assert result.status == ERROR
    assert disk in result.err and len(result.err.strip().splitlines()) == 1, result.err
    # Two readers may share, and a reader may not join a writer.
    result = hull.host.run(hull.command("true", "--disk", f"{disk},readonly"), timeout=20)
    assert result.status == ERROR


@BRIEF
def test_readers_share_a_disk(hull):
    disk = make_disk(hull)
    session = hull.start("echo READY; sleep 100", "--disk", f"{disk},readonly")
    session.expect("READY", 60)
    hull.boot("wait-for /dev/vda", "--disk", f"{disk},readonly").good()


@pytest.mark.whole
def test_parallel_load(hull):
    """Four queues, reads and writes of many sizes at once, checked."""
    disk = make_disk(hull, size="256M")
    hull.host.run(["fallocate", "-l", "256M", disk]).check()
    run = hull.boot("""
        wait-for /dev/vda
        one() {
            base=$(($1 * 64))
            for round in 1 2; do
                for size in 4 64 1024; do
                    dd if=/dev/urandom of=/tmp/w$1 bs=1M count=2 2>/dev/null
                    dd if=/tmp/w$1 of=/dev/vda bs=${size}k seek=$((base * 1024 / size)) oflag=direct conv=notrunc 2>/dev/null || exit 1
                    dd if=/dev/vda of=/tmp/r$1 bs=${size}k skip=$((base * 1024 / size)) count=$((2048 / size)) iflag=direct 2>/dev/null || exit 1
                    cmp /tmp/w$1 /tmp/r$1 || exit 1
                done
            done
            echo good$1
        }
        one 0 & one 1 & one 2 & one 3 & wait
        """, "--disk", disk, cpus=4, timeout=180).good()
    assert sorted(re.findall(r"good(\d)", run.text)) == list("0123")
