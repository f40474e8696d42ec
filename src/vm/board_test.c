/* SPDX-License-Identifier: Apache-2.0 */
/* The whole machine on the fake engine. */
#include "vm/board.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/tap.h"
#include "base/units.h"
#include "engine/fake/fake.h"
#include "vm/boot_fixture.h"
#include "vm/layout.h"

#define DISK_BYTES (64 * KIB)

static char kernel_path[32], disk_path[32];

/* --- a machine --- */

struct machine {
    struct vm_config config;
    struct engine_vm *engine;
    struct bus *bus;
    struct loop *loop;
    struct dev_events events;
    struct board board;
    struct err err;
};

static void ignore(void *ctx)
{
    (void)ctx;
}

static void ignore_panic(void *ctx, bool crash_loaded)
{
    (void)ctx;
    (void)crash_loaded;
}

static void ignore_exit(void *ctx, unsigned value)
{
    (void)ctx;
    (void)value;
}

static void option(struct machine *m, const char *name, const char *value)
{
    if (config_set(&m->config, name, value, &m->err) != 0)
        printf("# --%s: %s\n", name, m->err.text);
}

/* The smallest machine; options add to it. */
static void configure(struct machine *m)
{
    *m = (struct machine){
        .events = {.power_off = ignore,
                   .reset = ignore,
                   .panicked = ignore_panic,
                   .exit = ignore_exit},
    };
    config_init(&m->config, &m->err);
    m->config.hpet = true;
    option(m, "name", "test");
    option(m, "kernel", kernel_path);
    option(m, "memory", "16M");
    option(m, "net", "none");
    option(m, "rng", "off");
}

/* What stands below the board. */
static void begin(struct machine *m)
{
    if (m->config.serial_count == 0)
        option(m, "serial", "null");
    int ret = config_finish(&m->config, &m->err);
    if (ret == 0)
        ret = loop_new(&m->loop, 0, &m->err);
    if (ret == 0)
        ret = bus_new(&m->bus, &m->err);
    const struct engine_vm_config engine = {
        .vcpu_count = m->config.cpus, .upcalls = &bus_upcalls, .upcall_ctx = m->bus};
    if (ret == 0)
        ret = engine_fake.vm_new(&m->engine, &engine, &m->err);
    if (ret != 0) {
        printf("Bail out! %s\n", m->err.text);
        exit(1);
    }
}

static void end(struct machine *m)
{
    engine_fake.vm_free(m->engine);
    bus_free(m->bus);
    loop_free(m->loop);
    config_fini(&m->config);
}

static int init(struct machine *m)
{
    int ret = board_init(&m->board, &m->config, m->engine, m->bus, &m->events, m->loop, &m->err);

    if (ret == 0)
        ret = io_threads_start(&m->board.io, &m->err);
    return ret;
}

/* Everything up to the point where the vCPUs would start. */
static bool power_up(struct machine *m)
{
    begin(m);
    if (init(m) == 0 && board_power_on(&m->board, &m->err) == 0)
        return true;
    printf("# %s\n", m->err.text);
    return false;
}

static void power_down(struct machine *m)
{
    board_quiesce(&m->board);
    board_fini(&m->board);
    end(m);
}

static struct device *device_named(struct machine *m, const char *name)
{
    for (struct device *dev = m->board.devices; dev; dev = dev->next) {
        if (strcmp(dev->name, name) == 0)
            return dev;
    }
    return NULL;
}

/* Everything at once: what the board has room for. */
static void configure_large(struct machine *m)
{
    char disk[64];

    configure(m);
    for (unsigned i = 0; i < CONFIG_DISKS_MAX; i++) {
        /* Read-only, so that all may use the same file. */
        snprintf(disk, sizeof(disk), "%s,readonly,queues=%u", disk_path, 1 + i % 4);
        option(m, "disk", disk);
    }
    for (unsigned i = 0; i < CONFIG_SERIALS_MAX; i++)
        option(m, "serial", "null");
    option(m, "console", "null");
    option(m, "rng", "on");
    option(m, "debugcon", NULL);
    option(m, "exit-port", NULL);
    option(m, "memory", "3G");
    option(m, "cpus", "8");
}

/* --- what is there --- */

static void check_names(struct machine *m)
{
    static const char *const fixed[] = {
        "pci",  "mch",   "lpc",   "rtc",   "hpet",  "i8042", "pvpanic", "post",     "debugcon",
        "exit", "uart0", "uart1", "uart2", "uart3", "disk0", "disk15",  "console0", "rng0",
    };
    bool unique = true;
    unsigned count = 0;

    for (struct device *dev = m->board.devices; dev; dev = dev->next) {
        count++;
        for (struct device *other = dev->next; other; other = other->next)
            unique &= strcmp(dev->name, other->name) != 0;
    }
    ok(unique, "every device has a name of its own");
    for (size_t i = 0; i < ARRAY_LEN(fixed); i++)
        ok(device_named(m, fixed[i]), fixed[i]);
    is_int(count, ARRAY_LEN(fixed) - 2 + CONFIG_DISKS_MAX + m->config.net_count,
           "and there are no others");
}

static void check_tables(struct machine *m)
{
    for (struct device *dev = m->board.devices; dev; dev = dev->next) {
        char why[256] = "";
        if (dev->table)
            ok(state_table_check(dev->table, why, sizeof(why)) == 0, dev->name);
        if (why[0])
            printf("# %s\n", why);
    }
}

struct placed {
    uint64_t base, len;
    enum bus_space space;
};

static bool in_window(const struct placed *p, unsigned phys_bits)
{
    uint64_t end = p->base + p->len;

    if (p->space == BUS_PIO)
        return p->base >= LAYOUT_PCI_IO && end <= LAYOUT_PCI_IO_END;
    if (p->base >= LAYOUT_PCI_MEM32 && end <= LAYOUT_PCI_MEM32_END)
        return true;
    return p->base >= LAYOUT_PCI_MEM64_ALIGN && end <= 1ULL << phys_bits;
}

/* Every BAR lies in a window, at a multiple of its size, and beside all others. */
static void check_bars(struct machine *m)
{
    static struct placed placed[256 * PCI_BAR_COUNT];
    unsigned count = 0, functions = 0;
    bool windows = true, aligned = true, apart = true, enabled = true;

    for (unsigned devfn = 0; devfn < 256; devfn++) {
        struct pci_function *fn = pci_bus_function(m->board.pci, (uint8_t)devfn);
        functions += fn != NULL;
        for (unsigned i = 0; fn && i < PCI_BAR_COUNT; i++) {
            const struct pci_bar *bar = &fn->bars[i];
            if (bar->kind == PCI_BAR_NONE)
                continue;
            enabled &= bar->range.mapped;
            aligned &= bar->range.base % bar->size_bytes == 0;
            placed[count] = (struct placed){bar->range.base, bar->range.len, bar->range.space};
            windows &= in_window(&placed[count], engine_fake.phys_bits(m->engine));
            count++;
        }
    }
    for (unsigned i = 0; i < count; i++) {
        for (unsigned j = 0; j < i; j++) {
            const struct placed *a = &placed[i], *b = &placed[j];
            apart &=
                a->space != b->space || a->base + a->len <= b->base || b->base + b->len <= a->base;
        }
    }
    ok(enabled, "every BAR is decoded");
    ok(windows, "inside a window");
    ok(aligned, "at a multiple of its size");
    ok(apart, "and apart from all others");
    /* Host bridge, LPC bridge, disks, cards, console, entropy. */
    is_int(functions, 2 + CONFIG_DISKS_MAX + m->config.net_count + 2, "PCI functions");
    is_int(count, 3 * (functions - 2), "with three BARs each, but for the bridges");
}

/* The same function through ports and through ECAM. */
static void check_config_space(struct machine *m)
{
    uint8_t lpc = PCI_DEVFN(31, 0);

    bus_write(m->bus, BUS_PIO, 0xcf8, 0x80000000u | (uint32_t)lpc << 8, 4);
    uint32_t by_port = (uint32_t)bus_read(m->bus, BUS_PIO, 0xcfc, 4);
    uint32_t by_memory =
        (uint32_t)bus_read(m->bus, BUS_MMIO, LAYOUT_ECAM_BASE + ((uint64_t)lpc << 12), 4);
    is_int(by_port, 0x29188086, "the LPC bridge is 00:1f.0");
    is_int(by_memory, by_port, "in ECAM too");
    is_int(bus_read(m->bus, BUS_MMIO, LAYOUT_ECAM_BASE, 4), 0x29c08086, "the host bridge 00:00.0");
}

static void test_large(void)
{
    struct machine m;

    configure_large(&m);
    ok(power_up(&m), "a machine with all there can be, but cards");
    check_names(&m);
    check_tables(&m);
    check_bars(&m);
    check_config_space(&m);
    is_int(m.board.io.count, IO_THREADS_MAX, "disks share the I/O threads");
    is_int(m.board.char_count, 1 + CONFIG_SERIALS_MAX, "a character device each");
    ok(!m.board.terminal, "none of them the terminal");
    is_int(mem_region_count(m.board.mem), 2, "3 GiB of RAM are in two places");
    is_int(mem_region_at(m.board.mem, 1)->base.a, LAYOUT_RAM_HIGH_BASE, "the second from 4 GiB on");
    is_int(mem_region_at(m.board.mem, 1)->len_bytes, GIB, "what is beyond 2 GiB");
    is_int(fake_event_count(m.engine, FAKE_MAP), 2, "the engine knows both");
    power_down(&m);
}

/* Eight cards more fill the PCI bus. They need taps, which not every host lets us make. */
static void test_cards(void)
{
    struct machine m;

    configure_large(&m);
    for (unsigned i = 0; i < CONFIG_NETS_MAX; i++)
        option(&m, "net", "tap");
    begin(&m);
    if (init(&m) != 0) {
        tap_skip("16 disks and 8 cards", m.err.text);
        end(&m);
        return;
    }
    ok(board_power_on(&m.board, &m.err) == 0, "16 disks and 8 cards");
    check_names(&m);
    check_bars(&m);
    power_down(&m);
}

static void test_small(void)
{
    struct machine m;

    configure(&m);
    ok(power_up(&m), "the smallest machine");
    is_int(mem_region_count(m.board.mem), 1, "one piece of RAM");
    ok(!device_named(&m, "exit") && !device_named(&m, "debugcon"), "without debug devices");
    ok(!device_named(&m, "rng0") && !device_named(&m, "console0"), "or virtio devices");
    is_int(m.board.io.count, 0, "no I/O thread");
    is_int(bus_read(m.bus, BUS_PIO, LAYOUT_PORT_EXIT, 1), 0xff, "nothing at the exit port");
    is_int(m.board.boot.regs.rip, LAYOUT_KERNEL_MIN, "the kernel's entry point");
    power_down(&m);
}

static void test_memory_sizes(void)
{
    /* Sizes, and where RAM ends; 0: refused. */
    static const struct {
        const char *size;
        uint64_t regions, end;
    } sizes[] = {
        {"4M",    1, 4 * MIB          },
        {"2G",    1, 2 * GIB          },
        {"2052M", 2, 4 * GIB + 4 * MIB},
        {"6G",    2, 8 * GIB          },
        {"64T",   0, 0                }, /* 46 bits, and the hole below 4 GiB */
    };

    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        struct machine m;
        configure(&m);
        option(&m, "memory", sizes[i].size);
        begin(&m);
        bool up = init(&m) == 0;
        if (sizes[i].regions == 0) {
            ok(!up, sizes[i].size);
            end(&m);
            continue;
        }
        if (!up && m.err.code == -ENOMEM) { /* a host that does not overcommit */
            tap_skip(sizes[i].size, m.err.text);
            end(&m);
            continue;
        }
        ok(up && board_power_on(&m.board, &m.err) == 0, sizes[i].size);
        is_int(mem_region_count(m.board.mem), sizes[i].regions, "regions");
        const struct mem_region *last = mem_region_at(m.board.mem, sizes[i].regions - 1);
        is_int(last->base.a + last->len_bytes, sizes[i].end, "the end of RAM");
        power_down(&m);
    }
}

/* --- power-on again --- */

#define SNAPSHOTS_MAX 64

struct snapshot {
    void *states[SNAPSHOTS_MAX];
    void *ram;
};

static void snapshot_take(struct snapshot *s, struct machine *m)
{
    const struct mem_region *ram = mem_region_at(m->board.mem, 0);
    unsigned i = 0;

    for (struct device *dev = m->board.devices; dev && i < SNAPSHOTS_MAX; dev = dev->next, i++) {
        s->states[i] = dev->table ? malloc(dev->table->size_bytes) : NULL;
        if (dev->table)
            memcpy(s->states[i], dev->state, dev->table->size_bytes);
    }
    s->ram = malloc(ram->len_bytes);
    memcpy(s->ram, ram->host, ram->len_bytes);
}

static void snapshot_free(struct snapshot *s)
{
    for (unsigned i = 0; i < SNAPSHOTS_MAX; i++)
        free(s->states[i]);
    free(s->ram);
}

/* What goes on with the time of day, reset or not. */
static bool is_clock(const struct device *dev, const struct state_field *field)
{
    return strcmp(dev->name, "rtc") == 0 || strstr(field->name, "timer");
}

static bool same_field(const struct device *dev, const struct state_field *field,
                       const void *before, const void *after)
{
    if (memcmp((const char *)before + field->offset, (const char *)after + field->offset,
               (size_t)field->width * field->count) == 0)
        return true;
    if (!field->nested) {
        if (!is_clock(dev, field))
            printf("# %s: %s\n", dev->name, field->name);
        return is_clock(dev, field);
    }
    bool same = true;
    for (uint32_t i = 0; i < field->count; i++) {
        uint32_t at = field->offset + i * field->width;
        for (unsigned j = 0; j < field->nested->field_count; j++)
            same &= same_field(dev, &field->nested->fields[j], (const char *)before + at,
                               (const char *)after + at);
    }
    return same;
}

static void snapshot_compare(const struct snapshot *before, const struct snapshot *after,
                             struct machine *m)
{
    unsigned i = 0;

    for (struct device *dev = m->board.devices; dev; dev = dev->next, i++) {
        bool same = true;
        for (unsigned j = 0; dev->table && j < dev->table->field_count; j++) {
            const struct state_field *field = &dev->table->fields[j];
            same &= same_field(dev, field, before->states[i], after->states[i]);
        }
        if (dev->table)
            ok(same, dev->name);
    }
    ok(memcmp(before->ram, after->ram, mem_region_at(m->board.mem, 0)->len_bytes) == 0, "RAM");
}

/* What no driver would do: every port, all configuration registers, all registers in BARs. */
static void disturb(struct machine *m)
{
    uint64_t value = 0x0123456789abcdef;

    for (unsigned devfn = 0; devfn < 256; devfn++) {
        struct pci_function *fn = pci_bus_function(m->board.pci, (uint8_t)devfn);
        for (unsigned i = 0; fn && i < PCI_BAR_COUNT; i++) {
            struct bus_range *range = &fn->bars[i].range;
            for (uint64_t at = 0; range->mapped && at < range->len && at < 0x4000; at += 2)
                bus_write(m->bus, range->space, range->base + at, value = value * 5 + 1, 2);
        }
        uint64_t config = LAYOUT_ECAM_BASE + ((uint64_t)devfn << 12);
        /* The bridges last: they move the window. */
        for (unsigned at = 4; fn && devfn > 0 && at < 256; at += 4)
            bus_write(m->bus, BUS_MMIO, config + at, value = value * 5 + 1, 4);
    }
    for (unsigned port = 0; port < 0x6000; port++)
        bus_write(m->bus, BUS_PIO, port, value = value * 5 + 1, 1);
    for (unsigned at = 4; at < 256; at++)
        bus_write(m->bus, BUS_MMIO, LAYOUT_ECAM_BASE + at, value = value * 5 + 1, 1);
    const struct mem_region *ram = mem_region_at(m->board.mem, 0);
    memset(ram->host, 0xa5, ram->len_bytes);
}

static void test_power_on_again(void)
{
    struct machine m;
    struct snapshot first = {0}, second = {0};

    configure_large(&m);
    option(&m, "memory", "16M");
    ok(power_up(&m), "a machine");
    snapshot_take(&first, &m);
    struct boot_result boot = m.board.boot;
    disturb(&m);
    is_int(board_power_on(&m.board, &m.err), 0, "off and on again");
    snapshot_take(&second, &m);
    snapshot_compare(&first, &second, &m);
    ok(memcmp(&boot.regs, &m.board.boot.regs, sizeof(boot.regs)) == 0 &&
           memcmp(&boot.sregs, &m.board.boot.sregs, sizeof(boot.sregs)) == 0,
       "vCPU 0 starts as before");
    for (unsigned gsi = 0; gsi < IRQ_GSI_COUNT; gsi++) {
        if (fake_gsi_level(m.engine, gsi))
            printf("# line %u is up\n", gsi);
    }
    check_bars(&m);
    check_config_space(&m);
    snapshot_free(&first);
    snapshot_free(&second);
    power_down(&m);
}

/* --- failures --- */

static unsigned count_entries(const char *path)
{
    unsigned count = 0;
    DIR *dir = opendir(path);

    while (dir && readdir(dir))
        count++;
    closedir(dir);
    return count;
}

/* One option that cannot be had, after many that can. */
static void test_bad_options(void)
{
    static const char *const bad[][2] = {
        {"disk",    "/nonexistent"},
        {"disk",    "/dev/null"   },
        {"disk",    "/"           },
        {"console", "file:/"      },
        {"console", "carrier"     },
        {"serial",  "file:/no/no" },
    };

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct machine m;
        char disk[64];
        configure(&m);
        for (unsigned j = 0; j < 4; j++) {
            snprintf(disk, sizeof(disk), "%s,readonly", disk_path);
            option(&m, "disk", disk);
        }
        option(&m, "serial", "null");
        option(&m, "console", "null");
        option(&m, bad[i][0], bad[i][1]);
        begin(&m);
        unsigned fds = count_entries("/proc/self/fd"), tasks = count_entries("/proc/self/task");
        ok(init(&m) < 0 && m.err.text[0], bad[i][1]);
        ok(strncmp(m.err.text, "--", 2) == 0 && strstr(m.err.text, bad[i][0]),
           "the error names the option");
        ok(!m.board.engine && !m.board.devices && !m.board.mem, "the board is empty again");
        ok(count_entries("/proc/self/fd") == fds && count_entries("/proc/self/task") == tasks,
           "nothing is left behind");
        end(&m);
    }
}

/* The engine refuses the first, second, ... operation of a kind. */
static void test_engine_refuses(void)
{
    static const enum fake_event_kind kinds[] = {FAKE_MAP, FAKE_IRQFD_NEW, FAKE_VM_RESET};

    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        struct machine m;
        char disk[64];
        configure(&m);
        snprintf(disk, sizeof(disk), "%s,readonly", disk_path);
        option(&m, "disk", disk);
        option(&m, "rng", "on");
        begin(&m);
        unsigned fds = count_entries("/proc/self/fd"), tasks = count_entries("/proc/self/task");
        fake_fail_next(m.engine, kinds[i], -EIO);
        int ret = init(&m);
        bool built = ret == 0;
        if (built)
            ret = board_power_on(&m.board, &m.err);
        if (built)
            board_fini(&m.board);
        ok(ret == -EIO || kinds[i] == FAKE_IRQFD_NEW, "the engine refuses");
        ok(count_entries("/proc/self/fd") == fds && count_entries("/proc/self/task") == tasks,
           "nothing is left behind");
        end(&m);
    }
}

int main(void)
{
    struct elf_spec spec = {
        .paddr = LAYOUT_KERNEL_MIN, .entry = LAYOUT_KERNEL_MIN, .text_len = 64, .pvh_note = true};
    static uint8_t image[IMAGE_ELF_MAX], disk[DISK_BYTES];
    struct boot_image kernel = make_elf(image, &spec);
    struct err err = ERR_INIT;

    log_configure("error", &err);
    write_file(kernel_path, kernel.bytes, kernel.len);
    write_file(disk_path, disk, sizeof(disk));
    test_small();
    test_large();
    test_cards();
    test_memory_sizes();
    test_power_on_again();
    test_bad_options();
    test_engine_refuses();
    unlink(kernel_path);
    unlink(disk_path);
    return tap_done();
}
