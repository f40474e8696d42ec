# SPDX-License-Identifier: Apache-2.0
"""Stock Debian kernels boot, and have nothing to complain about that they would not have on QEMU's
q35; memory, many CPUs; Xen; bare kernels."""

import re

import pytest

from conftest import WHOLE, local_kvm_lacks
from machine import FAILURE, NO_PART, TRIPLE_FAULT, complaints

BRIEF = pytest.mark.not_on("soft", reason=NO_PART)
WARNING = "a warning of the test"
# What a kernel has to say of the machine itself: one without PAE, that it cannot reach the window of
# PCI above 4 GiB.
OF_THE_MACHINE = {"i386": ["acpi resource window ([N-N] ignored, not CPU addressable)"]}
# And of the testbed's processor, which QEMU emulates: what it says of XSAVE is not what KVM says of it
# (under QEMU's q35 the same is said: with HULL_WHOLE=1 it is looked at).
OF_THE_TESTBED = re.compile(r"XSAVE consistency problem|CPUID\[N, N\]|"
                            r"WARNING: .*fpu__init_system_xstate")

REPORT = f"""
echo release=$(uname -r)
echo cpus=$(nproc)
echo memory=$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)
echo clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
echo "<4>{WARNING}" >/dev/kmsg
# What complaints() looks at. The whole log through a serial port takes a real-time kernel with
# several vCPUs minutes on an emulated host: an interrupt and a thread's wake-up for 16 bytes.
echo DMESG-BEGIN; dmesg -r | awk -F '[<>]' '$2 % 8 <= 4'; echo DMESG-END
"""

# Nor may what the kernel itself says run into it (a real-time kernel's console breaks lines of others).
SILENT = "loglevel=1"

_baselines = {}


def dmesg_of(run):
    match = re.search(r"DMESG-BEGIN\n(.*)DMESG-END", run.text, re.DOTALL)
    assert match, f"no kernel log in\n{run}"
    return match.group(1)


def baseline(starter, kind, cpus):
    """What the same kernel complains about under QEMU's q35 on the same host's KVM; on the soft
    engine, whose processor is of no real model, it has nothing to complain about."""
    if starter.host.engine == "soft":
        return []
    key = (starter.host.name, kind, cpus)
    if key not in _baselines:
        if starter.host.run("command -v qemu-system-x86_64").status != 0:
            pytest.skip("no QEMU on the host to compare with")
        run = starter.boot(REPORT, kind=kind, cpus=cpus, image="vmlinux", vmm="qemu",
                           memory="512M", append=SILENT, timeout=240).good()
        _baselines[key] = complaints(dmesg_of(run))
    return _baselines[key]


# Each kernel as it is shipped with one vCPU, and unpacked, through PVH, with four: a kernel that
# unpacks itself does so before it knows of the others.
@pytest.mark.parametrize("kind, cpus, image", [
    (kind, *how) for kind in ("cloud", "standard", "rt")
    for how in ((1, "vmlinuz"), (4, "vmlinux"))] + [
        pytest.param("i386", 2, "vmlinuz", marks=pytest.mark.whole("testbed"))])
def test_kernel(hull, kind, cpus, image):
    run = hull.boot(REPORT, kind=kind, cpus=cpus, image=image, memory="512M", append=SILENT,
                    timeout=240).good()
    assert run.value("cpus") == str(cpus)
    assert 400 << 10 < int(run.value("memory")) <= 512 << 10
    # The latter where the processor's counter never stops or changes its rate.
    assert run.value("clock") in ("kvm-clock", "tsc")
    log = dmesg_of(run)
    assert WARNING in complaints(log), log
    if kind == "i386" and hull.host.name == "testbed-kvm":
        return  # QEMU with such a guest brings the testbed down: there is nothing to compare with
    known = [WARNING] + OF_THE_MACHINE.get(kind, [])
    new = [line for line in complaints(log) if line not in known]
    if hull.host.name == "testbed-kvm" and not WHOLE:
        new = [line for line in new if not OF_THE_TESTBED.match(line)]
    if new:  # only now, since it takes longer than the test itself
        known += baseline(hull, kind, cpus)
    new = [line for line in new if line not in known]
    assert not new, f"complaints that QEMU's q35 does not cause: {new}\n{log}"


def test_kernel_finds_the_machine(hull):
    """What the log and /sys say of the platform."""
    run = hull.boot("""
        dmesg
        echo host-bridge=$(cat /sys/bus/pci/devices/0000:00:00.0/vendor)
        echo lpc=$(cat /sys/bus/pci/devices/0000:00:1f.0/class)
        for table in APIC DSDT FACP MCFG; do
            [ -e /sys/firmware/acpi/tables/$table ] && echo acpi-$table=yes
        done
        echo vendor=$(cat /sys/class/dmi/id/sys_vendor)
        echo product=$(cat /sys/class/dmi/id/product_name)
        echo rtc=$(cat /sys/class/rtc/rtc0/name)
        echo time=$(date +%s)
        echo hypervisor=$(cat /sys/hypervisor/type 2>/dev/null; grep -c hypervisor /proc/cpuinfo)
        echo ttys=$(grep -c '16550A' /proc/tty/driver/serial)
        """, "--name", "platform", cpus=2, append="loglevel=4").good()
    assert run.value("host-bridge") == "0x8086"
    assert run.value("lpc") == "0x060100"
    for table in ("APIC", "DSDT", "FACP", "MCFG"):
        assert run.value(f"acpi-{table}") == "yes"
    assert "Hull" in run.value("vendor") + run.value("product")
    assert "rtc_cmos" in run.value("rtc")
    host_time = int(hull.host.run("date +%s").out)
    assert abs(int(run.value("time")) - host_time) < 60, "the guest's clock is wrong"
    assert int(run.value("ttys")) >= 1
    assert re.search(r"PCI: (MMCONFIG|ECAM) (at|for domain)", run.text)
    assert not re.search(r"ACPI.*(Error|Warning|BIOS Error|BIOS Warning)", run.text), run
    assert not re.search(r"\[Firmware (Bug|Warn)", run.text), run


@pytest.mark.whole
@pytest.mark.parametrize("memory, kib", [
    ("96M", 96 << 10), ("3G", 3 << 20), pytest.param("8G", 8 << 20, marks=BRIEF), ("9216M", 9 << 20)])
def test_memory(hull, memory, kib):
    """RAM below and above 4 GiB: all there, and usable at its end."""
    free = hull.host.run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo").check().out
    if int(free) < kib * 102 // 100:
        pytest.skip(f"the host has less than {memory} of memory")
    run = hull.boot("""
        echo memory=$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)
        grep 'System RAM' /proc/iomem
        mount -t tmpfs -o size=90% tmpfs /mnt
        # Pages come from the top of memory first: what is written there must read back.
        dd if=/dev/urandom of=/mnt/a bs=1M count=24 2>/dev/null
        [ "$(md5sum </mnt/a)" = "$(dd if=/mnt/a bs=64k 2>/dev/null | md5sum)" ] && echo read=same
        """, memory=memory, timeout=120).good()
    assert kib * 0.60 < int(run.value("memory")) <= kib
    assert run.value("read") == "same"
    ram = sum(int(end, 16) - int(start, 16) + 1
              for start, end in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) : System RAM", run.text,
                                           re.MULTILINE))
    assert kib * 1024 - (2 << 20) < ram <= kib * 1024


@pytest.mark.parametrize("cpus", [
    2, pytest.param(16, marks=BRIEF), pytest.param(64, marks=pytest.mark.whole("testbed"))])
def test_cpus(hull, cpus):
    run = hull.boot("""
        echo cpus=$(nproc)
        echo online=$(cat /sys/devices/system/cpu/online)
        # Each of them runs something.
        n=0
        for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu true && n=$((n + 1)); done
        echo ran=$n
        dmesg | grep -iE 'x2apic|smp: Brought up'
        """, cpus=cpus, memory="1G", timeout=120 + 12 * cpus).good()
    assert run.value("cpus") == str(cpus)
    assert run.value("online") == f"0-{cpus - 1}"
    assert run.value("ran") == str(cpus)


@pytest.mark.parametrize("protocol", ["multiboot", "multiboot2"])
@pytest.mark.parametrize("image", ["xen", "xen.gz"])
def test_xen_asks_for_its_dom0(hull, protocol, image):
    """Xen starts, speaks on COM1, and misses the kernel of its first domain."""
    session = hull.spawn(["hull", "run", "--engine", hull.host.engine, "--memory", "1G",
                          "--net", "none", "--kernel", f"{hull.host.guests}/xen/{image}", "--boot", protocol,
                          "--append", "console=com1 com1=115200,8n1 loglvl=all noreboot"])
    session.expect(r"Xen version 4\.\d+", 60)
    session.expect(r"(?i)dom(ain )?0 kernel|could not (set up|construct) dom|no dom0|dom0.*module",
                   60)


def test_xen_starts_its_dom0(hull):
    """With modules Xen gets as far as handing control to the kernel that it was given."""
    # Xen gives the timer ten ticks of wall time to show up: on a busy machine the testbed may not
    # get as much. Nothing else is tried twice.
    for _ in range(3):
        session = hull.spawn(["hull", "run", "--engine", hull.host.engine, "--memory", "2G",
                              "--net", "none", "--kernel", f"{hull.host.guests}/xen/xen", "--boot", "multiboot2",
                              "--append", "console=com1 com1=115200,8n1 loglvl=all noreboot "
                                          "dom0_mem=1G",
                              "--module", f"{hull.host.guests}/cloud/vmlinuz,args=console=hvc0",
                              "--module", f"{hull.host.guests}/cloud/initrd.cpio"])
        session.expect(r"Xen version 4\.\d+", 60)
        found = session.expect(r"VIRTUAL MEMORY ARRANGEMENT|IO-APIC \+ timer doesn't work", 90)
        if found.group().startswith(b"VIRTUAL"):
            session.expect("Dom0 has maximum", 60)
            return
        session.close()
    pytest.fail("Xen's timer check fails each time")


@pytest.mark.parametrize("image", ["x64", "ia32"])
def test_memtest_starts_its_first_pass(hull, image):
    session = hull.spawn(["hull", "run", "--engine", hull.host.engine, "--memory", "32M",
                          "--net", "none", "--kernel", f"{hull.host.guests}/memtest/{image}",
                          "--append", "console=ttyS0,115200"])
    session.expect(r"Memtest86\+", 60)
    session.expect(r"#[1-9]", 120)
    assert "Errors: 0" in session.output or "Errors:" not in session.output


@pytest.mark.parametrize("protocol", ["multiboot", "pvh", "auto"])
def test_bare_kernel(hull, protocol):
    """A kernel of a few instructions: its output, and the status that it asked for."""
    result = _run_stub(hull, "exit-port", "--boot", protocol, "--exit-port")
    assert result.status == (0x2a << 1) | 1, result.text
    assert result.out == "!\n"


def test_exit_port_is_off_unless_asked_for(hull):
    result = _run_stub(hull, "exit-port")
    assert result.status == TRIPLE_FAULT, result.text


def test_triple_fault(hull):
    result = _run_stub(hull, "triple-fault")
    assert result.status == TRIPLE_FAULT, result.text
    assert result.out == "!\n"
    assert "triple" in result.err


@pytest.mark.not_on("soft", reason="code where there is no memory is all ones there, as on hardware")
def test_engine_failure_shows_registers_and_code(hull):
    result = _run_stub(hull, "cpu-error")
    assert result.status == FAILURE, result.text
    assert re.search(r"(?i)rip\W+(0x)?0*d0000000", result.err), result.err


def test_kvm_of_this_machine_is_tested():
    """Says in the last lines of a run where it is not."""
    if local_kvm_lacks():
        pytest.skip(local_kvm_lacks())


def _run_stub(starter, name, *options):
    return starter.host.run(["hull", "run", "--engine", starter.host.engine, "--net", "none",
                             "--memory", "16M", "--kernel", f"/stubs/{name}", *options], timeout=30)
