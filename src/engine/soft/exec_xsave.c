/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FXSAVE, FXRSTOR, and the XSAVE family without its supervisor forms (SDM vol. 1, chapter 13).
 *
 * Every component counts as in use: XGETBV says the same, and nothing is left out because it is
 * in its initial state.
 */
#include "engine/soft/exec_xsave.h"

#include <stddef.h>

#include "engine/soft/exec_vec.h"
#include "engine/soft/vm.h"

#define COMPONENT_X87  (1ULL << 0)
#define COMPONENT_SSE  (1ULL << 1)
#define COMPONENT_AVX  (1ULL << 2)
#define COMPONENT_PKRU (1ULL << 9)
#define XCOMP_COMPACT  (1ULL << 63)

/* In the legacy region and the header. */
#define LEGACY_ST_AT     32
#define LEGACY_XMM_AT    160
#define LEGACY_SAVED     416
#define FXSAVE_BYTES     512
#define XSTATE_BV_AT     512
#define XCOMP_BV_AT      520
#define HEADER_AT        512
#define HEADER_BYTES     64
#define XSAVE_AREA_BYTES (XSAVE_PKRU_OFFSET + XSAVE_PKRU_BYTES)

/* What the code at hand can name of a register file. */
static unsigned xmm_bytes(const struct soft_cpu *cpu)
{
    return 16 * vec_register_count(cpu);
}

static uint64_t get64(const uint8_t *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof(value));
    return value;
}

static uint32_t get32(const uint8_t *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof(value));
    return value;
}

/* Of the XSAVE family: alignment is first, as on AMD's processors. */
static uint64_t operand(struct soft_cpu *cpu, const struct insn *insn, unsigned len, bool write)
{
    insn_check_alignment(cpu, insn, 64);
    return insn_linear(cpu, insn, len, write);
}

/*
 * Of FXSAVE and FXRSTOR: an address that is wrong in itself comes before its alignment, #SS before
 * #GP, and that before the operand's end: it is the first doubleword that counts, for #AC too, and
 * as a read. As on AMD's processors.
 */
static uint64_t legacy_operand(struct soft_cpu *cpu, const struct insn *insn, bool write)
{
    uint64_t la = insn_linear(cpu, insn, 4, false);
    mmu_check_canonical(cpu, la, 4);
    mmu_check_alignment(cpu, la, 4);
    insn_check_alignment(cpu, insn, 16);
    return insn_linear(cpu, insn, FXSAVE_BYTES, write);
}

/* --- the legacy region --- */

/* Its first 24 bytes: without REX.W the pointers are 32 bits and a selector, which in 64-bit code
 * is none. */
static void put_x87_header(const struct soft_cpu *cpu, const struct insn *insn, uint8_t to[24])
{
    memcpy(to, cpu->fpu.x87, 24);
    to[X87_TAGS + 1] = 0;
    if (!(insn->prefixes & PREFIX_REX_W) && soft_code64(cpu)) {
        memset(to + X87_FIP + 4, 0, 4);
        memset(to + X87_FDP + 4, 0, 4);
    }
}

static void get_x87(struct soft_cpu *cpu, bool wide, const uint8_t *legacy)
{
    uint64_t pointer_mask = wide ? ~0ULL : 0x0000ffffffffffffULL;
    memcpy(cpu->fpu.x87, legacy, 24);
    cpu->fpu.x87[X87_TAGS + 1] = 0;
    x87_put16(cpu, X87_FOP, x87_get16(cpu, X87_FOP) & 0x7ff);
    x87_put64(cpu, X87_FIP, x87_get64(cpu, X87_FIP) & pointer_mask);
    x87_put64(cpu, X87_FDP, x87_get64(cpu, X87_FDP) & pointer_mask);
    x87_put16(cpu, X87_FCW, (x87_get16(cpu, X87_FCW) & FCW_VALID) | FCW_FIXED);
    x87_update_es(cpu);
    for (unsigned i = 0; i < 8; i++) {
        memcpy(cpu->fpu.st[i], legacy + LEGACY_ST_AT + (size_t)16 * i, 10);
        memset(cpu->fpu.st[i] + 10, 0, 6);
    }
}

static void check_mxcsr(struct soft_cpu *cpu, uint32_t mxcsr)
{
    if (mxcsr & ~MXCSR_VALID)
        soft_raise_error(cpu, EXC_GP, 0);
}

static void gate_fxsave(struct soft_cpu *cpu)
{
    if (cpu->cr0 & (CR0_EM | CR0_TS))
        soft_raise(cpu, EXC_NM);
}

static void fxsave(struct soft_cpu *cpu, const struct insn *insn)
{
    uint8_t image[LEGACY_SAVED];
    gate_fxsave(cpu);
    uint64_t la = legacy_operand(cpu, insn, true);
    mmu_check(cpu, la, FXSAVE_BYTES, true);
    memcpy(image, &cpu->fpu, sizeof(image));
    put_x87_header(cpu, insn, image);
    mmu_write_bytes(cpu, la, image, LEGACY_XMM_AT + xmm_bytes(cpu));
}

static void fxrstor(struct soft_cpu *cpu, const struct insn *insn)
{
    uint8_t image[FXSAVE_BYTES];
    gate_fxsave(cpu);
    mmu_read_bytes(cpu, legacy_operand(cpu, insn, false), image, FXSAVE_BYTES);
    check_mxcsr(cpu, get32(image + X87_MXCSR));
    get_x87(cpu, insn->prefixes & PREFIX_REX_W, image);
    fpu_set_mxcsr(cpu, get32(image + X87_MXCSR));
    memcpy(cpu->fpu.xmm, image + LEGACY_XMM_AT, xmm_bytes(cpu));
}

bool fpu_set_legacy(struct soft_cpu *cpu, const uint8_t image[FXSAVE_BYTES])
{
    uint32_t mxcsr = get32(image + X87_MXCSR);
    if (mxcsr & ~MXCSR_VALID)
        return false;
    get_x87(cpu, true, image);
    fpu_set_mxcsr(cpu, mxcsr);
    memcpy(cpu->fpu.xmm, image + LEGACY_XMM_AT, sizeof(cpu->fpu.xmm));
    return true;
}

/* --- XSAVE --- */

static void gate_xsave(struct soft_cpu *cpu)
{
    if (!(cpu->cr4 & CR4_OSXSAVE))
        soft_raise(cpu, EXC_UD);
    if (cpu->cr0 & CR0_TS)
        soft_raise(cpu, EXC_NM);
}

/* The components that EDX:EAX asks for. */
static uint64_t requested(const struct soft_cpu *cpu)
{
    return ((uint32_t)cpu->gpr[CPU_RAX] | cpu->gpr[CPU_RDX] << 32) & cpu->xcr0;
}

/* Where PKRU is: behind AVX, or in the compacted format in its place where AVX is not there. */
static unsigned pkru_offset(uint64_t format)
{
    return !(format & XCOMP_COMPACT) || format & COMPONENT_AVX ? XSAVE_PKRU_OFFSET
                                                               : XSAVE_AVX_OFFSET;
}

static unsigned area_bytes(uint64_t components, uint64_t format)
{
    if (components & COMPONENT_PKRU)
        return pkru_offset(format) + XSAVE_PKRU_BYTES;
    return components & COMPONENT_AVX ? XSAVE_AVX_OFFSET + XSAVE_AVX_BYTES : XSAVE_LEGACY_BYTES;
}

/* Write all of components but the header. */
static void save(struct soft_cpu *cpu, const struct insn *insn, uint64_t la, uint64_t components,
                 uint64_t format)
{
    if (components & COMPONENT_X87) {
        uint8_t header[24];
        put_x87_header(cpu, insn, header);
        mmu_write_bytes(cpu, la, header, sizeof(header));
        mmu_write_bytes(cpu, la + LEGACY_ST_AT, cpu->fpu.st, sizeof(cpu->fpu.st));
    }
    if (components & COMPONENT_SSE)
        mmu_write_bytes(cpu, la + LEGACY_XMM_AT, cpu->fpu.xmm, xmm_bytes(cpu));
    uint64_t with_mxcsr = format & XCOMP_COMPACT ? COMPONENT_SSE : COMPONENT_SSE | COMPONENT_AVX;
    if (components & with_mxcsr)
        mmu_write_bytes(cpu, la + X87_MXCSR, cpu->fpu.x87 + X87_MXCSR, 8);
    if (components & COMPONENT_AVX)
        mmu_write_bytes(cpu, la + XSAVE_AVX_OFFSET, cpu->fpu.ymm_hi, xmm_bytes(cpu));
    if (components & COMPONENT_PKRU)
        mmu_write64(cpu, la + pkru_offset(format), cpu->fpu.pkru);
}

/* XSAVE, XSAVEOPT: the standard format. */
static void xsave(struct soft_cpu *cpu, const struct insn *insn)
{
    gate_xsave(cpu);
    uint64_t components = requested(cpu);
    unsigned len = area_bytes(components, 0);
    uint64_t la = operand(cpu, insn, len, true);
    mmu_check(cpu, la, len, true);
    uint64_t present = mmu_read64(cpu, la + XSTATE_BV_AT);
    save(cpu, insn, la, components, 0);
    mmu_write64(cpu, la + XSTATE_BV_AT, present | components);
}

static void xsavec(struct soft_cpu *cpu, const struct insn *insn)
{
    gate_xsave(cpu);
    uint64_t components = requested(cpu);
    uint64_t format = components | XCOMP_COMPACT;
    unsigned len = area_bytes(components, format);
    uint64_t la = operand(cpu, insn, len, true);
    mmu_check(cpu, la, len, true);
    save(cpu, insn, la, components, format);
    mmu_write64(cpu, la + XSTATE_BV_AT, components);
    mmu_write64(cpu, la + XCOMP_BV_AT, format);
}

/* --- XRSTOR --- */

static bool may_be_compact(const struct soft_cpu *cpu)
{
    return !cpu->vm || cpu->vm->model.features >> FEAT_XSAVEC & 1;
}

/* Raises #GP(0) for a header that is not valid (SDM vol. 1, 13.8). */
static void check_header(struct soft_cpu *cpu, const uint8_t header[HEADER_BYTES])
{
    uint64_t present = get64(header), format = get64(header + 8);
    uint64_t reserved = 0;
    for (unsigned i = 16; i < HEADER_BYTES; i += 8) {
        /* The standard format leaves the last 40 bytes to software. */
        if (i < 24 || format & XCOMP_COMPACT)
            reserved |= get64(header + i);
    }
    bool valid = format & XCOMP_COMPACT ? may_be_compact(cpu) && !(present & ~format) &&
                                              !(format & ~XCOMP_COMPACT & ~cpu->xcr0)
                                        : format == 0 && !(present & ~cpu->xcr0);
    if (!valid || reserved)
        soft_raise_error(cpu, EXC_GP, 0);
}

/* MXCSR: with SSE; in the standard format with AVX as well, and whatever the header says. */
static bool takes_mxcsr(uint64_t components, uint64_t present, uint64_t format)
{
    if (format & XCOMP_COMPACT)
        return components & present & COMPONENT_SSE;
    return components & (COMPONENT_SSE | COMPONENT_AVX);
}

static void restore_pkru(struct soft_cpu *cpu, const uint8_t *from, bool present)
{
    uint32_t value = present ? get32(from) : 0;
    mmu_set_pkru(cpu, value);
}

static void load_or_clear(void *to, const uint8_t *from, size_t len, bool present)
{
    if (present)
        memcpy(to, from, len);
    else
        memset(to, 0, len);
}

static void xrstor(struct soft_cpu *cpu, const struct insn *insn)
{
    uint8_t area[XSAVE_AREA_BYTES];
    gate_xsave(cpu);
    uint64_t components = requested(cpu);
    uint64_t la = operand(cpu, insn, XSAVE_LEGACY_BYTES, false);
    mmu_read_bytes(cpu, la, area, XSAVE_LEGACY_BYTES);
    check_header(cpu, area + HEADER_AT);
    uint64_t present = get64(area + XSTATE_BV_AT), format = get64(area + XCOMP_BV_AT);
    /* A component that the compacted format leaves out becomes initial. */
    unsigned len = area_bytes(components & present, format);
    if (len > XSAVE_LEGACY_BYTES)
        mmu_read_bytes(cpu, operand(cpu, insn, len, false) + XSAVE_LEGACY_BYTES,
                       area + XSAVE_LEGACY_BYTES, len - XSAVE_LEGACY_BYTES);
    bool mxcsr = takes_mxcsr(components, present, format);
    if (mxcsr)
        check_mxcsr(cpu, get32(area + X87_MXCSR));

    if (components & COMPONENT_X87 && present & COMPONENT_X87) {
        get_x87(cpu, insn->prefixes & PREFIX_REX_W, area);
    } else if (components & COMPONENT_X87) {
        x87_init(cpu);
        memset(cpu->fpu.st, 0, sizeof(cpu->fpu.st));
    }
    if (mxcsr)
        fpu_set_mxcsr(cpu, get32(area + X87_MXCSR));
    else if (components & COMPONENT_SSE)
        fpu_set_mxcsr(cpu, MXCSR_INIT);
    if (components & COMPONENT_SSE)
        load_or_clear(cpu->fpu.xmm, area + LEGACY_XMM_AT, xmm_bytes(cpu), present & COMPONENT_SSE);
    if (components & COMPONENT_AVX)
        load_or_clear(cpu->fpu.ymm_hi, area + XSAVE_AVX_OFFSET, xmm_bytes(cpu),
                      present & COMPONENT_AVX);
    if (components & COMPONENT_PKRU)
        restore_pkru(cpu, area + pkru_offset(format), present & COMPONENT_PKRU);
}

soft_exec_fn *xsave_bind(const struct insn *insn)
{
    switch (insn->op) {
    case OP_FXSAVE:
        return fxsave;
    case OP_FXRSTOR:
        return fxrstor;
    case OP_XSAVE:
    case OP_XSAVEOPT:
        return xsave;
    case OP_XSAVEC:
        return xsavec;
    case OP_XRSTOR:
        return xrstor;
    default: /* XSAVES, XRSTORS: not offered */
        return NULL;
    }
}
