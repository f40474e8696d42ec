/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's side: the instruction is entered with all registers loaded and left by a jump behind
 * it, or by a signal: of an exception, or of the INT3s that lie wherever a branch may land.
 *
 * One process has one such side: the registers are in static memory, which the entry and exit code
 * addresses without a register of its own.
 */
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <cpuid.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "engine/soft/diff/diff.h"
#include "engine/soft/exec_vec.h"

#define CODE_BYTES     ((uint64_t)DIFF_SLOTS * DIFF_SLOT)
#define POINTERS       (DIFF_CODE + CODE_BYTES) /* a page behind the slots */
#define INT3           0xcc
#define TRAP_PF        14
#define ERROR_PRESENT  0x01u
#define ERROR_FETCH    0x10u
#define USER_CS        0x33
#define USER_DS        0x2b
#define XSTATE_MAGIC   0x46505853u
#define SIGFRAME_MAGIC 464 /* offset of it in the legacy region of a signal frame */

/* What the entry and exit code uses. */
struct diff_io {
    struct soft_fpu fpu; /* an XSAVE area */
    uint64_t gpr[16];
    uint64_t rflags, target, host_rsp;
    uint32_t components; /* of XSAVE; 0: leave the vector and x87 units alone */
    uint32_t mxcsr;
    struct { /* a far pointer to code that is not 64-bit */
        uint32_t offset;
        uint16_t selector;
    } far32;
    uint32_t ds, es, ss; /* for it */
};

__attribute__((visibility("hidden"))) struct diff_io diff_io;
__attribute__((visibility("hidden"))) void diff_take_signal(int number, siginfo_t *info,
                                                            void *context);
void diff_enter(void);
void diff_enter32(void);
void diff_exit(void);
void diff_resume(void);
void diff_on_signal(int number, siginfo_t *info, void *context);

#define IO_GPR(n)     (896 + 8 * (n))
#define IO_RFLAGS     1024
#define IO_TARGET     1032
#define IO_HOST_RSP   1040
#define IO_COMPONENTS 1048
#define IO_MXCSR      1052
#define IO_FAR32      1056
#define IO_DS         1064

_Static_assert(offsetof(struct diff_io, gpr) == IO_GPR(0), "the code below");
_Static_assert(offsetof(struct diff_io, rflags) == IO_RFLAGS, "the code below");
_Static_assert(offsetof(struct diff_io, target) == IO_TARGET, "the code below");
_Static_assert(offsetof(struct diff_io, host_rsp) == IO_HOST_RSP, "the code below");
_Static_assert(offsetof(struct diff_io, components) == IO_COMPONENTS, "the code below");
_Static_assert(offsetof(struct diff_io, mxcsr) == IO_MXCSR, "the code below");
_Static_assert(offsetof(struct diff_io, far32) == IO_FAR32, "the code below");
_Static_assert(offsetof(struct diff_io, ds) == IO_DS, "the code below");

/* clang-format off */
__asm__(".text\n"
        ".macro load_registers\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rsp, diff_io+1040(%rip)\n"
        "mov diff_io+1048(%rip), %eax; test %eax, %eax; jz 1f\n"
        "xor %edx, %edx; xrstor64 diff_io(%rip)\n"
        "1: push diff_io+1024(%rip); popfq\n"
        "mov diff_io+896(%rip), %rax; mov diff_io+904(%rip), %rcx\n"
        "mov diff_io+912(%rip), %rdx; mov diff_io+920(%rip), %rbx\n"
        "mov diff_io+928(%rip), %rsp; mov diff_io+936(%rip), %rbp\n"
        "mov diff_io+944(%rip), %rsi; mov diff_io+952(%rip), %rdi\n"
        "mov diff_io+960(%rip), %r8; mov diff_io+968(%rip), %r9\n"
        "mov diff_io+976(%rip), %r10; mov diff_io+984(%rip), %r11\n"
        "mov diff_io+992(%rip), %r12; mov diff_io+1000(%rip), %r13\n"
        "mov diff_io+1008(%rip), %r14; mov diff_io+1016(%rip), %r15\n"
        ".endm\n"
        ".hidden diff_io\n"
        ".globl diff_enter, diff_enter32, diff_exit, diff_resume, diff_on_signal\n"
        ".hidden diff_enter, diff_enter32, diff_exit, diff_resume, diff_on_signal\n"
        "diff_enter:\n"
        "load_registers\n"
        "jmp *diff_io+1032(%rip)\n"
        "diff_enter32:\n"
        "mov diff_io+1064(%rip), %ds; mov diff_io+1068(%rip), %es\n"
        "mov diff_io+1072(%rip), %ss\n"
        "load_registers\n"
        "ljmp *diff_io+1056(%rip)\n"
        "diff_exit:\n"
        "mov %rax, diff_io+896(%rip); mov %rcx, diff_io+904(%rip)\n"
        "mov %rdx, diff_io+912(%rip); mov %rbx, diff_io+920(%rip)\n"
        "mov %rsp, diff_io+928(%rip); mov %rbp, diff_io+936(%rip)\n"
        "mov %rsi, diff_io+944(%rip); mov %rdi, diff_io+952(%rip)\n"
        "mov %r8, diff_io+960(%rip); mov %r9, diff_io+968(%rip)\n"
        "mov %r10, diff_io+976(%rip); mov %r11, diff_io+984(%rip)\n"
        "mov %r12, diff_io+992(%rip); mov %r13, diff_io+1000(%rip)\n"
        "mov %r14, diff_io+1008(%rip); mov %r15, diff_io+1016(%rip)\n"
        "mov $0x2b, %eax; mov %eax, %ss\n"
        "mov diff_io+1040(%rip), %rsp\n"
        "pushfq; pop diff_io+1024(%rip)\n"
        "push $2; popfq\n"
        "mov diff_io+1048(%rip), %eax; test %eax, %eax; jz diff_resume\n"
        "xor %edx, %edx; xsave64 diff_io(%rip)\n"
        "testb $4, diff_io+1048(%rip); jz 1f; vzeroupper\n"
        "1: fninit; ldmxcsr diff_io+1052(%rip)\n"
        "diff_resume:\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
        /* The kernel enters a handler with AC as it was: no compiled code stands that. */
        "diff_on_signal:\n"
        "push $2; popfq\n"
        "jmp diff_take_signal\n");
/* clang-format on */

static struct {
    uint8_t *memory; /* the arena, writable */
    uint8_t *code;   /* the slots, writable */
    bool has[DIFF_MODES];
    uint32_t components;
    struct diff_result *result; /* of the run under way */
    const struct diff_mode *mode;
} native;

/* --- what the host has --- */

/* Features that the engine has by itself, and where the host tells whether it has them. */
static const struct {
    uint8_t feature;
    uint32_t function, index;
    uint8_t reg, bit; /* reg: EAX, EBX, ECX, EDX */
} own_features[] = {
    {FEAT_CX16,       1,          0, 2, 13},
    {FEAT_MOVBE,      1,          0, 2, 22},
    {FEAT_RDRAND,     1,          0, 2, 30},
    {FEAT_MONITOR,    1,          0, 2, 3 },
    {FEAT_SYSENTER,   1,          0, 3, 11},
    {FEAT_CLFLUSH,    1,          0, 3, 19},
    {FEAT_FSGSBASE,   7,          0, 1, 0 },
    {FEAT_BMI2,       7,          0, 1, 8 },
    {FEAT_INVPCID,    7,          0, 1, 10},
    {FEAT_RDSEED,     7,          0, 1, 18},
    {FEAT_ADX,        7,          0, 1, 19},
    {FEAT_SMAP,       7,          0, 1, 20},
    {FEAT_CLFLUSHOPT, 7,          0, 1, 23},
    {FEAT_CLWB,       7,          0, 1, 24},
    {FEAT_PKU,        7,          0, 2, 3 },
    {FEAT_RDPID,      7,          0, 2, 22},
    {FEAT_MOVDIRI,    7,          0, 2, 27},
    {FEAT_MOVDIR64B,  7,          0, 2, 28},
    {FEAT_SERIALIZE,  7,          0, 3, 14},
    {FEAT_XSAVEOPT,   0xd,        1, 0, 0 },
    {FEAT_XSAVEC,     0xd,        1, 0, 1 },
    {FEAT_XSAVES,     0xd,        1, 0, 3 },
    {FEAT_LAHF64,     0x80000001, 0, 2, 0 },
    {FEAT_PREFETCHW,  0x80000001, 0, 2, 8 },
    {FEAT_RDTSCP,     0x80000001, 0, 3, 27},
};

insn_features diff_native_features(insn_features engine)
{
    for (size_t i = 0; i < sizeof(own_features) / sizeof(own_features[0]); i++) {
        uint32_t r[4] = {0};
        __get_cpuid_count(own_features[i].function, own_features[i].index, &r[0], &r[1], &r[2],
                          &r[3]);
        if (!(r[own_features[i].reg] >> own_features[i].bit & 1))
            engine &= ~(1ULL << own_features[i].feature);
    }
    return engine;
}

/* --- signals --- */

/* Vector registers in a signal frame: what is in its initial state may be left out. */
static void copy_frame_fpu(struct soft_fpu *to, const struct _libc_fpstate *frame)
{
    const uint8_t *bytes = (const uint8_t *)frame;
    uint32_t magic;
    uint64_t present = 3;
    memcpy(to, bytes, offsetof(struct soft_fpu, reserved));
    memcpy(&magic, bytes + SIGFRAME_MAGIC, sizeof(magic));
    if (magic == XSTATE_MAGIC)
        memcpy(&present, bytes + 512, sizeof(present));
    if (magic == XSTATE_MAGIC && present & 4)
        memcpy(to->ymm_hi, bytes + offsetof(struct soft_fpu, ymm_hi), sizeof(to->ymm_hi));
    else
        memset(to->ymm_hi, 0, sizeof(to->ymm_hi));
    if (!(present & 2))
        memset(to->xmm, 0, sizeof(to->xmm));
    if (!(present & 1)) {
        uint16_t fcw = FCW_INIT;
        memset(to->x87, 0, X87_MXCSR);
        memset(to->st, 0, sizeof(to->st));
        memcpy(to->x87, &fcw, sizeof(fcw));
    }
}

static const uint8_t gregs_order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                        REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                        REG_R12, REG_R13, REG_R14, REG_R15};

/* Registers for the code that the signal returns to. */
static void return_to_host(ucontext_t *uc)
{
    greg_t *g = uc->uc_mcontext.gregs;
    struct _libc_fpstate *fpu = uc->uc_mcontext.fpregs;
    g[REG_RIP] = (greg_t)(uintptr_t)diff_resume;
    g[REG_RSP] = (greg_t)diff_io.host_rsp;
    g[REG_EFL] = RFLAGS_FIXED | RFLAGS_IF;
    g[REG_CSGSFS] = (g[REG_CSGSFS] & 0x0000ffffffff0000LL) | USER_CS | (greg_t)USER_DS << 48;
    fpu->cwd = FCW_INIT;
    fpu->swd = 0;
    fpu->ftw = 0;
    fpu->mxcsr = MXCSR_INIT;
}

/* A branch has landed: at an INT3 between the slots, or where nothing can be fetched. */
static bool has_landed(const greg_t *g, uint64_t *rip)
{
    *rip = (uint64_t)g[REG_RIP];
    if (g[REG_TRAPNO] == EXC_BP) {
        (*rip)--;
        return true;
    }
    return g[REG_TRAPNO] == TRAP_PF && g[REG_ERR] & ERROR_FETCH && g[REG_CR2] == g[REG_RIP];
}

void diff_take_signal(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    const greg_t *g = uc->uc_mcontext.gregs;
    struct diff_result *result = native.result;
    (void)info;
    if (!result) { /* a bug of the tester itself: as without a handler */
        signal(number, SIG_DFL);
        return;
    }
    for (unsigned i = 0; i < 16; i++)
        result->state.gpr[i] = (uint64_t)g[gregs_order[i]];
    result->state.rflags = (uint64_t)g[REG_EFL];
    if (!has_landed(g, &result->state.rip)) {
        result->vector = (int)g[REG_TRAPNO];
        result->error = (uint32_t)g[REG_ERR];
        result->address = (uint64_t)g[REG_CR2];
        /* Linux says of all pages that are not the user's that they are there. */
        if (result->vector == EXC_PF && result->address >= DIFF_GAP - DIFF_PAGE)
            result->error &= ~ERROR_PRESENT;
    }
    if (diff_io.components)
        copy_frame_fpu(&result->state.fpu, uc->uc_mcontext.fpregs);
    native.result = NULL; /* taken */
    return_to_host(uc);
}

/* --- set-up --- */

static const char *map_arena(void)
{
    int fd = memfd_create("diff-arena", MFD_CLOEXEC);
    const char *failed = NULL;
    if (fd < 0 || ftruncate(fd, DIFF_PAGES * DIFF_PAGE) < 0)
        return "no memory for the arena";
    native.memory = mmap(NULL, DIFF_PAGES * DIFF_PAGE, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_POPULATE, fd, 0);
    if (native.memory == MAP_FAILED)
        failed = "no memory for the arena";
    for (unsigned i = 0; i < DIFF_PAGES && !failed; i++) {
        int protection = diff_page_kinds[i] == 'W' ? PROT_READ | PROT_WRITE : PROT_READ;
        void *at = (void *)(uintptr_t)(DIFF_ARENA + (uint64_t)i * DIFF_PAGE);
        if (diff_page_kinds[i] == '-')
            continue;
        if (mmap(at, DIFF_PAGE, protection, MAP_SHARED | MAP_POPULATE | MAP_FIXED_NOREPLACE, fd,
                 (off_t)i * DIFF_PAGE) != at)
            failed = "the arena's addresses are taken";
    }
    close(fd);
    return failed;
}

static const char *map_code(void)
{
    size_t len = CODE_BYTES + DIFF_PAGE;
    int fd = memfd_create("diff-code", MFD_CLOEXEC);
    const char *failed = NULL;
    if (fd < 0 || ftruncate(fd, (off_t)len) < 0)
        return "no memory for code";
    native.code = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    void *at = (void *)(uintptr_t)DIFF_CODE;
    if (native.code == MAP_FAILED)
        failed = "no memory for code";
    else if (mmap(at, len, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_POPULATE | MAP_FIXED_NOREPLACE,
                  fd, 0) != at)
        failed = "no executable memory, or the code's addresses are taken";
    close(fd);
    return failed;
}

/*
 * Behind the slots: the address of diff_exit, and the way back from 32-bit code:
 *     +0   the address
 *     +16  jmp [+0], as 64-bit code
 */
static void make_exits(void)
{
    uint64_t exit_address = (uint64_t)(uintptr_t)diff_exit;
    static const uint8_t jump[] = {0xff, 0x25, (uint8_t)(-22), 0xff, 0xff, 0xff};
    memcpy(native.code + CODE_BYTES, &exit_address, sizeof(exit_address));
    memcpy(native.code + CODE_BYTES + 16, jump, sizeof(jump));
}

static void install_handlers(void)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    static uint8_t stack[64 << 10];
    const stack_t alternate = {.ss_sp = stack, .ss_size = sizeof(stack)};
    const struct sigaction action = {.sa_sigaction = diff_on_signal,
                                     .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigaltstack(&alternate, NULL);
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        sigaction(signals[i], &action, NULL);
}

/* An entry of the local descriptor table: selector 7 is the first. */
static bool make_descriptor(const struct diff_segment *s, bool code)
{
    struct user_desc desc = {
        .entry_number = s->selector >> 3,
        .base_addr = s->base,
        .limit = s->wide ? s->limit >> 12 : s->limit,
        .seg_32bit = s->wide,
        .contents = code      ? MODIFY_LDT_CONTENTS_CODE
                    : s->down ? MODIFY_LDT_CONTENTS_STACK
                              : MODIFY_LDT_CONTENTS_DATA,
        .limit_in_pages = s->wide,
        .useable = 1,
    };
    return !(s->selector & 4) || syscall(SYS_modify_ldt, 0x11, &desc, sizeof(desc)) == 0;
}

/* Does code of the mode run, and come back? */
static bool try_mode(const struct diff_mode *mode)
{
    struct diff_insn nop = {.address = DIFF_CODE, .mode = mode, .insn = {.len = 1}};
    struct diff_case c = {.d = &nop};
    struct diff_result result;
    if (mode->code_bits != 64 &&
        !(make_descriptor(&mode->cs, true) && make_descriptor(&mode->ds, false) &&
          make_descriptor(&mode->es, false) && make_descriptor(&mode->ss, false)))
        return false;
    nop.insn.bytes[0] = 0x90;
    c.start.gpr[CPU_RSI] = 0x12345678;
    c.start.rflags = RFLAGS_FIXED;
    c.start.rip = DIFF_CODE - mode->cs.base;
    diff_native_load(&nop, 1, mode);
    diff_native_run(&c, &result);
    return result.vector < 0 && result.state.gpr[CPU_RSI] == 0x12345678;
}

const char *diff_native_init(void)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return "the host's processor has no XSAVE";
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    native.components = a & 7;
    diff_io.mxcsr = MXCSR_INIT;
    const char *failed = map_arena();
    if (!failed)
        failed = map_code();
    if (failed)
        return failed;
    if (syscall(SYS_arch_prctl, ARCH_SET_GS, DIFF_GS) < 0)
        return "the base of GS cannot be set";
    make_exits();
    install_handlers();
    for (unsigned i = 0; i < DIFF_MODES; i++)
        native.has[i] = try_mode(&diff_modes[i]);
    return NULL;
}

bool diff_native_has(const struct diff_mode *mode)
{
    return native.has[mode - diff_modes];
}

uint8_t *diff_native_memory(void)
{
    return native.memory;
}

/* --- code --- */

/* jmp [the address of diff_exit]; from other code a far jump to the 64-bit one. */
static void put_exit(uint8_t *to, uint64_t address, unsigned code_bits)
{
    if (code_bits == 64) {
        int32_t from_here = (int32_t)(POINTERS - (address + 6));
        to[0] = 0xff;
        to[1] = 0x25;
        memcpy(to + 2, &from_here, sizeof(from_here));
        return;
    }
    uint32_t offset = (uint32_t)POINTERS + 16;
    uint16_t selector = USER_CS;
    if (code_bits == 16)
        *to++ = 0x66; /* an offset of 32 bits */
    to[0] = 0xea;
    memcpy(to + 1, &offset, sizeof(offset));
    memcpy(to + 5, &selector, sizeof(selector));
}

void diff_native_load(const struct diff_insn *insns, unsigned count, const struct diff_mode *mode)
{
    native.mode = mode;
    memset(native.code, INT3, CODE_BYTES);
    for (unsigned i = 0; i < count; i++) {
        uint8_t *to = native.code + (insns[i].address - DIFF_CODE);
        memcpy(to, insns[i].insn.bytes, insns[i].insn.len);
        put_exit(to + insns[i].insn.len, insns[i].address + insns[i].insn.len, mode->code_bits);
    }
    __builtin___clear_cache((char *)(uintptr_t)DIFF_CODE,
                            (char *)(uintptr_t)(DIFF_CODE + CODE_BYTES));
}

/* --- a run --- */

static void take_registers(struct diff_result *result, const struct diff_case *c)
{
    memcpy(result->state.gpr, diff_io.gpr, sizeof(diff_io.gpr));
    result->state.rflags = diff_io.rflags;
    result->state.rip = c->start.rip + c->d->insn.len;
    if (diff_io.components)
        result->state.fpu = diff_io.fpu;
}

void diff_native_run(const struct diff_case *c, struct diff_result *result)
{
    const struct diff_state *start = &c->start;
    memcpy(diff_io.gpr, start->gpr, sizeof(diff_io.gpr));
    diff_io.rflags = start->rflags;
    diff_io.target = start->rip;
    diff_io.components = c->d->uses_fpu ? native.components : 0;
    if (diff_io.components) {
        diff_io.fpu = start->fpu;
        diff_io.fpu.header[0] = (uint8_t)native.components;
    }
    result->vector = -1;
    native.result = result;
    if (native.mode->code_bits == 64) {
        diff_enter();
    } else {
        diff_io.far32.offset = (uint32_t)start->rip;
        diff_io.far32.selector = native.mode->cs.selector;
        diff_io.ds = native.mode->ds.selector;
        diff_io.es = native.mode->es.selector;
        diff_io.ss = native.mode->ss.selector;
        diff_enter32();
    }
    if (native.result) { /* no signal has come */
        native.result = NULL;
        take_registers(result, c);
    }
}
