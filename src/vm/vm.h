/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One virtual machine: built from a configuration, run until it ends. The main loop belongs to the
 * thread that calls vm_run(); each vCPU has a thread; I/O loops have theirs.
 *
 *     vm_new()    memory, engine, board, devices, boot images: everything that can fail
 *     vm_run()    start the vCPUs, serve the main loop until the VM ends
 *     vm_free()   in reverse
 */
#ifndef HULL_VM_VM_H
#define HULL_VM_VM_H

#include "vm/config.h"

struct vm;

/* Why a VM ended. The values are the exit statuses of `hull run`, part of its interface. */
enum vm_end {
    VM_END_POWEROFF = 0,     /* the guest powered itself off */
    VM_END_ERROR = 1,        /* could not start: bad kernel, no engine, disk in use, ... */
    VM_END_USAGE = 2,        /* wrong command line */
    VM_END_PANIC = 3,        /* the guest reported a panic through pvpanic */
    VM_END_TRIPLE_FAULT = 4, /* a vCPU triple-faulted */
    VM_END_FAILURE = 5,      /* the engine or the VMM failed while the guest ran */
    VM_END_REBOOT = 6,       /* the guest asked for a reset and --on-reboot=exit */
    VM_END_QUIT = 7,         /* Ctrl-A x */
    /* 128 + signal: ended by a signal (SIGTERM 143, SIGINT 130) */
    VM_END_EXIT_PORT = 256, /* `isa-debug-exit`: status (value << 1) | 1, modulo 256 */
};

int vm_new(struct vm **vm, const struct vm_config *config, struct err *err);

/* Returns the exit status. Handles SIGTERM and SIGINT (a second one is immediate). */
int vm_run(struct vm *vm);

void vm_free(struct vm *vm);

#endif
