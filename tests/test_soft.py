# SPDX-License-Identifier: Apache-2.0
"""What only the soft engine has: how `--engine auto` comes to it, its virtual clock and CPU models."""

import hashlib
import os
import re
import subprocess

import pytest

import testbed
from machine import ERROR, POWEROFF

pytestmark = pytest.mark.not_on("kvm", reason="it is about the soft engine's own options")


def test_auto_says_what_it_takes(hull):
    """KVM where `hull host` calls it good, else the soft engine with one line that says why."""
    command = hull.command("true", net="none").replace("--engine soft", "--engine auto")
    good = hull.host.run("hull host").status == 0
    result = hull.host.run(command, timeout=240).check(POWEROFF)
    said = [line for line in result.err.splitlines() if "engine soft" in line]
    assert len(said) == (0 if good else 1), result.err


def test_virtual_clock_and_cpu_model(hull):
    """Time is the instructions', begins with 2026, and does not wait; the processor is the named one."""
    command = hull.command("""
        grep -m 1 ^flags /proc/cpuinfo
        echo date=$(date -u +%Y-%m)
        sleep 1000
        echo uptime=$(cut -d. -f1 /proc/uptime)
        """, "--cpu", "x86-64-v2,-sse4_2").replace("--engine soft", "--engine soft,clock=virtual")
    text = hull.host.run(command, timeout=240).check(POWEROFF).out
    assert "date=2026-01" in text
    assert 1000 <= int(re.search(r"uptime=(\d+)", text).group(1)) < 1100
    flags = re.search("^flags.*", text, re.MULTILINE).group().split()
    assert "sse4_1" in flags and "popcnt" in flags
    assert "sse4_2" not in flags and "avx" not in flags


@pytest.mark.parametrize("how", ["translate=off", "translate=exact", "translate=slow", "translate=flush",
                                 "translate=single", "tlb=one"])
def test_modes(hull, how):
    """The first tier alone, and modes of translator and TLB that make every rare path a frequent one."""
    command = hull.command("echo sum=$(seq 1 20000 | md5sum)", net="none", memory="256M")
    command = command.replace("--engine soft", f"--engine soft,{how}")
    text = hull.host.run(command, timeout=240).check(POWEROFF).out
    assert "sum=" + hashlib.md5("".join(f"{n}\n" for n in range(1, 20001)).encode()).hexdigest() in text


def test_code_cache(hull):
    """A small one is full again and again, and no larger than it was to be."""
    command = hull.command("echo sum=$(seq 1 20000 | md5sum)", "--stats", net="none", memory="256M")
    command = command.replace("--engine soft", "--engine soft,code-cache=1M")
    result = hull.host.run(command, timeout=240).check(POWEROFF)
    assert "sum=" + hashlib.md5("".join(f"{n}\n" for n in range(1, 20001)).encode()).hexdigest() in result.out
    counts = {name: int(value) for name, value in re.findall(r"^(\D+?) +(\d+)$", result.err, re.MULTILINE)}
    assert counts["translations all forgotten"] >= 3
    assert 2**19 < counts["bytes of code"] <= 2**20
    assert counts["bytes of blocks"] <= 2**21
    for size in ("1000K", "1025M"):
        result = hull.host.run(command.replace("=1M", f"={size}"))
        assert result.status == ERROR and "1 MiB to 1024 MiB" in result.err


def test_changed_code(hull):
    """The kernel patches code that runs often, on two processors: probes, static keys, the tracer of
    functions; and compiles filters."""
    command = hull.command("""
        mount -t tracefs none /sys/kernel/tracing
        cd /sys/kernel/tracing
        while :; do cat /proc/version >/dev/null; done &
        echo 'vfs_*' >set_ftrace_filter
        for round in 1 2 3 4 5; do
            echo 'p:hull do_sys_openat2' >kprobe_events
            echo 1 >events/kprobes/hull/enable
            echo 1 >events/sched/sched_switch/enable
            echo function >current_tracer
            cat /proc/version >/dev/null
            echo 0 >tracing_on  # its reader would go on for ever
            functions=$((functions + $(grep -c vfs_read trace)))
            hits=$((hits + $(grep -c 'hull:' trace)))
            echo nop >current_tracer
            echo 1 >tracing_on
            cat /proc/version >/dev/null
            echo 0 >events/sched/sched_switch/enable
            echo 0 >events/kprobes/hull/enable
            echo >kprobe_events
        done
        echo hits=$hits functions=$functions
        echo bpf-jit=$(cat /proc/sys/net/core/bpf_jit_enable)
        filters 200
        dmesg -r | grep -E '^<[0-3]>'
        """, net="none", cpus=2, files=[("/bin/filters", testbed.helper_program("filters"), "program")])
    text = hull.host.run(command, timeout=240).check(POWEROFF).out
    hits, functions = map(int, re.search(r"hits=(\d+) functions=(\d+)", text).groups())
    assert hits >= 5 and functions >= 5, text
    assert "bpf-jit=1" in text and "good=200" in text, text
    assert not re.search(r"^<[0-3]>", text, re.MULTILINE), text


def test_guest_with_a_jit(hull):
    """A program that compiles, patches and forgets machine code (LuaJIT, one on each of two processors)
    computes what it computes here."""
    source = os.path.join(testbed.TOP, "tests", "jit.lua")
    command = hull.command("""
        luajit /jit.lua 1 >/1 & luajit /jit.lua 2 >/2 & wait
        for n in 1 2; do echo "begin $n"; cat /$n; echo end; done
        """, net="none", cpus=2, files=[("/bin/luajit", "/usr/bin/luajit", "program"),
                                        ("/jit.lua", source, "file")])
    text = hull.host.run(command, timeout=240).check(POWEROFF).out.replace("\r", "")
    for n in "1", "2":
        here = subprocess.run(["luajit", source, n], stdout=subprocess.PIPE, text=True, check=True).stdout
        assert "true" in here.splitlines()[-1], here
        assert f"begin {n}\n{here}end" in text, f"{text}\n--- here\n{here}"


def lockstep(hull, left, right):
    """Boot to power-off twice at once, with those options of the engine, and compare the processors'
    states as they go: the error output of the one that compares, and its counters by name."""
    script = """
        seq 1 2000 | md5sum
        dd if=/dev/urandom bs=64k count=4 2>/dev/null | gzip -c | wc -c
        awk 'BEGIN { for (i = 0; i < 500; i++) s += sin(i) * i; print s }'
        sleep 10
        """
    fifo = f"{hull.host.work}/trace"
    commands = [hull.command(script, "--stats").replace(
        "--engine soft", f"--engine soft,clock=virtual,{what}={fifo},{how}")
        for what, how in (("trace", left), ("compare", right))]
    result = hull.host.run(f"rm -f {fifo}; mkfifo {fifo}; {commands[0]} >/dev/null 2>&1 & {commands[1]}; "
                           "status=$?; wait; exit $status", timeout=300)
    return result, dict(re.findall(r"^(\D+?) +(\d+)$", result.err, re.MULTILINE))


def test_lockstep(hull):
    """Both tiers do the same, from the first instruction to power-off: interrupts come at the same ones, and
    every register is the same."""
    left, right = "translate=off", "translate=exact"
    result, counts = lockstep(hull, left, right)
    last = re.search(r"equal: (\d+) instructions", result.err)
    if last:  # a record at each block from there on tells which one
        more = f",trace-every=1,trace-from={last.group(1)}"
        pytest.fail(f"{result.err}\n{lockstep(hull, left + more, right + more)[0].err}", pytrace=False)
    assert result.status == POWEROFF and "hull:" not in result.err, result.err
    assert int(counts["states traced"]) > 10**6
    assert int(counts["instructions by handlers from there"]) > 10**5


def test_virtual_clock_twice_is_the_same(hull):
    """Two runs are equal to the byte, time stamps of the kernel's log and random numbers included: also
    with a disk and while the reader of the console is slow at times, which take the host's time."""
    disk = f"{hull.host.work}/same.img"
    command = hull.command("""
        md5sum /dev/vda
        dd if=/dev/urandom of=/dev/vda bs=4k count=200 conv=fsync 2>&1
        sync
        sleep 3
        md5sum /dev/vda
        head -c 100 /dev/hwrng | md5sum
        seq 40000
        cat /proc/uptime /proc/interrupts /proc/diskstats
        """, "--disk", disk, append="ignore_loglevel")
    command = command.replace("--engine soft", "--engine soft,clock=virtual")
    runs = []
    for reader in ("cat", "(sleep 8; cat)"):
        hull.host.run(f"rm -f {disk}; yes hull | head -c 4194304 >{disk}").check()
        result = hull.host.run(f"{{ {command}; echo status=$?; }} | {reader}", timeout=240)
        assert f"status={POWEROFF}" in result.out, result.out[-3000:] + result.err
        runs.append(result.out)
    assert "/dev/vda" in runs[0] and "\n40000" in runs[0].replace("\r", "")
    assert runs[0] == runs[1]


def test_stats(hull):
    """--stats: what the engine has counted, a column a vCPU, on standard error when the VM has ended."""
    run = hull.boot("true", "--stats", cpus=2, timeout=240).good()
    lines = [line for line in run.err.splitlines() if not line.startswith("hull:")]
    assert re.fullmatch(r"engine soft +all +vCPU 0 +vCPU 1", lines[0]), run.err
    rows = {" ".join(words[:-3]): [int(word) for word in words[-3:]]
            for words in (line.split() for line in lines[1:])}
    for total, first, second in rows.values():
        assert total == first + second
    assert all(count > 10**5 for count in rows["instructions of the first tier"])
    assert all(count > 1000 for count in rows["blocks translated"])
    for name in ("blocks made", "TLB misses", "sleeps", "device port writes", "exception 14 #PF",
                 "bytes of code", "bytes of blocks", "bytes of TLBs and jump tables"):
        assert all(count > 0 for count in rows[name]), name
    assert any(name.startswith("interrupt 0x") for name in rows)
    assert "engine soft" not in hull.boot("true", timeout=240).good().err


def test_many_processors(hull):
    """Numbers above 255, which only x2APICs have: in the MADT, started, and the target of devices'
    interrupts by the IOAPIC and by messages."""
    run = hull.boot("""
        cd /sys/devices/system/cpu
        echo present=$(cat present)
        for cpu in 254 255 256 259; do echo 1 >cpu$cpu/online; done
        echo online=$(cat online)
        for irq in /proc/irq/[0-9]*; do echo 259 >$irq/smp_affinity_list 2>/dev/null; done
        echo random=$(head -c 1000 /dev/hwrng | wc -c) # an interrupt moves what waits for one
        sleep 1
        echo moved=$(cat /proc/irq/4/effective_affinity_list)
        echo counts=$(awk '/virtio.-input|ttyS0/ { print ($7 > 0) }' /proc/interrupts)
        """, cpus=260, append="maxcpus=2", timeout=400).good()
    assert run.value("present") == "0-259"
    assert run.value("online") == "0-1,254-256,259"
    assert run.value("moved") == "259"
    assert run.value("random") == "1000"
    assert run.value("counts").split() == ["1", "1"], run


def test_too_many_processors(hull):
    command = hull.command("true", cpus=1025)
    result = hull.host.run(command)
    assert result.status == ERROR and re.search(r"1025 vCPUs: the soft engine runs 1 to 1024", result.err)
