/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The board: memory, engine, buses and every device of the machine, from a configuration. board.c
 * is where the whole machine can be read, top to bottom.
 *
 * Threads: all functions by the thread of the main loop; the vCPUs are paused, except in
 * board_power_button().
 */
#ifndef HULL_VM_BOARD_H
#define HULL_VM_BOARD_H

#include "bus/pci.h"
#include "dev/dev.h"
#include "engine/engine.h"
#include "vm/boot.h"
#include "vm/config.h"
#include "vm/io_threads.h"

struct board {
    const struct vm_config *config;
    const struct dev_events *events;
    struct loop *main_loop;
    struct io_threads io;

    struct mem *mem;
    struct engine_vm *engine;
    struct bus *bus;
    struct irq_router irq;
    struct pci_bus *pci;

    struct device *devices; /* in order of creation */
    struct device *mch, *lpc, *rtc;
    struct char_dev *chars[CONFIG_SERIALS_MAX + 1];
    unsigned char_count;
    struct char_dev *terminal; /* the serial port or console on stdio; NULL: none */

    struct boot_result boot; /* how vCPU 0 starts */
};

/*
 * Everything that stands on an engine_vm and the bus that it calls up to; both stay the caller's.
 * On failure the board is empty again.
 */
int board_init(struct board *board, const struct vm_config *config, struct engine_vm *engine,
               struct bus *bus, const struct dev_events *events, struct loop *main_loop,
               struct err *err);

/*
 * Power-on, also the first: RAM zero, every device reset, then what firmware would do (chipset, PCI
 * addresses, tables) and the boot images. The I/O threads run.
 */
int board_power_on(struct board *board, struct err *err);

/* Reset every device and wait until no backend touches guest memory any more. The I/O threads run.
 */
void board_quiesce(struct board *board);

/* [any] Press the power button. */
void board_power_button(struct board *board);

/* The I/O threads have been stopped, the vCPUs are gone. */
void board_fini(struct board *board);

#endif
