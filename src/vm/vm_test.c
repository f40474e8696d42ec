/* SPDX-License-Identifier: Apache-2.0 */
/* How a machine lives and ends, on the fake engine: vCPU 0 does what the test has queued. */
#include "vm/vm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/tap.h"
#include "base/units.h"
#include "dev/pm.h"
#include "engine/fake/fake.h"
#include "vm/boot_fixture.h"
#include "vm/layout.h"

#define PORT_CONTROL     (LAYOUT_PORT_PM_BASE + PM_OFFSET_CONTROL)
#define POWER_OFF        (1u << 13 | PM_SLP_TYP_S5 << 10)
#define RESET            6u /* port 0xcf9: SYS_RST and RST_CPU */
#define PANICKED         1u
#define CRASH_LOADED     2u
#define PM1_POWER_BUTTON (1u << 8)
#define WAIT_NS          (10 * NS_PER_SEC)

static char kernel_path[32];

/* --- an engine that shows itself --- */

/*
 * The fake engine, with two operations that vm.c calls by the ops it was given: the one shows the
 * VM and its upcalls, the other the first vCPU. A thread has its own: two machines may be built at
 * once.
 */
static _Thread_local struct engine_vm *engine;
static _Thread_local struct engine_upcalls upcalls;
static _Thread_local void *upcall_ctx;
static _Thread_local struct engine_vcpu *cpu0;
static _Thread_local enum fake_event_kind fail_kind = FAKE_EVENT_KINDS;

static int show_vm(struct engine_vm **vm, const struct engine_vm_config *config, struct err *err)
{
    int ret = engine_fake.vm_new(vm, config, err);

    engine = *vm;
    upcalls = *config->upcalls;
    upcall_ctx = config->upcall_ctx;
    if (fail_kind != FAKE_EVENT_KINDS)
        fake_fail_next(*vm, fail_kind, -EIO);
    return ret;
}

static int show_cpu0(struct engine_vcpu *vcpu, const struct cpu_regs *regs,
                     const struct cpu_sregs *sregs)
{
    cpu0 = vcpu;
    return engine_fake.vcpu_set(vcpu, regs, sregs);
}

static struct engine_ops test_ops(void)
{
    struct engine_ops ops = engine_fake;

    ops.vm_new = show_vm;
    ops.vcpu_set = show_cpu0;
    return ops;
}

/* --- a machine --- */

struct machine {
    struct engine_ops ops;
    struct vm_config config;
    struct vm *vm;
    struct err err;
};

static void option(struct machine *m, const char *name, const char *value)
{
    if (config_set(&m->config, name, value, &m->err) != 0)
        printf("# --%s: %s\n", name, m->err.text);
}

static void configure(struct machine *m)
{
    *m = (struct machine){.ops = test_ops()};
    config_init(&m->config, &m->err);
    option(m, "kernel", kernel_path);
    option(m, "memory", "8M");
    option(m, "serial", "null");
    option(m, "net", "none");
    option(m, "exit-port", NULL);
}

static bool build(struct machine *m)
{
    int ret = config_finish(&m->config, &m->err);

    if (ret == 0)
        ret = vm_new_on(&m->vm, &m->config, &m->ops, &m->err);
    if (ret != 0)
        printf("# %s\n", m->err.text);
    return ret == 0;
}

static int run(struct machine *m)
{
    int status = vm_run(m->vm);

    vm_free(m->vm);
    config_fini(&m->config);
    return status;
}

static void out8(uint16_t port, uint8_t value)
{
    fake_pio_write(cpu0, port, 1, &value, 1);
}

static void power_off(void)
{
    uint16_t value = POWER_OFF;

    fake_pio_write(cpu0, PORT_CONTROL, 2, &value, 1);
}

/* On the vCPU's thread. */
static void pause_a_little(void *ctx)
{
    (void)ctx;
    usleep(20000);
}

/* --- ends --- */

static void test_power_off(void)
{
    struct machine m;

    configure(&m);
    ok(build(&m), "a machine");
    struct cpu_regs regs;
    engine_fake.vcpu_get(cpu0, &regs, NULL);
    is_int(regs.rip, LAYOUT_KERNEL_MIN, "vCPU 0 stands at the kernel's entry point");
    power_off();
    out8(LAYOUT_PORT_EXIT, 1); /* never executed */
    is_int(run(&m), VM_END_POWEROFF, "power-off");
}

static void test_exit_port(void)
{
    static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
    struct machine m;

    for (size_t i = 0; i < ARRAY_LEN(values); i++) {
        configure(&m);
        build(&m);
        out8(LAYOUT_PORT_EXIT, values[i]);
        is_int(run(&m), (values[i] << 1 | 1) & 0xff, "exit port");
    }
}

static void test_resets(void)
{
    struct machine m;

    configure(&m);
    option(&m, "on-reboot", "exit");
    build(&m);
    out8(LAYOUT_PORT_RESET, RESET);
    is_int(run(&m), VM_END_REBOOT, "a reset with --on-reboot exit");

    configure(&m);
    build(&m);
    fake_events_clear(engine);
    out8(LAYOUT_PORT_RESET, RESET);
    out8(0x64, 0xfe); /* the keyboard controller's way */
    power_off();
    vm_run(m.vm);
    is_int(fake_event_count(engine, FAKE_VM_RESET), 2, "two resets restart the machine twice");
    is_int(fake_event_count(engine, FAKE_VCPU_RESET), 2, "with its vCPU");
    struct cpu_regs regs;
    engine_fake.vcpu_get(cpu0, &regs, NULL);
    is_int(regs.rip, LAYOUT_KERNEL_MIN, "at the kernel's entry point");
    vm_free(m.vm);
    config_fini(&m.config);
}

/* One instruction (rep outsb) that asks for the same again and again, while the main loop already
 * works on the first. */
static void test_repeated_reset(void)
{
    static uint8_t values[20000];
    struct machine m;

    for (size_t i = 0; i < sizeof(values); i++)
        values[i] = i & 1 ? 0 : RESET; /* it is the rising edge that resets */
    configure(&m);
    build(&m);
    fake_pio_write(cpu0, LAYOUT_PORT_RESET, 1, values, sizeof(values));
    fake_call(cpu0, pause_a_little, NULL);
    power_off();
    is_int(run(&m), VM_END_POWEROFF, "the machine goes on after a burst of resets");
}

static void test_panic(void)
{
    struct machine m;

    configure(&m);
    build(&m);
    out8(LAYOUT_PORT_PVPANIC, PANICKED);
    is_int(run(&m), VM_END_PANIC, "panic");

    configure(&m);
    build(&m);
    out8(LAYOUT_PORT_PVPANIC, CRASH_LOADED);
    power_off();
    is_int(run(&m), VM_END_POWEROFF, "a crash kernel goes on");

    configure(&m);
    option(&m, "on-panic", "continue");
    build(&m);
    out8(LAYOUT_PORT_PVPANIC, PANICKED);
    power_off();
    is_int(run(&m), VM_END_POWEROFF, "--on-panic continue");

    configure(&m);
    option(&m, "on-panic", "restart");
    build(&m);
    out8(LAYOUT_PORT_PVPANIC, PANICKED);
    power_off();
    is_int(run(&m), VM_END_POWEROFF, "--on-panic restart");
}

static void test_engine_exits(void)
{
    struct machine m;

    configure(&m);
    build(&m);
    fake_exit(cpu0, ENGINE_EXIT_TRIPLE_FAULT, NULL);
    is_int(run(&m), VM_END_TRIPLE_FAULT, "triple fault");

    configure(&m);
    option(&m, "on-triple-fault", "restart");
    build(&m);
    fake_exit(cpu0, ENGINE_EXIT_TRIPLE_FAULT, NULL);
    power_off();
    is_int(run(&m), VM_END_POWEROFF, "--on-triple-fault restart");

    configure(&m);
    build(&m);
    fake_exit(cpu0, ENGINE_EXIT_FAILURE, "a test's failure\nregisters");
    is_int(run(&m), VM_END_FAILURE, "the engine fails");
}

/* A kernel that vanished: the restart fails, and the machine ends. */
static void test_restart_fails(void)
{
    char path[40];
    struct machine m;

    snprintf(path, sizeof(path), "%s.2", kernel_path);
    if (link(kernel_path, path) != 0)
        printf("# link: %s\n", strerror(errno));
    configure(&m);
    option(&m, "kernel", path);
    build(&m);
    unlink(path);
    out8(LAYOUT_PORT_RESET, RESET);
    is_int(run(&m), VM_END_FAILURE, "a restart that fails");
}

/* --- signals --- */

static void signal_self(void *number)
{
    kill(getpid(), (int)(uintptr_t)number);
}

static void queue_signal(int number)
{
    fake_call(cpu0, signal_self, (void *)(uintptr_t)number);
}

static void test_signals(void)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    struct machine m;

    for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
        configure(&m);
        build(&m);
        queue_signal(numbers[i]);
        is_int(run(&m), 128 + numbers[i], strsignal(numbers[i]));
    }

    configure(&m);
    build(&m);
    kill(getpid(), SIGTERM);
    is_int(run(&m), 128 + SIGTERM, "a signal before the start is not lost");
}

/* A guest that resets all the time must not outlive its user's wish. */
static void test_signal_beside_reset(void)
{
    bool all = true;

    for (int i = 0; i < 40; i++) {
        struct machine m;
        configure(&m);
        build(&m);
        if (i & 1)
            queue_signal(SIGTERM);
        out8(LAYOUT_PORT_RESET, RESET);
        if (!(i & 1))
            queue_signal(SIGTERM);
        alarm(20);
        all &= run(&m) == 128 + SIGTERM;
        alarm(0);
    }
    ok(all, "a signal that comes with a reset ends the machine");
}

/* nohup, and a script's background jobs: the signal must do nothing. */
static void test_ignored_signal(void)
{
    struct machine m;

    signal(SIGHUP, SIG_IGN);
    configure(&m);
    build(&m);
    queue_signal(SIGHUP);
    fake_call(cpu0, pause_a_little, NULL); /* the main loop would have read it by then */
    power_off();
    is_int(run(&m), VM_END_POWEROFF, "an ignored signal is ignored");
    signal(SIGHUP, SIG_DFL);
}

struct button {
    struct engine_vm *engine;
    struct engine_upcalls upcalls;
    void *ctx;
    bool told;
};

/* The guest's driver, on the vCPU's thread: enables the button and waits for it. */
static void wait_for_button(void *ctx)
{
    struct button *button = ctx;
    const uint64_t end = clock_now_ns() + WAIT_NS;
    uint16_t enable = PM1_POWER_BUTTON, status = 0;

    button->upcalls.pio_write(button->ctx, LAYOUT_PORT_PM_BASE + 2, 2, &enable, 1);
    kill(getpid(), SIGUSR1);
    while (!(status & PM1_POWER_BUTTON) && clock_now_ns() < end)
        button->upcalls.pio_read(button->ctx, LAYOUT_PORT_PM_BASE, 2, &status, 1);
    button->told = (status & PM1_POWER_BUTTON) && fake_gsi_level(button->engine, PM_SCI_GSI);
}

static void test_power_button(void)
{
    struct machine m;

    configure(&m);
    build(&m);
    struct button button = {.engine = engine, .upcalls = upcalls, .ctx = upcall_ctx};
    fake_call(cpu0, wait_for_button, &button);
    power_off();
    is_int(run(&m), VM_END_POWEROFF, "SIGUSR1 does not end the machine");
    ok(button.told, "it presses the power button");
}

/* In a child: fn in place of a run; its status, and whether it ended within some seconds. */
static int status_of_child(void (*fn)(void))
{
    int status = -1;

    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        fn();
        _exit(99);
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static char fifo_path[40];

static void *kill_later(void *number)
{
    usleep(100000);
    kill(getpid(), (int)(uintptr_t)number);
    return NULL;
}

/* A kernel from a pipe that nobody writes to. */
static void build_from_fifo(void)
{
    struct machine m;
    pthread_t thread;
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_create(&thread, NULL, kill_later, (void *)(uintptr_t)SIGINT);
    pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    configure(&m);
    option(&m, "kernel", fifo_path);
    build(&m);
}

static void test_signal_while_building(void)
{
    snprintf(fifo_path, sizeof(fifo_path), "%s.3", kernel_path);
    is_int(mkfifo(fifo_path, 0600), 0, "a FIFO");
    is_int(status_of_child(build_from_fifo), 128 + SIGINT, "Ctrl-C while a kernel is awaited");
    unlink(fifo_path);
}

static void quit_core(void)
{
    struct machine m;
    struct rlimit none = {0};

    setrlimit(RLIMIT_CORE, &none);
    configure(&m);
    build(&m);
    queue_signal(SIGQUIT);
    run(&m);
}

static void test_fatal_signal(void)
{
    is_int(status_of_child(quit_core), -SIGQUIT, "a fatal signal takes its course");
}

/* --- what is left behind --- */

static unsigned count_entries(const char *path)
{
    unsigned count = 0;
    DIR *dir = opendir(path);

    while (dir && readdir(dir))
        count++;
    if (dir)
        closedir(dir);
    return count;
}

static void test_failures(void)
{
    static const enum fake_event_kind kinds[] = {FAKE_MAP, FAKE_VM_RESET, FAKE_VCPU_RESET,
                                                 FAKE_VCPU_SET};
    struct machine m;
    sigset_t before, after;

    pthread_sigmask(SIG_BLOCK, NULL, &before);
    unsigned fds = count_entries("/proc/self/fd"), threads = count_entries("/proc/self/task");
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        configure(&m);
        option(&m, "cpus", "3");
        fail_kind = kinds[i];
        ok(!build(&m) && m.err.code == -EIO && m.err.text[0], "the engine refuses");
        config_fini(&m.config);
    }
    fail_kind = FAKE_EVENT_KINDS;

    static const char *const bad[][2] = {
        {"kernel", "/nonexistent"   },
        {"kernel", "/dev/null"      },
        {"kernel", "/"              },
        {"initrd", "/nonexistent"   },
        {"disk",   "/nonexistent"   },
        {"serial", "file:/"         },
        {"cpus",   "300"            },
        {"memory", "100T"           },
        {"net",    "tap=nosuchtap/0"},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        configure(&m);
        option(&m, bad[i][0], bad[i][1]);
        ok(!build(&m) && m.err.text[0], bad[i][1]);
        config_fini(&m.config);
    }
    is_int(count_entries("/proc/self/fd"), fds, "no file is left open");
    is_int(count_entries("/proc/self/task"), threads, "and no thread");
    pthread_sigmask(SIG_BLOCK, NULL, &after);
    ok(sigismember(&before, SIGTERM) == sigismember(&after, SIGTERM), "signals as they were");

    struct vm *vm;
    configure(&m);
    option(&m, "engine", "steam");
    config_finish(&m.config, &m.err);
    is_int(vm_new(&vm, &m.config, &m.err), -EINVAL, "an engine that does not exist");
    config_fini(&m.config);
}

/* --- two machines --- */

static void test_two_machines(void)
{
    struct machine a, b;

    configure(&a);
    build(&a);
    struct engine_vcpu *cpu_a = cpu0;
    configure(&b);
    build(&b);
    out8(LAYOUT_PORT_EXIT, 2);
    cpu0 = cpu_a;
    out8(LAYOUT_PORT_EXIT, 1);
    is_int(run(&a), 3, "one machine");
    is_int(run(&b), 5, "and another that was there at the same time");
}

static void *life(void *arg)
{
    struct machine m;
    int *status = arg;

    configure(&m);
    option(&m, "cpus", "2");
    if (!build(&m))
        return NULL;
    for (int i = 0; i < 5; i++)
        out8(LAYOUT_PORT_RESET, RESET);
    out8(LAYOUT_PORT_EXIT, 3);
    *status = run(&m);
    return NULL;
}

static void test_side_by_side(void)
{
    pthread_t threads[2];
    int status[2] = {-1, -1};

    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, life, &status[i]);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    ok(status[0] == 7 && status[1] == 7, "two machines on two threads");
}

int main(void)
{
    struct elf_spec spec = {
        .paddr = LAYOUT_KERNEL_MIN, .entry = LAYOUT_KERNEL_MIN, .text_len = 64, .pvh_note = true};
    static uint8_t image[IMAGE_ELF_MAX];
    struct boot_image kernel = make_elf(image, &spec);
    static const int ends[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT};
    struct err err = ERR_INIT;

    /* What our parent ignores (nohup, a job in the background), the VM would ignore too. */
    for (size_t i = 0; i < ARRAY_LEN(ends); i++)
        signal(ends[i], SIG_DFL);
    log_configure("error", &err);
    write_file(kernel_path, kernel.bytes, kernel.len);
    test_power_off();
    test_exit_port();
    test_resets();
    test_repeated_reset();
    test_panic();
    test_engine_exits();
    test_restart_fails();
    test_signals();
    test_signal_beside_reset();
    test_ignored_signal();
    test_power_button();
    test_signal_while_building();
    test_fatal_signal();
    test_failures();
    test_two_machines();
    test_side_by_side();
    unlink(kernel_path);
    return tap_done();
}
