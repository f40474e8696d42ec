/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chipset and a virtio device under a guest that writes anything anywhere from several vCPUs at
 * once: BARs, ECAM, RCBA and the PM block move under the others' accesses. Nothing may hang or be
 * touched without its lock (the sanitizers' builds tell), and a reset must bring everything back.
 */
#include <pthread.h>
#include <unistd.h>

#include "dev/hpet.h"
#include "dev/i8042.h"
#include "dev/lpc.h"
#include "dev/mch.h"
#include "dev/ports.h"
#include "dev/pvpanic.h"
#include "dev/rtc.h"
#include "dev/test_machine.h"
#include "dev/uart.h"
#include "dev/virtio/rng.h"

#define VCPUS        3
#define ROUNDS       40
#define OPS          2000
#define HANG_SECONDS 60
#define RAM_BYTES    (1 * MIB)
#define DEVICES_MAX  12
#define RNG          PCI_DEVFN(1, 0)

static const uint16_t ports[] = {0x60,  0x64,  0x70,  0x71,   0x80,   0x92,  0xb2,  0xb3,
                                 0xcf8, 0xcf9, 0xcfc, 0xcfd,  0x2f8,  0x3f8, 0x3f9, 0x3fa,
                                 0x3fb, 0x3fc, 0x3fd, 0x3fe,  0x505,  0x600, 0x604, 0x608,
                                 0x620, 0x628, 0x630, 0x6000, 0x6002, 0x680, 0xff80};
static const uint8_t functions[] = {PCI_DEVFN(0, 0), RNG, PCI_DEVFN(31, 0), PCI_DEVFN(5, 0)};
static const unsigned registers[] = {0x04, 0x10, 0x14, 0x18, 0x1c, 0x40, 0x44,
                                     0x60, 0x64, 0x68, 0x9d, 0xac, 0xf0};
static const uint64_t places[] = {0xb0000000, 0xc0000000, 0xc0004000, 0xd0000000, 0xe0000000};
/* Every other of the HPET's registers is there. */
#define HPET_REGISTERS 0x170u

struct vcpu {
    struct test_machine *machine;
    uint64_t random;
};

static void nothing(void *ctx)
{
    (void)ctx;
}

static void panicked_nothing(void *ctx, bool crash_loaded)
{
    (void)ctx;
    (void)crash_loaded;
}

static void exit_nothing(void *ctx, unsigned value)
{
    (void)ctx;
    (void)value;
}

/* xorshift64: the same storm in each run, but for the threads' order. */
static uint64_t next(struct vcpu *vcpu)
{
    vcpu->random ^= vcpu->random << 13;
    vcpu->random ^= vcpu->random >> 7;
    vcpu->random ^= vcpu->random << 17;
    return vcpu->random;
}

/* Values that mean something more often than noise does. */
static uint64_t a_value(struct vcpu *vcpu)
{
    uint64_t random = next(vcpu);

    switch (random % 5) {
    case 0:
        return places[next(vcpu) % ARRAY_LEN(places)] | (random >> 8 & 7);
    case 1:
        return ports[next(vcpu) % ARRAY_LEN(ports)] | (random >> 8 & 1);
    case 2:
        return random >> 8 & 0xff;
    case 3:
        return UINT64_MAX;
    default:
        return next(vcpu);
    }
}

static void access_config(struct vcpu *vcpu)
{
    struct bus *bus = vcpu->machine->bus;
    uint8_t devfn = functions[next(vcpu) % ARRAY_LEN(functions)];
    unsigned size = 1u << next(vcpu) % 3;
    unsigned reg = next(vcpu) % 4 ? registers[next(vcpu) % ARRAY_LEN(registers)]
                                  : (unsigned)(next(vcpu) % PCI_CONFIG_BYTES);

    if (next(vcpu) % 2) {
        bus_write(bus, BUS_PIO, 0xcf8, 0x80000000 | (uint32_t)devfn << 8 | (reg & 0xfc), 4);
        bus_write(bus, BUS_PIO, 0xcfc + (reg & 3), a_value(vcpu), size);
        return;
    }
    uint64_t addr = places[next(vcpu) % ARRAY_LEN(places)] + ((uint64_t)devfn << 12 | reg);
    bus_write(bus, BUS_MMIO, addr, a_value(vcpu), size);
}

static void access_memory(struct vcpu *vcpu)
{
    uint64_t addr = next(vcpu) % 4 ? places[next(vcpu) % ARRAY_LEN(places)] + next(vcpu) % 0x4000
                                   : HPET_BASE + next(vcpu) % HPET_REGISTERS;
    unsigned size = 1u << next(vcpu) % 4;

    if (next(vcpu) % 4)
        bus_write(vcpu->machine->bus, BUS_MMIO, addr, a_value(vcpu), size);
    else
        bus_read(vcpu->machine->bus, BUS_MMIO, addr, size);
}

static void access_port(struct vcpu *vcpu)
{
    uint16_t port = ports[next(vcpu) % ARRAY_LEN(ports)];
    uint32_t data[4];
    unsigned size = 1u << next(vcpu) % 3;
    uint32_t count = 1 + next(vcpu) % 4;

    for (unsigned i = 0; i < ARRAY_LEN(data); i++)
        data[i] = (uint32_t)a_value(vcpu);
    if (next(vcpu) % 4)
        bus_upcalls.pio_write(vcpu->machine->bus, port, size, data, count);
    else
        bus_upcalls.pio_read(vcpu->machine->bus, port, size, data, count);
}

static void *vcpu_main(void *arg)
{
    struct vcpu *vcpu = arg;

    for (unsigned i = 0; i < OPS; i++) {
        switch (next(vcpu) % 3) {
        case 0:
            access_config(vcpu);
            break;
        case 1:
            access_memory(vcpu);
            break;
        default:
            access_port(vcpu);
            break;
        }
    }
    return NULL;
}

static void *loop_main(void *arg)
{
    loop_run(arg);
    return NULL;
}

static unsigned make_devices(struct test_machine *machine, struct mem *mem, struct device **devices)
{
    const struct virtio_env virtio_env = {.mem = mem,
                                          .pci = machine->pci,
                                          .irq = &machine->irq,
                                          .engine = machine->vm,
                                          .loop = machine->loop};
    struct virtio_device *rng;
    struct err err = ERR_INIT;
    unsigned n = 0;

    devices[n++] = pci_bus_device(machine->pci);
    if (mch_new(&devices[n++], &machine->env, &err) < 0 ||
        lpc_new(&machine->pirq_device, &machine->env, &err) < 0 ||
        rtc_new(&devices[n++], &machine->env, &err) < 0 ||
        hpet_new(&devices[n++], &machine->env, &err) < 0 ||
        i8042_new(&devices[n++], &machine->env, &err) < 0 ||
        pvpanic_new(&devices[n++], &machine->env, &err) < 0 ||
        post_new(&devices[n++], &machine->env, &err) < 0 ||
        uart_new(&devices[n++], &machine->env, 0, NULL, &err) < 0 ||
        uart_new(&devices[n++], &machine->env, 1, NULL, &err) < 0 ||
        virtio_rng_new(&rng, &virtio_env, "rng0", &err) < 0 ||
        virtio_pci_plug(rng, 1 << 3, &err) < 0)
        printf("Bail out! %s\n", err.text), abort();
    rtc_on_alarm(devices[2], lpc_rtc_alarm, machine->pirq_device);
    devices[n++] = machine->pirq_device;
    devices[n++] = &rng->fn.dev;
    return n;
}

/* As at power-on: with firmware's part, or the storm would find the PCI devices asleep. */
static bool power_on(struct test_machine *machine, struct device *const *devices, unsigned count)
{
    const struct pci_windows windows = {
        .io_base = 0x6000, .io_len = 0x1000, .mem32_base = 0xc0000000, .mem32_len = 0x10000000};
    struct err err = ERR_INIT;
    bool quiet = true;

    for (unsigned i = 0; i < count; i++)
        device_reset(devices[i]);
    for (unsigned i = 0; i < count; i++)
        quiet = quiet && device_quiet(devices[i]);
    ok(quiet, "after a reset every device is quiet");
    bool low = true;
    for (unsigned i = 0; i < IRQ_GSI_COUNT; i++)
        low = low && !fake_gsi_level(machine->vm, i);
    for (unsigned i = 0; i < 16; i++)
        low = low && !fake_pic_level(machine->vm, i);
    ok(low, "and every interrupt line low");
    bool gone = true;
    for (size_t i = 0; i < ARRAY_LEN(places); i++)
        gone = gone && bus_read(machine->bus, BUS_MMIO, places[i], 4) == UINT32_MAX;
    ok(gone, "nothing is left where the guest moved it");
    mch_enable_ecam(devices[1], places[0]);
    lpc_enable_pm(machine->pirq_device, 0x600);
    return pci_bus_assign(machine->pci, &windows, &err) == 0;
}

static void storm(struct test_machine *machine, unsigned round)
{
    struct vcpu vcpus[VCPUS];
    pthread_t threads[VCPUS], loop;

    pthread_create(&loop, NULL, loop_main, machine->loop);
    for (unsigned i = 0; i < VCPUS; i++) {
        vcpus[i] = (struct vcpu){machine, 0x9e3779b97f4a7c15ULL * (round * VCPUS + i + 1)};
        pthread_create(&threads[i], NULL, vcpu_main, &vcpus[i]);
    }
    for (unsigned i = 0; i < VCPUS; i++)
        pthread_join(threads[i], NULL);
    loop_stop(machine->loop);
    pthread_join(loop, NULL);
}

int main(void)
{
    struct test_machine machine = {.pirq_set = lpc_pirq_set};
    struct device *devices[DEVICES_MAX];
    struct err err = ERR_INIT;
    struct mem *mem;

    alarm(HANG_SECONDS);
    test_machine_init(&machine);
    machine.events = (struct dev_events){
        .power_off = nothing, .reset = nothing, .panicked = panicked_nothing, .exit = exit_nothing};
    if (mem_new(&mem, &(struct mem_options){0}, &err) < 0 ||
        mem_add_ram(mem, "ram", GPA(0), RAM_BYTES, &err) < 0)
        abort();
    unsigned count = make_devices(&machine, mem, devices);
    for (unsigned round = 0; round < ROUNDS; round++) {
        ok(power_on(&machine, devices, count), "the machine powers on");
        is_int(bus_read(machine.bus, BUS_MMIO, places[0], 4), 0x29c08086, "ECAM is at its place");
        is_int(bus_read(machine.bus, BUS_MMIO, places[0] + (RNG << 12), 4), 0x10441af4,
               "with the virtio device");
        storm(&machine, round);
    }
    power_on(&machine, devices, count);
    for (unsigned i = count; i-- > 1;)
        device_fini(devices[i]);
    test_machine_fini(&machine);
    mem_free(mem);
    return tap_done();
}
