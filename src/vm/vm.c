/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/vm.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "char/char.h"
#include "engine/stats.h"
#include "gdb/gdb.h"
#include "vm/board.h"
#include "vm/debug.h"
#include "vm/vcpus.h"

/* What stops the vCPUs and wants a decision of the main loop. */
enum event_kind {
    EVENT_NONE,
    EVENT_DEBUG, /* value: vCPU, with vm.debug_exit: all others replace it */
    EVENT_POWER_OFF,
    EVENT_RESET,
    EVENT_PANIC,
    EVENT_TRIPLE_FAULT, /* value: vCPU */
    EVENT_FAILURE,      /* logged by who raised it */
    EVENT_EXIT_PORT,    /* value: what was written */
    /* From here on what the user wants: it replaces what the guest did at the same time. */
    EVENT_QUIT,
    EVENT_SIGNAL, /* value: its number */
};

struct vm {
    const struct vm_config *config;
    const struct engine_ops *ops;
    struct engine_vm *engine;
    struct engine_probe probe;
    bool measure;
    bool passed_over; /* the engine was to be measured, and is none for this host */
    struct loop *loop;
    struct bus *bus;
    struct board board;
    struct vcpus *vcpus;
    struct dev_events dev_events;

    sigset_t old_mask;
    sigset_t end_signals; /* those that end the VM */
    struct loop_fd signals;
    struct log_budget log_budget; /* for what the guest can repeat at will */

    /* The first event since the vCPUs last ran; later ones are dropped, but for the user's. */
    pthread_mutex_t event_lock;
    enum event_kind event;
    unsigned event_value;
    struct engine_exit debug_exit; /* of the vCPU that EVENT_DEBUG names */
    struct loop_task event_task;
    struct debug debug;

    int status;  /* how vm_run() ends */
    char *stats; /* the table that vm_free() writes when the terminal is as it was */
};

/* --- the way out by force --- */

static void die_now(int number)
{
    char_restore_terminal();
    _exit(128 + number);
}

/* From now on a signal ends the process at once. Only on this thread, the main loop's: the others
 * have them blocked for good. */
static void signals_immediate(const struct vm *vm)
{
    const struct sigaction action = {.sa_handler = die_now};

    for (int number = 1; number < NSIG; number++) {
        if (sigismember(&vm->end_signals, number) == 1)
            sigaction(number, &action, NULL);
    }
    pthread_sigmask(SIG_UNBLOCK, &vm->end_signals, NULL);
}

/* --- events --- */

/* [any] Stop the vCPUs and let the main loop decide. */
static void raise_event(struct vm *vm, enum event_kind kind, unsigned value)
{
    pthread_mutex_lock(&vm->event_lock);
    if (vm->event == EVENT_NONE || (vm->event == EVENT_DEBUG && kind != EVENT_DEBUG) ||
        (vm->event < EVENT_QUIT && kind >= EVENT_QUIT)) {
        vm->event = kind;
        vm->event_value = value;
    }
    pthread_mutex_unlock(&vm->event_lock);
    vcpus_request_pause(vm->vcpus);
    loop_post(vm->loop, &vm->event_task);
}

static void on_power_off(void *ctx)
{
    raise_event(ctx, EVENT_POWER_OFF, 0);
}

static void on_reset(void *ctx)
{
    raise_event(ctx, EVENT_RESET, 0);
}

static void on_panicked(void *ctx, bool crash_loaded)
{
    struct vm *vm = ctx;

    /* With a crash kernel loaded the guest goes on by itself, into that kernel. */
    if (crash_loaded || vm->config->on_panic == CONFIG_ACTION_CONTINUE)
        log_guest(&vm->log_budget, "vm", "the guest panicked and goes on");
    else
        raise_event(vm, EVENT_PANIC, 0);
}

static void on_exit_port(void *ctx, unsigned value)
{
    raise_event(ctx, EVENT_EXIT_PORT, value);
}

static void on_quit(void *ctx)
{
    raise_event(ctx, EVENT_QUIT, 0);
}

/* The log takes a line at a time. */
static void log_failure(unsigned id, const char *text)
{
    while (*text) {
        size_t len = strcspn(text, "\n");
        log_error("vm", "vCPU %u: %.*s", id, (int)len, text);
        text += len + (text[len] == '\n');
    }
}

/* A vCPU that stops while another one's stop is not served yet comes to the same breakpoint again
 * when the debugger lets it go. */
static void raise_debug_event(struct vm *vm, unsigned id, const struct engine_exit *exit)
{
    pthread_mutex_lock(&vm->event_lock);
    if (vm->event == EVENT_NONE) {
        vm->debug_exit.kind = exit->kind;
        vm->debug_exit.stop = exit->stop;
        vm->debug_exit.hw = exit->hw;
    }
    pthread_mutex_unlock(&vm->event_lock);
    raise_event(vm, EVENT_DEBUG, id);
}

static void on_vcpu_exit(void *ctx, unsigned id, const struct engine_exit *exit)
{
    if (exit->kind == ENGINE_EXIT_DEBUG) {
        raise_debug_event(ctx, id, exit);
        return;
    }
    if (exit->kind == ENGINE_EXIT_TRIPLE_FAULT) {
        raise_event(ctx, EVENT_TRIPLE_FAULT, id);
        return;
    }
    log_failure(id, exit->text);
    raise_event(ctx, EVENT_FAILURE, id);
}

static void end(struct vm *vm, int status)
{
    vm->status = status;
    loop_stop(vm->loop);
}

/* Waiting for a disk's last request or reading a kernel from a pipe may take for ever, and there is
 * nothing of the guest that an end in order would save. */
static int power_on_board(struct vm *vm, struct err *err)
{
    signals_immediate(vm);
    int ret = board_power_on(&vm->board, err);
    pthread_sigmask(SIG_BLOCK, &vm->end_signals, NULL);
    return ret;
}

static int start_cpu0(struct vm *vm, struct err *err)
{
    int ret = vcpus_reset(vm->vcpus, err);

    if (ret != 0)
        return ret;
    ret = vm->ops->vcpu_set(vcpus_get(vm->vcpus, 0), &vm->board.boot.regs, &vm->board.boot.sregs);
    return ret != 0 ? err_errno(err, ret, "cannot set the registers of vCPU 0") : 0;
}

static void restart(struct vm *vm)
{
    struct err err = ERR_INIT;

    log_info("vm", "restarting");
    if (power_on_board(vm, &err) != 0 || start_cpu0(vm, &err) != 0) {
        log_error("vm", "cannot restart the guest: %s", err.text);
        end(vm, VM_END_FAILURE);
        return;
    }
    vcpus_resume(vm->vcpus);
}

static void restart_or_end(struct vm *vm, unsigned action, int status)
{
    if (action == CONFIG_ACTION_RESTART)
        restart(vm);
    else
        end(vm, status);
}

static void log_triple_fault(struct vm *vm, unsigned id)
{
    struct cpu_regs regs;
    struct cpu_sregs sregs;

    if (vm->ops->vcpu_get(vcpus_get(vm->vcpus, id), &regs, &sregs) == 0)
        log_error("vm",
                  "vCPU %u triple-faulted (rip %#llx, rsp %#llx, cr0 %#llx, cr2 %#llx, cr3 %#llx)",
                  id, (unsigned long long)regs.rip, (unsigned long long)regs.gpr[CPU_RSP],
                  (unsigned long long)sregs.cr0, (unsigned long long)sregs.cr2,
                  (unsigned long long)sregs.cr3);
    else
        log_error("vm", "vCPU %u triple-faulted", id);
}

static void decide(struct vm *vm, enum event_kind kind, unsigned value)
{
    switch (kind) {
    case EVENT_NONE:
        break;
    case EVENT_DEBUG:
        debug_stopped(&vm->debug, value, &vm->debug_exit);
        break;
    case EVENT_POWER_OFF:
        end(vm, VM_END_POWEROFF);
        break;
    case EVENT_RESET:
        restart_or_end(vm, vm->config->on_reboot, VM_END_REBOOT);
        break;
    case EVENT_PANIC:
        log_error("vm", "the guest panicked");
        restart_or_end(vm, vm->config->on_panic, VM_END_PANIC);
        break;
    case EVENT_TRIPLE_FAULT:
        log_triple_fault(vm, value);
        restart_or_end(vm, vm->config->on_triple_fault, VM_END_TRIPLE_FAULT);
        break;
    case EVENT_FAILURE:
        end(vm, VM_END_FAILURE);
        break;
    case EVENT_EXIT_PORT:
        end(vm, (int)(((value << 1) | 1) & 0xff));
        break;
    case EVENT_QUIT:
        end(vm, VM_END_QUIT);
        break;
    case EVENT_SIGNAL:
        end(vm, 128 + (int)value);
        break;
    }
}

static void on_event(struct loop_task *task)
{
    struct vm *vm = CONTAINER_OF(task, struct vm, event_task);

    /* Posted once more by an event that was dropped: the vCPUs may be running again. */
    pthread_mutex_lock(&vm->event_lock);
    bool none = vm->event == EVENT_NONE;
    pthread_mutex_unlock(&vm->event_lock);
    if (none)
        return;
    vcpus_pause(vm->vcpus);
    pthread_mutex_lock(&vm->event_lock);
    enum event_kind kind = vm->event;
    unsigned value = vm->event_value;
    vm->event = EVENT_NONE;
    pthread_mutex_unlock(&vm->event_lock);
    decide(vm, kind, value);
}

/* --- signals --- */

static void on_signal(struct loop_fd *lfd, short revents)
{
    struct vm *vm = CONTAINER_OF(lfd, struct vm, signals);
    struct signalfd_siginfo info;

    (void)revents;
    if (read(lfd->fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
        return;
    if (info.ssi_signo == SIGUSR1) {
        log_info("vm", "SIGUSR1: pressing the power button");
        board_power_button(&vm->board);
        return;
    }
    signals_immediate(vm); /* a second one does not wait for a slow disk */
    raise_event(vm, EVENT_SIGNAL, info.ssi_signo);
}

/* A crash of our own must not leave the terminal raw; then the signal takes its course. */
static void on_crash(int number)
{
    char_restore_terminal();
    raise(number); /* SA_RESETHAND: the default action now */
}

static bool has_handler(int number, void (*handler)(int))
{
    struct sigaction action;

    return sigaction(number, NULL, &action) == 0 && action.sa_handler == handler;
}

/* Before any thread is made: they all inherit the mask, and the main loop reads the signals. */
static int open_signals(struct vm *vm, struct err *err)
{
    static const int ends[] = {SIGTERM, SIGINT, SIGHUP};
    static const int crashes[] = {SIGSEGV, SIGBUS,  SIGILL,  SIGFPE, SIGABRT,
                                  SIGSYS,  SIGTRAP, SIGQUIT, SIGXCPU};
    const struct sigaction crash = {.sa_handler = on_crash, .sa_flags = SA_RESETHAND | SA_NODEFER};

    /* A signal that our parent ignores (nohup, a script's background job) would be queued all the
     * same while it is blocked. */
    for (unsigned i = 0; i < ARRAY_LEN(ends); i++) {
        if (!has_handler(ends[i], SIG_IGN))
            sigaddset(&vm->end_signals, ends[i]);
    }
    sigset_t set = vm->end_signals;
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, &vm->old_mask);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a disk beyond RLIMIT_FSIZE is the guest's EFBIG, not our end */
    for (unsigned i = 0; i < ARRAY_LEN(crashes); i++) {
        if (has_handler(crashes[i], SIG_DFL)) /* a sanitizer's own handler stays */
            sigaction(crashes[i], &crash, NULL);
    }
    vm->signals.fd = signalfd(-1, &set, SFD_CLOEXEC);
    if (vm->signals.fd < 0)
        return err_errno(err, errno, "signalfd");
    vm->signals.events = POLLIN;
    vm->signals.fn = on_signal;
    int ret = loop_fd_add(vm->loop, &vm->signals);
    return ret != 0 ? err_errno(err, ret, "cannot watch signals") : 0;
}

/* --- building --- */

/* An option that is given and that the soft engine alone has, or NULL. */
static const char *soft_option(const struct vm_config *config)
{
    if (config->translate != ENGINE_TRANSLATE_ON)
        return "translate";
    if (config->tlb != CONFIG_TLB_FULL)
        return "tlb";
    if (config->code_bytes)
        return "code-cache";
    return config->trace ? "trace" : config->compare ? "compare" : NULL;
}

static int find_engine(const struct vm_config *config, const struct engine_ops **ops,
                       struct err *err)
{
    *ops = engine_find(config->engine);
    if (!*ops)
        return err_set(err, EINVAL, "--engine %s: there is 'auto', 'kvm' and 'soft'",
                       config->engine);
    if (*ops == &engine_kvm && config->clock == CONFIG_CLOCK_VIRTUAL)
        return err_set(err, EINVAL,
                       "--engine kvm has no virtual clock: that is --engine "
                       "soft,clock=virtual");
    if (*ops == &engine_kvm && soft_option(config))
        return err_set(err, EINVAL, "--engine kvm: '%s' is an option of --engine soft",
                       soft_option(config));
    if (*ops == &engine_kvm && config->cpu && strcmp(config->cpu, "host") != 0)
        return err_set(
            err, EINVAL,
            "--cpu %s: with --engine kvm the guest's processor is the host's; models are "
            "those of --engine soft",
            config->cpu);
    return 0;
}

static int open_engine(struct vm *vm, struct err *err)
{
    const struct engine_vm_config config = {
        .vcpu_count = vm->config->cpus,
        .upcalls = &bus_upcalls,
        .upcall_ctx = vm->bus,
        .cpu_model = vm->config->cpu,
        .virtual_clock = vm->config->clock == CONFIG_CLOCK_VIRTUAL,
        .translate = vm->config->translate,
        .tlb_one = vm->config->tlb == CONFIG_TLB_ONE,
        .code_bytes = vm->config->code_bytes,
        .trace = vm->config->trace,
        .compare = vm->config->compare,
        .trace_every = vm->config->trace_every,
        .trace_from = vm->config->trace_from,
    };
    return vm->ops->vm_new(&vm->engine, &config, err);
}

static int check_engine(struct vm *vm, struct err *err)
{
    if (!vm->measure)
        return 0;
    if (vm->probe.quality == ENGINE_GOOD) {
        log_info("vm", "engine %s: %s", vm->ops->name, vm->probe.why);
        return 0;
    }
    vm->passed_over = true;
    return err_set(err, ENOTSUP, "%s", vm->probe.why);
}

static int check_cpus(const struct vm *vm, struct err *err)
{
    unsigned max = vm->ops->vcpu_max(vm->engine);

    if (vm->config->cpus > max)
        return err_set(err, EINVAL, "--cpus %u: this host's %s runs at most %u in a VM",
                       vm->config->cpus, vm->ops->name, max);
    return 0;
}

static int start_debugger(struct vm *vm, struct err *err)
{
    if (!vm->config->gdb)
        return 0;
    vm->debug = (struct debug){
        .engine = vm->engine,
        .mem = vm->board.mem,
        .vcpus = vm->vcpus,
        .cpu_count = vm->config->cpus,
        .kill = on_quit,
        .ctx = vm,
    };
    int ret = debug_start(&vm->debug, vm->loop, vm->config->gdb, vm->config->gdb_i386, err);
    if (ret == 0 && vm->config->gdb_wait)
        gdb_set_stopped(vm->debug.gdb);
    return ret;
}

static int build(struct vm *vm, struct err *err)
{
    int ret = loop_new(&vm->loop, 0, err);

    if (ret == 0)
        ret = open_signals(vm, err);
    if (ret == 0)
        ret = bus_new(&vm->bus, err);
    if (ret == 0) {
        ret = open_engine(vm, err);
        vm->passed_over = ret != 0 && vm->measure;
    }
    if (ret == 0)
        ret = check_cpus(vm, err);
    if (ret == 0)
        ret = vcpus_new(&vm->vcpus, vm->engine, vm->config->cpus, on_vcpu_exit, vm,
                        vm->measure ? &vm->probe : NULL, err);
    if (ret == 0)
        ret =
            board_init(&vm->board, vm->config, vm->engine, vm->bus, &vm->dev_events, vm->loop, err);
    if (ret != 0)
        return ret;
    if (vm->board.terminal)
        char_set_escape(vm->board.terminal, on_quit, vm);
    ret = io_threads_start(&vm->board.io, err);
    if (ret == 0)
        ret = power_on_board(vm, err); /* while the vCPUs are being made */
    if (ret == 0)
        ret = vcpus_wait_ready(vm->vcpus, err);
    if (ret == 0)
        ret = check_engine(vm, err);
    if (ret == 0)
        ret = start_cpu0(vm, err);
    return ret != 0 ? ret : start_debugger(vm, err);
}

/* passed_over, where not NULL: the engine is measured, and this says that another must be taken. */
static int vm_make(struct vm **out, const struct vm_config *config, const struct engine_ops *ops,
                   bool *passed_over, struct err *err)
{
    struct vm *vm = calloc(1, sizeof(*vm));

    if (!vm)
        return err_set(err, ENOMEM, "out of memory");
    vm->config = config;
    vm->ops = ops;
    vm->measure = passed_over && ops->vm_measure;
    vm->status = VM_END_FAILURE; /* of a main loop that cannot run */
    sigemptyset(&vm->end_signals);
    vm->signals.fd = -1;
    vm->event_task.fn = on_event;
    pthread_mutex_init(&vm->event_lock, NULL);
    vm->dev_events = (struct dev_events){
        .ctx = vm,
        .power_off = on_power_off,
        .reset = on_reset,
        .panicked = on_panicked,
        .exit = on_exit_port,
    };
    int ret = build(vm, err);
    if (ret != 0) {
        if (passed_over)
            *passed_over = vm->passed_over;
        vm_free(vm);
        return ret;
    }
    *out = vm;
    return 0;
}

/* KVM where it is good, else the soft engine. What KVM lacks shows when it is opened, or, built as
 * far as the first vCPU, when that is measured: then the machine is built again. Why is said only
 * when there is a machine: of bad input there is one line, the error. */
static int vm_new_auto(struct vm **vm, const struct vm_config *config, struct err *err)
{
    bool only_soft = config->clock == CONFIG_CLOCK_VIRTUAL || soft_option(config) ||
                     (config->cpu && strcmp(config->cpu, "host") != 0);
    bool passed_over = false;

    if (only_soft) {
        log_info("vm",
                 "engine soft: a virtual clock, processor models and a translator are its alone");
        return vm_make(vm, config, &engine_soft, NULL, err);
    }
    int ret = vm_make(vm, config, &engine_kvm, &passed_over, err);
    if (ret == 0 || !passed_over)
        return ret;
    struct err lack = *err;
    *err = (struct err)ERR_INIT;
    ret = vm_make(vm, config, &engine_soft, NULL, err);
    if (ret == 0)
        log_warn("vm", "engine soft, which is slower, since %s", lack.text);
    return ret;
}

int vm_new(struct vm **vm, const struct vm_config *config, struct err *err)
{
    const struct engine_ops *ops = NULL;

    if (strcmp(config->engine, "auto") == 0)
        return vm_new_auto(vm, config, err);
    int ret = find_engine(config, &ops, err);
    return ret != 0 ? ret : vm_make(vm, config, ops, NULL, err);
}

int vm_new_on(struct vm **vm, const struct vm_config *config, const struct engine_ops *ops,
              struct err *err)
{
    return vm_make(vm, config, ops, NULL, err);
}

static void collect_stats(struct vm *vm)
{
    unsigned count = vm->config->cpus;

    if (!vm->config->stats || !vm->ops->vcpu_stats)
        return;
    struct engine_stats *stats = calloc(count, sizeof(*stats));
    for (unsigned i = 0; stats && i < count; i++)
        vm->ops->vcpu_stats(vcpus_get(vm->vcpus, i), &stats[i]);
    if (stats)
        vm->stats = engine_stats_table(vm->ops->name, stats, count);
    free(stats);
}

int vm_run(struct vm *vm)
{
    if (!vm->config->gdb_wait)
        vcpus_resume(vm->vcpus);
    loop_run(vm->loop);
    signals_immediate(vm);
    vcpus_pause(vm->vcpus);
    debug_end(&vm->debug, vm->status);
    collect_stats(vm);
    board_quiesce(&vm->board);
    return vm->status;
}

void vm_free(struct vm *vm)
{
    if (!vm)
        return;
    debug_end(&vm->debug, vm->status);
    vcpus_free(vm->vcpus);
    if (vm->board.engine)
        board_fini(&vm->board);
    if (vm->stats)
        fputs(vm->stats, stderr);
    free(vm->stats);
    if (vm->engine)
        vm->ops->vm_free(vm->engine);
    bus_free(vm->bus);
    if (vm->signals.fd >= 0) {
        if (vm->signals.priv)
            loop_fd_del(vm->loop, &vm->signals);
        close(vm->signals.fd);
    }
    if (vm->loop) {
        loop_free(vm->loop);
        pthread_sigmask(SIG_SETMASK, &vm->old_mask, NULL);
    }
    pthread_mutex_destroy(&vm->event_lock);
    free(vm);
}
