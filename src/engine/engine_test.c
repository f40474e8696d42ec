/* SPDX-License-Identifier: Apache-2.0 */
/* What every engine promises, by real-mode stubs of a few instructions: on the soft engine, and on
 * whatever /dev/kvm this machine has. */
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "engine/engine.h"
#include "engine/kvm/host.h"
#include "mem/mem.h"

#define RAM_LEN   (MIB)
#define CODE      0x1000
#define DATA      0x2000
#define MMIO_BASE 0xe0000000ULL /* DS of the stubs that access devices */
#define APIC_BASE 0xfee00000ULL

/* Ports that the upcalls of this test know. */
#define PORT_DATA 0x80 /* recorded; reads answer 0x1234... */
#define PORT_MARK 0x98 /* counted */
#define PORT_KICK 0x99 /* kicks the vCPU that writes */

#define STUB(name, text)                                                                           \
    extern const uint8_t name[], name##_end[];                                                     \
    __asm__(".pushsection .rodata\n.code16\n" #name ":\n" text "\n" #name                          \
            "_end:\n.code64\n.popsection\n")

#define ACCESSES_MAX 64

struct access {
    char kind; /* 'i' 'o' port, 'r' 'w' memory */
    uint64_t addr;
    unsigned size;
    uint32_t count;
    uint64_t value;
};

static const struct engine_ops *engine; /* under test */

static bool is_kvm(void)
{
    return engine == &engine_kvm;
}

struct machine {
    struct mem *mem;
    struct engine_vm *vm;
    struct engine_vcpu *cpu[2];
    struct access accesses[ACCESSES_MAX];
    unsigned access_count;
    int marks; /* atomic */
    int kick_cpu;
    bool kick_on_read;
    sigset_t blocked; /* signals, during the last access */
};

static void record(struct machine *m, char kind, uint64_t addr, unsigned size, uint32_t count,
                   const void *data)
{
    pthread_sigmask(SIG_BLOCK, NULL, &m->blocked);
    if (m->access_count < ACCESSES_MAX)
        m->accesses[m->access_count++] = (struct access){
            .kind = kind, .addr = addr, .size = size, .count = count, .value = load_le(data, size)};
}

static void pio_read(void *ctx, uint16_t port, unsigned size, void *data, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        store_le((uint8_t *)data + i * size, 0x1122334455667788ULL + i, size);
    record(ctx, 'i', port, size, count, data);
    if (((struct machine *)ctx)->kick_on_read)
        engine->vcpu_kick(((struct machine *)ctx)->cpu[0]);
}

static void pio_write(void *ctx, uint16_t port, unsigned size, const void *data, uint32_t count)
{
    struct machine *m = ctx;
    if (port == PORT_MARK)
        __atomic_fetch_add(&m->marks, 1, __ATOMIC_SEQ_CST);
    else if (port == PORT_KICK)
        engine->vcpu_kick(m->cpu[m->kick_cpu]);
    else
        record(m, 'o', port, size, count, data);
}

static void mmio_read(void *ctx, gpa_t gpa, unsigned size, void *data)
{
    store_le(data, 0x1122334455667788ULL, size);
    record(ctx, 'r', gpa.a, size, 1, data);
}

static void mmio_write(void *ctx, gpa_t gpa, unsigned size, const void *data)
{
    record(ctx, 'w', gpa.a, size, 1, data);
}

static const struct engine_upcalls upcalls = {pio_read, pio_write, mmio_read, mmio_write};

static void die(const struct err *err)
{
    printf("Bail out! %s\n", err->text);
    exit(1);
}

static struct machine *machine_new(unsigned vcpu_count)
{
    struct machine *m = calloc(1, sizeof(*m));
    struct err err = ERR_INIT;
    const struct engine_vm_config config = {
        .vcpu_count = vcpu_count, .upcalls = &upcalls, .upcall_ctx = m};
    if (!m || mem_new(&m->mem, &(struct mem_options){0}, &err) < 0 ||
        mem_add_ram(m->mem, "ram", GPA(0), RAM_LEN, &err) < 0 ||
        mem_add_rom(m->mem, "rom", GPA(16 * MIB), 64 * KIB, &err) < 0 ||
        engine->vm_new(&m->vm, &config, &err) < 0 ||
        engine->map(m->vm, 0, mem_region_at(m->mem, 0), &err) < 0 ||
        engine->map(m->vm, 1, mem_region_at(m->mem, 1), &err) < 0)
        die(&err);
    for (unsigned i = 0; i < vcpu_count; i++) {
        if (engine->vcpu_new(m->vm, i, &m->cpu[i], &err) < 0)
            die(&err);
    }
    return m;
}

static void machine_free(struct machine *m)
{
    for (int i = 0; i < 2; i++)
        engine->vcpu_free(m->cpu[i]);
    engine->vm_free(m->vm);
    mem_free(m->mem);
    free(m);
}

/* Point vCPU 0 at a stub, real mode, DS with the given base, interrupts off. */
static void load(struct machine *m, const uint8_t *code, const uint8_t *end, uint64_t ds)
{
    struct cpu_regs regs;
    struct cpu_sregs sregs;
    mem_write(m->mem, GPA(CODE), code, (uint64_t)(end - code));
    engine->vcpu_get(m->cpu[0], &regs, &sregs);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    sregs.ds.base = ds;
    sregs.ds.selector = (uint16_t)(ds >> 4);
    memset(&regs, 0, sizeof(regs));
    regs.rip = CODE;
    regs.rflags = 2;
    regs.gpr[CPU_RSP] = 0x8000;
    is_int(engine->vcpu_set(m->cpu[0], &regs, &sregs), 0, "set the registers for a stub");
    m->access_count = 0;
}

#define LOAD(m, stub, ds) load((m), stub, stub##_end, (ds))

/* Run until the stub's write to PORT_KICK. */
static bool run(struct machine *m, const char *what)
{
    struct engine_exit exit;
    engine->vcpu_run(m->cpu[0], &exit);
    bool kicked = exit.kind == ENGINE_EXIT_KICK;
    ok(kicked, what);
    if (!kicked)
        printf("# exit %d %s\n", exit.kind, exit.text);
    return kicked;
}

static bool saw(const struct machine *m, unsigned index, struct access want)
{
    const struct access *a = &m->accesses[index];
    bool same = index < m->access_count && a->kind == want.kind && a->addr == want.addr &&
                a->size == want.size && a->count == want.count && a->value == want.value;
    if (!same)
        printf("# access %u of %u: %c 0x%llx size %u count %u value 0x%llx\n", index,
               m->access_count, a->kind ? a->kind : '-', (unsigned long long)a->addr, a->size,
               a->count, (unsigned long long)a->value);
    return same;
}

STUB(stub_pio, "movb $0x5a, %al; outb %al, $0x80\n"
               "movw $0x1234, %ax; outw %ax, $0x80\n"
               "movl $0x12345678, %eax; outl %eax, $0x80\n"
               "inb $0x80, %al; movb %al, 0x2000\n"
               "inl $0x80, %eax; movl %eax, 0x2004\n"
               "cld; movw $0x2000, %si; movw $4, %cx; movw $0x80, %dx; rep outsb\n"
               "movw $0x2010, %di; movw $3, %cx; rep insw\n"
               "outb %al, $0x99; hlt");

static void test_pio(void)
{
    struct machine *m = machine_new(1);
    LOAD(m, stub_pio, 0);
    run(m, "a stub of port accesses runs");
    ok(saw(m, 0, (struct access){'o', 0x80, 1, 1, 0x5a}), "out of a byte");
    ok(saw(m, 1, (struct access){'o', 0x80, 2, 1, 0x1234}), "out of a word");
    ok(saw(m, 2, (struct access){'o', 0x80, 4, 1, 0x12345678}), "out of a doubleword");
    uint32_t got = 0;
    mem_read(m->mem, GPA(DATA), &got, 1);
    is_int(got, 0x88, "in of a byte");
    mem_read(m->mem, GPA(DATA + 4), &got, 4);
    is_int(got, 0x55667788, "in of a doubleword");
    /* How KVM cuts a string operation up is its affair; the elements are what counts. */
    uint32_t out = 0, in = 0;
    for (unsigned i = 5; i < m->access_count; i++) {
        out += m->accesses[i].kind == 'o' ? m->accesses[i].count : 0;
        in += m->accesses[i].kind == 'i' ? m->accesses[i].count : 0;
    }
    is_int(out, 4, "rep outsb gives its bytes");
    ok(in >= 3, "rep insw takes its words");
    mem_read(m->mem, GPA(DATA + 0x10), &got, 2);
    is_int(got & 0xffff, 0x7788, "and stores them");
    if (!is_kvm())
        ok(sigismember(&m->blocked, SIGALRM) && !sigismember(&m->blocked, SIGSEGV),
           "signals wait, but not those of faults");
    machine_free(m);
}

STUB(stub_mmio, "movl $0xcafe1234, %eax; movl %eax, 0x10\n"
                "movb %al, 0x20\n"
                "movw 0x30, %bx; movw %bx, %es:0x2000\n"
                "outb %al, $0x99; hlt");

static void test_mmio(void)
{
    struct machine *m = machine_new(1);
    LOAD(m, stub_mmio, MMIO_BASE);
    run(m, "a stub of memory-mapped accesses runs");
    ok(saw(m, 0, (struct access){'w', MMIO_BASE + 0x10, 4, 1, 0xcafe1234}), "a write of 4 bytes");
    ok(saw(m, 1, (struct access){'w', MMIO_BASE + 0x20, 1, 1, 0x34}), "a write of a byte");
    ok(saw(m, 2, (struct access){'r', MMIO_BASE + 0x30, 2, 1, 0x7788}), "a read of 2 bytes");
    uint16_t got = 0;
    mem_read(m->mem, GPA(DATA), &got, 2);
    is_int(got, 0x7788, "what was read reaches the guest");

    LOAD(m, stub_mmio, 16 * MIB);
    run(m, "the same on a ROM");
    ok(saw(m, 0, (struct access){'w', 16 * MIB + 0x10, 4, 1, 0xcafe1234}),
       "a write to a ROM comes as an upcall");
    uint32_t rom = 1;
    mem_read(m->mem, GPA(16 * MIB + 0x10), &rom, 4);
    is_int(rom, 0, "and does not change it");
    is_int(m->access_count, 2, "a read of a ROM is none");
    machine_free(m);
}

STUB(stub_ud2, "ud2");
STUB(stub_bad, "pmulhw 0x10, %mm1; hlt");

/* 64-bit mode with an identity map of the first 2 MiB at 0x10000. */
static void enter_long_mode(struct machine *m, struct cpu_sregs *s)
{
    const uint64_t pml4 = 0x11000 | 3, pdpt = 0x12000 | 3, pd = 0x80 | 3;
    mem_write(m->mem, GPA(0x10000), &pml4, 8);
    mem_write(m->mem, GPA(0x11000), &pdpt, 8);
    mem_write(m->mem, GPA(0x12000), &pd, 8);
    const struct cpu_segment data = {.limit = 0xffffffff, .selector = 16, .attr = CPU_SEG_DATA};
    s->cs = (struct cpu_segment){.limit = 0xffffffff, .selector = 8, .attr = CPU_SEG_CODE64};
    s->ds = s->es = s->fs = s->gs = s->ss = data;
    s->cr0 |= CPU_CR0_PE | CPU_CR0_PG;
    s->cr3 = 0x10000;
    s->cr4 |= CPU_CR4_PAE;
    s->efer |= CPU_EFER_LME | CPU_EFER_LMA;
}

static void test_failures(void)
{
    struct machine *m = machine_new(1);
    struct engine_exit exit;
    struct cpu_regs regs;
    struct cpu_sregs sregs;
    LOAD(m, stub_ud2, 0);
    engine->vcpu_get(m->cpu[0], NULL, &sregs);
    enter_long_mode(m, &sregs);
    sregs.idt.limit = 0;
    is_int(engine->vcpu_set(m->cpu[0], NULL, &sregs), 0, "enter 64-bit mode");
    engine->vcpu_run(m->cpu[0], &exit);
    is_int(exit.kind, ENGINE_EXIT_TRIPLE_FAULT, "an exception without a vector is a triple fault");

    struct err err = ERR_INIT;
    is_int(engine->vcpu_reset(m->cpu[0], &err), 0, "a vCPU is reset after a triple fault");
    engine->vcpu_get(m->cpu[0], &regs, &sregs);
    is_int(regs.rip, 0xfff0, "it starts at the reset vector again");
    is_int(sregs.idt.limit, 0xffff, "its IDT is that after reset");

    if (!is_kvm()) { /* there is no instruction that the soft engine cannot go on with */
        machine_free(m);
        return;
    }
    LOAD(m, stub_bad, MMIO_BASE);
    engine->vcpu_run(m->cpu[0], &exit);
    is_int(exit.kind, ENGINE_EXIT_FAILURE, "an instruction that KVM cannot emulate is a failure");
    printf("# %.76s\n", exit.text);
    ok(strstr(exit.text, "emulate") != NULL, "the text says so");
    ok(strstr(exit.text, "rip 0000000000001000") != NULL, "it has the registers");
    ok(strstr(exit.text, "ds  0000  base 00000000e0000000") != NULL, "it has the segments");
    ok(strstr(exit.text, "instruction 0f e5 0e 10 00") != NULL, "it has the instruction's bytes");
    machine_free(m);
}

STUB(stub_spin, "1: incl 0x2000; jmp 1b");
STUB(stub_hlt, "1: hlt; jmp 1b");

struct runner {
    pthread_t thread;
    struct engine_vcpu *cpu;
    sem_t returned;
    int stop; /* atomic */
    int other_exits;
};

static void *runner_run(void *arg)
{
    struct runner *r = arg;
    while (!__atomic_load_n(&r->stop, __ATOMIC_SEQ_CST)) {
        struct engine_exit exit;
        engine->vcpu_run(r->cpu, &exit);
        if (exit.kind != ENGINE_EXIT_KICK)
            r->other_exits++;
        sem_post(&r->returned);
    }
    return NULL;
}

static void runner_start(struct runner *r, struct engine_vcpu *cpu)
{
    *r = (struct runner){.cpu = cpu};
    sem_init(&r->returned, 0, 0);
    pthread_create(&r->thread, NULL, runner_run, r);
}

static void runner_stop(struct runner *r)
{
    __atomic_store_n(&r->stop, 1, __ATOMIC_SEQ_CST);
    engine->vcpu_kick(r->cpu);
    pthread_join(r->thread, NULL);
    sem_destroy(&r->returned);
}

static bool wait_returned(struct runner *r)
{
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += 10;
    while (sem_timedwait(&r->returned, &limit) < 0) {
        if (errno != EINTR)
            return false;
    }
    return true;
}

/* Each kick ends one run, at whatever moment it comes. */
static void kick_races(struct machine *m, unsigned rounds, const char *what)
{
    struct runner r;
    runner_start(&r, m->cpu[0]);
    unsigned i, seed = 1;
    for (i = 0; i < rounds; i++) {
        seed = seed * 1103515245 + 12345;
        for (unsigned spin = seed >> 16 & 0xfff; spin > 0; spin--)
            __asm__ volatile("" ::: "memory");
        engine->vcpu_kick(m->cpu[0]);
        if (!wait_returned(&r))
            break;
    }
    is_int(i, rounds, what);
    runner_stop(&r);
    is_int(r.other_exits, 0, "and every return was a kick");
}

STUB(stub_in, "inb $0x80, %al; outb %al, $0x99; hlt");

static void test_kick(void)
{
    struct machine *m = machine_new(2);
    LOAD(m, stub_spin, 0);
    kick_races(m, 10000, "10,000 kicks of a busy vCPU");
    LOAD(m, stub_hlt, 0);
    kick_races(m, 2000, "2,000 kicks of a halted vCPU");

    struct engine_exit exit;
    engine->vcpu_kick(m->cpu[0]);
    engine->vcpu_kick(m->cpu[0]);
    engine->vcpu_run(m->cpu[0], &exit);
    is_int(exit.kind, ENGINE_EXIT_KICK, "a kick before the run ends it");
    struct runner r;
    runner_start(&r, m->cpu[0]);
    struct timespec pause = {.tv_nsec = 20 * NS_PER_MS};
    nanosleep(&pause, NULL);
    ok(sem_trywait(&r.returned) < 0, "two kicks before a run are one");
    runner_stop(&r);

    runner_start(&r, m->cpu[1]);
    nanosleep(&pause, NULL);
    engine->vcpu_kick(m->cpu[1]);
    ok(wait_returned(&r), "a vCPU that waits for SIPI is kicked");
    runner_stop(&r);
    machine_free(m);
}

/* The registers after a kick that came in the middle of an access. */
static void test_get_after_access(void)
{
    struct machine *m = machine_new(1);
    m->kick_on_read = true;
    LOAD(m, stub_in, 0);
    run(m, "kicked in the middle of an IN");
    struct cpu_regs regs;
    is_int(engine->vcpu_get(m->cpu[0], &regs, NULL), 0, "read the registers");
    is_int(regs.gpr[CPU_RAX] & 0xff, 0x88, "the IN is complete");
    is_int(regs.rip, CODE + 2, "and is behind");
    is_int(m->access_count, 1, "it was made once");
    run(m, "the stub goes on");
    is_int(m->access_count, 1, "without making it again");
    machine_free(m);
}

/* A string input that is kicked has reached memory when vcpu_run returns, not later. */
STUB(stub_insb, "xorw %ax, %ax; movw %ax, %es; movw $0x2000, %di; movw $0x80, %dx; insb\n"
                "outb %al, $0x99; hlt");

static void test_kick_finishes_access(void)
{
    struct machine *m = machine_new(1);
    uint8_t byte = 0;
    m->kick_on_read = true;
    LOAD(m, stub_insb, 0);
    run(m, "kicked in the middle of an INS");
    mem_read(m->mem, GPA(DATA), &byte, 1);
    is_int(byte, 0x88, "its byte is in memory");
    is_int(m->access_count, 1, "it was read once");
    m->kick_on_read = false;
    run(m, "the stub goes on");
    is_int(m->access_count, 1, "without reading it again");
    machine_free(m);
}

/* The processor's name, by CPUID, as the processor itself says. */
STUB(stub_name, "movl $0x80000002, %eax; cpuid; movl %eax, 0x2000; outb %al, $0x99; hlt");

static void test_processor_name(void)
{
    struct machine *m = machine_new(1);
    uint32_t want = 0, unused, got = 0;
    if (!__get_cpuid(0x80000002, &want, &unused, &unused, &unused))
        want = 0;
    LOAD(m, stub_name, 0);
    run(m, "a stub asks for the processor's name");
    mem_read(m->mem, GPA(DATA), &got, sizeof(got));
    is_int(got, want, "the guest sees it");
    machine_free(m);
}

/* Set the paravirtual clock's page and a few other things, then kick. */
STUB(stub_dirty_state, "movl $0x4b564d01, %ecx; movl $0x3001, %eax; xorl %edx, %edx; wrmsr\n"
                       "movl $0x277, %ecx; movl $0x00070106, %eax; wrmsr\n"
                       "movl $0xdeadbeef, %ebp; movl %ebp, %dr0\n"
                       "outb %al, $0x99; 1: jmp 1b");
STUB(stub_read_pat, "movl $0x277, %ecx; rdmsr; movl %eax, 0x2000; movl %edx, 0x2004\n"
                    "movl %dr0, %eax; movl %eax, 0x2008\n"
                    "movl $0x2ff, %ecx; rdmsr; movl %eax, 0x200c\n"
                    "outb %al, $0x99; hlt");

/* Without the padding of the structs. */
static bool same_sregs(const struct cpu_sregs *a, const struct cpu_sregs *b)
{
    return memcmp(&a->cs, &b->cs, 8 * sizeof(a->cs)) == 0 && a->gdt.base == b->gdt.base &&
           a->gdt.limit == b->gdt.limit && a->idt.base == b->idt.base &&
           a->idt.limit == b->idt.limit && memcmp(&a->cr0, &b->cr0, 7 * sizeof(a->cr0)) == 0;
}

static void test_reset(void)
{
    struct machine *m = machine_new(1);
    struct err err = ERR_INIT;
    struct cpu_regs before, after;
    struct cpu_sregs s_before, s_after;
    engine->vcpu_get(m->cpu[0], &before, &s_before);
    is_int(before.rip, 0xfff0, "a new vCPU is at the reset vector");
    is_int(s_before.cs.base, 0xffff0000, "below 4 GiB");
    ok(before.gpr[CPU_RDX] != 0, "with the processor's signature in EDX");

    LOAD(m, stub_dirty_state, 0);
    run(m, "a stub changes its state");
    uint8_t page[64];
    engine->vcpu_kick(m->cpu[0]);
    run(m, "and enters the guest again");
    mem_read(m->mem, GPA(0x3000), page, sizeof(page));
    bool clock_wrote = false;
    for (size_t i = 0; i < sizeof(page); i++)
        clock_wrote |= page[i] != 0;
    ok(clock_wrote, "the clock is written into the guest's page");

    engine->vcpu_kick(m->cpu[0]);
    is_int(engine->vm_reset(m->vm, &err), 0, "reset the VM");
    is_int(engine->vcpu_reset(m->cpu[0], &err), 0, "reset the vCPU");
    engine->vcpu_get(m->cpu[0], &after, &s_after);
    ok(memcmp(&before, &after, sizeof(before)) == 0, "registers as after power-on");
    ok(same_sregs(&s_before, &s_after), "system registers, too");

    memset(page, 0xa5, sizeof(page));
    mem_write(m->mem, GPA(0x3000), page, sizeof(page));
    run(m, "the kick from before the reset");
    LOAD(m, stub_read_pat, 0);
    run(m, "a stub reads its state");
    uint32_t got[4];
    mem_read(m->mem, GPA(DATA), got, sizeof(got));
    is_int(got[0], 0x00070406, "PAT is that after reset, low");
    is_int(got[1], 0x00070406, "... high");
    is_int(got[2], 0, "debug registers, too");
    is_int(got[3], 0, "MTRRs stay off when the vCPU had run before its entry was set");
    uint8_t now[64];
    mem_read(m->mem, GPA(0x3000), now, sizeof(now));
    ok(memcmp(page, now, sizeof(now)) == 0, "the clock is not written any more");

    is_int(engine->vcpu_reset(m->cpu[0], &err), 0, "reset again");
    LOAD(m, stub_read_pat, 0);
    run(m, "a stub that is entered without firmware");
    mem_read(m->mem, GPA(DATA), got, sizeof(got));
    is_int(got[3], 0xc06, "finds the MTRRs as firmware leaves them");
    machine_free(m);
}

STUB(stub_write_pages, "movb $1, 0x3000; movb $1, 0x5fff; outb %al, $0x99; hlt");

static void test_dirty_log(void)
{
    struct machine *m = machine_new(1);
    struct err err = ERR_INIT;
    uint64_t map[RAM_LEN / 4096 / 64] = {0};
    is_int(engine->dirty_collect(m->vm, 0, map), -ENOENT, "nothing is logged at first");
    LOAD(m, stub_write_pages, 0);
    is_int(engine->dirty_start(m->vm, &err), 0, "start the log");
    run(m, "a stub writes two pages");
    is_int(engine->dirty_collect(m->vm, 0, map), 0, "collect");
    ok(bitmap_test(map, 3) && bitmap_test(map, 5), "the pages are in the log");
    ok(!bitmap_test(map, 2) && !bitmap_test(map, 4), "the ones between are not");
    memset(map, 0, sizeof(map));
    is_int(engine->dirty_collect(m->vm, 0, map), 0, "collect again");
    ok(!bitmap_test(map, 3), "collecting clears");
    LOAD(m, stub_write_pages, 0);
    run(m, "the stub writes again");
    map[0] = 1;
    engine->dirty_collect(m->vm, 0, map);
    ok(bitmap_test(map, 3) && bitmap_test(map, 0), "a second write is logged, ORed");
    is_int(engine->dirty_collect(m->vm, 1, map), 0, "a ROM is never dirty");
    is_int(engine->dirty_stop(m->vm, &err), 0, "stop the log");
    LOAD(m, stub_write_pages, 0);
    run(m, "memory is writable after the log");
    machine_free(m);
}

/* Local APIC on; the handler of vector 0x40 marks; wait with interrupts on. */
STUB(stub_apic, "xorw %ax, %ax; movw %ax, %es\n"
                "movw $0x1100, %es:0x100; movw $0, %es:0x102\n"
                "movl $0x1ff, %eax; movl %eax, 0xf0\n"
                "sti; 1: hlt; jmp 1b\n"
                ".org stub_apic + 0x100\n"
                "outb %al, $0x98\n"
                "xorl %eax, %eax; movl %eax, 0xb0; iretw");

static bool wait_marks(struct machine *m, int want)
{
    struct timespec pause = {.tv_nsec = NS_PER_MS};
    for (int i = 0; i < 5000 && __atomic_load_n(&m->marks, __ATOMIC_SEQ_CST) < want; i++)
        nanosleep(&pause, NULL);
    return __atomic_load_n(&m->marks, __ATOMIC_SEQ_CST) == want;
}

/* 1,000 interrupts a second from the interval timer by way of the PIC; each marks. */
STUB(stub_timer, "xorw %ax, %ax; movw %ax, %ds\n"
                 "movw $0x1100, 0x80; movw $0, 0x82\n"
                 "movb $0x11, %al; outb %al, $0x20; movb $0x20, %al; outb %al, $0x21\n"
                 "movb $4, %al; outb %al, $0x21; movb $1, %al; outb %al, $0x21\n"
                 "movb $0xfe, %al; outb %al, $0x21\n"
                 "movb $0x34, %al; outb %al, $0x43; movb $0xa9, %al; outb %al, $0x40\n"
                 "movb $4, %al; outb %al, $0x40\n"
                 "sti; 1: hlt; jmp 1b\n"
                 ".org stub_timer + 0x100\n"
                 "outb %al, $0x98; movb $0x20, %al; outb %al, $0x20; iretw");

static void test_timer(void)
{
    struct machine *m = machine_new(1);
    LOAD(m, stub_timer, 0);
    struct runner r;
    runner_start(&r, m->cpu[0]);
    struct timespec pause = {.tv_nsec = NS_PER_MS};
    for (int i = 0; i < 5000 && __atomic_load_n(&m->marks, __ATOMIC_SEQ_CST) < 20; i++)
        nanosleep(&pause, NULL);
    ok(__atomic_load_n(&m->marks, __ATOMIC_SEQ_CST) >= 20, "the interval timer goes on and on");

    is_int(engine->pit_connect(m->vm, false), 0, "disconnect it from its input");
    is_int(engine->pit_connect(m->vm, false), 0, "and again");
    pause.tv_nsec = 100 * NS_PER_MS;
    nanosleep(&pause, NULL);
    __atomic_store_n(&m->marks, 0, __ATOMIC_SEQ_CST);
    nanosleep(&pause, NULL);
    is_int(__atomic_load_n(&m->marks, __ATOMIC_SEQ_CST), 0, "it is silent");
    for (int i = 1; i <= 3; i++) {
        engine->gsi_set(m->vm, 0, true);
        bool arrived = wait_marks(m, i);
        engine->gsi_set(m->vm, 0, false);
        if (!arrived)
            break;
    }
    nanosleep(&pause, NULL);
    is_int(__atomic_load_n(&m->marks, __ATOMIC_SEQ_CST), 3,
           "each edge of the line is one interrupt");
    is_int(engine->pit_connect(m->vm, true), 0, "connect it again");
    pause.tv_nsec = NS_PER_MS;
    for (int i = 0; i < 5000 && __atomic_load_n(&m->marks, __ATOMIC_SEQ_CST) < 20; i++)
        nanosleep(&pause, NULL);
    ok(__atomic_load_n(&m->marks, __ATOMIC_SEQ_CST) >= 20, "it goes on as it was programmed");
    runner_stop(&r);
    machine_free(m);
}

static void test_messages(void)
{
    struct machine *m = machine_new(1);
    LOAD(m, stub_apic, APIC_BASE);
    struct runner r;
    runner_start(&r, m->cpu[0]);
    struct timespec pause = {.tv_nsec = 50 * NS_PER_MS};
    nanosleep(&pause, NULL);
    is_int(engine->msi_send(m->vm, APIC_BASE, 0x40), 0, "send a message");
    ok(wait_marks(m, 1), "it arrives");

    struct engine_irqfd irqfd, second;
    uint64_t one = 1;
    is_int(engine->irqfd_new(m->vm, &irqfd), 0, "an irqfd");
    is_int(engine->irqfd_new(m->vm, &second), 0, "another");
    ok(irqfd.route != second.route, "they have routes of their own");
    is_int(engine->irqfd_set(m->vm, &irqfd, APIC_BASE, 0x40, false), 0, "set it");
    ok(write(irqfd.fd, &one, 8) == 8 && wait_marks(m, 2), "its message arrives");
    is_int(engine->irqfd_set(m->vm, &irqfd, APIC_BASE, 0x40, true), 0, "mask it");
    is_int(engine->irqfd_set(m->vm, &irqfd, APIC_BASE, 0x40, true), 0, "and again");
    ok(write(irqfd.fd, &one, 8) == 8, "fire it");
    nanosleep(&pause, NULL);
    is_int(__atomic_load_n(&m->marks, __ATOMIC_SEQ_CST), 2, "masked, it is held back");
    is_int(engine->irqfd_set(m->vm, &irqfd, APIC_BASE, 0x40, false), 0, "unmask it");
    ok(wait_marks(m, 3), "unmasked, it arrives");
    engine->irqfd_free(m->vm, &irqfd);
    is_int(irqfd.fd, -1, "a freed irqfd has no descriptor");
    struct engine_irqfd many[70];
    bool all = true;
    for (size_t i = 0; i < ARRAY_LEN(many); i++)
        all &= engine->irqfd_new(m->vm, &many[i]) == 0 &&
               engine->irqfd_set(m->vm, &many[i], APIC_BASE, 0x40, false) == 0;
    ok(all, "70 irqfds");
    ok(write(many[69].fd, &one, 8) == 8 && wait_marks(m, 4), "the last one works");
    for (size_t i = 0; i < ARRAY_LEN(many); i++)
        engine->irqfd_free(m->vm, &many[i]);
    engine->irqfd_free(m->vm, &second);
    runner_stop(&r);
    machine_free(m);
}

STUB(stub_notify, "movb $7, %al; outb %al, $0x70\n"
                  "movw %ax, 0x40; movl %eax, 0x50\n"
                  "outb %al, $0x80; outb %al, $0x99; hlt");

static bool fired(int fd)
{
    uint64_t value;
    return read(fd, &value, sizeof(value)) == sizeof(value);
}

static void test_ioeventfd(void)
{
    struct machine *m = machine_new(1);
    int fd[3];
    for (int i = 0; i < 3; i++)
        fd[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    const struct engine_ioeventfd e[] = {
        {ENGINE_SPACE_PIO,  0x70,             1, fd[0]},
        {ENGINE_SPACE_MMIO, MMIO_BASE + 0x40, 2, fd[1]},
        {ENGINE_SPACE_MMIO, MMIO_BASE + 0x50, 0, fd[2]},
    };
    is_int(engine->ioeventfd_add(m->vm, &e[0]), 0, "an ioeventfd on a port");
    is_int(engine->ioeventfd_add(m->vm, &e[1]), 0, "one in memory space");
    bool any_length = engine->ioeventfd_add(m->vm, &e[2]) == 0;
    is_int(engine->ioeventfd_add(m->vm, &e[0]), -ENOTSUP, "a second at one place is refused");
    LOAD(m, stub_notify, MMIO_BASE);
    run(m, "a stub writes to them");
    ok(fired(fd[0]), "the port's fired");
    ok(fired(fd[1]), "the one in memory space fired");
    if (any_length)
        ok(fired(fd[2]), "the one of any width fired");
    else
        tap_skip("an ioeventfd of any width", "KVM_CAP_IOEVENTFD_ANY_LENGTH is lacking");
    is_int(m->access_count, any_length ? 1 : 2, "without an upcall");
    engine->ioeventfd_del(m->vm, &e[0]);
    LOAD(m, stub_notify, MMIO_BASE);
    run(m, "once more, after one was removed");
    ok(!fired(fd[0]), "it does not fire");
    ok(saw(m, 0, (struct access){'o', 0x70, 1, 1, 7}), "and the write comes as an upcall");
    engine->ioeventfd_del(m->vm, &e[1]);
    if (any_length)
        engine->ioeventfd_del(m->vm, &e[2]);
    for (int i = 0; i < 3; i++)
        close(fd[i]);
    machine_free(m);
}

/* IRQ 5 level-triggered; read the PIC's request register. */
STUB(stub_pic, "movb $0x20, %al; movw $0x4d0, %dx; outb %al, %dx\n"
               "movb $0x0a, %al; outb %al, $0x20; inb $0x20, %al; movb %al, 0x2000\n"
               "outb %al, $0x99; hlt");

static int pic_irr(struct machine *m)
{
    LOAD(m, stub_pic, 0);
    run(m, "a stub reads the PIC");
    uint8_t irr = 0;
    mem_read(m->mem, GPA(DATA), &irr, 1);
    return irr & 0x20;
}

static void test_lines(void)
{
    struct machine *m = machine_new(1);
    struct err err = ERR_INIT;
    is_int(pic_irr(m), 0, "IRQ 5 is low");
    is_int(engine->gsi_set(m->vm, 5, true), 0, "raise GSI 5");
    is_int(pic_irr(m), 0x20, "the PIC sees it");
    is_int(engine->pic_set(m->vm, 5, true), 0, "a PCI interrupt on the same input");
    engine->gsi_set(m->vm, 5, false);
    is_int(pic_irr(m), 0x20, "the input stays up for it");
    engine->pic_set(m->vm, 5, false);
    is_int(pic_irr(m), 0, "the last one lowers it");
    engine->pic_set(m->vm, 5, true);
    engine->gsi_set(m->vm, 5, true);
    engine->pic_set(m->vm, 5, false);
    is_int(pic_irr(m), 0x20, "the other way round");
    engine->gsi_set(m->vm, 5, false);
    is_int(pic_irr(m), 0, "likewise");
    is_int(engine->gsi_set(m->vm, 23, true), 0, "the IOAPIC's last input");
    is_int(engine->gsi_set(m->vm, 24, true), -EINVAL, "there is no input 24");
    is_int(engine->pic_set(m->vm, 16, true), -EINVAL, "the PIC has 16");
    engine->gsi_set(m->vm, 3, true); /* edge-triggered: a request that stays */
    is_int(engine->vm_reset(m->vm, &err), 0, "reset");
    uint8_t irr = 0xff;
    pic_irr(m);
    mem_read(m->mem, GPA(DATA), &irr, 1);
    is_int(irr, 0, "no request survives a reset");
    machine_free(m);
}

/*
 * A division by zero that is not masked, with CR0.NE clear: IRQ 13 at vector 0x75. Its handler
 * marks and writes to port 0xf0, behind which an x87 instruction is executed in spite of what is
 * pending; the second time it clears the exception before that write, which must then have no such
 * effect.
 */
STUB(stub_ferr,
     "movw $0x1100, 0x1d4; movw $0, 0x1d6\n"
     "movb $0x11, %al; outb %al, $0x20; outb %al, $0xa0\n"
     "movb $0x08, %al; outb %al, $0x21; movb $0x70, %al; outb %al, $0xa1\n"
     "movb $4, %al; outb %al, $0x21; movb $2, %al; outb %al, $0xa1\n"
     "movb $1, %al; outb %al, $0x21; outb %al, $0xa1\n"
     "movb $0xfb, %al; outb %al, $0x21; movb $0xdf, %al; outb %al, $0xa1\n"
     "fninit; movw $0x037b, 0x2010; fldcw 0x2010; xorw %bx, %bx; sti\n"
     "fld1; fldz; fdivrp; fwait\n"
     "fld1; fldz; fdivrp; fwait\n"
     "cli; movb $0x0a, %al; outb %al, $0xa0; inb $0xa0, %al; movb %al, 0x2008\n"
     "outb %al, $0x99; hlt\n"
     ".org stub_ferr + 0x100\n"
     "outb %al, $0x98; incw %bx; cmpw $2, %bx; je 1f\n"
     "outb %al, $0xf0; fnstsw 0x2000; fld1; fistps 0x2002; fnstsw 0x2004; fnclex; jmp 2f\n"
     "1: fnstsw 0x2006; fnclex; outb %al, $0xf0\n"
     "2: movb $0x20, %al; outb %al, $0xa0; outb %al, $0x20; iretw");

static void test_ferr(void)
{
    struct machine *m = machine_new(1);
    LOAD(m, stub_ferr, 0);
    if (run(m, "two x87 exceptions with CR0.NE clear")) {
        uint16_t data[5] = {0};
        mem_read(m->mem, GPA(DATA), data, sizeof(data));
        is_int(m->marks, 2, "each is one interrupt 13");
        is_int(data[0] & 0x8084, 0x8084, "it is pending in the handler");
        is_int(data[1], 1, "behind the write to port 0xf0 the processor goes on");
        is_int(data[2] & 0x8084, 0x8084, "and it is pending still");
        is_int(data[3] & 0x8084, 0x8084, "the second one is not ignored");
        is_int(data[4] & 0x20, 0, "the write to port 0xf0 has lowered IRQ 13");
    }
    machine_free(m);
}

static void test_fpu_state(void)
{
    struct machine *m = machine_new(1);
    struct cpu_fpu fpu, got;
    is_int(engine->vcpu_get_fpu(m->cpu[0], &fpu), 0, "read the FPU's state");
    is_int(load_le32(fpu.fxsave + 24), 0x1f80, "MXCSR after reset");
    store_le32(fpu.fxsave + 24, 0x1fa0);
    memset(fpu.fxsave + 160, 0x5a, 16);
    is_int(engine->vcpu_set_fpu(m->cpu[0], &fpu), 0, "set MXCSR and XMM0");
    fpu.fxsave[160] = 0;
    store_le32(fpu.fxsave + 24, 0x80001f80);
    is_int(engine->vcpu_set_fpu(m->cpu[0], &fpu), -EINVAL, "reserved bits of MXCSR are refused");
    is_int(engine->vcpu_get_fpu(m->cpu[0], &got), 0, "read it again");
    is_int(load_le32(got.fxsave + 24), 0x1fa0, "MXCSR is as it was set");
    ok(got.fxsave[160] == 0x5a && got.fxsave[175] == 0x5a, "and XMM0");
    machine_free(m);
}

/* INIT and SIPI (vector 8) to APIC id 1; id 1 marks and halts. */
STUB(stub_bsp, "movl $0x1ff, %eax; movl %eax, 0xf0\n"
               "movl $0x01000000, %eax; movl %eax, 0x310\n"
               "movl $0x4500, %eax; movl %eax, 0x300\n"
               "movl $0x4608, %eax; movl %eax, 0x300\n"
               "1: hlt; jmp 1b");
STUB(stub_ap, "outb %al, $0x98; cli; 1: hlt; jmp 1b");

static void test_smp(void)
{
    struct machine *m = machine_new(2);
    struct err err = ERR_INIT;
    for (int round = 0; round < 2; round++) {
        LOAD(m, stub_bsp, APIC_BASE);
        mem_write(m->mem, GPA(0x8000), stub_ap, (uint64_t)(stub_ap_end - stub_ap));
        struct runner bsp, ap;
        runner_start(&ap, m->cpu[1]);
        struct timespec pause = {.tv_nsec = 20 * NS_PER_MS};
        nanosleep(&pause, NULL);
        is_int(__atomic_load_n(&m->marks, __ATOMIC_SEQ_CST), round, "the second vCPU waits");
        runner_start(&bsp, m->cpu[0]);
        ok(wait_marks(m, round + 1), "INIT and SIPI start it");
        runner_stop(&bsp);
        runner_stop(&ap);
        is_int(ap.other_exits + bsp.other_exits, 0, "without another exit");
        engine->vm_reset(m->vm, &err);
        is_int(engine->vcpu_reset(m->cpu[1], &err), 0, "reset the second");
        is_int(engine->vcpu_reset(m->cpu[0], &err), 0, "reset the first");
    }
    machine_free(m);
}

static void test_measure(void)
{
    struct machine *m = calloc(1, sizeof(*m));
    struct err err = ERR_INIT;
    const struct engine_vm_config config = {.vcpu_count = 2, .upcalls = &upcalls, .upcall_ctx = m};
    if (!m || engine->vm_new(&m->vm, &config, &err) < 0)
        die(&err);
    if (mem_new(&m->mem, &(struct mem_options){0}, &err) < 0 ||
        mem_add_ram(m->mem, "ram", GPA(0), RAM_LEN, &err) < 0)
        die(&err);
    is_int(engine->map(m->vm, 0, mem_region_at(m->mem, 0), &err), 0, "map memory");
    struct engine_probe probe;
    engine->vm_measure(m->vm, &probe);
    printf("# %s\n", probe.why);
    ok(probe.quality != ENGINE_UNUSABLE, "KVM is measured");
    ok(probe.guest_kernel_mips > 0.01, "a speed comes out");
    is_int(probe.quality, probe.guest_kernel_mips >= 100 ? ENGINE_GOOD : ENGINE_SLOW,
           "and a judgement");
    if (engine->vcpu_new(m->vm, 0, &m->cpu[0], &err) < 0)
        die(&err);
    struct cpu_regs regs;
    struct cpu_sregs sregs;
    engine->vcpu_get(m->cpu[0], &regs, &sregs);
    ok(regs.rip == 0xfff0 && sregs.cr0 == 0x60000010 && sregs.efer == 0,
       "the vCPU is as new after it");
    is_int(engine->vcpu_reset(m->cpu[0], &err), 0, "the reset of a new machine");
    LOAD(m, stub_pio, 0);
    run(m, "and the vCPU runs");
    ok(engine->phys_bits(m->vm) >= 32, "physical address bits");
    ok(engine->vcpu_max(m->vm) >= 1, "vCPUs");
    machine_free(m);
}

static void test_refusals(void)
{
    struct engine_vm *vm;
    struct err err = ERR_INIT;
    is_int(engine->vm_new(&vm, &(struct engine_vm_config){.vcpu_count = 0}, &err), -EINVAL,
           "no vCPUs are refused");
    is_int(engine->vm_new(&vm, &(struct engine_vm_config){.vcpu_count = 100000}, &err), -EINVAL,
           "too many are refused");
}

static void test_engine(const struct engine_ops *ops)
{
    engine = ops;
    printf("# engine %s\n", ops->name);
    test_refusals();
    if (engine->vm_measure)
        test_measure();
    test_pio();
    test_mmio();
    test_failures();
    test_get_after_access();
    test_kick_finishes_access();
    if (is_kvm()) /* the processor is the host's */
        test_processor_name();
    test_reset();
    test_dirty_log();
    test_fpu_state();
    test_lines();
    if (!is_kvm()) /* an interrupt that KVM's processors do not have */
        test_ferr();
    test_ioeventfd();
    test_messages();
    test_timer();
    test_smp();
    test_kick();
}

int main(void)
{
    struct kvm_host host;
    struct err err = ERR_INIT;
    test_engine(&engine_soft);
    if (kvm_host_open(&host, &err) < 0) {
        tap_skip("the KVM engine", err.text);
        return tap_done();
    }
    kvm_host_close(&host);
    test_engine(&engine_kvm);
    return tap_done();
}
