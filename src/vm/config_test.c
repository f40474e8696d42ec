/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/config.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"

static struct vm_config config;
static struct err err;

static void begin(void)
{
    config_init(&config, &err);
}

static int set(const char *option, const char *value)
{
    memset(&err, 0, sizeof(err));
    return config_set(&config, option, value, &err);
}

static void test_scalars(void)
{
    begin();
    is_int(config.cpus, 1, "one CPU by default");
    is_int(config.memory_bytes, 512 * MIB, "512 MiB by default");
    is_int(set("cpus", "16"), 0, "--cpus 16");
    is_int(config.cpus, 16, "is taken");
    is_int(set("cpus", "0"), -EINVAL, "--cpus 0 is refused");
    is_int(set("cpus", "4x"), -EINVAL, "--cpus 4x is refused");
    is_int(set("cpus", "-1"), -EINVAL, "--cpus -1 is refused");
    is_int(config.cpus, 16, "a refused value changes nothing");
    is_int(set("memory", "8G,shared,thp=off"), 0, "--memory with its own options");
    is_int(config.memory_bytes, 8 * GIB, "size");
    ok(config.memory_shared && !config.memory_huge_pages, "flags on and off");
    is_int(set("memory", "256"), 0, "a bare size");
    is_int(config.memory_bytes, 256 * MIB, "is in MiB");
    is_int(set("exit-port", NULL), 0, "a flag without a value");
    ok(config.exit_port, "is on");
    is_int(set("rng", "off"), 0, "a flag set off");
    ok(!config.rng, "is off");
    is_int(set("on-panic", "continue"), 0, "a choice");
    is_int(config.on_panic, CONFIG_ACTION_CONTINUE, "is taken");
    is_int(set("on-panic", "explode"), -EINVAL, "a wrong choice is refused");
    is_str(err.text, "--on-panic: 'explode' is none of exit, restart, continue", "with the list");
    config_fini(&config);
}

static void test_unknown(void)
{
    begin();
    is_int(set("memroy", "1G"), -ENOENT, "an unknown option");
    is_str(err.text, "hull run has no option 'memroy'; did you mean 'memory'?",
           "names the nearest");
    is_int(set("zzzzzzz", "1"), -ENOENT, "far from everything");
    is_str(err.text, "hull run has no option 'zzzzzzz'", "no guess");
    is_int(set("disk", "a.raw,redonly"), -EINVAL, "an unknown disk option");
    is_str(err.text, "--disk: --disk has no option 'redonly'; did you mean 'readonly'?",
           "names the nearest");
    is_int(config.disk_count, 0, "a refused disk is not kept");
    is_int(set("kernel", NULL), -EINVAL, "a value is needed");
    config_fini(&config);
}

static void test_lists(void)
{
    begin();
    is_int(set("disk", "a,,b.raw,readonly,serial=S1"), 0, "a disk whose path has a comma");
    is_int(set("disk", "/dev/sdb,cache=writeback,queues=2"), 0, "a second");
    is_int(config.disk_count, 2, "two disks");
    is_str(config.disks[0].path, "a,b.raw", "path");
    ok(config.disks[0].read_only && !config.disks[1].read_only, "one is read-only");
    is_str(config.disks[0].serial, "S1", "serial");
    is_int(config.disks[1].cache, BLOCK_CACHE_WRITEBACK, "cache");
    for (int i = 2; i < CONFIG_DISKS_MAX; i++)
        set("disk", "more");
    is_int(set("disk", "one too many"), -EINVAL, "the list is bounded");
    is_int(config.disk_count, CONFIG_DISKS_MAX, "and full");
    config_fini(&config);
}

static void test_net(void)
{
    begin();
    is_int(set("net", "user,forward=tcp:127.0.0.1:2222-:22,forward=udp:53-10.0.2.16:5353"), 0,
           "forwards");
    const struct config_net *net = &config.nets[0];
    is_int(net->forward_count, 2, "two");
    is_str(net->forwards[0].host_addr, "127.0.0.1", "host address");
    is_int(net->forwards[0].host_port, 2222, "host port");
    is_str(net->forwards[0].guest_addr, "", "no guest address");
    is_int(net->forwards[0].guest_port, 22, "guest port");
    ok(net->forwards[1].udp, "udp");
    is_str(net->forwards[1].guest_addr, "10.0.2.16", "guest address");
    is_int(set("net", "tap=hull0,queues=4,mac=52:54:00:12:34:56"), 0, "a named tap");
    is_str(config.nets[1].tap_name, "hull0", "name");
    is_int(config.nets[1].kind, CONFIG_NET_TAP, "kind");
    is_int(config.nets[1].mac[5], 0x56, "mac");
    is_int(set("net", "tap,mac=01:00:00:00:00:00"), -EINVAL, "a multicast MAC is refused");
    is_int(set("net", "tap,mac=52:-4:00:12:34:56"), -EINVAL, "signs are no digits");
    is_int(set("net", "tap,mac=52:54: 0:12:34:56"), -EINVAL, "nor are spaces");
    static const char *const bad[] = {"tcp:22",           "tcp:0-:22",    "22-22",
                                      "tcp:1.2.3:22-:22", "tcp:99999-:1", "tcp:[::g]:1-:1",
                                      "tcp:1-",           "tcp:-:1"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        char value[64];
        snprintf(value, sizeof(value), "user,forward=%s", bad[i]);
        is_int(set("net", value), -EINVAL, bad[i]);
    }
    is_int(set("net", "none"), 0, "none");
    ok(config.net_count == 0 && config.net_none, "takes all cards away");
    config_fini(&config);
}

static void test_finish(void)
{
    begin();
    is_int(config_finish(&config, &err), -EINVAL, "a kernel is needed");
    config_fini(&config);

    begin();
    set("kernel", "k");
    set("name", "web");
    is_int(config_finish(&config, &err), 0, "a kernel is enough");
    is_int(config.net_count, 1, "a network card by default");
    is_int(config.nets[0].kind, CONFIG_NET_USER, "of the user kind");
    is_int(config.nets[0].mac[0] & 3, 2, "with a local unicast address");
    is_str(config.serials[0], "stdio", "COM1 on stdio");
    config_fini(&config);

    static const char *const bad[][4] = {
        {"memory", "1M",                             NULL,      NULL   },
        {"memory", "0",                              NULL,      NULL   },
        {"memory", "9223372036854775808B",           NULL,      NULL   },
        {"name",   "a b",                            NULL,      NULL   },
        {"name",   "",                               NULL,      NULL   },
        {"serial", "stdio",                          "console", "stdio"},
        {"net",    "user,name=x",                    NULL,      NULL   },
        {"net",    "tap,restricted",                 NULL,      NULL   },
        {"disk",   "a,serial=123456789012345678901", NULL,      NULL   },
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        begin();
        set("kernel", "k");
        set(bad[i][0], bad[i][1]);
        if (bad[i][2])
            set(bad[i][2], bad[i][3]);
        is_int(config_finish(&config, &err), -EINVAL, bad[i][1]);
        config_fini(&config);
    }
}

static int parse(const char *text)
{
    memset(&err, 0, sizeof(err));
    return config_parse(&config, text, strlen(text), "vm.json", &err);
}

/* What is written is read back as the same text. */
static void test_json_round_trip(void)
{
    char *first = NULL, *second = NULL;
    size_t len;

    begin();
    set("kernel", "vmlinuz");
    set("append", "console=ttyS0 \"quoted\"");
    set("disk", "a,,b.raw,readonly");
    set("net", "user,forward=tcp:[::1]:2222-:22");
    set("net", "tap=t0");
    set("module", "m,args=x y");
    set("serial", "null");
    set("serial", "file:/tmp/x");
    set("memory", "3G,shared");
    config_finish(&config, &err);
    FILE *out = open_memstream(&first, &len);
    is_int(config_print(&config, out, &err), 0, "written");
    fclose(out);
    config_fini(&config);

    begin();
    is_int(parse(first), 0, "read back");
    is_int(config_finish(&config, &err), 0, "complete");
    out = open_memstream(&second, &len);
    config_print(&config, out, &err);
    fclose(out);
    is_str(second, first, "the same machine");
    config_fini(&config);
    free(first);
    free(second);
}

/* A configuration that cannot be written must not look as if it had been. */
static void test_json_not_utf8(void)
{
    char *text = NULL;
    size_t len;

    begin();
    set("kernel", "vmlinuz");
    set("disk", "caf\xe9.raw");
    config_finish(&config, &err);
    FILE *out = open_memstream(&text, &len);
    is_int(config_print(&config, out, &err), -EILSEQ, "a name that is not UTF-8 is refused");
    fclose(out);
    is_int(len, 0, "and nothing was written");
    free(text);
    config_fini(&config);
}

static int load_from_pipe(size_t pad)
{
    static char spaces[8192];
    int fds[2];
    char path[32];

    memset(spaces, ' ', sizeof(spaces));
    if (pipe(fds) != 0)
        return -errno;
    pid_t child = fork();
    if (child == 0) {
        close(fds[0]);
        for (; pad > 0; pad -= sizeof(spaces)) {
            if (write(fds[1], spaces, sizeof(spaces)) < 0)
                _exit(1);
        }
        _exit(write(fds[1], "{\"cpus\": 3}", 11) != 11);
    }
    close(fds[1]);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fds[0]);
    int ret = config_load(&config, path, &err);
    close(fds[0]);
    waitpid(child, NULL, 0);
    return ret;
}

static void test_load(void)
{
    begin();
    is_int(config_load(&config, "/", &err), -EISDIR, "a directory");
    is_int(config_load(&config, "/nonexistent/x", &err), -ENOENT, "no such file");
    is_int(config_load(&config, "/dev/zero", &err), -EFBIG, "without end");
    is_int(load_from_pipe(16 * 8192), 0, "a pipe, in several pieces");
    is_int(config.cpus, 3, "is read to its end");
    is_int(load_from_pipe(129 * 8192), -EFBIG, "and not beyond 1 MiB");
    config_fini(&config);
}

static void test_json(void)
{
    begin();
    is_int(parse("{\"cpus\": 2, \"memory\": \"1G\", \"disk\": [\"a.raw,readonly\"], \"net\": []}"),
           0, "short forms");
    is_int(config.memory_bytes, GIB, "memory as text");
    ok(config.disks[0].read_only, "disk as text");
    ok(config.net_none, "an empty list of networks is none");
    config_fini(&config);

    static const char *const bad[] = {
        "",
        "[]",
        "{\"cpus\": \"many\"}",
        "{\"cpus\": 1.5}",
        "{\"cpu\": 1}",
        "{\"cpus\": 1, \"cpus\": 2}",
        "{\"disk\": [{\"readonly\": true}]}",
        "{\"disk\": [17]}",
        "{\"disk\": [{\"path\": \"a\", \"nope\": 1}]}",
        "{\"net\": 1}",
        "{\"net\": [{\"type\": \"carrier-pigeon\"}]}",
        "{\"kernel\": null}",
        "{\"memory\": -1}",
        "{\"serial\": [{\"a\": 1}]}",
        "{\"net\": [{\"type\": \"tap\", \"forward\": [{\"a\": 1}]}]}",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        begin();
        is_int(parse(bad[i]), -EINVAL, bad[i]);
        ok(strncmp(err.text, "vm.json: ", 9) == 0, "the error names the file");
        config_fini(&config);
    }
    begin();
    parse("{\"cpuss\": 1}");
    is_str(err.text, "vm.json: the configuration has no option 'cpuss'; did you mean 'cpus'?",
           "and the nearest key");
    config_fini(&config);
}

int main(void)
{
    test_scalars();
    test_unknown();
    test_lists();
    test_net();
    test_finish();
    test_json_round_trip();
    test_json_not_utf8();
    test_load();
    test_json();
    return tap_done();
}
