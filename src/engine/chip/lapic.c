/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/chip/lapic.h"

#include <assert.h>

#include "base/units.h"

#define VERSION         (0x14u | 5u << 16) /* six LVT entries; EOI broadcast always */
#define SVR_ENABLE      (1u << 8)
#define LVT_MASKED      (1u << 16)
#define LVT_DELIVERY(l) ((l) >> 8 & 7)
#define DELIVERY_EXTINT 7u
#define TIMER_MODE(l)   ((l) >> 17 & 3)
#define TIMER_PERIODIC  1u
#define TIMER_DEADLINE  2u
#define ESR_SEND        (1u << 5)
#define ESR_RECEIVE     (1u << 6)
#define ESR_REGISTER    (1u << 7)
#define BASE_BSP        (1ULL << 8)
#define BASE_X2APIC     (1ULL << 10)
#define BASE_ENABLE     (1ULL << 11)
#define BASE_DEFAULT    0xfee00000ULL
#define BASE_RESERVED   (~0x0000ffffffffffffULL | 0x2ffULL)
/* The timer counts nanoseconds, divided. */
#define BUS_HZ 1000000000ULL
/* Shorter periods are served no more often than that. */
#define PERIOD_MIN_NS 50000ULL
/* Delivery status is read-only, the rest reserved (figures 10-12 and 10-28). */
#define ICR_WRITABLE  0xccfffULL
#define ICR_RESERVED  0xfff32000ULL
#define DELIVERY_INIT 5u

enum reg {
    REG_ID = 0x020,
    REG_VERSION = 0x030,
    REG_TPR = 0x080,
    REG_APR = 0x090,
    REG_PPR = 0x0a0,
    REG_EOI = 0x0b0,
    REG_LDR = 0x0d0,
    REG_DFR = 0x0e0,
    REG_SVR = 0x0f0,
    REG_ISR = 0x100,
    REG_TMR = 0x180,
    REG_IRR = 0x200,
    REG_ESR = 0x280,
    REG_LVT_CMCI = 0x2f0,
    REG_ICR_LOW = 0x300,
    REG_ICR_HIGH = 0x310,
    REG_LVT_TIMER = 0x320,
    REG_LVT_ERROR = 0x370,
    REG_TIMER_INITIAL = 0x380,
    REG_TIMER_CURRENT = 0x390,
    REG_TIMER_DIVIDE = 0x3e0,
    REG_SELF_IPI = 0x3f0,
};

static const struct state_field lapic_fields[] = {
    STATE_U64(struct lapic_state, apic_base, 1, BASE_DEFAULT | BASE_ENABLE, "IA32_APIC_BASE"),
    STATE_U64(struct lapic_state, icr, 1, 0, "Interrupt command register"),
    STATE_U64(struct lapic_state, timer_start_ns, 1, 0, "When the timer's count was loaded"),
    STATE_U64(struct lapic_state, tsc_deadline, 1, 0, "IA32_TSC_DEADLINE"),
    STATE_U32(struct lapic_state, irr, 1, 0, "Interrupt request register"),
    STATE_U32(struct lapic_state, tmr, 1, 0, "Trigger mode register"),
    STATE_U32(struct lapic_state, isr, 1, 0, "In-service register"),
    STATE_U32(struct lapic_state, lvt, 1, LVT_MASKED,
              "Local vector table: CMCI, timer, thermal, counter, LINT0, LINT1, error"),
    STATE_U32(struct lapic_state, id, 1, 0, "APIC ID"),
    STATE_U32(struct lapic_state, ldr, 1, 0, "Logical destination register"),
    STATE_U32(struct lapic_state, dfr, 1, 0xffffffff, "Destination format register"),
    STATE_U32(struct lapic_state, svr, 1, 0xff, "Spurious-interrupt vector register"),
    STATE_U32(struct lapic_state, tpr, 1, 0, "Task priority register"),
    STATE_U32(struct lapic_state, esr, 1, 0, "Error status register, as last latched"),
    STATE_U32(struct lapic_state, esr_pending, 1, 0, "Errors since then"),
    STATE_U32(struct lapic_state, timer_divide, 1, 0, "Divide configuration register"),
    STATE_U32(struct lapic_state, timer_initial, 1, 0, "Initial count register"),
};
const struct state_table lapic_table = STATE_TABLE("lapic", struct lapic_state, 1, lapic_fields);

/* A register that other threads look at (lapic.h). */
static void put(uint32_t *reg, uint32_t value)
{
    __atomic_store_n(reg, value, __ATOMIC_RELAXED);
}

/* --- bitmaps of 256 vectors --- */

static void bit_set(uint32_t *map, uint8_t vector)
{
    __atomic_fetch_or(&map[vector / 32], 1u << (vector % 32), __ATOMIC_SEQ_CST);
}

static void bit_clear(uint32_t *map, uint8_t vector)
{
    __atomic_fetch_and(&map[vector / 32], ~(1u << (vector % 32)), __ATOMIC_SEQ_CST);
}

static bool bit_test(const uint32_t *map, uint8_t vector)
{
    return __atomic_load_n(&map[vector / 32], __ATOMIC_SEQ_CST) >> (vector % 32) & 1;
}

/* 0: none, which is no valid vector. */
static unsigned highest(const uint32_t *map)
{
    for (unsigned word = 8; word-- > 0;) {
        uint32_t bits = __atomic_load_n(&map[word], __ATOMIC_SEQ_CST);
        if (bits)
            return word * 32 + 31 - (unsigned)__builtin_clz(bits);
    }
    return 0;
}

/* --- priorities (SDM vol. 3, 10.8.3) --- */

static bool is_on(const struct lapic *l)
{
    return lapic_is_enabled(l) && lapic_load(&l->s.svr) & SVR_ENABLE;
}

static unsigned processor_priority(const struct lapic *l)
{
    unsigned service = __atomic_load_n(&l->highest_isr, __ATOMIC_RELAXED);
    unsigned task = lapic_load(&l->s.tpr) & 0xff;
    return task >> 4 >= service >> 4 ? task : service & 0xf0;
}

unsigned lapic_priority(struct lapic *l)
{
    return processor_priority(l);
}

int lapic_pending(struct lapic *l)
{
    if (!is_on(l))
        return -1;
    unsigned vector = highest(l->s.irr);
    return vector >> 4 > processor_priority(l) >> 4 ? (int)vector : -1;
}

int lapic_take(struct lapic *l)
{
    pthread_mutex_lock(&l->lock);
    int vector = lapic_pending(l);
    if (vector >= 0) {
        bit_clear(l->s.irr, (uint8_t)vector);
        bit_set(l->s.isr, (uint8_t)vector);
        __atomic_store_n(&l->highest_isr, (uint8_t)vector, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&l->lock);
    return vector;
}

/* [any] */
static void error(struct lapic *l, uint32_t bits)
{
    __atomic_fetch_or(&l->s.esr_pending, bits, __ATOMIC_RELAXED);
    uint32_t lvt = lapic_load(&l->s.lvt[LVT_ERROR]);
    if (!(lvt & LVT_MASKED) && (lvt & 0xff) >= 16)
        lapic_post(l, (uint8_t)lvt, false);
}

bool lapic_post(struct lapic *l, uint8_t vector, bool level)
{
    if (!is_on(l))
        return false;
    if (vector < 16) {
        error(l, ESR_RECEIVE);
        return true;
    }
    if (level)
        bit_set(l->s.tmr, vector);
    else if (bit_test(l->s.tmr, vector))
        bit_clear(l->s.tmr, vector);
    bit_set(l->s.irr, vector);
    irqchip_wake(l->chip, l->cpu);
    return true;
}

static void end_of_interrupt(struct lapic *l)
{
    unsigned vector = l->highest_isr;
    if (vector == 0)
        return;
    bit_clear(l->s.isr, (uint8_t)vector);
    __atomic_store_n(&l->highest_isr, (uint8_t)highest(l->s.isr), __ATOMIC_RELAXED);
    bool level = bit_test(l->s.tmr, (uint8_t)vector);
    pthread_mutex_unlock(&l->lock); /* the IOAPIC may post to us */
    if (level)
        irqchip_end_of_level(l->chip, (uint8_t)vector);
    irqchip_wake(l->chip, l->cpu);
    pthread_mutex_lock(&l->lock);
}

bool lapic_accepts_extint(const struct lapic *l)
{
    uint32_t lvt = lapic_load(&l->s.lvt[LVT_LINT0]);
    /* Switched off, the pins are the processor's own INTR and NMI. */
    if (!lapic_is_enabled(l))
        return l->cpu == 0;
    return !(lvt & LVT_MASKED) && LVT_DELIVERY(lvt) == DELIVERY_EXTINT;
}

/* --- the timer (SDM vol. 3, 10.5.4) --- */

static unsigned divisor(const struct lapic *l)
{
    unsigned code = (l->s.timer_divide & 3) | (l->s.timer_divide >> 1 & 4);
    return code == 7 ? 1 : 2u << code;
}

static uint64_t count_ns(const struct lapic *l, uint64_t count)
{
    return count * divisor(l) * (1000000000ULL / BUS_HZ);
}

static bool timer_counts(const struct lapic *l)
{
    return l->s.timer_initial && l->s.timer_start_ns != CHIP_NEVER &&
           TIMER_MODE(l->s.lvt[LVT_TIMER]) != TIMER_DEADLINE;
}

/* Lock held. */
static void timer_arm(struct lapic *l)
{
    uint32_t lvt = l->s.lvt[LVT_TIMER];
    uint64_t deadline = CHIP_NEVER;
    if (TIMER_MODE(lvt) == TIMER_DEADLINE) {
        if (l->s.tsc_deadline)
            deadline = irqchip_ns_at_tsc(l->chip, l->cpu, l->s.tsc_deadline);
    } else if (timer_counts(l)) {
        uint64_t period = count_ns(l, l->s.timer_initial);
        deadline = l->s.timer_start_ns + period;
        if (TIMER_MODE(lvt) == TIMER_PERIODIC && period < PERIOD_MIN_NS)
            deadline = chip_clock_now(l->timer.clock) + PERIOD_MIN_NS;
    }
    l->timer_deadline_ns = deadline;
    chip_timer_start(&l->timer, deadline);
}

static void timer_fire(void *ctx)
{
    struct lapic *l = ctx;
    pthread_mutex_lock(&l->lock);
    uint32_t lvt = l->s.lvt[LVT_TIMER];
    uint64_t now = chip_clock_now(l->timer.clock);
    /* The guest has set or stopped it anew while this was on its way. */
    bool stale = now < l->timer_deadline_ns;
    if (stale) {
        pthread_mutex_unlock(&l->lock);
        return;
    }
    l->timer_deadline_ns = CHIP_NEVER;
    switch (TIMER_MODE(lvt)) {
    case TIMER_DEADLINE:
        l->s.tsc_deadline = 0;
        break;
    case TIMER_PERIODIC: {
        /* Periods that went by unseen are not made up for. */
        uint64_t period = count_ns(l, l->s.timer_initial);
        if (timer_counts(l)) {
            l->s.timer_start_ns += (now - l->s.timer_start_ns) / period * period;
            timer_arm(l);
        }
        break;
    }
    default:
        l->s.timer_start_ns = CHIP_NEVER;
        break;
    }
    if (!(lvt & LVT_MASKED)) /* under the lock, or it could come after a reset */
        lapic_post(l, (uint8_t)lvt, false);
    pthread_mutex_unlock(&l->lock);
}

static uint32_t timer_current(const struct lapic *l)
{
    uint64_t period = count_ns(l, l->s.timer_initial);
    if (!timer_counts(l))
        return 0;
    uint64_t gone = chip_clock_now(l->timer.clock) - l->s.timer_start_ns;
    if (TIMER_MODE(l->s.lvt[LVT_TIMER]) == TIMER_PERIODIC)
        gone %= period;
    return gone >= period ? 0 : l->s.timer_initial - (uint32_t)(gone / count_ns(l, 1));
}

/* The count goes on from where it is, at the new rate. */
static void write_divide(struct lapic *l, uint32_t value)
{
    uint32_t current = timer_current(l);
    if (l->s.timer_divide == value)
        return;
    l->s.timer_divide = value;
    if (current == 0)
        return;
    l->s.timer_start_ns =
        chip_clock_now(l->timer.clock) - count_ns(l, l->s.timer_initial - current);
    timer_arm(l);
}

static void timer_load(struct lapic *l, uint32_t value)
{
    if (TIMER_MODE(l->s.lvt[LVT_TIMER]) == TIMER_DEADLINE)
        return;
    l->s.timer_initial = value;
    l->s.timer_start_ns = chip_clock_now(l->timer.clock);
    timer_arm(l);
}

static void write_tsc_deadline(struct lapic *l, uint64_t value)
{
    if (TIMER_MODE(l->s.lvt[LVT_TIMER]) != TIMER_DEADLINE)
        return;
    l->s.tsc_deadline = value;
    timer_arm(l);
}

/* --- registers --- */

static int lvt_of_offset(uint32_t offset)
{
    if (offset == REG_LVT_CMCI)
        return LVT_CMCI;
    if (offset >= REG_LVT_TIMER && offset <= REG_LVT_ERROR)
        return LVT_TIMER + (int)(offset - REG_LVT_TIMER) / 16;
    return -1;
}

static void write_lvt(struct lapic *l, int index, uint32_t value)
{
    static const uint32_t writable[LVT_COUNT] = {
        [LVT_CMCI] = 0x107ff,    [LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff,
        [LVT_COUNTER] = 0x107ff, [LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,
        [LVT_ERROR] = 0x100ff,
    };
    uint32_t old = l->s.lvt[index];
    value &= writable[index];
    if (!(l->s.svr & SVR_ENABLE))
        value |= LVT_MASKED;
    put(&l->s.lvt[index], value);
    if (index == LVT_TIMER && TIMER_MODE(old) != TIMER_MODE(value)) {
        /* From or to deadline mode disarms. */
        if (TIMER_MODE(old) == TIMER_DEADLINE || TIMER_MODE(value) == TIMER_DEADLINE) {
            l->s.tsc_deadline = 0;
            l->s.timer_initial = 0;
        }
        timer_arm(l);
    }
}

static void write_svr(struct lapic *l, uint32_t value)
{
    put(&l->s.svr, value & 0x3ff);
    if (!(value & SVR_ENABLE)) {
        for (unsigned i = 0; i < LVT_COUNT; i++)
            put(&l->s.lvt[i], l->s.lvt[i] | LVT_MASKED);
    }
}

/* Called without the lock: it may come back to us. */
static void send_icr(struct lapic *l, uint64_t icr)
{
    const struct ipi ipi = {
        .vector = (uint8_t)icr,
        .delivery = icr >> 8 & 7,
        .logical = icr >> 11 & 1,
        .assert_level = icr >> 14 & 1,
        /* Other IPIs are edges, whatever it says (table 10-1 and 10.6.1). */
        .level = (icr >> 8 & 7) == DELIVERY_INIT && icr >> 15 & 1,
        .shorthand = icr >> 18 & 3,
        .destination = lapic_is_x2apic(l) ? (uint32_t)(icr >> 32) : (uint32_t)(icr >> 56),
        .x2apic = lapic_is_x2apic(l),
    };
    if (ipi.delivery <= 1 && ipi.vector < 16) {
        error(l, ESR_SEND);
        return;
    }
    irqchip_send_ipi(l->chip, &ipi, l->cpu);
}

static uint32_t read_locked(struct lapic *l, uint32_t offset)
{
    int lvt = lvt_of_offset(offset);
    if (lvt >= 0)
        return l->s.lvt[lvt];
    if (offset >= REG_ISR && offset < REG_ISR + 0x80)
        return l->s.isr[(offset - REG_ISR) / 16];
    if (offset >= REG_TMR && offset < REG_TMR + 0x80)
        return __atomic_load_n(&l->s.tmr[(offset - REG_TMR) / 16], __ATOMIC_SEQ_CST);
    if (offset >= REG_IRR && offset < REG_IRR + 0x80)
        return __atomic_load_n(&l->s.irr[(offset - REG_IRR) / 16], __ATOMIC_SEQ_CST);
    switch (offset) {
    case REG_ID:
        return lapic_is_x2apic(l) ? l->cpu : l->s.id;
    case REG_VERSION:
        return VERSION;
    case REG_TPR:
        return l->s.tpr;
    case REG_PPR:
        return processor_priority(l);
    case REG_LDR:
        return lapic_is_x2apic(l) ? (l->cpu >> 4) << 16 | 1u << (l->cpu & 15) : l->s.ldr;
    case REG_DFR:
        return l->s.dfr;
    case REG_SVR:
        return l->s.svr;
    case REG_ESR:
        return l->s.esr;
    case REG_ICR_LOW:
        return (uint32_t)l->s.icr;
    case REG_ICR_HIGH:
        return (uint32_t)(l->s.icr >> 32);
    case REG_TIMER_INITIAL:
        return l->s.timer_initial;
    case REG_TIMER_CURRENT:
        return timer_current(l);
    case REG_TIMER_DIVIDE:
        return l->s.timer_divide;
    case REG_APR:
        return 0;
    default:
        error(l, ESR_REGISTER);
        return 0;
    }
}

uint32_t lapic_read(struct lapic *l, uint32_t offset)
{
    pthread_mutex_lock(&l->lock);
    uint32_t value = read_locked(l, offset & 0xff0);
    pthread_mutex_unlock(&l->lock);
    return value;
}

/* True: an ICR is to be sent when the lock is free. */
static bool write_locked(struct lapic *l, uint32_t offset, uint32_t value)
{
    int lvt = lvt_of_offset(offset);
    if (lvt >= 0) {
        write_lvt(l, lvt, value);
        return false;
    }
    switch (offset) {
    case REG_ID:
        put(&l->s.id, value & 0xff000000);
        break;
    case REG_TPR:
        put(&l->s.tpr, value & 0xff);
        irqchip_wake(l->chip, l->cpu);
        break;
    case REG_EOI:
        end_of_interrupt(l);
        break;
    case REG_LDR:
        put(&l->s.ldr, value & 0xff000000);
        break;
    case REG_DFR:
        put(&l->s.dfr, value | 0x0fffffff);
        break;
    case REG_SVR:
        write_svr(l, value);
        break;
    case REG_ESR:
        l->s.esr = __atomic_exchange_n(&l->s.esr_pending, 0, __ATOMIC_RELAXED);
        break;
    case REG_ICR_LOW:
        l->s.icr = (l->s.icr & ~0xffffffffULL) | (value & ICR_WRITABLE);
        return true;
    case REG_ICR_HIGH:
        l->s.icr = (l->s.icr & 0xffffffff) | (uint64_t)(value & 0xff000000) << 32;
        break;
    case REG_TIMER_INITIAL:
        timer_load(l, value);
        break;
    case REG_TIMER_DIVIDE:
        write_divide(l, value & 0xb);
        break;
    case REG_VERSION:
    case REG_APR:
    case REG_PPR:
    case REG_TIMER_CURRENT:
        break;
    default:
        error(l, ESR_REGISTER);
        break;
    }
    return false;
}

void lapic_write(struct lapic *l, uint32_t offset, uint32_t value)
{
    pthread_mutex_lock(&l->lock);
    bool send = write_locked(l, offset & 0xff0, value);
    uint64_t icr = l->s.icr;
    pthread_mutex_unlock(&l->lock);
    if (send)
        send_icr(l, icr);
}

void lapic_set_tpr(struct lapic *l, uint8_t tpr)
{
    lapic_write(l, REG_TPR, tpr);
}

/* --- x2APIC: the same registers as MSRs (SDM vol. 3, table 10-6) --- */

#define MSR_X2APIC       0x800u
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_ICR          0x830u
#define MSR_SELF_IPI     0x83fu

static bool x2apic_readable(uint32_t offset)
{
    switch (offset) {
    case REG_EOI:
    case REG_SELF_IPI:
    case REG_DFR:
    case REG_ICR_HIGH:
    case REG_APR:
        return false;
    case REG_ID:
    case REG_VERSION:
    case REG_TPR:
    case REG_PPR:
    case REG_LDR:
    case REG_SVR:
    case REG_ESR:
    case REG_LVT_CMCI:
    case REG_TIMER_INITIAL:
    case REG_TIMER_CURRENT:
    case REG_TIMER_DIVIDE:
        return true;
    default:
        return (offset >= REG_ISR && offset < REG_ESR) ||
               (offset >= REG_LVT_TIMER && offset <= REG_LVT_ERROR);
    }
}

/* Bits that must be zero. */
static bool x2apic_writable(uint32_t offset, uint64_t value)
{
    switch (offset) {
    case REG_EOI:
    case REG_ESR:
        return value == 0;
    case REG_TPR:
        return value <= 0xff;
    case REG_SVR:
        return value <= 0x3ff;
    case REG_TIMER_INITIAL:
        return value >> 32 == 0;
    case REG_TIMER_DIVIDE:
        return (value & ~0xbULL) == 0;
    default:
        return lvt_of_offset(offset) >= 0 && value >> 20 == 0;
    }
}

bool lapic_msr_read(struct lapic *l, uint32_t index, uint64_t *value)
{
    if (index == MSR_TSC_DEADLINE) {
        pthread_mutex_lock(&l->lock);
        *value = l->s.tsc_deadline;
        pthread_mutex_unlock(&l->lock);
        return true;
    }
    if (!lapic_is_x2apic(l))
        return false;
    if (index == MSR_ICR) {
        *value = l->s.icr;
        return true;
    }
    uint32_t offset = (index - MSR_X2APIC) * 16;
    if (!x2apic_readable(offset))
        return false;
    *value = lapic_read(l, offset);
    return true;
}

bool lapic_msr_write(struct lapic *l, uint32_t index, uint64_t value)
{
    if (index == MSR_TSC_DEADLINE) {
        pthread_mutex_lock(&l->lock);
        write_tsc_deadline(l, value);
        pthread_mutex_unlock(&l->lock);
        return true;
    }
    if (!lapic_is_x2apic(l))
        return false;
    if (index == MSR_ICR) {
        if (value & ICR_RESERVED)
            return false;
        pthread_mutex_lock(&l->lock);
        l->s.icr = value & (0xffffffff00000000ULL | ICR_WRITABLE);
        uint64_t icr = l->s.icr;
        pthread_mutex_unlock(&l->lock);
        send_icr(l, icr);
        return true;
    }
    if (index == MSR_SELF_IPI) {
        if (value >> 8)
            return false;
        if (value < 16)
            error(l, ESR_SEND);
        else
            lapic_post(l, (uint8_t)value, false);
        return true;
    }
    uint32_t offset = (index - MSR_X2APIC) * 16;
    if (!x2apic_writable(offset, value))
        return false;
    lapic_write(l, offset, (uint32_t)value);
    return true;
}

/* SDM vol. 3, 10.12.5: xAPIC to x2APIC and off; never x2APIC back to xAPIC, nor off to x2APIC. */
bool lapic_set_base(struct lapic *l, uint64_t value)
{
    uint64_t old = l->s.apic_base & (BASE_ENABLE | BASE_X2APIC);
    uint64_t wanted = value & (BASE_ENABLE | BASE_X2APIC);
    if (value & BASE_RESERVED || wanted == BASE_X2APIC)
        return false;
    if ((old == (BASE_ENABLE | BASE_X2APIC) && wanted == BASE_ENABLE) ||
        (old == 0 && wanted == (BASE_ENABLE | BASE_X2APIC)))
        return false;
    __atomic_store_n(&l->s.apic_base, value, __ATOMIC_RELAXED);
    if (wanted == 0 && old != 0) {
        lapic_reset(l, true);
        __atomic_store_n(&l->s.apic_base, value, __ATOMIC_RELAXED);
    }
    return true;
}

/* --- life --- */

/* Others may look meanwhile (INIT comes while the machine runs), so each word is stored by itself.
 */
static void publish(struct lapic_state *to, const struct lapic_state *from)
{
    const uint32_t *source = (const uint32_t *)(const void *)from;
    uint32_t *target = (uint32_t *)(void *)to;
    static_assert(sizeof(*to) % sizeof(*target) == 0, "whole words");
    for (size_t i = 0; i < sizeof(*to) / sizeof(*target); i++)
        put(&target[i], source[i]);
}

void lapic_reset(struct lapic *l, bool init)
{
    struct lapic_state fresh;
    chip_timer_start(&l->timer, CHIP_NEVER);
    state_reset(&lapic_table, &fresh);
    fresh.id = init ? lapic_load(&l->s.id) : l->cpu << 24;
    /* The virtual wire that firmware would set up, and a guest without firmware counts on. */
    if (l->cpu == 0)
        fresh.lvt[LVT_LINT0] = DELIVERY_EXTINT << 8;
    if (init)
        fresh.apic_base = lapic_base(l);
    else if (l->cpu == 0)
        fresh.apic_base |= BASE_BSP;
    pthread_mutex_lock(&l->lock);
    l->timer_deadline_ns = CHIP_NEVER;
    publish(&l->s, &fresh);
    __atomic_store_n(&l->highest_isr, 0, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&l->lock);
}

void lapic_init(struct lapic *l, struct irqchip *chip, unsigned cpu, struct chip_clock *clock)
{
    l->chip = chip;
    l->cpu = cpu;
    pthread_mutex_init(&l->lock, NULL);
    chip_timer_init(&l->timer, clock, timer_fire, l);
    lapic_reset(l, false);
}

void lapic_fini(struct lapic *l)
{
    chip_timer_stop(&l->timer);
    pthread_mutex_destroy(&l->lock);
}
