# SPDX-License-Identifier: Apache-2.0
"""A Debian as it is installed: systemd brings it up without a failed unit, and its programs compute
what the same programs compute on this machine.

HULL_DEBIAN_MB=100: how much data is encrypted, hashed and compressed (default 4)."""

import base64
import os
import shutil
import subprocess

import pytest

import guests

MEGABYTES = int(os.environ.get("HULL_DEBIAN_MB") or 4)
LOGIN = r"hull login: "

PROGRAM = r"""
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

int main(void)
{
    enum { COUNT = 20000 };
    static double values[COUNT];
    unsigned long state = 1, hash = 14695981039346656037UL;
    long double sum = 0;
    for (int i = 0; i < COUNT; i++) {
        state = state * 6364136223846793005UL + 1442695040888963407UL;
        values[i] = sin((double)(state >> 40)) * sqrt((double)(state >> 33));
        sum += (long double)values[i] * values[i];
    }
    qsort(values, COUNT, sizeof(values[0]), by_value);
    for (int i = 0; i < COUNT; i++) {
        unsigned char bytes[sizeof(double)];
        memcpy(bytes, &values[i], sizeof(bytes));
        for (unsigned k = 0; k < sizeof(bytes); k++)
            hash = (hash ^ bytes[k]) * 1099511628211UL;
    }
    printf("%016lx %.17Lg %a %a\n", hash, sum, values[0], values[COUNT / 2]);
    return 0;
}
"""

PYTHON = r"""
import decimal, fractions, hashlib, json, math, random, re, zlib
random.seed(7)
values = [random.gauss(0, 1) for _ in range(5000)]
print(hashlib.sha256(json.dumps(values).encode()).hexdigest())
print(hashlib.blake2b(b"x" * 100000).hexdigest()[:32], zlib.crc32(b"y" * 100001))
print(math.fsum(math.exp(v) * math.erf(v) for v in values), pow(3, 10 ** 5, 10 ** 40 + 1))
print(fractions.Fraction(math.pi).limit_denominator(10 ** 6), decimal.Decimal(2).sqrt())
print(sorted(re.findall(r"\w+", "the quick brown fox" * 3))[-3:])
"""

# The same words for the guest's shell and this machine's.
WORK = """
cd {folder}
head -c {megabytes}M /dev/zero | openssl enc -aes-128-ctr -nosalt -K {key} -iv {key} >random
base64 random >text
for hash in sha256 sha1 sha512 md5; do openssl dgst -$hash random; done
for cipher in aes-256-cbc aes-256-ctr chacha20; do
    openssl enc -$cipher -nosalt -K {key}{key} -iv {key} -in text | openssl dgst -sha256
done
gzip -n -6 <text >text.gz; openssl dgst -sha256 text.gz; gzip -d <text.gz | cmp - text && echo same
gcc -O2 -o program program.c -lm && ./program
gcc -O0 -mfpmath=387 -o program program.c -lm && ./program
python3 program.py
"""
KEY = "000102030405060708090a0b0c0d0e0f"


def work(folder):
    return WORK.format(folder=folder, megabytes=MEGABYTES, key=KEY)


def here(command):
    """What this machine's shell prints."""
    result = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, check=True)
    return result.stdout.decode()


def installed(folder, image):
    """What this machine's apt says of the packages of the image."""
    status = f"{folder}/status"
    subprocess.run(["/sbin/debugfs", "-R", f"dump /var/lib/dpkg/status {status}", image],
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    os.makedirs(f"{folder}/lists/partial")
    return here(f"apt-cache -o Dir::State::status={status} -o Dir::State::lists={folder}/lists "
                f"-o Dir::Cache={folder} dumpavail | openssl dgst -sha256")


class Shell:
    """The guest's shell on its serial console."""

    def __init__(self, session):
        self.session = session

    def run(self, command, timeout=300):
        """What the command prints; it must end with status 0."""
        self.session.send(f"echo BE''GIN; {command}; echo EN''D=$?\n")
        self.session.expect(r"BEGIN\r?\n", 60)
        text = self.session.expect(r"((?:.*\n)*?)END=(\d+)\r?\n", timeout)
        assert text.group(2) == b"0", text.group(0).decode()
        return text.group(1).decode().replace("\r", "")

    def put(self, path, text):
        """A file, in lines that a terminal takes."""
        coded = base64.b64encode(text.encode()).decode()
        self.run(f": >{path}.coded")
        for at in range(0, len(coded), 1000):
            self.run(f"echo {coded[at:at + 1000]} >>{path}.coded")
        self.run(f"base64 -d <{path}.coded >{path}")


@pytest.mark.whole
@pytest.mark.not_on("testbed-kvm", reason="the image takes the memory that the testbed has for all")
def test_debian(hull, tmp_path):
    image = guests.debian("full")
    disk = f"{hull.host.work}/disk"
    hull.host.run(f"cp /guests/{os.path.basename(image)} {disk}", timeout=120).check()
    session = hull.start(None, "--disk", disk, cpus=2, memory="768M", net="user",
                         append="hull.root=/dev/vda")
    session.expect(LOGIN, 300)
    session.send("root\n")
    session.expect(r"root@hull:~#", 120)
    session.send("bind 'set enable-bracketed-paste off'; stty -echo; PS1=\n")
    shell = Shell(session)
    assert shell.run("systemctl is-system-running --wait").strip() == "running", \
        shell.run("systemctl --failed --no-pager --plain; journalctl -b -p err --no-pager | cat")
    assert shell.run("systemctl --failed --no-legend --plain").strip() == ""
    assert int(shell.run("nproc")) == 2

    folder = str(tmp_path)
    for name, text in (("program.c", PROGRAM), ("program.py", PYTHON)):
        with open(f"{folder}/{name}", "w", encoding="ascii") as file:
            file.write(text)
        shell.put(f"/tmp/{name}", text)
    shell.put("/tmp/work", work("/tmp"))
    expected = here(work(folder)).splitlines()
    found = shell.run("sh /tmp/work 2>&1", 600 + 40 * MEGABYTES).splitlines()
    assert found == expected
    assert shell.run("apt-cache dumpavail | openssl dgst -sha256") == installed(folder, image)
    session.send("poweroff\n")
    assert session.wait(120) == 0
