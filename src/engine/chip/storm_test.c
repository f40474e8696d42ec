/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chips under processors and devices that do anything at once, on the host's clock: ports,
 * registers, messages, lines, interrupts taken and ended, processors reset. Nothing may hang, or be
 * touched without its lock (the sanitizers' builds tell), and a reset must bring everything back.
 */
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "engine/chip/irqchip.h"

#define CPUS         3
#define DEVICES      2
#define ROUNDS       20
#define OPS          4000
#define HANG_SECONDS 60
#define APIC         0xfee00000ULL
#define IOAPIC       0xfec00000ULL

static const uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x42, 0x43, 0x61};
static const uint16_t registers[] = {0x20,  0x80,  0xb0,  0xd0,  0xe0,  0xf0,  0x280, 0x300, 0x310,
                                     0x320, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3e0, 0x400};

static struct irqchip *chip;
static bool init_asked[CPUS]; /* atomic */

struct actor {
    unsigned cpu;
    uint64_t random;
};

static void nothing(void *ctx, unsigned cpu)
{
    (void)ctx;
    (void)cpu;
}

static void init(void *ctx, unsigned cpu)
{
    (void)ctx;
    __atomic_store_n(&init_asked[cpu], true, __ATOMIC_RELEASE);
}

static void sipi(void *ctx, unsigned cpu, uint8_t vector)
{
    (void)ctx;
    (void)cpu;
    (void)vector;
}

static uint64_t same(void *ctx, unsigned cpu, uint64_t value)
{
    (void)ctx;
    (void)cpu;
    return value;
}

static uint64_t next(struct actor *actor)
{
    actor->random ^= actor->random << 13;
    actor->random ^= actor->random >> 7;
    actor->random ^= actor->random << 17;
    return actor->random;
}

static void access_apic(struct actor *actor)
{
    uint64_t gpa = APIC + registers[next(actor) % ARRAY_LEN(registers)];
    uint32_t value = (uint32_t)next(actor) >> next(actor) % 32;

    if (next(actor) % 4)
        irqchip_mmio_write(chip, actor->cpu, gpa, 4, &value);
    else
        irqchip_mmio_read(chip, actor->cpu, gpa, 4, &value);
}

static void access_ioapic(struct actor *actor)
{
    uint32_t index = next(actor) % 64, value = (uint32_t)next(actor) & 0xfffeffff;

    irqchip_mmio_write(chip, actor->cpu, IOAPIC, 4, &index);
    irqchip_mmio_write(chip, actor->cpu, IOAPIC + 0x10, 4, &value);
}

static void access_msr(struct actor *actor)
{
    uint32_t index = next(actor) % 4 ? 0x800 + next(actor) % 0x40 : 0x6e0;
    uint64_t value;

    irqchip_msr_write(chip, actor->cpu, index, next(actor) >> next(actor) % 64);
    irqchip_msr_read(chip, actor->cpu, index, &value);
}

static void access_port(struct actor *actor)
{
    uint16_t port = ports[next(actor) % ARRAY_LEN(ports)];
    uint8_t value = (uint8_t)next(actor);

    if (next(actor) % 2)
        irqchip_pio_write(chip, port, value);
    else
        irqchip_pio_read(chip, port, &value);
}

static void act_cpu(struct actor *actor)
{
    static const uint64_t bases[] = {0, 0x800, 0x800, 0xc00};
    uint32_t enable = 0x1ff;

    switch (next(actor) % 8) {
    case 0:
    case 1:
        access_apic(actor);
        break;
    case 2:
        access_ioapic(actor);
        break;
    case 3:
        access_msr(actor);
        break;
    case 4:
        access_port(actor);
        break;
    case 5:
        if (next(actor) % 64 == 0)
            irqchip_set_apic_base(chip, actor->cpu, APIC | bases[next(actor) % 4]);
        irqchip_set_cr8(chip, actor->cpu, 0);
        irqchip_mmio_write(chip, actor->cpu, APIC + 0xf0, 4, &enable);
        break;
    default:
        if (irqchip_pending(chip, actor->cpu))
            irqchip_take(chip, actor->cpu);
        break;
    }
    if (__atomic_exchange_n(&init_asked[actor->cpu], false, __ATOMIC_ACQ_REL))
        irqchip_reset_lapic(chip, actor->cpu, true);
}

static void *cpu_main(void *arg)
{
    for (unsigned i = 0; i < OPS; i++)
        act_cpu(arg);
    return NULL;
}

static void *device_main(void *arg)
{
    struct actor *actor = arg;

    for (unsigned i = 0; i < OPS; i++) {
        uint64_t random = next(actor);
        switch (random % 4) {
        case 0:
            irqchip_gsi_set(chip, random >> 8 & 31, random >> 16 & 1);
            break;
        case 1:
            irqchip_pic_set(chip, random >> 8 & 15, random >> 16 & 1);
            break;
        case 2:
            irqchip_msi_send(chip, APIC | (random >> 8 & 0xff00c), random >> 32 & 0x87ff);
            break;
        default:
            irqchip_pit_connect(chip, random >> 8 & 1);
            break;
        }
    }
    return NULL;
}

static void storm(unsigned round)
{
    struct actor actors[CPUS + DEVICES];
    pthread_t threads[CPUS + DEVICES];

    for (unsigned i = 0; i < CPUS + DEVICES; i++) {
        actors[i] = (struct actor){i, 0x9e3779b97f4a7c15ULL * (round * (CPUS + DEVICES) + i + 1)};
        pthread_create(&threads[i], NULL, i < CPUS ? cpu_main : device_main, &actors[i]);
    }
    for (unsigned i = 0; i < CPUS + DEVICES; i++)
        pthread_join(threads[i], NULL);
}

/* Everything idle, and an interrupt arrives. */
static bool is_new(void)
{
    uint32_t enable = 0x1ff, value = 0;
    bool idle = true, arrives = true;

    for (unsigned i = 0; i < CPUS; i++) {
        idle = idle && !irqchip_pending(chip, i);
        irqchip_mmio_read(chip, i, APIC + 0xf0, 4, &value);
        idle = idle && value == 0xff;
        irqchip_mmio_write(chip, i, APIC + 0xf0, 4, &enable);
        arrives = arrives && irqchip_msi_send(chip, APIC | i << 12, 0x41) == 0 &&
                  irqchip_take(chip, i) == 0x41;
    }
    return idle && arrives;
}

int main(void)
{
    static const struct irqchip_upcalls upcalls = {.wake = nothing,
                                                   .nmi = nothing,
                                                   .init = init,
                                                   .sipi = sipi,
                                                   .tsc_at = same,
                                                   .ns_at_tsc = same};
    struct irqchip_config config = {.cpu_count = CPUS, .upcalls = &upcalls};
    struct err err = ERR_INIT;

    alarm(HANG_SECONDS);
    if (chip_clock_new(&config.clock, CHIP_CLOCK_HOST, &err) < 0 ||
        irqchip_new(&chip, &config, &err) < 0)
        return 1;
    for (unsigned round = 0; round < ROUNDS; round++) {
        storm(round);
        irqchip_reset(chip);
        ok(is_new(), "after a storm and a reset the chips are as new");
        irqchip_reset(chip);
        for (unsigned i = 0; i < CPUS; i++)
            init_asked[i] = false;
    }
    irqchip_free(chip);
    chip_clock_free(config.clock);
    return tap_done();
}
