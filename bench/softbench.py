# SPDX-License-Identifier: Apache-2.0
"""The soft engine beside QEMU's TCG, and both beside this machine without either: the same static
programs (soft/), here and in a guest with the same kernel and initial RAM disk."""

import collections
import math
import os
import re
import selectors
import shlex
import subprocess
import tempfile
import threading
import time

import guests
import machine
from common import Figures, alternate, program, progress, ratio, table, verdict

NATIVE, HULL, TCG = ENGINES = ("native", "hull", "tcg")
QEMU_TCG = "qemu-system-x86_64 -accel tcg,thread=multi,tb-size=512 -cpu max -nodefaults " \
           "-no-user-config -display none -serial stdio -no-reboot"
MICROVM = "microvm,isa-serial=on"
BOOT_MIB, WORK_MIB, DEBIAN_MIB = 256, 512, 768
QUICK = 20     # how much less work it is then
SILENCE = 900  # seconds after which a guest that prints nothing is given up

# Works of one program of soft/ that have a target in common: the geometric mean of their fractions of
# native speed, and how often TCG's speed each must have at least. clock: which of the program's times
# counts, its processor's or the one that passes. rate: shown as operations a second, not as seconds.
# tcg_share: TCG does one of so many parts of the work, or a run would take it most of an hour; its
# time is multiplied by that. times: how often all works are done in a boot, one after the other.
Class = collections.namedtuple("Class", "title program works target of_tcg clock rate cpus tcg_share "
                               "times", defaults=(None, 1, "cpu", False, 1, 1, 1))
USER = (
    # gzip and zstd are Debian's, with the libraries that they link.
    Class("integer", "integer", ("sort", "hash", "sha256", "lz", "interpreter", "fib", "indirect",
                                 "gzip", "zstd"), 0.50, tcg_share=2),
    Class("memory", "memory", ("chase-16k", "chase-1m", "chase-16m", "chase-128m", "triad",
                               "copy-small", "copy-large"), 0.50, tcg_share=2),
    Class("float", "float", ("matrix-scalar", "matrix-sse2", "matrix-avx2", "nbody", "x87"), 0.50,
          tcg_share=10),
    Class("crypto", "crypto", ("aes-ctr", "aes-gcm", "chacha20", "sha256-openssl"), 0.40,
          tcg_share=10),
)
KERNEL = (
    Class("kernel", "kernel", ("getpid", "stat", "fork", "exec", "fault", "mmap", "mprotect",
                               "signal", "pipe", "read-zero"), 0.26, 1, "wall", True),
    Class("self-modifying code", "kernel", ("modify-code",), None, 10, "wall", True),
)
SMP = (
    Class("two threads, on one vCPU and on two", "smp", ("job-1", "job-2"), None, 1, "wall", True, 2,
          times=3),
    Class("threads that meet, 4 vCPUs", "smp", ("futex", "mutex", "spinlock"), None, 1, "wall", True,
          4),
)
SPEEDUP = 1.8  # of two vCPUs over one, at least
LIBRARIES = {"float": ["-lm"], "smp": ["-pthread"],
             # A static libcrypto warns of what it would load at run time, and does not here.
             "crypto": ["-lcrypto", "-Wl,--no-warnings"]}
COMPRESSORS = ("/usr/bin/gzip", "/usr/bin/zstd")

Sample = collections.namedtuple("Sample", "ops wall cpu sum host")
WORK = re.compile(r"work (\S+) ops=(\d+) wall=([\d.]+) cpu=([\d.]+) sum=(\w+)")


def work_program(name):
    if name == "empty":
        return program("soft-empty", ["soft/empty.c"], ["-nostdlib"])
    return program(f"soft-{name}", [f"soft/{name}.c", "soft/work.c", "soft/work.h"],
                   LIBRARIES.get(name, []))


# --- processes ---


def processor_seconds(pid):
    """User and system time that the process has taken so far, of all its threads."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:13]) / os.sysconf("SC_CLK_TCK")


def boot_here(command, until="HULL-INIT", timeout=120):
    """(processor seconds, seconds) from exec to a text on the serial console."""
    start = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        killer = threading.Timer(timeout, process.kill)
        killer.start()
        try:
            text = b""
            while until.encode() not in text:
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    raise RuntimeError(f"{shlex.join(command)}: ended after\n"
                                       f"{text[-3000:].decode(errors='replace')}")
                text += part
            return processor_seconds(process.pid), time.monotonic() - start
        finally:
            killer.cancel()
            process.kill()


def lines(process):
    """The lines that a process prints, while it prints them; it is killed when it is silent."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(SILENCE):
                progress(f"nothing for {SILENCE} s: {process.args[0]} is killed")
                process.kill()
                return
            part = os.read(process.stdout.fileno(), 65536)
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace").strip()
            if not part:
                return


def samples_of(command, names):
    """What the works that the command does tell of themselves, by name, a sample for each time; and
    what it takes of this machine's processors for each."""
    found, said, before = collections.defaultdict(list), [], 0.0
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        try:
            for line in lines(process):
                said = [*said[-30:], line]
                if line.startswith("begin "):
                    before = processor_seconds(process.pid)
                elif match := WORK.match(line):
                    name, ops, wall, cpu, checksum = match.groups()
                    host = processor_seconds(process.pid) - before
                    found[name].append(Sample(int(ops), float(wall), float(cpu), checksum, host))
        finally:
            process.kill()
    if missing := [name for name in names if name not in found]:
        progress(f"no {', '.join(missing)} from {shlex.join(command)}:")
        progress("\n".join(said))
    return found


# --- guests ---


def hull(options, kernel, initrd, memory, cpus=1, append="", net="none", disk=None):
    words = [os.path.join(options.build, "hull"), "run", "--engine", options.soft, "--net", net,
             "--memory", f"{memory}M", "--cpus", str(cpus), "--kernel", kernel, "--initrd", initrd,
             "--append", f"{machine.APPEND} {append}".strip()]
    return words + (["--disk", disk] if disk else [])


def tcg(kernel, initrd, memory, cpus=1, append="", net="none", disk=None, board="pc"):
    # Of the boards that take virtio-pci, pc has the least firmware to run: q35 boots a tenth later.
    words = [*shlex.split(QEMU_TCG), "-M", board, "-m", str(memory), "-smp", str(cpus), "-kernel",
             kernel, "-initrd", initrd, "-append", f"{machine.APPEND} {append}".strip()]
    if net != "none":
        words += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]
    if disk:
        words += ["-drive", f"file={disk},format=raw,if=none,id=disk", "-device",
                  "virtio-blk-pci,drive=disk"]
    return words


class Works:
    """Works to do on any of the engines, with the initial RAM disk for it in a folder."""

    def __init__(self, classes, options, folder):
        self.options = options
        self.divisor = QUICK if options.quick else 1
        self.pairs = [(c, name) for c in classes for _ in range(c.times) for name in c.works
                      if not options.only or name in options.only]
        self.programs = {c.program: work_program(c.program) for c, _ in self.pairs}
        self.programs["empty"] = work_program("empty")
        self.folder = folder

    def divisor_of(self, c, engine):
        return self.divisor * (c.tcg_share if engine == TCG else 1)

    def initrd(self, engine, pairs):
        script = "".join(f"soft-{c.program} {name} {self.divisor_of(c, engine)}\n"
                         for c, name in pairs)
        files = [(f"/bin/soft-{name}", path, "program") for name, path in self.programs.items()]
        if any(c.program == "integer" for c, _ in pairs):
            files += [(path, path, "program") for path in COMPRESSORS if os.path.exists(path)]
        path = os.path.join(self.folder, "initrd")
        with open(path, "wb") as out:
            with open(guests.initrd("cloud"), "rb") as base:
                out.write(base.read())
            out.write(guests.script_archive(script, files))
        return path

    def run(self, engine):
        """The samples of all works, by name: in one boot for each number of vCPUs."""
        found = {}
        if engine == NATIVE:
            for c, name in self.pairs:
                command = [self.programs[c.program], name, str(self.divisor)]
                found.setdefault(name, []).extend(samples_of(command, [name])[name])
            return found
        for cpus in dict.fromkeys(c.cpus for c, _ in self.pairs):
            pairs = [(c, name) for c, name in self.pairs if c.cpus == cpus]
            where = (guests.kernel("cloud").vmlinux, self.initrd(engine, pairs), WORK_MIB,
                     cpus)
            command = hull(self.options, *where) if engine == HULL else tcg(*where)
            found.update(samples_of(command, [name for _, name in pairs]))
        return found


def seconds(sample, clock, engine, by):
    """The time that counts. By the host's clock: the processor time that all of it took on this
    machine, of an emulator with all its threads. That is what other load disturbs least."""
    if by == "host" and clock == "cpu":
        return sample.cpu if engine == NATIVE else sample.host
    return sample.cpu if clock == "cpu" else sample.wall


def mean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def sums_differ(name, sums):
    """Has one engine computed something else than another?"""
    if len({checksum for _, checksum in sums[name]}) <= 1:
        return False
    progress(f"{name}: the checksums differ: {sorted(sums[name])}")
    return True


def class_table(c, names, engines, figures, sums):
    """Prints the table of a class and what became of its targets; True when all engines agree on the
    checksums."""
    rows, fractions, slower, wrong = [], collections.defaultdict(list), [], []

    def speed(engine, name):
        """More is faster."""
        value = figures.median(engine, name)
        return value if c.rate or not value else 1 / value

    for name in names:
        speeds = {engine: speed(engine, name) for engine in ENGINES}
        if sums_differ(name, sums):
            wrong.append(name)
        for engine in (HULL, TCG):
            if speeds[engine] and speeds[NATIVE]:
                fractions[engine].append(speeds[engine] / speeds[NATIVE])
        if speeds[HULL] and speeds[TCG] and speeds[HULL] < c.of_tcg * speeds[TCG]:
            slower.append(name)
        rows.append([name, *(figures.text(engine, name, 0 if c.rate else 3) for engine in engines),
                     ratio(speeds[HULL], speeds[NATIVE], 3), ratio(speeds[TCG], speeds[NATIVE], 3),
                     ratio(speeds[HULL], speeds[TCG])])
    means = {engine: mean(values) for engine, values in fractions.items()}
    both = ratio(means.get(HULL), means.get(TCG))
    if len(names) > 1:
        rows.append(["geometric mean", *("" for _ in engines), ratio(means.get(HULL), 1, 3),
                     ratio(means.get(TCG), 1, 3), both])
    unit = "operations a second" if c.rate else "seconds"
    print(f"### {c.title}: {unit}\n")
    table([c.title, *engines, "hull / native", "tcg / native", "hull / tcg"], rows)
    if c.target and means.get(HULL):
        print(f"Target: a mean of {c.target:.2f} of native speed: {verdict(means[HULL] >= c.target)}.")
    if HULL in engines and TCG in engines:
        print(f"Target: each at least {c.of_tcg} times TCG's speed: {verdict(not slower)}"
              f"{' by ' + ', '.join(slower) if slower else ''}.")
    if len(engines) > 1:
        print(f"Checksums: {'**differ** for ' + ', '.join(wrong) if wrong else 'the same'}.\n")
    return not wrong


def works_figures(title, classes, runs, options):
    """The figures of all works, (engine, name), and the checksums of each name, (engine, sum)."""
    figures, sums = Figures(), collections.defaultdict(set)
    with tempfile.TemporaryDirectory(prefix="hull-bench-") as folder:
        works = Works(classes, options, folder)
        for _, engine, _ in alternate(dict.fromkeys(options.engine), runs, title):
            samples = works.run(engine)
            for c, name in dict.fromkeys(works.pairs):
                for s in samples.get(name, []):
                    took = seconds(s, c.clock, engine, options.clock)
                    share = c.tcg_share if engine == TCG else 1
                    if took > 0:
                        figures.add(engine, name, s.ops / took if c.rate else took * share)
                    if share == 1: # of less work there is another checksum
                        sums[name].add((engine, s.sum))
    return figures, sums


def bench_works(title, classes, runs, options):
    figures, sums = works_figures(title, classes, runs, options)
    print(f"## {title}{': a twentieth of the work, no figures to keep' if options.quick else ''}\n")
    good = True
    for c in classes:
        names = [name for name in c.works if not options.only or name in options.only]
        if names:
            good &= class_table(c, names, options.engine, figures, sums)
    return figures, good


def done(good):
    if not good:
        raise RuntimeError("the engines do not compute the same")


def bench_soft_user(_host, runs, options):
    done(bench_works("soft-user", USER, runs, options)[1])


def bench_soft_kernel(_host, runs, options):
    done(bench_works("soft-kernel", KERNEL, runs, options)[1])


def bench_soft_smp(_host, runs, options):
    figures, good = bench_works("soft-smp", SMP, runs, options)
    # What a processor does changes from minute to minute where it shares a core with others' work:
    # compared is what was done one after the other.
    speedups = Figures()
    for engine in options.engine:
        for one, two in zip(figures.values(engine, "job-1"), figures.values(engine, "job-2")):
            speedups.add("two / one", engine, two / one)
    if speedups.rows():
        table(["", *options.engine],
              [["two / one", *(speedups.text("two / one", engine, 2) for engine in options.engine)]])
    if (speedup := speedups.median("two / one", HULL)) is not None:
        print(f"Target: two vCPUs do {SPEEDUP} times the work of one: {verdict(speedup >= SPEEDUP)}.\n")
    done(good)


# --- boots ---


def told_tsc(board):
    """Linux measures the TSC early with a timer that a microvm's is too coarse for where other work
    goes on; without a TSC it stops there. So it is told the frequency."""
    if not board.startswith("microvm"):
        return ""
    with open("/proc/cpuinfo", encoding="ascii") as file:
        mhz = next(float(line.partition(":")[2]) for line in file if line.startswith("cpu MHz"))
    return f"tsc_early_khz={mhz * 1000:.0f}"


def bench_soft(_host, runs, options):
    where = (guests.kernel("cloud").vmlinux, guests.initrd("cloud"), BOOT_MIB)
    vmms = {"hull": hull(options, *where)}
    for board in ("pc", "q35", MICROVM):
        vmms[f"TCG {board.split(',')[0]}"] = tcg(*where, board=board, append=told_tsc(board))
    figures = Figures()
    for _, name, command in alternate(vmms, runs, "soft"):
        processor, took = boot_here(command)
        figures.add(name, "cpu", processor)
        figures.add(name, "s", took)
    best = min(figures.median(name, "cpu") for name in vmms if name != "hull")
    print("### the soft engine: exec to Debian's init, one vCPU, on this machine\n")
    table(["VMM", "processor s: median (min-max)", "of TCG's best", "s"],
          [[name, figures.text(name, "cpu", 2), ratio(figures.median(name, "cpu"), best),
            figures.text(name, "s", 2)] for name in vmms])
    print(f"Target: at most 15: {verdict(figures.median('hull', 'cpu') <= 15 * best)}.\n")


# Name: kernel, its image, what ends the boot. Where there is a disk, Debian is started from it.
Boot = collections.namedtuple("Boot", "title kind image until disk", defaults=("HULL-INIT", False))
BOOTS = {
    "bzimage": Boot("bzImage: it unpacks itself", "cloud", "vmlinuz"),
    "i386": Boot("32-bit bzImage", "i386", "vmlinuz"),
    "real": Boot("16-bit code in real mode", None, None, "end"),
    "debian": Boot("Debian with systemd to its login", "cloud", "vmlinux", "hull login: ", True),
}


def real_mode(engine, options, folder):
    """The command that runs soft/real16.S."""
    image = os.path.join(folder, "real16")
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none",
                    "-Wl,-Ttext=0x8000,--oformat=binary", "-o", image,
                    os.path.join(os.path.dirname(__file__), "soft", "real16.S")], check=True)
    if engine == TCG:
        return [*shlex.split(QEMU_TCG), "-M", "pc", "-m", "64", "-kernel", image]
    return [os.path.join(options.build, "hull"), "run", "--engine", options.soft, "--net", "none",
            "--memory", "64M", "--kernel", image]


def boot_once(boot, engine, options, folder):
    """(processor seconds, seconds) of a boot; its disk is a fresh copy."""
    if not boot.kind:
        return boot_here(real_mode(engine, options, folder), boot.until, SILENCE)
    kernel = guests.kernel(boot.kind)
    where = (getattr(kernel, boot.image), guests.initrd(boot.kind))
    more = {"memory": DEBIAN_MIB if boot.disk else BOOT_MIB}
    if boot.disk:
        disk = os.path.join(folder, "disk")
        subprocess.run(["cp", "--sparse=always", guests.debian("full"), disk], check=True)
        more.update(append="hull.root=/dev/vda", net="user", disk=disk)
    command = hull(options, *where, **more) if engine == HULL else tcg(*where, **more)
    return boot_here(command, boot.until, SILENCE)


def bench_soft_boot(_host, runs, options):
    figures = Figures()
    engines = [engine for engine in options.engine if engine != NATIVE]
    boots = {name: boot for name, boot in BOOTS.items() if not options.only or name in options.only}
    with tempfile.TemporaryDirectory(prefix="hull-bench-") as folder:
        for name, boot in boots.items():
            for _, engine, _ in alternate(dict.fromkeys(engines), runs, f"soft-boot {name}"):
                processor, took = boot_once(boot, engine, options, folder)
                figures.add(engine, f"{name} cpu", processor)
                figures.add(engine, f"{name} s", took)
    print("### soft-boot: one vCPU; processor seconds, and seconds that passed\n")
    table(["boot", *(f"{engine} {what}" for what in ("processor s", "s") for engine in engines),
           "hull / tcg, processor", "hull / tcg"],
          [[f"{name}: {boot.title}",
            *(figures.text(engine, f"{name} {what}", 2) for what in ("cpu", "s")
              for engine in engines),
            *(ratio(figures.median(HULL, f"{name} {what}"), figures.median(TCG, f"{name} {what}"))
              for what in ("cpu", "s"))] for name, boot in boots.items()])


BENCHES = {"soft": bench_soft, "soft-user": bench_soft_user, "soft-kernel": bench_soft_kernel,
           "soft-smp": bench_soft_smp, "soft-boot": bench_soft_boot}
# What --only can name.
NAMES = [name for c in USER + KERNEL + SMP for name in c.works] + list(BOOTS)
