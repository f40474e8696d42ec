/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The code cache of one vCPU, and the border between C and translated code.
 *
 * Code is written through one mapping of a piece of anonymous memory and run through another, so
 * that no address is ever both. It is filled from the start; when it is full everything goes, as in
 * the block cache.
 *
 * Links. A direct jump within a page leads to a stub at first, which leaves with the place of the
 * jump's displacement; once there is code for the target, the displacement is set. Both ends lie in
 * one page of the guest, whose translations all go together, so no link need be found and undone.
 * Jumps to other pages, and indirect ones, go through the jump table of the context (mmu.h).
 */
#include "engine/soft/translate_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/err.h"
#include "base/units.h"
#include "engine/soft/exec_int.h"
#include "engine/soft/exec_vec.h"
#include "engine/soft/mmu_internal.h"

#define CODE_BYTES      (16 * MIB) /* where the VM does not say */
#define CODE_START      16         /* behind the code of empty slots of jump tables, which leaves */
#define HWCAP2_FSGSBASE 2u
#define ARCH_SET_GS     0x1001

#define NAKED           __attribute__((naked, noinline, used, no_sanitize("address", "thread", "undefined")))

/* What translate_step() says. */
enum step {
    STEP_ON,      /* with the instruction after it */
    STEP_LEAVE,   /* RIP is set */
    STEP_VECTORS, /* go on with vector or x87 registers loaded */
    STEP_JUMP,    /* at RIP, whose code is at translated.resume */
};

/* --- the border --- */

/*
 * In all of these %gs: is the processor. The guest's flags are loaded by SAHF and an addition that
 * overflows where OF is to be set, which leaves what SAHF sets to SAHF.
 */

#define SAVE_REGISTERS                                                                             \
    "movq %%rcx, %%gs:%c[gpr]+8\n\t"                                                               \
    "movq %%rdx, %%gs:%c[gpr]+16\n\t"                                                              \
    "movq %%rbx, %%gs:%c[gpr]+24\n\t"                                                              \
    "movq %%rsp, %%gs:%c[gpr]+32\n\t"                                                              \
    "movq %%rbp, %%gs:%c[gpr]+40\n\t"                                                              \
    "movq %%rsi, %%gs:%c[gpr]+48\n\t"                                                              \
    "movq %%rdi, %%gs:%c[gpr]+56\n\t"                                                              \
    "movq %%r8, %%gs:%c[gpr]+64\n\t"                                                               \
    "movq %%r9, %%gs:%c[gpr]+72\n\t"                                                               \
    "movq %%r12, %%gs:%c[gpr]+96\n\t"                                                              \
    "movq %%r13, %%gs:%c[gpr]+104\n\t"                                                             \
    "movq %%r14, %%gs:%c[gpr]+112\n\t"                                                             \
    "movq %%r15, %%gs:%c[gpr]+120\n\t"

#define SAVE_FLAGS_AND_RAX                                                                         \
    "movq %%rax, %%gs:%c[gpr]\n\t"                                                                 \
    "lahf\n\t"                                                                                     \
    "seto %%al\n\t"                                                                                \
    "movw %%ax, %%gs:%c[flags]\n\t"

#define LOAD_STATE                                                                                 \
    "movzwl %%gs:%c[flags], %%eax\n\t"                                                             \
    "addb $0x7f, %%al\n\t"                                                                         \
    "sahf\n\t"                                                                                     \
    "movq %%gs:%c[gpr], %%rax\n\t"                                                                 \
    "movq %%gs:%c[gpr]+8, %%rcx\n\t"                                                               \
    "movq %%gs:%c[gpr]+16, %%rdx\n\t"                                                              \
    "movq %%gs:%c[gpr]+24, %%rbx\n\t"                                                              \
    "movq %%gs:%c[gpr]+32, %%rsp\n\t"                                                              \
    "movq %%gs:%c[gpr]+40, %%rbp\n\t"                                                              \
    "movq %%gs:%c[gpr]+48, %%rsi\n\t"                                                              \
    "movq %%gs:%c[gpr]+56, %%rdi\n\t"                                                              \
    "movq %%gs:%c[gpr]+64, %%r8\n\t"                                                               \
    "movq %%gs:%c[gpr]+72, %%r9\n\t"                                                               \
    "movq %%gs:%c[gpr]+96, %%r12\n\t"                                                              \
    "movq %%gs:%c[gpr]+104, %%r13\n\t"                                                             \
    "movq %%gs:%c[gpr]+112, %%r14\n\t"                                                             \
    "movq %%gs:%c[gpr]+120, %%r15\n\t"

/* On the host's stack: the guest's vector and x87 registers, if they are there, to memory. RCX,
 * RSI, RDI and R8 are lost. */
#define STORE_VECTORS                                                                              \
    "cmpb $0, %%gs:%c[vectors]\n\t"                                                                \
    "je 7f\n\t"                                                                                    \
    "callq *%%gs:%c[store_vectors]\n\t"                                                            \
    "7:\n\t"

/* Back in translate_enter()'s caller, which gets RAX. */
#define RETURN                                                                                     \
    "movq %%gs:%c[host_rsp], %%rsp\n\t" STORE_VECTORS "addq $8, %%rsp\n\t"                         \
    "popq %%r15\n\t"                                                                               \
    "popq %%r14\n\t"                                                                               \
    "popq %%r13\n\t"                                                                               \
    "popq %%r12\n\t"                                                                               \
    "popq %%rbx\n\t"                                                                               \
    "popq %%rbp\n\t"                                                                               \
    "retq\n\t"

#define FIELDS                                                                                     \
    [gpr] "i"(GS(gpr)), [flags] "i"(GS(translated.flags)), [resume] "i"(GS(translated.resume)),    \
        [host_rsp] "i"(GS(translated.host_rsp)), [self] "i"(GS(translated.self)),                  \
        [rip] "i"(GS(rip)), [vectors] "i"(GS(translated.vectors)),                                 \
        [store_vectors] "i"(GS(translated.store_vectors)),                                         \
        [load_vectors] "i"(GS(translated.load_vectors)), [xmm] "i"(GS(fpu.xmm)),                   \
        [ymm_hi] "i"(GS(fpu.ymm_hi)), [x87] "i"(GS(fpu.x87)), [fop] "i"(GS(fpu.x87) + X87_FOP),    \
        [fip] "i"(GS(fpu.x87) + X87_FIP), [fdp] "i"(GS(fpu.x87) + X87_FDP),                        \
        [mxcsr] "i"(GS(fpu.x87) + X87_MXCSR), [mxcsr_mask] "i"(GS(fpu.x87) + X87_MXCSR_MASK),      \
        [host_mxcsr] "i"(GS(translated.host_mxcsr)), [link_saved] "i"(GS(translated.link_saved))

/* The guest's registers but for the vector ones are in memory: do as translate_step() says. */
#define STEP                                                                                       \
    "movq %%gs:%c[host_rsp], %%rsp\n\t"                                                            \
    "movzbl %%gs:%c[vectors], %%edx\n\t" STORE_VECTORS "movq %%gs:%c[self], %%rdi\n\t"             \
    "movl %%r10d, %%esi\n\t"                                                                       \
    "call translate_step\n\t"                                                                      \
    "cmpl $1, %%eax\n\t"                                                                           \
    "jb 1f\n\t"                                                                                    \
    "je 2f\n\t"                                                                                    \
    "cmpl $2, %%eax\n\t"                                                                           \
    "ja 3f\n\t"                                                                                    \
    "callq *%%gs:%c[load_vectors]\n\t"                                                             \
    "1:\n\t" LOAD_STATE "jmpq *%%gs:%c[resume]\n\t"                                                \
    "3:\n\t" LOAD_STATE "movq %%gs:%c[rip], %%r10\n\t"                                             \
    "jmpq *%%gs:%c[resume]\n\t"                                                                    \
    "2:\n\t"                                                                                       \
    "xorl %%eax, %%eax\n\t" RETURN

/* A macro for each of the registers. */
#define SIXTEEN(M)                                                                                 \
    M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)

#define STORE_SSE(n)  "movups %%xmm" #n ", %%gs:%c[xmm]+16*" #n "\n\t"
#define LOAD_SSE(n)   "movups %%gs:%c[xmm]+16*" #n ", %%xmm" #n "\n\t"
#define STORE_HIGH(n) "vextractf128 $1, %%ymm" #n ", %%gs:%c[ymm_hi]+16*" #n "\n\t"
#define LOAD_HIGH(n)  "vinsertf128 $1, %%gs:%c[ymm_hi]+16*" #n ", %%ymm" #n ", %%ymm" #n "\n\t"
#define STORE_AVX(n)  "vmovups %%xmm" #n ", %%gs:%c[xmm]+16*" #n "\n\t" STORE_HIGH(n)
#define LOAD_AVX(n)   "vmovups %%gs:%c[xmm]+16*" #n ", %%xmm" #n "\n\t" LOAD_HIGH(n)

/*
 * With the x87 registers. The pointers in memory are the guest's (translate_x87_note()), those in
 * the processor would tell of this process; and MXCSR_MASK is the guest's. What the host may see
 * pending is nothing: all is masked.
 */
#define STORE_X87                                                                                  \
    "movzwl %%gs:%c[fop], %%ecx\n\t"                                                               \
    "movq %%gs:%c[fip], %%rsi\n\t"                                                                 \
    "movq %%gs:%c[fdp], %%rdi\n\t"                                                                 \
    "movl %%gs:%c[mxcsr_mask], %%r8d\n\t"                                                          \
    "fxsave64 %%gs:%c[x87]\n\t"                                                                    \
    "movw %%cx, %%gs:%c[fop]\n\t"                                                                  \
    "movq %%rsi, %%gs:%c[fip]\n\t"                                                                 \
    "movq %%rdi, %%gs:%c[fdp]\n\t"                                                                 \
    "movl %%r8d, %%gs:%c[mxcsr_mask]\n\t"                                                          \
    "fninit\n\t"
#define LOAD_X87 "fxrstor64 %%gs:%c[x87]\n\t"
#define TO_HOST_MXCSR                                                                              \
    "stmxcsr %%gs:%c[mxcsr]\n\t"                                                                   \
    "ldmxcsr %%gs:%c[host_mxcsr]\n\t"                                                              \
    "movb $0, %%gs:%c[vectors]\n\t"                                                                \
    "retq\n\t"

NAKED static void store_sse(void)
{
    __asm__ volatile(SIXTEEN(STORE_SSE) TO_HOST_MXCSR : : FIELDS);
}

NAKED static void store_avx(void)
{
    __asm__ volatile(SIXTEEN(STORE_AVX) "vzeroupper\n\t" TO_HOST_MXCSR : : FIELDS);
}

NAKED static void load_sse(void)
{
    __asm__ volatile(SIXTEEN(LOAD_SSE) "ldmxcsr %%gs:%c[mxcsr]\n\t"
                                       "retq\n\t"
                     :
                     : FIELDS);
}

NAKED static void load_avx(void)
{
    __asm__ volatile(SIXTEEN(LOAD_AVX) "ldmxcsr %%gs:%c[mxcsr]\n\t"
                                       "retq\n\t"
                     :
                     : FIELDS);
}

NAKED static void store_x87(void)
{
    __asm__ volatile(STORE_X87 TO_HOST_MXCSR : : FIELDS);
}

NAKED static void store_x87_avx(void)
{
    __asm__ volatile(STORE_X87 SIXTEEN(STORE_HIGH) "vzeroupper\n\t" TO_HOST_MXCSR : : FIELDS);
}

NAKED static void load_x87(void)
{
    __asm__ volatile(LOAD_X87 "retq\n\t" : : FIELDS);
}

NAKED static void load_x87_avx(void)
{
    __asm__ volatile(LOAD_X87 SIXTEEN(LOAD_HIGH) "retq\n\t" : : FIELDS);
}

/* Run the code at translated.resume; returns when it leaves: 0, or the place of the displacement of
 * a jump that could lead on. */
NAKED static uint8_t *translate_enter(void)
{
    __asm__ volatile("pushq %%rbp\n\t"
                     "pushq %%rbx\n\t"
                     "pushq %%r12\n\t"
                     "pushq %%r13\n\t"
                     "pushq %%r14\n\t"
                     "pushq %%r15\n\t"
                     "subq $8, %%rsp\n\t"
                     "movq %%rsp, %%gs:%c[host_rsp]\n\t" LOAD_STATE "jmpq *%%gs:%c[resume]\n\t"
                     :
                     : FIELDS
                     : "memory");
}

/* The end of translated code, R10 is the guest's RIP: flags in the host's register; */
NAKED static void thunk_exit_host(void)
{
    __asm__ volatile(SAVE_FLAGS_AND_RAX SAVE_REGISTERS "movq %%r10, %%gs:%c[rip]\n\t"
                                                       "xorl %%eax, %%eax\n\t" RETURN
                     :
                     : FIELDS);
}

/* in memory already; */
NAKED static void thunk_exit_saved(void)
{
    __asm__ volatile("movq %%rax, %%gs:%c[gpr]\n\t" SAVE_REGISTERS "movq %%r10, %%gs:%c[rip]\n\t"
                     "xorl %%eax, %%eax\n\t" RETURN
                     :
                     : FIELDS);
}

/* in the host's register, and R11 is the place of the jump's displacement. */
NAKED static void thunk_exit_link(void)
{
    __asm__ volatile(SAVE_FLAGS_AND_RAX SAVE_REGISTERS "movq %%r10, %%gs:%c[rip]\n\t"
                                                       "movb $0, %%gs:%c[link_saved]\n\t"
                                                       "movq %%r11, %%rax\n\t" RETURN
                     :
                     : FIELDS);
}

/* The same with the flags in memory. */
NAKED static void thunk_exit_link_saved(void)
{
    __asm__ volatile("movq %%rax, %%gs:%c[gpr]\n\t" SAVE_REGISTERS "movq %%r10, %%gs:%c[rip]\n\t"
                     "movb $1, %%gs:%c[link_saved]\n\t"
                     "movq %%r11, %%rax\n\t" RETURN
                     :
                     : FIELDS);
}

/* An instruction for its handler: R10 says which (block_insn_offset), R11 where to go on. */
NAKED static void thunk_slow_saved(void)
{
    __asm__ volatile("movq %%r11, %%gs:%c[resume]\n\t"
                     "movq %%rax, %%gs:%c[gpr]\n\t" SAVE_REGISTERS STEP
                     :
                     : FIELDS);
}

NAKED static void thunk_slow_host(void)
{
    __asm__ volatile("movq %%r11, %%gs:%c[resume]\n\t" SAVE_FLAGS_AND_RAX SAVE_REGISTERS STEP
                     :
                     : FIELDS);
}

/*
 * The look of a stub for an address that is not in the page of the stack that is known: R10 is its
 * distance from that one's start, R11 a place behind 16 bits of the stub that say how far into a
 * page the access may begin. It goes on there with R10 the host's address, and that page known; or
 * 5 bytes further where the TLB does not have it. The host's flags are lost.
 */
#define STACK_LOOK(page, entry_tag)                                                                \
    "movq %%r11, %%gs:%c[look]\n\t"                                                                \
    "movq %%rax, %%gs:%c[saved_rax]\n\t"                                                           \
    "movzwl -2(%%r11), %%eax\n\t"                                                                  \
    "addq %%gs:%c[" page "]+%c[tag], %%r10\n\t"                                                    \
    "movq %%r10, %%r11\n\t"                                                                        \
    "shrq $7, %%r11\n\t"                                                                           \
    "andl $%c[mask], %%r11d\n\t"                                                                   \
    "subq %%gs:%c[" entry_tag "](%%r11), %%r10\n\t"                                                \
    "cmpq %%rax, %%r10\n\t"                                                                        \
    "ja 1f\n\t"                                                                                    \
    "movq %%gs:%c[" entry_tag "](%%r11), %%rax\n\t"                                                \
    "movq %%rax, %%gs:%c[" page "]+%c[tag]\n\t"                                                    \
    "movq %%gs:%c[entry_host](%%r11), %%rax\n\t"                                                   \
    "movq %%rax, %%gs:%c[" page "]+%c[host]\n\t"                                                   \
    "movq $%c[limit_8], %%gs:%c[" page "]+%c[limits]\n\t"                                          \
    "movq $%c[limit_64], %%gs:%c[" page "]+%c[limits]+8\n\t"                                       \
    "movq $%c[limit_512], %%gs:%c[" page "]+%c[limits]+16\n\t"                                     \
    "addq %%rax, %%r10\n\t"                                                                        \
    "movq %%gs:%c[saved_rax], %%rax\n\t"                                                           \
    "jmpq *%%gs:%c[look]\n\t"                                                                      \
    "1:\n\t"                                                                                       \
    "movq %%gs:%c[saved_rax], %%rax\n\t"                                                           \
    "addq $5, %%gs:%c[look]\n\t"                                                                   \
    "jmpq *%%gs:%c[look]\n\t"

#define STACK_FIELDS                                                                               \
    [look] "i"(GS(translated.look)), [saved_rax] "i"(GS(translated.saved_rax)),                    \
        [read_page] "i"(GS_CONTEXT(stack_read)), [write_page] "i"(GS_CONTEXT(stack_write)),        \
        [tag] "i"(offsetof(struct stack_page, tag)),                                               \
        [host] "i"(offsetof(struct stack_page, host)), [limit_8] "i"(STACK_LIMIT(8)),              \
        [limit_64] "i"(STACK_LIMIT(64)), [limit_512] "i"(STACK_LIMIT(512)),                        \
        [limits] "i"(offsetof(struct stack_page, limits)), [mask] "i"((TLB_ENTRIES - 1) << 5),     \
        [read_tag] "i"(GS_CONTEXT(tlb) + offsetof(struct tlb_entry, read_tag)),                    \
        [write_tag] "i"(GS_CONTEXT(tlb) + offsetof(struct tlb_entry, write_tag)),                  \
        [entry_host] "i"(GS_CONTEXT(tlb) + offsetof(struct tlb_entry, host))

NAKED static void thunk_stack_read(void)
{
    __asm__ volatile(STACK_LOOK("read_page", "read_tag") : : STACK_FIELDS);
}

NAKED static void thunk_stack_write(void)
{
    __asm__ volatile(STACK_LOOK("write_page", "write_tag") : : STACK_FIELDS);
}

/* The code that a jump table has led to is not that of R10: in the second table? As
 * mmu_second_slot(). Flags are in memory. */
NAKED static void thunk_second(void)
{
    __asm__ volatile("imull $%c[multiplier], %%r10d, %%r11d\n\t"
                     "shrl $%c[shift], %%r11d\n\t"
                     "shll $4, %%r11d\n\t"
                     "cmpq %%gs:%c[second_rip](%%r11), %%r10\n\t"
                     "jne 1f\n\t"
                     "movl %%gs:%c[second_code](%%r11), %%r11d\n\t"
                     "addq %%gs:%c[code], %%r11\n\t"
                     "jmpq *%%r11\n\t"
                     "1:\n\t"
                     "jmpq *%%gs:%c[exit]\n\t"
                     :
                     : [multiplier] "i"(SECOND_MULTIPLIER), [shift] "i"(32 - SECOND_BITS),
                       [second_rip] "i"(GS_CONTEXT(second) + offsetof(struct second_jump, rip)),
                       [second_code] "i"(GS_CONTEXT(second) + offsetof(struct second_jump, code)),
                       [code] "i"(GS(translated.code)), [exit] "i"(GS(translated.exit_saved)));
}

_Static_assert(sizeof(struct second_jump) == 16, "thunk_second() shifts by 4");

/* --- flags --- */

/* What translated code has done that is not where C looks for it. */
static void state_from_code(struct soft_cpu *cpu)
{
    set_flags(cpu, cpu->translated.flags);
    const struct soft_context *context = cpu->tlb->context;    /* NULL: by a handler, just now */
    if (context && cpu->translated.gs != mmu_gs_base(context)) /* STAC, CLAC */
        mmu_select(cpu);
}

static void flags_to_code(struct soft_cpu *cpu)
{
    uint64_t f = cpu->rflags;
    cpu->translated.flags = (uint16_t)((f & LAHF_MASK) << 8 | (f >> 11 & 1));
}

/* --- one instruction by its handler --- */

static bool ends_block(const struct insn *insn)
{
    return insn->opcode->attr & (ATTR_BRANCH | ATTR_ENDS_BLOCK) || insn->op == OP_UD ||
           insn->op == OP_FALL_THROUGH;
}

/*
 * With a virtual clock translated code counts a block's instructions when it begins. While a
 * handler runs, which may leave it, they are counted as in the first tier: those of blocks that are
 * done.
 */
static void uncount(struct soft_cpu *cpu, const struct block *block)
{
    if (cpu->blocks->translator->count)
        cpu->instructions -= translate_count_of(block);
}

static void count(struct soft_cpu *cpu, unsigned done)
{
    if (cpu->blocks->translator->count)
        cpu->instructions += done;
}

/*
 * What vector and x87 instructions may run on the host's registers: where their gates are open
 * (exec_vec.h) and the guest has all exceptions of arithmetic masked, so that none is pending
 * either. Else they are for their handlers.
 */
static unsigned vectors_allowed(const struct soft_cpu *cpu)
{
    if (cpu->cr0 & (CR0_EM | CR0_TS))
        return 0;
    unsigned x87 = (x87_get16(cpu, X87_FCW) & FCW_MASKS) == FCW_MASKS ? VECTORS_X87 : 0;
    if (!(cpu->cr4 & CR4_OSFXSR) || (fpu_mxcsr(cpu) & MXCSR_MASKS) != MXCSR_MASKS)
        return x87;
    bool avx = cpu->cr4 & CR4_OSXSAVE && (cpu->xcr0 & XCR0_YMM) == XCR0_YMM;
    return x87 | VECTORS_SSE | (avx ? VECTORS_AVX : 0);
}

/* The x87 registers, which take longer, only where they are wanted. */
static enum step take_vectors(struct soft_cpu *cpu, unsigned wanted)
{
    static const uint8_t zero[sizeof(cpu->fpu.ymm_hi)];
    struct soft_translated *x = &cpu->translated;
    bool avx = cpu->blocks->translator->avx;
    /* Upper halves are zero on the host here, as the calling convention has it. */
    bool wide = avx && memcmp(cpu->fpu.ymm_hi, zero, sizeof(zero)) != 0;
    unsigned allowed = vectors_allowed(cpu);
    if (wanted & VECTORS_X87) {
        x->vectors = (uint8_t)allowed;
        x->load_vectors = wide ? (uintptr_t)load_x87_avx : (uintptr_t)load_x87;
        x->store_vectors = avx ? (uintptr_t)store_x87_avx : (uintptr_t)store_x87;
        fpu_set_mxcsr(cpu, fpu_mxcsr(cpu) & MXCSR_VALID); /* no reason for #GP */
    } else {
        x->vectors = (uint8_t)(allowed & ~(unsigned)VECTORS_X87);
        x->load_vectors = wide ? (uintptr_t)load_avx : (uintptr_t)load_sse;
        x->store_vectors = avx ? (uintptr_t)store_avx : (uintptr_t)store_sse;
    }
    return STEP_VECTORS;
}

static void enter_block(struct soft_cpu *cpu, const struct block *block, const struct insn *insn)
{
    cpu->rip = block->rip;
    cpu->rip_page = block->rip - block->offset;
    cpu->block_start = block->insns;
    cpu->insn = insn;
}

/* A block has ended with a handler: is there nothing for the run loop? As it asks itself. (The
 * table finds 16-bit code by more than RIP.) */
static bool may_jump(const struct soft_cpu *cpu)
{
    return cpu->tlb->context && !cpu->code_tag && cpu->mode.translatable && !cpu->mode.careful &&
           !cpu->no_interrupt && cpu->activity == SOFT_ACTIVE && soft_canonical(cpu->rip) &&
           !soft_cpu_has_events(cpu);
}

static void load_gs(const struct translator *t, const void *base)
{
    if (t->fsgsbase)
        __asm__ volatile("wrgsbase %0" : : "r"(base) : "memory");
    else
        syscall(SYS_arch_prctl, ARCH_SET_GS, base);
}

/* The base of GS becomes the current context. */
static void enter_context(struct soft_cpu *cpu)
{
    const uint8_t *base = mmu_gs_base(cpu->tlb->context);
    if (base != cpu->translated.gs) {
        load_gs(cpu->blocks->translator, base);
        cpu->translated.gs = base;
    }
}

/* Has the instruction changed what data are seen, but not what code is? (STAC, CLAC) */
static bool is_same_code(const struct soft_cpu *cpu, const struct insn *insn,
                         const struct soft_context *context)
{
    return cpu->tlb->context && cpu->tlb->context != context &&
           (insn->op == OP_STAC || insn->op == OP_CLAC);
}

/* Called by STEP. had: soft_translated.vectors before they were stored. */
__attribute__((used)) static enum step translate_step(struct soft_cpu *cpu, uint32_t offset,
                                                      unsigned had)
{
    const struct insn *insn = block_insn_at(cpu, offset & ~SLOW_VECTORS);
    const struct block *block = translate_block_of(insn);
    unsigned wanted = offset & SLOW_VECTORS;
    cpu->translated.indirect = NO_INDIRECT;
    state_from_code(cpu);
    const struct soft_context *context = cpu->tlb->context;
    if (wanted && !(wanted & ~vectors_allowed(cpu))) /* and what the code before relies on */
        return take_vectors(cpu, wanted | (had & block->vectors));
    /* Where they cannot be had its handler does it, or raises; what follows looks again. */
    cpu->blocks->translator->stats.steps++;
    enter_block(cpu, block, insn);
    uncount(cpu, block);
    insn->exec(cpu, insn);
    cpu->insn = NULL;
    bool stopped = cpu->stop_block;
    if (!ends_block(insn)) {
        if (is_same_code(cpu, insn, context)) {
            enter_context(cpu);
            context = cpu->tlb->context;
        }
        /* What the code behind relies on, perhaps. */
        unsigned again = insn->place < block->last_vector ? had & block->vectors : 0;
        bool leave = stopped || cpu->tlb->context != context || !cpu->mode.translatable || wanted ||
                     (again & ~vectors_allowed(cpu));
        if (leave && !stopped && cpu->blocks->translator->count) {
            /* Where interrupts can come must not depend on the tier: blocks end where they do in
             * the first. */
            soft_run_from(cpu, block, insn + 1);
            flags_to_code(cpu);
            return STEP_LEAVE;
        }
        if (leave && !cpu->rip_set)
            cpu->rip = soft_next_rip(cpu, insn);
        cpu->stop_block = cpu->rip_set = false;
        count(cpu, leave ? insn->place + 1u : translate_count_of(block));
        flags_to_code(cpu);
        return leave ? STEP_LEAVE : again ? take_vectors(cpu, block->vectors) : STEP_ON;
    }
    count(cpu, translate_count_of(block));
    cpu->stop_block = cpu->rip_set = false;
    flags_to_code(cpu);
    if (stopped || !may_jump(cpu))
        return STEP_LEAVE;
    soft_forget_resume(cpu);
    enter_context(cpu);
    uint32_t code = cpu->tlb->context->jumps[mmu_jump_slot(cpu->rip)];
    cpu->translated.resume = (uintptr_t)cpu->translated.code + code;
    return STEP_JUMP;
}

/* --- running --- */

/*
 * An indirect branch went to an address that is not canonical: #GP is the branch's, before its
 * effect on the stack.
 */
static void undo_indirect(struct soft_cpu *cpu)
{
    const struct insn *insn = block_insn_at(cpu, cpu->translated.indirect);
    const struct block *block = translate_block_of(insn);
    enter_block(cpu, block, insn);
    uncount(cpu, block);
    if (insn->op == OP_RET)
        cpu->gpr[CPU_RSP] -= 8 + (insn->imm & 0xffff);
    else if (insn->op == OP_CALL_IND)
        cpu->gpr[CPU_RSP] += 8;
    soft_raise_error(cpu, EXC_GP, 0);
}

/* Let what has left for the block's address go there by itself from now on. */
static void connect(struct soft_cpu *cpu, const struct block *block)
{
    struct translator *t = cpu->blocks->translator;
    uint8_t *displacement = t->left_at;
    if (displacement) {
        const uint8_t *entry = cpu->translated.link_saved ? block->link_saved : block->link;
        emit_lead(translate_writable(t, displacement), translate_writable(t, entry));
        t->stats.links++;
    } else {
        mmu_set_jump(cpu, block->rip, block->next_current != NULL,
                     (uint32_t)(block->indirect - t->executable),
                     (uint32_t)(block->saved - t->executable));
    }
}

void translate_run(struct soft_cpu *cpu, struct block *block)
{
    struct translator *t = cpu->blocks->translator;
    enter_context(cpu);
    if (t->left && t->left_for == (block->rip | cpu->code_tag) && t->left_key == cpu->block_key)
        connect(cpu, block);
    t->left = false;
    t->stats.entered++;
    cpu->translated.resume = (uintptr_t)block->code;
    flags_to_code(cpu);
    t->left_at = translate_enter();
    state_from_code(cpu);
    if (!soft_code64(cpu)) /* what came by the jump table has a tag */
        cpu->rip = (uint32_t)cpu->rip;
    t->left_for = cpu->rip | cpu->code_tag;
    t->left_key = cpu->block_key;
    t->left = true;
    if (!soft_canonical(cpu->rip) && cpu->translated.indirect != NO_INDIRECT)
        undo_indirect(cpu);
}

/* --- invalidation --- */

static struct block **page_list(struct translator *t, uint64_t gpa)
{
    return &t->pages[gpa >> 12 & (PAGE_LISTS - 1)];
}

static struct block **crossing_list(struct translator *t, uint64_t gpa)
{
    return &t->crossing[gpa >> 12 & (CROSSING_LISTS - 1)];
}

static bool is_same_page(uint64_t a, uint64_t b)
{
    return (a ^ b) >> 12 == 0;
}

static void drop(struct translator *t, struct block *b)
{
    uint8_t *entry = translate_writable(t, b->code);
    emit8(&(struct emit){entry}, 0xe9);
    emit_lead(entry + 1, b->stale);
    if (b->stale_saved) /* a jump it is already */
        emit_lead(translate_writable(t, b->saved) + 1, b->stale_saved);
    b->code = NULL;
    b->runs = TRANSLATE_NEVER; /* the block is stale itself */
    t->stats.dropped++;
}

/* A block that crosses a page's end is in two lists: it leaves the other one when that is next
 * walked. */
void translate_drop(struct soft_cpu *cpu, uint64_t gpa)
{
    struct translator *t = cpu->blocks ? cpu->blocks->translator : NULL;
    if (!t)
        return;
    struct block **link = page_list(t, gpa);
    while (*link) {
        struct block *b = *link;
        if (b->code && is_same_page(b->gpa, gpa))
            drop(t, b);
        if (b->code)
            link = &b->same_page;
        else
            *link = b->same_page;
    }
    link = crossing_list(t, gpa);
    while (*link) {
        struct block *b = *link;
        if (b->code && is_same_page(b->next_gpa, gpa))
            drop(t, b);
        if (b->code)
            link = &b->same_next;
        else
            *link = b->same_next;
    }
    t->left = false;
}

void translate_flush(struct soft_cpu *cpu)
{
    struct translator *t = cpu->blocks->translator;
    if (!t)
        return;
    memset(t->pages, 0, sizeof(t->pages));
    memset(t->crossing, 0, sizeof(t->crossing));
    t->used = CODE_START;
    t->left = false;
    t->since_flush = 0;
    t->stats.flushes++;
    mmu_clear_jumps(cpu);
}

/* --- translating --- */

bool translate_block(struct soft_cpu *cpu, struct block *block)
{
    struct translator *t = cpu->blocks->translator;
    if (!t || !cpu->mode.translatable || t->options.off) {
        block->runs = TRANSLATE_NEVER;
        return true;
    }
    if (block->runs < t->options.runs)
        return true;
    if (t->options.flush_every && t->since_flush++ >= t->options.flush_every) {
        block_cache_flush(cpu);
        return false;
    }
    if (t->used + TRANSLATE_BLOCK_BYTES > t->bytes) {
        block_cache_flush(cpu);
        return false;
    }
    struct emit e = {t->writable + t->used};
    uint8_t *start = e.at;
    if (!mmu_code_translated(cpu, block->gpa, block->generation) ||
        (block->next_current &&
         !mmu_code_translated(cpu, block->next_gpa, block->next_generation)) ||
        !translate_emit_block(cpu, block, &e)) {
        block->runs = TRANSLATE_NEVER;
        return true;
    }
    t->used += ((size_t)(e.at - start) + 15) & ~(size_t)15;
    struct block **list = page_list(t, block->gpa);
    block->same_page = *list;
    *list = block;
    if (block->next_current) {
        list = crossing_list(t, block->next_gpa);
        block->same_next = *list;
        *list = block;
    }
    t->stats.blocks++;
    if (t->used > t->stats.code_bytes)
        t->stats.code_bytes = t->used;
    return true;
}

void translate_configure(struct soft_cpu *cpu, const struct translate_options *options)
{
    struct translator *t = cpu->blocks->translator;
    t->options = *options;
    if (!t->options.runs)
        t->options.runs = TRANSLATE_RUNS;
    cpu->blocks->insns_max = options->single ? 1 : BLOCK_INSNS_MAX;
    block_cache_flush(cpu);
}

bool translate_test_block(struct soft_cpu *cpu, struct block *block)
{
    struct translator *t = cpu->blocks->translator;
    struct emit e = {t->writable + CODE_START};
    return cpu->mode.translatable && translate_emit_block(cpu, block, &e);
}

/* --- life --- */

size_t translate_code_bytes(const struct soft_cpu *cpu)
{
    uint64_t wanted = cpu->vm->config.code_bytes;
    return wanted ? wanted : CODE_BYTES;
}

static int map_code(struct translator *t, size_t bytes, struct err *err)
{
    int fd = memfd_create("hull-code", MFD_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "create memory for translated code");
    void *writable = MAP_FAILED, *executable = MAP_FAILED;
    int code = 0;
    if (ftruncate(fd, (off_t)bytes) == 0) {
        writable = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        executable = mmap(NULL, bytes, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    }
    if (writable == MAP_FAILED || executable == MAP_FAILED) {
        code = err_errno(err, errno, "map %u MiB for translated code", (unsigned)(bytes >> 20));
        if (writable != MAP_FAILED)
            munmap(writable, bytes);
        if (executable != MAP_FAILED)
            munmap(executable, bytes);
    } else {
        t->writable = writable;
        t->executable = executable;
        t->bytes = bytes;
    }
    close(fd);
    return code;
}

int translate_init(struct soft_cpu *cpu, struct err *err)
{
    struct translator *t = calloc(1, sizeof(*t));
    if (t)
        t->stubs = malloc(translate_stub_bytes());
    if (!t || !t->stubs) {
        free(t);
        return err_errno(err, ENOMEM, "the translator of vCPU %u", cpu->base.id);
    }
    int code = map_code(t, translate_code_bytes(cpu), err);
    if (code < 0) {
        free(t->stubs);
        free(t);
        return code;
    }
    t->host = cpu->vm->model.features;
    t->options.runs = TRANSLATE_RUNS;
    t->count = cpu->vm->clock && chip_clock_is_virtual(cpu->vm->clock);
    t->bmi2 = __builtin_cpu_supports("bmi2");
    t->avx = __builtin_cpu_supports("avx");
    t->fsgsbase = getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE;
    struct soft_translated *x = &cpu->translated;
    x->self = cpu;
    x->exit_host = (uintptr_t)thunk_exit_host;
    x->exit_saved = (uintptr_t)thunk_exit_saved;
    x->exit_link = (uintptr_t)thunk_exit_link;
    x->exit_link_saved = (uintptr_t)thunk_exit_link_saved;
    x->slow_host = (uintptr_t)thunk_slow_host;
    x->slow_saved = (uintptr_t)thunk_slow_saved;
    x->stack_read = (uintptr_t)thunk_stack_read;
    x->stack_write = (uintptr_t)thunk_stack_write;
    x->second = (uintptr_t)thunk_second;
    x->code = t->executable;
    emit_jmp_gs(&(struct emit){t->writable}, GS(translated.exit_saved));
    t->used = CODE_START;
    x->host_mxcsr = MXCSR_INIT;
    cpu->blocks->translator = t;
    return 0;
}

void translate_fini(struct soft_cpu *cpu)
{
    struct translator *t = cpu->blocks->translator;
    if (!t)
        return;
    munmap(t->writable, t->bytes);
    munmap((void *)(uintptr_t)t->executable, t->bytes);
    free(t->stubs);
    free(t);
    cpu->blocks->translator = NULL;
}

void translate_stats(const struct soft_cpu *cpu, struct translate_stats *stats)
{
    *stats = cpu->blocks->translator ? cpu->blocks->translator->stats : (struct translate_stats){0};
}
