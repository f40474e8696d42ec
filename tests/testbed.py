# SPDX-License-Identifier: Apache-2.0
"""Hosts to run Hull on.

Testbed    a small host with real KVM on any machine: QEMU's TCG emulates an AMD machine with SVM and
           nested paging, in it runs Debian's cloud kernel with kvm-amd, busybox, and what is given
Enclosure  this machine, in namespaces of their own, with the same programs and users as the testbed
Local      this machine as it is, with the same methods

    with Testbed(programs=["build/hull"]) as host:
        result = host.run("hull host")               # .status .out .err
        session = host.spawn("hull run ...")         # a terminal
        session.expect("login:"); session.send("root\\n"); session.wait()
"""

import contextlib
import ctypes
import hashlib
import io
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tarfile
import tempfile
import threading
import time

import cpio
import guests

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
AGENT_PORT = 7
# The address of this machine as the testbed sees it.
OUTER_HOST = "10.0.3.2"
PR_SET_PDEATHSIG = 1  # linux/prctl.h

HOST_MODULES = ("virtio_pci", "virtio_net", "virtio_blk", "virtio-rng", "kvm-amd", "kvm-intel",
                "vhost_net", "macvtap", "bridge", "veth", "loop", "null_blk", "brd", "overlay",
                "vhost_vsock")
# Loaded at start; the others of the list are there for modprobe.
HOST_LOADED = ("virtio_pci", "virtio_net", "virtio_blk", "virtio-rng", "kvm-amd", "vhost_net",
               "loop")
QEMU = "qemu-system-x86_64"
QEMU_DATA = ("/usr/share/seabios", "/usr/share/qemu", "/usr/lib/ipxe/qemu")
QEMU_FILES = ("bios-256k.bin", "bios.bin", "bios-microvm.bin", "qboot.rom", "kvmvapic.bin",
              "linuxboot.bin", "linuxboot_dma.bin", "multiboot.bin", "multiboot_dma.bin", "pvh.bin",
              "vgabios-stdvga.bin", "efi-virtio.rom")


# Time limits are for an idle machine of today; on a slower or busier one, as the start of a testbed
# shows, they are stretched.
BOOT_SECONDS_USUAL = 6
ENCLOSURE_SECONDS_USUAL = 1
_patience = [float(os.environ.get("HULL_PATIENCE") or 1)]


def _stretch(timeout):
    return None if timeout is None else timeout * _patience[0]


class TestbedError(Exception):
    """The testbed itself does not work."""


class Timeout(AssertionError):
    """A command took too long; the text has what it had written."""


class Result:
    """What a command did. status: its exit status, or 128 + the signal that ended it."""

    def __init__(self, command, status, out, err):
        self.command = command
        self.status = status
        self.out_bytes = out
        self.out = out.decode(errors="replace")
        self.err = err.decode(errors="replace")

    @property
    def text(self):
        return self.out + self.err

    def check(self, status=0):
        """Fail, with all there is to see, unless the command ended with that status."""
        assert self.status == status, (
            f"status {self.status}, not {status}, of: {self.command}\n"
            f"--- output\n{self.out[-4000:]}\n--- error output\n{self.err[-4000:]}")
        return self


class Session:
    """A running command. expect() waits for text in its output; send() types."""

    def __init__(self, sock, command, terminal, rows=24, columns=80):
        self.command = command
        self.status = None
        self._sock = sock
        self._out = bytearray()
        self._err = bytearray()
        self._at = 0  # expect() looks from here on
        self._ended = False
        self._failure = None
        self._changed = threading.Condition()
        data = command.encode()
        sock.sendall(struct.pack(">IIII", int(terminal), rows, columns, len(data)) + data)
        self._pipes = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        try:
            while True:
                head = self._receive(5)
                kind, length = head[:1], struct.unpack(">I", head[1:])[0]
                payload = self._receive(length)
                with self._changed:
                    if kind == b"o":
                        self._out += payload
                    elif kind == b"E":
                        self._err += payload
                    elif kind == b"x":
                        self.status = struct.unpack(">I", payload)[0]
                        break
                    self._pass_on()
                    self._changed.notify_all()
        except (OSError, TestbedError) as error:
            self._failure = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def pipe_to(self, out, err):
        """From now on write the output to two file descriptors too (and keep none of it)."""
        with self._changed:
            self._pipes = (out, err)
            self._pass_on()

    def _pass_on(self):
        for pipe, data in zip(self._pipes or (), (self._out, self._err)):
            while data:
                del data[:os.write(pipe, data)]

    @property
    def ended(self):
        return self._ended

    def wait_ended(self, timeout):
        """Wait for the end for at most so long; has it come?"""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout)

    def _receive(self, length):
        data = b""
        while len(data) < length:
            piece = self._sock.recv(length - len(data))
            if not piece:
                raise TestbedError("the host hung up")
            data += piece
        return data

    def _frame(self, kind, payload):
        for at in range(0, len(payload), 32768) or (0,):
            piece = payload[at:at + 32768]
            try:
                self._sock.sendall(kind + struct.pack(">I", len(piece)) + piece)
            except OSError:
                return  # it has ended; wait() tells how

    @property
    def output(self):
        """All that was written so far."""
        with self._changed:
            return self._out.decode(errors="replace")

    @property
    def error_output(self):
        with self._changed:
            return self._err.decode(errors="replace")

    def send(self, text):
        self._frame(b"i", text.encode() if isinstance(text, str) else text)

    def send_end(self):
        self._frame(b"e", b"")

    def signal(self, signo):
        """To the command's process group."""
        self._frame(b"k", struct.pack(">I", signo))

    def resize(self, rows, columns):
        self._frame(b"w", struct.pack(">II", rows, columns))

    def expect(self, pattern, timeout=30):
        """Wait for a regular expression in the output that no earlier expect() went past. Returns
        the match."""
        expression = re.compile(pattern.encode() if isinstance(pattern, str) else pattern,
                                re.MULTILINE)
        timeout = _stretch(timeout)
        limit = time.monotonic() + timeout
        with self._changed:
            while True:
                match = expression.search(self._out, self._at)
                if match:
                    self._at = match.end()
                    return match
                if self._ended:
                    raise AssertionError(f"ended with status {self.status} without {pattern!r}: "
                                         f"{self._tail()}")
                left = limit - time.monotonic()
                if left <= 0:
                    raise Timeout(f"no {pattern!r} within {timeout} s: {self._tail()}")
                self._changed.wait(left)

    def wait(self, timeout=30):
        """Wait for the end; the status."""
        timeout = _stretch(timeout)
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, timeout):
                raise Timeout(f"not ended within {timeout} s: {self._tail()}")
        if self.status is None:
            raise TestbedError(f"{self.command}: {self._failure}")
        return self.status

    def result(self, timeout):
        self.wait(timeout)
        return Result(self.command, self.status, bytes(self._out), bytes(self._err))

    def _tail(self):
        text = self._out[-3000:].decode(errors="replace")
        error = self._err[-2000:].decode(errors="replace")
        return f"{self.command}\n--- output\n{text}\n--- error output\n{error}"

    def close(self):
        """Hang up: what still runs is killed."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.join(5)
        self._sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Host:
    """What Testbed and Local have in common. A command is a string for the shell or a list."""

    name = "host"
    engine = "kvm"  # what VMs of the tests run on

    def _connect(self):
        raise NotImplementedError

    def spawn(self, command, terminal=True, rows=24, columns=80, user=None):
        if not isinstance(command, str):
            command = shlex.join(command)
        if user:
            command = self._as_user(command, user)
        return Session(self._connect(), command, terminal, rows, columns)

    def run(self, command, timeout=60, stdin=b"", user=None):
        with self.spawn(command, terminal=False, user=user) as session:
            if stdin:
                session.send(stdin)
            session.send_end()
            return session.result(timeout)

    def stop(self):
        """Nothing to stop by default."""

    def answers(self):
        return True

    def has_users(self):
        """Can commands run as the users `hull` and `other`?"""
        return True

    def has_loop_devices(self):
        return True

    def put(self, path, data):
        """A file with these bytes (or this text)."""
        data = data.encode() if isinstance(data, str) else data
        self.run(f"mkdir -p {shlex.quote(os.path.dirname(path))}; cat >{shlex.quote(path)}",
                 timeout=120, stdin=data).check()

    def put_files(self, files):
        """files: pairs of (path there, path here)."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", dereference=True) as tar:
            for there, here in files:
                tar.add(here, arcname=there.lstrip("/"), recursive=False)
        self.run("tar -x -C /", timeout=300, stdin=out.getvalue()).check()

    def get(self, path):
        return self.run(["cat", path], timeout=120).check().out_bytes

    def _as_user(self, command, user):
        return f"exec su -s /bin/sh {user} -c {shlex.quote(command)}"


def helper_program(name):
    """A small static program of this folder, compiled when it is not or no longer there."""
    source = os.path.join(HERE, f"{name}.c")
    with open(source, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()[:12]
    path = os.path.join(TOP, "build", "testbed", f"{name}-{digest}")
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{os.getpid()}"
        subprocess.run(["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-static", "-pthread", "-o",
                        partial, source], check=True)
        os.replace(partial, path)
    return path


class Local(Host):
    """This machine."""

    name = "local"
    guests = property(lambda self: guests.cache_folder())

    def __init__(self, folder=None, engine="kvm"):
        self.engine = engine
        self._environment = dict(os.environ)
        if folder:  # where the programs under test lie
            self._environment["PATH"] = f"{folder}:{os.environ['PATH']}"

    def _connect(self):
        ours, theirs = socket.socketpair()
        with theirs:
            subprocess.Popen([helper_program("agent"), "-"], stdin=theirs, env=self._environment)
        if ours.recv(1) != b"H":
            raise TestbedError("the agent does not answer")
        return ours


def userland(programs, more_programs, peers):
    """What testbed and enclosure have in common, as an archive: busybox, three users, the tests' own
    helpers, the programs under test with their libraries, QEMU (see Testbed)."""
    archive = cpio.Archive()
    archive.busybox()
    for folder in ("/proc", "/sys", "/dev", "/run", "/root", "/etc", "/lib64"):
        archive.folder(folder)
    archive.folder("/tmp", 0o1777)
    for name in ("agent", "kvmhold", "mknetdev"):
        archive.file(f"/bin/{name}", helper_program(name), 0o755)
    archive.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"
                 "hull:x:1000:1000:in the group kvm:/tmp:/bin/sh\n"
                 "other:x:1001:1001:not in it:/tmp:/bin/sh\n")
    archive.text("/etc/group", "root:x:0:\nkvm:x:36:hull\nhull:x:1000:\nother:x:1001:\n")
    archive.text("/etc/shadow", "root::1::::::\nhull::1::::::\nother::1::::::\n", 0o600)
    archive.text("/etc/subuid", "hull:100000:65536\n")
    archive.text("/etc/subgid", "hull:100000:65536\n")
    archive.text("/etc/hosts", "127.0.0.1 localhost testbed\n")
    archive.text("/etc/resolv.conf", "nameserver 10.0.3.3\n")
    archive.text("/etc/profile", "export PS1='testbed# '\n")
    for program in programs:
        archive.program(f"/bin/{os.path.basename(program)}", program)
    for there, program in more_programs:
        archive.program(there, program)
    for name in ("e2fsck", "mke2fs", "dumpe2fs"):
        path = shutil.which(name, path="/sbin:/usr/sbin:/bin:/usr/bin")
        if path:
            archive.program(f"/sbin/{name}", path)
    if peers:
        archive.program(f"/usr/bin/{QEMU}", shutil.which(QEMU))
        for folder in QEMU_DATA:
            for name in QEMU_FILES:
                if os.path.exists(f"{folder}/{name}"):
                    archive.file(f"/usr/share/qemu/{name}", f"{folder}/{name}")
    return archive


class Enclosure(Host):
    """This machine's kernel, and otherwise the testbed's programs, users and folders: network cards,
    mounts and process numbers are its own (tests/enclosure-init). engine: what VMs run on. Without
    root rights on this machine it has but one user and no loop devices."""

    guests = "/guests"

    def __init__(self, engine, programs=(), more_programs=(), guest_kinds=(), peers=False):
        self.engine = engine
        self.name = f"local-{engine}"
        self._programs = list(programs)
        self._more_programs = list(more_programs)
        self._guest_kinds = guest_kinds
        self._peers = peers
        self._folder = None
        self._process = None

    def start(self):
        guests.prepare(self._guest_kinds)
        start = time.monotonic()
        self._folder = tempfile.mkdtemp(prefix="hull-enclosure-")
        try:
            root = f"{self._folder}/root"
            archive = userland(self._programs, self._more_programs, self._peers)
            for folder in ("/guests", "/old"):
                archive.folder(folder)
            archive.folder("/scratch", 0o1777)
            archive.unpack(root)
            for folder in (self._folder, root):
                os.chmod(folder, 0o755)
            self._launch(root)
        except BaseException:
            self.stop()
            raise
        _patience[0] = max(_patience[0], (time.monotonic() - start) / ENCLOSURE_SECONDS_USUAL,
                           os.getloadavg()[0] / os.cpu_count())
        return self

    def _launch(self, root):
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._log = open(f"{self._folder}/log", "w+b")
        self._process = subprocess.Popen(
            ["unshare", *user, "--mount", "--net", "--pid", "--ipc", "--uts", "--fork",
             "--kill-child", "sh", os.path.join(HERE, "enclosure-init"), root,
             guests.cache_folder()],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=_end_with_parent)
        limit = time.monotonic() + 30
        while "agent: ready" not in self.console:
            if self._process.poll() is not None or time.monotonic() > limit:
                raise TestbedError(f"the enclosure does not start:\n{self.console}")
            time.sleep(0.02)

    @property
    def console(self):
        """What was said at its start."""
        with open(f"{self._folder}/log", encoding="utf-8", errors="replace") as file:
            return file.read()

    def has_users(self):
        return os.geteuid() == 0

    def has_loop_devices(self):
        return os.geteuid() == 0 and os.path.exists("/dev/loop-control")

    def answers(self):
        return self._process.poll() is None

    def diagnosis(self):
        return self.console

    def stop(self):
        if self._process:
            self._process.kill()  # and --kill-child process 1, with it all others
            self._process.wait()
            self._process = None
            self._log.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _connect(self):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(f"{self._folder}/root/agent.socket")
        if sock.recv(1) != b"H":
            raise TestbedError("the enclosure does not answer")
        sock.settimeout(None)
        return sock


class Testbed(Host):
    """memory, cpus: of the testbed (more than one CPU is for experiments: see kvmhold.c for what
    TCG makes of it). programs: (files here) that stand in /bin there, with their libraries;
    more_programs: the same as pairs of (path there, program here). files: pairs of (path there,
    path here). disks: pairs of (name, file here): the block device /disk/name. scratch: size of a
    fresh file system on /scratch (one that can do O_DIRECT). peers: QEMU and its firmware too.
    guest_kinds: those found in /guests/KIND/. counted: each instruction takes a nanosecond and idle
    time none, on one CPU: times then do not depend on what else this machine does."""

    name = "testbed-kvm"
    guests = "/guests"

    def __init__(self, memory="4G", cpus=1, programs=(), more_programs=(), files=(), disks=(),
                 scratch="8G", peers=False, guest_kinds=(), forward=(), append="", counted=False):
        self._memory = memory
        self._cpus = cpus
        self._programs = list(programs)
        self._more_programs = list(more_programs)
        self._files = list(files)
        self._disks = list(disks)
        self._scratch = scratch
        self._peers = peers
        self._forward = list(forward)
        self._append = append
        self._counted = counted
        self._guest_kinds = list(guest_kinds)
        self._folder = None
        self._process = None
        self._port = None
        self.boot_seconds = None

    # --- what is in it ---

    def _archive(self):
        archive = userland(self._programs, self._more_programs, self._peers)
        archive.device("/dev/console", "c", 5, 1)
        with open(os.path.join(HERE, "testbed-init"), encoding="ascii") as file:
            archive.text("/init", file.read(), 0o755)
        self._add_modules(archive)
        for there, here in self._files:
            archive.file(there, here)
        return archive

    @staticmethod
    def _add_modules(archive):
        folder = f"{guests.kernel('cloud').folder}/lib/modules"
        for module in cpio.module_order(folder, HOST_MODULES):
            archive.file(f"/modules/{os.path.basename(module)}", module, 0o644)
        order = cpio.module_order(folder, HOST_LOADED)
        archive.text("/modules/order", "".join(os.path.basename(m) + "\n" for m in order))

    # --- its life ---

    def start(self):
        start = time.monotonic()
        self._folder = tempfile.mkdtemp(prefix="hull-testbed-")
        try:
            kernel = guests.kernel("cloud")
            self._archive().save(f"{self._folder}/host.cpio")
            self._port = _free_port()
            self._process = self._launch(kernel)
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        self.boot_seconds = time.monotonic() - start
        _patience[0] = max(_patience[0], self.boot_seconds / BOOT_SECONDS_USUAL)
        return self

    def _launch(self, kernel):
        forward = "".join(f",hostfwd={rule}" for rule in self._forward)
        clock = ["-accel", "tcg,thread=multi,tb-size=512"]
        if self._counted:
            clock = ["-accel", "tcg,thread=single,tb-size=512", "-icount", "shift=0,sleep=off"]
        command = [
            QEMU, *clock, "-cpu", "max", "-M", "q35",
            "-nodefaults", "-m", self._memory, "-smp", str(self._cpus), "-display", "none",
            "-no-reboot", "-no-user-config",
            "-monitor", f"unix:{self._folder}/monitor,server=on,wait=off",
            "-chardev", f"file,id=console,path={self._folder}/console", "-serial", "chardev:console",
            "-kernel", kernel.vmlinux, "-initrd", f"{self._folder}/host.cpio",
            "-append", "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 tsc=reliable "
                       f"{self._append}",
            "-netdev", f"user,id=net,net=10.0.3.0/24,hostfwd=tcp:127.0.0.1:{self._port}-"
                       f":{AGENT_PORT}{forward}",
            "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"]
        disks = [(name, path, "off") for name, path in self._disks]
        if self._scratch:
            disks.append(("scratch", self._make_scratch(), "off"))
        if self._guest_kinds:
            disks.append(("guests", guests.image(self._guest_kinds), "on"))
        for name, path, read_only in disks:
            command += ["-drive", f"if=none,id={name},file={path},format=raw,cache=unsafe,"
                                  f"discard=unmap,readonly={read_only}",
                        "-device", f"virtio-blk-pci,drive={name},serial={name}"]
        self._log = open(f"{self._folder}/qemu.log", "wb")
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log,
                                stderr=subprocess.STDOUT, start_new_session=True,
                                preexec_fn=_end_with_parent)

    def _make_scratch(self):
        path = f"{self._folder}/scratch"
        mke2fs = shutil.which("mke2fs", path="/sbin:/usr/sbin:/bin:/usr/bin")
        subprocess.run([mke2fs, "-q", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1",
                        "-J", "size=16", path, self._scratch], check=True, stdout=subprocess.DEVNULL)
        return path

    def _await_ready(self):
        limit = time.monotonic() + 120
        while "agent: ready" not in self.console:
            if self._process.poll() is not None or time.monotonic() > limit:
                with open(f"{self._folder}/qemu.log", encoding="utf-8", errors="replace") as file:
                    raise TestbedError(f"the testbed does not start:\n{file.read()}\n{self.console}")
            time.sleep(0.02)

    @property
    def console(self):
        """What the testbed's own kernel said."""
        with contextlib.suppress(OSError):
            with open(f"{self._folder}/console", encoding="utf-8", errors="replace") as file:
                return file.read()
        return ""

    def diagnosis(self):
        """What the testbed's own processors are doing: for a testbed that does not answer."""
        text = ""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(3)
            sock.connect(f"{self._folder}/monitor")
            for _ in range(3):
                sock.sendall(b"info registers -a\n")
                time.sleep(0.5)
            while piece := sock.recv(65536):
                text += piece.decode(errors="replace")
        wanted = re.findall(r"^(?:CPU#\d+|R[A-Z0-9]+ ?=.*|RIP=.*|CR0=.*|EFER.*)$",
                            text.replace("\r", ""), re.MULTILINE)
        return f"its console:\n{self.console}\nits processors:\n" + "\n".join(wanted)

    def answers(self):
        """Is it alive?"""
        try:
            return self.run("echo yes", timeout=20).out == "yes\n"
        except (TestbedError, AssertionError):
            return False

    def stop(self):
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            self._log.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def _connect(self):
        limit = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                sock = socket.create_connection(("127.0.0.1", self._port), timeout=10)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if sock.recv(1) == b"H":
                    sock.settimeout(None)
                    return sock
                sock.close()
            if self._process.poll() is not None or time.monotonic() > limit:
                raise TestbedError(f"the testbed does not answer; {self.diagnosis()}")
            time.sleep(0.1)

    def load(self, *modules):
        """Load more kernel modules, of those that were put in."""
        folder = f"{guests.kernel('cloud').folder}/lib/modules"
        for path in cpio.module_order(folder, modules):
            name = os.path.basename(path)
            self.run(f"grep -q '^{name[:-3].replace('-', '_')} ' /proc/modules || "
                     f"insmod /modules/{name}").check()


def _end_with_parent():
    """A testbed whose test run was killed goes too."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def kvm_is_good(hull):
    """Does `hull host` find a KVM on this machine that can run a stock kernel?"""
    return subprocess.run([hull, "host"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          check=False).returncode == 0


def default_memory(wanted_gib=10):
    """Memory for a testbed that tests large guests: little of it is ever touched, but it must not
    be more than this machine would promise."""
    with open("/proc/meminfo", encoding="ascii") as file:
        total_kib = int(file.readline().split()[1])
    return f"{min(wanted_gib * 1024, total_kib * 6 // 10 // 1024)}M"


def _free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
