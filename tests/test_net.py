# SPDX-License-Identifier: Apache-2.0
"""Networks: the user network and tap, both ways, with the offloads that they promise."""

import hashlib
import os

import pytest

from machine import NO_PART
from test_disk import EVENT_IDX, INDIRECT_DESC, RING_PACKED, VERSION_1, features

BRIEF = pytest.mark.not_on("soft", reason=NO_PART)
MIB = 1 << 20
# Feature bits: virtio 1.2, section 5.1.3.
CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6 = 0, 1, 7, 8, 11, 12
MRG_RXBUF, STATUS, CTRL_VQ, MQ = 15, 16, 17, 22
TAP = "hulltap0"
TAP_HOST, TAP_GUEST = "10.9.0.1", "10.9.0.2"


@pytest.fixture
def server(host):
    """A web server on the host with a file; yields (port, SHA-256 of /file, its bytes)."""
    data = os.urandom(8 * MIB)
    host.put(f"{host.work}/www/file", data)
    port = 8000
    with host.spawn(f"exec httpd -f -p {port} -h {host.work}/www", terminal=False):
        host.run(f"n=0; until wget -q -O /dev/null http://127.0.0.1:{port}/file; do "
                "n=$((n+1)); [ $n -lt 50 ] || exit 1; usleep 100000; done").check()
        yield port, hashlib.sha256(data).hexdigest(), data


@pytest.fixture
def tap(host):
    host.run(f"ip tuntap add dev {TAP} mode tap 2>/dev/null || tunctl -t {TAP}; "
            f"ip addr add {TAP_HOST}/24 dev {TAP} && ip link set {TAP} up").check()
    yield TAP
    host.run(f"ip link del {TAP} 2>/dev/null || tunctl -d {TAP}")


@pytest.fixture
def tap_queues(host):
    """One with several queues: busybox cannot make these, a few lines of C can."""
    host.run("mknetdev hulltap1 2").check()
    host.run(f"ip addr add {TAP_HOST}/24 dev hulltap1 && ip link set hulltap1 up").check()
    yield "hulltap1"
    host.run("ip link del hulltap1")


def fetch(port, address):
    return f"""
        echo sum=$(wget -q -O - http://{address}:{port}/file | sha256sum)
        """


def test_user_network(hull, server):
    """DHCP, a download from the host, an upload to it."""
    port, digest, _ = server
    with hull.host.spawn("nc -l -p 9000 -w 60 | sha256sum", terminal=False) as sink:
        run = hull.boot(f"""
            net-up || exit 1
            ip addr show eth0
            cat /etc/resolv.conf
            {fetch(port, "10.0.2.2")}
            seq 1 200000 >/tmp/up
            echo up=$(sha256sum </tmp/up)
            nc 10.0.2.2 9000 </tmp/up
            """, net="user").good()
        assert sink.wait(20) == 0
        assert sink.output.split()[0] == run.value("up").split()[0]
    assert "10.0.2.15/24" in run.text
    assert "nameserver 10.0.2.3" in run.text
    assert run.value("sum").split()[0] == digest


@BRIEF
def test_user_network_is_the_default(hull, server):
    port, digest, _ = server
    run = hull.boot(f"net-up || exit 1{fetch(port, '10.0.2.2')}", net=None).good()
    assert run.value("sum").split()[0] == digest


@BRIEF
@pytest.mark.needs("users")
def test_user_network_as_an_ordinary_user(hull, server):
    """No rights but those on /dev/kvm."""
    port, digest, _ = server
    run = hull.boot(f"net-up || exit 1{fetch(port, '10.0.2.2')}", net="user",
                        user="hull").good()
    assert run.value("sum").split()[0] == digest


@pytest.mark.whole
def test_no_network(hull):
    run = hull.boot("ls /sys/class/net", net="none").good()
    assert run.text.split() == ["lo"]


def test_forward(hull):
    """A connection from the host into the guest; a second one after it; none to other ports."""
    session = hull.start("""
        net-up || exit 1
        mkdir /www; echo from the guest >/www/index.html
        httpd -p 80 -h /www
        echo READY
        sleep 100
        """, net="user,forward=tcp:127.0.0.1:2280-:80,forward=tcp:127.0.0.1:2281-:81")
    session.expect("READY", 60)
    for _ in range(2):
        result = hull.host.run("timeout 10 wget -q -O - http://127.0.0.1:2280/", timeout=30).check()
        assert result.out == "from the guest\n"
    assert hull.host.run("timeout 5 wget -q -O - http://127.0.0.1:2281/", timeout=30).status != 0


def test_forward_to_a_port_in_use(hull):
    with hull.host.spawn("exec httpd -f -p 2290 -h /", terminal=False):
        hull.host.run("n=0; until nc -z 127.0.0.1 2290 </dev/null; do n=$((n+1)); [ $n -lt 50 ] || "
                      "exit 1; usleep 100000; done")
        result = hull.host.run(hull.command("true", net="user,forward=tcp:127.0.0.1:2290-:80"),
                               timeout=30)
    assert result.status == 1, result.text
    assert "2290" in result.err and len(result.err.strip().splitlines()) == 1, result.err


@pytest.mark.whole
def test_restricted(hull, server):
    """No way out."""
    port, _, _ = server
    run = hull.boot(f"""
        net-up
        timeout 5 wget -q -O /dev/null http://10.0.2.2:{port}/file && echo out=yes || echo out=no
        """, net="user,restricted").good()
    assert run.value("out") == "no"


def test_tap(hull, tap, server):
    """Download and upload with segmentation offload: large packets cross the tap unsplit."""
    port, digest, _ = server
    # The guest serves its file by httpd, which hands over large pieces: nc writes 1 KiB at a time, and
    # those may leave one by one.
    got = f"{hull.host.work}/up"
    with hull.host.spawn(f"nc -l -p 9000 >/dev/null; wget -q -O {got} http://{TAP_GUEST}:8000/up; "
                         f"sha256sum <{got}; echo end | nc {TAP_GUEST} 9001", terminal=False) as sink:
        run = hull.boot(f"""
            ip link set lo up
            ip link set eth0 up; ip addr add {TAP_GUEST}/24 dev eth0
            ping -c 3 -i 0.2 -W 5 {TAP_HOST} || exit 1
            echo features=$(cat /sys/class/net/eth0/device/features)
            rx=$(cat /sys/class/net/eth0/statistics/rx_packets)
            {fetch(port, TAP_HOST)}
            echo packets=$(($(cat /sys/class/net/eth0/statistics/rx_packets) - rx))
            dd if=/dev/urandom of=/tmp/up bs=1M count=8 2>/dev/null
            echo up=$(sha256sum </tmp/up)
            httpd -p 8000 -h /tmp
            tx=$(cat /sys/class/net/eth0/statistics/tx_packets)
            echo now | nc {TAP_HOST} 9000
            nc -l -p 9001 >/dev/null
            echo sent=$(($(cat /sys/class/net/eth0/statistics/tx_packets) - tx))
            """, net=f"tap={tap}").good()
        assert sink.wait(20) == 0
        assert sink.output.split()[0] == run.value("up").split()[0]
    assert run.value("sum").split()[0] == digest
    agreed = features(run)
    for bit in (VERSION_1, INDIRECT_DESC, EVENT_IDX, RING_PACKED, CSUM, GUEST_CSUM, GUEST_TSO4,
                GUEST_TSO6, HOST_TSO4, HOST_TSO6, MRG_RXBUF, STATUS, CTRL_VQ):
        assert bit in agreed, f"feature {bit} is missing: {sorted(agreed)}"
    single = 8 * MIB // 1448
    assert int(run.value("packets")) < single // 2, "received without segmentation offload"
    assert int(run.value("sent")) < single * 3 // 4, "sent without segmentation offload"


@pytest.mark.whole
def test_tap_queues(hull, tap_queues, server):
    port, digest, _ = server
    run = hull.boot(f"""
        ip link set eth0 up; ip addr add {TAP_GUEST}/24 dev eth0
        echo features=$(cat /sys/class/net/eth0/device/features)
        echo queues=$(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)
        {fetch(port, TAP_HOST)}
        """, net=f"tap={tap_queues},queues=2", cpus=2).good()
    assert MQ in features(run)
    assert run.value("queues") == "2"
    assert run.value("sum").split()[0] == digest


@pytest.mark.needs("users")
def test_tap_that_is_missing_for_an_ordinary_user(hull):
    result = hull.host.run(hull.command("true", net="tap=nosuchtap"), timeout=30,
                               user="hull")
    assert result.status == 1
    assert "nosuchtap" in result.err and len(result.err.strip().splitlines()) == 1, result.err


@BRIEF
def test_mac_follows_the_name(hull):
    """The same VM has the same address each time; another VM another one."""
    def mac(name):
        return hull.boot("echo mac=$(cat /sys/class/net/eth0/address)", "--name", name,
                             net="user").good().value("mac")

    first = mac("one")
    assert first == mac("one")
    assert first != mac("two")
    assert int(first[:2], 16) & 3 == 2, "must be a locally administered unicast address"


@BRIEF
def test_mac_can_be_given(hull):
    run = hull.boot("echo mac=$(cat /sys/class/net/eth0/address)",
                    net="user,mac=52:54:00:12:34:56").good()
    assert run.value("mac") == "52:54:00:12:34:56"
