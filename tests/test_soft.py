# SPDX-License-Identifier: Apache-2.0
"""The soft engine on this machine, which need have no KVM: stock kernels of 64 and 32 bits, several
vCPUs, Xen, memtest86+, devices, a debugger, and how `--engine auto` chooses."""

import re
import subprocess

import pytest

import guests
from machine import POWEROFF, complaints
from test_boot import REPORT, dmesg_of
from test_devices import HPET_APPEND, HPET_SCRIPT, check_hpet

# What stock kernels say on every machine without firmware tables of a real PC, on KVM and QEMU alike.
USUAL = re.compile(r"PCI: (Fatal: )?No config space|Unknown kernel command line|"
                   r"pci=nocrs|mitigations|Speculative|MDS|i8042: |ACPI: .*_OSC")


@pytest.mark.parametrize("kind, image, cpus", [
    ("cloud", "vmlinuz", 1), ("cloud", "vmlinux", 4), ("standard", "vmlinux", 2),
    ("rt", "vmlinux", 2), ("i386", "vmlinuz", 2)])
def test_kernel(soft, kind, image, cpus):
    guests.initrd(kind)
    run = soft.boot(REPORT, kind=kind, cpus=cpus, image=image, memory="512M", timeout=300).good()
    assert run.value("cpus") == str(cpus)
    assert run.value("clock") in ("kvm-clock", "tsc")
    found = [line for line in complaints(dmesg_of(run)) if not USUAL.search(line)]
    assert not any(re.search(r"BUG|Oops|WARNING|unchecked MSR|general protection", line)
                   for line in found), found


def test_devices(soft):
    """A file system on a disk, its bytes on the host, the network, the clock, power-off."""
    guests.initrd("cloud")
    disk = f"{soft.host.work}/disk"
    soft.host.run(["truncate", "-s", "64M", disk]).check()
    server = soft.spawn(["python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory",
                         soft.host.work, "0"])
    port = server.expect(r"port (\d+)", 20).group(1).decode()
    soft.host.put(f"{soft.host.work}/page", "soft as any\n")
    run = soft.boot(f"""
        echo 'made in the guest' >/dev/vda
        sync
        net-up || exit 1
        wget -q -O - http://10.0.2.2:{port}/page
        echo time=$(date +%s)
        """, "--disk", disk, net="user", timeout=240).good()
    assert "soft as any" in run.text
    assert soft.host.get(disk).startswith(b"made in the guest\n")
    assert abs(int(run.value("time")) - int(soft.host.run("date +%s").out)) < 60


def test_hpet(soft):
    guests.initrd("cloud")
    check_hpet(soft.boot(HPET_SCRIPT, "--hpet", "on", append=HPET_APPEND, timeout=240).good())


def test_xen_asks_for_its_dom0(soft):
    session = soft.spawn(["hull", "run", "--engine", "soft", "--memory", "1G", "--net", "none",
                          "--kernel", guests.xen(), "--boot", "multiboot2", "--append",
                          "console=com1 com1=115200,8n1 loglvl=all noreboot"])
    session.expect(r"Xen version 4\.\d+", 60)
    session.expect(r"(?i)dom(ain )?0 kernel|could not (set up|construct) dom|no dom0|dom0.*module",
                   90)


@pytest.mark.parametrize("image", ["x64", "ia32"])
def test_memtest_starts_its_first_pass(soft, image):
    session = soft.spawn(["hull", "run", "--engine", "soft", "--memory", "32M", "--net", "none",
                          "--kernel", guests.memtest(image), "--append", "console=ttyS0,115200"])
    session.expect(r"Memtest86\+", 60)
    session.expect(r"#[1-9]", 120)
    assert "Errors: 0" in session.output or "Errors:" not in session.output


def test_debugger(soft):
    """Real GDB stops the kernel at a function, reads memory and registers, steps, and lets it go."""
    guests.initrd("cloud")
    kernel = guests.kernel("cloud")
    entry = int.from_bytes(open(kernel.vmlinux, "rb").read()[0x18:0x20], "little")
    session = soft.start("true", "--gdb", f"unix:{soft.host.work}/gdb,wait", net="none")
    script = [f"target remote {soft.host.work}/gdb", f"hbreak *{entry}", "continue", "p/x $pc",
              "x/4xb $pc", "stepi", "p/x $pc", "p/x $cr0", "info threads", "monitor registers",
              "delete", "detach"]
    words = [word for line in script for word in ("-ex", line)]
    soft.host.run(f"until [ -e {soft.host.work}/gdb ]; do sleep 0.1; done", timeout=30).check()
    output = subprocess.run(["gdb", "-batch", "-nx", *words], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, timeout=120, check=False).stdout
    assert "vCPU 0" in output, output
    assert re.search(r"efer \d+", output), output
    assert session.wait(240) == POWEROFF, session.output


def test_auto_says_what_it_takes(soft):
    """KVM where `hull host` calls it good, else the soft engine with one line that says why."""
    guests.initrd("cloud")
    command = soft.command("true", net="none").replace("--engine soft", "--engine auto")
    good = subprocess.run([soft.host.run("command -v hull").out.strip(), "host"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          check=False).returncode == 0
    result = soft.host.run(command, timeout=240).check(POWEROFF)
    said = [line for line in result.err.splitlines() if "engine soft" in line]
    assert len(said) == (0 if good else 1), result.err
