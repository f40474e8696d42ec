/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Accesses to memory that share one look into the TLB.
 *
 * A block's accesses that follow each other and go off the same registers, which nothing changes in
 * between, differ only by constants: one check of the whole stretch lets all of them through, and
 * its host address stays in R10. Pushes and pops too: what they add to RSP is known.
 */
#ifndef HULL_ENGINE_SOFT_TRANSLATE_GROUP_H
#define HULL_ENGINE_SOFT_TRANSLATE_GROUP_H

#include "engine/soft/translate_class.h"

/* The longest stretch. Where it does not lie in one page its accesses look one by one. */
#define GROUP_BYTES_MAX 512

/* The accesses of the instructions from first to last: at least two, and other instructions in
 * between. */
struct translate_group {
    uint8_t first, last;
    bool write;      /* some of them */
    uint8_t vectors; /* enum vectors: registers that the instructions want */
    uint16_t bytes;  /* of the stretch */
    int32_t before;  /* the stretch's start, from the address of the first access; not positive */
};

/*
 * The groups of so many instructions in a row, in order (code32: of 32-bit code); returns how many
 * (at most BLOCK_INSNS_MAX / 2). offset[i]: where in its group's stretch the access of instruction
 * i is.
 */
unsigned translate_groups(const struct insn *const *insns, unsigned length, const uint8_t *way,
                          bool code32, struct translate_group *groups, uint16_t *offset);

/*
 * Stretches of a loop: a block that leads to its own start, so many times in a row. All accesses
 * off registers to which each round adds a constant, or nothing, go to stretches that are known
 * when the first round begins.
 */
struct translate_stretch {
    uint8_t insn;  /* the instruction whose registers its address is made of */
    bool write;    /* some accesses */
    uint8_t align; /* of its start: 1, 16, 32 */
    uint8_t uses;  /* accesses in one round */
    uint16_t bytes;
    int32_t before; /* its start, from that instruction's address in the first round */
};

struct translate_loop {
    unsigned rounds; /* 0: it is no loop, or it would not be faster */
    unsigned count;  /* of stretches */
    struct translate_stretch stretches[SOFT_STRETCHES];
    uint8_t of[BLOCK_INSNS_MAX];      /* 1 + the stretch of an instruction's access; 0: in none */
    uint16_t offset[BLOCK_INSNS_MAX]; /* in it, in the first round */
    int32_t step[BLOCK_INSNS_MAX];    /* and how much further each round */
    bool all;                         /* accesses of a round are in stretches */
};

/* Those of instructions whose last one is a conditional jump to the first; rounds: how many
 * in a row, at least two. loop->rounds becomes 0 where there are none. */
void translate_find_stretches(const struct insn *const *insns, unsigned length, const uint8_t *way,
                              unsigned rounds, struct translate_loop *loop);

/* Does the instruction name the general register as an operand or in an address? */
bool translate_names(const struct insn *insn, unsigned reg);

/* May it change the register? */
bool translate_changes(const struct insn *insn, unsigned reg);

/* Does it for sure give all of the register a value that does not depend on what was in it? It may
 * be part of the address of an operand in memory. */
bool translate_overwrites(const struct insn *insn, unsigned reg);

#endif
