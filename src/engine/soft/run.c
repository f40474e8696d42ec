/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop of a vCPU. One round: what other threads want (events), then a block of instructions.
 *
 *     vcpu_run -> unwind point -> [ events -> interrupt? -> block_find -> its instructions ]*
 *                      ^                                        |
 *                      +---- soft_raise*: exception ------------+
 *
 * An exception leaves the instruction by longjmp to the unwind point, where it is delivered; a
 * fault in the delivery comes to the same place again, and becomes a double fault or a shutdown
 * there. That is bounded: DELIVERIES_MAX.
 *
 * Events are looked at between blocks only, so that other vCPUs, devices and the main loop wait for
 * at most BLOCK_INSNS_MAX instructions, or one bounded piece of a repeated string instruction.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/report.h"
#include "engine/soft/block.h"
#include "engine/soft/exec.h"
#include "engine/soft/intr.h"
#include "engine/soft/seg.h"
#include "engine/soft/trace.h"
#include "engine/soft/translate.h"
#include "engine/soft/vm.h"

/* Virtual clock: timers are looked for at least every so many instructions. */
#define CLOCK_CHECK_INSTRUCTIONS 256

/* What longjmp brings to the unwind point. */
enum unwind {
    UNWIND_EXCEPTION = 1,
    UNWIND_EXIT,
};

/* More faults in a row, each in the delivery of the one before and none of them fatal, take a task
 * gate to a task whose state is broken, for every vector: a real processor is then lost in its
 * microcode. What more there are is a shutdown, so that the vCPU's thread can be had back. */
#define DELIVERIES_MAX 64

/* soft_cpu.delivering of what can be followed by any exception (SDM vol. 3, table 6-5: benign). */
#define DELIVERING_BENIGN 256

#define DR6_BS            (1ULL << 14)
#define DR7_GLOBAL_ENABLE 2u

/* --- raising --- */

/* The instruction under way has not happened: RIP back to its start, counts up to it. */
static void abandon_instruction(struct soft_cpu *cpu)
{
    const struct insn *insn = cpu->insn;
    /* Another vCPU may have changed the page tables after the check before the section. */
    if (cpu->exclusive)
        soft_exclusive_end(cpu);
    if (!insn)
        return;
    cpu->rip = (soft_next_rip(cpu, insn) - insn->len) & soft_ip_mask(cpu);
    cpu->instructions += (uint64_t)(insn - cpu->block_start);
    cpu->insn = NULL;
    cpu->stop_block = false;
    cpu->rip_set = false;
    cpu->dr6_pending = 0;
}

_Noreturn void soft_raise_exception(struct soft_cpu *cpu, const struct soft_exception *exception)
{
    cpu->exception = *exception;
    abandon_instruction(cpu);
    longjmp(cpu->unwind, UNWIND_EXCEPTION);
}

_Noreturn void soft_raise(struct soft_cpu *cpu, enum soft_vector vector)
{
    const struct soft_exception exception = {.vector = (uint8_t)vector};
    soft_raise_exception(cpu, &exception);
}

_Noreturn void soft_raise_error(struct soft_cpu *cpu, enum soft_vector vector, uint32_t error)
{
    const struct soft_exception exception = {
        .vector = (uint8_t)vector, .has_error = true, .error = error};
    soft_raise_exception(cpu, &exception);
}

_Noreturn void soft_raise_page_fault(struct soft_cpu *cpu, uint64_t address, uint32_t error)
{
    const struct soft_exception exception = {
        .vector = EXC_PF, .has_error = true, .error = error, .address = address};
    soft_raise_exception(cpu, &exception);
}

/* The bytes at RIP, without a side effect on the guest. */
static size_t read_instruction(struct soft_cpu *cpu, uint8_t bytes[INSTRUCTION_BYTES_MAX])
{
    for (size_t i = 0; i < INSTRUCTION_BYTES_MAX; i++) {
        uint64_t gpa;
        uint64_t la = (cpu->seg_base[SEG_CS] + cpu->rip + i) & cpu->mode.linear_mask;
        if (!mmu_translate(cpu, la, &gpa) || !cpu->vm->mem ||
            mem_read(cpu->vm->mem, GPA(gpa), &bytes[i], 1) < 0)
            return i;
    }
    return INSTRUCTION_BYTES_MAX;
}

_Noreturn void soft_exit(struct soft_cpu *cpu, enum engine_exit_kind kind, const char *format, ...)
{
    struct engine_exit *exit = cpu->exit;
    abandon_instruction(cpu);
    exit->kind = kind;
    exit->text[0] = '\0';
    if (format) {
        int len = snprintf(exit->text, sizeof(exit->text), "vCPU %u: ", cpu->base.id);
        va_list args;
        va_start(args, format);
        vsnprintf(exit->text + len, sizeof(exit->text) - (size_t)len, format, args);
        va_end(args);
        struct cpu_regs regs;
        struct cpu_sregs sregs;
        uint8_t bytes[INSTRUCTION_BYTES_MAX];
        cpu->base.ops->vcpu_get(&cpu->base, &regs, &sregs);
        engine_report_state(exit, &regs, &sregs);
        engine_report_instruction(exit, bytes, read_instruction(cpu, bytes));
    }
    longjmp(cpu->unwind, UNWIND_EXIT);
}

/* --- events and sleep --- */

static uint32_t events_now(const struct soft_cpu *cpu)
{
    return __atomic_load_n(&cpu->events, __ATOMIC_ACQUIRE);
}

static bool event_take(struct soft_cpu *cpu, uint32_t event)
{
    return __atomic_fetch_and(&cpu->events, ~event, __ATOMIC_SEQ_CST) & event;
}

void soft_cpu_notify(struct soft_cpu *cpu, uint32_t events)
{
    /* The order of these two, and of the sleeper's two, is what makes no wake-up get lost. */
    __atomic_fetch_or(&cpu->events, events, __ATOMIC_SEQ_CST);
    __atomic_store_n(&cpu->translated.attention, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&cpu->sleeping, __ATOMIC_SEQ_CST))
        syscall(SYS_futex, &cpu->events, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void soft_vcpu_kick(struct engine_vcpu *vcpu)
{
    soft_cpu_notify(soft_cpu_of(vcpu), SOFT_EVENT_KICK);
}

/* The events that matter now: an interrupt only with IF set, INIT and SIPI alone while waiting. */
static uint32_t events_wanted(const struct soft_cpu *cpu)
{
    uint32_t wanted =
        SOFT_EVENT_KICK | SOFT_EVENT_MMU | SOFT_EVENT_STOP | SOFT_EVENT_INIT | SOFT_EVENT_UNHALT;
    if (cpu->activity == SOFT_WAIT_SIPI)
        return wanted | SOFT_EVENT_SIPI;
    if (cpu->rflags & RFLAGS_IF)
        wanted |= SOFT_EVENT_IRQ;
    if (!cpu->nmi_blocked)
        wanted |= SOFT_EVENT_NMI;
    return wanted | SOFT_EVENT_SIPI;
}

bool soft_cpu_has_events(const struct soft_cpu *cpu)
{
    return events_now(cpu) & events_wanted(cpu);
}

/* --- exclusive sections --- */

static void running_enter(struct soft_cpu *cpu)
{
    struct soft_exclusive *x = &cpu->vm->exclusive;
    pthread_mutex_lock(&x->lock);
    while (x->owned)
        pthread_cond_wait(&x->changed, &x->lock);
    x->running++;
    pthread_mutex_unlock(&x->lock);
}

static void running_leave(struct soft_cpu *cpu)
{
    struct soft_exclusive *x = &cpu->vm->exclusive;
    pthread_mutex_lock(&x->lock);
    x->running--;
    pthread_cond_broadcast(&x->changed);
    pthread_mutex_unlock(&x->lock);
}

void soft_exclusive_begin_outside(struct soft_vm *vm)
{
    struct soft_exclusive *x = &vm->exclusive;
    pthread_mutex_lock(&x->lock);
    while (x->owned)
        pthread_cond_wait(&x->changed, &x->lock);
    x->owned = true;
    for (unsigned i = 0; i < vm->config.vcpu_count; i++) {
        struct soft_cpu *cpu = __atomic_load_n(&vm->cpus[i], __ATOMIC_ACQUIRE);
        if (cpu)
            soft_cpu_notify(cpu, SOFT_EVENT_STOP);
    }
    while (x->running > 0)
        pthread_cond_wait(&x->changed, &x->lock);
    pthread_mutex_unlock(&x->lock);
}

void soft_exclusive_end_outside(struct soft_vm *vm)
{
    struct soft_exclusive *x = &vm->exclusive;
    pthread_mutex_lock(&x->lock);
    x->owned = false;
    pthread_cond_broadcast(&x->changed);
    pthread_mutex_unlock(&x->lock);
}

/* A vCPU that waits for its turn is out of the guest's memory itself, as others' sections need. */
void soft_exclusive_begin(struct soft_cpu *cpu)
{
    running_leave(cpu);
    soft_exclusive_begin_outside(cpu->vm);
    cpu->exclusive = true;
}

void soft_exclusive_end(struct soft_cpu *cpu)
{
    cpu->exclusive = false;
    soft_exclusive_end_outside(cpu->vm);
    running_enter(cpu);
}

/* --- the virtual clock --- */

static void clock_set_due(struct soft_cpu *cpu, uint64_t due)
{
    cpu->clock_due = due;
    cpu->clock_check = due < cpu->trace_next ? due : cpu->trace_next;
}

static void clock_advance(struct soft_cpu *cpu)
{
    uint64_t now = cpu->instructions + cpu->clock_offset_ns;
    uint64_t deadline = chip_clock_advance(cpu->vm->clock, now);
    uint64_t ahead = deadline > now ? deadline - now : 0;
    clock_set_due(cpu, cpu->instructions +
                           (ahead < CLOCK_CHECK_INSTRUCTIONS ? ahead : CLOCK_CHECK_INSTRUCTIONS));
}

/* clock_check is reached. A trace is not to change when timers are looked for. */
static void clock_look(struct soft_cpu *cpu)
{
    if (cpu->instructions >= cpu->trace_next)
        trace_record(cpu);
    if (cpu->instructions >= cpu->clock_due)
        clock_advance(cpu);
    else
        clock_set_due(cpu, cpu->clock_due);
}

/* Nothing to do until a timer fires: let it be that time. False: no timer runs. */
static bool clock_skip(struct soft_cpu *cpu)
{
    clock_advance(cpu);
    if (!chip_clock_skip(cpu->vm->clock))
        return false;
    cpu->stats.sleeps++;
    cpu->clock_offset_ns = chip_clock_now(cpu->vm->clock) - cpu->instructions;
    clock_set_due(cpu, cpu->instructions);
    return true;
}

/*
 * Another thread works on what the guest asked for: no instruction until it is done, so that its
 * interrupt comes at this one. Not a sleep of the guest's: it does not see it. False: kicked.
 */
static bool wait_for_release(struct soft_cpu *cpu)
{
    bool kicked = false;
    cpu->stats.held++;
    running_leave(cpu);
    __atomic_store_n(&cpu->sleeping, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        /* The event goes before the look at what it tells: a later one changes the futex. */
        event_take(cpu, SOFT_EVENT_CLOCK);
        uint32_t events = __atomic_load_n(&cpu->events, __ATOMIC_SEQ_CST);
        kicked = events & SOFT_EVENT_KICK;
        if (kicked || !chip_clock_is_held(cpu->vm->clock))
            break;
        if (!(events & SOFT_EVENT_CLOCK))
            syscall(SYS_futex, &cpu->events, FUTEX_WAIT_PRIVATE, events, NULL, NULL, 0);
    }
    __atomic_store_n(&cpu->sleeping, 0, __ATOMIC_SEQ_CST);
    running_enter(cpu);
    return !kicked;
}

static void sleep_until_event(struct soft_cpu *cpu)
{
    cpu->stats.sleeps++;
    pv_sleeps(cpu);
    running_leave(cpu);
    __atomic_store_n(&cpu->sleeping, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        uint32_t events = __atomic_load_n(&cpu->events, __ATOMIC_SEQ_CST);
        if (events & events_wanted(cpu))
            break;
        syscall(SYS_futex, &cpu->events, FUTEX_WAIT_PRIVATE, events, NULL, NULL, 0);
    }
    __atomic_store_n(&cpu->sleeping, 0, __ATOMIC_SEQ_CST);
    running_enter(cpu);
    pv_wakes(cpu);
}

/* --- interrupts --- */

/* INIT: SDM vol. 3, 8.4.2 and table 9-1. The BSP starts again, the others wait for SIPI. */
static void do_init(struct soft_cpu *cpu)
{
    /* A SIPI may have come already, behind the INIT. */
    event_take(cpu, SOFT_EVENT_NMI);
    soft_cpu_init_state(cpu);
    irqchip_reset_lapic(cpu->vm->irqchip, cpu->base.id, true);
    mmu_flush_all(cpu);
    cpu->activity = cpu->base.id == 0 ? SOFT_ACTIVE : SOFT_WAIT_SIPI;
}

static void do_sipi(struct soft_cpu *cpu)
{
    if (cpu->activity != SOFT_WAIT_SIPI)
        return;
    uint8_t vector = __atomic_load_n(&cpu->sipi_vector, __ATOMIC_ACQUIRE);
    cpu->seg[SEG_CS].selector = (uint16_t)(vector << 8);
    cpu->seg[SEG_CS].base = (uint64_t)vector << 12;
    cpu->rip = 0;
    cpu->activity = SOFT_ACTIVE;
    soft_cpu_update(cpu);
}

static void deliver_external(struct soft_cpu *cpu, uint8_t vector)
{
    cpu->activity = SOFT_ACTIVE;
    cpu->stats.interrupts[vector]++;
    cpu->delivering = DELIVERING_BENIGN;
    intr_deliver_external(cpu, vector);
    cpu->delivering = -1;
}

static void take_interrupt(struct soft_cpu *cpu)
{
    struct irqchip *chip = cpu->vm->irqchip;
    unsigned id = cpu->base.id;
    /* The event goes first: what comes up from now on sets it again. */
    event_take(cpu, SOFT_EVENT_IRQ);
    if (!irqchip_pending(chip, id))
        return;
    int vector = irqchip_take(chip, id);
    if (irqchip_pending(chip, id))
        soft_cpu_notify(cpu, SOFT_EVENT_IRQ);
    if (vector >= 0)
        deliver_external(cpu, (uint8_t)vector);
}

/* True: leave vcpu_run. In the order of priority (SDM vol. 3, table 6-2). */
static bool serve_events(struct soft_cpu *cpu, uint32_t events)
{
    if (events & SOFT_EVENT_STOP && event_take(cpu, SOFT_EVENT_STOP)) {
        running_leave(cpu);
        running_enter(cpu);
    }
    if (events & SOFT_EVENT_MMU && event_take(cpu, SOFT_EVENT_MMU))
        mmu_serve(cpu);
    if (events & SOFT_EVENT_KICK && event_take(cpu, SOFT_EVENT_KICK)) {
        cpu->exit->kind = ENGINE_EXIT_KICK;
        return true;
    }
    if (events & SOFT_EVENT_INIT && event_take(cpu, SOFT_EVENT_INIT))
        do_init(cpu);
    if (events & SOFT_EVENT_SIPI && event_take(cpu, SOFT_EVENT_SIPI))
        do_sipi(cpu);
    if (events & SOFT_EVENT_UNHALT && event_take(cpu, SOFT_EVENT_UNHALT) &&
        cpu->activity == SOFT_HALTED)
        cpu->activity = SOFT_ACTIVE;
    if (cpu->activity == SOFT_WAIT_SIPI)
        return false;
    if (events & SOFT_EVENT_NMI && !cpu->nmi_blocked && event_take(cpu, SOFT_EVENT_NMI)) {
        cpu->nmi_blocked = true;
        deliver_external(cpu, EXC_NMI);
    } else if (events & SOFT_EVENT_IRQ && cpu->rflags & RFLAGS_IF) {
        take_interrupt(cpu);
    }
    return false;
}

/* --- instructions --- */

const struct insn *soft_run_from(struct soft_cpu *cpu, const struct block *block,
                                 const struct insn *insn)
{
    const struct insn *end = block->insns + block->count;
    do {
        cpu->insn = insn;
        insn->exec(cpu, insn);
        insn++;
    } while (insn != end && !cpu->stop_block);
    cpu->insn = NULL;
    cpu->instructions += (uint64_t)(insn - block->insns) - (insn[-1].op == OP_FALL_THROUGH);
    if (cpu->stop_block) {
        cpu->stop_block = false;
        if (insn != end && !cpu->rip_set)
            cpu->rip = soft_next_rip(cpu, &insn[-1]);
        cpu->rip_set = false;
    }
    return insn - 1;
}

static void run_block(struct soft_cpu *cpu, const struct block *block)
{
    bool resume = cpu->rflags & RFLAGS_RF;
    cpu->block_start = block->insns;
    cpu->rip_page = cpu->rip - block->offset;
    const struct insn *last = soft_run_from(cpu, block, block->insns);
    /* It holds for one instruction (SDM vol. 3, 17.3.1.1); to look at it once a block is enough,
     * since while a breakpoint is enabled blocks have one instruction. */
    if (__builtin_expect(resume, 0) && last->op != OP_IRET)
        cpu->rflags &= ~RFLAGS_RF;
}

/* An instruction breakpoint at RIP (SDM vol. 3, 17.3.1.1)? */
static void check_breakpoints(struct soft_cpu *cpu)
{
    if (cpu->rflags & RFLAGS_RF || !(cpu->dr[7] & 0xff))
        return;
    uint64_t la = (cpu->seg_base[SEG_CS] + cpu->rip) & cpu->mode.linear_mask;
    uint64_t hit = 0;
    for (unsigned i = 0; i < 4; i++) {
        bool enabled = cpu->dr[7] >> (2 * i) & 3;
        unsigned control = cpu->dr[7] >> (16 + 4 * i) & 0xf; /* R/W 0: execution; LEN 0 */
        if (enabled && control == 0 && cpu->dr[i] == la)
            hit |= 1ULL << i;
    }
    if (!hit)
        return;
    const struct soft_exception debug = {.vector = EXC_DB, .dr6 = hit};
    soft_raise_exception(cpu, &debug);
}

static _Noreturn void stop_for_debugger(struct soft_cpu *cpu, enum engine_debug_stop stop,
                                        unsigned hw)
{
    cpu->exit->stop = stop;
    cpu->exit->hw = hw;
    soft_exit(cpu, ENGINE_EXIT_DEBUG, NULL);
}

/* The debugger's own breakpoints at RIP. It steps over them by taking them away. */
static void check_debugger(struct soft_cpu *cpu)
{
    const struct engine_debug *want = &cpu->debug.want;
    uint64_t la = (cpu->seg_base[SEG_CS] + cpu->rip) & cpu->mode.linear_mask;
    for (unsigned i = 0; i < want->hw_count; i++) {
        if (want->hw[i].kind == ENGINE_WATCH_EXECUTE && want->hw[i].address == la &&
            !cpu->debug.resumed)
            stop_for_debugger(cpu, ENGINE_STOP_HARDWARE, i);
    }
    cpu->debug.resumed = false;
}

/* One instruction, with all that debugging asks for around it. */
static void run_careful(struct soft_cpu *cpu)
{
    bool shadow = cpu->no_debug;
    cpu->no_debug = false;
    if (!shadow)
        check_breakpoints(cpu);
    if (cpu->debug.on)
        check_debugger(cpu);
    bool step = cpu->rflags & RFLAGS_TF;
    cpu->dr6_pending = 0;
    cpu->debug.hit = 0;
    const struct block *block = block_find(cpu);
    unsigned op = block->insns[0].op;
    run_block(cpu, block);
    /* The interrupts of software clear TF, and no trap comes behind them (SDM vol. 3, 17.3.1.4). */
    if ((op == OP_INT || op == OP_INT3 || op == OP_INT1 || op == OP_INTO) &&
        !(cpu->rflags & RFLAGS_TF))
        step = false;
    if (cpu->debug.hit)
        stop_for_debugger(cpu, ENGINE_STOP_HARDWARE, cpu->debug.hit - 1);
    if (cpu->debug.on && cpu->debug.want.step)
        stop_for_debugger(cpu, ENGINE_STOP_STEP, 0);
    uint64_t dr6 = cpu->dr6_pending | (step ? DR6_BS : 0);
    cpu->dr6_pending = 0;
    if (dr6 && !cpu->no_debug) {
        const struct soft_exception debug = {.vector = EXC_DB, .dr6 = dr6, .trap = true};
        soft_raise_exception(cpu, &debug);
    }
}

/* Is there translated code for the block, and nothing that only the first tier looks at? */
static bool may_translate(struct soft_cpu *cpu, struct block *block)
{
    if (!block->code) {
        if (block->runs == TRANSLATE_NEVER)
            return false;
        block->runs++;
        if (!translate_block(cpu, block) || !block->code)
            return false;
    }
    return cpu->tlb->context != NULL;
}

static void run_instructions(struct soft_cpu *cpu)
{
    /* An interrupt that waits behind STI's shadow comes after one instruction: it may be followed
     * by CLI. */
    bool shadow = cpu->no_interrupt;
    cpu->stop_block = shadow && soft_cpu_has_events(cpu);
    cpu->no_interrupt = false;
    if (__builtin_expect(cpu->mode.careful, 0)) {
        run_careful(cpu);
        return;
    }
    soft_forget_resume(cpu);
    struct block *block = block_find(cpu);
    /* Translated code looks for events, perhaps before the first instruction. */
    if (!shadow && may_translate(cpu, block))
        translate_run(cpu, block);
    else
        run_block(cpu, block);
    cpu->no_debug = false;
}

/* --- vcpu_run --- */

static void deliver_exception(struct soft_cpu *cpu)
{
    struct soft_exception exception;
    if (++cpu->deliveries > DELIVERIES_MAX ||
        !intr_combine(cpu->delivering, &cpu->exception, &exception)) {
        cpu->delivering = -1;
        soft_exit(cpu, ENGINE_EXIT_TRIPLE_FAULT, NULL);
    }
    cpu->instructions++; /* time passes, also where each handler's first instruction faults */
    cpu->stats.exceptions[exception.vector & 31]++;
    cpu->delivering = exception.vector;
    cpu->activity = SOFT_ACTIVE;
    cpu->no_interrupt = false;
    intr_deliver_exception(cpu, &exception);
    cpu->delivering = -1;
}

static void run_loop(struct soft_cpu *cpu)
{
    bool virtual_clock = chip_clock_is_virtual(cpu->vm->clock);
    cpu->deliveries = 0;
    for (;;) {
        if (__builtin_expect(virtual_clock, 0)) {
            if (chip_clock_is_held(cpu->vm->clock) && !wait_for_release(cpu)) {
                event_take(cpu, SOFT_EVENT_KICK);
                return; /* exit->kind is KICK */
            }
            if (cpu->instructions >= cpu->clock_check)
                clock_look(cpu);
        }
        /* Before the look: what comes later sets it again. */
        if (__atomic_load_n(&cpu->translated.attention, __ATOMIC_RELAXED))
            __atomic_store_n(&cpu->translated.attention, 0, __ATOMIC_SEQ_CST);
        uint32_t events = events_now(cpu) & events_wanted(cpu);
        if (events && !cpu->no_interrupt && serve_events(cpu, events))
            return;
        if (cpu->activity != SOFT_ACTIVE) {
            if (!soft_cpu_has_events(cpu) && !(virtual_clock && clock_skip(cpu)))
                sleep_until_event(cpu);
            continue;
        }
        run_instructions(cpu);
    }
}

/* All but those that a bug of ours raises: blocked, they would kill without a word, while who looks
 * for such bugs has a handler for them, on a stack of its own. */
static void fill_with_asynchronous(sigset_t *signals)
{
    static const int synchronous[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    sigfillset(signals);
    for (unsigned i = 0; i < sizeof(synchronous) / sizeof(synchronous[0]); i++)
        sigdelset(signals, synchronous[i]);
}

void soft_vcpu_run(struct engine_vcpu *vcpu, struct engine_exit *exit)
{
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    exit->kind = ENGINE_EXIT_KICK;
    exit->text[0] = '\0';
    cpu->exit = exit;
    cpu->ran = true;
    /* No signal may come while RSP is the guest's; and this may be another thread than before. */
    sigset_t signals, before;
    fill_with_asynchronous(&signals);
    pthread_sigmask(SIG_SETMASK, &signals, &before);
    cpu->translated.gs = NULL;
    running_enter(cpu);
    switch (setjmp(cpu->unwind)) {
    case UNWIND_EXIT:
        break;
    case UNWIND_EXCEPTION:
        deliver_exception(cpu);
        /* fall through */
    default:
        run_loop(cpu);
        break;
    }
    cpu->exit = NULL;
    running_leave(cpu);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}
