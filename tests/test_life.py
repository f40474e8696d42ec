# SPDX-License-Identifier: Apache-2.0
"""How a machine ends and starts again, and in what state it leaves the terminal."""

import re
import signal
import time

import pytest

import machine
from machine import (NO_PART, PANIC, POWEROFF, QUIT, REBOOT, SIGINTED, SIGTERMED, TRIPLE_FAULT)

BRIEF = pytest.mark.not_on("soft", reason=NO_PART)
# Runs until it is stopped, and says so.
FOREVER = "echo READY; while :; do sleep 1; done"


def test_power_off(hull):
    assert hull.boot("true").good().status == POWEROFF


def test_reboot_restarts_within_the_process(hull):
    """The second boot finds what the first wrote to the disk; the process is the same."""
    disk = f"{hull.host.work}/disk"
    hull.host.run(["truncate", "-s", "1M", disk]).check()
    session = hull.start("""
        wait-for /dev/vda
        count=$(dd if=/dev/vda bs=1 count=1 2>/dev/null)
        echo "count=$count."
        case $count in
        2) poweroff -f ;;
        1) next=2 ;;
        *) next=1 ;;
        esac
        echo -n $next | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null
        reboot -f
        sleep 100
        """, "--disk", disk, cpus=2)
    session.expect("count=", 60)
    before = hull.host.run("pidof hull").out.split()
    session.expect(r"count=1\.", 60)
    after = hull.host.run("pidof hull").out.split()
    session.expect(r"count=2\.", 60)
    assert session.wait(30) == POWEROFF
    assert before and before == after


@pytest.mark.whole
def test_reboot_can_end_the_process(hull):
    hull.boot("reboot -f; sleep 100", "--on-reboot", "exit", status=REBOOT)


@pytest.mark.whole
@pytest.mark.parametrize("way", ["a", "k", "p", "t"])
def test_ways_to_reboot(hull, way):
    """Linux resets through ACPI, the keyboard controller, port 0xcf9 and a triple fault."""
    # A triple fault that Linux causes on purpose is a triple fault all the same.
    status = TRIPLE_FAULT if way == "t" else REBOOT
    hull.boot("reboot -f; sleep 100", "--on-reboot", "exit", append=f"reboot={way}", status=status)


def test_panic(hull):
    run = hull.boot("echo c >/proc/sysrq-trigger; sleep 100", append="panic=0", status=PANIC)
    assert "panic" in run.err


@pytest.mark.whole
def test_panic_can_restart(hull):
    session = hull.start("echo BOOTED; sleep 1; echo c >/proc/sysrq-trigger; sleep 100",
                         "--on-panic", "restart", append="panic=0")
    session.expect("BOOTED", 60)
    session.expect("BOOTED", 60)


@pytest.mark.whole
def test_power_button(hull):
    """SIGUSR1 presses it; the guest sees an ACPI event."""
    session = hull.start("""
        wait-for /dev/input/event0
        echo READY
        dd if=/dev/input/event0 bs=24 count=1 2>/dev/null | hexdump -C
        echo PRESSED
        """)
    session.expect("READY", 60)
    time.sleep(0.5)
    session.signal(signal.SIGUSR1)
    session.expect("PRESSED", 20)
    assert session.wait(30) == POWEROFF


@pytest.mark.whole
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, SIGTERMED),
                                            pytest.param(signal.SIGINT, SIGINTED, marks=BRIEF)])
def test_signals(hull, number, status):
    session = hull.start(FOREVER)
    session.expect("READY", 60)
    session.signal(number)
    assert session.wait(10) == status


@pytest.mark.whole
def test_nothing_is_left_behind(hull):
    """No process, no file in the usual places, after an end by signal with a user network."""
    before = hull.host.run("ls -A /tmp /run /dev/shm; pidof hull hull-slirp").out
    session = hull.start(FOREVER, net="user")
    session.expect("READY", 60)
    session.signal(signal.SIGTERM)
    assert session.wait(10) == SIGTERMED
    time.sleep(0.5)
    assert hull.host.run("ls -A /tmp /run /dev/shm; pidof hull hull-slirp").out == before


@pytest.mark.whole
def test_helper_ends_with_its_vm(hull):
    """SIGKILL leaves Hull no chance to clean up; its helper goes all the same."""
    session = hull.start(FOREVER, net="user")
    session.expect("READY", 60)
    assert hull.host.run("pidof hull-slirp").out
    hull.host.run("kill -9 $(pidof hull)").check()
    assert session.wait(10) == machine.SIGKILLED
    time.sleep(1)
    assert not hull.host.run("pidof hull-slirp").out


# --- the terminal ---


def terminal_command(hull, script, *options, **more):
    """Hull between two looks at the terminal's settings."""
    command = hull.command(script, *options, **more)
    return f"stty -g; {command}; echo \"status=$?\"; stty -g; echo END"


def terminal_states(session):
    text = session.output.replace("\r", "")
    states = re.findall(r"^[0-9a-f]+(?::[0-9a-f]+){10,}$", text, re.MULTILINE)
    assert len(states) == 2, text
    return states


@pytest.mark.whole
def test_terminal_is_raw_and_comes_back(hull):
    """A shell over the serial console: line editing is the guest's, Ctrl-C goes to the guest."""
    session = hull.spawn(terminal_command(hull, None))
    session.expect("HULL-INIT", 60)
    session.expect("# ", 20)
    session.send("echo $((6 * 7))\n")
    session.expect("42", 10)
    session.send("sleep 100\n")
    time.sleep(1)
    session.send("\x03")
    session.send("echo interrupted=$?\n")
    session.expect("interrupted=130", 10)
    session.send("poweroff -f\n")
    session.expect("status=0", 30)
    session.expect("END", 10)
    before, after = terminal_states(session)
    assert before == after


@pytest.mark.whole
def test_ctrl_a_x_quits(hull):
    session = hull.spawn(terminal_command(hull, FOREVER))
    session.expect("READY", 60)
    session.send("\x01h")
    session.expect(r"(?i)ctrl-a", 5)
    session.send("\x01x")
    session.expect(f"status={QUIT}", 10)
    session.expect("END", 10)
    before, after = terminal_states(session)
    assert before == after


@pytest.mark.whole
@pytest.mark.parametrize("number, status", [
    ("TERM", SIGTERMED), pytest.param("INT", SIGINTED, marks=BRIEF),
    pytest.param("HUP", 129, marks=BRIEF), pytest.param("ABRT", 134, marks=BRIEF)])
def test_terminal_comes_back_after_a_signal(hull, number, status):
    session = hull.spawn(terminal_command(hull, FOREVER))
    session.expect("READY", 60)
    hull.host.run(f"kill -{number} $(pidof hull)").check()
    session.expect(f"status={status}", 10)
    session.expect("END", 10)
    before, after = terminal_states(session)
    assert before == after


@BRIEF
def test_terminal_comes_back_after_a_panic(hull):
    session = hull.spawn(terminal_command(hull, "echo c >/proc/sysrq-trigger; sleep 100",
                                          append="panic=0"))
    session.expect(f"status={PANIC}", 60)
    session.expect("END", 10)
    before, after = terminal_states(session)
    assert before == after


@pytest.mark.whole
def test_pipe_as_console(hull):
    """Input and output that are no terminal: commands in, output out, no escape keys."""
    command = hull.command(None)
    result = hull.host.run(f"echo 'echo x$((40 + 2))x; poweroff -f' | {command}", timeout=90)
    assert result.status == POWEROFF, result.text
    assert "x42x" in result.out


@pytest.mark.whole
def test_much_output_is_not_lost(hull):
    """A reader slower than the guest: the guest waits, nothing is dropped."""
    session = hull.start("seq 1 1500 | sed 's/^/line /'")
    result = session.result(120)
    assert result.status == POWEROFF
    lines = re.findall(r"^line (\d+)\r?$", result.out, re.MULTILINE)
    assert lines == [str(n) for n in range(1, 1501)]
