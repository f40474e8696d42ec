# SPDX-License-Identifier: Apache-2.0
"""Virtual machines for tests: start Hull (or QEMU, to compare) on a host with the test system of
guests.initrd(), and read what it printed."""

import itertools
import os
import re
import shlex
import subprocess
import time

import guests
import testbed

# How `hull run` ends: src/vm/vm.h.
POWEROFF, ERROR, USAGE, PANIC, TRIPLE_FAULT, FAILURE, REBOOT, QUIT = range(8)
SIGKILLED, SIGTERMED, SIGINTED = 137, 143, 130

APPEND = "console=ttyS0 quiet panic=-1 net.ifnames=0"
# Why some tests, or parameters of them, are not_on("soft").
NO_PART = "the engine has no part in it, and every boot takes seconds"
STUBS = ("exit-port", "triple-fault", "hang", "cpu-error")


class Starter:
    """Starts VMs on one host, and knows which still run."""

    _numbers = itertools.count()

    def __init__(self, host):
        self.host = host
        self._sessions = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for session in self._sessions:
            session.close()

    def initrd(self, kind, script, files=()):
        """The path (on the host) of the test system for that kernel, with a script."""
        base = f"{self.host.guests}/{kind}/initrd.cpio"
        if script is None and not files:
            return base
        path = f"{self.host.work}/initrd{next(self._numbers)}"
        self.host.run(f"cat {base} - >{path}", stdin=guests.script_archive(script, files)).check()
        return path

    def command(self, script, *options, kind="cloud", image="vmlinux", append="", memory="256M",
                cpus=1, files=(), net="none", vmm="hull", prefix=""):
        """The command line that boots the test system. options go to the VMM as they are."""
        kernel = f"{self.host.guests}/{kind}/{image}"
        initrd = self.initrd(kind, script, files)
        append = f"{APPEND} {append}".strip()
        if vmm == "qemu":
            words = ["qemu-system-x86_64", "-M", "q35", "-accel", "kvm", "-cpu", "host",
                     "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-m",
                     memory, "-smp", str(cpus), "-kernel", kernel, "-initrd", initrd, "-append",
                     append, *options]
        else:
            # Not by measurement: this machine may be busy with other tests.
            words = [vmm, "run", "--engine", self.host.engine, "--memory", memory, "--cpus", str(cpus),
                     "--kernel", kernel, "--initrd", initrd, "--append", append]
            if net is not None:
                words += ["--net", net]
            words += options
        return prefix + shlex.join(words)

    def start(self, script, *options, terminal=False, user=None, **more):
        """Boot the test system; returns the session at once."""
        session = self.host.spawn(self.command(script, *options, **more), terminal, user=user)
        self._sessions.append(session)
        return session

    def spawn(self, command, terminal=True, user=None):
        """Any command, killed at the end of the test."""
        session = self.host.spawn(command, terminal, user=user)
        self._sessions.append(session)
        return session

    def boot(self, script, *options, timeout=90, status=POWEROFF, **more):
        """Boot the test system, wait for the end, check Hull's exit status. Returns a Run."""
        start = time.monotonic()
        session = self.start(script, *options, **more)
        result = session.result(timeout)
        session.close()
        run = Run(result, time.monotonic() - start)
        assert result.status == status, f"status {result.status}, not {status}\n{run}"
        return run


class Run:
    """A finished run of the test system. text: what its script printed; script_status: how it
    ended (None: it did not)."""

    def __init__(self, result, seconds):
        self.status = result.status
        self.seconds = seconds
        self.raw = result.out
        self.err = result.err
        text = result.out.replace("\r", "")
        match = re.search(r"^HULL-INIT\n(.*?)^HULL-STATUS (\d+)$", text, re.MULTILINE | re.DOTALL)
        self.text = match.group(1) if match else text
        self.script_status = int(match.group(2)) if match else None

    def __str__(self):
        return f"--- guest\n{self.raw[-6000:]}\n--- error output\n{self.err[-3000:]}"

    def good(self):
        """Fail unless the script ended with status 0."""
        assert self.script_status == 0, f"the script ended with {self.script_status}\n{self}"
        return self

    def value(self, name):
        """What the script printed as NAME=VALUE."""
        match = re.search(rf"^{re.escape(name)}=(.*)$", self.text, re.MULTILINE)
        assert match, f"no {name}= in\n{self}"
        return match.group(1).strip()


# What a kernel says when its processors were not given the time they should have had: it tells of
# the host that the test ran on (an emulated one, and busy), and comes and goes from run to run.
OF_THE_HOST = re.compile(
    r"hrtimer: interrupt took|"                      # kernel/time/hrtimer.c
    r"clocksource: .*(watchdog|skew|unstable|timekeeping)|"  # kernel/time/clocksource.c
    r"tsc: Marking TSC unstable|TSC.*(skew|unsynchronized)|"
    r"rcu: INFO: rcu_\w+ (self-)?detected|rcu: .*(stall|kthread starved)|"
    r"(watchdog: )?BUG: (soft lockup|workqueue lockup)|"
    r"sched: (RT|DL) (throttling|replenish)|"
    r"perf: interrupt took too long|"
    r"workqueue: .* hogged CPU|"
    r"random: .* uninitialized")


def complaints(raw_dmesg):
    """The warnings and errors of `dmesg -r`, without what differs from boot to boot: times,
    addresses, numbers; of a stack trace only what it is about."""
    found = []
    in_trace = False
    for line in raw_dmesg.splitlines():
        match = re.match(r"<(\d+)>\[ *[\d.]+\] ?(.*)", line)
        if not match or (int(match.group(1)) & 7) > 4:
            continue
        text = match.group(2)
        if "[ cut here ]" in text:
            in_trace = True
            continue
        if "[ end trace" in text:
            in_trace = False
            continue
        if OF_THE_HOST.search(text):
            continue
        if in_trace and not re.match(r"WARNING|BUG|kernel BUG|Oops|general protection", text):
            continue
        text = re.sub(r"0x[0-9a-f]+|\b[0-9a-f]*\d[0-9a-f]*\b", "N", text)
        found.append(text.strip())
    return found


# --- bare stubs: kernels of a few instructions ---


HERE = os.path.dirname(os.path.abspath(__file__))
# Name: source, options of the compiler.
IMAGES = {f"stub-{name}": ("bench/stub.S", [
    "-Wl,-Ttext=0x100000", "-Wl,--section-start=.note.Xen=0x100200", "-Wl,-n",
    f"-DSTUB_{name.upper().replace('-', '_')}"]) for name in STUBS}
IMAGES["realmode"] = ("tests/realmode.S", ["-Wl,-Ttext=0x8000,--oformat=binary"])
IMAGES["realmode-limits"] = ("tests/realmode.S", ["-Wl,-Ttext=0x8000,--oformat=binary", "-DLIMITS"])


def bare_image(name):
    """The path of a bare Multiboot image, built when it is not there."""
    source, options = IMAGES[name]
    source = os.path.join(testbed.TOP, source)
    path = os.path.join(testbed.TOP, "build", "testbed", name)
    if not os.path.exists(path) or os.path.getmtime(path) < os.path.getmtime(source):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{os.getpid()}"
        subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none",
                        *options, "-o", partial, source], check=True)
        os.replace(partial, path)
    return path


def bare_programs():
    return [(f"/stubs/{name.removeprefix('stub-')}", bare_image(name)) for name in IMAGES]
