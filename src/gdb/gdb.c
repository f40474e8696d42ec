/* SPDX-License-Identifier: Apache-2.0 */
#include "gdb/gdb.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/units.h"
#include "engine/report.h"

/* The longest packet, both ways; a memory transfer is two characters a byte. */
#define PACKET_MAX      0x4000
#define MEMORY_MAX      ((PACKET_MAX - 64) / 2)
#define BREAKPOINTS_MAX 1024
#define INT3            0xcc

/* GDB's numbers of signals are its own; these are the same everywhere. */
#define GDB_SIGINT  2
#define GDB_SIGTRAP 5

struct breakpoint {
    uint64_t address;
    uint8_t original; /* the byte under the INT3; valid while inserted */
    bool inserted;
};

struct gdb {
    struct loop *loop;
    struct gdb_config config;
    char *unix_path; /* to remove at the end */
    struct loop_fd listener, client;
    bool connected;
    bool ending; /* the VM is no more: nothing is asked of the target */
    bool stopped;
    bool acks; /* until QStartNoAckMode */
    bool physical;
    unsigned general_cpu; /* Hg: whose registers and memory */
    char stop_reply[128];

    /* A packet on its way in. */
    enum { IN_IDLE, IN_PACKET, IN_SUM1, IN_SUM2 } in_state;
    char in[PACKET_MAX + 1];
    size_t in_len;
    uint8_t in_sum, in_wanted;
    bool in_too_long;

    char out[2 * PACKET_MAX + 16];
    size_t out_len;

    struct breakpoint breakpoints[BREAKPOINTS_MAX];
    unsigned breakpoint_count;
    struct engine_debug debug;
    struct gdb_regs regs;
    char features[GDB_FEATURES_MAX];
};

/* --- out --- */

static void hang_up(struct gdb *gdb);

static void flush(struct gdb *gdb)
{
    ssize_t sent = send(gdb->client.fd, gdb->out, gdb->out_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        hang_up(gdb);
        return;
    }
    if (sent > 0) {
        gdb->out_len -= (size_t)sent;
        memmove(gdb->out, gdb->out + sent, gdb->out_len);
    }
    loop_fd_modify(gdb->loop, &gdb->client, gdb->out_len > 0 ? POLLIN | POLLOUT : POLLIN);
}

/* A client that sends and does not read is cut off: the protocol has one answer a request. */
static void put(struct gdb *gdb, const void *data, size_t len)
{
    if (!gdb->connected)
        return;
    if (len > sizeof(gdb->out) - gdb->out_len) {
        hang_up(gdb);
        return;
    }
    memcpy(gdb->out + gdb->out_len, data, len);
    gdb->out_len += len;
}

static void reply_bytes(struct gdb *gdb, const char *data, size_t len)
{
    char tail[4];
    uint8_t sum = 0;
    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + (uint8_t)data[i]);
    snprintf(tail, sizeof(tail), "#%02x", sum);
    put(gdb, "$", 1);
    put(gdb, data, len);
    put(gdb, tail, 3);
    if (gdb->connected)
        flush(gdb);
}

static void reply(struct gdb *gdb, const char *text)
{
    reply_bytes(gdb, text, strlen(text));
}

static void reply_ok(struct gdb *gdb, bool good)
{
    reply(gdb, good ? "OK" : "E01");
}

/* --- numbers and bytes in hexadecimal --- */

static const char hex_digits[] = "0123456789abcdef";

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* One number; *text moves behind it. false: there is none, or it exceeds 64 bits. */
static bool take_number(const char **text, uint64_t *value)
{
    const char *at = *text;
    *value = 0;
    while (hex_value(*at) >= 0) {
        if (at - *text >= 16)
            return false;
        *value = *value << 4 | (uint64_t)hex_value(*at++);
    }
    bool any = at != *text;
    *text = at;
    return any;
}

static bool take_char(const char **text, char c)
{
    if (**text != c)
        return false;
    (*text)++;
    return true;
}

static size_t to_hex(char *to, const uint8_t *from, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        to[2 * i] = hex_digits[from[i] >> 4];
        to[2 * i + 1] = hex_digits[from[i] & 15];
    }
    return 2 * len;
}

/* Exactly len bytes; false where the text is shorter or no number. */
static bool from_hex(uint8_t *to, const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        int high = hex_value(text[2 * i]);
        int low = high < 0 ? -1 : hex_value(text[2 * i + 1]);
        if (low < 0)
            return false;
        to[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

/* --- breakpoints in memory --- */

/*
 * A breakpoint is an INT3 in the guest's memory while it runs, and the original byte while it is
 * stopped: so the debugger reads what the guest's program is.
 */
static size_t target_read(struct gdb *gdb, uint64_t address, bool physical, void *buf, size_t len)
{
    return gdb->config.target->read(gdb->config.ctx, gdb->general_cpu, address, physical, buf, len);
}

static size_t target_write(struct gdb *gdb, uint64_t address, bool physical, const void *buf,
                           size_t len)
{
    return gdb->config.target->write(gdb->config.ctx, gdb->general_cpu, address, physical, buf,
                                     len);
}

static void breakpoints_insert(struct gdb *gdb)
{
    static const uint8_t int3 = INT3;
    for (unsigned i = 0; i < gdb->breakpoint_count; i++) {
        struct breakpoint *b = &gdb->breakpoints[i];
        b->inserted = target_read(gdb, b->address, false, &b->original, 1) == 1 &&
                      target_write(gdb, b->address, false, &int3, 1) == 1;
        if (!b->inserted)
            log_warn("gdb", "the breakpoint at 0x%llx cannot be set now: no memory is mapped there",
                     (unsigned long long)b->address);
    }
}

static void breakpoints_remove(struct gdb *gdb)
{
    for (unsigned i = gdb->breakpoint_count; i-- > 0;) {
        struct breakpoint *b = &gdb->breakpoints[i];
        uint8_t now;
        /* The guest may have written there meanwhile, or unmapped it. */
        if (b->inserted && target_read(gdb, b->address, false, &now, 1) == 1 && now == INT3)
            target_write(gdb, b->address, false, &b->original, 1);
        b->inserted = false;
    }
}

static struct breakpoint *breakpoint_find(struct gdb *gdb, uint64_t address)
{
    for (unsigned i = 0; i < gdb->breakpoint_count; i++) {
        if (gdb->breakpoints[i].address == address)
            return &gdb->breakpoints[i];
    }
    return NULL;
}

static bool breakpoint_add(struct gdb *gdb, uint64_t address)
{
    if (breakpoint_find(gdb, address))
        return true;
    if (gdb->breakpoint_count == BREAKPOINTS_MAX)
        return false;
    gdb->breakpoints[gdb->breakpoint_count++] = (struct breakpoint){.address = address};
    return true;
}

static bool breakpoint_del(struct gdb *gdb, uint64_t address)
{
    struct breakpoint *b = breakpoint_find(gdb, address);
    if (b)
        *b = gdb->breakpoints[--gdb->breakpoint_count];
    return true;
}

static bool hw_equal(const struct engine_hw_breakpoint *a, const struct engine_hw_breakpoint *b)
{
    return a->address == b->address && a->len_bytes == b->len_bytes && a->kind == b->kind;
}

static bool hw_add(struct gdb *gdb, const struct engine_hw_breakpoint *hw)
{
    struct engine_debug *debug = &gdb->debug;
    for (unsigned i = 0; i < debug->hw_count; i++) {
        if (hw_equal(&debug->hw[i], hw))
            return true;
    }
    if (debug->hw_count == ENGINE_HW_BREAKPOINTS)
        return false;
    debug->hw[debug->hw_count++] = *hw;
    return true;
}

static bool hw_del(struct gdb *gdb, const struct engine_hw_breakpoint *hw)
{
    struct engine_debug *debug = &gdb->debug;
    for (unsigned i = 0; i < debug->hw_count; i++) {
        if (hw_equal(&debug->hw[i], hw)) {
            debug->hw[i] = debug->hw[--debug->hw_count];
            break;
        }
    }
    return true;
}

/* --- stopping and going --- */

static const char *const watch_names[] = {
    [ENGINE_WATCH_WRITE] = "watch",
    [ENGINE_WATCH_ACCESS] = "awatch",
};

static void set_stop_reply(struct gdb *gdb, unsigned signal, unsigned cpu, const char *why)
{
    snprintf(gdb->stop_reply, sizeof(gdb->stop_reply), "T%02x%sthread:%x;", signal, why, cpu + 1);
    gdb->general_cpu = cpu;
}

static void target_stop(struct gdb *gdb)
{
    gdb->config.target->stop(gdb->config.ctx);
    gdb->stopped = true;
    breakpoints_remove(gdb);
}

static void target_go(struct gdb *gdb, unsigned step_cpu)
{
    struct engine_debug debug = gdb->debug;
    debug.step = step_cpu != GDB_ALL_CPUS;
    debug.breakpoints = gdb->connected;
    breakpoints_insert(gdb);
    if (gdb->config.target->debug(gdb->config.ctx, &debug) < 0)
        log_warn("gdb", "the engine does not take the breakpoints");
    gdb->stopped = false;
    gdb->config.target->go(gdb->config.ctx, step_cpu);
}

void gdb_stopped(struct gdb *gdb, unsigned cpu, const struct engine_exit *exit)
{
    char why[64] = "";
    gdb->stopped = true;
    breakpoints_remove(gdb);
    gdb->general_cpu = cpu;
    if (exit->stop == ENGINE_STOP_BREAKPOINT) {
        bool ours = gdb->config.target->get_regs(gdb->config.ctx, cpu, &gdb->regs) == 0 &&
                    breakpoint_find(gdb, gdb->regs.regs.rip);
        if (!gdb->connected || !ours) {
            gdb->config.target->pass_breakpoint(gdb->config.ctx, cpu);
            target_go(gdb, GDB_ALL_CPUS);
            return;
        }
        snprintf(why, sizeof(why), "swbreak:;");
    } else if (exit->stop == ENGINE_STOP_HARDWARE && exit->hw < gdb->debug.hw_count) {
        const struct engine_hw_breakpoint *hw = &gdb->debug.hw[exit->hw];
        if (hw->kind == ENGINE_WATCH_EXECUTE)
            snprintf(why, sizeof(why), "hwbreak:;");
        else
            snprintf(why, sizeof(why), "%s:%llx;", watch_names[hw->kind],
                     (unsigned long long)hw->address);
    }
    set_stop_reply(gdb, GDB_SIGTRAP, cpu, why);
    reply(gdb, gdb->stop_reply);
}

static void interrupt(struct gdb *gdb)
{
    if (gdb->stopped)
        return;
    target_stop(gdb);
    set_stop_reply(gdb, GDB_SIGINT, gdb->general_cpu, "");
    reply(gdb, gdb->stop_reply);
}

/* The client has gone, or let go: the guest runs as if it had never been. */
static void detach(struct gdb *gdb)
{
    if (!gdb->stopped)
        target_stop(gdb);
    gdb->breakpoint_count = 0;
    gdb->debug = (struct engine_debug){0};
    gdb->config.target->debug(gdb->config.ctx, NULL);
    gdb->stopped = false;
    gdb->config.target->go(gdb->config.ctx, GDB_ALL_CPUS);
}

static void hang_up(struct gdb *gdb)
{
    if (!gdb->connected)
        return;
    gdb->connected = false;
    loop_fd_del(gdb->loop, &gdb->client);
    close(gdb->client.fd);
    gdb->client.fd = -1;
    if (gdb->ending)
        return;
    detach(gdb);
    log_info("gdb", "the debugger has left");
}

/* --- packets --- */

static bool load_regs(struct gdb *gdb)
{
    return gdb->config.target->get_regs(gdb->config.ctx, gdb->general_cpu, &gdb->regs) == 0;
}

static bool store_regs(struct gdb *gdb)
{
    return gdb->config.target->set_regs(gdb->config.ctx, gdb->general_cpu, &gdb->regs) == 0;
}

/* g */
static void read_registers(struct gdb *gdb, const char *args)
{
    char text[PACKET_MAX];
    size_t len = 0;
    uint8_t value[16];
    (void)args;
    if (!load_regs(gdb)) {
        reply_ok(gdb, false);
        return;
    }
    unsigned count = gdb_reg_count(gdb->config.i386);
    for (unsigned i = 0; i < count; i++)
        len += to_hex(text + len, value, gdb_reg_get(&gdb->regs, gdb->config.i386, i, value));
    reply_bytes(gdb, text, len);
}

/* G */
static void write_registers(struct gdb *gdb, const char *args)
{
    uint8_t value[16] = {0};
    bool good = load_regs(gdb);
    unsigned count = gdb_reg_count(gdb->config.i386);
    for (unsigned i = 0; i < count && good; i++) {
        unsigned bytes = gdb_reg_get(&gdb->regs, gdb->config.i386, i, value);
        good = from_hex(value, args, bytes);
        if (good)
            gdb_reg_set(&gdb->regs, gdb->config.i386, i, value);
        args += (size_t)2 * bytes;
    }
    reply_ok(gdb, good && store_regs(gdb));
}

/* p N */
static void read_register(struct gdb *gdb, const char *args)
{
    char text[33];
    uint8_t value[16];
    uint64_t number;
    unsigned bytes = 0;
    if (take_number(&args, &number) && number < 1024 && load_regs(gdb))
        bytes = gdb_reg_get(&gdb->regs, gdb->config.i386, (unsigned)number, value);
    if (bytes == 0) {
        reply_ok(gdb, false);
        return;
    }
    reply_bytes(gdb, text, to_hex(text, value, bytes));
}

/* P N=VALUE */
static void write_register(struct gdb *gdb, const char *args)
{
    uint8_t value[16] = {0};
    uint64_t number;
    bool good =
        take_number(&args, &number) && number < 1024 && take_char(&args, '=') && load_regs(gdb);
    if (good) {
        unsigned bytes = gdb_reg_get(&gdb->regs, gdb->config.i386, (unsigned)number, value);
        good = bytes > 0 && from_hex(value, args, bytes) &&
               gdb_reg_set(&gdb->regs, gdb->config.i386, (unsigned)number, value) == bytes;
    }
    reply_ok(gdb, good && store_regs(gdb));
}

/* m ADDRESS,LENGTH */
static void read_memory(struct gdb *gdb, const char *args)
{
    static_assert(MEMORY_MAX * 2 < PACKET_MAX, "an answer fits a packet");
    uint8_t data[MEMORY_MAX];
    char text[2 * MEMORY_MAX];
    uint64_t address, len;
    if (!take_number(&args, &address) || !take_char(&args, ',') || !take_number(&args, &len)) {
        reply_ok(gdb, false);
        return;
    }
    len = len < sizeof(data) ? len : sizeof(data);
    size_t got = target_read(gdb, address, gdb->physical, data, len);
    if (got == 0 && len > 0)
        reply(gdb, "E14"); /* EFAULT */
    else
        reply_bytes(gdb, text, to_hex(text, data, got));
}

/* M ADDRESS,LENGTH:HEX */
static void write_memory(struct gdb *gdb, const char *args)
{
    uint8_t data[MEMORY_MAX];
    uint64_t address, len;
    bool good = take_number(&args, &address) && take_char(&args, ',') && take_number(&args, &len) &&
                take_char(&args, ':') && len <= sizeof(data) && from_hex(data, args, len);
    if (!good)
        reply_ok(gdb, false);
    else if (target_write(gdb, address, gdb->physical, data, len) < len)
        reply(gdb, "E14");
    else
        reply_ok(gdb, true);
}

/* T N, and the N of H: 0 is any, -1 all. */
static bool take_thread(const char **args, unsigned cpu_count, unsigned *cpu)
{
    uint64_t number;
    if (strncmp(*args, "-1", 2) == 0) {
        *args += 2;
        *cpu = GDB_ALL_CPUS;
        return true;
    }
    if (!take_number(args, &number) || number > cpu_count)
        return false;
    *cpu = number == 0 ? GDB_ALL_CPUS : (unsigned)number - 1;
    return true;
}

static void set_thread(struct gdb *gdb, const char *args)
{
    unsigned cpu;
    bool general = *args == 'g';
    bool good = *args != '\0';
    args += good;
    good = good && take_thread(&args, gdb->config.cpu_count, &cpu);
    if (good && general && cpu != GDB_ALL_CPUS)
        gdb->general_cpu = cpu;
    reply_ok(gdb, good);
}

static void thread_alive(struct gdb *gdb, const char *args)
{
    unsigned cpu;
    reply_ok(gdb, take_thread(&args, gdb->config.cpu_count, &cpu));
}

static void why_stopped(struct gdb *gdb, const char *args)
{
    (void)args;
    reply(gdb, gdb->stop_reply);
}

static void detach_client(struct gdb *gdb, const char *args)
{
    (void)args;
    reply_ok(gdb, true);
    hang_up(gdb);
}

static void kill_target(struct gdb *gdb, const char *args)
{
    (void)args;
    log_info("gdb", "the debugger ends the VM");
    gdb->config.target->kill(gdb->config.ctx);
}

/* c [ADDRESS] and s [ADDRESS]: with an address from there on. */
static bool take_resume_address(struct gdb *gdb, const char *args)
{
    uint64_t address;
    if (*args == '\0')
        return true;
    if (!take_number(&args, &address) || !load_regs(gdb))
        return false;
    gdb->regs.regs.rip = address;
    return store_regs(gdb);
}

static void continue_all(struct gdb *gdb, const char *args)
{
    if (take_resume_address(gdb, args))
        target_go(gdb, GDB_ALL_CPUS);
    else
        reply_ok(gdb, false);
}

static void step(struct gdb *gdb, const char *args)
{
    if (take_resume_address(gdb, args))
        target_go(gdb, gdb->general_cpu);
    else
        reply_ok(gdb, false);
}

/* vCont;ACTION[:THREAD]...: a step anywhere in it is a step of that vCPU alone, since others that
 * run beside it are what makes stepping through a kernel useless. */
static void vcont(struct gdb *gdb, const char *args)
{
    unsigned step_cpu = GDB_ALL_CPUS;
    while (take_char(&args, ';')) {
        char action = *args;
        unsigned cpu = GDB_ALL_CPUS;
        uint64_t signal;
        if (action == '\0')
            break;
        args++;
        if (action == 'C' || action == 'S')
            take_number(&args, &signal);
        if (take_char(&args, ':') && !take_thread(&args, gdb->config.cpu_count, &cpu)) {
            reply_ok(gdb, false);
            return;
        }
        if (action == 's' || action == 'S')
            step_cpu = cpu == GDB_ALL_CPUS ? gdb->general_cpu : cpu;
    }
    target_go(gdb, step_cpu);
}

static void verbose(struct gdb *gdb, const char *args)
{
    if (strcmp(args, "Cont?") == 0)
        reply(gdb, "vCont;c;C;s;S");
    else if (strncmp(args, "Cont;", 5) == 0)
        vcont(gdb, args + 4);
    else if (strncmp(args, "Kill;", 5) == 0) {
        reply_ok(gdb, true);
        kill_target(gdb, "");
    } else
        reply(gdb, "");
}

/* Z and z TYPE,ADDRESS,KIND */
static void change_breakpoint(struct gdb *gdb, const char *args, bool add)
{
    static const uint8_t kinds[] = {0, ENGINE_WATCH_EXECUTE, ENGINE_WATCH_WRITE,
                                    ENGINE_WATCH_ACCESS, ENGINE_WATCH_ACCESS};
    uint64_t type, address, len;
    if (!take_number(&args, &type) || !take_char(&args, ',') || !take_number(&args, &address) ||
        !take_char(&args, ',') || !take_number(&args, &len)) {
        reply_ok(gdb, false);
        return;
    }
    if (type == 0) {
        reply_ok(gdb, add ? breakpoint_add(gdb, address) : breakpoint_del(gdb, address));
        return;
    }
    /* The processor watches reads only together with writes, so 3 (read) is as 4 (access). */
    if (type >= ARRAY_LEN(kinds)) {
        reply(gdb, "");
        return;
    }
    bool execute = kinds[type] == ENGINE_WATCH_EXECUTE;
    struct engine_hw_breakpoint hw = {
        .address = address, .len_bytes = execute ? 1 : (uint8_t)len, .kind = kinds[type]};
    bool good = execute || ((len == 1 || len == 2 || len == 4 || len == 8) && address % len == 0);
    reply_ok(gdb, good && (add ? hw_add(gdb, &hw) : hw_del(gdb, &hw)));
}

static void insert_breakpoint(struct gdb *gdb, const char *args)
{
    change_breakpoint(gdb, args, true);
}

static void remove_breakpoint(struct gdb *gdb, const char *args)
{
    change_breakpoint(gdb, args, false);
}

/* --- q and Q --- */

/* qXfer:features:read:target.xml:OFFSET,LENGTH */
static void send_features(struct gdb *gdb, const char *args)
{
    uint64_t offset, len;
    char text[PACKET_MAX];
    if (!take_number(&args, &offset) || !take_char(&args, ',') || !take_number(&args, &len)) {
        reply_ok(gdb, false);
        return;
    }
    size_t total = strlen(gdb->features);
    offset = offset < total ? offset : total;
    size_t left = total - offset;
    len = len < sizeof(text) - 1 ? len : sizeof(text) - 1;
    text[0] = left > len ? 'm' : 'l';
    size_t now = left > len ? len : left;
    memcpy(text + 1, gdb->features + offset, now);
    reply_bytes(gdb, text, now + 1);
}

static void list_threads(struct gdb *gdb)
{
    char text[PACKET_MAX] = "m";
    size_t len = 1;
    for (unsigned i = 0; i < gdb->config.cpu_count && len < sizeof(text) - 16; i++)
        len += (size_t)snprintf(text + len, sizeof(text) - len, "%s%x", i ? "," : "", i + 1);
    reply_bytes(gdb, text, len);
}

static void reply_hex(struct gdb *gdb, const char *text)
{
    char hex[PACKET_MAX];
    size_t len = strlen(text);
    len = len < MEMORY_MAX ? len : MEMORY_MAX;
    reply_bytes(gdb, hex, to_hex(hex, (const uint8_t *)text, len));
}

/* GDB's `monitor TEXT` */
static void monitor(struct gdb *gdb, const char *hex)
{
    char command[128] = "";
    size_t len = strlen(hex) / 2;
    if (len >= sizeof(command) || !from_hex((uint8_t *)command, hex, len)) {
        reply_ok(gdb, false);
        return;
    }
    if (strcmp(command, "registers") == 0 && load_regs(gdb)) {
        struct engine_exit text = {.text = ""};
        engine_report_state(&text, &gdb->regs.regs, &gdb->regs.sregs);
        engine_report_append(&text, "\n");
        reply_hex(gdb, text.text + 1);
    } else if (strcmp(command, "physical on") == 0 || strcmp(command, "physical off") == 0) {
        gdb->physical = command[10] == 'n';
        reply_ok(gdb, true);
    } else if (strcmp(command, "quit") == 0) {
        reply_ok(gdb, true);
        kill_target(gdb, "");
    } else {
        reply_hex(gdb, "registers         the system registers of the current vCPU\n"
                       "physical on|off   memory by guest-physical instead of virtual address\n"
                       "quit              end the VM\n");
    }
}

static bool after(const char **args, const char *prefix)
{
    size_t len = strlen(prefix);
    if (strncmp(*args, prefix, len) != 0)
        return false;
    *args += len;
    return true;
}

static void query(struct gdb *gdb, const char *args)
{
    char text[160];
    if (after(&args, "Supported")) {
        snprintf(text, sizeof(text),
                 "PacketSize=%x;qXfer:features:read+;QStartNoAckMode+;vContSupported+;swbreak+;"
                 "hwbreak+",
                 PACKET_MAX);
        reply(gdb, text);
    } else if (after(&args, "Xfer:features:read:target.xml:")) {
        send_features(gdb, args);
    } else if (after(&args, "Xfer:features:read:")) {
        reply(gdb, "E00");
    } else if (after(&args, "fThreadInfo")) {
        list_threads(gdb);
    } else if (after(&args, "sThreadInfo")) {
        reply(gdb, "l");
    } else if (after(&args, "ThreadExtraInfo,")) {
        unsigned cpu;
        bool good = take_thread(&args, gdb->config.cpu_count, &cpu) && cpu != GDB_ALL_CPUS;
        snprintf(text, sizeof(text), "vCPU %u", good ? cpu : 0);
        reply_hex(gdb, text);
    } else if (after(&args, "Attached")) {
        reply(gdb, "1");
    } else if (after(&args, "Rcmd,")) {
        monitor(gdb, args);
    } else if (strcmp(args, "C") == 0) {
        snprintf(text, sizeof(text), "QC%x", gdb->general_cpu + 1);
        reply(gdb, text);
    } else {
        reply(gdb, "");
    }
}

static void set_mode(struct gdb *gdb, const char *args)
{
    if (strcmp(args, "StartNoAckMode") != 0) {
        reply(gdb, "");
        return;
    }
    reply_ok(gdb, true);
    gdb->acks = false;
}

static void handle_packet(struct gdb *gdb)
{
    static const struct {
        char letter;
        void (*handle)(struct gdb *gdb, const char *args);
    } packets[] = {
        {'?', why_stopped      },
        {'D', detach_client    },
        {'G', write_registers  },
        {'H', set_thread       },
        {'M', write_memory     },
        {'P', write_register   },
        {'Q', set_mode         },
        {'T', thread_alive     },
        {'Z', insert_breakpoint},
        {'c', continue_all     },
        {'g', read_registers   },
        {'k', kill_target      },
        {'m', read_memory      },
        {'p', read_register    },
        {'q', query            },
        {'s', step             },
        {'v', verbose          },
        {'z', remove_breakpoint},
    };
    /* While it runs only an interrupt makes sense; a client that asks all the same would see the
     * guest change under its hands. */
    if (!gdb->stopped) {
        reply_ok(gdb, false);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(packets); i++) {
        if (packets[i].letter == gdb->in[0] && gdb->in_len > 0) {
            packets[i].handle(gdb, gdb->in + 1);
            return;
        }
    }
    reply(gdb, "");
}

/* --- in --- */

static void packet_done(struct gdb *gdb)
{
    bool good = gdb->in_sum == gdb->in_wanted && !gdb->in_too_long;
    gdb->in[gdb->in_len] = '\0';
    if (gdb->acks)
        put(gdb, good ? "+" : "-", 1);
    if (good)
        handle_packet(gdb);
    else if (gdb->connected)
        flush(gdb);
}

static void take_byte(struct gdb *gdb, char c)
{
    switch (gdb->in_state) {
    case IN_IDLE:
        if (c == '$') {
            gdb->in_state = IN_PACKET;
            gdb->in_len = 0;
            gdb->in_sum = 0;
            gdb->in_too_long = false;
        } else if (c == 3) {
            interrupt(gdb);
        }
        break;
    case IN_PACKET:
        if (c == '#') {
            gdb->in_state = IN_SUM1;
            break;
        }
        gdb->in_sum = (uint8_t)(gdb->in_sum + (uint8_t)c);
        if (gdb->in_len < PACKET_MAX)
            gdb->in[gdb->in_len++] = c;
        else
            gdb->in_too_long = true;
        break;
    case IN_SUM1:
        gdb->in_wanted = (uint8_t)((hex_value(c) & 15) << 4);
        gdb->in_state = IN_SUM2;
        break;
    case IN_SUM2:
        gdb->in_wanted = (uint8_t)(gdb->in_wanted | (hex_value(c) & 15));
        gdb->in_state = IN_IDLE;
        packet_done(gdb);
        break;
    }
}

static void on_client(struct loop_fd *lfd, short revents)
{
    struct gdb *gdb = CONTAINER_OF(lfd, struct gdb, client);
    char data[4096];
    if (revents & POLLOUT && gdb->out_len > 0)
        flush(gdb);
    if (!gdb->connected || !(revents & (POLLIN | POLLHUP | POLLERR)))
        return;
    ssize_t len = recv(lfd->fd, data, sizeof(data), MSG_DONTWAIT);
    if (len == 0 || (len < 0 && errno != EAGAIN && errno != EINTR)) {
        hang_up(gdb);
        return;
    }
    for (ssize_t i = 0; i < len && gdb->connected; i++)
        take_byte(gdb, data[i]);
}

static void on_listener(struct loop_fd *lfd, short revents)
{
    static const int on = 1;
    struct gdb *gdb = CONTAINER_OF(lfd, struct gdb, listener);
    (void)revents;
    int fd = accept4(lfd->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    if (gdb->connected) {
        log_warn("gdb", "a second debugger is refused: there is one already");
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* a Unix socket refuses: no harm */
    gdb->client.fd = fd;
    gdb->client.events = POLLIN;
    gdb->client.fn = on_client;
    if (loop_fd_add(gdb->loop, &gdb->client) < 0) {
        close(fd);
        gdb->client.fd = -1;
        return;
    }
    gdb->connected = true;
    gdb->acks = true;
    gdb->physical = false;
    gdb->in_state = IN_IDLE;
    gdb->out_len = 0;
    gdb->general_cpu = 0;
    log_info("gdb", "a debugger has come");
    if (!gdb->stopped)
        target_stop(gdb);
    set_stop_reply(gdb, GDB_SIGTRAP, 0, "");
}

/* --- the socket --- */

static int listen_unix(struct gdb *gdb, const char *path, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return err_set(err, ENAMETOOLONG, "--gdb unix:%s: the path is longer than %zu bytes", path,
                       sizeof(address.sun_path) - 1);
    memcpy(address.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_errno(err, errno, "--gdb unix:%s", path);
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int code = errno;
        close(fd);
        return err_errno(err, code, "--gdb unix:%s", path);
    }
    gdb->listener.fd = fd;
    gdb->unix_path = strdup(path);
    return gdb->unix_path ? 0 : err_errno(err, ENOMEM, "--gdb");
}

/* "PORT", "1.2.3.4:PORT" or "[::1]:PORT" to a socket address: its length, or 0. */
static socklen_t parse_address(const char *where, struct sockaddr_storage *address)
{
    char host[64] = "127.0.0.1";
    const char *colon = strrchr(where, ':'), *digits = colon ? colon + 1 : where;
    struct sockaddr_in *v4 = (struct sockaddr_in *)address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)address;
    char *end;
    unsigned long port = strtoul(digits, &end, 10);
    if (end == digits || *end != '\0' || port == 0 || port > UINT16_MAX)
        return 0;
    *address = (struct sockaddr_storage){0};
    if (colon && colon != where) {
        bool brackets = *where == '[' && colon[-1] == ']';
        int len = (int)(colon - where) - 2 * brackets;
        snprintf(host, sizeof(host), "%.*s", len, where + brackets);
    }
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        return sizeof(*v4);
    }
    if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)port);
        return sizeof(*v6);
    }
    return 0;
}

/* A bare port is at 127.0.0.1: whoever can connect can do all that the guest can. */
static int listen_tcp(struct gdb *gdb, const char *where, struct err *err)
{
    static const int on = 1;
    struct sockaddr_storage address;
    socklen_t len = parse_address(where, &address);
    if (len == 0)
        return err_set(err, EINVAL,
                       "--gdb %s: it must be PORT, ADDRESS:PORT (an IP address) or unix:PATH",
                       where);
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, len) < 0) {
        int code = errno;
        if (fd >= 0)
            close(fd);
        return err_errno(err, code, "--gdb %s", where);
    }
    gdb->listener.fd = fd;
    return 0;
}

int gdb_new(struct gdb **out, struct loop *loop, const struct gdb_config *config, struct err *err)
{
    struct gdb *gdb = calloc(1, sizeof(*gdb));
    if (!gdb)
        return err_errno(err, ENOMEM, "--gdb");
    gdb->loop = loop;
    gdb->config = *config;
    gdb->listener.fd = gdb->client.fd = -1;
    gdb_features(config->i386, gdb->features, sizeof(gdb->features));
    bool is_unix = strncmp(config->where, "unix:", 5) == 0;
    int code =
        is_unix ? listen_unix(gdb, config->where + 5, err) : listen_tcp(gdb, config->where, err);
    if (code == 0 && listen(gdb->listener.fd, 1) < 0)
        code = err_errno(err, errno, "--gdb %s", config->where);
    if (code == 0) {
        gdb->listener.events = POLLIN;
        gdb->listener.fn = on_listener;
        code = loop_fd_add(loop, &gdb->listener);
        if (code < 0)
            err_errno(err, code, "--gdb %s", config->where);
    }
    if (code < 0) {
        gdb_free(gdb, 0);
        return code;
    }
    *out = gdb;
    return 0;
}

void gdb_set_stopped(struct gdb *gdb)
{
    gdb->stopped = true;
}

void gdb_free(struct gdb *gdb, int status)
{
    if (!gdb)
        return;
    gdb->ending = true;
    if (gdb->connected) {
        char text[8];
        snprintf(text, sizeof(text), "W%02x", status & 0xff);
        reply(gdb, text);
    }
    if (gdb->client.fd >= 0) {
        loop_fd_del(gdb->loop, &gdb->client);
        close(gdb->client.fd);
    }
    if (gdb->listener.priv)
        loop_fd_del(gdb->loop, &gdb->listener);
    if (gdb->listener.fd >= 0)
        close(gdb->listener.fd);
    if (gdb->unix_path)
        unlink(gdb->unix_path);
    free(gdb->unix_path);
    free(gdb);
}
