/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a debugger (gdb/) debugs: the vCPUs and the memory of one VM.
 *
 * Threads: the main loop's.
 */
#ifndef HULL_VM_DEBUG_H
#define HULL_VM_DEBUG_H

#include "engine/engine.h"

struct err;
struct gdb;
struct loop;
struct vcpus;

struct debug {
    struct gdb *gdb; /* NULL: no debugger was asked for */
    struct engine_vm *engine;
    struct mem *mem;
    struct vcpus *vcpus;
    unsigned cpu_count;
    void (*kill)(void *ctx);
    void *ctx;
};

/* where: as gdb_config.where. The other members of *debug have been set. */
int debug_start(struct debug *debug, struct loop *loop, const char *where, bool i386,
                struct err *err);
/* The VM has ended with that exit status. */
void debug_end(struct debug *debug, int status);

/* vCPU `id` left with ENGINE_EXIT_DEBUG, and no vCPU runs. */
void debug_stopped(struct debug *debug, unsigned id, const struct engine_exit *exit);

#endif
