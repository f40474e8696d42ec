/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chips joined. One lock covers PIC, PIT and IOAPIC; each local APIC has its own, below it in
 * the order. GSIs: 0 is PIC 0 and IOAPIC 2 (with the PIT), 1-15 both chips' input of that number
 * but 2, 16-23 the IOAPIC's.
 */
#include "engine/chip/irqchip.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "engine/chip/ioapic.h"
#include "engine/chip/lapic.h"
#include "engine/chip/pic.h"
#include "engine/chip/pit.h"

#define CASCADE         2u

#define FERR_IRQ        13u
#define FERR_PORT       0xf0u

#define DELIVERY_FIXED  0u
#define DELIVERY_LOWEST 1u
#define DELIVERY_NMI    4u
#define DELIVERY_INIT   5u
#define DELIVERY_SIPI   6u
#define DELIVERY_EXTINT 7u

struct irqchip {
    struct irqchip_config config;
    pthread_mutex_t lock;
    struct pic pic;
    struct pit pit;
    struct ioapic ioapic;
    bool gsi_level[16], pic_level[16]; /* two sources of a PIC input: lines and PCI links */
    bool pit_level;                    /* GSI 0 has two as well: the line and the PIT */
    bool ext_int;                      /* atomic: the PIC's INTR */
    bool ferr, ignne;                  /* atomic to look at: levels of FERR# and IGNNE# */
    bool wide_ids; /* more processors than 8 bits number: messages carry 15 bits */
    bool irq13;    /* the latch behind FERR#, which port 0xf0 clears */
    struct lapic lapics[];
};

/* --- for lapic.c --- */

void irqchip_wake(struct irqchip *chip, unsigned cpu)
{
    chip->config.upcalls->wake(chip->config.ctx, cpu);
}

void irqchip_nmi(struct irqchip *chip, unsigned cpu)
{
    chip->config.upcalls->nmi(chip->config.ctx, cpu);
}

uint64_t irqchip_tsc(struct irqchip *chip, unsigned cpu)
{
    return chip->config.upcalls->tsc_at(chip->config.ctx, cpu, chip_clock_now(chip->config.clock));
}

uint64_t irqchip_ns_at_tsc(struct irqchip *chip, unsigned cpu, uint64_t tsc)
{
    return chip->config.upcalls->ns_at_tsc(chip->config.ctx, cpu, tsc);
}

void irqchip_end_of_level(struct irqchip *chip, uint8_t vector)
{
    pthread_mutex_lock(&chip->lock);
    ioapic_eoi(&chip->ioapic, vector);
    pthread_mutex_unlock(&chip->lock);
}

/* --- messages to local APICs --- */

static bool matches_logical(const struct lapic *l, const struct ipi *ipi)
{
    if (lapic_is_x2apic(l)) {
        /* Cluster in the upper half, a bit a processor in the lower. An 8-bit destination of an
         * xAPIC or a message is as the xAPIC's flat model was. */
        uint32_t d = ipi->destination;
        if (!ipi->x2apic)
            return l->cpu < 8 && d >> l->cpu & 1;
        return d >> 16 == l->cpu >> 4 && d >> (l->cpu & 15) & 1;
    }
    uint32_t ldr = lapic_load(&l->s.ldr) >> 24, d = ipi->destination & 0xff;
    if (lapic_load(&l->s.dfr) >> 28 == 0xf)
        return ldr & d;
    return ldr >> 4 == d >> 4 && ldr & d & 15;
}

/* Where messages carry more than 8 bits, 255 is a processor like others to an x2APIC. */
static bool is_broadcast(const struct irqchip *chip, const struct lapic *l, const struct ipi *ipi)
{
    if (ipi->x2apic)
        return ipi->destination == UINT32_MAX;
    return ipi->destination == 0xff && !(chip->wide_ids && lapic_is_x2apic(l));
}

static bool is_target(const struct irqchip *chip, const struct lapic *l, const struct ipi *ipi,
                      unsigned source)
{
    /* Switched off in IA32_APIC_BASE it is not on the bus (SDM vol. 3, 10.4.3). */
    if (!lapic_is_enabled(l))
        return false;
    switch (ipi->shorthand) {
    case 1:
        return l->cpu == source;
    case 2:
        return true;
    case 3:
        return l->cpu != source;
    default:
        break;
    }
    if (is_broadcast(chip, l, ipi))
        return true;
    if (ipi->logical)
        return matches_logical(l, ipi);
    /* A number above 255 does not fit an xAPIC's register: INIT and SIPI come by the whole of it,
     * since software cannot switch an x2APIC on before the processor runs. */
    uint32_t id = lapic_is_x2apic(l) || l->cpu > 255 ? l->cpu : lapic_load(&l->s.id) >> 24;
    return id == ipi->destination;
}

/* True: it has been accepted. */
static bool deliver(struct irqchip *chip, struct lapic *l, const struct ipi *ipi)
{
    const struct irqchip_upcalls *up = chip->config.upcalls;
    switch (ipi->delivery) {
    case DELIVERY_FIXED:
    case DELIVERY_LOWEST:
        return lapic_post(l, ipi->vector, ipi->level);
    case DELIVERY_NMI:
        up->nmi(chip->config.ctx, l->cpu);
        return true;
    case DELIVERY_INIT:
        /* The de-assertion only synchronises arbitration IDs of long ago. */
        if (!ipi->level || ipi->assert_level)
            up->init(chip->config.ctx, l->cpu);
        return true;
    case DELIVERY_SIPI:
        up->sipi(chip->config.ctx, l->cpu, ipi->vector);
        return true;
    case DELIVERY_EXTINT:
        up->wake(chip->config.ctx, l->cpu);
        return true;
    default: /* SMI, and what is reserved */
        return true;
    }
}

/* How many have accepted it. */
static unsigned send(struct irqchip *chip, const struct ipi *ipi, unsigned source)
{
    struct lapic *lowest = NULL;
    unsigned count = 0;
    for (unsigned i = 0; i < chip->config.cpu_count; i++) {
        struct lapic *l = &chip->lapics[i];
        if (!is_target(chip, l, ipi, source))
            continue;
        if (ipi->delivery != DELIVERY_LOWEST)
            count += deliver(chip, l, ipi);
        else if (lapic_load(&l->s.svr) >> 8 & 1 &&
                 (!lowest || lapic_priority(l) < lapic_priority(lowest)))
            lowest = l;
    }
    return lowest ? deliver(chip, lowest, ipi) : count;
}

void irqchip_send_to(struct irqchip *chip, unsigned cpu, const struct ipi *ipi)
{
    deliver(chip, &chip->lapics[cpu], ipi);
}

void irqchip_send_ipi(struct irqchip *chip, const struct ipi *ipi, unsigned source)
{
    send(chip, ipi, source);
}

/* SDM vol. 3, 10.11. Bits 5-11 of the address carry bits 8-14 of a wide destination, which guests
 * are told of by KVM_FEATURE_MSI_EXT_DEST_ID. */
static struct ipi message(const struct irqchip *chip, uint64_t addr, uint32_t data)
{
    uint32_t high = chip->wide_ids ? addr >> 5 & 0x7f : 0;
    return (struct ipi){.vector = (uint8_t)data,
                        .delivery = data >> 8 & 7,
                        .logical = addr >> 2 & 1,
                        .assert_level = true,
                        .level = data >> 15 & 1,
                        .destination = (addr >> 12 & 0xff) | high << 8};
}

int irqchip_msi_send(struct irqchip *chip, uint64_t addr, uint32_t data)
{
    const struct ipi ipi = message(chip, addr, data);
    if (addr >> 20 != 0xfee)
        return -EINVAL;
    return send(chip, &ipi, UINT32_MAX) > 0 ? 0 : -ENOENT;
}

static bool ioapic_message(void *ctx, uint64_t addr, uint32_t data)
{
    return irqchip_msi_send(ctx, addr, data) == 0;
}

/* --- lines --- */

/* INTR has changed: processors that listen on LINT0 look. Lock held. */
static void update_intr(struct irqchip *chip)
{
    bool on = pic_requests(&chip->pic);
    __atomic_store_n(&chip->ext_int, on, __ATOMIC_SEQ_CST);
    if (!on)
        return;
    for (unsigned i = 0; i < chip->config.cpu_count; i++) {
        if (lapic_accepts_extint(&chip->lapics[i]))
            irqchip_wake(chip, i);
    }
}

static void set_pic(struct irqchip *chip, unsigned irq)
{
    pic_set(&chip->pic, irq, chip->gsi_level[irq] || chip->pic_level[irq]);
    update_intr(chip);
}

static void set_gsi(struct irqchip *chip, unsigned gsi, bool level)
{
    if (gsi < 16) {
        chip->gsi_level[gsi] = level;
        set_pic(chip, gsi);
    }
    ioapic_set(&chip->ioapic, gsi, level);
}

static void update_gsi0(struct irqchip *chip)
{
    bool level = chip->gsi_level[0] || (chip->pit_level && chip->pit.s.connected);
    pic_set(&chip->pic, 0, level || chip->pic_level[0]);
    update_intr(chip);
    ioapic_set(&chip->ioapic, 2, level);
}

/* --- FERR#, as the ICH9 has it (datasheet, 5.11.1.2): a latch, and port 0xf0 --- */

static void update_irq13(struct irqchip *chip)
{
    bool level = chip->gsi_level[FERR_IRQ] || chip->irq13;
    pic_set(&chip->pic, FERR_IRQ, level || chip->pic_level[FERR_IRQ]);
    update_intr(chip);
    ioapic_set(&chip->ioapic, FERR_IRQ, level);
}

void irqchip_ferr_set(struct irqchip *chip, bool level)
{
    if (__atomic_load_n(&chip->ferr, __ATOMIC_ACQUIRE) == level)
        return;
    pthread_mutex_lock(&chip->lock);
    __atomic_store_n(&chip->ferr, level, __ATOMIC_RELEASE);
    if (level) {
        chip->irq13 = true;
        update_irq13(chip);
    } else {
        __atomic_store_n(&chip->ignne, false, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&chip->lock);
}

bool irqchip_ignne(const struct irqchip *chip)
{
    return __atomic_load_n(&chip->ignne, __ATOMIC_ACQUIRE);
}

/* The error has been seen: FERR# is ignored until it goes. Lock held. */
static void write_coprocessor_error(struct irqchip *chip)
{
    if (!chip->irq13)
        return;
    chip->irq13 = false;
    update_irq13(chip);
    __atomic_store_n(&chip->ignne, chip->ferr, __ATOMIC_RELEASE);
}

int irqchip_gsi_set(struct irqchip *chip, unsigned gsi, bool level)
{
    if (gsi >= IOAPIC_PINS || gsi == CASCADE)
        return -EINVAL;
    pthread_mutex_lock(&chip->lock);
    if (gsi == 0) {
        chip->gsi_level[0] = level;
        update_gsi0(chip);
    } else if (gsi == FERR_IRQ) {
        chip->gsi_level[FERR_IRQ] = level;
        update_irq13(chip);
    } else {
        set_gsi(chip, gsi, level);
    }
    pthread_mutex_unlock(&chip->lock);
    return 0;
}

int irqchip_pic_set(struct irqchip *chip, unsigned irq, bool level)
{
    if (irq >= 16 || irq == CASCADE)
        return -EINVAL;
    pthread_mutex_lock(&chip->lock);
    chip->pic_level[irq] = level;
    if (irq == 0)
        update_gsi0(chip);
    else if (irq == FERR_IRQ)
        update_irq13(chip);
    else
        set_pic(chip, irq);
    pthread_mutex_unlock(&chip->lock);
    return 0;
}

/* Under the lock: from the PIT's functions. */
static void pit_irq(void *ctx, bool level)
{
    struct irqchip *chip = ctx;
    chip->pit_level = level;
    update_gsi0(chip);
}

void irqchip_pit_connect(struct irqchip *chip, bool on)
{
    pthread_mutex_lock(&chip->lock);
    chip->pit.s.connected = on;
    update_gsi0(chip);
    pthread_mutex_unlock(&chip->lock);
}

static void pit_timer(void *ctx)
{
    struct irqchip *chip = ctx;
    pthread_mutex_lock(&chip->lock);
    pit_tick(&chip->pit);
    pthread_mutex_unlock(&chip->lock);
}

/* --- a vCPU's side --- */

static bool ext_int_for(struct irqchip *chip, unsigned cpu)
{
    return __atomic_load_n(&chip->ext_int, __ATOMIC_SEQ_CST) &&
           lapic_accepts_extint(&chip->lapics[cpu]);
}

bool irqchip_pending(struct irqchip *chip, unsigned cpu)
{
    return ext_int_for(chip, cpu) || lapic_pending(&chip->lapics[cpu]) >= 0;
}

int irqchip_take(struct irqchip *chip, unsigned cpu)
{
    int vector = lapic_take(&chip->lapics[cpu]);
    if (vector >= 0 || !ext_int_for(chip, cpu))
        return vector;
    pthread_mutex_lock(&chip->lock);
    vector = pic_requests(&chip->pic) ? pic_acknowledge(&chip->pic) : -1;
    update_intr(chip);
    pthread_mutex_unlock(&chip->lock);
    return vector;
}

uint8_t irqchip_get_cr8(struct irqchip *chip, unsigned cpu)
{
    return lapic_load(&chip->lapics[cpu].s.tpr) >> 4 & 15;
}

void irqchip_set_cr8(struct irqchip *chip, unsigned cpu, uint8_t cr8)
{
    lapic_set_tpr(&chip->lapics[cpu], (uint8_t)(cr8 << 4));
}

uint64_t irqchip_get_apic_base(struct irqchip *chip, unsigned cpu)
{
    return lapic_base(&chip->lapics[cpu]);
}

bool irqchip_set_apic_base(struct irqchip *chip, unsigned cpu, uint64_t value)
{
    return lapic_set_base(&chip->lapics[cpu], value);
}

bool irqchip_msr_read(struct irqchip *chip, unsigned cpu, uint32_t index, uint64_t *value)
{
    return lapic_msr_read(&chip->lapics[cpu], index, value);
}

bool irqchip_msr_write(struct irqchip *chip, unsigned cpu, uint32_t index, uint64_t value)
{
    return lapic_msr_write(&chip->lapics[cpu], index, value);
}

/* --- memory-mapped registers --- */

static bool is_lapic_page(const struct lapic *l, uint64_t gpa)
{
    return lapic_is_enabled(l) && !lapic_is_x2apic(l) &&
           gpa >> 12 == (lapic_base(l) & 0x0000fffffffff000ULL) >> 12;
}

static bool is_ioapic_page(uint64_t gpa)
{
    return gpa >> 12 == IOAPIC_BASE >> 12;
}

/* Registers are 32 bits on 16-byte places; narrower reads see their part. */
static void narrow(uint32_t value, uint64_t gpa, unsigned size, void *data)
{
    uint64_t wide = (gpa & 15) < 4 ? (uint64_t)value >> (8 * (gpa & 3)) : 0;
    memcpy(data, &wide, size);
}

bool irqchip_mmio_read(struct irqchip *chip, unsigned cpu, uint64_t gpa, unsigned size, void *data)
{
    struct lapic *l = &chip->lapics[cpu];
    if (is_lapic_page(l, gpa)) {
        narrow(lapic_read(l, gpa & 0xff0), gpa, size, data);
        return true;
    }
    if (!is_ioapic_page(gpa))
        return false;
    pthread_mutex_lock(&chip->lock);
    uint32_t value = ioapic_read(&chip->ioapic, gpa & 0xf0);
    pthread_mutex_unlock(&chip->lock);
    narrow(value, gpa, size, data);
    return true;
}

bool irqchip_mmio_write(struct irqchip *chip, unsigned cpu, uint64_t gpa, unsigned size,
                        const void *data)
{
    struct lapic *l = &chip->lapics[cpu];
    uint32_t value = 0;
    memcpy(&value, data, size < 4 ? size : 4);
    if (is_lapic_page(l, gpa)) {
        if ((gpa & 15) == 0)
            lapic_write(l, gpa & 0xff0, value);
        return true;
    }
    if (!is_ioapic_page(gpa))
        return false;
    if ((gpa & 15) == 0) {
        pthread_mutex_lock(&chip->lock);
        ioapic_write(&chip->ioapic, gpa & 0xf0, value);
        pthread_mutex_unlock(&chip->lock);
    }
    return true;
}

/* --- ports --- */

bool irqchip_pio_read(struct irqchip *chip, uint16_t port, uint8_t *value)
{
    pthread_mutex_lock(&chip->lock);
    bool ours = pic_read(&chip->pic, port, value);
    if (ours)
        update_intr(chip);
    else
        ours = pit_read(&chip->pit, port, value);
    pthread_mutex_unlock(&chip->lock);
    return ours;
}

bool irqchip_pio_write(struct irqchip *chip, uint16_t port, uint8_t value)
{
    pthread_mutex_lock(&chip->lock);
    bool ours = pic_write(&chip->pic, port, value);
    if (ours) {
        update_intr(chip);
    } else if (port == FERR_PORT) {
        write_coprocessor_error(chip);
        ours = true;
    } else {
        ours = pit_write(&chip->pit, port, value);
    }
    pthread_mutex_unlock(&chip->lock);
    return ours;
}

/* --- life --- */

int irqchip_new(struct irqchip **out, const struct irqchip_config *config, struct err *err)
{
    struct irqchip *chip = calloc(1, sizeof(*chip) + config->cpu_count * sizeof(chip->lapics[0]));
    if (!chip)
        return err_errno(err, ENOMEM, "the interrupt controllers");
    chip->config = *config;
    pthread_mutex_init(&chip->lock, NULL);
    chip->ioapic.send = ioapic_message;
    chip->ioapic.ctx = chip;
    chip->wide_ids = chip->ioapic.wide_ids = config->cpu_count > 255;
    chip->pit.irq = pit_irq;
    chip->pit.ctx = chip;
    pit_init(&chip->pit, config->clock, pit_timer, chip);
    for (unsigned i = 0; i < config->cpu_count; i++)
        lapic_init(&chip->lapics[i], chip, i, config->clock);
    irqchip_reset(chip);
    *out = chip;
    return 0;
}

void irqchip_free(struct irqchip *chip)
{
    if (!chip)
        return;
    pit_fini(&chip->pit);
    for (unsigned i = 0; i < chip->config.cpu_count; i++)
        lapic_fini(&chip->lapics[i]);
    pthread_mutex_destroy(&chip->lock);
    free(chip);
}

void irqchip_reset(struct irqchip *chip)
{
    pthread_mutex_lock(&chip->lock);
    pic_reset(&chip->pic);
    pit_reset(&chip->pit);
    ioapic_reset(&chip->ioapic);
    memset(chip->gsi_level, 0, sizeof(chip->gsi_level));
    memset(chip->pic_level, 0, sizeof(chip->pic_level));
    chip->pit_level = false;
    __atomic_store_n(&chip->ferr, false, __ATOMIC_RELEASE);
    __atomic_store_n(&chip->ignne, false, __ATOMIC_RELEASE);
    chip->irq13 = false;
    __atomic_store_n(&chip->ext_int, false, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&chip->lock);
    for (unsigned i = 0; i < chip->config.cpu_count; i++)
        lapic_reset(&chip->lapics[i], false);
}

void irqchip_reset_lapic(struct irqchip *chip, unsigned cpu, bool init)
{
    lapic_reset(&chip->lapics[cpu], init);
}
