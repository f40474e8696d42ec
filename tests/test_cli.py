# SPDX-License-Identifier: Apache-2.0
"""The command line: bad input gets one clear line and a status, nothing is left behind; machines
in files; what hull says about itself and the host."""

import json
import re
import signal

import pytest

import machine
from machine import ERROR, NO_PART, USAGE, POWEROFF

# Files that the table below names.
PREPARE = """
cd {work}
: >empty
echo 'this is no kernel' >text
head -c 100000 /dev/urandom >random
head -c 60000 {guests}/cloud/vmlinuz >short-bzimage
head -c 3000000 {guests}/cloud/vmlinux >short-elf
head -c 1000 {guests}/xen/xen >short-xen
mkdir folder
truncate -s 1M disk
truncate -s 3G big
echo '{{"cpus": 2,' >broken.json
echo '{{"memroy": 2}}' >unknown.json
echo '{{"cpus": "many"}}' >type.json
chmod 777 . ; chmod 666 disk
"""

OF_KVM = "it is about the rights on /dev/kvm, or about there being none"

KERNEL = "--kernel {guests}/cloud/vmlinux"

# (arguments, status, what the one line must say)
BAD = [
    ("", USAGE, r"kernel"),
    ("--kernel {work}/missing", ERROR, r"missing.*(No such file|does not exist)"),
    ("--kernel {work}/folder", ERROR, r"folder.*(directory|folder)"),
    ("--kernel {work}/empty", ERROR, r"empty"),
    ("--kernel {work}/text", ERROR, r"text.*(kernel|image)"),
    ("--kernel {work}/random", ERROR, r"random.*(kernel|image)"),
    ("--kernel {work}/short-bzimage", ERROR, r"short-bzimage"),
    ("--kernel {work}/short-elf", ERROR, r"short-elf"),
    ("--kernel {work}/short-xen", ERROR, r"short-xen"),
    ("--kernel {guests}/cloud/vmlinuz --boot multiboot", ERROR, r"(?i)multiboot"),
    (KERNEL + " --initrd {work}/missing", ERROR, r"missing.*(No such file|does not exist)"),
    (KERNEL + " --initrd {work}/big --memory 512M", ERROR, r"big.*(fit|memory|RAM)"),
    (KERNEL + " --memory 1M", (ERROR, USAGE), r"(?i)memory"),
    (KERNEL + " --memory 32M", ERROR, r"(?i)memory|RAM"),
    (KERNEL + " --memory 900T", (ERROR, USAGE), r"(?i)memory"),
    (KERNEL + " --memory lots", USAGE, r"memory.*lots|lots.*memory"),
    (KERNEL + " --cpus 0", USAGE, r"cpus"),
    (KERNEL + " --cpus 4000", (ERROR, USAGE), r"4000.*(cpus|vCPUs)|cpus.*4000"),
    (KERNEL + " --cpus two", USAGE, r"cpus.*two"),
    (KERNEL + " --disk {work}/missing", ERROR, r"missing.*(No such file|does not exist)"),
    (KERNEL + " --disk {work}/folder", ERROR, r"folder.*(directory|folder)"),
    (KERNEL + " --disk {work}/disk,readonyl", USAGE, r"readonyl.*readonly"),
    (KERNEL + " --disk {work}/disk,cache=fast", USAGE, r"fast.*direct"),
    (KERNEL + " --disk /dev/zero", ERROR, r"/dev/zero"),
    (KERNEL + " --net usr", USAGE, r"usr.*user"),
    (KERNEL + " --net user,forward=tcp:1-2-3", USAGE, r"forward"),
    (KERNEL + " --net user,forward=tcp:127.0.0.1:99999-:22", USAGE, r"99999"),
    (KERNEL + " --net user,mac=01:00:00:00:00:01", USAGE, r"(?i)mac|multicast"),
    (KERNEL + " --net tap=averyveryverylongname", (ERROR, USAGE), r"averyveryverylongname"),
    (KERNEL + " --dsik x", USAGE, r"dsik.*'(--)?disk'"),
    (KERNEL + " --memroy 1G", USAGE, r"memroy.*'(--)?memory'"),
    (KERNEL + " disk.img", USAGE, r"disk\.img"),
    (KERNEL + " --append", USAGE, r"append"),
    (KERNEL + " --engine sfot", (ERROR, USAGE), r"sfot.*'soft'"),
    (KERNEL + " --engine kvm,clock=virtual", (ERROR, USAGE), r"virtual clock"),
    (KERNEL + " --engine kvm,translate=off", (ERROR, USAGE), r"'translate'"),
    (KERNEL + " --engine kvm,tlb=one", (ERROR, USAGE), r"'tlb'"),
    (KERNEL + " --engine kvm,code-cache=8M", (ERROR, USAGE), r"'code-cache'"),
    (KERNEL + " --engine kvm,trace=/tmp/trace", (ERROR, USAGE), r"'trace'"),
    (KERNEL + " --engine soft,trace=/tmp/trace", (ERROR, USAGE), r"clock=virtual"),
    (KERNEL + " --engine soft,clock=virtual,compare=/nowhere/trace", (ERROR, USAGE), r"/nowhere/trace"),
    (KERNEL + " --engine soft,translate=of", (ERROR, USAGE), r"'of'.*off"),
    (KERNEL + " --serial nonsense", (ERROR, USAGE), r"nonsense"),
    (KERNEL + " --serial stdio --serial stdio", (ERROR, USAGE), r"stdio"),
    (KERNEL + " --console file:/no/such/folder/x", ERROR, r"/no/such/folder/x"),
    ("--kernel {guests}/cloud/vmlinuz --boot bzimage --module {work}/text", (ERROR, USAGE), r"module"),
    ("--config {work}/missing", (ERROR, USAGE), r"missing"),
    ("--config {work}/broken.json", USAGE, r"broken\.json"),
    ("--config {work}/unknown.json", USAGE, r"memroy.*memory"),
    ("--config {work}/type.json", USAGE, r"cpus"),
]


@pytest.fixture(scope="module")
def places(any_host, hosts):
    """The folder of the bad files, once."""
    host = hosts(any_host)
    work = host.run("mktemp -d /scratch/cli.XXXXXX").check().out.strip()
    host.run(PREPARE.format(work=work, guests=host.guests), timeout=60).check()
    yield {"work": work, "guests": host.guests}
    host.run(["rm", "-rf", work])


@pytest.mark.parametrize("arguments, status, says", BAD, ids=[row[0] or "nothing" for row in BAD])
def test_bad_input(host, places, arguments, status, says):
    before = host.run("ls -A /tmp /run /dev/shm; pidof hull hull-slirp; ip -o link | wc -l").out
    result = host.run(f"hull run {arguments.format(**places)}", timeout=20)
    wanted = status if isinstance(status, tuple) else (status,)
    assert result.status in wanted, result.text
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("hull: "), result.err
    assert re.search(says, lines[0]), lines[0]
    assert not result.out, result.out
    assert host.run("ls -A /tmp /run /dev/shm; pidof hull hull-slirp; ip -o link | wc -l"
                    ).out == before


@pytest.mark.not_on("soft", reason=OF_KVM)
@pytest.mark.needs("users")
def test_no_permission_on_kvm(host, places):
    result = host.run(f"hull run --engine kvm {KERNEL.format(**places)}", user="other", timeout=20)
    assert result.status == ERROR
    assert len(result.err.strip().splitlines()) == 1, result.err
    assert "/dev/kvm" in result.err and "usermod -aG kvm" in result.err, result.err


@pytest.mark.not_on("soft", reason=OF_KVM)
def test_no_kvm_at_all(host, places):
    host.run("mv /dev/kvm /dev/kvm-away").check()
    try:
        result = host.run(f"hull run --engine kvm {KERNEL.format(**places)}", timeout=20)
        report = host.run("hull host")
    finally:
        host.run("mv /dev/kvm-away /dev/kvm").check()
    assert result.status == ERROR
    assert "/dev/kvm" in result.err and len(result.err.strip().splitlines()) == 1, result.err
    assert report.status != 0 and "/dev/kvm" in report.text


@pytest.mark.needs("users")
def test_unreadable_kernel(host, places):
    host.run("cp {guests}/xen/xen {work}/secret; chmod 600 {work}/secret".format(**places)).check()
    result = host.run("hull run --kernel {work}/secret".format(**places), user="hull", timeout=20)
    assert result.status == ERROR
    assert re.search(r"secret.*Permission denied", result.err), result.err


def test_unknown_command(host):
    result = host.run("hull rnu")
    assert result.status == USAGE
    assert "hull run" in result.err


@pytest.mark.parametrize("words", ["--help", "run --help", "host --help", "--version"])
def test_help(host, words):
    result = host.run(f"hull {words}")
    assert result.status == 0 and result.out and not result.err, result.text


def test_config_round_trip(host, places):
    """--print-config, read again, prints the same; the command line changes what a file says."""
    work = places["work"]
    options = (f"--name round --cpus 3 --memory 640M,shared,thp=off {KERNEL} --initrd "
               "{guests}/cloud/initrd.cpio --append 'a b=\"c d\" e\\f' --disk {work}/disk,readonly,"
               "serial=abc,queues=2 --disk {work}/big,cache=writeback --net user,forward="
               "tcp:127.0.0.1:2222-:22,forward=udp:127.0.0.1:5353-:53,restricted --net "
               "tap=tap7,mac=52:54:00:00:00:07 --serial stdio --serial null --console "
               "file:{work}/console --rng off --hpet on --exit-port --debugcon --stats --on-reboot exit "
               "--on-panic continue --on-triple-fault restart").format(**places)
    first = host.run(f"hull run {options} --print-config").check().out
    described = json.loads(first)
    assert described["cpus"] == 3
    host.put(f"{work}/machine.json", first)
    second = host.run(f"hull run --config {work}/machine.json --print-config").check().out
    assert first == second
    third = json.loads(host.run(f"hull run --config {work}/machine.json --cpus 5 --print-config"
                                ).check().out)
    assert third["cpus"] == 5
    assert {**third, "cpus": 3} == described


@pytest.mark.not_on("soft", reason=NO_PART)
def test_machine_from_file(hull):
    """The machine of a file boots like that of the command line."""
    command = hull.command("echo cpus=$(nproc)", cpus=2)
    hull.host.run(f"{command} --print-config >{hull.host.work}/vm.json").check()
    result = hull.host.run(f"hull run --config {hull.host.work}/vm.json", timeout=90)
    assert result.status == POWEROFF, result.text
    assert "cpus=2" in result.out


def test_host(host):
    result = host.run("hull host")
    assert result.status == 0 or host.engine == "soft", "it is 0 where KVM is good"
    for word in ("/dev/kvm", "huge pages", "tun", "cgroup", "namespaces"):
        assert re.search(word, result.out, re.IGNORECASE), result.out
    report = json.loads(host.run("hull host --json").out)
    assert report


@pytest.mark.not_on("soft", reason=OF_KVM)
@pytest.mark.needs("users")
def test_host_for_someone_without_rights(host):
    result = host.run("hull host", user="other")
    assert result.status != 0
    assert "usermod -aG kvm" in result.out, result.out


def test_log(hull):
    path = f"{hull.host.work}/log"
    session = hull.start("echo READY; sleep 100", "--log", f"info,file={path}")
    session.expect("READY", 60)
    session.signal(signal.SIGUSR1)
    session.signal(signal.SIGTERM)
    assert session.wait(20) == machine.SIGTERMED
    assert "power button" in hull.host.get(path).decode()
    assert "power button" not in session.error_output
