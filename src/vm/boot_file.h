/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that go into guest RAM at boot: kernels, which are looked at and copied, and initrds and
 * modules, which are read straight into their place.
 */
#ifndef HULL_VM_BOOT_FILE_H
#define HULL_VM_BOOT_FILE_H

#include <stdbool.h>
#include <stdint.h>

struct err;

struct boot_file {
    const char *path; /* the caller's, for errors */
    int fd;
    uint64_t len;
    uint8_t *bytes; /* mapping or heap; NULL: not in memory yet */
    bool on_heap;
};

/*
 * Open a file of 1 to limit_bytes bytes. What is not a regular file (a pipe, say) is read into
 * memory. Errors begin with the path.
 */
int boot_file_open(struct boot_file *file, const char *path, uint64_t limit_bytes, struct err *err);
void boot_file_close(struct boot_file *file);

/* Make file->bytes valid until close: a private mapping of a regular file. Whoever shortens the
 * file meanwhile gets what truncating a running program gets (SIGBUS). */
int boot_file_map(struct boot_file *file, struct err *err);

/* Copy the whole file to dst, which has file->len bytes. */
int boot_file_read(struct boot_file *file, void *dst, struct err *err);

bool boot_is_gzip(const uint8_t *bytes, uint64_t len);

/* Unpack a gzip stream (RFC 1952) of at most limit_bytes unpacked into fresh memory, which the
 * caller frees. -E2BIG: larger; -EINVAL: damaged or truncated. */
int boot_gunzip(const uint8_t *bytes, uint64_t len, uint64_t limit_bytes, uint8_t **out,
                uint64_t *out_len, struct err *err);

#endif
