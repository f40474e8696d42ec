/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/i8042.h"

#include <errno.h>
#include <stdlib.h>

#include "base/units.h"

#define PORT_DATA          0x60u
#define PORT_COMMAND       0x64u
#define PORT_FAST          0x92u

#define IRQ_KEYBOARD       1u
#define IRQ_AUX            12u

#define STATUS_OUTPUT_FULL 0x01u
#define STATUS_SYSTEM      0x04u
#define STATUS_COMMAND     0x08u /* the last write was a command */
#define STATUS_UNLOCKED    0x10u
#define STATUS_AUX         0x20u /* the output came from the auxiliary side */
#define STATUS_TIMEOUT     0x40u

/* The command byte, byte 0 of the controller's RAM. */
#define MODE_KEYBOARD_IRQ      0x01u
#define MODE_AUX_IRQ           0x02u
#define MODE_SYSTEM            0x04u
#define MODE_KEYBOARD_OFF      0x10u
#define MODE_AUX_OFF           0x20u

#define OUTPORT_NO_RESET       0x01u
#define OUTPORT_A20            0x02u
#define OUTPORT_IRQ_KEYBOARD   0x10u
#define OUTPORT_IRQ_AUX        0x20u
#define OUTPORT_LINES          0xc0u /* keyboard clock and data: idle high */

#define FAST_RESET             0x01u
#define FAST_A20               0x02u

#define INPORT                 0xa0u /* not locked, manufacturing jumper open */

#define CMD_READ_RAM           0x20u /* to 0x3f */
#define CMD_WRITE_RAM          0x60u /* to 0x7f */
#define CMD_PASSWORD_TEST      0xa4u
#define CMD_AUX_OFF            0xa7u
#define CMD_AUX_ON             0xa8u
#define CMD_AUX_TEST           0xa9u
#define CMD_SELF_TEST          0xaau
#define CMD_KEYBOARD_TEST      0xabu
#define CMD_KEYBOARD_OFF       0xadu
#define CMD_KEYBOARD_ON        0xaeu
#define CMD_READ_INPORT        0xc0u
#define CMD_READ_OUTPORT       0xd0u
#define CMD_WRITE_OUTPORT      0xd1u
#define CMD_WRITE_KEYBOARD_OUT 0xd2u
#define CMD_WRITE_AUX_OUT      0xd3u
#define CMD_WRITE_AUX          0xd4u
#define CMD_A20_OFF            0xddu
#define CMD_A20_ON             0xdfu
#define CMD_PULSE              0xf0u /* to 0xff: a 0 in bits 0-3 pulses that output port bit */

#define REPLY_SELF_TEST        0x55u
#define REPLY_TEST_GOOD        0x00u
#define REPLY_NO_PASSWORD      0xf1u
#define REPLY_RESEND           0xfeu

struct i8042_state {
    uint8_t ram[32];
    uint8_t output;
    uint8_t output_flags;
    uint8_t last_was_command;
    uint8_t command;
    uint8_t a20;
    uint8_t fast;
    uint8_t pad_[2];
};

static const struct state_field i8042_fields[] = {
    STATE_U8(struct i8042_state, ram, 1, 0, "Controller RAM; byte 0 is the command byte"),
    STATE_U8(struct i8042_state, output, 1, 0, "Output buffer"),
    STATE_U8(struct i8042_state, output_flags, 1, 0, "Status bits of the output buffer"),
    STATE_U8(struct i8042_state, last_was_command, 1, 0, "Last write went to port 0x64"),
    STATE_U8(struct i8042_state, command, 1, 0, "Command that waits for its byte, or 0"),
    STATE_U8(struct i8042_state, a20, 1, 1, "Address line 20 passes"),
    STATE_U8(struct i8042_state, fast, 1, 0, "Port 0x92 but A20"),
    STATE_PAD(struct i8042_state, pad_),
};
const struct state_table i8042_state_table =
    STATE_TABLE("i8042", struct i8042_state, 1, i8042_fields);

struct i8042 {
    struct device dev; /* first */
    struct i8042_state state;
    struct bus *bus;
    const struct dev_events *events;
    struct bus_range data, command, fast;
    struct irq_line keyboard_irq, aux_irq;
};

static void irq_update(struct i8042 *kbc)
{
    uint8_t flags = kbc->state.output_flags, mode = kbc->state.ram[0];
    bool full = flags & STATUS_OUTPUT_FULL, aux = flags & STATUS_AUX;

    irq_line_set(&kbc->keyboard_irq, full && !aux && (mode & MODE_KEYBOARD_IRQ));
    irq_line_set(&kbc->aux_irq, full && aux && (mode & MODE_AUX_IRQ));
}

/* A byte for the guest; flags: STATUS_AUX, STATUS_TIMEOUT. */
static void reply(struct i8042 *kbc, uint8_t byte, uint8_t flags)
{
    /* One that was not fetched gives way: an edge of its own announces each. */
    kbc->state.output_flags = 0;
    irq_update(kbc);
    kbc->state.output = byte;
    kbc->state.output_flags = STATUS_OUTPUT_FULL | flags;
    irq_update(kbc);
}

static void output_port_write(struct i8042 *kbc, uint8_t value)
{
    kbc->state.a20 = (value & OUTPORT_A20) != 0;
    if (!(value & OUTPORT_NO_RESET))
        kbc->events->reset(kbc->events->ctx);
}

static uint8_t output_port_read(const struct i8042 *kbc)
{
    uint8_t flags = kbc->state.output_flags;
    uint8_t value = OUTPORT_NO_RESET | OUTPORT_LINES;

    if (kbc->state.a20)
        value |= OUTPORT_A20;
    if (flags & STATUS_OUTPUT_FULL)
        value |= flags & STATUS_AUX ? OUTPORT_IRQ_AUX : OUTPORT_IRQ_KEYBOARD;
    return value;
}

/* --- port 0x64 --- */

static uint64_t status_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    const struct i8042_state *state = &CONTAINER_OF(range, struct i8042, command)->state;
    uint8_t status = STATUS_UNLOCKED | state->output_flags;

    (void)offset;
    (void)size;
    if (state->ram[0] & MODE_SYSTEM)
        status |= STATUS_SYSTEM;
    if (state->last_was_command)
        status |= STATUS_COMMAND;
    return status;
}

static void command_run(struct i8042 *kbc, uint8_t command)
{
    uint8_t *mode = &kbc->state.ram[0];

    switch (command) {
    case CMD_PASSWORD_TEST:
        reply(kbc, REPLY_NO_PASSWORD, 0);
        break;
    case CMD_AUX_OFF:
        *mode |= MODE_AUX_OFF;
        break;
    case CMD_AUX_ON:
        *mode &= (uint8_t)~MODE_AUX_OFF;
        break;
    case CMD_SELF_TEST:
        *mode |= MODE_SYSTEM;
        reply(kbc, REPLY_SELF_TEST, 0);
        break;
    case CMD_AUX_TEST:
    case CMD_KEYBOARD_TEST:
        reply(kbc, REPLY_TEST_GOOD, 0);
        break;
    case CMD_KEYBOARD_OFF:
        *mode |= MODE_KEYBOARD_OFF;
        break;
    case CMD_KEYBOARD_ON:
        *mode &= (uint8_t)~MODE_KEYBOARD_OFF;
        break;
    case CMD_READ_INPORT:
        reply(kbc, INPORT, 0);
        break;
    case CMD_READ_OUTPORT:
        reply(kbc, output_port_read(kbc), 0);
        break;
    case CMD_WRITE_OUTPORT:
    case CMD_WRITE_KEYBOARD_OUT:
    case CMD_WRITE_AUX_OUT:
    case CMD_WRITE_AUX:
        kbc->state.command = command;
        break;
    case CMD_A20_OFF:
    case CMD_A20_ON:
        kbc->state.a20 = command == CMD_A20_ON;
        break;
    default:
        /* The rest has no effect on real controllers either, or is the maker's own. */
        break;
    }
}

static void command_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8042 *kbc = CONTAINER_OF(range, struct i8042, command);
    uint8_t command = (uint8_t)value;

    (void)offset;
    (void)size;
    kbc->state.last_was_command = 1;
    kbc->state.command = 0;
    if ((command & 0xe0) == CMD_READ_RAM) {
        reply(kbc, kbc->state.ram[command & 0x1f], 0);
    } else if ((command & 0xe0) == CMD_WRITE_RAM) {
        kbc->state.command = command;
    } else if (command >= CMD_PULSE) {
        if (!(command & OUTPORT_NO_RESET))
            kbc->events->reset(kbc->events->ctx);
    } else {
        command_run(kbc, command);
    }
    irq_update(kbc);
}

/* --- port 0x60 --- */

static uint64_t data_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    struct i8042 *kbc = CONTAINER_OF(range, struct i8042, data);

    (void)offset;
    (void)size;
    kbc->state.output_flags = 0;
    irq_update(kbc);
    return kbc->state.output;
}

/* A byte for the keyboard or the mouse: nobody takes it, and the controller gives up. Sending
 * enables the interface. */
static void device_write(struct i8042 *kbc, bool aux)
{
    kbc->state.ram[0] &= (uint8_t) ~(aux ? MODE_AUX_OFF : MODE_KEYBOARD_OFF);
    reply(kbc, REPLY_RESEND, STATUS_TIMEOUT | (aux ? STATUS_AUX : 0));
}

static void data_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8042 *kbc = CONTAINER_OF(range, struct i8042, data);
    uint8_t command = kbc->state.command, byte = (uint8_t)value;

    (void)offset;
    (void)size;
    kbc->state.last_was_command = 0;
    kbc->state.command = 0;
    switch (command) {
    case 0:
        device_write(kbc, false);
        break;
    case CMD_WRITE_OUTPORT:
        output_port_write(kbc, byte);
        break;
    case CMD_WRITE_KEYBOARD_OUT:
        reply(kbc, byte, 0);
        break;
    case CMD_WRITE_AUX_OUT:
        reply(kbc, byte, STATUS_AUX);
        break;
    case CMD_WRITE_AUX:
        device_write(kbc, true);
        break;
    default: /* CMD_WRITE_RAM */
        kbc->state.ram[command & 0x1f] = byte;
        break;
    }
    irq_update(kbc);
}

/* --- port 0x92 --- */

static uint64_t fast_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    const struct i8042_state *state = &CONTAINER_OF(range, struct i8042, fast)->state;

    (void)offset;
    (void)size;
    return state->fast | (state->a20 ? FAST_A20 : 0);
}

static void fast_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8042 *kbc = CONTAINER_OF(range, struct i8042, fast);
    bool was_reset = kbc->state.fast & FAST_RESET;

    (void)offset;
    (void)size;
    kbc->state.a20 = (value & FAST_A20) != 0;
    kbc->state.fast = (uint8_t)value & FAST_RESET;
    if ((value & FAST_RESET) && !was_reset)
        kbc->events->reset(kbc->events->ctx);
}

/* --- the device --- */

static const struct bus_range_ops data_ops = {data_read, data_write, 1};
static const struct bus_range_ops command_ops = {status_read, command_write, 1};
static const struct bus_range_ops fast_ops = {fast_read, fast_write, 1};

static void i8042_reset(struct device *dev)
{
    irq_update(CONTAINER_OF(dev, struct i8042, dev));
}

static void i8042_fini(struct device *dev)
{
    struct i8042 *kbc = CONTAINER_OF(dev, struct i8042, dev);

    bus_unmap(kbc->bus, &kbc->data);
    bus_unmap(kbc->bus, &kbc->command);
    bus_unmap(kbc->bus, &kbc->fast);
    irq_line_set(&kbc->keyboard_irq, false);
    irq_line_set(&kbc->aux_irq, false);
    free(kbc);
}

static const struct device_ops i8042_ops = {
    .reset = i8042_reset,
    .fini = i8042_fini,
};

int i8042_new(struct device **dev, const struct dev_env *env, struct err *err)
{
    struct i8042 *kbc = calloc(1, sizeof(*kbc));
    int rc;

    if (!kbc)
        return err_errno(err, ENOMEM, "cannot make the keyboard controller");
    device_init(&kbc->dev, &i8042_ops, &i8042_state_table, &kbc->state, env->loop, "i8042");
    kbc->bus = env->bus;
    kbc->events = env->events;
    irq_line_init(&kbc->keyboard_irq, env->irq, IRQ_KEYBOARD);
    irq_line_init(&kbc->aux_irq, env->irq, IRQ_AUX);
    kbc->data = (struct bus_range){.ops = &data_ops, .dev = &kbc->dev, .base = PORT_DATA, .len = 1};
    kbc->command =
        (struct bus_range){.ops = &command_ops, .dev = &kbc->dev, .base = PORT_COMMAND, .len = 1};
    kbc->fast = (struct bus_range){.ops = &fast_ops, .dev = &kbc->dev, .base = PORT_FAST, .len = 1};
    rc = bus_map(env->bus, &kbc->data);
    if (rc == 0)
        rc = bus_map(env->bus, &kbc->command);
    if (rc == 0)
        rc = bus_map(env->bus, &kbc->fast);
    if (rc < 0) {
        device_fini(&kbc->dev);
        return err_errno(err, rc, "cannot map the ports of the keyboard controller");
    }
    *dev = &kbc->dev;
    return 0;
}
