/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The soft engine's interrupt controllers and timers, on a virtual clock; the input is a guest with
 * a few processors, and its devices: an operation a byte, its arguments behind it.
 *
 *     0 port value       write a port of PIC or PIT    1 port           read it
 *     2 cpu reg value    write a local APIC's register 3 cpu reg        read it
 *     4 reg value        write the IOAPIC              5 cpu msr value  write an MSR of the APIC
 *     6 gsi level        a line                        7 irq level      a line of the PIC alone
 *     8 addr data        a message                     9 cpu            take an interrupt
 *     a cpu              end one                       b us             time goes by
 *     c cpu base         IA32_APIC_BASE                d cpu tpr        CR8
 *     e on               the PIT's connection          f cpu addr size  any access to memory
 *
 * Checked: what is pending can be taken, with a sound vector; timers fire no more often than the
 * host can bear; a reset gives the same machine, whatever the guest did.
 */
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/units.h"
#include "engine/chip/irqchip.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CPUS        3
#define OPS_MAX     400
#define APIC        0xfee00000ULL
#define IOAPIC      0xfec00000ULL
#define FIRES_MAX   1000 /* in the longest time that an operation lets go by */
#define IMAGE_WORDS (CPUS * 64 + 64 + 16)

static const uint8_t *input;
static size_t input_left;
static struct irqchip *chip;
static struct chip_clock *the_clock;
static bool init_asked[CPUS];

static void check(bool good)
{
    if (!good)
        abort();
}

static uint8_t next_byte(void)
{
    if (input_left == 0)
        return 0;
    input_left--;
    return *input++;
}

static uint64_t next_value(unsigned bytes)
{
    uint64_t value = 0;

    while (bytes-- > 0)
        value = value << 8 | next_byte();
    return value;
}

static unsigned next_cpu(void)
{
    return next_byte() % CPUS;
}

/* --- the processors --- */

static void nothing(void *ctx, unsigned cpu)
{
    (void)ctx;
    check(cpu < CPUS);
}

/* A processor resets its APIC when it sees the INIT. */
static void init(void *ctx, unsigned cpu)
{
    (void)ctx;
    check(cpu < CPUS);
    init_asked[cpu] = true;
}

static void sipi(void *ctx, unsigned cpu, uint8_t vector)
{
    (void)vector;
    nothing(ctx, cpu);
}

static uint64_t same(void *ctx, unsigned cpu, uint64_t value)
{
    nothing(ctx, cpu);
    return value;
}

static void see_inits(void)
{
    for (unsigned i = 0; i < CPUS; i++) {
        if (init_asked[i])
            irqchip_reset_lapic(chip, i, true);
        init_asked[i] = false;
    }
}

/* --- operations --- */

static uint16_t next_port(void)
{
    static const uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1,
                                     0x40, 0x41, 0x42, 0x43, 0x61};
    return ports[next_byte() % ARRAY_LEN(ports)];
}

static void apic_access(bool write)
{
    unsigned cpu = next_cpu();
    uint64_t gpa = APIC + (next_byte() & 0x3fu) * 16;
    uint32_t value = write ? (uint32_t)next_value(4) : 0;

    if (write)
        irqchip_mmio_write(chip, cpu, gpa, 4, &value);
    else
        irqchip_mmio_read(chip, cpu, gpa, 4, &value);
}

static void ioapic_write(uint32_t index, uint32_t value)
{
    irqchip_mmio_write(chip, 0, IOAPIC, 4, &index);
    irqchip_mmio_write(chip, 0, IOAPIC + 0x10, 4, &value);
}

static void write_msr(void)
{
    unsigned cpu = next_cpu();
    uint8_t index = next_byte();
    uint64_t value = next_value(index & 0x80 ? 8 : 4), got;

    index &= 0x7f;
    irqchip_msr_write(chip, cpu, index == 0x7f ? 0x6e0 : 0x800u + index, value);
    irqchip_msr_read(chip, cpu, 0x800u + index, &got);
}

static void take(unsigned cpu)
{
    bool pending = irqchip_pending(chip, cpu);
    int vector = irqchip_take(chip, cpu);

    check(pending == (vector >= 0) && vector <= 0xff);
}

static void advance(uint64_t ns)
{
    uint64_t end = chip_clock_now(the_clock) + ns, next;
    unsigned fires = 0;

    while ((next = chip_clock_advance(the_clock, chip_clock_now(the_clock))) <= end) {
        check(fires++ < FIRES_MAX);
        chip_clock_advance(the_clock, next);
    }
    chip_clock_advance(the_clock, end);
}

static void any_access(void)
{
    unsigned cpu = next_cpu();
    uint64_t gpa = (next_byte() & 1 ? APIC : IOAPIC) + next_value(2) % 0x1000;
    uint8_t data[8] = {next_byte(), next_byte()};
    unsigned how = next_byte(), size = 1u << (how & 3);

    if (how & 4)
        irqchip_mmio_write(chip, cpu, gpa, size, data);
    else
        irqchip_mmio_read(chip, cpu, gpa, size, data);
}

static void run_op(void)
{
    uint32_t zero = 0;
    uint64_t value;
    uint16_t port;
    uint8_t byte, op = next_byte() & 15;
    unsigned cpu;

    switch (op) {
    case 0:
        port = next_port();
        irqchip_pio_write(chip, port, next_byte());
        break;
    case 1:
        irqchip_pio_read(chip, next_port(), &byte);
        break;
    case 2:
    case 3:
        apic_access(op == 2);
        break;
    case 4:
        byte = next_byte();
        ioapic_write(byte & 0x3f, (uint32_t)next_value(4));
        break;
    case 5:
        write_msr();
        break;
    case 6:
        byte = next_byte();
        irqchip_gsi_set(chip, byte & 31, byte >> 7);
        break;
    case 7:
        byte = next_byte();
        irqchip_pic_set(chip, byte & 31, byte >> 7);
        break;
    case 8:
        value = next_value(3);
        irqchip_msi_send(chip, APIC | (value & 0xfffff), (uint32_t)next_value(2));
        break;
    case 9:
        take(next_cpu());
        break;
    case 10:
        cpu = next_cpu();
        if (!irqchip_msr_write(chip, cpu, 0x80b, 0))
            irqchip_mmio_write(chip, cpu, APIC + 0xb0, 4, &zero);
        break;
    case 11:
        advance(next_value(2) * 100);
        break;
    case 12:
        cpu = next_cpu();
        irqchip_set_apic_base(chip, cpu, APIC | (next_byte() & 15u) << 8);
        break;
    case 13:
        cpu = next_cpu();
        irqchip_set_cr8(chip, cpu, next_byte() & 15);
        check(irqchip_get_cr8(chip, cpu) < 16);
        break;
    case 14:
        irqchip_pit_connect(chip, next_byte() & 1);
        break;
    case 15:
        any_access();
        break;
    }
}

/* --- the machine after a reset --- */

static void look(uint32_t *image)
{
    unsigned n = 0;

    memset(image, 0, IMAGE_WORDS * sizeof(*image));
    for (unsigned cpu = 0; cpu < CPUS; cpu++) {
        for (uint32_t reg = 0; reg < 0x400; reg += 16)
            irqchip_mmio_read(chip, cpu, APIC + reg, 4, &image[n++]);
    }
    for (uint32_t index = 0; index < 64; index++) {
        irqchip_mmio_write(chip, 0, IOAPIC, 4, &index);
        irqchip_mmio_read(chip, 0, IOAPIC + 0x10, 4, &image[n++]);
    }
    static const uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1};
    for (unsigned i = 0; i < ARRAY_LEN(ports); i++)
        irqchip_pio_read(chip, ports[i], (uint8_t *)&image[n++]);
    irqchip_pio_write(chip, 0x43, 0xee); /* the counters' status */
    for (uint16_t port = 0x40; port < 0x43; port++)
        irqchip_pio_read(chip, port, (uint8_t *)&image[n++]);
    check(n <= IMAGE_WORDS);
}

static void set_up(void)
{
    static const struct irqchip_upcalls upcalls = {.wake = nothing,
                                                   .nmi = nothing,
                                                   .init = init,
                                                   .sipi = sipi,
                                                   .tsc_at = same,
                                                   .ns_at_tsc = same};
    struct irqchip_config config = {.cpu_count = CPUS, .upcalls = &upcalls};
    struct err err = ERR_INIT;

    check(chip_clock_new(&the_clock, CHIP_CLOCK_VIRTUAL, &err) == 0);
    config.clock = the_clock;
    check(irqchip_new(&chip, &config, &err) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint32_t fresh[IMAGE_WORDS], now[IMAGE_WORDS];

    if (!chip) {
        set_up();
        look(fresh);
    }
    irqchip_reset(chip);
    input = data;
    input_left = size;
    for (unsigned i = 0; i < OPS_MAX && input_left > 0; i++) {
        run_op();
        see_inits();
    }
    irqchip_reset(chip);
    for (unsigned cpu = 0; cpu < CPUS; cpu++)
        check(!irqchip_pending(chip, cpu));
    look(now);
    check(memcmp(fresh, now, sizeof(now)) == 0);
    return 0;
}
