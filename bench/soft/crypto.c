/* SPDX-License-Identifier: Apache-2.0 */
/*
 * OpenSSL's libcrypto, linked statically, in the code that it chooses for the processor that it
 * finds: a host with AVX-512 may run other instructions than a guest without. The fraction of
 * native speed includes that, as it would for a user.
 */
#include "work.h"

#include <openssl/evp.h>

enum { SIZE = 16384 };

static unsigned char data[SIZE], tag[EVP_MAX_MD_SIZE];
static const unsigned char key[32] = "0123456789abcdef0123456789abcde";

static uint64_t cipher(size_t times, const EVP_CIPHER *which, bool has_tag)
{
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    int got = 0;
    work_check(EVP_EncryptInit_ex(context, which, NULL, key, key) == 1, "EVP_EncryptInit");
    work_begin();
    for (size_t i = 0; i < times; i++)
        EVP_EncryptUpdate(context, data, &got, data, SIZE);
    work_end();
    work_check(got == SIZE && EVP_EncryptFinal_ex(context, tag, &got) == 1, "EVP_EncryptFinal");
    if (has_tag)
        EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, 16, tag);
    return work_hash(work_hash(0, data, SIZE), tag, 16);
}

static uint64_t run_ctr(size_t times)
{
    return cipher(times, EVP_aes_128_ctr(), false);
}

static uint64_t run_gcm(size_t times)
{
    return cipher(times, EVP_aes_128_gcm(), true);
}

static uint64_t run_chacha20(size_t times)
{
    return cipher(times, EVP_chacha20(), false);
}

static uint64_t run_digest(size_t times)
{
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    work_check(EVP_DigestInit_ex(context, EVP_sha256(), NULL) == 1, "EVP_DigestInit");
    work_begin();
    for (size_t i = 0; i < times; i++)
        EVP_DigestUpdate(context, data, SIZE);
    EVP_DigestFinal_ex(context, tag, NULL);
    return work_hash(0, tag, 32);
}

static const struct work works[] = {
    {"aes-ctr",        run_ctr,      150000},
    {"aes-gcm",        run_gcm,      60000 },
    {"chacha20",       run_chacha20, 80000 },
    {"sha256-openssl", run_digest,   25000 },
};

WORK_MAIN(works)
