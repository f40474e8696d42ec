/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes to struct insn, for 16-, 32- and 64-bit code: the whole of x86-64 up to AVX2. Knows no
 * memory and no processor state beyond the mode, so that it can be fuzzed and compared with other
 * disassemblers.
 */
#ifndef HULL_ENGINE_SOFT_DECODE_H
#define HULL_ENGINE_SOFT_DECODE_H

#include <stddef.h>

#include "engine/soft/insn.h"

struct decode_mode {
    uint8_t code_bits; /* 16, 32, 64 */
    bool vex; /* VEX is decoded: protected mode, not virtual-8086. Otherwise C4 and C5 are LES, LDS
               */
    insn_features features; /* what the CPU model has */
};

enum decode_status {
    DECODE_OK,   /* undefined opcodes too: op is OP_UD, opcode the closest row, len what was read */
    DECODE_MORE, /* the instruction goes on beyond the bytes: fetch more (a page's end) */
    DECODE_LONG, /* more than 15 bytes: #GP(0) */
};

/*
 * Decode one instruction. Sets all of *insn but exec, stub and next_offset. What is #UD whatever
 * the state (an undefined opcode, LOCK where it is not allowed, a register form of a memory-only
 * instruction, VEX.vvvv misuse, wrong mode, missing feature) becomes OP_UD; what depends on
 * registers (CPL, CR0.TS, ...) is the handler's business.
 */
enum decode_status decode_insn(struct insn *insn, const uint8_t *bytes, size_t len,
                               const struct decode_mode *mode);

/* All rows, for coverage tables and tests. */
size_t decode_opcode_count(void);
const struct opcode *decode_opcode_at(size_t index);
/* Where a row stands: "0f 38 f0", "vex.66.0f3a 0e", "d9 /5", for people. */
void decode_opcode_place(size_t index, char *text, size_t text_len);
/* Bytes that decode to the row (without immediate, displacement; ModRM as needed) for generators of
 * tests: returns the length, 0 where there are none in the mode. modrm_at: index of the ModRM byte,
 * or -1. */
size_t decode_opcode_example(size_t index, const struct decode_mode *mode, uint8_t bytes[8],
                             int *modrm_at);

/* Intel syntax, for traces and failure reports: "add dword ptr [rax+rcx*4+0x10], edx". */
void decode_print(const struct insn *insn, uint64_t rip, char *text, size_t text_len);

#endif
