# SPDX-License-Identifier: Apache-2.0
"""End-to-end tests. Each runs in every place (PLACES) that this machine has and that it is not marked
not_on.

Options by environment:
    HULL_HOSTS=testbed    some places only: their names, or parts of them (local, soft), by commas
    HULL_WHOLE=1          also what is marked `whole` for a place: minutes of booting there for what
                          another place shows as well
    HULL_BUILD=FOLDER     where the programs are (default: build)
    HULL_KILLS=50         rounds of the durability test
    HULL_WORKERS=1        one testbed at a time instead of two
    HULL_DEBIAN_MB=100    data for a Debian to compute on"""

import collections
import json
import os
import re
import sys

import pytest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import guests  # noqa: E402
import machine  # noqa: E402
import testbed  # noqa: E402

BUILD = os.path.abspath(os.environ.get("HULL_BUILD") or os.path.join(testbed.TOP, "build"))
HULL = os.path.join(BUILD, "hull")
KINDS = ("cloud", "standard", "rt", "i386", "xen", "memtest")
PLACES = ("testbed-kvm", "local-soft", "local-kvm")
PROGRAMS = ("hull", "hull-slirp")
WHOLE = os.environ.get("HULL_WHOLE")


def is_in(place, name):
    """Is it that place, or does the name say a part of it?"""
    return name == place or name in place.split("-")


def local_kvm_lacks():
    """Why KVM on this machine is left out; empty when it is not."""
    if os.path.exists(HULL) and testbed.kvm_is_good(HULL):
        return ""
    return "KVM of this machine is missing or no good (see `hull host`): the testbed's is tested"


def pytest_generate_tests(metafunc):
    if "any_host" not in metafunc.fixturenames:
        return
    wanted = (os.environ.get("HULL_HOSTS") or ",".join(PLACES)).split(",")
    places = [place for place in PLACES if any(is_in(place, name) for name in wanted)]
    if "local-kvm" in places and local_kvm_lacks():
        places.remove("local-kvm")
    metafunc.parametrize("any_host", places, scope="session")


def pytest_collection_modifyitems(config, items):
    """Leave out what is not for a place."""
    def is_for_its_place(item):
        place = getattr(item, "callspec", None) and item.callspec.params.get("any_host")
        marks = list(item.iter_markers("not_on"))
        assert all(mark.kwargs.get("reason") for mark in marks), f"{item.nodeid}: no reason"
        for mark in item.iter_markers("whole"):
            if place and not WHOLE and is_in(place, mark.args[0] if mark.args else "soft"):
                return False
        return not place or not any(is_in(place, mark.args[0]) for mark in marks)

    left_out = [item for item in items if not is_for_its_place(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if is_for_its_place(item)]


def require_programs():
    for name in PROGRAMS:
        if not os.path.exists(os.path.join(BUILD, name)):
            pytest.fail(f"{BUILD}/{name} is not built", pytrace=False)


def sanitized_programs():
    """(name in the testbed, program) of the sanitizers' builds that exist."""
    found = []
    for variant in ("asan", "tsan"):
        for name in PROGRAMS:
            path = os.path.join(testbed.TOP, "build", variant, name)
            if os.path.exists(path):
                found.append((f"/{variant}/{name}", path))
    return found


@pytest.fixture(scope="session")
def hosts():
    """Hosts by name, started when first asked for."""
    require_programs()
    running = {}

    def get(name):
        if name in running and not running[name].answers():
            # The test before this one has failed of it. An emulated processor may have bugs too.
            print(f"\n{name} does not answer and is started again: {running[name].diagnosis()}",
                  file=sys.stderr)
            running.pop(name).stop()
        if name not in running:
            programs = {"programs": [os.path.join(BUILD, name) for name in PROGRAMS],
                        "more_programs": sanitized_programs() + machine.bare_programs()}
            if name == "testbed-kvm":
                running[name] = testbed.Testbed(memory=testbed.default_memory(), guest_kinds=KINDS,
                                                peers=True, **programs).start()
            else:
                engine = name.removeprefix("local-")
                running[name] = testbed.Enclosure(engine, guest_kinds=KINDS, peers=engine == "kvm",
                                                  **programs).start()
        return running[name]

    yield get
    for host in running.values():
        host.stop()


@pytest.fixture
def host(request, any_host, hosts):
    """A host to run Hull on; host.work is a fresh folder that is removed afterwards."""
    this = hosts(any_host)
    for mark in request.node.iter_markers("needs"):
        if not getattr(this, f"has_{mark.args[0]}")():
            pytest.skip(f"{any_host} has no {mark.args[0].replace('_', ' ')} (for want of root rights)")
    this.work = this.run("mktemp -d /scratch/test.XXXXXX").check().out.strip()
    this.run(["chmod", "777", this.work])
    yield this
    this.run(f"cd /; rm -rf {this.work}", timeout=60)


@pytest.fixture
def hull(host):
    """Start VMs on the host: a machine.Starter; what still runs at the end is killed."""
    with machine.Starter(host) as starter:
        yield starter


# --- the last line ---


def pytest_sessionfinish(session):
    path = os.environ.get("HULL_COUNTS")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not path or reporter is None or hasattr(session.config, "workerinput"):
        return
    stats = collections.defaultdict(list, reporter.stats)
    skips = [str(report.longrepr[2]).removeprefix("Skipped: ") for report in stats["skipped"]]
    with open(path, "w", encoding="utf-8") as file:
        # With --dist loadgroup a test's name ends in @GROUP.
        failed = sorted({re.sub("@[^@]*$", "", report.nodeid)
                         for report in stats["failed"] + stats["error"]})
        json.dump({"passed": len(stats["passed"]), "failed": failed, "skips": skips}, file)
