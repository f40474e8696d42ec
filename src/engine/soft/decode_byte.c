/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One-byte opcodes (SDM vol. 2, tables ).
 */
#include "engine/soft/decode_table.h"

/* --- arithmetic in six forms, and group 1 --- */

/* NAME at FIRST to FIRST + 5; DST: attributes of an r/m that is the destination. */
#define ALU(FIRST, NAME, OP, DST, NODST, ...)                                                      \
    [(FIRST) + 0] = ROWS(ROW(NAME, OP, RM_REG, B, ANY, MODRM, ATTR(DST), __VA_ARGS__)),            \
               [(FIRST) + 1] = ROWS(ROW(NAME, OP, RM_REG, V, ANY, MODRM, ATTR(DST), __VA_ARGS__)), \
               [(FIRST) + 2] =                                                                     \
                   ROWS(ROW(NAME, OP, REG_RM, B, ANY, MODRM, ATTR(LOAD | (NODST)), __VA_ARGS__)),  \
               [(FIRST) + 3] =                                                                     \
                   ROWS(ROW(NAME, OP, REG_RM, V, ANY, MODRM, ATTR(LOAD | (NODST)), __VA_ARGS__)),  \
               [(FIRST) + 4] = ROWS(                                                               \
                   ROW(NAME, OP, ACC, B, ANY, .imm = IMM_B, ATTR(NODST), NOMEM, __VA_ARGS__)),     \
               [(FIRST) + 5] =                                                                     \
                   ROWS(ROW(NAME, OP, ACC, V, ANY, .imm = IMM_Z, ATTR(NODST), NOMEM, __VA_ARGS__))

#define FLAGS_ADD WRITES(ARITH)
#define FLAGS_ADC READS(CF), WRITES(ARITH)
#define FLAGS_AND WRITES(ARITH & ~AF), UNDEFINES(AF)

#define GROUP1(SIZE, IMM, MORE)                                                                    \
    ROWS(ROW("add", ADD, RM, SIZE, REG(0), MODRM, .imm = IMM, ATTR(LOCKED | (MORE)), FLAGS_ADD),   \
         ROW("or", OR, RM, SIZE, REG(1), MODRM, .imm = IMM, ATTR(LOCKED | (MORE)), FLAGS_AND),     \
         ROW("adc", ADC, RM, SIZE, REG(2), MODRM, .imm = IMM, ATTR(LOCKED | (MORE)), FLAGS_ADC),   \
         ROW("sbb", SBB, RM, SIZE, REG(3), MODRM, .imm = IMM, ATTR(LOCKED | (MORE)), FLAGS_ADC),   \
         ROW("and", AND, RM, SIZE, REG(4), MODRM, .imm = IMM, ATTR(LOCKED | (MORE)), FLAGS_AND),   \
         ROW("sub", SUB, RM, SIZE, REG(5), MODRM, .imm = IMM, ATTR(LOCKED | (MORE)), FLAGS_ADD),   \
         ROW("xor", XOR, RM, SIZE, REG(6), MODRM, .imm = IMM, ATTR(LOCKED | (MORE)), FLAGS_AND),   \
         ROW("cmp", CMP, RM, SIZE, REG(7), MODRM, .imm = IMM, ATTR(LOAD | ATTR_NO_DST | (MORE)),   \
             FLAGS_ADD))

/* --- group 2: shifts; /6 is an alias of /4 --- */

/* Of a count above 1 OF is undefined; of a count of 0 no flag changes: insn_flags(). */
#define FLAGS_ROTATE  WRITES(CF), UNDEFINES(OF)
#define FLAGS_RCARRY  READS(CF), WRITES(CF), UNDEFINES(OF)
#define FLAGS_SHIFT   WRITES(CF | SF | ZF | PF), UNDEFINES(OF | AF)
#define FLAGS_ROTATE1 WRITES(CF | OF)
#define FLAGS_RCARRY1 READS(CF), WRITES(CF | OF)
#define FLAGS_SHIFT1  WRITES(ARITH & ~AF), UNDEFINES(AF)
/* By CL the old flags may remain. */
#define FLAGS_ROTATEC READS(CF | OF), WRITES(CF), UNDEFINES(OF)
#define FLAGS_SHIFTC  READS(ARITH), WRITES(CF | SF | ZF | PF), UNDEFINES(OF | AF)

#define GROUP2(SIZE, SUFFIX, IMM, FLAG, ROTATE, RCARRY, SHIFT)                                     \
    ROWS(ROW("rol", ROL##SUFFIX, RM, SIZE, REG(0), MODRM_(FLAG), .imm = IMM, ATTR(RMW), ROTATE),   \
         ROW("ror", ROR##SUFFIX, RM, SIZE, REG(1), MODRM_(FLAG), .imm = IMM, ATTR(RMW), ROTATE),   \
         ROW("rcl", RCL##SUFFIX, RM, SIZE, REG(2), MODRM_(FLAG), .imm = IMM, ATTR(RMW), RCARRY),   \
         ROW("rcr", RCR##SUFFIX, RM, SIZE, REG(3), MODRM_(FLAG), .imm = IMM, ATTR(RMW), RCARRY),   \
         ROW("shl", SHL##SUFFIX, RM, SIZE, REG(4), MODRM_(FLAG), .imm = IMM, ATTR(RMW), SHIFT),    \
         ROW("shr", SHR##SUFFIX, RM, SIZE, REG(5), MODRM_(FLAG), .imm = IMM, ATTR(RMW), SHIFT),    \
         ROW("shl", SHL##SUFFIX, RM, SIZE, REG(6), MODRM_(FLAG), .imm = IMM, ATTR(RMW), SHIFT),    \
         ROW("sar", SAR##SUFFIX, RM, SIZE, REG(7), MODRM_(FLAG), .imm = IMM, ATTR(RMW), SHIFT))

/* --- group 3: /1 is an alias of /0 --- */

#define FLAGS_MUL WRITES(CF | OF), UNDEFINES(SF | ZF | AF | PF)
#define FLAGS_DIV UNDEFINES(ARITH)
#define GROUP3(SIZE, IMM)                                                                          \
    ROWS(ROW("test", TEST, RM, SIZE, REG(0), MODRM, .imm = IMM, ATTR(LOAD | ATTR_NO_DST),          \
             FLAGS_AND),                                                                           \
         ROW("test", TEST, RM, SIZE, REG(1), MODRM, .imm = IMM, ATTR(LOAD | ATTR_NO_DST),          \
             FLAGS_AND),                                                                           \
         ROW("not", NOT, RM, SIZE, REG(2), MODRM, ATTR(LOCKED)),                                   \
         ROW("neg", NEG, RM, SIZE, REG(3), MODRM, ATTR(LOCKED), FLAGS_ADD),                        \
         ROW("mul", MUL, RM, SIZE, REG(4), MODRM, ATTR(LOAD), FLAGS_MUL),                          \
         ROW("imul", IMUL1, RM, SIZE, REG(5), MODRM, ATTR(LOAD), FLAGS_MUL),                       \
         ROW("div", DIV, RM, SIZE, REG(6), MODRM, ATTR(LOAD), FLAGS_DIV),                          \
         ROW("idiv", IDIV, RM, SIZE, REG(7), MODRM, ATTR(LOAD), FLAGS_DIV))

#define FLAGS_INC WRITES(ARITH & ~CF)

/* --- conditional jumps --- */

#define JCC8(N, COND, BITS)                                                                        \
    [0x70 + (N)] = ROWS(ROW("j" COND, JCC, NONE, V, ANY, .imm = IMM_B, NOMEM,                      \
                            ATTR(ATTR_BRANCH | ATTR_FORCE64), READS(BITS))),

/* --- string instructions: names by operand size --- */

#define STRING(BYTE, NAME, OP, ...)                                                                \
    [BYTE] = ROWS(ROW(NAME "b", OP, NONE, B, ANY, ATTR(ATTR_STRING), __VA_ARGS__)),                \
    [(BYTE) + 1] = ROWS(ROW(NAME "w", OP, NONE, V, O16, ATTR(ATTR_STRING), __VA_ARGS__),           \
                        ROW(NAME "d", OP, NONE, V, O32, ATTR(ATTR_STRING), __VA_ARGS__),           \
                        ROW(NAME "q", OP, NONE, V, O64, ATTR(ATTR_STRING), __VA_ARGS__))
#define STRING_IO(BYTE, NAME, OP)                                                                  \
    [BYTE] = ROWS(ROW(NAME "b", OP, NONE, B, ANY, ATTR(ATTR_STRING), READS(DF))),                  \
    [(BYTE) + 1] = ROWS(ROW(NAME "w", OP, NONE, Z, O16, ATTR(ATTR_STRING), READS(DF)),             \
                        ROW(NAME "d", OP, NONE, Z, ANY, ATTR(ATTR_STRING), READS(DF)))

#define FAR_BRANCH (ATTR_BRANCH)
#define FLAGS_INT  READS(ARITH | DF)
#define FLAGS_IRET WRITES(ARITH | DF)

/* --- rows of several bytes each --- */

static const struct decode_row inc_reg[] = {
    ROW("inc", INC, OPREG, V, ANY, NOMEM, ATTR(ATTR_NO64), FLAGS_INC), END};
static const struct decode_row dec_reg[] = {
    ROW("dec", DEC, OPREG, V, ANY, NOMEM, ATTR(ATTR_NO64), FLAGS_INC), END};
static const struct decode_row push_reg[] = {
    ROW("push", PUSH, OPREG, V, ANY, NOMEM, ATTR(ATTR_STACK | ATTR_DEFAULT64)), END};
static const struct decode_row pop_reg[] = {
    ROW("pop", POP, OPREG, V, ANY, NOMEM, ATTR(ATTR_STACK | ATTR_DEFAULT64)), END};
static const struct decode_row xchg_acc[] = {ROW("xchg", XCHG, OPREG, V, ANY, NOMEM), END};
static const struct decode_row mov_imm8[] = {
    ROW("mov", MOV_IMM, OPREG, B, ANY, .imm = IMM_V, NOMEM), END};
static const struct decode_row mov_imm[] = {ROW("mov", MOV_IMM, OPREG, V, ANY, .imm = IMM_V, NOMEM),
                                            END};

/* --- the map --- */

decode_lists decode_map_byte = {
    ALU(0x00, "add", ADD, LOCKED, 0, FLAGS_ADD),
    ALU(0x08, "or", OR, LOCKED, 0, FLAGS_AND),
    ALU(0x10, "adc", ADC, LOCKED, 0, FLAGS_ADC),
    ALU(0x18, "sbb", SBB, LOCKED, 0, FLAGS_ADC),
    ALU(0x20, "and", AND, LOCKED, 0, FLAGS_AND),
    ALU(0x28, "sub", SUB, LOCKED, 0, FLAGS_ADD),
    ALU(0x30, "xor", XOR, LOCKED, 0, FLAGS_AND),
    ALU(0x38, "cmp", CMP, LOAD | ATTR_NO_DST, ATTR_NO_DST, FLAGS_ADD),

    /* `reg` is the segment's number. */
    [0x06] = ROWS(ROW("push", PUSH_SEG, NONE, V, ANY, NOMEM, ATTR(ATTR_NO64 | ATTR_STACK))),
    [0x07] = ROWS(
        ROW("pop", POP_SEG, NONE, V, ANY, NOMEM, ATTR(ATTR_NO64 | ATTR_STACK | ATTR_ENDS_BLOCK))),
    [0x0e] = ROWS(ROW("push", PUSH_SEG, NONE, V, ANY, NOMEM, ATTR(ATTR_NO64 | ATTR_STACK))),
    [0x16] = ROWS(ROW("push", PUSH_SEG, NONE, V, ANY, NOMEM, ATTR(ATTR_NO64 | ATTR_STACK))),
    [0x17] = ROWS(
        ROW("pop", POP_SEG, NONE, V, ANY, NOMEM, ATTR(ATTR_NO64 | ATTR_STACK | ATTR_ENDS_BLOCK))),
    [0x1e] = ROWS(ROW("push", PUSH_SEG, NONE, V, ANY, NOMEM, ATTR(ATTR_NO64 | ATTR_STACK))),
    [0x1f] = ROWS(
        ROW("pop", POP_SEG, NONE, V, ANY, NOMEM, ATTR(ATTR_NO64 | ATTR_STACK | ATTR_ENDS_BLOCK))),

    [0x27] = ROWS(ROW("daa", DAA, NONE, B, ANY, NOMEM, ATTR(ATTR_NO64), READS(CF | AF),
                      WRITES(ARITH & ~OF), UNDEFINES(OF))),
    [0x2f] = ROWS(ROW("das", DAS, NONE, B, ANY, NOMEM, ATTR(ATTR_NO64), READS(CF | AF),
                      WRITES(ARITH & ~OF), UNDEFINES(OF))),
    [0x37] = ROWS(ROW("aaa", AAA, NONE, B, ANY, NOMEM, ATTR(ATTR_NO64), READS(AF), WRITES(AF | CF),
                      UNDEFINES(OF | SF | ZF | PF))),
    [0x3f] = ROWS(ROW("aas", AAS, NONE, B, ANY, NOMEM, ATTR(ATTR_NO64), READS(AF), WRITES(AF | CF),
                      UNDEFINES(OF | SF | ZF | PF))),

    EIGHT(0x40, inc_reg),
    EIGHT(0x48, dec_reg),
    EIGHT(0x50, push_reg),
    EIGHT(0x58, pop_reg),
    [0x60] = ROWS(ROW("pusha", PUSHA, NONE, V, O16, NOMEM, ATTR(ATTR_NO64 | ATTR_STACK)),
                  ROW("pushad", PUSHA, NONE, V, ANY, NOMEM, ATTR(ATTR_NO64 | ATTR_STACK))),
    [0x61] = ROWS(ROW("popa", POPA, NONE, V, O16, NOMEM, ATTR(ATTR_NO64 | ATTR_STACK)),
                  ROW("popad", POPA, NONE, V, ANY, NOMEM, ATTR(ATTR_NO64 | ATTR_STACK))),
    /* BOUND; with a register operand, and in 64-bit code, EVEX, which is not offered. */
    [0x62] = ROWS(ROW("bound", BOUND, REG_RM, V, MEM, MODRM, .mem = MEM_PAIR,
                      ATTR(LOAD | ATTR_NO64 | ATTR_NO_DST))),
    [0x63] =
        ROWS(ROW("movsxd", MOVSXD, REG_RM, V, M64 | O16, MODRM, FIXED(2), ATTR(LOAD | ATTR_ONLY64)),
             ROW("movsxd", MOVSXD, REG_RM, V, M64, MODRM, FIXED(4), ATTR(LOAD | ATTR_ONLY64)),
             ROW("arpl", ARPL, RM_REG, W, MLEG, MODRM, ATTR(RMW | ATTR_NO64 | ATTR_PROTECTED),
                 WRITES(ZF))),
    [0x68] = ROWS(ROW("push", PUSH_IMM, NONE, V, ANY, .imm = IMM_Z, NOMEM,
                      ATTR(ATTR_STACK | ATTR_DEFAULT64))),
    [0x69] = ROWS(ROW("imul", IMUL3, REG_RM, V, ANY, MODRM, .imm = IMM_Z, ATTR(LOAD), FLAGS_MUL)),
    [0x6a] = ROWS(ROW("push", PUSH_IMM, NONE, V, ANY, .imm = IMM_B, NOMEM,
                      ATTR(ATTR_STACK | ATTR_DEFAULT64))),
    [0x6b] = ROWS(ROW("imul", IMUL3, REG_RM, V, ANY, MODRM, .imm = IMM_B, ATTR(LOAD), FLAGS_MUL)),
    STRING_IO(0x6c, "ins", INS),
    STRING_IO(0x6e, "outs", OUTS),

    CONDITIONS(JCC8)

        [0x80] = GROUP1(B, IMM_B, 0),
    [0x81] = GROUP1(V, IMM_Z, 0),
    [0x82] = GROUP1(B, IMM_B, ATTR_NO64),
    [0x83] = GROUP1(V, IMM_B, 0),
    [0x84] = ROWS(ROW("test", TEST, RM_REG, B, ANY, MODRM, ATTR(LOAD | ATTR_NO_DST), FLAGS_AND)),
    [0x85] = ROWS(ROW("test", TEST, RM_REG, V, ANY, MODRM, ATTR(LOAD | ATTR_NO_DST), FLAGS_AND)),
    [0x86] = ROWS(ROW("xchg", XCHG, RM_REG, B, ANY, MODRM, ATTR(LOCKED))),
    [0x87] = ROWS(ROW("xchg", XCHG, RM_REG, V, ANY, MODRM, ATTR(LOCKED))),
    [0x88] = ROWS(ROW("mov", MOV, RM_REG, B, ANY, MODRM, ATTR(STORE))),
    [0x89] = ROWS(ROW("mov", MOV, RM_REG, V, ANY, MODRM, ATTR(STORE))),
    [0x8a] = ROWS(ROW("mov", MOV, REG_RM, B, ANY, MODRM, ATTR(LOAD))),
    [0x8b] = ROWS(ROW("mov", MOV, REG_RM, V, ANY, MODRM, ATTR(LOAD))),
    [0x8c] = ROWS(ROW("mov", MOV_FROM_SEG, RM_REG, W, MEM, MODRM, ATTR(STORE)),
                  ROW("mov", MOV_FROM_SEG, RM_REG, V, RR, MODRM)),
    [0x8d] = ROWS(ROW("lea", LEA, REG_RM, V, MEM, MODRM, NOMEM, ATTR(ATTR_MEM_ADDR))),
    [0x8e] = ROWS(ROW("mov", MOV_TO_SEG, REG_RM, W, ANY, MODRM, ATTR(LOAD | ATTR_ENDS_BLOCK))),
    /* Other /n are XOP on some processors. */
    [0x8f] = ROWS(ROW("pop", POP, RM, V, REG(0), MODRM, ATTR(STORE | ATTR_STACK | ATTR_DEFAULT64))),

    [0x90] = ROWS(ROW("pause", PAUSE, NONE, V, PF3 | REXB0, NOMEM),
                  ROW("nop", NOP, NONE, V, REXB0, NOMEM), ROW("xchg", XCHG, OPREG, V, ANY, NOMEM)),
    [0x91] = xchg_acc,
    [0x92] = xchg_acc,
    [0x93] = xchg_acc,
    [0x94] = xchg_acc,
    [0x95] = xchg_acc,
    [0x96] = xchg_acc,
    [0x97] = xchg_acc,
    [0x98] = ROWS(ROW("cbw", CBW, NONE, V, O16, NOMEM), ROW("cwde", CBW, NONE, V, O32, NOMEM),
                  ROW("cdqe", CBW, NONE, V, O64, NOMEM)),
    [0x99] = ROWS(ROW("cwd", CWD, NONE, V, O16, NOMEM), ROW("cdq", CWD, NONE, V, O32, NOMEM),
                  ROW("cqo", CWD, NONE, V, O64, NOMEM)),
    [0x9a] = ROWS(ROW("call", CALL_FAR, NONE, V, ANY, .imm = IMM_FAR, NOMEM,
                      ATTR(FAR_BRANCH | ATTR_STACK | ATTR_NO64))),
    [0x9b] = ROWS(ROW("fwait", FWAIT, NONE, 0, ANY, NOMEM, FEAT(X87))),
    [0x9c] = ROWS(ROW("pushf", PUSHF, NONE, V, O16, NOMEM, ATTR(ATTR_STACK), READS(ARITH | DF)),
                  ROW("pushfq", PUSHF, NONE, V, M64, NOMEM, ATTR(ATTR_STACK | ATTR_DEFAULT64),
                      READS(ARITH | DF)),
                  ROW("pushfd", PUSHF, NONE, V, ANY, NOMEM, ATTR(ATTR_STACK), READS(ARITH | DF))),
    [0x9d] = ROWS(ROW("popf", POPF, NONE, V, O16, NOMEM, ATTR(ATTR_STACK | ATTR_ENDS_BLOCK),
                      WRITES(ARITH | DF)),
                  ROW("popfq", POPF, NONE, V, M64, NOMEM,
                      ATTR(ATTR_STACK | ATTR_DEFAULT64 | ATTR_ENDS_BLOCK), WRITES(ARITH | DF)),
                  ROW("popfd", POPF, NONE, V, ANY, NOMEM, ATTR(ATTR_STACK | ATTR_ENDS_BLOCK),
                      WRITES(ARITH | DF))),
    [0x9e] = ROWS(ROW("sahf", SAHF, NONE, B, M64, NOMEM, FEAT(LAHF64), WRITES(ARITH & ~OF)),
                  ROW("sahf", SAHF, NONE, B, ANY, NOMEM, WRITES(ARITH & ~OF))),
    [0x9f] = ROWS(ROW("lahf", LAHF, NONE, B, M64, NOMEM, FEAT(LAHF64), READS(ARITH & ~OF)),
                  ROW("lahf", LAHF, NONE, B, ANY, NOMEM, READS(ARITH & ~OF))),

    /* is_mem stays false: the offset is in imm. */
    [0xa0] = ROWS(ROW("mov", MOV_MOFFS_LOAD, ACC, B, ANY, .imm = IMM_MOFFS, ATTR(LOAD))),
    [0xa1] = ROWS(ROW("mov", MOV_MOFFS_LOAD, ACC, V, ANY, .imm = IMM_MOFFS, ATTR(LOAD))),
    [0xa2] = ROWS(ROW("mov", MOV_MOFFS_STORE, ACC, B, ANY, .imm = IMM_MOFFS, ATTR(STORE))),
    [0xa3] = ROWS(ROW("mov", MOV_MOFFS_STORE, ACC, V, ANY, .imm = IMM_MOFFS, ATTR(STORE))),
    STRING(0xa4, "movs", MOVS, READS(DF)),
    STRING(0xa6, "cmps", CMPS, READS(DF), WRITES(ARITH)),
    [0xa8] =
        ROWS(ROW("test", TEST, ACC, B, ANY, .imm = IMM_B, NOMEM, ATTR(ATTR_NO_DST), FLAGS_AND)),
    [0xa9] =
        ROWS(ROW("test", TEST, ACC, V, ANY, .imm = IMM_Z, NOMEM, ATTR(ATTR_NO_DST), FLAGS_AND)),
    STRING(0xaa, "stos", STOS, READS(DF)),
    STRING(0xac, "lods", LODS, READS(DF)),
    STRING(0xae, "scas", SCAS, READS(DF), WRITES(ARITH)),

    EIGHT(0xb0, mov_imm8),
    EIGHT(0xb8, mov_imm),

    [0xc0] = GROUP2(B, , IMM_UB, 0, FLAGS_ROTATE, FLAGS_RCARRY, FLAGS_SHIFT),
    [0xc1] = GROUP2(V, , IMM_UB, 0, FLAGS_ROTATE, FLAGS_RCARRY, FLAGS_SHIFT),
    [0xc2] = ROWS(ROW("ret", RET, NONE, V, ANY, .imm = IMM_UW, NOMEM,
                      ATTR(ATTR_BRANCH | ATTR_STACK | ATTR_FORCE64))),
    [0xc3] =
        ROWS(ROW("ret", RET, NONE, V, ANY, NOMEM, ATTR(ATTR_BRANCH | ATTR_STACK | ATTR_FORCE64))),
    [0xc4] = ROWS(ROW("les", LES, REG_RM, V, MEM, MODRM, .mem = MEM_FAR,
                      ATTR(LOAD | ATTR_NO64 | ATTR_ENDS_BLOCK))),
    [0xc5] = ROWS(ROW("lds", LDS, REG_RM, V, MEM, MODRM, .mem = MEM_FAR,
                      ATTR(LOAD | ATTR_NO64 | ATTR_ENDS_BLOCK))),
    [0xc6] = ROWS(ROW("mov", MOV_IMM, RM, B, REG(0), MODRM, .imm = IMM_B, ATTR(STORE))),
    [0xc7] = ROWS(ROW("mov", MOV_IMM, RM, V, REG(0), MODRM, .imm = IMM_Z, ATTR(STORE))),
    [0xc8] = ROWS(ROW("enter", ENTER, NONE, V, ANY, .imm = IMM_ENTER, NOMEM,
                      ATTR(ATTR_STACK | ATTR_DEFAULT64))),
    [0xc9] = ROWS(ROW("leave", LEAVE, NONE, V, ANY, NOMEM, ATTR(ATTR_STACK | ATTR_DEFAULT64))),
    [0xca] = ROWS(
        ROW("retf", RET_FAR, NONE, V, ANY, .imm = IMM_UW, NOMEM, ATTR(FAR_BRANCH | ATTR_STACK))),
    [0xcb] = ROWS(ROW("retf", RET_FAR, NONE, V, ANY, NOMEM, ATTR(FAR_BRANCH | ATTR_STACK))),
    [0xcc] = ROWS(ROW("int3", INT3, NONE, V, ANY, NOMEM, ATTR(ATTR_BRANCH), FLAGS_INT)),
    [0xcd] =
        ROWS(ROW("int", INT, NONE, V, ANY, .imm = IMM_UB, NOMEM, ATTR(ATTR_BRANCH), FLAGS_INT)),
    [0xce] = ROWS(ROW("into", INTO, NONE, V, ANY, NOMEM, ATTR(ATTR_BRANCH | ATTR_NO64), FLAGS_INT)),
    [0xcf] =
        ROWS(ROW("iret", IRET, NONE, V, O16, NOMEM, ATTR(FAR_BRANCH | ATTR_STACK), FLAGS_IRET),
             ROW("iretd", IRET, NONE, V, O32, NOMEM, ATTR(FAR_BRANCH | ATTR_STACK), FLAGS_IRET),
             ROW("iretq", IRET, NONE, V, O64, NOMEM, ATTR(FAR_BRANCH | ATTR_STACK), FLAGS_IRET)),

    [0xd0] = GROUP2(B, , IMM_ONE, 0, FLAGS_ROTATE1, FLAGS_RCARRY1, FLAGS_SHIFT1),
    [0xd1] = GROUP2(V, , IMM_ONE, 0, FLAGS_ROTATE1, FLAGS_RCARRY1, FLAGS_SHIFT1),
    [0xd2] = GROUP2(B, _CL, IMM_NONE, ROW_CL, FLAGS_ROTATEC, FLAGS_ROTATEC, FLAGS_SHIFTC),
    [0xd3] = GROUP2(V, _CL, IMM_NONE, ROW_CL, FLAGS_ROTATEC, FLAGS_ROTATEC, FLAGS_SHIFTC),
    [0xd4] = ROWS(ROW("aam", AAM, NONE, B, ANY, .imm = IMM_UB, NOMEM, ATTR(ATTR_NO64),
                      WRITES(SF | ZF | PF), UNDEFINES(OF | AF | CF))),
    [0xd5] = ROWS(ROW("aad", AAD, NONE, B, ANY, .imm = IMM_UB, NOMEM, ATTR(ATTR_NO64),
                      WRITES(SF | ZF | PF), UNDEFINES(OF | AF | CF))),
    [0xd6] = ROWS(ROW("salc", SALC, NONE, B, ANY, NOMEM, ATTR(ATTR_NO64), READS(CF))),
    [0xd7] = ROWS(ROW("xlatb", XLAT, NONE, B, ANY)),
    [0xd8] = decode_x87_d8,
    [0xd9] = decode_x87_d9,
    [0xda] = decode_x87_da,
    [0xdb] = decode_x87_db,
    [0xdc] = decode_x87_dc,
    [0xdd] = decode_x87_dd,
    [0xde] = decode_x87_de,
    [0xdf] = decode_x87_df,

    [0xe0] = ROWS(ROW("loopne", LOOPNE, NONE, V, ANY, .imm = IMM_B, NOMEM,
                      ATTR(ATTR_BRANCH | ATTR_FORCE64), READS(ZF))),
    [0xe1] = ROWS(ROW("loope", LOOPE, NONE, V, ANY, .imm = IMM_B, NOMEM,
                      ATTR(ATTR_BRANCH | ATTR_FORCE64), READS(ZF))),
    [0xe2] = ROWS(
        ROW("loop", LOOP, NONE, V, ANY, .imm = IMM_B, NOMEM, ATTR(ATTR_BRANCH | ATTR_FORCE64))),
    [0xe3] = ROWS(
        ROW("jcxz", JCXZ, NONE, V, A16, .imm = IMM_B, NOMEM, ATTR(ATTR_BRANCH | ATTR_FORCE64)),
        ROW("jecxz", JCXZ, NONE, V, A32, .imm = IMM_B, NOMEM, ATTR(ATTR_BRANCH | ATTR_FORCE64)),
        ROW("jrcxz", JCXZ, NONE, V, A64, .imm = IMM_B, NOMEM, ATTR(ATTR_BRANCH | ATTR_FORCE64))),
    [0xe4] = ROWS(ROW("in", IN, ACC, B, ANY, .imm = IMM_UB, NOMEM)),
    [0xe5] = ROWS(ROW("in", IN, ACC, Z, ANY, .imm = IMM_UB, NOMEM)),
    [0xe6] = ROWS(ROW("out", OUT, ACC, B, ANY, .imm = IMM_UB, NOMEM, ATTR(ATTR_NO_DST))),
    [0xe7] = ROWS(ROW("out", OUT, ACC, Z, ANY, .imm = IMM_UB, NOMEM, ATTR(ATTR_NO_DST))),
    [0xe8] = ROWS(ROW("call", CALL, NONE, V, ANY, .imm = IMM_Z, NOMEM,
                      ATTR(ATTR_BRANCH | ATTR_STACK | ATTR_FORCE64))),
    [0xe9] =
        ROWS(ROW("jmp", JMP, NONE, V, ANY, .imm = IMM_Z, NOMEM, ATTR(ATTR_BRANCH | ATTR_FORCE64))),
    [0xea] = ROWS(
        ROW("jmp", JMP_FAR, NONE, V, ANY, .imm = IMM_FAR, NOMEM, ATTR(FAR_BRANCH | ATTR_NO64))),
    [0xeb] =
        ROWS(ROW("jmp", JMP, NONE, V, ANY, .imm = IMM_B, NOMEM, ATTR(ATTR_BRANCH | ATTR_FORCE64))),
    [0xec] = ROWS(ROW("in", IN, NONE, B, ANY, NOMEM)),
    [0xed] = ROWS(ROW("in", IN, NONE, Z, ANY, NOMEM)),
    [0xee] = ROWS(ROW("out", OUT, NONE, B, ANY, NOMEM, ATTR(ATTR_NO_DST))),
    [0xef] = ROWS(ROW("out", OUT, NONE, Z, ANY, NOMEM, ATTR(ATTR_NO_DST))),

    [0xf1] = ROWS(ROW("int1", INT1, NONE, V, ANY, NOMEM, ATTR(ATTR_BRANCH), FLAGS_INT)),
    [0xf4] = ROWS(ROW("hlt", HLT, NONE, V, ANY, NOMEM, ATTR(ATTR_PRIVILEGED | ATTR_ENDS_BLOCK))),
    [0xf5] = ROWS(ROW("cmc", CMC, NONE, V, ANY, NOMEM, READS(CF), WRITES(CF))),
    [0xf6] = GROUP3(B, IMM_B),
    [0xf7] = GROUP3(V, IMM_Z),
    [0xf8] = ROWS(ROW("clc", CLC, NONE, V, ANY, NOMEM, WRITES(CF))),
    [0xf9] = ROWS(ROW("stc", STC, NONE, V, ANY, NOMEM, WRITES(CF))),
    [0xfa] = ROWS(ROW("cli", CLI, NONE, V, ANY, NOMEM)),
    [0xfb] = ROWS(ROW("sti", STI, NONE, V, ANY, NOMEM)),
    [0xfc] = ROWS(ROW("cld", CLD, NONE, V, ANY, NOMEM, WRITES(DF))),
    [0xfd] = ROWS(ROW("std", STD, NONE, V, ANY, NOMEM, WRITES(DF))),
    [0xfe] = ROWS(ROW("inc", INC, RM, B, REG(0), MODRM, ATTR(LOCKED), FLAGS_INC),
                  ROW("dec", DEC, RM, B, REG(1), MODRM, ATTR(LOCKED), FLAGS_INC)),
    [0xff] =
        ROWS(ROW("inc", INC, RM, V, REG(0), MODRM, ATTR(LOCKED), FLAGS_INC),
             ROW("dec", DEC, RM, V, REG(1), MODRM, ATTR(LOCKED), FLAGS_INC),
             ROW("call", CALL_IND, RM, V, REG(2), MODRM,
                 ATTR(LOAD | ATTR_BRANCH | ATTR_STACK | ATTR_FORCE64)),
             ROW("call", CALL_FAR_IND, RM, V, REG(3) | MEM, MODRM, .mem = MEM_FAR,
                 ATTR(LOAD | FAR_BRANCH | ATTR_STACK)),
             ROW("jmp", JMP_IND, RM, V, REG(4), MODRM, ATTR(LOAD | ATTR_BRANCH | ATTR_FORCE64)),
             ROW("jmp", JMP_FAR_IND, RM, V, REG(5) | MEM, MODRM, .mem = MEM_FAR,
                 ATTR(LOAD | FAR_BRANCH)),
             ROW("push", PUSH, RM, V, REG(6), MODRM, ATTR(LOAD | ATTR_STACK | ATTR_DEFAULT64))),
};
