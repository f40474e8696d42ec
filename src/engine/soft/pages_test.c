/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of loads and stores between who decodes a page and who writes to it: pages.c's header
 * has the argument. Here it is tried out: the one is stopped before each of its machine
 * instructions (single step of the host's processor), and the other does all of its work there.
 * Then both at once, in two threads, for what only two processors can do.
 *
 * What must hold: a block that is not stale has no bytes older than a write that was over before it
 * was looked for.
 */
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include "engine/soft/mmu_internal.h"
#include "engine/soft/test_cpu.h"

#define CODE    0x200000u
#define AT      (CODE + 3) /* mov eax, imm32, whose operand is aligned */
#define OPERAND (CODE + 4)
/* The address sanitizer has three instructions for one. */
#ifdef __SANITIZE_ADDRESS__
#define PLACES 50
#else
#define PLACES 200
#endif
#define HOST_TF 0x100

#ifdef __SANITIZE_THREAD__
#define CAN_STEP false
/* The guest's own races: its memory is read and written by both sides at will. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "race:bytes_here\nrace:mem_write\nrace:write_as_vcpu\nrace:decode_insn\n";
}
#else
#define CAN_STEP true
#endif

static struct test_guest guest;
static struct soft_cpu *cpu;

/* --- what the two do --- */

static const uint32_t *current;
static uint32_t generation, seen;

/* As make() in block.c, without the decoding. */
static void watch_and_read(void)
{
    current = mmu_code_watch(cpu, AT, 64, &generation);
    seen = __atomic_load_n((const uint32_t *)(const void *)(guest.ram + OPERAND), __ATOMIC_RELAXED);
}

static void find_block(void)
{
    cpu->rip = AT;
    const struct block *b = block_find(cpu);
    current = b->current;
    generation = b->generation;
    seen = (uint32_t)b->insns[0].imm;
}

/* As page_write() in mmu.c. */
static void write_slowly(uint32_t value)
{
    uint64_t offset;
    struct page_region *r = pages_find(guest.vm, OPERAND, &offset);
    memcpy(guest.ram + OPERAND, &value, sizeof(value));
    pages_written(guest.vm, cpu, r, offset, sizeof(value));
}

static bool is_fresh(void)
{
    return *current == generation;
}

/* No code on the page, and nothing decoded. */
static void start(void)
{
    uint64_t offset;
    struct page_region *r = pages_find(guest.vm, CODE, &offset);
    r->info[offset / PAGE_BYTES].lines = 0;
    block_cache_flush(cpu);
    test_put(guest.ram, AT, 0xb8, 1);
    test_put(guest.ram, OPERAND + 4, 0xc3, 1);
    test_put(guest.ram, OPERAND, 1, 4);
}

/* --- one between two instructions of the other --- */

static volatile unsigned steps, stop_at;
static void (*volatile other)(void);

static void on_step(int number, siginfo_t *info, void *context)
{
    ucontext_t *c = context;
    (void)number, (void)info;
    if (steps++ != stop_at)
        return;
    c->uc_mcontext.gregs[REG_EFL] &= ~HOST_TF;
    other();
}

/* Run `one`, and `between` before its machine instruction n. False: it has not so many. */
static bool interleave(void (*one)(void), void (*between)(void), unsigned n)
{
    steps = 0;
    stop_at = n;
    other = between;
    __asm__ volatile("lea -128(%%rsp), %%rsp; pushfq; orl %0, (%%rsp); popfq; lea 128(%%rsp), %%rsp"
                     :
                     : "i"(HOST_TF)
                     : "memory", "cc");
    one();
    __asm__ volatile("lea -128(%%rsp), %%rsp; pushfq; andl %0, (%%rsp); popfq; lea 128(%%rsp), "
                     "%%rsp"
                     :
                     : "i"(~HOST_TF)
                     : "memory", "cc");
    return steps > n;
}

static void write_2(void)
{
    write_slowly(2);
}

static void write_3(void)
{
    write_slowly(3);
}

/* Both are over: 2 was written. What is fresh has it, and another write makes it stale. */
static bool holds(unsigned n)
{
    if (is_fresh() && seen != 2) {
        printf("# before instruction %u: fresh, with %u for 2\n", n, seen);
        return false;
    }
    write_3();
    if (is_fresh()) {
        printf("# before instruction %u: nobody watches, a later write is not seen\n", n);
        return false;
    }
    return true;
}

static void start_watched(bool watched)
{
    start();
    if (watched)
        mmu_code_watch(cpu, AT, 64, &generation);
}

/* At up to so many places, evenly over the whole: each costs a trap for all instructions before it.
 * watched: an earlier block has the line's bit already. */
static bool try_places(void (*one)(void), void (*between)(void), bool watched, unsigned places)
{
    start_watched(watched);
    interleave(one, between, UINT_MAX);
    unsigned total = steps, stride = total / places + 1;
    bool right = total > 10;
    for (unsigned n = 0; n < total; n += stride) {
        start_watched(watched);
        if (interleave(one, between, n))
            right &= holds(n);
    }
    printf("# before one of %u instructions each of %u\n", stride, total);
    return right;
}

static void test_interleaved(void)
{
    if (!CAN_STEP) {
        tap_skip("one between the other's instructions", "the thread sanitizer's locks are there");
        return;
    }
    const struct sigaction action = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, NULL);
    ok(try_places(watch_and_read, write_2, false, PLACES), "a write while a page becomes code");
    ok(try_places(watch_and_read, write_2, true, PLACES), "while it is already");
    ok(try_places(write_2, watch_and_read, false, PLACES), "a page becomes code during a write");
    ok(try_places(write_2, watch_and_read, true, PLACES), "is already");
    /* The whole way, through the cache. */
    ok(try_places(find_block, write_2, false, 12), "a write while a block is made");
    ok(try_places(find_block, write_2, true, 12), "of a line with other blocks");
    ok(try_places(write_2, find_block, false, PLACES), "a block is made during a write");
    signal(SIGTRAP, SIG_DFL);
}

/* --- two threads --- */

#define STORM_BLOCKS 20000u /* made anew, each after a write that was noticed */
#define STORM_NS     300000000ULL

static uint32_t completed, storm_over; /* atomic */
static void (*storm_write)(uint32_t value);

static void write_as_vmm(uint32_t value)
{
    mem_write(guest.mem, GPA(OPERAND), &value, sizeof(value));
}

/* The second vCPU's store, and what its loop does between blocks. The fence is the serialising
 * event: without one the first may run old code. */
static void write_as_vcpu(uint32_t value)
{
    struct soft_cpu *writer = guest.cpu[1];
    mmu_write32(writer, OPERAND, value);
    writer->stop_block = false;
    soft_fence();
    if (__atomic_fetch_and(&writer->events, ~(uint32_t)SOFT_EVENT_MMU, __ATOMIC_SEQ_CST) &
        SOFT_EVENT_MMU)
        mmu_serve(writer);
}

static void *storm(void *ctx)
{
    (void)ctx;
    for (uint32_t value = 2; !__atomic_load_n(&storm_over, __ATOMIC_RELAXED); value++) {
        storm_write(value);
        __atomic_store_n(&completed, value, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

static uint64_t blocks_made(void)
{
    struct block_stats stats;
    block_cache_stats(cpu, &stats);
    return stats.made;
}

static bool storm_holds(void (*write)(uint32_t value))
{
    pthread_t thread;
    bool right = true;
    start();
    storm_write = write;
    completed = 1;
    storm_over = 0;
    if (pthread_create(&thread, NULL, storm, NULL) != 0)
        return false;
    uint64_t end = clock_now_ns() + STORM_NS, before = blocks_made();
    while (right && blocks_made() - before < STORM_BLOCKS && clock_now_ns() < end) {
        uint32_t oldest = __atomic_load_n(&completed, __ATOMIC_SEQ_CST);
        find_block();
        right = seen >= oldest;
        if (!right)
            printf("# a block has %u, and %u was written before\n", seen, oldest);
    }
    __atomic_store_n(&storm_over, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    printf("# %u writes, %llu blocks\n", completed, (unsigned long long)(blocks_made() - before));
    return right;
}

static void tests(void)
{
    cpu = guest.cpu[0];
    test_mode(cpu, 64, 0);
    test_mode(guest.cpu[1], 64, 0);
    test_interleaved();
    ok(storm_holds(write_as_vmm), "the VMM writes, a vCPU decodes");
    ok(storm_holds(write_as_vcpu), "one vCPU writes, another decodes");
}

int main(void)
{
    if (ok(test_guest_init(&guest, 2), "a machine"))
        test_all(tests);
    test_guest_fini(&guest);
    return tap_done();
}
