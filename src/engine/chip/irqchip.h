/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interrupt controllers and timers of a PC for engines that have none in the kernel: local
 * APICs (xAPIC and x2APIC; timer one-shot, periodic, TSC deadline), one IOAPIC of 24 pins, the 8259
 * pair, the 8254 interval timer with its speaker gate. Each is a file of its own with its state
 * table; this is what an engine uses of them together.
 *
 * Sources: SDM vol. 3, chapter 10 (APIC); 82093AA (IOAPIC); 8259A, 8254 and ICH9 datasheets.
 *
 * Threads: [any] for all but new, free and reset (no vCPU runs). vCPU functions are for that vCPU's
 * thread.
 */
#ifndef HULL_ENGINE_CHIP_IRQCHIP_H
#define HULL_ENGINE_CHIP_IRQCHIP_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/chip/clock.h"

struct err;
struct irqchip;

/* What the chips ask of the processors. Called with no lock that the engine could need. */
struct irqchip_upcalls {
    /* Look for an interrupt: irqchip_pending() may have become true. */
    void (*wake)(void *ctx, unsigned cpu);
    void (*nmi)(void *ctx, unsigned cpu);
    void (*init)(void *ctx, unsigned cpu);
    void (*sipi)(void *ctx, unsigned cpu, uint8_t vector);
    /* The time stamp counter of that vCPU at clock time now_ns, and the inverse, for TSC-deadline.
     */
    uint64_t (*tsc_at)(void *ctx, unsigned cpu, uint64_t now_ns);
    uint64_t (*ns_at_tsc)(void *ctx, unsigned cpu, uint64_t tsc);
};

struct irqchip_config {
    /* vCPU i has APIC id i. With more than 255 the destinations of messages and of the IOAPIC's
     * entries have 15 bits, in the places that KVM_FEATURE_MSI_EXT_DEST_ID tells of. */
    unsigned cpu_count;
    struct chip_clock *clock;
    const struct irqchip_upcalls *upcalls;
    void *ctx;
};

int irqchip_new(struct irqchip **chip, const struct irqchip_config *config, struct err *err);
void irqchip_free(struct irqchip *chip);
void irqchip_reset(struct irqchip *chip);
/* A local APIC's state after INIT (SDM vol. 3, 10.4.7.3) or RESET. */
void irqchip_reset_lapic(struct irqchip *chip, unsigned cpu, bool init);

/* --- inputs: as engine_ops.gsi_set, pic_set, pit_connect, msi_send --- */
int irqchip_gsi_set(struct irqchip *chip, unsigned gsi, bool level);
int irqchip_pic_set(struct irqchip *chip, unsigned irq, bool level);
void irqchip_pit_connect(struct irqchip *chip, bool on);
int irqchip_msi_send(struct irqchip *chip, uint64_t addr, uint32_t data);

/*
 * The level of a processor's FERR#, an x87 exception with CR0.NE clear. Up, it latches IRQ 13,
 * which a write to port 0xf0 clears; from then on IGNNE# tells the processor to go on in spite of
 * the exception, until FERR# goes down (SDM vol. 1, D.2.1). Cheap where nothing changes.
 */
void irqchip_ferr_set(struct irqchip *chip, bool level);
bool irqchip_ignne(const struct irqchip *chip);

/* One message to one processor, by number (a paravirtual IPI). */
struct ipi;
void irqchip_send_to(struct irqchip *chip, unsigned cpu, const struct ipi *ipi);

/* --- a vCPU's side --- */

/* Is there an interrupt that would be taken with RFLAGS.IF set? Cheap. */
bool irqchip_pending(struct irqchip *chip, unsigned cpu);
/* Acknowledge it: the vector, or -1 where it has gone. */
int irqchip_take(struct irqchip *chip, unsigned cpu);

/* CR8, the task priority class. */
uint8_t irqchip_get_cr8(struct irqchip *chip, unsigned cpu);
void irqchip_set_cr8(struct irqchip *chip, unsigned cpu, uint8_t cr8);

/* IA32_APIC_BASE; false: #GP (reserved bits, an impossible transition: SDM vol. 3, 10.12.5). */
uint64_t irqchip_get_apic_base(struct irqchip *chip, unsigned cpu);
bool irqchip_set_apic_base(struct irqchip *chip, unsigned cpu, uint64_t value);

/* x2APIC MSRs 0x800-0x8ff and IA32_TSC_DEADLINE 0x6e0; false: #GP. */
bool irqchip_msr_read(struct irqchip *chip, unsigned cpu, uint32_t index, uint64_t *value);
bool irqchip_msr_write(struct irqchip *chip, unsigned cpu, uint32_t index, uint64_t value);

/* Memory-mapped registers: is the address one of this vCPU's APIC page or the IOAPIC's? Then done.
 */
bool irqchip_mmio_read(struct irqchip *chip, unsigned cpu, uint64_t gpa, unsigned size, void *data);
bool irqchip_mmio_write(struct irqchip *chip, unsigned cpu, uint64_t gpa, unsigned size,
                        const void *data);

/* Ports 0x20-21, 0xa0-a1, 0x4d0-4d1 (PIC), 0x40-43, 0x61 (PIT, speaker), 0xf0
 * (writes: coprocessor error): done if theirs. */
bool irqchip_pio_read(struct irqchip *chip, uint16_t port, uint8_t *value);
bool irqchip_pio_write(struct irqchip *chip, uint16_t port, uint8_t value);

#endif
