# SPDX-License-Identifier: Apache-2.0
"""The other devices: timers, consoles, entropy, serial ports, interrupts."""

import re

import pytest

from test_disk import RING_PACKED, VERSION_1, features


# The HPET as the clock and, in the PIT's place, as what ticks: the local APIC's timer is off. The
# real-time clock has lost its interrupt to it, and its alarm comes as ACPI's.
HPET_APPEND = "clocksource=hpet nolapic_timer"
HPET_SCRIPT = """
ticks() { awk '$1 == "0:" {print $2}' /proc/interrupts; }
alarms() { awk '$1 == "9:" {print $2}' /proc/interrupts; }
echo available=$(cat /sys/devices/system/clocksource/clocksource0/available_clocksource)
echo clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
echo events=$(grep -c '^Clock Event Device: hpet' /proc/timer_list)
first=$(ticks)
sleep 1
echo ticks=$(($(ticks) - first))
first=$(alarms)
echo +2 >/sys/class/rtc/rtc0/wakealarm
sleep 4
echo alarms=$(($(alarms) - first)) $(grep alarm_IRQ /proc/driver/rtc)
"""


def test_hpet(hull):
    run = hull.boot(HPET_SCRIPT, "--hpet", "on", append=HPET_APPEND).good()
    assert "hpet" in run.value("available").split()
    assert run.value("clock") == "hpet"
    assert int(run.value("events")) >= 1
    assert int(run.value("ticks")) >= 1
    assert re.fullmatch(r"[1-9]\d* alarm_IRQ\s*: no", run.value("alarms"))


def test_entropy(hull):
    run = hull.boot("""
        wait-for /dev/hwrng
        echo device=$(cat /sys/class/misc/hw_random/rng_current)
        echo features=$(cat /sys/bus/virtio/drivers/virtio_rng/virtio*/features)
        dd if=/dev/hwrng of=/tmp/a bs=64 count=4 2>/dev/null
        dd if=/dev/hwrng of=/tmp/b bs=64 count=4 2>/dev/null
        echo size=$(stat -c %s /tmp/a)
        cmp -s /tmp/a /tmp/b && echo same=yes || echo same=no
        """).good()
    assert run.value("device").startswith("virtio_rng")
    assert run.value("size") == "256"
    assert run.value("same") == "no"
    assert {VERSION_1, RING_PACKED} <= features(run)


@pytest.mark.whole
def test_entropy_can_be_switched_off(hull):
    run = hull.boot("ls /sys/bus/virtio/devices", "--rng", "off").good()
    assert not re.search(r"virtio\d", run.text)


def test_virtio_console_output(hull):
    path = f"{hull.host.work}/console"
    hull.boot("""
        wait-for /dev/hvc0
        seq 1 500 >/dev/hvc0
        # What is closed with data under way may be dropped by the driver.
        sleep 1
        """, "--console", f"file:{path}").good()
    text = hull.host.get(path).decode().replace("\r", "")
    assert text == "".join(f"{n}\n" for n in range(1, 501))


@pytest.mark.whole
def test_virtio_console_as_terminal(hull):
    """Input and output over hvc0 with the serial port elsewhere."""
    session = hull.spawn(hull.command("""
        wait-for /dev/hvc0
        # Held open: what arrives between two openings is flushed.
        exec </dev/hvc0 >/dev/hvc0 2>&1
        echo READY
        read -r line
        echo "got $line"
        sleep 1
        """, "--console", "stdio", "--serial", "null"))
    session.expect("READY", 60)
    session.send("some words\r")
    session.expect("got some words", 10)
    assert session.wait(30) == 0


@pytest.mark.whole
def test_serial_ports(hull):
    """COM2 to a file: it is found, and its output arrives whole."""
    path = f"{hull.host.work}/com2"
    hull.boot("seq 1 300 >/dev/ttyS1; sleep 1", "--serial", "stdio", "--serial",
              f"file:{path}").good()
    text = hull.host.get(path).decode().replace("\r", "")
    assert text == "".join(f"{n}\n" for n in range(1, 301))


def test_interrupts_are_msi_x(hull):
    disk = f"{hull.host.work}/disk"
    hull.host.run(["truncate", "-s", "1M", disk]).check()
    run = hull.boot("""
        wait-for /dev/vda
        dd if=/dev/vda of=/dev/null bs=512 count=100 iflag=direct 2>/dev/null
        cat /proc/interrupts
        """, "--disk", disk, cpus=2).good()
    assert re.search(r"PCI-MSIX?.*virtio\d+-req\.0", run.text), run
    assert re.search(r"PCI-MSIX?.*virtio\d+-req\.1", run.text), run


@pytest.mark.whole
def test_without_msi(hull):
    """The guest may refuse MSI: then the devices work by INTx."""
    disk = f"{hull.host.work}/disk"
    hull.host.run(["truncate", "-s", "1M", disk]).check()
    hull.host.run(f"echo hello | dd of={disk} conv=notrunc").check()
    run = hull.boot("wait-for /dev/vda; echo data=$(dd if=/dev/vda bs=5 count=1 2>/dev/null); "
                    "cat /proc/interrupts", "--disk", disk, append="pci=nomsi").good()
    assert run.value("data") == "hello"
    assert re.search(r"IO-APIC.*virtio", run.text), run


@pytest.mark.whole
def test_driver_can_be_unbound_and_bound(hull):
    """Reset and a second initialisation of a running device."""
    disk = f"{hull.host.work}/disk"
    hull.host.run(["truncate", "-s", "1M", disk]).check()
    run = hull.boot("""
        wait-for /dev/vda
        device=$(basename $(readlink -f /sys/block/vda/device))
        for n in 1 2 3; do
            echo $device >/sys/bus/virtio/drivers/virtio_blk/unbind
            [ -e /dev/vda ] && exit 1
            echo $device >/sys/bus/virtio/drivers/virtio_blk/bind
            wait-for /dev/vda
            echo round$n | dd of=/dev/vda bs=512 seek=$n conv=sync,fsync 2>/dev/null
        done
        """, "--disk", disk).good()
    assert run.script_status == 0
    text = hull.host.get(disk)
    assert [text[n * 512:n * 512 + 6] for n in (1, 2, 3)] == [b"round1", b"round2", b"round3"]


@pytest.mark.whole
def test_pci_rescan(hull):
    """Remove a device from the bus and find it again: BARs move, interrupts are set up anew."""
    disk = f"{hull.host.work}/disk"
    hull.host.run(["truncate", "-s", "1M", disk]).check()
    hull.boot("""
        wait-for /dev/vda
        pci=$(readlink -f /sys/block/vda/device/..)
        echo 1 >$pci/remove
        [ -e /dev/vda ] && exit 1
        echo 1 >/sys/bus/pci/rescan
        wait-for /dev/vda
        echo again | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null
        """, "--disk", disk).good()
    assert hull.host.get(disk)[:5] == b"again"
