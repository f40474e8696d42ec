/* SPDX-License-Identifier: Apache-2.0 */
#include "bus/pci.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "bus/pci_priv.h"
#include "engine/fake/fake.h"

/* A function with one BAR of each kind: 0 memory 4 KiB, 1 I/O 32, 2-3 64-bit 1 MiB, 4 MSI-X. */
struct card {
    struct pci_function fn;
    struct pci_state state;
    unsigned moved, written;
};

struct machine {
    struct engine_vm *vm;
    struct bus *bus;
    struct irq_router irq;
    struct pci_bus *pci;
    unsigned pirq_calls;
    bool pirq[8];
};

static void pirq_set(void *ctx, unsigned pirq, bool level)
{
    struct machine *machine = ctx;

    machine->pirq[pirq] = level;
    machine->pirq_calls++;
}

static uint64_t bar_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    (void)range;
    (void)size;
    return 0x5a00 + offset;
}

static const struct bus_range_ops bar_ops = {.read = bar_read, .max_size = 4};

static void card_moved(struct pci_bar *bar)
{
    CONTAINER_OF(bar->fn, struct card, fn)->moved++;
}

static void card_written(struct pci_function *fn, unsigned offset, unsigned size)
{
    (void)offset;
    (void)size;
    CONTAINER_OF(fn, struct card, fn)->written++;
}

static void card_reset(struct device *dev)
{
    pci_function_reset((struct pci_function *)dev);
}

static const struct device_ops card_ops = {.reset = card_reset};

static const struct pci_identity identity = {
    .vendor_id = 0x1af4,
    .device_id = 0x1042,
    .subsystem_vendor_id = 0x1af4,
    .subsystem_id = 0x1100,
    .class_code = 0x018000,
    .revision = 1,
    .interrupt_pin = 1,
};

static struct card *card_new(struct machine *machine, unsigned vectors, bool irqfd, int devfn)
{
    struct card *card = calloc(1, sizeof(*card));
    struct err err = ERR_INIT;

    device_init(&card->fn.dev, &card_ops, &pci_state_table, &card->state, NULL, "card");
    pci_function_init(&card->fn, &card->state, &identity);
    card->fn.config_written = card_written;
    pci_bar_add(&card->fn, 0, PCI_BAR_MEM32, 4096, &bar_ops)->moved = card_moved;
    pci_bar_add(&card->fn, 1, PCI_BAR_IO, 32, &bar_ops);
    pci_bar_add(&card->fn, 2, PCI_BAR_MEM64_PREFETCH, MIB, &bar_ops);
    pci_express_add(&card->fn);
    pci_msi_add(&card->fn);
    if (vectors && pci_msix_add(&card->fn, 4, vectors, irqfd, &err) < 0)
        printf("# %s\n", err.text);
    if (pci_bus_plug(machine->pci, &card->fn, devfn, &err) < 0)
        printf("# %s\n", err.text);
    device_reset(&card->fn.dev);
    return card;
}

static void card_free(struct card *card)
{
    pci_function_fini(&card->fn);
    free(card);
}

/* --- through ports 0xcf8 and 0xcfc --- */

static uint32_t config_get(struct machine *machine, unsigned devfn, unsigned reg, unsigned size)
{
    bus_write(machine->bus, BUS_PIO, 0xcf8, 0x80000000 | devfn << 8 | (reg & 0xfc), 4);
    return (uint32_t)bus_read(machine->bus, BUS_PIO, 0xcfc + (reg & 3), size);
}

static void config_set(struct machine *machine, unsigned devfn, unsigned reg, uint32_t value,
                       unsigned size)
{
    bus_write(machine->bus, BUS_PIO, 0xcf8, 0x80000000 | devfn << 8 | (reg & 0xfc), 4);
    bus_write(machine->bus, BUS_PIO, 0xcfc + (reg & 3), value, size);
}

static void test_mechanism_1(struct machine *machine)
{
    struct card *card = card_new(machine, 0, false, PCI_DEVFN(3, 0));

    is_int(config_get(machine, PCI_DEVFN(3, 0), 0, 4), 0x10421af4, "vendor and device");
    is_int(config_get(machine, PCI_DEVFN(3, 0), 2, 2), 0x1042, "a word");
    is_int(config_get(machine, PCI_DEVFN(3, 0), 3, 1), 0x10, "a byte");
    is_int(config_get(machine, PCI_DEVFN(3, 0), 8, 4), 0x01800001, "class and revision");
    is_int(config_get(machine, PCI_DEVFN(4, 0), 0, 4), 0xffffffff, "an empty slot");
    is_int(config_get(machine, PCI_DEVFN(3, 1), 0, 2), 0xffff, "an absent function");
    bus_write(machine->bus, BUS_PIO, 0xcf8, 0x80010000 | PCI_DEVFN(3, 0) << 8, 4);
    is_int(bus_read(machine->bus, BUS_PIO, 0xcfc, 4), 0xffffffff, "another bus");
    bus_write(machine->bus, BUS_PIO, 0xcf8, PCI_DEVFN(3, 0) << 8, 4);
    is_int(bus_read(machine->bus, BUS_PIO, 0xcfc, 4), 0xffffffff, "not enabled");
    bus_write(machine->bus, BUS_PIO, 0xcf8, 0xffffffff, 4);
    is_int(bus_read(machine->bus, BUS_PIO, 0xcf8, 4), 0x80fffffc, "reserved address bits are zero");
    bus_write(machine->bus, BUS_PIO, 0xcf8, 0x12, 1);
    bus_write(machine->bus, BUS_PIO, 0xcfa, 0x1234, 2);
    is_int(bus_read(machine->bus, BUS_PIO, 0xcf8, 4), 0x80fffffc,
           "bytes and words do not reach the address register");
    is_int(bus_read(machine->bus, BUS_PIO, 0xcf8, 1), 0xff, "nor read it");

    config_set(machine, PCI_DEVFN(3, 0), 0, 0, 4);
    is_int(config_get(machine, PCI_DEVFN(3, 0), 0, 4), 0x10421af4, "the identity is read-only");
    config_set(machine, PCI_DEVFN(3, 0), PCI_INTERRUPT_LINE, 0xff0b, 2);
    is_int(config_get(machine, PCI_DEVFN(3, 0), PCI_INTERRUPT_LINE, 2), 0x010b,
           "the interrupt line is writable, the pin is not");
    config_set(machine, PCI_DEVFN(3, 0), PCI_COMMAND, 0xffff, 2);
    is_int(config_get(machine, PCI_DEVFN(3, 0), PCI_COMMAND, 2), 0x0547, "command bits");
    card->state.config[PCI_STATUS + 1] |= 0x20; /* received master abort */
    config_set(machine, PCI_DEVFN(3, 0), PCI_STATUS, 0, 2);
    is_int(config_get(machine, PCI_DEVFN(3, 0), PCI_STATUS, 2), 0x2010, "status bits stay at 0");
    config_set(machine, PCI_DEVFN(3, 0), PCI_COMMAND, 0x20000000, 4);
    is_int(config_get(machine, PCI_DEVFN(3, 0), PCI_STATUS, 2), 0x0010, "and are cleared by 1");
    ok(card->written > 0, "the device hears of writes");
    card_free(card);
    is_int(config_get(machine, PCI_DEVFN(3, 0), 0, 4), 0xffffffff, "an unplugged card is gone");
}

struct reset_port {
    struct device dev;
    struct bus_range range;
    uint8_t value;
};

static uint64_t reset_port_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    return offset == 0 && size == 1 ? CONTAINER_OF(range, struct reset_port, range)->value : 0xff;
}

static void reset_port_write(struct bus_range *range, uint64_t offset, uint64_t value,
                             unsigned size)
{
    if (offset == 0 && size == 1)
        CONTAINER_OF(range, struct reset_port, range)->value = (uint8_t)value;
}

static void test_reset_port(struct machine *machine)
{
    static const struct bus_range_ops ops = {reset_port_read, reset_port_write, 1};
    static const struct device_ops no_ops;
    struct reset_port port = {0};

    device_init(&port.dev, &no_ops, NULL, NULL, NULL, "port");
    port.range = (struct bus_range){.ops = &ops, .dev = &port.dev, .base = 0xcf9, .len = 1};
    pci_bus_set_reset_port(machine->pci, &port.range);
    bus_write(machine->bus, BUS_PIO, 0xcf8, 0x80001234, 4);
    bus_write(machine->bus, BUS_PIO, 0xcf9, 0x06, 1);
    is_int(port.value, 0x06, "a byte to port 0xcf9 reaches the reset control register");
    is_int(bus_read(machine->bus, BUS_PIO, 0xcf9, 1), 0x06, "which can be read");
    is_int(bus_read(machine->bus, BUS_PIO, 0xcf8, 4), 0x80001234, "beside the address register");
    pci_bus_set_reset_port(machine->pci, NULL);
}

static void test_ecam(struct machine *machine)
{
    const uint64_t base = 0xb0000000, at = base + (PCI_DEVFN(2, 0) << 12);
    struct card *card = card_new(machine, 0, false, PCI_DEVFN(2, 0));
    uint16_t cap;
    const uint8_t body[8] = {1, 2, 3, 4, 5, 6, 7, 8};

    pci_bus_set_ecam(machine->pci, GPA(base), 256);
    is_int(bus_read(machine->bus, BUS_MMIO, at, 4), 0x10421af4, "ECAM reads the function");
    is_int(bus_read(machine->bus, BUS_MMIO, at, 8), 0x0010000010421af4, "8 bytes in two");
    is_int(bus_read(machine->bus, BUS_MMIO, base + MIB, 4), 0xffffffff, "bus 1 is empty");
    is_int(bus_read(machine->bus, BUS_MMIO, at + 0xffe, 4), 0xffffffff,
           "across the end of a function: all ones");
    bus_write(machine->bus, BUS_MMIO, at + PCI_INTERRUPT_LINE, 7, 1);
    is_int(config_get(machine, PCI_DEVFN(2, 0), PCI_INTERRUPT_LINE, 1), 7, "a write through ECAM");
    is_int(bus_read(machine->bus, BUS_MMIO, at + 0x100, 4), 0, "no extended capability");

    cap = pci_ext_cap_add(&card->fn, 0x0003, 1, body, 8, NULL);
    is_int(cap, 0x100, "the first extended capability");
    pci_ext_cap_add(&card->fn, 0x000b, 2, body, 5, NULL);
    is_int(bus_read(machine->bus, BUS_MMIO, at + 0x100, 4), 0x10c10003, "points to the second");
    is_int(bus_read(machine->bus, BUS_MMIO, at + 0x10c, 4), 0x0002000b, "which is the last");
    is_int(bus_read(machine->bus, BUS_MMIO, at + 0x104, 4), 0x04030201, "with its body");

    pci_bus_set_ecam(machine->pci, GPA(0xa0000000), 64);
    is_int(bus_read(machine->bus, BUS_MMIO, at, 4), 0xffffffff, "ECAM moved away");
    is_int(bus_read(machine->bus, BUS_MMIO, 0xa0000000 + (PCI_DEVFN(2, 0) << 12), 2), 0x1af4,
           "to its new place");
    pci_bus_set_ecam(machine->pci, GPA(0), 0);
    is_int(bus_read(machine->bus, BUS_MMIO, 0xa0000000 + (PCI_DEVFN(2, 0) << 12), 2), 0xffff,
           "and off");
    card_free(card);
}

static void test_bars(struct machine *machine)
{
    const unsigned devfn = PCI_DEVFN(5, 0);
    struct card *card = card_new(machine, 0, false, (int)devfn);
    struct pci_bar *bars = card->fn.bars;

    is_int(config_get(machine, devfn, 0x10, 4), 0, "memory BAR type");
    is_int(config_get(machine, devfn, 0x14, 4), 1, "I/O BAR type");
    is_int(config_get(machine, devfn, 0x18, 4), 0xc, "64-bit prefetchable type");
    for (unsigned reg = 0x10; reg < 0x28; reg += 4)
        config_set(machine, devfn, reg, 0xffffffff, 4);
    is_int(config_get(machine, devfn, 0x10, 4), 0xfffff000, "memory BAR size");
    is_int(config_get(machine, devfn, 0x14, 4), 0xffffffe1, "I/O BAR size");
    is_int(config_get(machine, devfn, 0x18, 4), 0xfff0000c, "64-bit BAR size, low half");
    is_int(config_get(machine, devfn, 0x1c, 4), 0xffffffff, "high half");
    is_int(config_get(machine, devfn, 0x24, 4), 0, "a BAR that is not there");
    config_set(machine, devfn, PCI_COMMAND, 7, 2);
    ok(!bars[0].range.mapped && !bars[1].range.mapped && !bars[2].range.mapped,
       "BARs of all ones decode nothing");

    config_set(machine, devfn, 0x10, 0xc0001234, 4);
    is_int(config_get(machine, devfn, 0x10, 4), 0xc0001000, "an address is aligned");
    ok(bars[0].range.mapped && bars[0].range.base == 0xc0001000, "and decoded");
    is_int(bus_read(machine->bus, BUS_MMIO, 0xc0001010, 4), 0x5a10, "the device answers there");
    is_int(card->moved, 1, "and was told");
    config_set(machine, devfn, 0x10, 0xc0002000, 4);
    is_int(bus_read(machine->bus, BUS_MMIO, 0xc0001010, 4), 0xffffffff, "moved away");
    is_int(bus_read(machine->bus, BUS_MMIO, 0xc0002010, 4), 0x5a10, "moved to");
    is_int(card->moved, 2, "told again");
    config_set(machine, devfn, 0x10, 0xc0002000, 4);
    is_int(card->moved, 2, "the same address again is no move");
    config_set(machine, devfn, PCI_COMMAND, 5, 2);
    is_int(bus_read(machine->bus, BUS_MMIO, 0xc0002010, 4), 0xffffffff, "memory decoding off");
    config_set(machine, devfn, PCI_COMMAND, 7, 2);

    config_set(machine, devfn, 0x14, 0x6000, 4);
    is_int(bus_read(machine->bus, BUS_PIO, 0x6004, 2), 0x5a04, "I/O BAR");
    config_set(machine, devfn, 0x14, 0x10006000, 4);
    is_int(bus_read(machine->bus, BUS_PIO, 0x6004, 2), 0xffff, "beyond 64 K of ports: nowhere");
    config_set(machine, devfn, 0x14, 0, 4);
    ok(!bars[1].range.mapped, "address 0 is none");
    config_set(machine, devfn, 0x14, 0x3f8, 4);
    ok(bars[1].range.mapped, "a BAR may lie on top of others");

    config_set(machine, devfn, 0x18, 0x00100000, 4);
    config_set(machine, devfn, 0x1c, 0x8, 4);
    ok(bars[2].range.mapped && bars[2].range.base == 0x800100000, "64-bit BAR above 4 GiB");
    config_set(machine, devfn, 0x1b, 0x10, 1);
    is_int(bars[2].range.base, 0x810100000, "a byte of a BAR is written alone");
    device_reset(&card->fn.dev);
    ok(!bars[0].range.mapped && !bars[2].range.mapped, "reset takes the BARs away");
    is_int(config_get(machine, devfn, 0x10, 4), 0, "and their addresses");
    card_free(card);
}

/* Anything a guest can write, at any place: the machine stays sound. */
static void test_random_writes(struct machine *machine)
{
    struct card *a = card_new(machine, 129, true, PCI_DEVFN(6, 0));
    struct card *b = card_new(machine, 3, false, PCI_DEVFN(7, 0));
    bool sound = true;

    srand(2);
    for (unsigned i = 0; i < 20000; i++) {
        unsigned size = 1u << (rand() % 3);
        unsigned reg = (unsigned)rand() % 4 ? (unsigned)rand() % 64 : (unsigned)rand() % 256;
        uint32_t value = (uint32_t)rand() << 1 ^ (uint32_t)rand();
        if (rand() % 4 == 0)
            value = UINT32_MAX;
        config_set(machine, rand() % 2 ? PCI_DEVFN(6, 0) : PCI_DEVFN(7, 0), reg & ~(size - 1),
                   value, size);
        if (a->fn.msix_table->mapped)
            bus_write(machine->bus, BUS_MMIO, a->fn.msix_table->base + (unsigned)rand() % 8192,
                      value, 1u << (rand() % 4));
        pci_msix_notify(&a->fn, (unsigned)rand() % 200);
        for (unsigned j = 0; j < PCI_BAR_COUNT; j++) {
            const struct pci_bar *bar = &b->fn.bars[j];
            if (bar->range.mapped && bar->range.base % bar->size_bytes != 0)
                sound = false;
        }
    }
    ok(sound, "random writes: BARs stay aligned");
    is_int(config_get(machine, PCI_DEVFN(6, 0), 0, 4), 0x10421af4, "and the card is still there");
    card_free(a);
    card_free(b);
}

/* --- slots, INTx --- */

static void test_slots(struct machine *machine)
{
    struct card *cards[3];
    struct card *extra = calloc(1, sizeof(*extra));
    struct card *all[PCI_SLOT_COUNT];
    struct err err = ERR_INIT;
    unsigned count = 0;

    cards[0] = card_new(machine, 0, false, -1);
    cards[1] = card_new(machine, 0, false, -1);
    is_int(cards[0]->fn.devfn, PCI_DEVFN(1, 0), "slots are given from 1");
    is_int(cards[1]->fn.devfn, PCI_DEVFN(2, 0), "one after the other");
    is_int(config_get(machine, PCI_DEVFN(1, 0), PCI_HEADER_TYPE, 1), 0, "a single function");
    cards[2] = card_new(machine, 0, false, PCI_DEVFN(1, 3));
    is_int(config_get(machine, PCI_DEVFN(1, 0), PCI_HEADER_TYPE, 1), 0x80,
           "with a second one, function 0 says so");
    device_reset(&cards[0]->fn.dev);
    is_int(config_get(machine, PCI_DEVFN(1, 0), PCI_HEADER_TYPE, 1), 0x80, "after reset, too");
    ok(pci_bus_function(machine->pci, PCI_DEVFN(1, 3)) == &cards[2]->fn, "pci_bus_function()");

    device_init(&extra->fn.dev, &card_ops, &pci_state_table, &extra->state, NULL, "extra");
    pci_function_init(&extra->fn, &extra->state, &identity);
    is_int(pci_bus_plug(machine->pci, &extra->fn, PCI_DEVFN(1, 3), &err), -EBUSY, "a taken place");
    ok(strstr(err.text, "01.3") != NULL, "is named");
    while (count < PCI_SLOT_COUNT - 3)
        all[count++] = card_new(machine, 0, false, -1);
    is_int(pci_bus_plug(machine->pci, &extra->fn, -1, &err), -ENOSPC, "all slots taken");
    while (count > 0)
        card_free(all[--count]);
    for (unsigned i = 0; i < 3; i++)
        card_free(cards[i]);
    free(extra);
}

static void test_intx(struct machine *machine)
{
    struct card *a = card_new(machine, 2, false, PCI_DEVFN(4, 0));
    struct card *b = card_new(machine, 2, false, PCI_DEVFN(8, 0));
    const unsigned pirq = pci_slot_pirq(4, 1);

    is_int(pirq, pci_slot_pirq(8, 1), "two slots share a PIRQ");
    is_int(pci_slot_pirq(1, 1), 5, "slot 1 INTA is PIRQF");
    is_int(pci_slot_pirq(31, 4), 6, "slot 31 INTD is PIRQG");
    pci_intx_set(&a->fn, true);
    ok(machine->pirq[pirq], "INTx raises its PIRQ");
    is_int(config_get(machine, PCI_DEVFN(4, 0), PCI_STATUS, 2), 0x18, "and the status bit");
    machine->pirq_calls = 0;
    pci_intx_set(&b->fn, true);
    pci_intx_set(&a->fn, false);
    ok(machine->pirq[pirq] && machine->pirq_calls == 0, "the second holds it up");
    config_set(machine, PCI_DEVFN(8, 0), PCI_COMMAND, 0x400, 2);
    ok(!machine->pirq[pirq], "the disable bit takes the pin down");
    is_int(config_get(machine, PCI_DEVFN(8, 0), PCI_STATUS, 2), 0x18, "but not the status bit");
    config_set(machine, PCI_DEVFN(8, 0), PCI_COMMAND, 0, 2);
    ok(machine->pirq[pirq], "enabled again, it is up again");
    config_set(machine, PCI_DEVFN(8, 0), b->fn.msix_cap + 2u, 0x8000, 2);
    ok(!machine->pirq[pirq], "MSI-X takes the place of the pin");
    config_set(machine, PCI_DEVFN(8, 0), b->fn.msix_cap + 2u, 0, 2);
    device_reset(&b->fn.dev);
    ok(!machine->pirq[pirq], "reset lowers the pin");
    pci_intx_set(&b->fn, true);
    card_free(b);
    ok(!machine->pirq[pirq], "so does unplugging");
    card_free(a);
}

/* --- address assignment --- */

static void test_assign(struct machine *machine)
{
    struct card *a = card_new(machine, 4, false, PCI_DEVFN(1, 0));
    struct card *b = card_new(machine, 4, false, PCI_DEVFN(2, 0));
    struct pci_windows windows = {
        .io_base = 0x6004,
        .io_len = 0x1000,
        .mem32_base = 0xc0000000,
        .mem32_len = 0x1000000,
        .mem64_base = 0x800001000,
        .mem64_len = 1 * GIB,
    };
    struct err err = ERR_INIT;
    bool sound = true;
    const struct pci_bar *all[2 * PCI_BAR_COUNT];
    unsigned count = 0;

    is_int(pci_bus_assign(machine->pci, &windows, &err), 0, "pci_bus_assign()");
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++) {
        if (a->fn.bars[i].kind != PCI_BAR_NONE)
            all[count++] = &a->fn.bars[i];
        if (b->fn.bars[i].kind != PCI_BAR_NONE)
            all[count++] = &b->fn.bars[i];
    }
    for (unsigned i = 0; i < count; i++) {
        sound = sound && all[i]->range.mapped && all[i]->range.base % all[i]->size_bytes == 0;
        for (unsigned j = 0; j < i; j++)
            sound = sound && (all[i]->range.space != all[j]->range.space ||
                              all[i]->range.base >= all[j]->range.base + all[j]->size_bytes ||
                              all[j]->range.base >= all[i]->range.base + all[i]->size_bytes);
    }
    ok(sound, "all BARs are mapped, aligned and apart");
    is_int(a->fn.bars[2].range.base, 0x800100000, "64-bit BARs in the high window");
    ok(a->fn.bars[0].range.base >= 0xc0000000 && a->fn.bars[1].range.base >= 0x6004,
       "the others in theirs");
    is_int(config_get(machine, PCI_DEVFN(1, 0), PCI_COMMAND, 2), 3, "decoding is on");
    is_int(config_get(machine, PCI_DEVFN(1, 0), PCI_INTERRUPT_LINE, 1),
           pci_pirq_isa_irq(pci_slot_pirq(1, 1)), "the interrupt line is set");

    device_reset(&a->fn.dev);
    device_reset(&b->fn.dev);
    windows.mem64_len = 0;
    is_int(pci_bus_assign(machine->pci, &windows, &err), 0, "without a high window");
    ok(a->fn.bars[2].range.base < 4 * GIB, "64-bit BARs go into the low one");
    windows.mem32_len = MIB;
    is_int(pci_bus_assign(machine->pci, &windows, &err), -ENOSPC, "a window too small");
    ok(strstr(err.text, "card: no room for BAR 2") != NULL, "is told");
    card_free(a);
    card_free(b);
}

int main(void)
{
    struct machine machine = {0};
    struct engine_vm_config vm_config = {.vcpu_count = 1, .upcalls = &bus_upcalls};
    struct err err = ERR_INIT;
    char why[128] = "";

    is_int(state_table_check(&pci_state_table, why, sizeof(why)), 0, "the state table is sound");
    is_str(why, "", "with no complaint");
    if (engine_fake.vm_new(&machine.vm, &vm_config, &err) < 0 || bus_new(&machine.bus, &err) < 0)
        return 1;
    irq_router_init(&machine.irq, machine.vm);
    const struct pci_bus_config config = {
        .bus = machine.bus, .irq = &machine.irq, .pirq_set = pirq_set, .pirq_ctx = &machine};
    if (pci_bus_new(&machine.pci, &config, &err) < 0)
        return 1;
    is_int(state_table_check(pci_bus_device(machine.pci)->table, why, sizeof(why)), 0,
           "so is that of the bus");
    test_mechanism_1(&machine);
    test_reset_port(&machine);
    test_ecam(&machine);
    test_bars(&machine);
    test_random_writes(&machine);
    test_slots(&machine);
    test_intx(&machine);
    test_assign(&machine);
    pci_bus_free(machine.pci);
    irq_router_fini(&machine.irq);
    bus_free(machine.bus);
    engine_fake.vm_free(machine.vm);
    return tap_done();
}
