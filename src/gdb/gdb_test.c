/* SPDX-License-Identifier: Apache-2.0 */
/* A client that speaks the protocol by hand, and a target of one page and two vCPUs. Real GDB comes
 * in the end-to-end tests. */
#include "gdb/gdb.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/err.h"
#include "base/loop.h"
#include "base/tap.h"

#define CPUS 2

struct machine {
    struct loop *loop;
    struct gdb *gdb;
    pthread_t thread;
    int client;
    char path[64];

    struct gdb_regs regs[CPUS];
    uint8_t memory[4096];
    struct engine_debug debug;
    unsigned stops, gos, passed, kills, last_go;
    bool debugging;

    /* What a task of the loop's thread lets the target do. */
    struct loop_task task;
    struct engine_exit exit;
    unsigned exit_cpu;
};

static void target_stop(void *ctx)
{
    ((struct machine *)ctx)->stops++;
}

static void target_go(void *ctx, unsigned cpu)
{
    struct machine *m = ctx;
    m->last_go = cpu;
    __atomic_fetch_add(&m->gos, 1, __ATOMIC_SEQ_CST);
}

static int target_get(void *ctx, unsigned cpu, struct gdb_regs *regs)
{
    *regs = ((struct machine *)ctx)->regs[cpu];
    return 0;
}

static int target_set(void *ctx, unsigned cpu, const struct gdb_regs *regs)
{
    ((struct machine *)ctx)->regs[cpu] = *regs;
    return 0;
}

static size_t in_page(uint64_t address, size_t len)
{
    if (address >= 4096)
        return 0;
    return len < 4096 - address ? len : 4096 - (size_t)address;
}

static size_t target_read(void *ctx, unsigned cpu, uint64_t address, bool physical, void *buf,
                          size_t len)
{
    (void)cpu;
    (void)physical;
    size_t now = in_page(address, len);
    memcpy(buf, ((struct machine *)ctx)->memory + (now ? address : 0), now);
    return now;
}

static size_t target_write(void *ctx, unsigned cpu, uint64_t address, bool physical,
                           const void *buf, size_t len)
{
    (void)cpu;
    (void)physical;
    size_t now = in_page(address, len);
    memcpy(((struct machine *)ctx)->memory + (now ? address : 0), buf, now);
    return now;
}

static int target_debug(void *ctx, const struct engine_debug *debug)
{
    struct machine *m = ctx;
    m->debugging = debug != NULL;
    if (debug)
        m->debug = *debug;
    return 0;
}

static int target_pass(void *ctx, unsigned cpu)
{
    (void)cpu;
    ((struct machine *)ctx)->passed++;
    return 0;
}

static void target_kill(void *ctx)
{
    ((struct machine *)ctx)->kills++;
}

static const struct gdb_target_ops ops = {
    .stop = target_stop,
    .go = target_go,
    .get_regs = target_get,
    .set_regs = target_set,
    .read = target_read,
    .write = target_write,
    .debug = target_debug,
    .pass_breakpoint = target_pass,
    .kill = target_kill,
};

static void *loop_main(void *arg)
{
    loop_run(arg);
    return NULL;
}

static void connect_client(struct machine *m)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", m->path);
    m->client = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(m->client, (struct sockaddr *)&address, sizeof(address)) < 0)
        abort();
}

static struct machine *machine_new(void)
{
    struct err err = ERR_INIT;
    struct machine *m = calloc(1, sizeof(*m));
    char where[80];
    snprintf(m->path, sizeof(m->path), "/tmp/hull-gdb-test.%d", (int)getpid());
    snprintf(where, sizeof(where), "unix:%s", m->path);
    const struct gdb_config config = {.where = where, .cpu_count = CPUS, .target = &ops, .ctx = m};
    loop_new(&m->loop, 0, &err);
    if (gdb_new(&m->gdb, m->loop, &config, &err) < 0)
        abort();
    pthread_create(&m->thread, NULL, loop_main, m->loop);
    connect_client(m);
    return m;
}

static void machine_free(struct machine *m)
{
    close(m->client);
    loop_stop(m->loop);
    pthread_join(m->thread, NULL);
    gdb_free(m->gdb, 0);
    loop_free(m->loop);
    ok(access(m->path, F_OK) < 0, "the socket's file is gone");
    free(m);
}

static void send_packet(struct machine *m, const char *text)
{
    char packet[8192];
    uint8_t sum = 0;
    for (const char *c = text; *c; c++)
        sum = (uint8_t)(sum + (uint8_t)*c);
    int len = snprintf(packet, sizeof(packet), "$%s#%02x", text, sum);
    send(m->client, packet, (size_t)len, MSG_NOSIGNAL);
}

/* The next packet's content, acknowledgements passed over. */
static const char *receive(struct machine *m)
{
    static char text[65536];
    size_t len = 0;
    char c;
    do {
        if (recv(m->client, &c, 1, 0) != 1)
            return "(closed)";
    } while (c != '$');
    while (recv(m->client, &c, 1, 0) == 1 && c != '#')
        text[len++] = c;
    text[len] = '\0';
    char sum[2];
    recv(m->client, sum, 2, MSG_WAITALL);
    send(m->client, "+", 1, MSG_NOSIGNAL);
    return text;
}

static const char *ask(struct machine *m, const char *text)
{
    send_packet(m, text);
    return receive(m);
}

static void stopped(struct loop_task *task)
{
    struct machine *m = (struct machine *)((char *)task - offsetof(struct machine, task));
    gdb_stopped(m->gdb, m->exit_cpu, &m->exit);
}

static void wait_for_gos(struct machine *m, unsigned count)
{
    for (int i = 0; i < 5000 && __atomic_load_n(&m->gos, __ATOMIC_SEQ_CST) < count; i++)
        usleep(1000);
}

static void target_stops(struct machine *m, unsigned cpu, enum engine_debug_stop stop)
{
    m->exit = (struct engine_exit){.kind = ENGINE_EXIT_DEBUG, .stop = stop};
    m->exit_cpu = cpu;
    m->task.fn = stopped;
    loop_post(m->loop, &m->task);
}

static void test_registers(struct machine *m)
{
    m->regs[0].regs.gpr[CPU_RAX] = 0x1122334455667788;
    m->regs[0].regs.rip = 0x10;
    m->regs[1].regs.gpr[CPU_RAX] = 1;
    is_str(ask(m, "p0"), "8877665544332211", "RAX of vCPU 0");
    is_str(ask(m, "p10"), "1000000000000000", "RIP");
    is_str(ask(m, "Hg2"), "OK", "vCPU 1");
    is_str(ask(m, "p0"), "0100000000000000", "its RAX");
    is_str(ask(m, "P0=efbeadde00000000"), "OK", "set it");
    is_int((long)m->regs[1].regs.gpr[CPU_RAX], 0xdeadbeef, "it is set");
    is_str(ask(m, "p3ff"), "E01", "no such register");
    is_str(ask(m, "P0=12"), "E01", "a short value");
    is_str(ask(m, "Hg3"), "E01", "no such vCPU");
    is_str(ask(m, "Hg1"), "OK", "vCPU 0 again");
    const char *all = ask(m, "g");
    unsigned bytes = 0;
    uint8_t value[16];
    for (unsigned i = 0; i < gdb_reg_count(false); i++)
        bytes += gdb_reg_get(&m->regs[0], false, i, value);
    is_int((long)strlen(all), 2L * bytes, "g has all of them");
}

static void test_memory(struct machine *m)
{
    memcpy(m->memory + 4090, "\1\2\3\4\5\6", 6);
    is_str(ask(m, "mffa,4"), "01020304", "read");
    is_str(ask(m, "mffe,10"), "0506", "up to where memory ends");
    is_str(ask(m, "m1000,1"), "E14", "none there");
    is_str(ask(m, "M10,3:aabbcc"), "OK", "write");
    ok(memcmp(m->memory + 16, "\xaa\xbb\xcc", 3) == 0, "it is there");
    is_str(ask(m, "Mfff,2:0102"), "E14", "write beyond");
    is_str(ask(m, "M10,2:0z"), "E01", "no hexadecimal");
    is_str(ask(m, "Mffffffffffffffffff,2:0102"), "E01", "a number of more than 64 bits");
    is_str(ask(m, "m"), "E01", "nothing");
}

static void test_breakpoints(struct machine *m)
{
    m->memory[0x20] = 0x90;
    is_str(ask(m, "Z0,20,1"), "OK", "a breakpoint");
    is_int(m->memory[0x20], 0x90, "not in memory while stopped");
    unsigned gos = m->gos;
    send_packet(m, "c");
    wait_for_gos(m, gos + 1);
    is_int(m->memory[0x20], 0xcc, "in memory while running");
    ok(m->debug.breakpoints && !m->debug.step, "the engine is told");
    m->regs[1].regs.rip = 0x20;
    target_stops(m, 1, ENGINE_STOP_BREAKPOINT);
    is_str(receive(m), "T05swbreak:;thread:2;", "it is hit");
    is_int(m->memory[0x20], 0x90, "the original byte again");

    is_str(ask(m, "Z2,40,8"), "OK", "a watchpoint");
    is_str(ask(m, "Z2,41,8"), "E01", "one that is not aligned");
    is_str(ask(m, "Z1,50,1"), "OK", "a hardware breakpoint");
    is_str(ask(m, "Z1,51,1"), "OK", "another");
    is_str(ask(m, "Z1,52,1"), "OK", "and another");
    is_str(ask(m, "Z1,53,1"), "E01", "the processor has four");
    is_str(ask(m, "Z9,0,1"), "", "an unknown kind");
    gos = m->gos;
    send_packet(m, "vCont;s:1;c");
    wait_for_gos(m, gos + 1);
    ok(m->debug.step && m->last_go == 0, "vCPU 0 steps alone");
    m->exit.hw = 0;
    target_stops(m, 0, ENGINE_STOP_HARDWARE);
    is_str(receive(m), "T05watch:40;thread:1;", "the watchpoint is hit");

    is_str(ask(m, "z0,20,1"), "OK", "removed");
    gos = m->gos;
    send_packet(m, "c");
    wait_for_gos(m, gos + 1);
    m->regs[0].regs.rip = 0x99;
    target_stops(m, 0, ENGINE_STOP_BREAKPOINT);
    wait_for_gos(m, gos + 2);
    is_int(m->passed, 1, "an INT3 of the guest's own is the guest's");
    unsigned stops = m->stops;
    send(m->client, "\3", 1, 0);
    is_str(receive(m), "T02thread:1;", "interrupted");
    is_int(m->stops, stops + 1, "the target was stopped");
}

static void test_queries(struct machine *m)
{
    is_str(ask(m, "qfThreadInfo"), "m1,2", "the threads");
    is_str(ask(m, "qsThreadInfo"), "l", "no more");
    is_str(ask(m, "qAttached"), "1", "attached");
    is_str(ask(m, "vMustReplyEmpty"), "", "unknown");
    is_str(ask(m, "X"), "", "unknown");
    ok(strstr(ask(m, "qXfer:features:read:target.xml:0,3000"), "org.gnu.gdb.i386.core"),
       "the description");
    is_str(ask(m, "qXfer:features:read:target.xml:ffffff,3000"), "l", "behind its end");
    is_str(ask(m, "qXfer:features:read:other.xml:0,10"), "E00", "no other document");
    send(m->client, "$g#00", 5, 0);
    char c = 0;
    recv(m->client, &c, 1, 0);
    while (c == '+')
        recv(m->client, &c, 1, 0);
    is_int(c, '-', "a wrong checksum is asked for again");
}

static void test_detach(struct machine *m)
{
    unsigned gos = m->gos;
    send_packet(m, "Z0,20,1");
    receive(m);
    close(m->client); /* without a word */
    wait_for_gos(m, gos + 1);
    ok(!m->debugging, "a client that has gone leaves nothing behind");
    is_int(m->memory[0x20], 0x90, "no breakpoint either");
    connect_client(m);
    is_str(ask(m, "?"), "T05thread:1;", "the next client finds the target stopped");
}

int main(void)
{
    struct machine *m = machine_new();
    is_str(ask(m, "?"), "T05thread:1;", "stopped for the client");
    test_registers(m);
    test_memory(m);
    test_breakpoints(m);
    test_queries(m);
    test_detach(m);
    machine_free(m);
    return tap_done();
}
