/* SPDX-License-Identifier: Apache-2.0 */
/* Local APICs, by themselves and as they are joined with each other, the IOAPIC and the PIC: SDM
 * vol. 3, chapter 10. On a virtual clock; a time stamp counter of 1 GHz. */
#include "engine/chip/irqchip.h"

#include <errno.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "engine/chip/lapic.h"

#define CPUS      20
#define WIDE_CPUS 300
#define APIC      0xfee00000ULL
#define IOAPIC    0xfec00000ULL
#define MASKED    0x10000u

enum {
    ID = 0x20,
    VERSION = 0x30,
    TPR = 0x80,
    PPR = 0xa0,
    EOI = 0xb0,
    LDR = 0xd0,
    DFR = 0xe0,
    SVR = 0xf0,
    ISR = 0x100,
    TMR = 0x180,
    IRR = 0x200,
    ESR = 0x280,
    ICR = 0x300,
    ICR_HIGH = 0x310,
    TIMER = 0x320,
    LINT0 = 0x350,
    ERROR = 0x370,
    INITIAL = 0x380,
    CURRENT = 0x390,
    DIVIDE = 0x3e0,
};

static struct irqchip *chip;
static struct chip_clock *the_clock;
static unsigned wakes[WIDE_CPUS], nmis[WIDE_CPUS], inits[WIDE_CPUS], sipis[WIDE_CPUS];
static uint8_t sipi_vector;

static void wake(void *ctx, unsigned cpu)
{
    (void)ctx;
    wakes[cpu]++;
}

static void nmi(void *ctx, unsigned cpu)
{
    (void)ctx;
    nmis[cpu]++;
}

static void init(void *ctx, unsigned cpu)
{
    (void)ctx;
    inits[cpu]++;
}

static void sipi(void *ctx, unsigned cpu, uint8_t vector)
{
    (void)ctx;
    sipis[cpu]++;
    sipi_vector = vector;
}

static uint64_t same(void *ctx, unsigned cpu, uint64_t value)
{
    (void)ctx;
    (void)cpu;
    return value;
}

static const struct irqchip_upcalls upcalls = {
    .wake = wake, .nmi = nmi, .init = init, .sipi = sipi, .tsc_at = same, .ns_at_tsc = same};

static uint32_t get(unsigned cpu, unsigned reg)
{
    uint32_t value = 0;
    irqchip_mmio_read(chip, cpu, APIC + reg, 4, &value);
    return value;
}

static void set(unsigned cpu, unsigned reg, uint32_t value)
{
    irqchip_mmio_write(chip, cpu, APIC + reg, 4, &value);
}

static void msi(unsigned destination, bool logical, uint32_t data)
{
    irqchip_msi_send(chip, APIC | destination << 12 | (logical ? 4 : 0), data);
}

static void ioapic_set_entry(unsigned pin, uint32_t low, uint32_t high)
{
    uint32_t index = 0x11 + 2 * pin;
    irqchip_mmio_write(chip, 0, IOAPIC, 4, &index);
    irqchip_mmio_write(chip, 0, IOAPIC + 0x10, 4, &high);
    index--;
    irqchip_mmio_write(chip, 0, IOAPIC, 4, &index);
    irqchip_mmio_write(chip, 0, IOAPIC + 0x10, 4, &low);
}

/* Take and end: the vector. */
static int serve(unsigned cpu)
{
    int vector = irqchip_take(chip, cpu);
    if (vector >= 0)
        set(cpu, EOI, 0);
    return vector;
}

/* Which processors have this vector; it is ended there. */
static uint32_t who_has(int vector)
{
    uint32_t who = 0;
    for (unsigned i = 0; i < CPUS; i++) {
        if (irqchip_pending(chip, i) && serve(i) == vector)
            who |= 1u << i;
    }
    return who;
}

static void advance(uint64_t ns)
{
    uint64_t end = chip_clock_now(the_clock) + ns, next;
    while ((next = chip_clock_advance(the_clock, chip_clock_now(the_clock))) <= end)
        chip_clock_advance(the_clock, next);
    chip_clock_advance(the_clock, end);
}

static void reset(void)
{
    irqchip_reset(chip);
    for (unsigned i = 0; i < CPUS; i++) {
        set(i, SVR, 0x1ff);
        set(i, LINT0, MASKED);
    }
}

static void test_registers(void)
{
    char why[256] = "";
    uint32_t value = 0;

    state_table_check(&lapic_table, why, sizeof(why));
    is_str(why, "", "the state table tiles the struct");
    irqchip_reset(chip);
    is_int(get(3, ID), 3 << 24, "the ID");
    is_int(get(0, VERSION), 0x50014, "the version, six LVT entries");
    is_int(get(0, SVR), 0xff, "software-disabled");
    is_int(get(1, LINT0), MASKED, "LVT entries are masked");
    is_int(get(0, LINT0), 0x700, "but for the virtual wire");
    set(1, TIMER, 0x20031);
    is_int(get(1, TIMER), 0x20031 | MASKED, "masked they stay while it is disabled");
    set(1, SVR, 0x1ff);
    set(1, TIMER, 0xffffffff);
    is_int(get(1, TIMER), 0x700ff, "the timer's entry");
    set(1, LINT0, 0xffffffff);
    is_int(get(1, LINT0), 0x1a7ff, "LINT0's, without status");
    set(1, LINT0, 0x700);
    set(1, SVR, 0xff);
    is_int(get(1, LINT0), 0x10700, "disabling masks");
    set(1, SVR, 0xffffffff);
    is_int(get(1, SVR), 0x3ff, "what can be written of SVR");
    set(1, DFR, 0);
    is_int(get(1, DFR), 0x0fffffff, "DFR");
    set(1, LDR, 0xffffffff);
    is_int(get(1, LDR), 0xff000000, "LDR");
    set(1, ICR_HIGH, 0xffffffff);
    is_int(get(1, ICR_HIGH), 0xff000000, "ICR, upper half");
    irqchip_mmio_read(chip, 1, APIC + ID + 3, 1, &value);
    is_int(value, 1, "a byte of a register");
}

static void test_priority(void)
{
    reset();
    msi(0, false, 0x55);
    msi(0, false, 0x41);
    msi(0, false, 0x59);
    is_int(get(0, IRR + 0x20), 0x02200002, "requests");
    is_int(irqchip_take(chip, 0), 0x59, "the highest is first");
    is_int(get(0, ISR + 0x20), 0x02000000, "it is in service");
    is_int(get(0, PPR), 0x50, "the processor's priority is its class");
    ok(!irqchip_pending(chip, 0), "the same class waits");
    msi(0, false, 0x60);
    is_int(serve(0), 0x60, "a higher class does not");
    set(0, EOI, 0);
    is_int(serve(0), 0x55, "then the others");
    set(0, TPR, 0x45);
    is_int(get(0, PPR), 0x45, "TPR");
    is_int(irqchip_get_cr8(chip, 0), 4, "is CR8");
    is_int(irqchip_take(chip, 0), -1, "holds its class back");
    wakes[0] = 0;
    irqchip_set_cr8(chip, 0, 3);
    ok(wakes[0] > 0, "lowering it has the processor look");
    is_int(get(0, TPR), 0x30, "CR8 is TPR");
    is_int(serve(0), 0x41, "what was held back");
    set(0, EOI, 0);
    is_int(irqchip_take(chip, 0), -1, "an EOI of nothing");
    set(0, SVR, 0xff);
    is_int(irqchip_msi_send(chip, APIC, 0x77), -ENOENT, "disabled, it accepts nothing");
    set(0, SVR, 0x1ff);
    is_int(irqchip_take(chip, 0), -1, "not even later");
    is_int(irqchip_msi_send(chip, 0xfef00000, 0x77), -EINVAL, "no message");
}

static void test_destinations(void)
{
    reset();
    msi(2, false, 0x42);
    is_int(who_has(0x42), 1 << 2, "physical");
    msi(0xff, false, 0x42);
    is_int(who_has(0x42), (1 << CPUS) - 1, "broadcast");
    for (unsigned i = 0; i < 8; i++)
        set(i, LDR, 1u << (24 + i));
    msi(0x85, true, 0x42);
    is_int(who_has(0x42), 0x85, "logical, flat");
    for (unsigned i = 0; i < CPUS; i++) {
        set(i, DFR, 0);
        set(i, LDR, (i / 4) << 28 | 1u << (24 + i % 4));
    }
    msi(0x2a, true, 0x42);
    is_int(who_has(0x42), 0xa00, "logical, cluster");
    set(9, TPR, 0x30);
    set(11, TPR, 0x20);
    msi(0x2a, true, 0x142);
    is_int(who_has(0x42), 0x800, "lowest priority");
    set(9, TPR, 0);
    set(11, SVR, 0xff);
    msi(0x28, true, 0x142);
    is_int(who_has(0x42), 0, "none that is disabled");

    reset();
    set(5, ICR_HIGH, 7 << 24);
    set(5, ICR, 0x4043);
    is_int(who_has(0x43), 1 << 7, "an IPI");
    set(5, ICR, 0x44043);
    is_int(who_has(0x43), 1 << 5, "to itself");
    set(5, ICR, 0x84043);
    is_int(who_has(0x43), (1 << CPUS) - 1, "to all");
    set(5, ICR, 0xc4043);
    is_int(who_has(0x43), ((1 << CPUS) - 1) & ~(1 << 5), "to all but itself");
    set(5, ICR, 0x1c043);
    is_int(get(7, TMR + 0x20), 0, "an IPI is an edge");
    is_int(get(5, ICR), 0xc043, "its delivery status is idle");
    serve(7);

    set(5, ICR, 0x4400);
    is_int(nmis[7], 1, "NMI");
    set(5, ICR, 0xc500);
    set(5, ICR, 0x8500);
    is_int(inits[7], 1, "INIT; its de-assertion is nothing");
    set(5, ICR, 0x4612);
    ok(sipis[7] == 1 && sipi_vector == 0x12, "SIPI");
    irqchip_set_apic_base(chip, 7, APIC);
    set(5, ICR, 0xc500);
    set(5, ICR, 0x4400);
    ok(inits[7] == 1 && nmis[7] == 1, "an APIC that is off is not on the bus");
}

static void test_errors(void)
{
    reset();
    set(0, ERROR, 0xee);
    set(0, ICR, 0x44005);
    is_int(irqchip_take(chip, 0), 0xee, "an illegal vector is an error interrupt");
    is_int(get(0, ESR), 0, "ESR does not change by itself");
    set(0, ESR, 0);
    is_int(get(0, ESR), 1 << 5, "send illegal vector");
    set(0, EOI, 0);
    msi(0, false, 3);
    is_int(serve(0), 0xee, "a message with one, too");
    get(0, 0x40);
    is_int(serve(0), 0xee, "and a register that is none");
    set(0, ESR, 0);
    is_int(get(0, ESR), 1 << 6 | 1 << 7, "received illegal vector, illegal register");
    set(0, ESR, 0);
    is_int(get(0, ESR), 0, "cleared");
    set(0, ERROR, MASKED | 0xee);
    set(0, ICR, 0x44005);
    is_int(irqchip_take(chip, 0), -1, "masked");
}

static void test_timer(void)
{
    reset();
    set(0, TIMER, 0x31);
    set(0, DIVIDE, 0xb);
    set(0, INITIAL, 10000);
    is_int(get(0, CURRENT), 10000, "one-shot: it begins with the initial count");
    advance(4000);
    is_int(get(0, CURRENT), 6000, "and counts down");
    set(0, DIVIDE, 0);
    is_int(get(0, CURRENT), 6000, "another divider goes on from there");
    advance(11999);
    is_int(irqchip_take(chip, 0), -1, "at half the rate");
    advance(1);
    is_int(serve(0), 0x31, "it expires");
    is_int(get(0, CURRENT), 0, "at zero");
    is_int(get(0, INITIAL), 10000, "the initial count stays");
    set(0, DIVIDE, 0xb);
    set(0, TIMER, 0x31);
    advance(1000000);
    is_int(irqchip_take(chip, 0), -1, "an expired timer stays so, whatever its divider");
    set(0, TIMER, 0x20031);
    advance(1000000);
    is_int(irqchip_take(chip, 0), -1, "or its mode");

    unsigned count = 0;
    set(0, INITIAL, 100000);
    for (unsigned i = 0; i < 10; i++) {
        advance(100000);
        count += serve(0) == 0x31;
    }
    is_int(count, 10, "periodic");
    set(0, TIMER, 0x20031 | MASKED);
    advance(150000);
    is_int(irqchip_take(chip, 0), -1, "masked");
    is_int(get(0, CURRENT), 50000, "it counts on");
    set(0, TIMER, 0x31);
    advance(50000);
    is_int(serve(0), 0x31, "made one-shot, the period is its last");
    advance(500000);
    is_int(irqchip_take(chip, 0), -1, "the last");
    set(0, TIMER, 0x20031);
    set(0, INITIAL, 1);
    count = 0;
    for (unsigned i = 0; i < 1000; i++) {
        advance(1000);
        count += serve(0) == 0x31;
    }
    ok(count >= 18 && count <= 21, "a period of a nanosecond is served less often");
    set(0, INITIAL, 0);
    advance(1000000);
    serve(0);
    advance(1000000);
    is_int(irqchip_take(chip, 0), -1, "0 stops it");
}

static void test_deadline(void)
{
    uint64_t value = 1;

    reset();
    irqchip_msr_write(chip, 0, 0x6e0, 5);
    irqchip_msr_read(chip, 0, 0x6e0, &value);
    is_int(value, 0, "TSC deadline: not in another mode");
    set(0, TIMER, 0x40032);
    set(0, INITIAL, 1000);
    is_int(get(0, INITIAL), 0, "in which the counts mean nothing");
    uint64_t at = chip_clock_now(the_clock) + 5000;
    irqchip_msr_write(chip, 0, 0x6e0, at);
    irqchip_msr_read(chip, 0, 0x6e0, &value);
    ok(value == at, "it reads back");
    advance(4999);
    is_int(irqchip_take(chip, 0), -1, "not before");
    advance(1);
    is_int(serve(0), 0x32, "then");
    irqchip_msr_read(chip, 0, 0x6e0, &value);
    is_int(value, 0, "and it is off");
    irqchip_msr_write(chip, 0, 0x6e0, 1);
    advance(0);
    is_int(serve(0), 0x32, "a deadline of the past is now");
    irqchip_msr_write(chip, 0, 0x6e0, at + 100000);
    irqchip_msr_write(chip, 0, 0x6e0, 0);
    advance(200000);
    is_int(irqchip_take(chip, 0), -1, "0 disarms");
    irqchip_msr_write(chip, 0, 0x6e0, at + 300000);
    set(0, TIMER, 0x32);
    advance(400000);
    is_int(irqchip_take(chip, 0), -1, "and so does another mode");
}

static void test_x2apic(void)
{
    uint64_t value = 0;

    reset();
    ok(!irqchip_msr_read(chip, 17, 0x802, &value), "no MSRs in xAPIC mode");
    for (unsigned i = 0; i < CPUS; i++)
        irqchip_set_apic_base(chip, i, APIC | 0xc00 | (i == 0 ? 0x100 : 0));
    ok(!irqchip_mmio_read(chip, 17, APIC, 4, &value), "no memory in x2APIC mode");
    ok(irqchip_msr_read(chip, 17, 0x802, &value) && value == 17, "the ID");
    ok(irqchip_msr_read(chip, 17, 0x80d, &value) && value == 0x10002, "the logical ID");
    ok(irqchip_msr_write(chip, 0, 0x830, 17ULL << 32 | 0x44) && who_has(0x44) == 1 << 17, "an IPI");
    is_int(irqchip_take(chip, 17), -1, "its EOI by memory is none");
    ok(irqchip_msr_write(chip, 17, 0x80b, 0) && !irqchip_msr_write(chip, 17, 0x80b, 1),
       "EOI, of nothing but 0");
    irqchip_msr_write(chip, 0, 0x830, 0x0001000aULL << 32 | 0x845);
    ok(irqchip_take(chip, 17) == 0x45 && irqchip_take(chip, 19) == 0x45 &&
           irqchip_take(chip, 1) == -1,
       "a logical one, to a cluster");
    ok(irqchip_msr_write(chip, 3, 0x83f, 0x46) && irqchip_take(chip, 3) == 0x46, "self IPI");
    ok(irqchip_msr_write(chip, 4, 0x83f, 5) && irqchip_msr_write(chip, 4, 0x828, 0) &&
           irqchip_msr_read(chip, 4, 0x828, &value) && value == 1 << 5,
       "with an illegal vector");
    ok(!irqchip_msr_write(chip, 3, 0x83f, 0x146), "reserved bits fault");
    ok(!irqchip_msr_write(chip, 3, 0x830, 1 << 13) && !irqchip_msr_write(chip, 3, 0x830, 1 << 20),
       "in the ICR, too");
    ok(!irqchip_msr_write(chip, 3, 0x802, 0) && !irqchip_msr_write(chip, 3, 0x80e, 0) &&
           !irqchip_msr_read(chip, 3, 0x80b, &value) && !irqchip_msr_read(chip, 3, 0x8ff, &value),
       "and what is read-only, write-only, or not there");
    msi(3, false, 0x91);
    is_int(irqchip_take(chip, 3), 0x91, "a message");
    ok(!irqchip_set_apic_base(chip, 3, APIC | 0x800), "never straight back to xAPIC");
    ok(irqchip_set_apic_base(chip, 3, APIC), "but off");
    ok(!irqchip_set_apic_base(chip, 3, APIC | 0xc00), "not on as x2APIC");
    ok(!irqchip_set_apic_base(chip, 3, APIC | 0x400), "nor half");
    ok(irqchip_set_apic_base(chip, 3, APIC | 0x800), "as xAPIC");
    is_int(get(3, SVR), 0xff, "as after INIT");
}

static void test_init(void)
{
    reset();
    set(6, ID, 0x33 << 24);
    set(6, TPR, 0x20);
    msi(0x33, false, 0x91);
    set(6, TIMER, 0x31);
    set(6, INITIAL, 1000);
    irqchip_reset_lapic(chip, 6, true);
    is_int(get(6, ID), 0x33 << 24, "INIT keeps the ID");
    is_int(get(6, TPR) | get(6, IRR + 0x40) | get(6, INITIAL), 0, "and nothing else");
    is_int(get(6, SVR), 0xff, "it is disabled");
    advance(10000);
    set(6, SVR, 0x1ff);
    is_int(irqchip_take(chip, 6), -1, "its timer is off");
    irqchip_reset_lapic(chip, 6, false);
    is_int(get(6, ID), 6 << 24, "RESET does not");
}

/* From a line to the processor and back. */
static void test_lines(void)
{
    reset();
    ioapic_set_entry(20, 0x8061, 2 << 24);
    irqchip_gsi_set(chip, 20, true);
    is_int(irqchip_take(chip, 2), 0x61, "a level by way of the IOAPIC");
    is_int(get(2, TMR + 0x30), 2, "is one in TMR");
    set(2, EOI, 0);
    is_int(irqchip_take(chip, 2), 0x61, "and comes again after its EOI");
    irqchip_gsi_set(chip, 20, false);
    set(2, EOI, 0);
    is_int(irqchip_take(chip, 2), -1, "until it is low");
    set(2, SVR, 0xff);
    irqchip_gsi_set(chip, 20, true);
    set(2, SVR, 0x1ff);
    ioapic_set_entry(20, 0x8061, 2 << 24);
    is_int(serve(2), 0x61, "nobody there to accept it: it can be sent again");
    irqchip_gsi_set(chip, 20, false);

    /* Virtual wire: the PIC by LINT0. */
    irqchip_reset(chip);
    irqchip_pio_write(chip, 0x20, 0x11);
    irqchip_pio_write(chip, 0x21, 0x30);
    irqchip_pio_write(chip, 0x21, 4);
    irqchip_pio_write(chip, 0x21, 1);
    irqchip_gsi_set(chip, 5, true);
    is_int(irqchip_take(chip, 0), 0x35, "the PIC's, without the APIC");
    is_int(irqchip_take(chip, 1), -1, "to the bootstrap processor");
    irqchip_gsi_set(chip, 5, false);
    irqchip_pio_write(chip, 0x20, 0x20);
    set(0, SVR, 0x1ff);
    set(0, LINT0, 0x10700);
    irqchip_gsi_set(chip, 5, true);
    ok(!irqchip_pending(chip, 0), "LINT0 is masked");
    set(1, SVR, 0x1ff);
    set(1, LINT0, 0x700);
    is_int(irqchip_take(chip, 1), 0x35, "another processor has it");
    irqchip_gsi_set(chip, 5, false);
    is_int(irqchip_gsi_set(chip, 2, true), -EINVAL, "input 2 is the cascade");

    /* Input 0 is the IOAPIC's pin 2, and shared by the line and the PIT. */
    ioapic_set_entry(2, 0x8062, 0);
    irqchip_pio_write(chip, 0x43, 0x34);
    is_int(serve(0), 0x62, "the PIT's output is high");
    irqchip_pit_connect(chip, false);
    is_int(serve(0), 0x62, "sent again before it was disconnected");
    is_int(serve(0), -1, "and no more");
    irqchip_gsi_set(chip, 0, true);
    is_int(irqchip_take(chip, 0), 0x62, "the line");
    irqchip_gsi_set(chip, 0, false);
    set(0, EOI, 0);
    is_int(serve(0), -1, "is low");
    irqchip_pit_connect(chip, true);
    is_int(serve(0), 0x62, "connected again");
}

/* x2APIC mode, and switched on in SVR. */
static void go_x2apic(unsigned cpu)
{
    irqchip_set_apic_base(chip, cpu, APIC | 0xc00);
    irqchip_msr_write(chip, cpu, 0x80f, 0x1ff);
}

/* The numbers of processors do not fit 8 bits: chip is another one now. */
static void test_wide_ids(void)
{
    memset(inits, 0, sizeof(inits));
    memset(sipis, 0, sizeof(sipis));
    for (unsigned cpu = 0; cpu < 256; cpu++)
        go_x2apic(cpu);
    irqchip_msr_write(chip, 0, 0x830, 259ULL << 32 | 0x4500);
    irqchip_msr_write(chip, 0, 0x830, 259ULL << 32 | 0x4608);
    ok(inits[259] == 1 && sipis[259] == 1, "INIT and SIPI reach 259, which is no x2APIC yet");
    ok(inits[3] == 0 && sipis[3] == 0, "and not 3");
    irqchip_msr_write(chip, 0, 0x830, 3ULL << 32 | 0x4500);
    ok(inits[3] == 1 && inits[259] == 1, "nor the other way round");
    go_x2apic(259);
    is_int(irqchip_msi_send(chip, APIC | 3 << 12 | 1 << 5, 0x42), 0, "a message to 259");
    is_int(irqchip_take(chip, 259), 0x42, "arrives there");
    is_int(irqchip_msi_send(chip, APIC | 0xff << 12, 0x43), 0, "one to 255");
    ok(irqchip_take(chip, 255) == 0x43 && !irqchip_pending(chip, 254), "is no broadcast");
    set(280, SVR, 0x1ff);
    ok(irqchip_msi_send(chip, APIC | 0xff << 12, 0x44) == 0 && irqchip_take(chip, 280) == 0x44,
       "but to those that are no x2APIC");

    uint32_t pin[4] = {0x10 + 2 * 20 + 1, 3 << 24 | 1 << 17, 0x10 + 2 * 20, 0x61};
    for (unsigned i = 0; i < 4; i++)
        irqchip_mmio_write(chip, 280, IOAPIC + (i & 1) * 0x10, 4, &pin[i]);
    irqchip_gsi_set(chip, 20, true);
    is_int(irqchip_take(chip, 259), 0x61, "an entry of the IOAPIC has 15 bits as well");
}

int main(void)
{
    struct err err = ERR_INIT;
    struct irqchip_config config = {.cpu_count = CPUS, .upcalls = &upcalls};

    if (chip_clock_new(&the_clock, CHIP_CLOCK_VIRTUAL, &err) < 0)
        return 1;
    config.clock = the_clock;
    if (irqchip_new(&chip, &config, &err) < 0)
        return 1;
    advance(1000);
    test_registers();
    test_priority();
    test_destinations();
    test_errors();
    test_timer();
    test_deadline();
    test_x2apic();
    test_init();
    test_lines();
    irqchip_free(chip);
    config.cpu_count = WIDE_CPUS;
    if (irqchip_new(&chip, &config, &err) < 0)
        return 1;
    test_wide_ids();
    irqchip_free(chip);
    chip_clock_free(the_clock);
    return tap_done();
}
