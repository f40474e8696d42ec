/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two-byte opcodes of general and system instructions (SDM vol. 2, tables ), and those of
 * the maps 0F 38 and 0F 3A are in decode_sse.c with the vector instructions.
 */
#include "engine/soft/decode_table.h"

#define CMOVCC8(N, COND, BITS)                                                                     \
    [0x40 + (N)] = ROWS(                                                                           \
        ROW("cmov" COND, CMOVCC, REG_RM, V, ANY, MODRM, ATTR(LOAD), FEAT(CMOV), READS(BITS))),
#define JCC32(N, COND, BITS)                                                                       \
    [0x80 + (N)] = ROWS(ROW("j" COND, JCC, NONE, V, ANY, .imm = IMM_Z, NOMEM,                      \
                            ATTR(ATTR_BRANCH | ATTR_FORCE64), READS(BITS))),
#define SETCC8(N, COND, BITS)                                                                      \
    [0x90 + (N)] = ROWS(ROW("set" COND, SETCC, RM, B, ANY, MODRM, ATTR(STORE), READS(BITS))),

/* ModRM is there, and does not matter. */
#define HINT_NOP ROW("nop", NOP, RM, V, ANY, MODRM, NOMEM, ATTR(ATTR_MEM_ADDR))

#define FLAGS_BT WRITES(CF), UNDEFINES(OF | SF | AF | PF)
/* Of a count above 1 OF is undefined; of a count of 0 no flag changes: insn_flags(). */
#define FLAGS_SHLD  WRITES(CF | SF | ZF | PF), UNDEFINES(OF | AF)
#define FLAGS_SHLDC READS(ARITH), FLAGS_SHLD
#define FLAGS_BSF   WRITES(ZF), UNDEFINES(ARITH & ~ZF)
#define FLAGS_LZCNT WRITES(CF | ZF), UNDEFINES(OF | SF | PF | AF)

#define PRIVILEGED  ATTR_PRIVILEGED
#define ENDS        ATTR_ENDS_BLOCK

/* --- rows of several bytes each --- */

static const struct decode_row hint_nop[] = {HINT_NOP, END};
static const struct decode_row bswap_reg[] = {ROW("bswap", BSWAP, OPREG, V, ANY, NOMEM), END};

/* --- the map --- */

decode_lists decode_map_0f = {
    /* group 6: a register destination has the operand size, memory 16 bits */
    [0x00] = ROWS(ROW("sldt", SLDT, RM, V, REG(0), MODRM, FIXED(2), ATTR(STORE | ATTR_PROTECTED)),
                  ROW("str", STR, RM, V, REG(1), MODRM, FIXED(2), ATTR(STORE | ATTR_PROTECTED)),
                  ROW("lldt", LLDT, RM, W, REG(2), MODRM,
                      ATTR(LOAD | PRIVILEGED | ATTR_PROTECTED | ATTR_NO_DST)),
                  ROW("ltr", LTR, RM, W, REG(3), MODRM,
                      ATTR(LOAD | PRIVILEGED | ATTR_PROTECTED | ATTR_NO_DST)),
                  ROW("verr", VERR, RM, W, REG(4), MODRM, ATTR(LOAD | ATTR_PROTECTED | ATTR_NO_DST),
                      WRITES(ZF)),
                  ROW("verw", VERW, RM, W, REG(5), MODRM, ATTR(LOAD | ATTR_PROTECTED | ATTR_NO_DST),
                      WRITES(ZF))),
    /* group 7 */
    [0x01] = ROWS(
        ROW("sgdt", SGDT, RM, V, REG(0) | MEM, MODRM, .mem = MEM_TABLE, ATTR(STORE)),
        ROW("sidt", SIDT, RM, V, REG(1) | MEM, MODRM, .mem = MEM_TABLE, ATTR(STORE)),
        ROW("lgdt", LGDT, RM, V, REG(2) | MEM, MODRM, .mem = MEM_TABLE,
            ATTR(LOAD | PRIVILEGED | ATTR_NO_DST)),
        ROW("lidt", LIDT, RM, V, REG(3) | MEM, MODRM, .mem = MEM_TABLE,
            ATTR(LOAD | PRIVILEGED | ATTR_NO_DST)),
        ROW("smsw", SMSW, RM, V, REG(4), MODRM, FIXED(2), ATTR(STORE)),
        ROW("lmsw", LMSW, RM, W, REG(6), MODRM, ATTR(LOAD | PRIVILEGED | ENDS | ATTR_NO_DST)),
        ROW("invlpg", INVLPG, RM, V, REG(7) | MEM, MODRM, NOMEM,
            ATTR(ATTR_MEM_ADDR | PRIVILEGED | ENDS)),
        ROW("vmcall", VMCALL, NONE, V, NP | RR | REG(0) | RM(1), MODRM, NOMEM, ATTR(ENDS)),
        ROW("monitor", MONITOR, NONE, V, NP | RR | REG(1) | RM(0), MODRM, NOMEM, FEAT(MONITOR)),
        ROW("mwait", MWAIT, NONE, V, NP | RR | REG(1) | RM(1), MODRM, NOMEM, FEAT(MONITOR),
            ATTR(ENDS)),
        ROW("clac", CLAC, NONE, V, NP | RR | REG(1) | RM(2), MODRM, NOMEM, FEAT(SMAP)),
        ROW("stac", STAC, NONE, V, NP | RR | REG(1) | RM(3), MODRM, NOMEM, FEAT(SMAP)),
        ROW("xgetbv", XGETBV, NONE, V, NP | RR | REG(2) | RM(0), MODRM, NOMEM, FEAT(XSAVE)),
        ROW("xsetbv", XSETBV, NONE, V, NP | RR | REG(2) | RM(1), MODRM, NOMEM, FEAT(XSAVE),
            ATTR(PRIVILEGED | ENDS)),
        ROW("vmmcall", VMMCALL, NONE, V, NP | RR | REG(3) | RM(1), MODRM, NOMEM, ATTR(ENDS)),
        ROW("serialize", SERIALIZE, NONE, V, NP | RR | REG(5) | RM(0), MODRM, NOMEM,
            FEAT(SERIALIZE), ATTR(ENDS)),
        ROW("rdpkru", RDPKRU, NONE, V, NP | RR | REG(5) | RM(6), MODRM, NOMEM, FEAT(PKU)),
        ROW("wrpkru", WRPKRU, NONE, V, NP | RR | REG(5) | RM(7), MODRM, NOMEM, FEAT(PKU)),
        ROW("swapgs", SWAPGS, NONE, V, RR | REG(7) | RM(0), MODRM, NOMEM,
            ATTR(PRIVILEGED | ATTR_ONLY64)),
        ROW("rdtscp", RDTSCP, NONE, V, RR | REG(7) | RM(1), MODRM, NOMEM, FEAT(RDTSCP))),
    [0x02] = ROWS(
        ROW("lar", LAR, REG_RM, V, ANY, MODRM, FIXED(2), ATTR(LOAD | ATTR_PROTECTED), WRITES(ZF))),
    [0x03] = ROWS(
        ROW("lsl", LSL, REG_RM, V, ANY, MODRM, FIXED(2), ATTR(LOAD | ATTR_PROTECTED), WRITES(ZF))),
    [0x05] = ROWS(ROW("syscall", SYSCALL, NONE, V, M64, NOMEM, ATTR(ATTR_BRANCH), READS(ARITH | DF),
                      WRITES(ARITH | DF)),
                  ROW("syscall", SYSCALL, NONE, V, ANY, NOMEM, FEAT(SYSCALL), ATTR(ATTR_BRANCH),
                      READS(ARITH | DF))),
    [0x06] = ROWS(ROW("clts", CLTS, NONE, V, ANY, NOMEM, ATTR(PRIVILEGED | ENDS))),
    [0x07] = ROWS(
        ROW("sysret", SYSRET, NONE, V, M64, NOMEM, ATTR(ATTR_BRANCH | PRIVILEGED),
            WRITES(ARITH | DF)),
        ROW("sysret", SYSRET, NONE, V, ANY, NOMEM, FEAT(SYSCALL), ATTR(ATTR_BRANCH | PRIVILEGED))),
    [0x08] = ROWS(ROW("invd", INVD, NONE, V, ANY, NOMEM, ATTR(PRIVILEGED))),
    [0x09] = ROWS(ROW("wbinvd", WBINVD, NONE, V, ANY, NOMEM, ATTR(PRIVILEGED))),
    [0x0b] = ROWS(ROW("ud2", UD, NONE, V, ANY, NOMEM, ATTR(ATTR_BRANCH))),
    [0x0d] = ROWS(ROW("prefetchw", PREFETCH, RM, B, REG(1) | MEM, MODRM_(ROW_FALLBACK), NOMEM,
                      FEAT(PREFETCHW), ATTR(ATTR_MEM_ADDR)),
                  /* AMD's: there is no form with a register. */
                  ROW("nop", NOP, RM, V, MEM, MODRM, NOMEM, ATTR(ATTR_MEM_ADDR))),
    [0x18] =
        ROWS(ROW("prefetchnta", PREFETCH, RM, B, REG(0) | MEM, MODRM, NOMEM, ATTR(ATTR_MEM_ADDR)),
             ROW("prefetcht0", PREFETCH, RM, B, REG(1) | MEM, MODRM, NOMEM, ATTR(ATTR_MEM_ADDR)),
             ROW("prefetcht1", PREFETCH, RM, B, REG(2) | MEM, MODRM, NOMEM, ATTR(ATTR_MEM_ADDR)),
             ROW("prefetcht2", PREFETCH, RM, B, REG(3) | MEM, MODRM, NOMEM, ATTR(ATTR_MEM_ADDR)),
             HINT_NOP),
    /* The reserved hints: MPX's and CET's (ENDBR, RDSSP) among them are no-operations. */
    [0x19] = hint_nop,
    [0x1a] = hint_nop,
    [0x1b] = hint_nop,
    [0x1c] = hint_nop,
    [0x1d] = hint_nop,
    [0x1e] = hint_nop,
    [0x1f] = hint_nop,

    [0x20] = ROWS(ROW("mov", MOV_FROM_CR, RM_REG, N, ANY, MODRM_(ROW_REG_MOD), NOMEM,
                      ATTR(PRIVILEGED), UNDEFINES(ARITH))),
    [0x21] = ROWS(ROW("mov", MOV_FROM_DR, RM_REG, N, ANY, MODRM_(ROW_REG_MOD), NOMEM,
                      ATTR(PRIVILEGED), UNDEFINES(ARITH))),
    [0x22] = ROWS(ROW("mov", MOV_TO_CR, REG_RM, N, ANY, MODRM_(ROW_REG_MOD), NOMEM,
                      ATTR(PRIVILEGED | ENDS), UNDEFINES(ARITH))),
    [0x23] = ROWS(ROW("mov", MOV_TO_DR, REG_RM, N, ANY, MODRM_(ROW_REG_MOD), NOMEM,
                      ATTR(PRIVILEGED | ENDS), UNDEFINES(ARITH))),

    [0x30] = ROWS(ROW("wrmsr", WRMSR, NONE, V, ANY, NOMEM, ATTR(PRIVILEGED | ENDS))),
    [0x31] = ROWS(ROW("rdtsc", RDTSC, NONE, V, ANY, NOMEM)),
    [0x32] = ROWS(ROW("rdmsr", RDMSR, NONE, V, ANY, NOMEM, ATTR(PRIVILEGED))),
    [0x33] = ROWS(ROW("rdpmc", RDPMC, NONE, V, ANY, NOMEM)),
    [0x34] =
        ROWS(ROW("sysenter", SYSENTER, NONE, V, ANY, NOMEM, FEAT(SYSENTER), ATTR(ATTR_BRANCH))),
    [0x35] = ROWS(ROW("sysexit", SYSEXIT, NONE, V, ANY, NOMEM, FEAT(SYSENTER),
                      ATTR(ATTR_BRANCH | PRIVILEGED))),

    CONDITIONS(CMOVCC8) CONDITIONS(JCC32) CONDITIONS(SETCC8)

        /* `reg` is the segment's number. */
        [0xa0] =
            ROWS(ROW("push", PUSH_SEG, NONE, V, ANY, NOMEM, ATTR(ATTR_STACK | ATTR_DEFAULT64))),
    [0xa1] =
        ROWS(ROW("pop", POP_SEG, NONE, V, ANY, NOMEM, ATTR(ATTR_STACK | ATTR_DEFAULT64 | ENDS))),
    [0xa2] = ROWS(ROW("cpuid", CPUID, NONE, V, ANY, NOMEM)),
    [0xa3] = ROWS(ROW("bt", BT, RM_REG, V, ANY, MODRM, ATTR(LOAD | ATTR_NO_DST), FLAGS_BT)),
    [0xa4] = ROWS(ROW("shld", SHLD, RM_REG, V, ANY, MODRM, .imm = IMM_UB, ATTR(RMW), FLAGS_SHLD)),
    [0xa5] = ROWS(ROW("shld", SHLD_CL, RM_REG, V, ANY, MODRM_(ROW_CL), ATTR(RMW), FLAGS_SHLDC)),
    [0xa8] = ROWS(ROW("push", PUSH_SEG, NONE, V, ANY, NOMEM, ATTR(ATTR_STACK | ATTR_DEFAULT64))),
    [0xa9] =
        ROWS(ROW("pop", POP_SEG, NONE, V, ANY, NOMEM, ATTR(ATTR_STACK | ATTR_DEFAULT64 | ENDS))),
    /* There is no system management mode. */
    [0xaa] = ROWS(ROW("rsm", UD, NONE, V, ANY, NOMEM, ATTR(ATTR_BRANCH))),
    [0xab] = ROWS(ROW("bts", BTS, RM_REG, V, ANY, MODRM, ATTR(LOCKED), FLAGS_BT)),
    [0xac] = ROWS(ROW("shrd", SHRD, RM_REG, V, ANY, MODRM, .imm = IMM_UB, ATTR(RMW), FLAGS_SHLD)),
    [0xad] = ROWS(ROW("shrd", SHRD_CL, RM_REG, V, ANY, MODRM_(ROW_CL), ATTR(RMW), FLAGS_SHLDC)),
    /* group 15 */
    [0xae] = ROWS(
        ROW("fxsave", FXSAVE, RM, V, NP | REG(0) | MEM | W0, MODRM, NOMEM, .opcode.mem_bytes = 512,
            FEAT(FXSR), ATTR(STORE | ATTR_X87 | ATTR_X87_NOWAIT)),
        ROW("fxsave64", FXSAVE, RM, V, NP | REG(0) | MEM | W1, MODRM, NOMEM,
            .opcode.mem_bytes = 512, FEAT(FXSR), ATTR(STORE | ATTR_X87 | ATTR_X87_NOWAIT)),
        ROW("fxrstor", FXRSTOR, RM, V, NP | REG(1) | MEM | W0, MODRM, NOMEM,
            .opcode.mem_bytes = 512, FEAT(FXSR),
            ATTR(LOAD | ATTR_NO_DST | ATTR_X87 | ATTR_X87_NOWAIT)),
        ROW("fxrstor64", FXRSTOR, RM, V, NP | REG(1) | MEM | W1, MODRM, NOMEM,
            .opcode.mem_bytes = 512, FEAT(FXSR),
            ATTR(LOAD | ATTR_NO_DST | ATTR_X87 | ATTR_X87_NOWAIT)),
        ROW("ldmxcsr", LDMXCSR, RM, D, NP | REG(2) | MEM, MODRM, FEAT(SSE),
            ATTR(LOAD | ATTR_NO_DST | ATTR_SSE)),
        ROW("stmxcsr", STMXCSR, RM, D, NP | REG(3) | MEM, MODRM, FEAT(SSE),
            ATTR(STORE | ATTR_SSE | ATTR_RM_IS_DST)),
        ROW("xsave", XSAVE, RM, V, NP | REG(4) | MEM | W0, MODRM, NOMEM, FEAT(XSAVE), ATTR(RMW)),
        ROW("xsave64", XSAVE, RM, V, NP | REG(4) | MEM | W1, MODRM, NOMEM, FEAT(XSAVE), ATTR(RMW)),
        ROW("xrstor", XRSTOR, RM, V, NP | REG(5) | MEM | W0, MODRM, NOMEM, FEAT(XSAVE),
            ATTR(LOAD | ATTR_NO_DST)),
        ROW("xrstor64", XRSTOR, RM, V, NP | REG(5) | MEM | W1, MODRM, NOMEM, FEAT(XSAVE),
            ATTR(LOAD | ATTR_NO_DST)),
        ROW("xsaveopt", XSAVEOPT, RM, V, NP | REG(6) | MEM | W0, MODRM, NOMEM, FEAT(XSAVEOPT),
            ATTR(RMW)),
        ROW("xsaveopt64", XSAVEOPT, RM, V, NP | REG(6) | MEM | W1, MODRM, NOMEM, FEAT(XSAVEOPT),
            ATTR(RMW)),
        ROW("clflush", CLFLUSH, RM, B, NP | REG(7) | MEM, MODRM, FEAT(CLFLUSH),
            ATTR(LOAD | ATTR_NO_DST)),
        ROW("clwb", CLFLUSH, RM, B, P66 | REG(6) | MEM, MODRM, FEAT(CLWB),
            ATTR(LOAD | ATTR_NO_DST)),
        ROW("clflushopt", CLFLUSH, RM, B, P66 | REG(7) | MEM, MODRM, FEAT(CLFLUSHOPT),
            ATTR(LOAD | ATTR_NO_DST)),
        ROW("rdfsbase", RDFSBASE, RM, Y, PF3 | REG(0) | RR, MODRM, FEAT(FSGSBASE),
            ATTR(ATTR_ONLY64)),
        ROW("rdgsbase", RDGSBASE, RM, Y, PF3 | REG(1) | RR, MODRM, FEAT(FSGSBASE),
            ATTR(ATTR_ONLY64)),
        ROW("wrfsbase", WRFSBASE, RM, Y, PF3 | REG(2) | RR, MODRM, FEAT(FSGSBASE),
            ATTR(ATTR_ONLY64 | ATTR_NO_DST)),
        ROW("wrgsbase", WRGSBASE, RM, Y, PF3 | REG(3) | RR, MODRM, FEAT(FSGSBASE),
            ATTR(ATTR_ONLY64 | ATTR_NO_DST)),
        ROW("lfence", FENCE, NONE, V, NP | REG(5) | RR, MODRM, NOMEM, FEAT(SSE2)),
        ROW("mfence", FENCE, NONE, V, NP | REG(6) | RR, MODRM, NOMEM, FEAT(SSE2)),
        ROW("sfence", FENCE, NONE, V, NP | REG(7) | RR, MODRM, NOMEM, FEAT(SSE))),
    [0xaf] = ROWS(ROW("imul", IMUL2, REG_RM, V, ANY, MODRM, ATTR(LOAD), WRITES(CF | OF),
                      UNDEFINES(SF | ZF | AF | PF))),
    [0xb0] = ROWS(ROW("cmpxchg", CMPXCHG, RM_REG, B, ANY, MODRM, ATTR(LOCKED), WRITES(ARITH))),
    [0xb1] = ROWS(ROW("cmpxchg", CMPXCHG, RM_REG, V, ANY, MODRM, ATTR(LOCKED), WRITES(ARITH))),
    [0xb2] = ROWS(ROW("lss", LSS, REG_RM, V, MEM, MODRM, .mem = MEM_FAR, ATTR(LOAD | ENDS))),
    [0xb3] = ROWS(ROW("btr", BTR, RM_REG, V, ANY, MODRM, ATTR(LOCKED), FLAGS_BT)),
    [0xb4] = ROWS(ROW("lfs", LFS, REG_RM, V, MEM, MODRM, .mem = MEM_FAR, ATTR(LOAD | ENDS))),
    [0xb5] = ROWS(ROW("lgs", LGS, REG_RM, V, MEM, MODRM, .mem = MEM_FAR, ATTR(LOAD | ENDS))),
    [0xb6] = ROWS(ROW("movzx", MOVZX8, REG_RM, V, ANY, MODRM, FIXED(1), ATTR(LOAD))),
    [0xb7] = ROWS(ROW("movzx", MOVZX16, REG_RM, V, ANY, MODRM, FIXED(2), ATTR(LOAD))),
    [0xb8] =
        ROWS(ROW("popcnt", POPCNT, REG_RM, V, PF3, MODRM, FEAT(POPCNT), ATTR(LOAD), WRITES(ARITH))),
    [0xb9] = ROWS(ROW("ud1", UD, REG_RM, V, ANY, MODRM, NOMEM,
                      ATTR(ATTR_MEM_ADDR | ATTR_BRANCH | ATTR_NO_DST))),
    [0xba] = ROWS(
        ROW("bt", BT_IMM, RM, V, REG(4), MODRM, .imm = IMM_UB, ATTR(LOAD | ATTR_NO_DST), FLAGS_BT),
        ROW("bts", BTS_IMM, RM, V, REG(5), MODRM, .imm = IMM_UB, ATTR(LOCKED), FLAGS_BT),
        ROW("btr", BTR_IMM, RM, V, REG(6), MODRM, .imm = IMM_UB, ATTR(LOCKED), FLAGS_BT),
        ROW("btc", BTC_IMM, RM, V, REG(7), MODRM, .imm = IMM_UB, ATTR(LOCKED), FLAGS_BT)),
    [0xbb] = ROWS(ROW("btc", BTC, RM_REG, V, ANY, MODRM, ATTR(LOCKED), FLAGS_BT)),
    [0xbc] = ROWS(ROW("tzcnt", TZCNT, REG_RM, V, PF3, MODRM_(ROW_FALLBACK), FEAT(BMI1), ATTR(LOAD),
                      FLAGS_LZCNT),
                  ROW("bsf", BSF, REG_RM, V, ANY, MODRM, ATTR(LOAD), FLAGS_BSF)),
    [0xbd] = ROWS(ROW("lzcnt", LZCNT, REG_RM, V, PF3, MODRM_(ROW_FALLBACK), FEAT(LZCNT), ATTR(LOAD),
                      FLAGS_LZCNT),
                  ROW("bsr", BSR, REG_RM, V, ANY, MODRM, ATTR(LOAD), FLAGS_BSF)),
    [0xbe] = ROWS(ROW("movsx", MOVSX8, REG_RM, V, ANY, MODRM, FIXED(1), ATTR(LOAD))),
    [0xbf] = ROWS(ROW("movsx", MOVSX16, REG_RM, V, ANY, MODRM, FIXED(2), ATTR(LOAD))),
    [0xc0] = ROWS(ROW("xadd", XADD, RM_REG, B, ANY, MODRM, ATTR(LOCKED), WRITES(ARITH))),
    [0xc1] = ROWS(ROW("xadd", XADD, RM_REG, V, ANY, MODRM, ATTR(LOCKED), WRITES(ARITH))),
    [0xc3] = ROWS(ROW("movnti", MOVNTI, RM_REG, Y, NP | MEM, MODRM, FEAT(SSE2), ATTR(STORE))),
    /* group 9 */
    [0xc7] =
        ROWS(ROW("cmpxchg8b", CMPXCHG8B, RM, Q, REG(1) | MEM | W0, MODRM, FEAT(CX8), ATTR(LOCKED),
                 WRITES(ZF)),
             ROW("cmpxchg16b", CMPXCHG16B, RM, Q, REG(1) | MEM | W1, MODRM, FIXED(16), FEAT(CX16),
                 ATTR(LOCKED | ATTR_ALIGNED), WRITES(ZF)),
             ROW("xrstors", XRSTORS, RM, V, NP | REG(3) | MEM | W0, MODRM, NOMEM, FEAT(XSAVES),
                 ATTR(LOAD | PRIVILEGED | ATTR_NO_DST)),
             ROW("xrstors64", XRSTORS, RM, V, NP | REG(3) | MEM | W1, MODRM, NOMEM, FEAT(XSAVES),
                 ATTR(LOAD | PRIVILEGED | ATTR_NO_DST)),
             ROW("xsavec", XSAVEC, RM, V, NP | REG(4) | MEM | W0, MODRM, NOMEM, FEAT(XSAVEC),
                 ATTR(STORE)),
             ROW("xsavec64", XSAVEC, RM, V, NP | REG(4) | MEM | W1, MODRM, NOMEM, FEAT(XSAVEC),
                 ATTR(STORE)),
             ROW("xsaves", XSAVES, RM, V, NP | REG(5) | MEM | W0, MODRM, NOMEM, FEAT(XSAVES),
                 ATTR(STORE | PRIVILEGED)),
             ROW("xsaves64", XSAVES, RM, V, NP | REG(5) | MEM | W1, MODRM, NOMEM, FEAT(XSAVES),
                 ATTR(STORE | PRIVILEGED)),
             ROW("rdrand", RDRAND, RM, V, NFX | REG(6) | RR, MODRM, FEAT(RDRAND), WRITES(ARITH)),
             ROW("rdseed", RDSEED, RM, V, NFX | REG(7) | RR, MODRM, FEAT(RDSEED), WRITES(ARITH)),
             ROW("rdpid", RDPID, RM, N, PF3 | REG(7) | RR, MODRM, FEAT(RDPID))),
    EIGHT(0xc8, bswap_reg),
    [0xff] = ROWS(ROW("ud0", UD, REG_RM, V, ANY, MODRM, NOMEM,
                      ATTR(ATTR_MEM_ADDR | ATTR_BRANCH | ATTR_NO_DST))),
};
