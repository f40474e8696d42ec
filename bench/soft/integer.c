/* SPDX-License-Identifier: Apache-2.0 */
/* Work of the integer units, of loads and stores that hit the caches, and of branches. */
#include "work.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- sort --- */

static void quicksort(uint32_t *low, uint32_t *high) /* of [low, high) */
{
    while (high - low > 16) {
        uint32_t *i = low, *j = high - 1, pivot = low[(high - low) / 2];
        while (i <= j) {
            while (*i < pivot)
                i++;
            while (*j > pivot)
                j--;
            if (i <= j) {
                uint32_t t = *i;
                *i++ = *j;
                *j-- = t;
            }
        }
        quicksort(low, j + 1);
        low = i;
    }
    for (uint32_t *i = low + 1; i < high; i++) {
        uint32_t value = *i, *j = i;
        for (; j > low && j[-1] > value; j--)
            *j = j[-1];
        *j = value;
    }
}

static uint64_t run_sort(size_t count)
{
    uint32_t *values = work_memory(count * sizeof(*values));
    uint64_t state = 1;
    for (size_t i = 0; i < count; i++)
        values[i] = work_random(&state);
    work_begin();
    quicksort(values, values + count);
    work_end();
    return work_hash(0, values, count * sizeof(*values));
}

/* --- a hash table --- */

static uint64_t run_hash(size_t ops)
{
    enum { SLOTS = 1 << 16, KEYS = SLOTS / 2 };
    struct slot {
        uint32_t key, count;
    } *slots = work_memory(SLOTS * sizeof(*slots));
    uint64_t state = 1, probes = 0;
    work_begin();
    for (size_t i = 0; i < ops; i++) {
        uint32_t key = work_random(&state) % KEYS + 1;
        uint32_t at = key * 2654435769u >> 16;
        for (; slots[at].key != 0 && slots[at].key != key; at = (at + 1) % SLOTS)
            probes++;
        slots[at].key = key;
        slots[at].count++;
    }
    work_end();
    return work_hash(probes, slots, SLOTS * sizeof(*slots));
}

/* --- SHA-256 --- */

static uint32_t rotate(uint32_t x, int by)
{
    return x >> by | x << (32 - by);
}

static void sha256_block(uint32_t *state, const uint32_t *k, const unsigned char *block)
{
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
               (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + w[i - 7] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) +
               (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(s, state, sizeof(s));
    for (int i = 0; i < 64; i++) {
        uint32_t t = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
                     ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
        uint32_t u = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
                     ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof(*s));
        s[4] += t;
        s[0] = t + u;
    }
    for (int i = 0; i < 8; i++)
        state[i] += s[i];
}

static uint64_t run_sha256(size_t blocks)
{
    /* With other constants than the standard's the work is the same. */
    uint32_t k[64], state[8];
    unsigned char block[64];
    uint64_t random = 1;
    for (int i = 0; i < 64; i++) {
        k[i] = work_random(&random);
        block[i] = (unsigned char)i;
    }
    for (int i = 0; i < 8; i++)
        state[i] = work_random(&random);
    work_begin();
    for (size_t i = 0; i < blocks; i++) {
        memcpy(block, state, sizeof(state));
        sha256_block(state, k, block);
    }
    return work_hash(0, state, sizeof(state));
}

/* --- a compressor, of LZ4's kind --- */

enum { LZ_SIZE = 1 << 20, LZ_BITS = 13 };

static size_t lz_compress(const unsigned char *from, size_t size, unsigned char *to)
{
    static uint32_t table[1 << LZ_BITS];
    const unsigned char *p = from, *literals = from, *end = from + size;
    unsigned char *start = to;
    memset(table, 0, sizeof(table));
    while (end - p > 8) {
        uint32_t word, other;
        memcpy(&word, p, 4);
        uint32_t *slot = &table[word * 2654435761u >> (32 - LZ_BITS)];
        const unsigned char *match = from + *slot;
        *slot = (uint32_t)(p - from);
        memcpy(&other, match, 4);
        if (match >= p || p - match > 65535 || other != word || p - literals > 254) {
            if (p - literals > 254) { /* flush: a match of length zero */
                *to++ = (unsigned char)(p - literals);
                memcpy(to, literals, (size_t)(p - literals));
                to += p - literals;
                memset(to, 0, 3);
                to += 3;
                literals = p;
            }
            p++;
            continue;
        }
        size_t length = 4;
        while (length < 255 && p + length < end && p[length] == match[length])
            length++;
        *to++ = (unsigned char)(p - literals);
        while (literals < p)
            *to++ = *literals++;
        uint16_t distance = (uint16_t)(p - match);
        *to++ = (unsigned char)length;
        memcpy(to, &distance, 2);
        to += 2;
        p += length;
        literals = p;
    }
    memcpy(to, literals, (size_t)(end - literals));
    return (size_t)(to - start) + (size_t)(end - literals);
}

static uint64_t run_lz(size_t times)
{
    char *text = work_memory(LZ_SIZE);
    unsigned char *packed = work_memory(2 * LZ_SIZE);
    size_t size = 0;
    work_text(text, LZ_SIZE);
    work_begin();
    for (size_t i = 0; i < times; i++) {
        text[i] = (char)i;
        size = lz_compress((unsigned char *)text, LZ_SIZE, packed);
    }
    work_end();
    return work_hash(size, packed, size);
}

/* --- a bytecode interpreter --- */

enum op { LOAD, ADD, MULTIPLY, SHIFT, XOR, COMPARE, JUMP_IF, STORE, COUNT, END };

struct code {
    unsigned char op, a, b;
    short value;
};

static uint64_t interpret(const struct code *code, uint64_t *r)
{
    for (const struct code *c = code;; c++) {
        switch ((enum op)c->op) {
        case LOAD:
            r[c->a] = (uint64_t)c->value;
            break;
        case ADD:
            r[c->a] += r[c->b];
            break;
        case MULTIPLY:
            r[c->a] *= r[c->b];
            break;
        case SHIFT:
            r[c->a] = r[c->b] >> c->value;
            break;
        case XOR:
            r[c->a] ^= r[c->b];
            break;
        case COMPARE:
            r[c->a] = r[c->a] < r[c->b];
            break;
        case STORE:
            r[c->a] = r[c->b];
            break;
        case COUNT:
            r[c->a]--;
            break;
        case JUMP_IF:
            if (r[c->a])
                c += c->value;
            break;
        case END:
            return r[0];
        }
    }
}

static uint64_t run_interpreter(size_t rounds)
{
    static const struct code code[] = {
        {LOAD,     0, 0, 1  },
        {LOAD,     4, 0, 257},
        {STORE,    2, 0, 0  }, /* the loop */
        {MULTIPLY, 0, 4, 0  },
        {SHIFT,    3, 0, 7  },
        {XOR,      0, 3, 0  },
        {COMPARE,  2, 0, 0  },
        {JUMP_IF,  2, 0, 1  },
        {ADD,      0, 4, 0  },
        {COUNT,    1, 0, 0  },
        {JUMP_IF,  1, 0, -9 },
        {END,      0, 0, 0  },
    };
    uint64_t registers[8] = {[1] = rounds};
    work_begin();
    return interpret(code, registers);
}

/* --- calls --- */

static __attribute__((noinline, optimize("no-optimize-sibling-calls"))) uint64_t fib(uint64_t n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static uint64_t run_fib(size_t times)
{
    uint64_t sum = 0;
    work_begin();
    for (size_t i = 0; i < times; i++)
        sum = sum * 3 + fib(24 + i % 2);
    return sum;
}

#define FUNCTION(n, expression)                                                                    \
    static uint64_t function##n(uint64_t x)                                                        \
    {                                                                                              \
        return expression;                                                                         \
    }
FUNCTION(0, x + 0x9e3779b97f4a7c15u)
FUNCTION(1, x ^ x >> 29)
FUNCTION(2, x * 0xbf58476d1ce4e5b9u)
FUNCTION(3, x << 7 | x >> 57)
FUNCTION(4, ~x)
FUNCTION(5, x - (x << 3))
FUNCTION(6, x ^ x << 17)
FUNCTION(7, x + (x >> 32))

static uint64_t run_indirect(size_t calls)
{
    static uint64_t (*volatile const functions[])(uint64_t) = {
        function0, function1, function2, function3, function4, function5, function6, function7};
    uint64_t x = 1;
    work_begin();
    /* An order with a period that a processor's predictor learns, and an engine's may. */
    for (size_t i = 0; i < calls; i++)
        x = functions[(i ^ i >> 2) % 8](x);
    return x;
}

/* --- Debian's compressors, with the libraries that they link --- */

static int text_file(size_t size)
{
    int fd = memfd_create("text", 0);
    work_check(fd >= 0 && ftruncate(fd, (off_t)size) == 0, "memfd");
    char *text = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    work_check(text != MAP_FAILED, "mmap");
    work_text(text, size);
    munmap(text, size);
    return fd;
}

static uint64_t run_command(size_t kib, char *const *command)
{
    int in = text_file(kib << 10), out = memfd_create("out", 0), status;
    work_begin();
    pid_t child = fork();
    if (child == 0) {
        dup2(in, STDIN_FILENO);
        dup2(out, STDOUT_FILENO);
        execv(command[0], command);
        _exit(127);
    }
    work_check(child > 0 && waitpid(child, &status, 0) == child && status == 0, command[0]);
    work_end();
    off_t size = lseek(out, 0, SEEK_END);
    const char *data = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, out, 0);
    work_check(data != MAP_FAILED, "mmap");
    return work_hash((uint64_t)size, data, (size_t)size);
}

static uint64_t run_gzip(size_t kib)
{
    return run_command(kib, (char *[]){"/usr/bin/gzip", "-6nc", NULL});
}

static uint64_t run_zstd(size_t kib)
{
    return run_command(kib, (char *[]){"/usr/bin/zstd", "-6qc", "--single-thread", NULL});
}

static const struct work works[] = {
    {"sort",        run_sort,        4000000  },
    {"hash",        run_hash,        160000000},
    {"sha256",      run_sha256,      500000   },
    {"lz",          run_lz,          100      },
    {"interpreter", run_interpreter, 20000000 },
    {"fib",         run_fib,         1000     },
    {"indirect",    run_indirect,    50000000 },
    {"gzip",        run_gzip,        10000    },
    {"zstd",        run_zstd,        20000    },
};

WORK_MAIN(works)
