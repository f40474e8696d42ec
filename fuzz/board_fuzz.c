/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole machine on the fake engine; the input is its guest: an operation a byte, its arguments
 * behind it. Arguments are indices into what there is (ports of the chipset, functions, BARs where
 * they lie now, queues), so that most operations reach a device; some are wild.
 *
 *     0 port n {value}       write a known port            1 port n           read it
 *     2 fn reg {value}       write configuration space     3 fn reg           read it
 *     4 n fn bar part off {value}   write inside a BAR     5 n fn bar part off   read it
 *     6 fn features size     a driver starts: negotiate, place queues, DRIVER_OK
 *     7 fn queue n ...       it makes a chain of n buffers available, and notifies
 *     8 fn queue off n bytes write into the area of a queue
 *     9 what                 loops turn; power button; power-on
 *     a addr value           a wild access to port or memory, or one to the HPET
 *     b port n count         a string instruction
 *     c fn vector control    set up MSI-X
 *
 * Checked: nothing crashes or lasts; a power-on gives the same state, whatever the guest did, with
 * no interrupt line up and no ioeventfd left.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "dev/virtio/pci.h"
#include "engine/fake/fake.h"
#include "net/net.h"
#include "vm/board.h"
#include "vm/boot_fixture.h"
#include "vm/layout.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define OPS_MAX       200
#define FNS_MAX       16
#define DEVICES_MAX   32
#define QUEUES_MAX    8
#define DISK_BYTES    (256 * KIB)
#define VIRTIO_VENDOR 0x1af4u

/* Where a driver puts things: 256 KiB a function, 32 KiB a queue. */
#define AREA_BASE    (4 * MIB)
#define AREA_BYTES   (256 * KIB)
#define QUEUE_BYTES  (32 * KIB)
#define AREA_DRIVER  0x1000u
#define AREA_DEVICE  0x2000u
#define AREA_TABLE   0x3000u
#define AREA_BUFFERS 0x4000u

/* virtio 1.2, 2.7.5 and 2.8.1 */
#define DESC_NEXT     1u
#define DESC_WRITE    2u
#define DESC_INDIRECT 4u
#define DESC_AVAIL    (1u << 7)
#define DESC_USED     (1u << 15)

/* --- input --- */

static const uint8_t *input;
static size_t input_left;

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

static void check(bool good)
{
    if (!good)
        abort();
}

/* --- a network that sends back what it gets --- */

#define PACKETS       4
#define MIRROR_QUEUES 2

struct mirror {
    struct net_backend net;
    void (*rx_ready)(void *ctx, unsigned queue);
    void (*tx_ready)(void *ctx, unsigned queue);
    void *ctx;
    bool rx_watched[MIRROR_QUEUES], tx_watched[MIRROR_QUEUES];
    unsigned count;
    size_t len[PACKETS];
    uint8_t bytes[PACKETS][2048];
};

static int mirror_attach(struct net_backend *net, unsigned queue, struct loop *loop,
                         void (*rx_ready)(void *ctx, unsigned queue),
                         void (*tx_ready)(void *ctx, unsigned queue), void *ctx)
{
    struct mirror *mirror = CONTAINER_OF(net, struct mirror, net);

    (void)queue, (void)loop;
    mirror->rx_ready = rx_ready;
    mirror->tx_ready = tx_ready;
    mirror->ctx = ctx;
    return 0;
}

static void mirror_watch(struct net_backend *net, unsigned queue, bool rx, bool tx)
{
    struct mirror *mirror = CONTAINER_OF(net, struct mirror, net);

    check(queue < MIRROR_QUEUES);
    mirror->rx_watched[queue] = rx;
    mirror->tx_watched[queue] = tx;
}

static ssize_t mirror_send(struct net_backend *net, unsigned queue, const struct iovec *iov,
                           unsigned iov_count)
{
    struct mirror *mirror = CONTAINER_OF(net, struct mirror, net);
    size_t len = 0;

    (void)queue;
    if (mirror->count == PACKETS)
        return -EAGAIN;
    uint8_t *to = mirror->bytes[mirror->count];
    for (unsigned i = 0; i < iov_count; i++) {
        size_t room = sizeof(mirror->bytes[0]) - len;
        size_t part = iov[i].iov_len < room ? iov[i].iov_len : room;
        memcpy(to + len, iov[i].iov_base, part);
        len += part;
    }
    mirror->len[mirror->count++] = len;
    return (ssize_t)len;
}

static ssize_t mirror_receive(struct net_backend *net, unsigned queue, const struct iovec *iov,
                              unsigned iov_count)
{
    struct mirror *mirror = CONTAINER_OF(net, struct mirror, net);
    size_t done = 0;

    (void)queue;
    if (mirror->count == 0)
        return -EAGAIN;
    mirror->count--;
    for (unsigned i = 0; i < iov_count && done < mirror->len[mirror->count]; i++) {
        size_t rest = mirror->len[mirror->count] - done;
        size_t part = iov[i].iov_len < rest ? iov[i].iov_len : rest;
        memcpy(iov[i].iov_base, mirror->bytes[mirror->count] + done, part);
        done += part;
    }
    return (ssize_t)done;
}

static int mirror_set(struct net_backend *net, unsigned value)
{
    (void)net, (void)value;
    return 0;
}

static void mirror_close(struct net_backend *net)
{
    (void)net;
}

static struct mirror mirror_net;

/* What its loop would see. */
static void mirror_turn(void)
{
    for (unsigned i = 0; i < MIRROR_QUEUES; i++) {
        if (mirror_net.rx_watched[i] && mirror_net.count > 0)
            mirror_net.rx_ready(mirror_net.ctx, i);
        if (mirror_net.tx_watched[i] && mirror_net.count < PACKETS)
            mirror_net.tx_ready(mirror_net.ctx, i);
    }
}

/* In place of the one in net/tap.c, which the linker then leaves out. */
int net_tap_open(struct net_backend **net, const struct net_tap_options *options, struct err *err)
{
    static const struct net_ops ops = {
        .name = "mirror",
        .attach = mirror_attach,
        .watch = mirror_watch,
        .send = mirror_send,
        .receive = mirror_receive,
        .set_offloads = mirror_set,
        .set_queue_pairs = mirror_set,
        .close = mirror_close,
    };

    (void)err;
    mirror_net.net = (struct net_backend){.ops = &ops,
                                          .queue_pairs = options->queue_pairs,
                                          .offloads_rx = 0x7f,
                                          .offloads_tx = 0x7f,
                                          .link_up = true};
    *net = &mirror_net.net;
    return 0;
}

/* --- the machine --- */

struct queue {
    uint16_t size, next; /* next: place of the next descriptor */
    uint16_t avail;      /* split: the driver's index */
    bool wrap;
};

static struct vm_config config;
static struct engine_vm *engine;
static struct bus *bus;
static struct loop *loop;
static struct board board;
static unsigned events_seen;
static struct pci_function *fns[FNS_MAX];
static unsigned fn_count;
static bool packed[FNS_MAX];
static struct queue queues[FNS_MAX][QUEUES_MAX];

static void note(void *ctx)
{
    (void)ctx;
    events_seen++;
}

static void note_panic(void *ctx, bool crash_loaded)
{
    (void)ctx;
    events_seen += 1 + crash_loaded;
}

static void note_exit(void *ctx, unsigned value)
{
    (void)ctx;
    events_seen += value;
}

static const struct dev_events dev_events = {
    .power_off = note, .reset = note, .panicked = note_panic, .exit = note_exit};

struct stop {
    struct loop_task task;
    struct loop *loop;
};

static void stop(struct loop_task *task)
{
    loop_stop(CONTAINER_OF(task, struct stop, task)->loop);
}

static void turn(struct loop *one)
{
    struct stop last = {.task.fn = stop, .loop = one};

    loop_post(one, &last.task);
    loop_run(one);
}

static void turn_all(unsigned times)
{
    while (times-- > 0) {
        turn(loop);
        for (unsigned i = 0; i < board.io.count; i++)
            turn(board.io.threads[i].loop);
        mirror_turn();
    }
}

static bool all_quiet(void)
{
    for (struct device *dev = board.devices; dev; dev = dev->next) {
        if (!device_quiet(dev))
            return false;
    }
    return true;
}

static bool requests_in_flight(void)
{
    for (unsigned i = 0; i < fn_count; i++) {
        if (load_le16(fns[i]->reset_config) != VIRTIO_VENDOR)
            continue;
        const struct virtio_device *dev = CONTAINER_OF(fns[i], struct virtio_device, fn);
        for (unsigned q = 0; q < dev->queue_count; q++) {
            if (dev->queues[q].in_flight > 0)
                return true;
        }
    }
    return false;
}

/* Nothing else runs the loops here, and board_quiesce() waits for what they do. */
static void power_on(void)
{
    struct err err = ERR_INIT;
    bool busy = requests_in_flight() || !all_quiet();

    for (struct device *dev = board.devices; dev && busy; dev = dev->next)
        device_reset(dev);
    for (unsigned turns = 0; !all_quiet(); turns++) {
        check(turns < 5000);
        turn_all(1);
        if (turns > 10)
            usleep(1000);
    }
    check(board_power_on(&board, &err) == 0);
    mirror_net.count = 0;
    memset(queues, 0, sizeof(queues));
    memset(packed, 0, sizeof(packed));
}

/* --- what a power-on must give each time --- */

static void *states[DEVICES_MAX];
static bool lines[IRQ_GSI_COUNT];
static size_t ioeventfds;

/* Their state holds the time. */
static bool has_clock(const struct device *dev)
{
    return strcmp(dev->name, "rtc") == 0 || strcmp(dev->name, "lpc") == 0;
}

static size_t ioeventfd_count(void)
{
    return fake_event_count(engine, FAKE_IOEVENTFD_ADD) -
           fake_event_count(engine, FAKE_IOEVENTFD_DEL);
}

static void remember(void)
{
    unsigned i = 0;

    for (struct device *dev = board.devices; dev; dev = dev->next, i++) {
        check(i < DEVICES_MAX);
        if (!dev->table)
            continue;
        states[i] = malloc(dev->table->size_bytes);
        memcpy(states[i], dev->state, dev->table->size_bytes);
    }
    for (i = 0; i < IRQ_GSI_COUNT; i++)
        lines[i] = fake_gsi_level(engine, i);
    ioeventfds = ioeventfd_count();
}

static void compare(void)
{
    unsigned i = 0;

    for (struct device *dev = board.devices; dev; dev = dev->next, i++) {
        if (!dev->table || has_clock(dev) ||
            memcmp(states[i], dev->state, dev->table->size_bytes) == 0)
            continue;
        fprintf(stderr, "%s is not as it was after power-on; was, is:\n", dev->name);
        state_print(stderr, dev->table, states[i], 4);
        state_print(stderr, dev->table, dev->state, 4);
        abort();
    }
    for (i = 0; i < IRQ_GSI_COUNT; i++)
        check(lines[i] == fake_gsi_level(engine, i));
    check(ioeventfds == ioeventfd_count());
    check(fake_pit_connected(engine));
}

/* --- building it --- */

static void option(const char *name, const char *value)
{
    struct err err = ERR_INIT;

    check(config_set(&config, name, value, &err) == 0);
}

/* A file that is gone with the process, under a name that can be opened. */
static void option_file(const char *name, const void *bytes, size_t len, const char *more)
{
    char value[128];
    int fd = memfd_create("fuzz", MFD_CLOEXEC);

    check(fd >= 0 && ftruncate(fd, (off_t)len) == 0);
    check(!bytes || write(fd, bytes, len) == (ssize_t)len);
    snprintf(value, sizeof(value), "/proc/self/fd/%d%s", fd, more);
    option(name, value);
}

static void configure(void)
{
    const struct elf_spec spec = {
        .paddr = LAYOUT_KERNEL_MIN, .entry = LAYOUT_KERNEL_MIN, .text_len = 64, .pvh_note = true};
    static uint8_t image[IMAGE_ELF_MAX];
    struct boot_image kernel = make_elf(image, &spec);
    struct err err = ERR_INIT;

    check(log_configure("error", &err) == 0);
    check(config_init(&config, &err) == 0);
    config.hpet = true;
    option("name", "fuzz");
    option("memory", "16M");
    option_file("kernel", kernel.bytes, kernel.len, "");
    option_file("disk", NULL, DISK_BYTES, ",serial=FUZZ,queues=2");
    option_file("disk", NULL, DISK_BYTES, ",readonly");
    option("net", "tap,queues=2,mac=52:54:00:12:34:56");
    option("serial", "null");
    option("serial", "null");
    option("console", "null");
    option("debugcon", NULL);
    option("exit-port", NULL);
    check(config_finish(&config, &err) == 0);
}

static void setup(void)
{
    struct err err = ERR_INIT;

    if (engine)
        return;
    configure();
    check(loop_new(&loop, 0, &err) == 0 && bus_new(&bus, &err) == 0);
    const struct engine_vm_config engine_config = {
        .vcpu_count = 1, .upcalls = &bus_upcalls, .upcall_ctx = bus};
    check(engine_fake.vm_new(&engine, &engine_config, &err) == 0);
    check(board_init(&board, &config, engine, bus, &dev_events, loop, &err) == 0);
    for (unsigned devfn = 0; devfn < 256 && fn_count < FNS_MAX; devfn++) {
        struct pci_function *fn = pci_bus_function(board.pci, (uint8_t)devfn);
        if (fn)
            fns[fn_count++] = fn;
    }
    power_on();
    power_on();
    remember();
}

/* --- the guest's accesses --- */

static void guest_write(enum bus_space space, uint64_t addr, uint64_t value, unsigned size)
{
    enum engine_space engine_space = space == BUS_PIO ? ENGINE_SPACE_PIO : ENGINE_SPACE_MMIO;

    if (!fake_ioeventfd_fire(engine, engine_space, addr, size))
        bus_write(bus, space, addr, value, size);
}

static unsigned next_size(void)
{
    return 1u << (next_byte() & 3);
}

static uint16_t next_port(void)
{
    static const struct {
        uint16_t base, len;
    } ports[] = {
        {0x20,                 2    },
        {0x40,                 4    },
        {0x60,                 5    },
        {0x70,                 8    },
        {0x80,                 16   },
        {0xb2,                 2    },
        {LAYOUT_PORT_EXIT,     4    },
        {0x2f8,                8    },
        {0x3f8,                8    },
        {LAYOUT_PORT_DEBUGCON, 1    },
        {LAYOUT_PORT_PVPANIC,  1    },
        {LAYOUT_PORT_PM_BASE,  0x40 },
        {0xcf8,                8    },
        {LAYOUT_PCI_IO,        0x400},
    };
    uint8_t which = next_byte();
    uint16_t at = (uint16_t)next_value(which % ARRAY_LEN(ports) == ARRAY_LEN(ports) - 1 ? 2 : 1);

    return (uint16_t)(ports[which % ARRAY_LEN(ports)].base +
                      at % ports[which % ARRAY_LEN(ports)].len);
}

static void access_port(bool write)
{
    uint16_t port = next_port();
    unsigned size = 1u << (next_byte() % 3);

    if (write)
        guest_write(BUS_PIO, port, next_value(size), size);
    else
        bus_read(bus, BUS_PIO, port, size);
}

static struct pci_function *next_fn(unsigned *index)
{
    *index = next_byte() % fn_count;
    return fns[*index];
}

/* Through the ports, or through ECAM where the board put it (and the guest may have moved it). */
static void access_config(bool write)
{
    unsigned index, size = 1u << (next_byte() % 3);
    struct pci_function *fn = next_fn(&index);
    uint8_t how = next_byte();
    unsigned reg = (unsigned)next_value(2) % PCI_CONFIG_BYTES;
    enum bus_space space = how & 1 ? BUS_MMIO : BUS_PIO;
    uint64_t addr = LAYOUT_ECAM_BASE + ((uint64_t)fn->devfn << 12) + reg;

    if (how & 2)
        reg &= 0xff;
    if (space == BUS_PIO) {
        bus_write(bus, BUS_PIO, 0xcf8, 0x80000000u | (uint32_t)fn->devfn << 8 | (reg & 0xfc), 4);
        addr = 0xcfc + (reg & 3);
    }
    if (write)
        bus_write(bus, space, addr, next_value(size), size);
    else
        bus_read(bus, space, addr, size);
}

static void access_bar(bool write)
{
    unsigned index, size = next_size();
    const struct pci_function *fn = next_fn(&index);
    const struct bus_range *range = &fn->bars[next_byte() % PCI_BAR_COUNT].range;
    uint8_t part = next_byte();
    uint64_t offset = next_byte();

    if (!range->mapped)
        return;
    /* A part (virtio's structures lie 4 KiB apart), and mostly its beginning. */
    offset += part < 0x80 ? (part & 3) * 0x1000u : part * 0x80u;
    if (range->space == BUS_PIO && size == 8)
        size = 4;
    if (write)
        guest_write(range->space, range->base + offset % range->len, next_value(size), size);
    else
        bus_read(bus, range->space, range->base + offset % range->len, size);
}

/* --- a driver --- */

static const struct bus_range *registers(const struct pci_function *fn)
{
    return fn->bars[2].range.mapped ? &fn->bars[2].range : NULL;
}

static void common_write(const struct pci_function *fn, unsigned offset, uint64_t value,
                         unsigned size)
{
    if (registers(fn))
        bus_write(bus, BUS_MMIO, registers(fn)->base + offset, value, size);
}

static uint64_t common_read(const struct pci_function *fn, unsigned offset, unsigned size)
{
    return registers(fn) ? bus_read(bus, BUS_MMIO, registers(fn)->base + offset, size) : 0;
}

static uint64_t area(unsigned fn, unsigned queue)
{
    return AREA_BASE + fn * AREA_BYTES + queue * QUEUE_BYTES;
}

/* Offsets of the common configuration structure: virtio 1.2, 4.1.4.3. */
static void driver_place_queue(unsigned index, unsigned q, uint16_t size)
{
    const struct pci_function *fn = fns[index];
    uint64_t gpa = area(index, q);

    common_write(fn, 0x16, q, 2);
    common_write(fn, 0x18, size, 2);
    common_write(fn, 0x1a, q, 2);
    common_write(fn, 0x20, gpa, 8);
    common_write(fn, 0x28, gpa + AREA_DRIVER, 8);
    common_write(fn, 0x30, gpa + AREA_DEVICE, 8);
    common_write(fn, 0x1c, 1, 2);
    queues[index][q] = (struct queue){.size = size, .wrap = true};
}

static void driver_start(void)
{
    unsigned index;
    const struct pci_function *fn = next_fn(&index);
    uint8_t choice = next_byte();
    uint16_t size = (uint16_t)(1u << (next_byte() % 7));
    uint64_t features = 0;

    common_write(fn, 0x14, 0, 1);
    turn_all(2);
    /* Decoding and, mostly, bus mastering: without it no message goes out. */
    bus_write(bus, BUS_MMIO, LAYOUT_ECAM_BASE + ((uint64_t)fn->devfn << 12) + 4,
              choice & 0x10 ? 0x3 : 0x7, 2);
    for (unsigned half = 0; half < 2; half++) {
        common_write(fn, 0x00, half, 4);
        features |= (common_read(fn, 0x04, 4) & 0xffffffff) << (32 * half);
    }
    if (choice & 1)
        features &= ~VIRTIO_BIT(VIRTIO_F_RING_PACKED);
    if (choice & 2)
        features &= ~VIRTIO_BIT(VIRTIO_F_EVENT_IDX);
    if (choice & 4)
        features &= ~VIRTIO_BIT(VIRTIO_F_IN_ORDER);
    if (choice & 8)
        features &= ~0xffffffULL | next_value(3); /* the device's own */
    common_write(fn, 0x14, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER, 1);
    for (unsigned half = 0; half < 2; half++) {
        common_write(fn, 0x08, half, 4);
        common_write(fn, 0x0c, (uint32_t)(features >> (32 * half)), 4);
    }
    common_write(fn, 0x14, 0xb, 1);
    packed[index] = features & VIRTIO_BIT(VIRTIO_F_RING_PACKED);
    uint8_t *ram = mem_ptr(board.mem, GPA(area(index, 0)), AREA_BYTES, MEM_WRITE);
    memset(ram, 0, AREA_BYTES);
    for (unsigned q = 0; q < QUEUES_MAX && q < common_read(fn, 0x12, 2); q++)
        driver_place_queue(index, q, size);
    common_write(fn, 0x14, 0xf, 1);
}

struct buffer {
    uint64_t gpa;
    uint32_t len;
    bool write, last, indirect;
};

static uint16_t buffer_flags(const struct buffer *buffer)
{
    return (uint16_t)((buffer->write ? DESC_WRITE : 0) | (buffer->last ? 0 : DESC_NEXT) |
                      (buffer->indirect ? DESC_INDIRECT : 0));
}

static uint16_t put_split(uint8_t *ring, struct queue *q, const struct buffer *buffer)
{
    uint16_t at = q->next++ % q->size;
    uint8_t *desc = ring + 16 * at;

    store_le64(desc, buffer->gpa);
    store_le32(desc + 8, buffer->len);
    store_le16(desc + 12, buffer_flags(buffer));
    store_le16(desc + 14, q->next % q->size);
    return at;
}

static void put_packed(uint8_t *ring, struct queue *q, const struct buffer *buffer)
{
    uint8_t *desc = ring + 16 * q->next;

    store_le64(desc, buffer->gpa);
    store_le32(desc + 8, buffer->len);
    store_le16(desc + 12, q->next);
    store_le16(desc + 14, (uint16_t)(buffer_flags(buffer) | (q->wrap ? DESC_AVAIL : DESC_USED)));
    if (++q->next == q->size) {
        q->next = 0;
        q->wrap = !q->wrap;
    }
}

static struct buffer next_buffer(uint64_t base, unsigned i, bool last)
{
    uint8_t how = next_byte();
    struct buffer buffer = {.gpa = base + AREA_BUFFERS + i * 0x1000u, .last = last};

    /* Lengths that mean something to somebody: status, headers, sectors, packets. */
    static const uint32_t lens[] = {16, 1, 512, 4096, 12, 2, 64, 1514};
    buffer.len = lens[how & 7];
    buffer.write = how & 8;
    if ((how & 0xf0) == 0xf0)
        buffer.gpa = next_value(8);
    else if ((how & 0xf0) == 0xe0)
        buffer.len = (uint32_t)next_value(4);
    return buffer;
}

static void driver_notify(const struct pci_function *fn, unsigned q)
{
    const struct bus_range *io = &fn->bars[0].range;

    if (io->mapped && io->space == BUS_PIO)
        guest_write(BUS_PIO, io->base + 2 * q, q, 2);
    else if (registers(fn))
        guest_write(BUS_MMIO, registers(fn)->base + 0x3000 + 4 * q, q, 2);
}

/* One descriptor, or the first of a chain; *head: its place in a split ring. */
static void put(unsigned index, uint8_t *ring, struct queue *q, const struct buffer *buffer,
                bool first, uint16_t *head)
{
    if (packed[index]) {
        put_packed(ring, q, buffer);
        return;
    }
    uint16_t at = put_split(ring, q, buffer);
    if (first)
        *head = at;
}

static void driver_request(void)
{
    unsigned index;
    const struct pci_function *fn = next_fn(&index);
    unsigned number = next_byte() % QUEUES_MAX;
    struct queue *q = &queues[index][number], table = {.size = 8, .wrap = true};
    uint8_t count = next_byte();
    uint64_t base = area(index, number);
    bool indirect = count & 0x20;
    unsigned n = 1 + count % 4;
    uint16_t head = 0, unused;

    if (q->size == 0)
        return;
    uint8_t *ring = mem_ptr(board.mem, GPA(base), QUEUE_BYTES, MEM_WRITE);
    /* What the device looks at first: a request's header, a packet's, a command. */
    store_le32(ring + AREA_BUFFERS, next_byte());
    ring[AREA_BUFFERS + 1] = next_byte();
    store_le64(ring + AREA_BUFFERS + 8, next_byte());
    for (unsigned i = 0; i < n; i++) {
        const struct buffer buffer = next_buffer(base, i, i + 1 == n);
        if (indirect)
            put(index, ring + AREA_TABLE, &table, &buffer, false, &unused);
        else
            put(index, ring, q, &buffer, i == 0, &head);
    }
    const struct buffer whole = {
        .gpa = base + AREA_TABLE, .len = 16 * n, .last = true, .indirect = true};
    if (indirect)
        put(index, ring, q, &whole, true, &head);
    if (!packed[index]) {
        store_le16(ring + AREA_DRIVER + 4 + 2 * (q->avail % q->size), head);
        store_le16(ring + AREA_DRIVER + 2, ++q->avail);
    }
    if (!(count & 0x80)) {
        driver_notify(fn, number);
        turn_all(count & 0x40 ? 1 : 3);
    }
}

static void driver_scribble(void)
{
    unsigned index;
    next_fn(&index);
    uint64_t gpa = area(index, next_byte() % QUEUES_MAX);
    uint64_t offset = next_value(2) % (QUEUE_BYTES - 16);
    uint8_t count = next_byte() % 16, *at = mem_ptr(board.mem, GPA(gpa + offset), 16, MEM_WRITE);

    for (unsigned i = 0; i < count; i++)
        at[i] = next_byte();
}

static void driver_msix(void)
{
    unsigned index;
    const struct pci_function *fn = next_fn(&index);
    uint8_t vector = next_byte(), control = next_byte();
    const struct bus_range *table = &fn->bars[1].range;

    if (!fn->msix_cap || !table->mapped)
        return;
    uint64_t entry = table->base + 16u * (vector % fn->msix_vectors);
    bus_write(bus, BUS_MMIO, entry, 0xfee00000u, 4);
    bus_write(bus, BUS_MMIO, entry + 8, vector, 4);
    bus_write(bus, BUS_MMIO, entry + 12, control >> 1 & 1, 4);
    bus_write(bus, BUS_MMIO, LAYOUT_ECAM_BASE + ((uint64_t)fn->devfn << 12) + fn->msix_cap + 2,
              (control & 1 ? 0 : 0x8000) | (control & 4 ? 0x4000 : 0), 2);
    fake_irqfd_poll(engine);
}

static void string_instruction(void)
{
    static uint8_t data[4 * 64];
    uint16_t port = next_port();
    unsigned size = 1u << (next_byte() % 3);
    uint32_t count = 1 + next_byte() % 64;

    memset(data, next_byte(), sizeof(data));
    if (count & 1)
        bus_upcalls.pio_write(bus, port, size, data, count);
    else
        bus_upcalls.pio_read(bus, port, size, data, count);
}

static void wild_access(void)
{
    uint8_t how = next_byte();
    unsigned size = next_size();
    enum bus_space space = how & 1 ? BUS_MMIO : BUS_PIO;
    uint64_t addr = next_value(space == BUS_PIO ? 2 : how & 2 ? 4 : 8);

    if (space == BUS_PIO && size == 8)
        size = 1;
    if ((how & 9) == 9) /* most of the HPET's registers */
        addr = LAYOUT_HPET + addr % 0x180;
    if (how & 4)
        guest_write(space, addr, next_value(size), size);
    else
        bus_read(bus, space, addr, size);
}

static void event(void)
{
    uint8_t what = next_byte();

    if (what < 0xe0) {
        turn_all(1 + what % 4);
    } else if (what < 0xf0) {
        board_power_button(&board);
    } else {
        power_on();
        compare();
    }
}

static void run_op(void)
{
    switch (next_byte() % 13) {
    case 0:
        access_port(true);
        break;
    case 1:
        access_port(false);
        break;
    case 2:
        access_config(true);
        break;
    case 3:
        access_config(false);
        break;
    case 4:
        access_bar(true);
        break;
    case 5:
        access_bar(false);
        break;
    case 6:
        driver_start();
        break;
    case 7:
        driver_request();
        break;
    case 8:
        driver_scribble();
        break;
    case 9:
        event();
        break;
    case 10:
        wild_access();
        break;
    case 11:
        string_instruction();
        break;
    case 12:
        driver_msix();
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input = data;
    input_left = size;
    setup();
    for (unsigned i = 0; i < OPS_MAX && input_left > 0; i++)
        run_op();
    power_on();
    compare();
    return 0;
}
