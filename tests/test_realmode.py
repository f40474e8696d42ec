# SPDX-License-Identifier: Apache-2.0
"""16-bit software: realmode.S prints the same on every engine."""

import os

import pytest

import machine


def check(hull, name, how=""):
    path = os.path.join(machine.HERE, f"{name}.expected")
    with open(path, encoding="ascii") as file:
        wanted = [line for line in file.read().splitlines() if line and not line.startswith("#")]
    result = hull.host.run(["hull", "run", "--engine", hull.host.engine + how, "--net", "none",
                            "--memory", "16M", "--exit-port", "--kernel", f"/stubs/{name}"])
    assert result.out.splitlines() == wanted, result.text
    assert result.status == (0x2a << 1) | 1, result.text


SOFT = pytest.mark.not_on("kvm", reason="it is the soft engine's translator")


@pytest.mark.parametrize("how", ["", pytest.param(",translate=flush", marks=SOFT)])
def test_real_mode(hull, how):
    """And unreal mode, virtual-8086 mode, gates and tasks; also with each block translated at once."""
    check(hull, "realmode", how)


@pytest.mark.not_on("testbed", reason="its processor knows no limits of segments")
def test_limits(hull):
    check(hull, "realmode-limits")
