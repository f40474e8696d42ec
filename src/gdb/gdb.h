/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A server of GDB's remote serial protocol (GDB manual, appendix E), for one client at a time. It
 * speaks the protocol and knows no VM: what it debugs is a struct gdb_target. Each vCPU is a
 * thread of GDB's, numbered from 1; they run and stop together, and step alone.
 *
 * What arrives is hostile: lengths are bounded, and a malformed packet gets an error.
 *
 * Threads: the loop's thread, for all functions and all calls of the target.
 */
#ifndef HULL_GDB_GDB_H
#define HULL_GDB_GDB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"

struct err;
struct gdb;
struct loop;

struct gdb_regs {
    struct cpu_regs regs;
    struct cpu_sregs sregs;
    struct cpu_fpu fpu;
};

#define GDB_ALL_CPUS UINT32_MAX

struct gdb_target_ops {
    /* No vCPU runs when it returns. */
    void (*stop)(void *ctx);
    /* Run all vCPUs, or only one (a step); the target calls gdb_stopped() when it stops. */
    void (*go)(void *ctx, unsigned cpu);
    int (*get_regs)(void *ctx, unsigned cpu, struct gdb_regs *regs);
    int (*set_regs)(void *ctx, unsigned cpu, const struct gdb_regs *regs);
    /* Memory of a stopped target, by linear address of that vCPU or by guest-physical address: how
     * many bytes, from the start, could be read (written). */
    size_t (*read)(void *ctx, unsigned cpu, uint64_t address, bool physical, void *buf, size_t len);
    size_t (*write)(void *ctx, unsigned cpu, uint64_t address, bool physical, const void *buf,
                    size_t len);
    /* For all vCPUs, from the next go() on. step is set for the one that go() names. */
    int (*debug)(void *ctx, const struct engine_debug *debug);
    /* The INT3 that vCPU stopped at is the guest's. */
    int (*pass_breakpoint)(void *ctx, unsigned cpu);
    /* The client asked for the end of the VM. */
    void (*kill)(void *ctx);
};

struct gdb_config {
    const char *where; /* "PORT", "ADDRESS:PORT" or "unix:PATH" */
    bool i386;         /* describe a 32-bit processor: for guests that never leave 32-bit code */
    unsigned cpu_count;
    const struct gdb_target_ops *target;
    void *ctx;
};

/* Listen. Fails with err where it cannot. */
int gdb_new(struct gdb **gdb, struct loop *loop, const struct gdb_config *config, struct err *err);
/* Says goodbye to the client: the VM has ended with that exit status. NULL is allowed. */
void gdb_free(struct gdb *gdb, int status);

/* The VM has been built and does not run: go() has not been called yet, and waits for the client.
 */
void gdb_set_stopped(struct gdb *gdb);

/* The target has stopped by itself, since vCPU `cpu` left with ENGINE_EXIT_DEBUG. */
void gdb_stopped(struct gdb *gdb, unsigned cpu, const struct engine_exit *exit);

/* --- registers.c: the processor as GDB sees it --- */

/* The target description (GDB manual, appendix G) into text; GDB_FEATURES_MAX bytes are enough. */
#define GDB_FEATURES_MAX 16384
void gdb_features(bool i386, char *text, size_t len);

/* Registers in GDB's order. */
unsigned gdb_reg_count(bool i386);
/* Bytes of one register, or 0 beyond the last. get writes, set reads that many bytes. */
unsigned gdb_reg_get(const struct gdb_regs *regs, bool i386, unsigned number, uint8_t value[16]);
unsigned gdb_reg_set(struct gdb_regs *regs, bool i386, unsigned number, const uint8_t value[16]);

#endif
