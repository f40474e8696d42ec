# SPDX-License-Identifier: Apache-2.0
"""Initial RAM file systems: "newc" cpio archives made of files, links, device nodes and text, with
no root rights and no temporary folder; and what has to go into one: the shared libraries of a
program, kernel modules in the order of their dependencies."""

import functools
import os
import re
import shutil
import stat
import subprocess


class Archive:
    """Entries by path. Folders on the way to an entry come by themselves."""

    def __init__(self):
        self._entries = {}  # path -> (mode, device, data or the path of a file to read)

    def _add(self, path, mode, data=b"", device=(0, 0)):
        path = path.strip("/")
        parent = os.path.dirname(path)
        if parent and parent not in self._entries:
            self._add(parent, stat.S_IFDIR | 0o755)
        self._entries[path] = (mode, device, data)

    def folder(self, path, mode=0o755):
        self._add(path, stat.S_IFDIR | mode)

    def text(self, path, text, mode=0o644):
        data = text.encode() if isinstance(text, str) else text
        self._add(path, stat.S_IFREG | mode, data)

    def file(self, path, source, mode=None):
        """The file `source` (links followed) under the name `path`."""
        source = os.path.realpath(source)
        if mode is None:
            mode = 0o755 if os.access(source, os.X_OK) else 0o644
        self._add(path, stat.S_IFREG | mode, Source(source))

    def tree(self, path, source):
        for folder, _, names in os.walk(source):
            for name in names:
                full = os.path.join(folder, name)
                self.file(os.path.join(path, os.path.relpath(full, source)), full)

    def link(self, path, target):
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path, kind, major, minor, mode=0o600):
        self._add(path, (stat.S_IFCHR if kind == "c" else stat.S_IFBLK) | mode, b"", (major, minor))

    def program(self, path, source=None):
        """A program with every library that it links, at the places where the loader looks."""
        source = source or path
        self.file(path, source, 0o755)
        for library in libraries(os.path.realpath(source)):
            if library.strip("/") not in self._entries:
                self.file(library, library, 0o755)

    def busybox(self, source=None):
        """source: a busybox other than this machine's (of another architecture: whose names for its
        programs are taken to be the same)."""
        source = source or busybox_path()
        self.file("/bin/busybox", source, 0o755)
        for name in busybox_applets(busybox_path()):
            self.link(f"/bin/{name}", "busybox")
        for folder in ("/sbin", "/usr/bin", "/usr/sbin"):
            self.folder(folder)

    def write(self, out):
        """Write the archive to a binary file object."""
        inode = 0
        for path, (mode, device, data) in self._entries.items():
            if isinstance(data, Source):
                with open(data.path, "rb") as file:
                    data = file.read()
            inode += 1
            self._write_entry(out, path, mode, device, data, inode)
        self._write_entry(out, "TRAILER!!!", 0, (0, 0), b"", 0)
        out.write(bytes(-out.tell() % 512))

    @staticmethod
    def _write_entry(out, path, mode, device, data, inode):
        name = path.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields)
        out.write(head + name + bytes(-(len(head) + len(name)) % 4))
        out.write(data)
        out.write(bytes(-len(data) % 4))

    def unpack(self, folder):
        """The same as a folder of this machine, without the device nodes."""
        for path, (mode, _, data) in self._entries.items():
            full = os.path.join(folder, path)
            if stat.S_ISDIR(mode):
                os.makedirs(full, exist_ok=True)
            elif stat.S_ISLNK(mode):
                os.symlink(data.decode(), full)
            elif stat.S_ISREG(mode):
                if isinstance(data, Source):
                    shutil.copyfile(data.path, full)
                else:
                    with open(full, "wb") as file:
                        file.write(data)
            if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                os.chmod(full, stat.S_IMODE(mode))

    def save(self, path):
        partial = f"{path}.{os.getpid()}"
        with open(partial, "wb") as out:
            self.write(out)
        os.replace(partial, path)
        return path


class Source:
    """Contents to be read from a file when the archive is written."""

    def __init__(self, path):
        self.path = path


def busybox_path():
    for path in ("/bin/busybox", "/usr/bin/busybox"):
        if os.path.exists(path):
            return path
    raise RuntimeError("no busybox: install the package busybox-static (tool/deps run)")


@functools.lru_cache(maxsize=None)
def busybox_applets(path):
    names = subprocess.run([path, "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [name for name in names.split() if name != "busybox"]


@functools.lru_cache(maxsize=None)
def libraries(program):
    """The files that ldd names for a program, the loader among them; none for a static one."""
    result = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, check=False)
    if result.returncode != 0:
        return []
    if "not found" in result.stdout:
        raise RuntimeError(f"{program}: {result.stdout}")
    return re.findall(r"^\s*(?:\S+ => )?(/\S+) \(0x", result.stdout, re.MULTILINE)


def module_depends(path):
    """The names of the modules that a module's own information section asks for."""
    with open(path, "rb") as file:
        found = re.search(rb"\0depends=([^\0]*)\0", file.read())
    return [name for name in found.group(1).decode().split(",") if name] if found else []


def module_order(folder, names):
    """Paths of the modules `names` below `folder` and all they depend on, each after those that it
    needs. A name that has no file there (built into the kernel) is left out."""
    files = {}
    for where, _, found in os.walk(folder):
        for file in found:
            if file.endswith(".ko"):
                files[file[:-3].replace("-", "_")] = os.path.join(where, file)
    order = []

    def visit(name):
        path = files.get(name.replace("-", "_"))
        if path is None or path in order:
            return
        for needed in module_depends(path):
            visit(needed)
        order.append(path)

    for name in names:
        visit(name)
    return order
