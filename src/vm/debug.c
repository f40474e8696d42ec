/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/debug.h"

#include <errno.h>

#include "base/err.h"
#include "base/units.h"
#include "gdb/gdb.h"
#include "mem/mem.h"
#include "vm/vcpus.h"

static void stop(void *ctx)
{
    struct debug *d = ctx;
    vcpus_pause(d->vcpus);
}

static void go(void *ctx, unsigned cpu)
{
    struct debug *d = ctx;
    if (cpu == GDB_ALL_CPUS)
        vcpus_resume(d->vcpus);
    else
        vcpus_resume_one(d->vcpus, cpu);
}

static int get_regs(void *ctx, unsigned cpu, struct gdb_regs *regs)
{
    struct debug *d = ctx;
    struct engine_vcpu *vcpu = vcpus_get(d->vcpus, cpu);
    int code = vcpu->ops->vcpu_get(vcpu, &regs->regs, &regs->sregs);
    return code == 0 ? vcpu->ops->vcpu_get_fpu(vcpu, &regs->fpu) : code;
}

static int set_regs(void *ctx, unsigned cpu, const struct gdb_regs *regs)
{
    struct debug *d = ctx;
    struct engine_vcpu *vcpu = vcpus_get(d->vcpus, cpu);
    int code = vcpu->ops->vcpu_set(vcpu, &regs->regs, &regs->sregs);
    return code == 0 ? vcpu->ops->vcpu_set_fpu(vcpu, &regs->fpu) : code;
}

/* A page at a time, since each has a translation of its own. Devices are not touched: reading one
 * may change it. */
static size_t copy(struct debug *d, unsigned cpu, uint64_t address, bool physical, void *to,
                   const void *from, size_t len)
{
    struct engine_vcpu *vcpu = vcpus_get(d->vcpus, cpu);
    size_t done = 0;
    while (done < len) {
        uint64_t at = address + done;
        uint64_t left_in_page = PAGE_SIZE_BYTES - at % PAGE_SIZE_BYTES;
        size_t now = len - done < left_in_page ? len - done : (size_t)left_in_page;
        gpa_t gpa = GPA(at);
        if (!physical && !vcpu->ops->vcpu_translate(vcpu, (gva_t){at}, &gpa))
            break;
        int code = to ? mem_read(d->mem, gpa, (uint8_t *)to + done, now)
                      : mem_write(d->mem, gpa, (const uint8_t *)from + done, now);
        if (code < 0)
            break;
        done += now;
    }
    return done;
}

static size_t read_memory(void *ctx, unsigned cpu, uint64_t address, bool physical, void *buf,
                          size_t len)
{
    return copy(ctx, cpu, address, physical, buf, NULL, len);
}

static size_t write_memory(void *ctx, unsigned cpu, uint64_t address, bool physical,
                           const void *buf, size_t len)
{
    return copy(ctx, cpu, address, physical, NULL, buf, len);
}

static int set_debug(void *ctx, const struct engine_debug *debug)
{
    struct debug *d = ctx;
    int code = 0;
    for (unsigned i = 0; i < d->cpu_count && code == 0; i++) {
        struct engine_vcpu *vcpu = vcpus_get(d->vcpus, i);
        code = vcpu->ops->vcpu_debug(vcpu, debug);
    }
    return code;
}

static int pass_breakpoint(void *ctx, unsigned cpu)
{
    struct debug *d = ctx;
    struct engine_vcpu *vcpu = vcpus_get(d->vcpus, cpu);
    return vcpu->ops->vcpu_pass_breakpoint(vcpu);
}

static void kill_vm(void *ctx)
{
    struct debug *d = ctx;
    d->kill(d->ctx);
}

static const struct gdb_target_ops target_ops = {
    .stop = stop,
    .go = go,
    .get_regs = get_regs,
    .set_regs = set_regs,
    .read = read_memory,
    .write = write_memory,
    .debug = set_debug,
    .pass_breakpoint = pass_breakpoint,
    .kill = kill_vm,
};

int debug_start(struct debug *d, struct loop *loop, const char *where, bool i386, struct err *err)
{
    const struct gdb_config config = {
        .where = where,
        .i386 = i386,
        .cpu_count = d->cpu_count,
        .target = &target_ops,
        .ctx = d,
    };
    if (!d->engine->ops->vcpu_debug)
        return err_set(err, ENOTSUP, "--gdb: the engine '%s' has no support for debuggers",
                       d->engine->ops->name);
    return gdb_new(&d->gdb, loop, &config, err);
}

void debug_end(struct debug *d, int status)
{
    gdb_free(d->gdb, status);
    d->gdb = NULL;
}

void debug_stopped(struct debug *d, unsigned id, const struct engine_exit *exit)
{
    if (d->gdb)
        gdb_stopped(d->gdb, id, exit);
}
