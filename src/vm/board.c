/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/board.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/err.h"
#include "block/block.h"
#include "char/char.h"
#include "dev/hpet.h"
#include "dev/i8042.h"
#include "dev/lpc.h"
#include "dev/mch.h"
#include "dev/ports.h"
#include "dev/pvpanic.h"
#include "dev/rtc.h"
#include "dev/uart.h"
#include "dev/virtio/blk.h"
#include "dev/virtio/console.h"
#include "dev/virtio/net.h"
#include "dev/virtio/rng.h"
#include "net/net.h"
#include "vm/acpi.h"
#include "vm/layout.h"

#define QUIESCE_POLL_NS (1 * NS_PER_MS)

/* --- memory --- */

static uint64_t ram_low_bytes(const struct board *board)
{
    uint64_t bytes = board->config->memory_bytes;

    return bytes < LAYOUT_RAM_LOW_MAX ? bytes : LAYOUT_RAM_LOW_MAX;
}

static uint64_t ram_high_bytes(const struct board *board)
{
    return board->config->memory_bytes - ram_low_bytes(board);
}

static int check_memory(const struct board *board, struct err *err)
{
    unsigned phys_bits = board->engine->ops->phys_bits(board->engine);
    char size[32];

    if (ram_high_bytes(board) == 0 ||
        range_fits(LAYOUT_RAM_HIGH_BASE, ram_high_bytes(board), 1ULL << phys_bits))
        return 0;
    return err_set(err, EINVAL, "--memory %s: a guest here addresses %u bits, which is less",
                   size_format(board->config->memory_bytes, size, sizeof(size)), phys_bits);
}

static int add_memory(struct board *board, struct err *err)
{
    const struct vm_config *config = board->config;
    const struct mem_options options = {
        .huge_pages = config->memory_huge_pages,
        .shared = config->memory_shared,
        .prefault = config->memory_prefault,
        .mergeable = config->memory_mergeable,
    };
    int ret = check_memory(board, err);

    if (ret == 0)
        ret = mem_new(&board->mem, &options, err);
    if (ret == 0)
        ret = mem_add_ram(board->mem, "ram-low", GPA(0), ram_low_bytes(board), err);
    if (ret == 0 && ram_high_bytes(board))
        ret = mem_add_ram(board->mem, "ram-high", GPA(LAYOUT_RAM_HIGH_BASE), ram_high_bytes(board),
                          err);
    for (unsigned i = 0; ret == 0 && i < mem_region_count(board->mem); i++)
        ret = board->engine->ops->map(board->engine, i, mem_region_at(board->mem, i), err);
    return ret;
}

/* --- devices --- */

static void add_device(struct board *board, struct device *dev)
{
    struct device **end = &board->devices;
    const struct engine_ops *ops = board->engine->ops;

    dev->clock = ops->virtual_clock ? ops->virtual_clock(board->engine) : NULL;
    while (*end)
        end = &(*end)->next;
    *end = dev;
}

static int add_buses(struct board *board, struct err *err)
{
    irq_router_init(&board->irq, board->engine);
    const struct pci_bus_config pci = {
        .bus = board->bus,
        .irq = &board->irq,
        .loop = board->main_loop,
        .pirq_set = lpc_pirq_set,
        .pirq_ctx = &board->lpc,
    };
    int ret = pci_bus_new(&board->pci, &pci, err);
    if (ret == 0)
        add_device(board, pci_bus_device(board->pci));
    return ret;
}

static int add_chipset(struct board *board, const struct dev_env *env, struct err *err)
{
    struct device *dev;
    int ret;

    if ((ret = mch_new(&board->mch, env, err)) != 0)
        return ret;
    add_device(board, board->mch);
    if ((ret = lpc_new(&board->lpc, env, err)) != 0)
        return ret;
    add_device(board, board->lpc);
    if ((ret = rtc_new(&board->rtc, env, err)) != 0)
        return ret;
    add_device(board, board->rtc);
    rtc_on_alarm(board->rtc, lpc_rtc_alarm, board->lpc);
    rtc_set_memory(board->rtc, ram_low_bytes(board), ram_high_bytes(board), board->config->cpus);
    if (board->config->hpet) {
        if ((ret = hpet_new(&dev, env, err)) != 0)
            return ret;
        add_device(board, dev);
    }
    if ((ret = i8042_new(&dev, env, err)) != 0)
        return ret;
    add_device(board, dev);
    if ((ret = pvpanic_new(&dev, env, err)) != 0)
        return ret;
    add_device(board, dev);
    if ((ret = post_new(&dev, env, err)) != 0)
        return ret;
    add_device(board, dev);
    if (board->config->debugcon) {
        if ((ret = debugcon_new(&dev, env, err)) != 0)
            return ret;
        add_device(board, dev);
    }
    if (board->config->exit_port) {
        if ((ret = exit_port_new(&dev, env, err)) != 0)
            return ret;
        add_device(board, dev);
    }
    return 0;
}

/* The board's character device for the option with value spec. */
static int open_char(struct board *board, struct char_dev **chr, const char *option,
                     const char *spec, struct err *err)
{
    int ret = char_open(chr, spec, err);

    if (ret != 0)
        return err_prefix(err, "--%s %s", option, spec);
    board->chars[board->char_count++] = *chr;
    if (strcmp(spec, "stdio") == 0)
        board->terminal = *chr;
    return 0;
}

static int add_serials(struct board *board, const struct dev_env *env, struct err *err)
{
    for (unsigned i = 0; i < board->config->serial_count; i++) {
        struct char_dev *chr;
        struct device *dev;
        int ret = open_char(board, &chr, "serial", board->config->serials[i], err);
        if (ret == 0)
            ret = uart_new(&dev, env, i, chr, err);
        if (ret != 0)
            return ret;
        add_device(board, dev);
    }
    return 0;
}

/* Prepare what a virtio device gets; it lives on loop. */
static struct virtio_env virtio_env(struct board *board, struct loop *loop)
{
    return (struct virtio_env){
        .mem = board->mem,
        .pci = board->pci,
        .irq = &board->irq,
        .engine = board->engine,
        .loop = loop,
    };
}

static int plug(struct board *board, struct virtio_device *virtio, struct err *err)
{
    add_device(board, &virtio->fn.dev);
    return virtio_pci_plug(virtio, -1, err);
}

static int add_disk(struct board *board, unsigned index, struct err *err)
{
    const struct config_disk *config = &board->config->disks[index];
    const struct block_options open_options = {
        .path = config->path,
        .read_only = config->read_only,
        .cache = config->cache,
    };
    const struct virtio_blk_options options = {
        .serial = config->serial,
        .queues = config->queues,
    };
    struct virtio_device *virtio;
    struct block_dev *disk;
    struct loop *loop;
    char name[16];

    int ret = block_open(&disk, &open_options, err);
    if (ret != 0)
        return err_prefix(err, "--disk %s", config->path);
    ret = io_threads_take(&board->io, &loop, err);
    if (ret != 0) {
        block_close(disk);
        return ret;
    }
    const struct virtio_env env = virtio_env(board, loop);
    snprintf(name, sizeof(name), "disk%u", index);
    ret = virtio_blk_new(&virtio, &env, name, disk, &options, err);
    if (ret != 0) {
        block_close(disk);
        return err_prefix(err, "--disk %s", config->path);
    }
    return plug(board, virtio, err);
}

static int open_net(const struct config_net *config, struct net_backend **net, struct err *err)
{
    const struct net_tap_options tap = {
        .name = config->tap_name,
        .queue_pairs = config->queues,
    };
    const struct net_user_options user = {
        .forwards = config->forwards,
        .forward_count = config->forward_count,
        .restricted = config->restricted,
    };

    return config->kind == CONFIG_NET_TAP ? net_tap_open(net, &tap, err)
                                          : net_user_open(net, &user, err);
}

static int add_net(struct board *board, unsigned index, struct err *err)
{
    const struct config_net *config = &board->config->nets[index];
    struct virtio_net_options options = {.queue_pairs = config->queues};
    struct virtio_device *virtio;
    struct net_backend *net;
    struct loop *loop;
    char name[16];

    memcpy(options.mac, config->mac, sizeof(options.mac));
    int ret = open_net(config, &net, err);
    if (ret != 0)
        return err_prefix(err, "--net %s", config->kind == CONFIG_NET_TAP ? "tap" : "user");
    ret = io_threads_take(&board->io, &loop, err);
    if (ret != 0) {
        net_close(net);
        return ret;
    }
    const struct virtio_env env = virtio_env(board, loop);
    snprintf(name, sizeof(name), "net%u", index);
    ret = virtio_net_new(&virtio, &env, name, net, &options, err);
    if (ret != 0) {
        net_close(net);
        return ret;
    }
    return plug(board, virtio, err);
}

static int add_small_virtio(struct board *board, struct err *err)
{
    const struct virtio_env env = virtio_env(board, board->main_loop);
    struct virtio_device *virtio;
    struct char_dev *chr;
    int ret = 0;

    if (board->config->console) {
        ret = open_char(board, &chr, "console", board->config->console, err);
        if (ret == 0)
            ret = virtio_console_new(&virtio, &env, "console0", chr, err);
        if (ret == 0)
            ret = plug(board, virtio, err);
    }
    if (ret == 0 && board->config->rng) {
        ret = virtio_rng_new(&virtio, &env, "rng0", err);
        if (ret == 0)
            ret = plug(board, virtio, err);
    }
    return ret;
}

static int add_devices(struct board *board, struct err *err)
{
    const struct dev_env env = {
        .bus = board->bus,
        .irq = &board->irq,
        .pci = board->pci,
        .loop = board->main_loop,
        .events = board->events,
    };
    int ret = add_chipset(board, &env, err);

    if (ret == 0)
        ret = add_serials(board, &env, err);
    for (unsigned i = 0; ret == 0 && i < board->config->disk_count; i++)
        ret = add_disk(board, i, err);
    for (unsigned i = 0; ret == 0 && i < board->config->net_count; i++)
        ret = add_net(board, i, err);
    return ret != 0 ? ret : add_small_virtio(board, err);
}

int board_init(struct board *board, const struct vm_config *config, struct engine_vm *engine,
               struct bus *bus, const struct dev_events *events, struct loop *main_loop,
               struct err *err)
{
    *board = (struct board){
        .config = config, .engine = engine, .bus = bus, .events = events, .main_loop = main_loop};
    int ret = add_memory(board, err);

    if (ret == 0)
        ret = add_buses(board, err);
    if (ret == 0)
        ret = add_devices(board, err);
    if (ret != 0)
        board_fini(board);
    return ret;
}

void board_fini(struct board *board)
{
    io_threads_stop(&board->io);
    /* Newest first: a device may lean on one that was there before it. */
    while (board->devices) {
        struct device **last = &board->devices;
        while ((*last)->next)
            last = &(*last)->next;
        struct device *dev = *last;
        *last = NULL;
        device_fini(dev);
    }
    if (board->pci)
        pci_bus_free(board->pci);
    if (board->irq.vm)
        irq_router_fini(&board->irq);
    for (unsigned i = 0; i < board->char_count; i++)
        char_close(board->chars[i]);
    io_threads_fini(&board->io);
    mem_free(board->mem);
    memset(board, 0, sizeof(*board));
}

/* --- power-on --- */

void board_quiesce(struct board *board)
{
    const struct timespec pause = {.tv_nsec = QUIESCE_POLL_NS};

    for (struct device *dev = board->devices; dev; dev = dev->next)
        device_reset(dev);
    for (struct device *dev = board->devices; dev; dev = dev->next) {
        while (!device_quiet(dev))
            nanosleep(&pause, NULL);
    }
}

/* The window for 64-bit BARs: the first free multiple above RAM, where the CPU can address it. */
static void mem64_window(const struct board *board, uint64_t *base, uint64_t *len)
{
    unsigned phys_bits = board->engine->ops->phys_bits(board->engine);

    *base = align_up(LAYOUT_RAM_HIGH_BASE + ram_high_bytes(board), LAYOUT_PCI_MEM64_ALIGN);
    *len = range_fits(*base, LAYOUT_PCI_MEM64_SIZE, 1ULL << phys_bits) ? LAYOUT_PCI_MEM64_SIZE : 0;
}

/* What firmware leaves behind for an operating system: chipset registers and PCI addresses. */
static int act_as_firmware(struct board *board, struct err *err)
{
    struct pci_windows windows = {
        .io_base = LAYOUT_PCI_IO,
        .io_len = LAYOUT_PCI_IO_END - LAYOUT_PCI_IO,
        .mem32_base = LAYOUT_PCI_MEM32,
        .mem32_len = LAYOUT_PCI_MEM32_END - LAYOUT_PCI_MEM32,
    };

    mem64_window(board, &windows.mem64_base, &windows.mem64_len);
    mch_enable_ecam(board->mch, LAYOUT_ECAM_BASE);
    lpc_enable_pm(board->lpc, LAYOUT_PORT_PM_BASE);
    return pci_bus_assign(board->pci, &windows, err);
}

/* A name-based identifier, so that the guest sees the same machine at every start. */
static void derive_uuid(uint8_t uuid[16], const char *name)
{
    uint64_t hash = 0xcbf29ce484222325ULL; /* FNV-1a */

    for (int half = 0; half < 2; half++) {
        for (const char *c = name; *c; c++)
            hash = (hash ^ (uint8_t)*c) * 0x100000001b3ULL;
        store_le64(uuid + 8 * half, hash);
    }
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x80); /* version 8: our own scheme (RFC 9562) */
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

/* ACPI takes the first three quarters of the BIOS area, SMBIOS the rest. */
static int write_tables(struct board *board, uint64_t *rsdp_gpa, struct err *err)
{
    const uint64_t acpi_len = LAYOUT_BIOS_AREA_LEN * 3 / 4;
    struct acpi_params acpi = {
        .cpus = board->config->cpus,
        .phys_bits = board->engine->ops->phys_bits(board->engine),
        .serial_count = board->config->serial_count,
        .hpet = board->config->hpet,
    };
    struct smbios_params smbios = {
        .product_name = "Hull",
        .vm_name = board->config->name,
        .version = HULL_VERSION,
        .cpus = board->config->cpus,
        .ram_bytes = board->config->memory_bytes,
    };

    mem64_window(board, &acpi.pci_mem64_base, &acpi.pci_mem64_len);
    derive_uuid(smbios.uuid, board->config->name);
    int ret = acpi_build(board->mem, &acpi, GPA(LAYOUT_BIOS_AREA), acpi_len, rsdp_gpa, err);
    if (ret == 0)
        ret = smbios_build(board->mem, &smbios, GPA(LAYOUT_BIOS_AREA + acpi_len),
                           LAYOUT_BIOS_AREA_LEN - acpi_len, err);
    return ret;
}

static int load_kernel(struct board *board, uint64_t rsdp_gpa, struct err *err)
{
    const struct vm_config *config = board->config;
    struct boot_range map[BOOT_RANGES_MAX];
    const struct boot_params params = {
        .mem = board->mem,
        .protocol = config->boot,
        .kernel = config->kernel,
        .initrd = config->initrd,
        .cmdline = config->append ? config->append : "",
        .modules = config->modules,
        .module_count = config->module_count,
        .rsdp_gpa = rsdp_gpa,
        .map = map,
        .map_count = boot_memory_map(config->memory_bytes, map),
    };

    return boot_load(&params, &board->boot, err);
}

/* Some processors' numbers are more than an xAPIC can address: firmware then hands over in x2APIC
 * mode, and systems take their entries in the MADT only there. */
static void switch_to_x2apic(struct board *board)
{
    if (board->config->cpus > LAYOUT_XAPIC_CPUS_MAX)
        board->boot.sregs.apic_base |= CPU_APIC_BASE_X2APIC;
}

int board_power_on(struct board *board, struct err *err)
{
    uint64_t rsdp_gpa = 0;
    int ret;

    board_quiesce(board);
    mem_discard_all(board->mem);
    ret = board->engine->ops->vm_reset(board->engine, err);
    if (ret == 0)
        ret = act_as_firmware(board, err);
    if (ret == 0)
        ret = write_tables(board, &rsdp_gpa, err);
    if (ret == 0)
        ret = load_kernel(board, rsdp_gpa, err);
    if (ret == 0)
        switch_to_x2apic(board);
    return ret;
}

void board_power_button(struct board *board)
{
    lpc_power_button(board->lpc);
}
