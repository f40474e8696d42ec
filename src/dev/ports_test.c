/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/ports.h"

#include <unistd.h>

#include "base/log.h"
#include "dev/test_machine.h"

static void test_post(struct test_machine *machine)
{
    struct device *dev;
    struct err err = ERR_INIT;

    test_table(&post_state_table);
    is_int(post_new(&dev, &machine->env, &err), 0, "post_new()");
    out(machine, PORTS_POST, 0x55, 1);
    is_int(in(machine, PORTS_POST, 1), 0x55, "the last code is kept");
    device_reset(dev);
    is_int(in(machine, PORTS_POST, 1), 0, "until reset");
    device_fini(dev);
}

static void type(struct test_machine *machine, const char *text)
{
    bus_upcalls.pio_write(machine->bus, PORTS_DEBUGCON, 1, text, (uint32_t)strlen(text));
}

static size_t file_text(const char *path, char *buf, size_t len)
{
    FILE *file = fopen(path, "r");
    size_t got = file ? fread(buf, 1, len - 1, file) : 0;

    buf[got] = 0;
    if (file)
        fclose(file);
    return got;
}

static void test_debugcon(struct test_machine *machine)
{
    static char text[4 * MIB], line[1024];
    char path[] = "/tmp/hull-ports-test-XXXXXX", spec[64];
    int fd = mkstemp(path);
    struct device *dev;
    struct err err = ERR_INIT;

    snprintf(spec, sizeof(spec), "debug,file=%s", path);
    if (fd < 0 || log_configure(spec, &err) < 0)
        abort();
    is_int(debugcon_new(&dev, &machine->env, &err), 0, "debugcon_new()");
    is_int(in(machine, PORTS_DEBUGCON, 1), 0xe9, "it says that it is there");
    type(machine, "SeaBIOS (version x)\r\nbell\aend\npart");
    file_text(path, text, sizeof(text));
    ok(strstr(text, "SeaBIOS (version x)\n"), "a line reaches the log");
    ok(strstr(text, "bell?end\n"), "without control characters");
    ok(!strstr(text, "part"), "an incomplete line waits");
    device_reset(dev);
    file_text(path, text, sizeof(text));
    ok(strstr(text, "part\n"), "until reset");

    memset(line, 'x', sizeof(line) - 1);
    for (unsigned i = 0; i < 3 * 1024; i++)
        type(machine, line);
    ok(file_text(path, text, sizeof(text)) < 2 * MIB, "a guest cannot fill the log");
    device_fini(dev);
    log_configure("info", &err);
    close(fd);
    unlink(path);
}

static void test_exit_port(struct test_machine *machine)
{
    struct device *dev;
    struct err err = ERR_INIT;

    is_int(exit_port_new(&dev, &machine->env, &err), 0, "exit_port_new()");
    out(machine, PORTS_EXIT, 0x10, 4);
    ok(machine->exits == 1 && machine->exit_value == 0x10, "a doubleword");
    out(machine, PORTS_EXIT, 0x22, 1);
    ok(machine->exits == 2 && machine->exit_value == 0x22, "a byte");
    is_int(in(machine, PORTS_EXIT, 4), 0xffffffff, "nothing to read");
    device_fini(dev);
}

int main(void)
{
    struct test_machine machine = {0};

    test_machine_init(&machine);
    test_post(&machine);
    test_debugcon(&machine);
    test_exit_port(&machine);
    test_machine_fini(&machine);
    return tap_done();
}
