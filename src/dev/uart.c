/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/uart.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/units.h"

/* Registers (PC16550D, table II); DLAB gives the first two to the divisor. */
#define REG_DATA        0
#define REG_IER         1
#define REG_IIR_FCR     2
#define REG_LCR         3
#define REG_MCR         4
#define REG_LSR         5
#define REG_MSR         6
#define REG_SCRATCH     7

#define IER_RECEIVED    0x01u
#define IER_TRANSMIT    0x02u
#define IER_LINE_STATUS 0x04u
#define IER_MODEM       0x08u
#define IER_BITS        0x0fu

/* Highest priority first (8.6). */
#define IIR_LINE_STATUS 0x06u
#define IIR_RECEIVED    0x04u
#define IIR_TIMEOUT     0x0cu
#define IIR_TRANSMIT    0x02u
#define IIR_MODEM       0x00u
#define IIR_NONE        0x01u
#define IIR_FIFOS       0xc0u

#define FCR_ENABLE      0x01u
#define FCR_CLEAR_RX    0x02u
#define FCR_CLEAR_TX    0x04u
#define FCR_KEPT        0xc9u /* enable, DMA mode, trigger level */

#define LCR_WORD_LENGTH 0x03u
#define LCR_STOP        0x04u
#define LCR_PARITY      0x08u
#define LCR_BREAK       0x40u
#define LCR_DLAB        0x80u

#define MCR_DTR         0x01u
#define MCR_RTS         0x02u
#define MCR_OUT1        0x04u
#define MCR_OUT2        0x08u /* on a PC, the gate of the interrupt line */
#define MCR_LOOP        0x10u
#define MCR_BITS        0x1fu

#define LSR_DATA_READY  0x01u
#define LSR_OVERRUN     0x02u
#define LSR_BREAK       0x10u
#define LSR_TX_HOLDING  0x20u
#define LSR_TX_EMPTY    0x40u
#define LSR_FIFO_ERROR  0x80u

#define MSR_DCTS        0x01u
#define MSR_DDSR        0x02u
#define MSR_TERI        0x04u
#define MSR_DDCD        0x08u
#define MSR_CTS         0x10u
#define MSR_DSR         0x20u
#define MSR_RI          0x40u
#define MSR_DCD         0x80u
#define MSR_DELTAS      0x0fu

#define FIFO_BYTES      16u
#define BASE_BAUD       115200u
#define TIMEOUT_CHARS   4u /* (8.4, FIFO interrupt mode) */

struct uart_state {
    uint16_t divisor;
    uint8_t ier, fcr, lcr, mcr, msr, scratch;
    uint8_t overrun;
    uint8_t tx_interrupt;
    uint8_t timeout;
    uint8_t rx_count, tx_count;
    uint8_t rx[FIFO_BYTES];
    uint8_t rx_errors[FIFO_BYTES];
    uint8_t tx[FIFO_BYTES];
    uint8_t pad_[1];
};

static const struct state_field uart_fields[] = {
    STATE_U16(struct uart_state, divisor, 1, 1, "Divisor latch"),
    STATE_U8(struct uart_state, ier, 1, 0, "Interrupt enable register"),
    STATE_U8(struct uart_state, fcr, 1, 0, "FIFO control register"),
    STATE_U8(struct uart_state, lcr, 1, 0, "Line control register"),
    STATE_U8(struct uart_state, mcr, 1, 0, "Modem control register"),
    STATE_U8(struct uart_state, msr, 1, MSR_CTS | MSR_DSR | MSR_DCD, "Modem status register"),
    STATE_U8(struct uart_state, scratch, 1, 0, "Scratch register"),
    STATE_U8(struct uart_state, overrun, 1, 0, "A received byte was lost"),
    STATE_U8(struct uart_state, tx_interrupt, 1, 0, "Holding register empty, not acknowledged"),
    STATE_U8(struct uart_state, timeout, 1, 0, "Bytes lie in the receive FIFO for long"),
    STATE_U8(struct uart_state, rx_count, 1, 0, "Bytes in the receive FIFO"),
    STATE_U8(struct uart_state, tx_count, 1, 0, "Bytes in the transmit FIFO"),
    STATE_U8(struct uart_state, rx, 1, 0, "Receive FIFO, oldest first"),
    STATE_U8(struct uart_state, rx_errors, 1, 0, "Line status of each byte in it"),
    STATE_U8(struct uart_state, tx, 1, 0, "Transmit FIFO, oldest first"),
    STATE_PAD(struct uart_state, pad_),
};
const struct state_table uart_state_table =
    STATE_TABLE("uart16550", struct uart_state, 1, uart_fields);

struct uart {
    struct device dev; /* first */
    struct uart_state state;
    struct bus *bus;
    struct char_dev *chr;
    struct bus_range range;
    struct irq_line irq;
    struct device_timer timeout_timer;
    uint64_t rx_touched_ns; /* when a byte last came or was read */
    bool input_paused;      /* room() said 0: a kick is owed */
    bool held;              /* device_hold(): output waits for the host */
    unsigned polls;         /* reads of LSR since something was sent, up to POLLS_LISTENING */
};

/* A guest that looks at LSR so often and sends nothing waits for input, without interrupts. */
#define POLLS_LISTENING 64u

/* --- levels and times --- */

static bool fifos_on(const struct uart *uart)
{
    return uart->state.fcr & FCR_ENABLE;
}

static unsigned fifo_len(const struct uart *uart)
{
    return fifos_on(uart) ? FIFO_BYTES : 1;
}

static unsigned rx_trigger(const struct uart *uart)
{
    static const uint8_t levels[4] = {1, 4, 8, 14};

    return fifos_on(uart) ? levels[uart->state.fcr >> 6] : 1;
}

static uint64_t char_ns(const struct uart *uart)
{
    uint8_t lcr = uart->state.lcr;
    uint64_t divisor = uart->state.divisor ? uart->state.divisor : 1;
    unsigned bits =
        1 + 5 + (lcr & LCR_WORD_LENGTH) + (lcr & LCR_PARITY ? 1 : 0) + (lcr & LCR_STOP ? 2 : 1);

    return bits * divisor * NS_PER_SEC / BASE_BAUD;
}

/* Errors that belong to the byte at the head, and those of the line as a whole. */
static uint8_t line_errors(const struct uart *uart)
{
    uint8_t errors = uart->state.overrun ? LSR_OVERRUN : 0;

    if (uart->state.rx_count)
        errors |= uart->state.rx_errors[0];
    return errors;
}

static uint8_t interrupt_cause(const struct uart *uart)
{
    const struct uart_state *state = &uart->state;

    if ((state->ier & IER_LINE_STATUS) && line_errors(uart))
        return IIR_LINE_STATUS;
    if ((state->ier & IER_RECEIVED) && state->rx_count >= rx_trigger(uart))
        return IIR_RECEIVED;
    if ((state->ier & IER_RECEIVED) && state->timeout)
        return IIR_TIMEOUT;
    if ((state->ier & IER_TRANSMIT) && state->tx_interrupt)
        return IIR_TRANSMIT;
    if ((state->ier & IER_MODEM) && (state->msr & MSR_DELTAS))
        return IIR_MODEM;
    return IIR_NONE;
}

/* After any change. In loopback the OUT2 pin is inactive, and with it the gate (8.7). */
static void uart_update(struct uart *uart)
{
    const struct uart_state *state = &uart->state;
    bool gate = (state->mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2;

    if (fifos_on(uart) && (state->ier & IER_RECEIVED) && !state->timeout && state->rx_count > 0 &&
        state->rx_count < rx_trigger(uart))
        device_timer_arm(&uart->timeout_timer, uart->rx_touched_ns + TIMEOUT_CHARS * char_ns(uart));
    else
        device_timer_cancel(&uart->timeout_timer);
    irq_line_set(&uart->irq, gate && interrupt_cause(uart) != IIR_NONE);
    device_hold(&uart->dev, &uart->held, state->tx_count > 0); /* a slow reader on the host */
}

static void uart_timeout(struct device_timer *timer)
{
    struct uart *uart = CONTAINER_OF(timer, struct uart, timeout_timer);

    uart->state.timeout = 1;
    uart_update(uart);
}

/* --- receiving --- */

static void rx_push(struct uart *uart, uint8_t byte, uint8_t errors)
{
    struct uart_state *state = &uart->state;

    uart->rx_touched_ns = device_now_ns(&uart->dev);
    if (state->rx_count >= fifo_len(uart)) {
        /* The FIFO keeps what it has; a lone register is overwritten (8.5, bit 1). */
        state->overrun = 1;
        if (fifos_on(uart))
            return;
        state->rx_count = 0;
    }
    state->rx[state->rx_count] = byte;
    state->rx_errors[state->rx_count] = errors;
    state->rx_count++;
}

static void rx_clear(struct uart *uart)
{
    uart->state.rx_count = 0;
    uart->state.timeout = 0;
}

/*
 * The other side heeds our request to send, so that what is typed or piped in before the guest's
 * driver is ready is not lost when that clears the FIFO. A guest that leaves RTS alone listens by
 * interrupts, or polls.
 */
static bool is_listening(const struct uart *uart)
{
    const struct uart_state *state = &uart->state;

    if (state->mcr & MCR_LOOP)
        return false; /* the receiver is not joined to the line */
    if ((state->mcr & MCR_RTS) || uart->polls >= POLLS_LISTENING)
        return true;
    /* Linux allows the interrupt first, and loses what has come when it then turns on the FIFOs. */
    return (state->mcr & MCR_OUT2) && (state->ier & IER_RECEIVED) && fifos_on(uart);
}

static size_t rx_room(const struct uart *uart)
{
    const struct uart_state *state = &uart->state;

    if (!is_listening(uart) || state->rx_count >= fifo_len(uart))
        return 0;
    return fifo_len(uart) - state->rx_count;
}

/* Let input in again, but not for every byte that the guest takes out of a full FIFO. */
static void rx_kick(struct uart *uart)
{
    if (!uart->input_paused || uart->state.rx_count > 0 || rx_room(uart) == 0)
        return;
    uart->input_paused = false;
    char_kick_input(uart->chr);
}

static uint8_t rx_pop(struct uart *uart)
{
    struct uart_state *state = &uart->state;
    uint8_t byte = state->rx[0];

    if (state->rx_count == 0)
        return byte;
    state->rx_count--;
    memmove(&state->rx[0], &state->rx[1], state->rx_count);
    memmove(&state->rx_errors[0], &state->rx_errors[1], state->rx_count);
    state->timeout = 0;
    uart->rx_touched_ns = device_now_ns(&uart->dev);
    rx_kick(uart);
    return byte;
}

/* --- transmitting --- */

static void tx_write(struct uart *uart, uint8_t byte)
{
    struct uart_state *state = &uart->state;

    state->tx_interrupt = 0;
    uart->polls = 0;
    if (state->mcr & MCR_LOOP) {
        rx_push(uart, byte, 0);
        state->tx_interrupt = 1;
        return;
    }
    if (state->tx_count == 0 && (!uart->chr || char_write(uart->chr, &byte, 1) == 1)) {
        state->tx_interrupt = 1;
        return;
    }
    /* The host takes nothing now. A guest that does not look at LSR loses what is too much. */
    if (state->tx_count < fifo_len(uart))
        state->tx[state->tx_count++] = byte;
}

static void tx_clear(struct uart *uart)
{
    if (uart->state.tx_count > 0)
        uart->state.tx_interrupt = 1;
    uart->state.tx_count = 0;
}

/* --- registers --- */

static uint8_t msr_inputs(const struct uart *uart)
{
    uint8_t mcr = uart->state.mcr;

    if (!(mcr & MCR_LOOP))
        return MSR_CTS | MSR_DSR | MSR_DCD; /* the host is always there */
    return (uint8_t)((mcr & MCR_RTS ? MSR_CTS : 0) | (mcr & MCR_DTR ? MSR_DSR : 0) |
                     (mcr & MCR_OUT1 ? MSR_RI : 0) | (mcr & MCR_OUT2 ? MSR_DCD : 0));
}

static void msr_update(struct uart *uart)
{
    uint8_t *msr = &uart->state.msr;
    uint8_t inputs = msr_inputs(uart), changed = (uint8_t)((*msr ^ inputs) & 0xf0);

    if (changed & MSR_CTS)
        *msr |= MSR_DCTS;
    if (changed & MSR_DSR)
        *msr |= MSR_DDSR;
    if ((changed & MSR_RI) && !(inputs & MSR_RI))
        *msr |= MSR_TERI; /* the trailing edge alone */
    if (changed & MSR_DCD)
        *msr |= MSR_DDCD;
    *msr = (uint8_t)((*msr & MSR_DELTAS) | inputs);
}

static uint8_t lsr_read(struct uart *uart)
{
    struct uart_state *state = &uart->state;
    uint8_t lsr = line_errors(uart);

    if (state->rx_count)
        lsr |= LSR_DATA_READY;
    if (state->tx_count == 0)
        lsr |= LSR_TX_HOLDING | LSR_TX_EMPTY;
    for (unsigned i = 0; fifos_on(uart) && i < state->rx_count; i++)
        lsr |= state->rx_errors[i] ? LSR_FIFO_ERROR : 0;
    state->overrun = 0;
    if (state->rx_count)
        state->rx_errors[0] = 0;
    if (uart->polls < POLLS_LISTENING && ++uart->polls == POLLS_LISTENING)
        rx_kick(uart);
    return lsr;
}

static uint8_t iir_read(struct uart *uart)
{
    uint8_t cause = interrupt_cause(uart);

    if (cause == IIR_TRANSMIT)
        uart->state.tx_interrupt = 0; /* (table IV) */
    return cause | (fifos_on(uart) ? IIR_FIFOS : 0);
}

static uint8_t register_read(struct uart *uart, uint64_t offset)
{
    struct uart_state *state = &uart->state;
    bool dlab = state->lcr & LCR_DLAB;
    uint8_t value;

    switch (offset) {
    case REG_DATA:
        return dlab ? state->divisor & 0xff : rx_pop(uart);
    case REG_IER:
        return dlab ? state->divisor >> 8 : state->ier;
    case REG_IIR_FCR:
        return iir_read(uart);
    case REG_LCR:
        return state->lcr;
    case REG_MCR:
        return state->mcr;
    case REG_LSR:
        return lsr_read(uart);
    case REG_MSR:
        value = state->msr;
        state->msr &= (uint8_t)~MSR_DELTAS;
        return value;
    default:
        return state->scratch;
    }
}

static void fcr_write(struct uart *uart, uint8_t value)
{
    bool toggled = (value ^ uart->state.fcr) & FCR_ENABLE;

    /* Without the enable bit in the same write, the others are not programmed (8.4). */
    uart->state.fcr = value & FCR_ENABLE ? value & FCR_KEPT : 0;
    if (toggled || (value & (FCR_ENABLE | FCR_CLEAR_RX)) == (FCR_ENABLE | FCR_CLEAR_RX))
        rx_clear(uart);
    if (toggled || (value & (FCR_ENABLE | FCR_CLEAR_TX)) == (FCR_ENABLE | FCR_CLEAR_TX))
        tx_clear(uart);
    rx_kick(uart);
}

static void register_write(struct uart *uart, uint64_t offset, uint8_t value)
{
    struct uart_state *state = &uart->state;
    bool dlab = state->lcr & LCR_DLAB, rising;

    switch (offset) {
    case REG_DATA:
        if (dlab)
            state->divisor = (uint16_t)((state->divisor & 0xff00) | value);
        else
            tx_write(uart, value);
        break;
    case REG_IER:
        if (dlab) {
            state->divisor = (uint16_t)((state->divisor & 0x00ff) | value << 8);
            break;
        }
        /* Enabling it while the register is empty raises the transmit interrupt at once. */
        if ((value & ~state->ier & IER_TRANSMIT) && state->tx_count == 0)
            state->tx_interrupt = 1;
        state->ier = value & IER_BITS;
        rx_kick(uart);
        break;
    case REG_IIR_FCR:
        fcr_write(uart, value);
        break;
    case REG_LCR:
        rising = value & ~state->lcr & LCR_BREAK;
        state->lcr = value;
        if (rising && (state->mcr & MCR_LOOP))
            rx_push(uart, 0, LSR_BREAK);
        break;
    case REG_MCR:
        state->mcr = value & MCR_BITS;
        msr_update(uart);
        rx_kick(uart);
        break;
    case REG_SCRATCH:
        state->scratch = value;
        break;
    default: /* LSR and MSR are read-only */
        break;
    }
}

static uint64_t uart_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    struct uart *uart = CONTAINER_OF(range, struct uart, range);
    uint8_t value = register_read(uart, offset);

    (void)size;
    uart_update(uart);
    return value;
}

static void uart_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct uart *uart = CONTAINER_OF(range, struct uart, range);

    (void)size;
    register_write(uart, offset, (uint8_t)value);
    uart_update(uart);
}

static const struct bus_range_ops uart_range_ops = {
    .read = uart_read,
    .write = uart_write,
    .max_size = 1,
};

/* --- the host's side, on the loop --- */

static size_t client_room(void *ctx)
{
    struct uart *uart = ctx;
    size_t room;

    device_lock(&uart->dev);
    room = rx_room(uart);
    uart->input_paused = room == 0;
    device_unlock(&uart->dev);
    return room;
}

static void client_input(void *ctx, const uint8_t *buf, size_t len)
{
    struct uart *uart = ctx;

    device_lock(&uart->dev);
    for (size_t i = 0; i < len; i++)
        rx_push(uart, buf[i], 0);
    uart_update(uart);
    device_unlock(&uart->dev);
}

static void client_writable(void *ctx)
{
    struct uart *uart = ctx;
    struct uart_state *state = &uart->state;
    size_t taken;

    device_lock(&uart->dev);
    if (state->tx_count > 0) {
        taken = char_write(uart->chr, state->tx, state->tx_count);
        state->tx_count = (uint8_t)(state->tx_count - taken);
        memmove(&state->tx[0], &state->tx[taken], state->tx_count);
        if (state->tx_count == 0)
            state->tx_interrupt = 1;
        uart_update(uart);
    }
    device_unlock(&uart->dev);
}

/* --- the device --- */

static void uart_reset(struct device *dev)
{
    struct uart *uart = CONTAINER_OF(dev, struct uart, dev);

    uart->polls = 0;
    uart_update(uart);
    rx_kick(uart);
}

static void uart_fini(struct device *dev)
{
    struct uart *uart = CONTAINER_OF(dev, struct uart, dev);

    bus_unmap(uart->bus, &uart->range);
    device_timer_cancel(&uart->timeout_timer);
    irq_line_set(&uart->irq, false);
    free(uart);
}

static const struct device_ops uart_ops = {
    .reset = uart_reset,
    .fini = uart_fini,
};

int uart_new(struct device **dev, const struct dev_env *env, unsigned index, struct char_dev *chr,
             struct err *err)
{
    static const struct {
        uint16_t port;
        uint8_t irq;
    } places[UART_COUNT] = {
        {0x3f8, 4},
        {0x2f8, 3},
        {0x3e8, 4},
        {0x2e8, 3}
    };
    struct uart *uart;
    int rc;

    if (index >= UART_COUNT)
        return err_set(err, EINVAL, "there are only %d serial ports", UART_COUNT);
    uart = calloc(1, sizeof(*uart));
    if (!uart)
        return err_errno(err, ENOMEM, "cannot make serial port %u", index);
    device_init(&uart->dev, &uart_ops, &uart_state_table, &uart->state, env->loop, "uart%u", index);
    uart->bus = env->bus;
    uart->chr = chr;
    irq_line_init(&uart->irq, env->irq, places[index].irq);
    device_timer_init(&uart->timeout_timer, &uart->dev, uart_timeout);
    uart->range = (struct bus_range){
        .ops = &uart_range_ops, .dev = &uart->dev, .base = places[index].port, .len = 8};
    rc = bus_map(env->bus, &uart->range);
    if (rc < 0)
        err_errno(err, rc, "cannot map the ports of serial port %u", index);
    if (rc == 0 && chr) {
        const struct char_client client = {
            .input = client_input,
            .room = client_room,
            .writable = client_writable,
            .ctx = uart,
        };
        rc = char_attach(chr, env->loop, &client, err);
    }
    if (rc < 0) {
        device_fini(&uart->dev);
        return rc;
    }
    *dev = &uart->dev;
    return 0;
}
