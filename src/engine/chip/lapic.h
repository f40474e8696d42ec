/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A local APIC, xAPIC and x2APIC (SDM vol. 3, chapter 10).
 *
 * Threads: requests come from every thread (lapic_post); registers are written and interrupts taken
 * by the vCPU's own, under the APIC's lock. What others look at to find whom a message is for (IRR,
 * TMR, APIC_BASE, SVR, TPR, ID, LDR, DFR, LINT0) is read and written atomically, so that posting
 * takes no lock.
 */
#ifndef HULL_ENGINE_CHIP_LAPIC_H
#define HULL_ENGINE_CHIP_LAPIC_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/chip/clock.h"
#include "state/state.h"

struct irqchip;

enum lapic_lvt {
    LVT_CMCI,
    LVT_TIMER,
    LVT_THERMAL,
    LVT_COUNTER,
    LVT_LINT0,
    LVT_LINT1,
    LVT_ERROR,
    LVT_COUNT,
};

struct lapic_state {
    uint64_t apic_base; /* IA32_APIC_BASE */
    uint64_t icr;
    uint64_t timer_start_ns; /* when the current count was loaded; CHIP_NEVER: it has expired */
    uint64_t tsc_deadline;   /* IA32_TSC_DEADLINE, 0: off */
    uint32_t irr[8];         /* atomic */
    uint32_t tmr[8];         /* atomic */
    uint32_t isr[8];
    uint32_t lvt[LVT_COUNT];
    uint32_t id, ldr, dfr, svr, tpr;
    uint32_t esr, esr_pending;
    uint32_t timer_divide, timer_initial;
};

extern const struct state_table lapic_table;

struct lapic {
    struct lapic_state s;
    struct irqchip *chip;
    unsigned cpu;
    pthread_mutex_t lock;
    struct chip_timer timer;
    uint64_t timer_deadline_ns; /* what it waits for: one that fires before is of the past */
    uint8_t highest_isr;        /* vector, 0: none; the vCPU's */
};

void lapic_init(struct lapic *lapic, struct irqchip *chip, unsigned cpu, struct chip_clock *clock);
void lapic_fini(struct lapic *lapic);
/* After RESET#, or INIT: what INIT keeps is APIC_BASE (and the ID). */
void lapic_reset(struct lapic *lapic, bool init);

static inline uint64_t lapic_base(const struct lapic *lapic)
{
    return __atomic_load_n(&lapic->s.apic_base, __ATOMIC_RELAXED);
}

/* Of a register that other threads look at. */
static inline uint32_t lapic_load(const uint32_t *reg)
{
    return __atomic_load_n(reg, __ATOMIC_RELAXED);
}

static inline bool lapic_is_enabled(const struct lapic *lapic)
{
    return lapic_base(lapic) >> 11 & 1;
}

static inline bool lapic_is_x2apic(const struct lapic *lapic)
{
    return (lapic_base(lapic) >> 10 & 3) == 3;
}

/* [any] A fixed interrupt; false: an APIC that is off does not accept it. */
bool lapic_post(struct lapic *lapic, uint8_t vector, bool level);
/* Would one be taken, and which? -1: none. */
int lapic_pending(struct lapic *lapic);
/* Move the pending one into service. */
int lapic_take(struct lapic *lapic);
/* Does LINT0 let the PIC's INTR through (virtual wire)? */
bool lapic_accepts_extint(const struct lapic *lapic);
/* The lowest of the processor priorities wins a lowest-priority message (SDM vol. 3, 10.6.2.4). */
unsigned lapic_priority(struct lapic *lapic);

/* Register at offset 0x00-0x3f0 (of 16 bytes). */
uint32_t lapic_read(struct lapic *lapic, uint32_t offset);
void lapic_write(struct lapic *lapic, uint32_t offset, uint32_t value);
bool lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *value);
bool lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value);
bool lapic_set_base(struct lapic *lapic, uint64_t value);
void lapic_set_tpr(struct lapic *lapic, uint8_t tpr);

/* --- irqchip.c, for lapic.c --- */

struct ipi {
    uint8_t vector;
    uint8_t delivery; /* SDM vol. 3, table 10-2: 0 fixed, 1 lowest, 4 NMI, 5 INIT, 6 SIPI */
    bool logical;
    bool level, assert_level;
    uint32_t destination; /* with x2apic: 32 bits */
    uint8_t shorthand;    /* 0 none, 1 self, 2 all, 3 all but self */
    bool x2apic;          /* format of destination */
};

void irqchip_send_ipi(struct irqchip *chip, const struct ipi *ipi, unsigned source);
void irqchip_end_of_level(struct irqchip *chip, uint8_t vector);
void irqchip_wake(struct irqchip *chip, unsigned cpu);
uint64_t irqchip_tsc(struct irqchip *chip, unsigned cpu);
uint64_t irqchip_ns_at_tsc(struct irqchip *chip, unsigned cpu, uint64_t tsc);
void irqchip_nmi(struct irqchip *chip, unsigned cpu);

#endif
