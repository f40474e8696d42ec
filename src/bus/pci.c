/* SPDX-License-Identifier: Apache-2.0 */
/* The root bus: configuration mechanism #1 and ECAM, slots, INTx routing, address assignment. */
#include "bus/pci.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/units.h"
#include "bus/pci_priv.h"

#define CONFIG_ADDRESS_PORT   0xcf8u
#define CONFIG_DATA_PORT      0xcfcu
#define RESET_PORT_OFFSET     1u /* 0xcf9 */
#define CONFIG_ADDRESS_ENABLE 0x80000000u
#define CONFIG_ADDRESS_MASK   0x80fffffcu /* the rest reads zero (PCI 3.0, 3.2.2.3.2) */

#define ECAM_BUS_BYTES        MIB
#define PIRQ_COUNT            8

struct pci_bus_state {
    uint32_t config_address;
    uint8_t pad_[4];
};

static const struct state_field pci_bus_fields[] = {
    STATE_U32(struct pci_bus_state, config_address, 1, 0, "Address register (port 0xcf8)"),
    STATE_PAD(struct pci_bus_state, pad_),
};
static const struct state_table pci_bus_state_table =
    STATE_TABLE("pci-bus", struct pci_bus_state, 1, pci_bus_fields);

struct pci_bus {
    struct device dev; /* first */
    struct pci_bus_state state;
    struct pci_bus_config config;
    struct bus_range address_port, data_port, ecam;
    struct bus_range *reset_port;
    struct pci_function *functions[PCI_SLOT_COUNT * PCI_FUNCTION_COUNT];
    pthread_mutex_t intx_lock; /* below the devices' locks */
    unsigned pirq_holders[PIRQ_COUNT];
};

/* --- configuration accesses; the bus's device lock is held --- */

static uint32_t ones(unsigned size)
{
    return size >= 4 ? UINT32_MAX : (1u << (size * 8)) - 1;
}

static struct pci_function *config_target(struct pci_bus *bus, unsigned number, unsigned devfn,
                                          unsigned reg, unsigned size)
{
    return number == 0 && range_fits(reg, size, PCI_CONFIG_BYTES) ? bus->functions[devfn] : NULL;
}

/* Functions that are not there answer with all ones (a master abort). */
static uint32_t config_read(struct pci_bus *bus, unsigned number, unsigned devfn, unsigned reg,
                            unsigned size)
{
    struct pci_function *fn = config_target(bus, number, devfn, reg, size);
    uint32_t value;

    if (!fn)
        return ones(size);
    device_lock(&fn->dev);
    value = pci_function_config_read(fn, reg, size);
    device_unlock(&fn->dev);
    return value;
}

static void config_write(struct pci_bus *bus, unsigned number, unsigned devfn, unsigned reg,
                         uint32_t value, unsigned size)
{
    struct pci_function *fn = config_target(bus, number, devfn, reg, size);

    if (!fn)
        return;
    device_lock(&fn->dev);
    pci_function_config_write(fn, reg, value, size);
    device_unlock(&fn->dev);
}

/* Mechanism #1: only doublewords reach the address register; what is narrower goes on to whatever
 * else has that port (PCI 3.0, 3.2.2.3.2). */
static uint64_t address_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    struct pci_bus *bus = CONTAINER_OF(range, struct pci_bus, address_port);
    struct bus_range *under = bus->reset_port;
    uint64_t value = ones(size);

    if (size == 4)
        return bus->state.config_address;
    if (offset == RESET_PORT_OFFSET && size == 1 && under) {
        device_lock(under->dev);
        value = under->ops->read(under, 0, 1);
        device_unlock(under->dev);
    }
    return value;
}

static void address_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct pci_bus *bus = CONTAINER_OF(range, struct pci_bus, address_port);
    struct bus_range *under = bus->reset_port;

    if (size == 4) {
        bus->state.config_address = (uint32_t)value & CONFIG_ADDRESS_MASK;
    } else if (offset == RESET_PORT_OFFSET && size == 1 && under) {
        device_lock(under->dev);
        under->ops->write(under, 0, value, 1);
        device_unlock(under->dev);
    }
}

static const struct bus_range_ops address_ops = {
    .read = address_read,
    .write = address_write,
    .max_size = 4,
};

static uint64_t data_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    struct pci_bus *bus = CONTAINER_OF(range, struct pci_bus, data_port);
    uint32_t address = bus->state.config_address;

    if (!(address & CONFIG_ADDRESS_ENABLE))
        return ones(size);
    return config_read(bus, (address >> 16) & 0xff, (address >> 8) & 0xff,
                       (address & 0xfc) + (unsigned)offset, size);
}

static void data_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct pci_bus *bus = CONTAINER_OF(range, struct pci_bus, data_port);
    uint32_t address = bus->state.config_address;

    if (address & CONFIG_ADDRESS_ENABLE)
        config_write(bus, (address >> 16) & 0xff, (address >> 8) & 0xff,
                     (address & 0xfc) + (unsigned)offset, (uint32_t)value, size);
}

static const struct bus_range_ops data_ops = {
    .read = data_read,
    .write = data_write,
    .max_size = 4,
};

/* (PCI Express 5.0, 7.2.2) An access across the end of a function reaches nothing. */
static uint64_t ecam_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    struct pci_bus *bus = CONTAINER_OF(range, struct pci_bus, ecam);

    return config_read(bus, (unsigned)(offset >> 20), (offset >> 12) & 0xff, offset & 0xfff, size);
}

static void ecam_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct pci_bus *bus = CONTAINER_OF(range, struct pci_bus, ecam);

    config_write(bus, (unsigned)(offset >> 20), (offset >> 12) & 0xff, offset & 0xfff,
                 (uint32_t)value, size);
}

static const struct bus_range_ops ecam_ops = {
    .read = ecam_read,
    .write = ecam_write,
    .max_size = 4,
};

/* --- the bus itself --- */

static const struct device_ops pci_bus_device_ops = {0};

int pci_bus_new(struct pci_bus **out, const struct pci_bus_config *config, struct err *err)
{
    struct pci_bus *bus = calloc(1, sizeof(*bus));
    int rc;

    if (!bus)
        return err_errno(err, ENOMEM, "cannot make the PCI bus");
    device_init(&bus->dev, &pci_bus_device_ops, &pci_bus_state_table, &bus->state, config->loop,
                "pci");
    bus->config = *config;
    pthread_mutex_init(&bus->intx_lock, NULL);
    bus->address_port = (struct bus_range){
        .ops = &address_ops, .dev = &bus->dev, .base = CONFIG_ADDRESS_PORT, .len = 4};
    bus->data_port =
        (struct bus_range){.ops = &data_ops, .dev = &bus->dev, .base = CONFIG_DATA_PORT, .len = 4};
    bus->ecam = (struct bus_range){.ops = &ecam_ops, .dev = &bus->dev, .space = BUS_MMIO};
    rc = bus_map(config->bus, &bus->address_port);
    if (rc == 0)
        rc = bus_map(config->bus, &bus->data_port);
    if (rc < 0) {
        pci_bus_free(bus);
        return err_errno(err, rc, "cannot map the PCI configuration ports");
    }
    *out = bus;
    return 0;
}

void pci_bus_free(struct pci_bus *bus)
{
    if (!bus)
        return;
    bus_unmap(bus->config.bus, &bus->ecam);
    bus_unmap(bus->config.bus, &bus->data_port);
    bus_unmap(bus->config.bus, &bus->address_port);
    pthread_mutex_destroy(&bus->intx_lock);
    free(bus);
}

struct device *pci_bus_device(struct pci_bus *bus)
{
    return &bus->dev;
}

const struct pci_bus_config *pci_bus_configuration(const struct pci_bus *bus)
{
    return &bus->config;
}

void pci_bus_set_ecam(struct pci_bus *bus, gpa_t base, unsigned buses)
{
    uint64_t len = buses * ECAM_BUS_BYTES;

    if (bus->ecam.mapped && bus->ecam.base == base.a && bus->ecam.len == len)
        return;
    bus_unmap(bus->config.bus, &bus->ecam);
    bus->ecam.base = base.a;
    bus->ecam.len = len;
    if (len != 0 && bus_map(bus->config.bus, &bus->ecam) < 0)
        log_guest(&bus->dev.log_budget, bus->dev.name, "ECAM at 0x%llx cannot be mapped",
                  (unsigned long long)base.a);
}

void pci_bus_set_reset_port(struct pci_bus *bus, struct bus_range *range)
{
    bus->reset_port = range;
}

/* --- slots --- */

static bool slot_is_free(const struct pci_bus *bus, unsigned slot)
{
    for (unsigned i = 0; i < PCI_FUNCTION_COUNT; i++) {
        if (bus->functions[PCI_DEVFN(slot, i)])
            return false;
    }
    return true;
}

int pci_bus_plug(struct pci_bus *bus, struct pci_function *fn, int devfn, struct err *err)
{
    int rc;

    for (unsigned slot = 1; devfn < 0 && slot < PCI_SLOT_COUNT; slot++) {
        if (slot_is_free(bus, slot))
            devfn = PCI_DEVFN(slot, 0);
    }
    if (devfn < 0)
        return err_set(err, ENOSPC, "%s: all %d PCI slots are taken", fn->dev.name, PCI_SLOT_COUNT);
    assert((unsigned)devfn < ARRAY_LEN(bus->functions));
    if (bus->functions[devfn])
        return err_set(err, EBUSY, "%s: PCI function %02x.%x is taken by %s", fn->dev.name,
                       (unsigned)devfn >> 3, (unsigned)devfn & 7, bus->functions[devfn]->dev.name);
    fn->bus = bus;
    fn->devfn = (uint8_t)devfn;
    rc = pci_msix_attach(fn, err);
    if (rc < 0)
        return rc;
    bus->functions[devfn] = fn;

    /* Software looks for the bit in function 0; all functions of the slot show it. */
    for (unsigned i = 0; i < PCI_FUNCTION_COUNT; i++) {
        struct pci_function *other = bus->functions[PCI_DEVFN((unsigned)devfn >> 3, i)];
        if (other && (i != 0 || (devfn & 7) != 0)) {
            other->reset_config[PCI_HEADER_TYPE] |= PCI_MULTI_FUNCTION;
            other->pci->config[PCI_HEADER_TYPE] |= PCI_MULTI_FUNCTION;
        }
    }
    return 0;
}

void pci_bus_unplug(struct pci_bus *bus, struct pci_function *fn)
{
    if (bus->functions[fn->devfn] == fn)
        bus->functions[fn->devfn] = NULL;
}

struct pci_function *pci_bus_function(struct pci_bus *bus, uint8_t devfn)
{
    return bus->functions[devfn];
}

/* --- INTx --- */

unsigned pci_slot_pirq(unsigned slot, unsigned pin)
{
    return (slot + pin - 1) % 4 + 4;
}

unsigned pci_pirq_isa_irq(unsigned pirq)
{
    return pirq % 4 < 2 ? 10 : 11;
}

void pci_bus_intx_adjust(struct pci_bus *bus, unsigned slot, unsigned pin, bool level)
{
    unsigned pirq = pci_slot_pirq(slot, pin);
    unsigned *holders = &bus->pirq_holders[pirq];

    /* The route is told under the lock, so that it sees the levels in the right order. */
    pthread_mutex_lock(&bus->intx_lock);
    assert(level || *holders > 0);
    *holders = level ? *holders + 1 : *holders - 1;
    if (bus->config.pirq_set && *holders == (level ? 1 : 0))
        bus->config.pirq_set(bus->config.pirq_ctx, pirq, level);
    pthread_mutex_unlock(&bus->intx_lock);
}

/* --- address assignment --- */

struct window {
    uint64_t next, end;
};

static bool window_take(struct window *window, uint64_t size, uint64_t align, uint64_t *base)
{
    uint64_t start;

    if (window->next > UINT64_MAX - align)
        return false;
    start = align_up(window->next, align);
    if (start > window->end || size > window->end - start)
        return false;
    window->next = start + size;
    *base = start;
    return true;
}

/* Largest first, so that natural alignment leaves no holes. */
static int compare_bars(const void *a, const void *b)
{
    const struct pci_bar *x = *(struct pci_bar *const *)a, *y = *(struct pci_bar *const *)b;

    if (x->size_bytes != y->size_bytes)
        return x->size_bytes > y->size_bytes ? -1 : 1;
    if (x->fn->devfn != y->fn->devfn)
        return x->fn->devfn < y->fn->devfn ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* Memory BARs are kept a page apart, so that a guest can hand one to a process alone. */
static int bar_assign(struct pci_bar *bar, struct window *io, struct window *mem32,
                      struct window *mem64, struct err *err)
{
    struct pci_function *fn = bar->fn;
    unsigned index = (unsigned)(bar - fn->bars), reg = PCI_BAR0 + index * 4;
    bool wide = bar->kind == PCI_BAR_MEM64 || bar->kind == PCI_BAR_MEM64_PREFETCH;
    uint64_t align = bar->size_bytes, base;
    bool found = false;

    if (bar->kind != PCI_BAR_IO && align < PAGE_SIZE_BYTES)
        align = PAGE_SIZE_BYTES;
    if (bar->kind == PCI_BAR_IO)
        found = window_take(io, bar->size_bytes, align, &base);
    if (wide)
        found = window_take(mem64, bar->size_bytes, align, &base);
    if (!found && bar->kind != PCI_BAR_IO)
        found = window_take(mem32, bar->size_bytes, align, &base);
    if (!found)
        return err_set(err, ENOSPC, "%s: no room for BAR %u (%llu KiB of PCI %s)", fn->dev.name,
                       index, (unsigned long long)((bar->size_bytes + KIB - 1) / KIB),
                       bar->kind == PCI_BAR_IO ? "I/O ports" : "memory");
    device_lock(&fn->dev);
    pci_function_config_write(fn, reg, (uint32_t)base, 4);
    if (wide)
        pci_function_config_write(fn, reg + 4, (uint32_t)(base >> 32), 4);
    device_unlock(&fn->dev);
    return 0;
}

static void function_enable(struct pci_function *fn)
{
    uint8_t pin = fn->reset_config[PCI_INTERRUPT_PIN];
    uint32_t command;

    device_lock(&fn->dev);
    command = pci_function_config_read(fn, PCI_COMMAND, 2);
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++) {
        if (fn->bars[i].kind != PCI_BAR_NONE)
            command |= fn->bars[i].kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
    }
    pci_function_config_write(fn, PCI_COMMAND, command, 2);
    if (pin != 0)
        pci_function_config_write(fn, PCI_INTERRUPT_LINE,
                                  pci_pirq_isa_irq(pci_slot_pirq(fn->devfn >> 3, pin)), 1);
    device_unlock(&fn->dev);
}

int pci_bus_assign(struct pci_bus *bus, const struct pci_windows *windows, struct err *err)
{
    struct pci_bar *bars[ARRAY_LEN(bus->functions) * PCI_BAR_COUNT];
    struct window io = {windows->io_base, windows->io_base + windows->io_len};
    struct window mem32 = {windows->mem32_base, windows->mem32_base + windows->mem32_len};
    struct window mem64 = {windows->mem64_base, windows->mem64_base + windows->mem64_len};
    size_t count = 0;

    for (size_t i = 0; i < ARRAY_LEN(bus->functions); i++) {
        for (unsigned j = 0; bus->functions[i] && j < PCI_BAR_COUNT; j++) {
            if (bus->functions[i]->bars[j].kind != PCI_BAR_NONE)
                bars[count++] = &bus->functions[i]->bars[j];
        }
    }
    qsort(bars, count, sizeof(bars[0]), compare_bars);
    for (size_t i = 0; i < count; i++) {
        int rc = bar_assign(bars[i], &io, &mem32, &mem64, err);
        if (rc < 0)
            return rc;
    }
    for (size_t i = 0; i < ARRAY_LEN(bus->functions); i++) {
        if (bus->functions[i])
            function_enable(bus->functions[i]);
    }
    return 0;
}
