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

struct engine_ops;
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

/* config stays until vm_free(). */
int vm_new(struct vm **vm, const struct vm_config *config, struct err *err);

/* As vm_new(), on this engine, whatever config names: for tests. */
int vm_new_on(struct vm **vm, const struct vm_config *config, const struct engine_ops *ops,
              struct err *err);

/*
 * Returns the exit status. SIGTERM, SIGINT and SIGHUP end the VM, unless the process was started
 * with them ignored; a second one, or one after the guest has ended, is immediate. SIGUSR1 presses
 * the power button. The handlers are the process's: run one VM at a time.
 */
int vm_run(struct vm *vm);

void vm_free(struct vm *vm);

#endif
