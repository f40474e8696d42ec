/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small pieces of generated code that run one vector or x87 instruction on the host's own CPU, kept
 * by what they do and never freed: the instruction is normalised (operands in fixed registers), so
 * that there is a bounded number of them, whatever the guest's code.
 *
 * Their memory is mapped twice, once to write and once to execute: no address is ever both.
 *
 * Threads: any; one lock.
 */
#ifndef HULL_ENGINE_SOFT_STUB_H
#define HULL_ENGINE_SOFT_STUB_H

#include <stdint.h>

struct err;

#define STUB_CODE_MAX 320

/* What is known about a piece: all that its code depends on, at most 16 bytes. */
struct stub_key {
    uint64_t word[2];
};

/* Code as it is put together. */
struct stub_asm {
    uint8_t code[STUB_CODE_MAX];
    unsigned len;
};

void stub_byte(struct stub_asm *out, unsigned byte);
void stub_bytes(struct stub_asm *out, const void *bytes, unsigned len);
void stub_word32(struct stub_asm *out, uint32_t word);

typedef void stub_emit_fn(struct stub_asm *out, const void *ctx);

/* Map the memory, if that has not been done: before the process gives up the right to. */
int stub_init(struct err *err);

/* Where all of them are; valid once one has been found. */
extern const uint8_t *stub_code;

/* How far behind stub_code the code for key is, made by emit if there is none yet. 0: there is no
 * memory for it. */
uint32_t stub_find(const struct stub_key *key, stub_emit_fn *emit, const void *ctx);

#endif
