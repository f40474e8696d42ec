# SPDX-License-Identifier: Apache-2.0
"""The guests that tests and `make run` boot, all out of Debian's packages, unmodified:

    kernel("cloud" | "standard" | "rt" | "i386")
                                          vmlinuz, vmlinux (for PVH), configuration, modules
    xen()                                 the Xen hypervisor (Multiboot)
    memtest("x64" | "ia32")               memtest86+, which boots as a bzImage does
    initrd(kind)                          a small test system: busybox and the kernel's virtio modules
    debian("small" | "full")              a Debian root file system, a raw ext4 disk image

They are fetched once into a cache outside the repository, $XDG_CACHE_HOME/hull/guests."""

import base64
import fcntl
import functools
import glob
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import cpio

SUITE = "bookworm"
# What the disk images are made of; a change makes new ones. small: a prompt in a second. full: what
# an installation has, with systemd and tools that are a processor's work.
DEBIAN_PACKAGES = {
    "small": ("sysvinit-core", "iproute2", "iputils-ping", "isc-dhcp-client", "curl",
              "ca-certificates", "kmod", "procps", "e2fsprogs", "udev", "nano"),
    "full": ("systemd-sysv", "dbus", "udev", "kmod", "login", "procps", "iproute2", "ifupdown",
             "isc-dhcp-client", "e2fsprogs", "gcc", "libc6-dev", "python3", "openssl", "gzip",
             "logrotate", "cron", "rsyslog", "systemd-timesyncd"),
}
DEBIAN_SIZE = "2G"
DEBIAN_VERSION = 5

PACKAGES = {
    "cloud": "linux-image-cloud-amd64",
    "standard": "linux-image-amd64",
    "rt": "linux-image-rt-amd64",
    "i386": "linux-image-686",
    "xen": "xen-system-amd64",
    "memtest": "memtest86+",
}
# What the test system loads, in this order.
GUEST_MODULES = ("crc32c-intel", "crc32c_generic", "virtio_pci", "virtio_blk", "virtio_net",
                 "virtio_console", "virtio-rng", "pvpanic-mmio", "ext4")
# What is kept of a kernel that is no host: the guest's modules and a few for tests.
GUEST_KEPT = GUEST_MODULES + ("vfat", "nls_iso8859-1", "xfs", "btrfs", "af_packet")

# For scripts in the guest: bring a network card up by DHCP; wait until a path is there.
GUEST_SCRIPTS = {
    "net-up": """#!/bin/sh
ip link set lo up
ip link set ${1:-eth0} up
exec udhcpc -q -n -f -t 20 -T 1 -i ${1:-eth0} -s /bin/net-lease
""",
    "net-lease": """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
[ -n "$router" ] && ip route add default via $router
for server in $dns; do echo nameserver $server; done >/etc/resolv.conf
""",
    "wait-for": """#!/bin/sh
n=0
until [ -e "$1" ]; do n=$((n + 1)); [ $n -gt 500 ] && exit 1; usleep 10000; done
""",
}

HERE = os.path.dirname(os.path.abspath(__file__))


class GuestError(Exception):
    """A guest cannot be had; the text says why and what to do."""


def cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = os.path.join(base, "hull", "guests")
    os.makedirs(path, exist_ok=True)
    return path


def say(text):
    print(f"guests: {text}", file=sys.stderr, flush=True)


def _run(command, **more):
    """Run a command; its output is shown only when it fails."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            check=False, **more)
    if result.returncode != 0:
        raise GuestError(f"{' '.join(command)} failed ({result.returncode}):\n{result.stdout}")
    return result.stdout


class _Lock:
    """Held while the cache is being changed, so that two runs do not fetch the same twice."""

    def __enter__(self):
        self._file = open(os.path.join(cache_folder(), ".lock"), "w", encoding="ascii")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_):
        self._file.close()


# --- packages ---


def _apt_options(kind):
    """Options of apt for packages of another architecture, with lists and caches of their own."""
    if kind != "i386":
        return []
    folder = os.path.join(cache_folder(), ".apt-i386")
    for name in ("lists/partial", "cache/archives/partial"):
        os.makedirs(f"{folder}/{name}", exist_ok=True)
    return [word for option in (
        "APT::Architecture=i386", "APT::Architectures::=i386", f"Dir::State::lists={folder}/lists",
        f"Dir::Cache={folder}/cache", "Dir::State::status=/dev/null") for word in ("-o", option)]


def _depends(kind):
    text = subprocess.run(["apt-cache", *_apt_options(kind), "depends", PACKAGES[kind]],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          check=False).stdout
    return re.findall(r"Depends: ([^\s<>]+)", text)


def _update_lists(kind):
    say("updating the package lists")
    options = _apt_options(kind)
    command = ["apt-get", "-q", *options, "-o", "APT::Sandbox::User=root", "update"]
    # Lists of our own need no root; and of several sources one may be out of reach.
    if options:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    else:
        _run(_as_root(command))


def _real_package(kind):
    """The package that holds the files: the one that Debian's metapackage depends on."""
    if kind == "memtest":
        return PACKAGES[kind]
    wanted = r"xen-hypervisor-[0-9.]+-amd64" if kind == "xen" else r"linux-image-[0-9].*"
    for attempt in range(2):
        for name in _depends(kind):
            if re.fullmatch(wanted, name):
                return name
        if attempt == 0:
            _update_lists(kind)
    raise GuestError(f"the package sources know no {PACKAGES[kind]}: they must offer Debian's main")


def _as_root(command):
    if os.geteuid() == 0:
        return command
    if shutil.which("sudo"):
        return ["sudo", *command]
    raise GuestError(f"needs to run as root: {' '.join(command)}")


def _unpack(kind, package, folder, keep):
    """Download a package and unpack the members of it that match the patterns `keep`."""
    with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
        start = time.monotonic()
        _run(["apt-get", "-q", *_apt_options(kind), "-o", "APT::Sandbox::User=root", "download",
              package], cwd=temporary)
        deb, = glob.glob(f"{temporary}/*.deb")
        size = os.path.getsize(deb) / 1e6
        tree = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder, "--wildcards", "--no-same-owner",
                        *keep], stdin=tree.stdout, stderr=subprocess.DEVNULL, check=False)
        tree.stdout.close()
        if tree.wait() not in (0, -13, 2):
            raise GuestError(f"{deb} does not unpack")
        say(f"{package}: {size:.0f} MB in {time.monotonic() - start:.0f} s")


def _fetch(kind, modules):
    """The folder of one kind of guest in the cache, filled at the first call."""
    final = os.path.join(cache_folder(), kind)
    if os.path.isdir(final):
        return final
    with _Lock():
        if os.path.isdir(final):
            return final
        package = _real_package(kind)
        say(f"fetching {package}")
        partial = tempfile.mkdtemp(dir=cache_folder())
        try:
            keep = ["./boot/*"] + [f"*/{m}.ko" for m in modules or ()]
            if kind == "cloud":
                keep.append("./lib/modules/*")
            elif modules:
                keep += ["*/drivers/virtio/*", "*/drivers/net/net_failover.ko",
                         "*/net/core/failover.ko", "*/char/hw_random/*", "*/misc/pvpanic/*",
                         "*/fs/jbd2/*", "*/fs/mbcache.ko", "*/lib/*crc*.ko", "*/crypto/*crc*.ko"]
            _unpack(kind, package, partial, keep)
            if kind == "xen":
                _prepare_xen(partial)
            elif kind == "memtest":
                for name in ("x64", "ia32"):
                    os.rename(f"{partial}/boot/memtest86+{name}.bin", f"{partial}/{name}")
                shutil.rmtree(f"{partial}/boot")
            else:
                _prepare_kernel(partial)
            if kind == "i386":  # a kernel of 32 bits runs no program of 64
                _unpack(kind, "busybox-static", partial, ["./bin/busybox"])
            with open(f"{partial}/package", "w", encoding="ascii") as file:
                file.write(package + "\n")
            os.chmod(partial, 0o755)
            os.rename(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return final


def _prepare_kernel(folder):
    vmlinuz, = glob.glob(f"{folder}/boot/vmlinuz-*")
    os.rename(vmlinuz, f"{folder}/vmlinuz")
    config, = glob.glob(f"{folder}/boot/config-*")
    os.rename(config, f"{folder}/config")
    shutil.rmtree(f"{folder}/boot")
    with open(f"{folder}/release", "w", encoding="ascii") as file:
        file.write(vmlinuz.split("vmlinuz-", 1)[1] + "\n")
    extract_vmlinux(f"{folder}/vmlinuz", f"{folder}/vmlinux")
    if os.path.isdir(f"{folder}/usr/lib/modules"):  # where later suites put them
        shutil.copytree(f"{folder}/usr/lib/modules", f"{folder}/lib/modules", dirs_exist_ok=True)


def _prepare_xen(folder):
    image, = glob.glob(f"{folder}/boot/xen-*-amd64.gz")
    with open(f"{folder}/xen.gz", "wb") as out, open(image, "rb") as source:
        shutil.copyfileobj(source, out)
    with open(f"{folder}/xen", "wb") as out:
        subprocess.run(["gzip", "-dc", image], stdout=out, check=True)
    shutil.rmtree(f"{folder}/boot")


def extract_vmlinux(vmlinuz, vmlinux):
    """The ELF image inside a bzImage. Its place: Documentation/arch/x86/boot.rst, payload_offset
    and payload_length, counted from the protected-mode code."""
    with open(vmlinuz, "rb") as file:
        image = file.read()
    if image[0x202:0x206] != b"HdrS":
        raise GuestError(f"{vmlinuz} is no bzImage")
    start = ((image[0x1f1] or 4) + 1) * 512
    offset = start + int.from_bytes(image[0x248:0x24c], "little")
    length = int.from_bytes(image[0x24c:0x250], "little")
    payload = image[offset:offset + length]
    tools = {b"\x02\x21\x4c\x18": ["lz4", "-dc"], b"\x1f\x8b": ["gzip", "-dc"],
             b"\xfd7zXZ": ["xz", "-dc"], b"\x28\xb5\x2f\xfd": ["zstd", "-dc"]}
    for magic, tool in tools.items():
        if payload.startswith(magic):
            # The payload ends with its unpacked length, which the tools report as trailing garbage.
            data = subprocess.run(tool, input=payload[:-4], stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, check=False).stdout
            break
    else:
        raise GuestError(f"{vmlinuz}: compressed in a way not known here ({payload[:6].hex()})")
    if not data.startswith(b"\x7fELF"):
        raise GuestError(f"{vmlinuz}: the kernel in it does not unpack")
    with open(vmlinux, "wb") as file:
        file.write(data)


# --- what tests ask for ---


class Kernel:
    """A Debian kernel. vmlinuz: the bzImage; vmlinux: the ELF image; folder: where they lie."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        self.vmlinuz = f"{folder}/vmlinuz"
        self.vmlinux = f"{folder}/vmlinux"
        with open(f"{folder}/release", encoding="ascii") as file:
            self.release = file.read().strip()


@functools.lru_cache(maxsize=None)
def kernel(kind="cloud"):
    return Kernel(kind, _fetch(kind, GUEST_KEPT))


@functools.lru_cache(maxsize=None)
def xen():
    """The path of the uncompressed Xen image; beside it stands xen.gz as Debian ships it."""
    return f"{_fetch('xen', None)}/xen"


@functools.lru_cache(maxsize=None)
def memtest(kind):
    """The path of memtest86+, "x64" or "ia32"."""
    return f"{_fetch('memtest', None)}/{kind}"


def initrd(kind="cloud"):
    """The test system for a kernel of that kind: see guest-init for what it does."""
    this = kernel(kind)
    source = os.path.join(HERE, "guest-init")
    path = f"{this.folder}/initrd.cpio"
    newest = max(os.path.getmtime(f) for f in (source, __file__))
    if os.path.exists(path) and os.path.getmtime(path) > newest:
        return path
    archive = cpio.Archive()
    archive.device("/dev/console", "c", 5, 1)
    archive.busybox(f"{this.folder}/bin/busybox" if kind == "i386" else None)
    for folder in ("/proc", "/sys", "/tmp", "/mnt", "/root"):
        archive.folder(folder)
    with open(source, encoding="ascii") as file:
        archive.text("/init", file.read(), 0o755)
    for name, text in GUEST_SCRIPTS.items():
        archive.text(f"/bin/{name}", text, 0o755)
    archive.text("/etc/resolv.conf", "")
    order = cpio.module_order(f"{this.folder}/lib/modules", GUEST_MODULES)
    for module in order:
        archive.file(f"/modules/{os.path.basename(module)}", module, 0o644)
    archive.text("/modules/order", "".join(os.path.basename(m) + "\n" for m in order))
    return archive.save(path)


def prepare(kinds):
    """Fetch and make all that tests need of these kinds; pairs of (path below /guests, file here)."""
    files = []
    for kind in kinds:
        if kind == "xen":
            files += [("xen/xen", xen()), ("xen/xen.gz", xen() + ".gz")]
        elif kind == "memtest":
            files += [(f"memtest/{name}", memtest(name)) for name in ("x64", "ia32")]
        else:
            files += [(f"{kind}/vmlinuz", kernel(kind).vmlinuz),
                      (f"{kind}/vmlinux", kernel(kind).vmlinux),
                      (f"{kind}/initrd.cpio", initrd(kind))]
    return files


def image(kinds):
    """The path of a read-only disk image with KIND/{vmlinuz,vmlinux,initrd.cpio}, xen/xen and
    memtest/{x64,ia32}: what the testbed mounts on /guests."""
    files = prepare(kinds)
    path = os.path.join(cache_folder(), f"guests-{'-'.join(kinds)}.ext4")
    newest = max(os.path.getmtime(os.path.realpath(source)) for _, source in files)
    with _Lock():
        if os.path.exists(path) and os.path.getmtime(path) > newest:
            return path
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            size = 0
            for name, source in files:
                os.makedirs(os.path.dirname(f"{folder}/tree/{name}"), exist_ok=True)
                os.link(os.path.realpath(source), f"{folder}/tree/{name}")
                size += os.path.getsize(source)
            mke2fs = shutil.which("mke2fs", path="/sbin:/usr/sbin:/bin:/usr/bin")
            _run([mke2fs, "-q", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d",
                  f"{folder}/tree", f"{folder}/image", f"{size * 11 // 10 // 1024 + 8192}k"])
            os.rename(f"{folder}/image", path)
    return path


def script_archive(script, files=()):
    """Bytes to append to an initrd: archives may follow one another. The test system runs
    `script`; files is a list of (path in the guest, source, "program" or "file")."""
    archive = cpio.Archive()
    if script is not None:
        archive.text("/test.sh", script, 0o755)
    for path, source, how in files:
        getattr(archive, how)(path, source)
    out = io.BytesIO()
    archive.write(out)
    return out.getvalue()


def script_word(script):
    """The kernel parameter that makes the test system run a (short) script."""
    return "hull.sh=" + base64.b64encode(script.encode()).decode()


def debian_path(kind="small"):
    name = "debian" if kind == "small" else f"debian-{kind}"
    return os.path.join(cache_folder(), f"{name}-{SUITE}-{DEBIAN_VERSION}.ext4")


def debian(kind="small"):
    """The path of a disk image with a Debian root file system: an ext4 file system without a
    partition table. small: root logs in on ttyS0 by itself; full: as Debian is installed, and root
    has no password. Callers copy it before they write to it."""
    path = debian_path(kind)
    if os.path.exists(path):
        return path
    this = kernel("cloud")
    with _Lock():
        if not os.path.exists(path):
            start = time.monotonic()
            say("making a Debian disk image (once, a minute or so)")
            partial = tempfile.mkdtemp(prefix="hull-debian-")
            try:
                _make_debian(partial, kind, this, path)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            say(f"{path}: {os.stat(path).st_blocks * 512 / 1e6:.0f} MB, "
                f"{time.monotonic() - start:.0f} s")
    return path


def _make_debian(folder, kind, this, path):
    tar = f"{folder}/root.tar"
    _run(["mmdebstrap", "--quiet", "--variant=minbase",
          f"--include={','.join(DEBIAN_PACKAGES[kind])}",
          "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
          "--dpkgopt=path-exclude=/usr/share/locale/*", SUITE, tar])
    # Owners and device nodes need root, or fakeroot that remembers them for mke2fs.
    script = f"""set -e
mkdir {folder}/root
tar -x -p -f {tar} -C {folder}/root
rm {tar}
sh {HERE}/debian-setup {kind} {folder}/root {this.folder}
cd {folder}/root
mke2fs -q -t ext4 -L debian -E root_owner=0:0 -d . {path}.part {DEBIAN_SIZE}
"""
    fake = [] if os.geteuid() == 0 else ["fakeroot"]
    environment = dict(os.environ, PATH=os.environ["PATH"] + ":/sbin:/usr/sbin")
    try:
        _run([*fake, "sh", "-c", script], env=environment)
        os.rename(f"{path}.part", path)
    finally:
        if os.path.exists(f"{path}.part"):
            os.unlink(f"{path}.part")
        if fake and os.path.isdir(f"{folder}/root"):
            subprocess.run(["chmod", "-R", "u+rwX", f"{folder}/root"], check=False)
