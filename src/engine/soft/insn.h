/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A decoded instruction, and the constant facts of its opcode. The decoder (decode.h) makes it, the
 * interpreter (exec.h) runs it, a translator may read it: so it says what the instruction reads,
 * writes and needs, not how it is done.
 *
 * Terms: Intel SDM vol. 2, chapter 2 and appendix A.
 */
#ifndef HULL_ENGINE_SOFT_INSN_H
#define HULL_ENGINE_SOFT_INSN_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/soft/ops.h"

struct soft_cpu;
struct insn;

/* Execute one instruction: exec.h. */
typedef void soft_exec_fn(struct soft_cpu *cpu, const struct insn *insn);

#define INSN_LEN_MAX 15

/* Where the instruction's explicit operands are (Op/En of the SDM, less the immediate). The first
 * is the destination where there is one. */
enum insn_form {
    FORM_NONE,   /* no explicit operand but perhaps an immediate */
    FORM_RM,     /* r/m */
    FORM_RM_REG, /* r/m, reg */
    FORM_REG_RM, /* reg, r/m */
    FORM_OPREG,  /* register in the opcode's low bits: in `rm`, with is_mem false; XCHG: and rAX */
    FORM_ACC,    /* rAX with an immediate, a port, or `moffs` (in imm; is_mem is false) */
    FORM_REG_V_RM, /* VEX: reg, vvvv, r/m */
    FORM_V_RM,     /* VEX: vvvv, r/m (shifts by immediate, BLSR and the like) */
    FORM_REG_RM_V, /* VEX: reg, r/m, vvvv (BEXTR, SHLX; gathers) */
    FORM_RM_V_REG, /* VEX: r/m, vvvv, reg (VMASKMOV to memory, VMOVSS of registers) */
};

/* struct opcode.attr */
enum insn_attr {
    ATTR_BRANCH = 1 << 0,     /* ends a block: stores RIP itself, always */
    ATTR_ENDS_BLOCK = 1 << 1, /* ends a block though it is no branch: what follows may be decoded,
                               * mapped or interrupted differently */
    ATTR_LOCKABLE = 1 << 2,   /* LOCK is allowed where the destination is memory */
    ATTR_PRIVILEGED = 1 << 3, /* #GP unless CPL is 0 */
    ATTR_MEM_READ = 1 << 4,   /* the r/m operand, where it is memory, is read */
    ATTR_MEM_WRITE = 1 << 5,  /* and written */
    ATTR_MEM_ADDR = 1 << 6,   /* only its address is used (LEA, INVLPG, prefetch) */
    ATTR_STACK = 1 << 7,      /* pushes or pops */
    ATTR_STRING = 1 << 8,     /* takes REP */
    ATTR_NO64 = 1 << 9,       /* #UD in 64-bit code */
    ATTR_ONLY64 = 1 << 10,    /* #UD outside of 64-bit code */
    ATTR_FORCE64 = 1 << 11,   /* operand size is 64 in 64-bit code (SDM vol. 2, 2.2.1.7) */
    ATTR_DEFAULT64 = 1 << 12, /* 64 in 64-bit code unless 0x66 makes it 16 */
    ATTR_PROTECTED = 1 << 13, /* #UD in real and virtual-8086 mode */
    ATTR_X87 = 1 << 14,       /* unit: #NM by CR0.EM, CR0.TS */
    ATTR_MMX = 1 << 15,       /* #UD by EM, #NM by TS; x87 tag word becomes valid */
    ATTR_SSE = 1 << 16,       /* #UD by EM or without CR4.OSFXSR, #NM by TS */
    ATTR_AVX = 1 << 17,       /* VEX coded on vectors: #UD without CR4.OSXSAVE and XCR0[2:1] = 11 */
    ATTR_ALIGNED = 1 << 18,   /* a memory operand must be aligned to mem_bytes: else #GP(0) */
    ATTR_FP = 1 << 19,        /* vector floating point: uses MXCSR, may raise #XM */
    ATTR_GPR_REG = 1 << 20,   /* vector units: `reg` is a general register */
    ATTR_GPR_RM = 1 << 21,    /* vector units: `rm`, where no memory, is a general register */
    ATTR_GPR_V = 1 << 22,     /* `vvvv` is a general register (BMI) */
    ATTR_MMX_REG = 1 << 23,   /* `reg` is an MMX register */
    ATTR_MMX_RM = 1 << 24,    /* `rm`, where no memory, is an MMX register */
    ATTR_VSIB = 1 << 25,      /* index is a vector register (gathers) */
    ATTR_RM_IS_DST = 1 << 26, /* vector units: the destination is r/m (stores, PEXTR) */
    ATTR_NO_DST = 1 << 27,    /* writes no register nor memory (compare, test) */
    ATTR_IMM_REG = 1 << 28,   /* VEX: imm8[7:4] is a fourth register (VBLENDV) */
    ATTR_X87_NOWAIT = 1 << 29, /* does not look at pending x87 exceptions (FNINIT, FNSTSW, ...) */
    ATTR_XMM0 = 1 << 30,       /* reads XMM0 beside its operands (legacy BLENDV, SHA256RNDS2) */
};

/* CPUID features that instructions depend on: the decoder refuses what the model has not. */
enum insn_feature {
    FEAT_BASE,
    FEAT_CMOV,
    FEAT_X87,
    FEAT_MMX,
    FEAT_SSE,
    FEAT_SSE2,
    FEAT_SSE3,
    FEAT_SSSE3,
    FEAT_SSE41,
    FEAT_SSE42,
    FEAT_SSE4A,
    FEAT_POPCNT,
    FEAT_LZCNT, /* without it the encoding is BSR */
    FEAT_MOVBE,
    FEAT_CX8,
    FEAT_CX16,
    FEAT_AES,
    FEAT_PCLMUL,
    FEAT_AVX,
    FEAT_F16C,
    FEAT_FMA,
    FEAT_AVX2,
    FEAT_BMI1, /* without it TZCNT's encoding is BSF */
    FEAT_BMI2,
    FEAT_ADX,
    FEAT_SHA,
    FEAT_VAES,
    FEAT_VPCLMUL,
    FEAT_GFNI,
    FEAT_FXSR,
    FEAT_XSAVE,
    FEAT_XSAVEOPT,
    FEAT_XSAVEC,
    FEAT_XSAVES,
    FEAT_FSGSBASE,
    FEAT_RDTSCP,
    FEAT_RDPID,
    FEAT_RDRAND,
    FEAT_RDSEED,
    FEAT_INVPCID,
    FEAT_SMAP, /* CLAC, STAC */
    FEAT_PKU,
    FEAT_CLFLUSH,
    FEAT_CLFLUSHOPT,
    FEAT_CLWB,
    FEAT_PREFETCHW,
    FEAT_SYSCALL, /* outside of 64-bit code too */
    FEAT_SYSENTER,
    FEAT_MONITOR,
    FEAT_LAHF64,
    FEAT_3DNOW_PREFETCH,
    FEAT_MOVDIRI,
    FEAT_MOVDIR64B,
    FEAT_SERIALIZE,
    FEAT_COUNT,
};

/* A set of features; enum insn_feature < 64. */
typedef uint64_t insn_features;
#define FEATURE(name) (1ULL << FEAT_##name)

/* Constant facts of an opcode: a row of the decoder's tables. */
struct opcode {
    const char *name;    /* the SDM's mnemonic, lower case: "add", "vpaddd" */
    uint16_t op;         /* enum op: what the interpreter dispatches on */
    uint8_t form;        /* enum insn_form */
    uint8_t feature;     /* enum insn_feature */
    uint32_t attr;       /* enum insn_attr */
    uint16_t mem_bytes;  /* of the memory operand; 0: that of the operand size; vectors: of VEX.L =
                          * 0,  doubled for L = 1 where MEM_SCALES is set in the decoder's table */
    uint16_t flags_read; /* RFLAGS_ARITH and DF: bits that decide or are copied */
    uint16_t flags_written;   /* set or cleared by definition */
    uint16_t flags_undefined; /* left undefined by the manual */
};

enum insn_prefix {
    PREFIX_LOCK = 1 << 0,
    PREFIX_REP = 1 << 1,   /* F3, where it is no part of the opcode */
    PREFIX_REPNE = 1 << 2, /* F2, likewise */
    PREFIX_OPSIZE = 1 << 3,
    PREFIX_ADDRSIZE = 1 << 4,
    PREFIX_REX = 1 << 5,   /* any: byte registers 4-7 are SPL..DIL */
    PREFIX_REX_W = 1 << 6, /* or VEX.W; in 16- and 32-bit code only where it selects the opcode */
    PREFIX_VEX = 1 << 7,
};

/* Many are kept, decoded: what is small is together. */
struct insn {
    soft_exec_fn *exec; /* set by block.c from exec_bind() */
    const struct opcode *opcode;
    uint64_t imm; /* sign or zero extended as the instruction defines; moffs; for far pointers
                   * the offset */
    union {
        int32_t disp;  /* of the memory operand */
        uint16_t imm2; /* second immediate: ENTER's level, selector of a far pointer */
    };
    uint32_t stub;          /* vector and x87: its code, of stub_find(); set by exec_bind() */
    uint16_t next_offset;   /* of the next instruction from the start of the block's first page */
    uint16_t op;            /* opcode->op; or OP_UD, whatever opcode says */
    uint8_t prefixes;       /* enum insn_prefix */
    uint8_t len;            /* 1-15 */
    uint8_t op_bytes;       /* operand size: 1, 2, 4, 8; vectors: 16 or 32 by VEX.L; x87: 0 */
    uint8_t mem_bytes;      /* of the memory operand (0: none, or not fixed: XSAVE) */
    bool is_mem : 1;        /* r/m is memory */
    bool rip_relative : 1;  /* disp is from the next instruction */
    uint8_t scale : 2;      /* shift: 0-3 */
    uint8_t seg : 3;        /* enum soft_segment of the memory operand, prefixes considered */
    uint8_t reg;            /* ModRM.reg with REX.R; the segment or control register number */
    uint8_t rm;             /* ModRM.rm with REX.B, where !is_mem; FORM_OPREG's register */
    uint8_t addr_bytes : 4; /* 2, 4, 8 */
    uint8_t vvvv : 4;       /* VEX.vvvv, uninverted */
    uint8_t base, index;    /* 0-15, or GPR_ZERO; a VSIB index is the vector register */
    uint8_t modrm;          /* raw; 0 where there is none */
    uint8_t opcode_byte;    /* raw, last byte of the opcode */
    uint8_t place;          /* in its block, from 0: set by block.c */
    uint8_t bytes[INSN_LEN_MAX]; /* as fetched, zeros behind */
};
_Static_assert(sizeof(struct insn) == 64, "it has grown, and with it what a vCPU takes");

/* Of the effective address: 2^16-1, 2^32-1, all ones. */
static inline uint64_t insn_addr_mask(const struct insn *insn)
{
    return ~0ULL >> (64 - 8 * insn->addr_bytes);
}

/* Of a string instruction: by REP, REPE or REPNE. */
static inline bool insn_is_repeated(const struct insn *insn)
{
    return insn->prefixes & (PREFIX_REP | PREFIX_REPNE);
}

/* What an instruction does to the flags of RFLAGS_ARITH and DF. */
struct insn_flags {
    uint16_t read;      /* decide, are copied, or may remain */
    uint16_t written;   /* have a defined value afterwards */
    uint16_t undefined; /* have none by the manual */
};

#define INSN_COUNT_UNKNOWN (-1)

/*
 * The opcode's facts made exact for this instruction. Shifts of a count of 0 leave the flags alone,
 * of 1 define OF. `count`: CL for shifts by CL, or INSN_COUNT_UNKNOWN: then what may remain is in
 * `read` too; others ignore it. CMPS and SCAS with REP are taken for run at least once, or with
 * INSN_COUNT_UNKNOWN perhaps not at all. decode_flags.c
 */
struct insn_flags insn_flags(const struct insn *insn, int count);

/* imm8[7:4] of ATTR_IMM_REG */
static inline unsigned insn_imm_reg(const struct insn *insn)
{
    return (unsigned)(insn->imm >> 4) & 15;
}

#endif
