/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/uart.h"

#include <errno.h>

#include "dev/test_machine.h"

#define BASE 0x3f8
#define RBR  (BASE + 0)
#define IER  (BASE + 1)
#define IIR  (BASE + 2)
#define LCR  (BASE + 3)
#define MCR  (BASE + 4)
#define LSR  (BASE + 5)
#define MSR  (BASE + 6)
#define SCR  (BASE + 7)

/* The host's side, in place of char/: takes `room` bytes, then no more until it is told. */
struct char_dev {
    struct char_client client;
    char written[256];
    size_t written_len, room;
    unsigned kicks;
};

int char_attach(struct char_dev *chr, struct loop *loop, const struct char_client *client,
                struct err *err)
{
    (void)loop;
    (void)err;
    if (chr->client.input)
        return -EBUSY;
    chr->client = *client;
    return 0;
}

size_t char_write(struct char_dev *chr, const uint8_t *buf, size_t len)
{
    if (len > chr->room)
        len = chr->room;
    if (len > sizeof(chr->written) - 1 - chr->written_len)
        len = sizeof(chr->written) - 1 - chr->written_len;
    memcpy(chr->written + chr->written_len, buf, len);
    chr->written_len += len;
    chr->room -= len;
    return len;
}

void char_kick_input(struct char_dev *chr)
{
    chr->kicks++;
}

static void host_clear(struct char_dev *chr, size_t room)
{
    memset(chr->written, 0, sizeof(chr->written));
    chr->written_len = 0;
    chr->room = room;
}

static size_t host_types(struct char_dev *chr, const char *text)
{
    size_t room = chr->client.room(chr->client.ctx), len = strlen(text);

    if (len > room)
        len = room;
    if (len > 0)
        chr->client.input(chr->client.ctx, (const uint8_t *)text, len);
    return len;
}

static bool irq(struct test_machine *machine)
{
    return fake_gsi_level(machine->vm, 4);
}

/* What Linux's 8250 driver looks at to tell a 16550A from its kin. */
static void test_identity(struct test_machine *machine)
{
    out(machine, IER, 0, 1);
    is_int(in(machine, IER, 1), 0, "IER 0");
    out(machine, IER, 0xff, 1);
    is_int(in(machine, IER, 1), 0x0f, "IER has four bits");
    out(machine, IER, 0, 1);
    out(machine, MCR, 0x1a, 1);
    is_int(in(machine, MSR, 1) & 0xf0, 0x90, "loopback: RTS to CTS, OUT2 to DCD");
    out(machine, MCR, 0x15, 1);
    is_int(in(machine, MSR, 1) & 0xf0, 0x60, "DTR to DSR, OUT1 to RI");
    out(machine, MCR, 0, 1);
    in(machine, MSR, 1);
    out(machine, SCR, 0x5a, 1);
    is_int(in(machine, SCR, 1), 0x5a, "scratch register");
    is_int(in(machine, IIR, 1), 0x01, "no FIFO, no interrupt");
    out(machine, IIR, 0x01, 1);
    is_int(in(machine, IIR, 1), 0xc1, "FIFOs on: a 16550A");
    out(machine, LCR, 0x80, 1);
    out(machine, IIR, 0x21, 1);
    is_int(in(machine, IIR, 1), 0xc1, "no 64-byte FIFOs");
    out(machine, RBR, 0x01, 1);
    out(machine, IER, 0x02, 1);
    is_int(in(machine, RBR, 2), 0x0201, "divisor latch");
    out(machine, RBR, 1, 1);
    out(machine, IER, 0, 1);
    out(machine, LCR, 0x03, 1);
    is_int(in(machine, LCR, 1), 0x03, "line control");
    out(machine, IIR, 0, 1);
}

static void test_transmit(struct test_machine *machine, struct char_dev *chr)
{
    host_clear(chr, 100);
    out(machine, MCR, 0x08, 1);
    out(machine, IIR, 0x01, 1);
    is_int(in(machine, LSR, 1), 0x60, "the transmitter is empty");
    out(machine, RBR, 'h', 1);
    out(machine, RBR, 'i', 1);
    is_str(chr->written, "hi", "output goes to the host");
    is_int(in(machine, LSR, 1), 0x60, "and the transmitter is empty again");

    out(machine, IER, 0x02, 1);
    ok(irq(machine), "enabling the transmit interrupt raises it");
    is_int(in(machine, IIR, 1), 0xc2, "IIR says so");
    ok(!irq(machine), "and reading IIR acknowledges");
    is_int(in(machine, IIR, 1), 0xc1, "nothing left");
    out(machine, IER, 0x02, 1);
    ok(!irq(machine), "writing the same IER raises nothing");
    out(machine, RBR, '!', 1);
    ok(irq(machine), "a byte sent raises it");
    out(machine, MCR, 0x00, 1);
    ok(!irq(machine), "OUT2 gates the line");
    out(machine, MCR, 0x08, 1);
    ok(irq(machine), "and lets it through again");
    in(machine, IIR, 1);

    host_clear(chr, 2);
    for (unsigned i = 0; i < 20; i++)
        out(machine, RBR, 'a' + i, 1);
    is_str(chr->written, "ab", "the host takes no more");
    is_int(in(machine, LSR, 1), 0x00, "the transmit FIFO holds the rest");
    ok(!irq(machine), "no interrupt meanwhile");
    chr->room = 10;
    chr->client.writable(chr->client.ctx);
    is_int(in(machine, LSR, 1), 0x00, "a part of it goes out");
    chr->room = 100;
    chr->client.writable(chr->client.ctx);
    is_str(chr->written, "abcdefghijklmnopqr", "16 bytes were held, what was too much is lost");
    is_int(in(machine, LSR, 1), 0x60, "empty");
    ok(irq(machine), "interrupt");
    in(machine, IIR, 1);
    chr->client.writable(chr->client.ctx);
    ok(!irq(machine), "writable with nothing to write");

    host_clear(chr, 0);
    out(machine, RBR, 'x', 1);
    out(machine, IIR, 0x05, 1);
    is_int(in(machine, LSR, 1), 0x60, "the FIFO can be cleared");
    host_clear(chr, 100);
    out(machine, IER, 0, 1);
    out(machine, IIR, 0, 1);
}

static void test_receive(struct test_machine *machine, struct char_dev *chr)
{
    out(machine, MCR, 0x08, 1);
    is_int(host_types(chr, "x"), 0, "input waits for a request to send");
    for (unsigned i = 0; i < 100; i++)
        in(machine, LSR, 1);
    is_int(host_types(chr, "x"), 1, "or for a guest that polls");
    is_int(in(machine, RBR, 1), 'x', "and is not lost");
    out(machine, RBR, 'a', 1);
    host_clear(chr, 100);
    is_int(host_types(chr, "x"), 0, "which sends something again");

    chr->kicks = 0;
    out(machine, MCR, 0x0a, 1);
    is_int(chr->kicks, 1, "RTS: input is asked for");
    out(machine, IER, 0x01, 1);
    is_int(host_types(chr, "xy"), 1, "without FIFO one byte is taken");
    ok(irq(machine), "and raises the interrupt");
    is_int(in(machine, IIR, 1), 0x04, "received data");
    is_int(host_types(chr, "y"), 0, "there is no room");
    chr->kicks = 0;
    is_int(in(machine, LSR, 1) & 1, 1, "data ready");
    is_int(in(machine, RBR, 1), 'x', "the byte");
    ok(!irq(machine) && !(in(machine, LSR, 1) & 1), "reading acknowledges");
    is_int(chr->kicks, 1, "and asks for more");
    in(machine, RBR, 1);
    is_int(chr->kicks, 1, "once");

    out(machine, IIR, 0x41, 1); /* trigger at 4 */
    is_int(host_types(chr, "abc"), 3, "the FIFO takes more");
    ok(!irq(machine), "below the trigger level: no interrupt");
    test_run(machine, 20);
    ok(irq(machine), "until nothing has come for four characters' time");
    is_int(in(machine, IIR, 1), 0xcc, "time-out");
    is_int(in(machine, RBR, 1), 'a', "first in, first out");
    ok(!irq(machine), "reading acknowledges the time-out");
    is_int(host_types(chr, "def"), 3, "more");
    ok(irq(machine), "the trigger level");
    is_int(in(machine, IIR, 1), 0xc4, "received data");
    in(machine, RBR, 1);
    in(machine, RBR, 1);
    ok(!irq(machine), "below the trigger level again");
    out(machine, IIR, 0x43, 1);
    is_int(in(machine, LSR, 1) & 1, 0, "the FIFO can be cleared");
    is_int(host_types(chr, "0123456789abcdefXYZ"), 16, "16 bytes fit");
    for (unsigned i = 0; i < 16; i++)
        if (in(machine, RBR, 1) != (uint8_t) "0123456789abcdef"[i])
            ok(false, "in order");
    is_int(in(machine, LSR, 1), 0x60, "no overrun");
    out(machine, IER, 0, 1);
    out(machine, IIR, 0, 1);
}

static void test_loopback(struct test_machine *machine, struct char_dev *chr)
{
    host_clear(chr, 100);
    out(machine, IIR, 0x01, 1);
    out(machine, MCR, 0x18, 1);
    out(machine, IER, 0x05, 1);
    is_int(host_types(chr, "x"), 0, "in loopback the line's input waits");
    out(machine, RBR, 0x41, 1);
    is_int(in(machine, RBR, 1), 0x41, "what is sent is received");
    is_int(chr->written_len, 0, "and does not reach the host");
    ok(!irq(machine), "nor the interrupt line");
    for (unsigned i = 0; i < 17; i++)
        out(machine, RBR, i, 1);
    is_int(in(machine, IIR, 1), 0xc6, "overrun: line status interrupt");
    is_int(in(machine, LSR, 1), 0x63, "LSR says so");
    is_int(in(machine, LSR, 1), 0x61, "once");
    is_int(in(machine, RBR, 1), 0, "the FIFO kept what it had");
    out(machine, IIR, 0x03, 1);
    out(machine, LCR, 0x43, 1);
    is_int(in(machine, LSR, 1), 0xf1, "break");
    is_int(in(machine, LSR, 1), 0x61, "reported once");
    is_int(in(machine, RBR, 1), 0, "with a zero byte");
    out(machine, LCR, 0x03, 1);
    out(machine, IIR, 0, 1);
    out(machine, RBR, 1, 1);
    out(machine, RBR, 2, 1);
    is_int(in(machine, LSR, 1) & 2, 2, "without FIFO: overrun");
    is_int(in(machine, RBR, 1), 2, "the register has the last byte");

    out(machine, IER, 0x08, 1);
    out(machine, MCR, 0x1c, 1);
    in(machine, MSR, 1);
    out(machine, MCR, 0x18, 1);
    is_int(in(machine, MSR, 1), 0x84, "trailing edge of the ring indicator");
    chr->kicks = 0;
    out(machine, MCR, 0x0a, 1);
    is_int(chr->kicks, 1, "back from loopback, input is asked for");
    ok(irq(machine), "changes of the modem lines interrupt");
    is_int(in(machine, IIR, 1), 0x00, "modem status");
    is_int(in(machine, MSR, 1), 0xb3, "CTS and DSR came up");
    ok(!irq(machine), "reading acknowledges");
    out(machine, IER, 0, 1);
}

static void test_priority(struct test_machine *machine, struct char_dev *chr)
{
    out(machine, MCR, 0x10, 1);
    out(machine, RBR, 1, 1);
    out(machine, RBR, 2, 1);
    out(machine, MCR, 0x08, 1);
    out(machine, IER, 0x0f, 1);
    is_int(in(machine, IIR, 1), 0x06, "line status comes first");
    in(machine, LSR, 1);
    is_int(in(machine, IIR, 1), 0x04, "then received data");
    in(machine, RBR, 1);
    is_int(in(machine, IIR, 1), 0x02, "then the transmitter");
    is_int(in(machine, IIR, 1), 0x00, "then the modem");
    in(machine, MSR, 1);
    is_int(in(machine, IIR, 1), 0x01, "then nothing");
    (void)chr;
}

int main(void)
{
    struct test_machine machine = {0};
    struct char_dev chr = {0};
    struct device *dev, *other;
    struct err err = ERR_INIT;

    test_machine_init(&machine);
    test_table(&uart_state_table);
    is_int(uart_new(&dev, &machine.env, 0, &chr, &err), 0, "uart_new()");
    test_identity(&machine);
    test_transmit(&machine, &chr);
    test_receive(&machine, &chr);
    test_loopback(&machine, &chr);
    test_priority(&machine, &chr);

    is_int(uart_new(&other, &machine.env, 4, NULL, &err), -EINVAL, "there is no COM5");
    is_int(uart_new(&other, &machine.env, 3, NULL, &err), 0, "COM4, with nothing plugged in");
    out(&machine, 0x2e8, 'x', 1);
    is_int(in(&machine, 0x2ed, 1), 0x60, "drops its output");
    device_fini(other);

    out(&machine, IER, 0x02, 1);
    device_reset(dev);
    ok(!irq(&machine), "reset lowers the line");
    is_int(in(&machine, MSR, 1), 0xb0, "carrier is there");
    device_fini(dev);
    is_int(in(&machine, LSR, 1), 0xff, "gone");
    test_machine_fini(&machine);
    return tap_done();
}
