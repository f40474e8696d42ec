/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/soft/stub.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"

#define ARENA_BYTES (16u << 20)
#define ALIGN       16u
#define SLOTS       (1u << 18)

struct slot {
    struct stub_key key;
    uint32_t offset; /* in the arena; 0: free */
};

const uint8_t *stub_code;

static struct {
    pthread_mutex_t lock;
    uint8_t *writable; /* the memory at stub_code */
    struct slot *slots;
    uint32_t used, count;
} stubs = {.lock = PTHREAD_MUTEX_INITIALIZER, .used = ALIGN};

/* --- code --- */

void stub_byte(struct stub_asm *out, unsigned byte)
{
    if (out->len < STUB_CODE_MAX)
        out->code[out->len] = (uint8_t)byte;
    out->len++;
}

void stub_bytes(struct stub_asm *out, const void *bytes, unsigned len)
{
    for (unsigned i = 0; i < len; i++)
        stub_byte(out, ((const uint8_t *)bytes)[i]);
}

void stub_word32(struct stub_asm *out, uint32_t word)
{
    for (unsigned i = 0; i < 4; i++)
        stub_byte(out, word >> (8 * i) & 0xff);
}

/* --- memory --- */

static int map_arena(struct err *err)
{
    int fd = memfd_create("hull-stubs", MFD_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "create memory for generated code");
    void *slots = MAP_FAILED, *writable = MAP_FAILED, *executable = MAP_FAILED;
    int code = 0;
    if (ftruncate(fd, ARENA_BYTES) == 0) {
        slots = mmap(NULL, SLOTS * sizeof(struct slot), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        writable = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        executable = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    }
    if (slots == MAP_FAILED || writable == MAP_FAILED || executable == MAP_FAILED) {
        code = err_errno(err, errno, "map %u MiB for generated code", ARENA_BYTES >> 20);
        if (slots != MAP_FAILED)
            munmap(slots, SLOTS * sizeof(struct slot));
        if (writable != MAP_FAILED)
            munmap(writable, ARENA_BYTES);
        if (executable != MAP_FAILED)
            munmap(executable, ARENA_BYTES);
    } else {
        stubs.slots = slots;
        stubs.writable = writable;
        stub_code = executable;
    }
    close(fd);
    return code;
}

static int init_locked(struct err *err)
{
    return stubs.writable ? 0 : map_arena(err);
}

int stub_init(struct err *err)
{
    pthread_mutex_lock(&stubs.lock);
    int code = init_locked(err);
    pthread_mutex_unlock(&stubs.lock);
    return code;
}

/* --- look-up --- */

static uint32_t hash(const struct stub_key *key)
{
    uint64_t h = (key->word[0] ^ (key->word[1] * 0x9e3779b97f4a7c15ULL)) * 0xff51afd7ed558ccdULL;
    return (uint32_t)(h >> 40);
}

static uint32_t add(struct slot *slot, const struct stub_key *key, stub_emit_fn *emit,
                    const void *ctx)
{
    struct stub_asm out;
    out.len = 0;
    emit(&out, ctx);
    if (out.len > STUB_CODE_MAX || stubs.used + out.len > ARENA_BYTES ||
        stubs.count >= SLOTS / 4 * 3)
        return 0;
    memcpy(stubs.writable + stubs.used, out.code, out.len);
    slot->key = *key;
    slot->offset = stubs.used;
    stubs.used += (out.len + ALIGN - 1) & ~(ALIGN - 1);
    stubs.count++;
    return slot->offset;
}

uint32_t stub_find(const struct stub_key *key, stub_emit_fn *emit, const void *ctx)
{
    uint32_t offset = 0;
    pthread_mutex_lock(&stubs.lock);
    if (init_locked(NULL) == 0) {
        uint32_t i = hash(key) & (SLOTS - 1);
        while (stubs.slots[i].offset && memcmp(&stubs.slots[i].key, key, sizeof(*key)) != 0)
            i = (i + 1) & (SLOTS - 1);
        offset = stubs.slots[i].offset;
        if (!offset)
            offset = add(&stubs.slots[i], key, emit, ctx);
    }
    pthread_mutex_unlock(&stubs.lock);
    return offset;
}
