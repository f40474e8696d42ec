/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The differential tester of the soft engine: random instructions with random operands, executed by
 * the engine's decoder and handlers and by the host's own processor; registers, flags, memory and
 * exceptions must be the same. It is test code: nothing of the product refers to it.
 *
 *     diff_gen.c      rows of the decoder's tables -> instructions
 *     diff_state.c    instruction -> registers and memory that make it interesting, and harmless
 *     diff_native.c   the host's side            diff_engine.c   the engine's side
 *     diff_compare.c  what must be equal, and how a difference is told
 *     diff_test.c     a share of it as a unit test; with arguments any number of cases
 *
 * Both sides see the same linear addresses: an arena of pages, some of which are read-only and some
 * of which are missing, so that operands cross into pages that fault. Its contents are two copies
 * that stay equal as long as both sides do the same. Every access of an instruction is worked out
 * beforehand (diff_state.c) and must lie in the arena, in the empty space around it, or at or
 * beside addresses that are not canonical: nothing of the process itself can be hit.
 *
 * Instructions run at CPL 3, in the modes that diff_modes lists, of the same process; alignment is
 * checked now and then.
 */
#ifndef HULL_ENGINE_SOFT_DIFF_DIFF_H
#define HULL_ENGINE_SOFT_DIFF_DIFF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/soft/decode.h"
#include "engine/soft/insn.h"
#include "engine/soft/vm.h"

struct err;

/* --- random numbers --- */

struct diff_random {
    uint64_t state;
};

static inline uint64_t diff_random(struct diff_random *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15ULL; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
    return z ^ z >> 31;
}

static inline unsigned diff_below(struct diff_random *r, unsigned n)
{
    return (unsigned)((diff_random(r) >> 32) * n >> 32);
}

/* One time in n. */
static inline bool diff_one_in(struct diff_random *r, unsigned n)
{
    return diff_below(r, n) == 0;
}

/* --- addresses --- */

#define DIFF_PAGE  4096u
#define DIFF_ARENA 0x10000000ULL
#define DIFF_PAGES 16u
#define DIFF_SPACE 0x100000ULL /* around the arena there is nothing for so many bytes */
#define DIFF_CODE  0x11000000ULL
#define DIFF_SLOT  512u /* from one instruction to the next: relative branches stay between */
#define DIFF_SLOTS 96u
#define DIFF_GS    0x0ff01230ULL /* base of GS in 64-bit code */
/* Addresses that are not canonical are between. Linux maps nothing in the page before. */
#define DIFF_GAP     0x0000800000000000ULL
#define DIFF_GAP_END 0xffff800000000000ULL

/* Pages of the arena: W writable, R read-only, - missing. */
extern const char diff_page_kinds[DIFF_PAGES + 1];

/* --- modes --- */

/* A segment; without a selector, the one that the process has. */
struct diff_segment {
    uint32_t base, limit;
    uint16_t selector;
    bool wide; /* D or B */
    bool down; /* data that expands down */
};

/* Code of one kind with its segments. */
struct diff_mode {
    const char *name;
    unsigned code_bits;
    struct diff_segment cs, ds, es, ss; /* not of 64-bit code */
};

enum {
    DIFF_MODE_64,
    DIFF_MODE_32,
    DIFF_MODE_ES,     /* 32-bit code where ES alone is not flat */
    DIFF_MODE_LIMITS, /* 32-bit code whose data segments end in the arena */
    DIFF_MODE_16,
    DIFF_MODES,
};
extern const struct diff_mode diff_modes[DIFF_MODES];

/* What is added to an offset. */
static inline uint64_t diff_base(const struct diff_mode *mode, unsigned seg)
{
    if (mode->code_bits == 64)
        return seg == SEG_GS ? DIFF_GS : 0;
    return seg == SEG_CS   ? mode->cs.base
           : seg == SEG_DS ? mode->ds.base
           : seg == SEG_ES ? mode->es.base
           : seg == SEG_SS ? mode->ss.base
                           : 0;
}

/* --- registers --- */

struct diff_state {
    struct soft_fpu fpu; /* only where the instruction is of the vector or x87 unit */
    uint64_t gpr[16];
    uint64_t rip, rflags;
};

/* How an instruction ended. */
struct diff_result {
    struct diff_state state;
    int vector; /* of the exception, or -1 */
    uint32_t error;
    uint64_t address; /* of a page fault */
};

/* --- instructions --- */

enum diff_group {
    DIFF_INT,    /* arithmetic, moves, stack */
    DIFF_STRING, /* MOVS and its like, with REP */
    DIFF_FLOW,   /* near branches */
    DIFF_VEC,    /* MMX, SSE, AVX */
    DIFF_X87,
    DIFF_SAVE, /* FXSAVE, XSAVE and back */
    DIFF_PRIV, /* what is not for CPL 3: #GP or #UD */
    DIFF_GROUPS,
    DIFF_NONE = DIFF_GROUPS, /* not compared: diff_row.why */
};
extern const char *const diff_group_names[DIFF_GROUPS];

/* Bytes that decode to a row: decode_opcode_example(). */
struct diff_example {
    uint8_t bytes[16];
    uint8_t len; /* 0: there are none */
    int8_t modrm_at;
};

struct diff_row {
    const struct opcode *opcode;
    struct diff_example example[3]; /* in 64-, 32- and 16-bit code */
    uint8_t group;                  /* enum diff_group */
    const char *why;                /* DIFF_NONE: the reason */
    uint64_t cases, faults, wrong;
    uint32_t unmade; /* times that no instruction or state could be made */
};

struct diff_rows {
    size_t count;
    struct diff_row *rows;
};

int diff_rows_init(struct diff_rows *rows, insn_features features);
void diff_rows_free(struct diff_rows *rows);

static inline const struct diff_example *diff_example_of(const struct diff_row *row,
                                                         unsigned code_bits)
{
    return &row->example[code_bits == 64 ? 0 : code_bits == 32 ? 1 : 2];
}

struct diff_insn {
    struct insn insn;
    uint64_t address; /* where it is executed: linear */
    uint64_t target;  /* of a branch: an offset in CS */
    const struct diff_mode *mode;
    bool uses_fpu;
    bool bound;          /* insn.exec is set */
    bool not_translated; /* the translator leaves it to its handler */
};

/* An instruction of the row, to be executed at address: false where none could be made. decode: of
 * the mode. */
bool diff_make_insn(struct diff_random *r, struct diff_insn *d, const struct diff_row *row,
                    const struct diff_mode *mode, const struct decode_mode *decode,
                    uint64_t address);

/* --- states --- */

struct diff_access {
    uint64_t la;
    uint32_t len;
};

#define DIFF_ACCESSES 12

/* A piece of memory to be set before the instruction runs. */
struct diff_poke {
    uint64_t la;
    uint32_t len;
    uint8_t bytes[1024];
};

struct diff_case {
    const struct diff_insn *d;
    struct diff_state start;
    struct diff_access accesses[DIFF_ACCESSES]; /* memory that it may touch */
    unsigned access_count;
    struct diff_poke poke; /* len 0: none */
};

/* False where no harmless state was found. memory: the arena as it is now. */
bool diff_make_state(struct diff_random *r, struct diff_case *c, const struct diff_insn *d,
                     const uint8_t *memory);

/* --- the two sides --- */

struct diff_native;

/* The reason that the host cannot, or NULL. One native side a process. */
const char *diff_native_init(void);
/* Of the engine's features those that the host has as well. */
insn_features diff_native_features(insn_features engine);
bool diff_native_has(const struct diff_mode *mode);
/* The instructions that are run until the next call, DIFF_SLOTS at most; at their addresses. */
void diff_native_load(const struct diff_insn *insns, unsigned count, const struct diff_mode *mode);
void diff_native_run(const struct diff_case *c, struct diff_result *result);
/* The arena's memory, writable whatever its pages are. */
uint8_t *diff_native_memory(void);

struct diff_engine {
    bool translate; /* what the translator knows is run by it */
    struct soft_vm vm;
    struct soft_cpu *cpu;
    uint8_t *memory; /* of the arena */
};

int diff_engine_init(struct diff_engine *e, struct err *err);
void diff_engine_fini(struct diff_engine *e);
void diff_engine_set_mode(struct diff_engine *e, const struct diff_mode *mode);
void diff_engine_run(struct diff_engine *e, struct diff_insn *d, const struct diff_case *c,
                     struct diff_result *result);

/* --- comparison --- */

/* NULL: equal. Otherwise what differs. May change what need not be equal in both memories. */
const char *diff_compare(const struct diff_case *c, struct diff_result *got,
                         struct diff_result *want, uint8_t *got_memory, uint8_t *want_memory);
void diff_report(const struct diff_case *c, const char *what, const struct diff_result *got,
                 const struct diff_result *want, const uint8_t *got_memory,
                 const uint8_t *want_memory);

#endif
