/* SPDX-License-Identifier: Apache-2.0 */
/* Floating point: scalar, vectors, x87. Only operations that IEEE 754 defines to the last bit. */
#include "work.h"

#include <immintrin.h>
#include <math.h>
#include <stdio.h>

/* --- c = a * b, once an operation --- */

enum { N = 256 };

static double (*matrix_a)[N], (*matrix_b)[N], (*matrix_c)[N];

static uint64_t matrices(size_t times, void (*multiply)(void))
{
    uint64_t state = 1;
    matrix_a = work_memory(sizeof(double[N][N]));
    matrix_b = work_memory(sizeof(double[N][N]));
    matrix_c = work_memory(sizeof(double[N][N]));
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            matrix_a[i][j] = (double)work_random(&state) / 4294967296.0;
            matrix_b[i][j] = (double)work_random(&state) / 4294967296.0;
        }
    work_begin();
    for (size_t t = 0; t < times; t++) {
        multiply();
        matrix_a[t % N][0] += matrix_c[0][t % N];
    }
    work_end();
    return work_hash(0, matrix_c, sizeof(double[N][N]));
}

static __attribute__((optimize("no-tree-vectorize"))) void multiply_scalar(void)
{
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < N; j++)
            matrix_c[i][j] = 0;
        for (int k = 0; k < N; k++) {
            double a = matrix_a[i][k];
            for (int j = 0; j < N; j++)
                matrix_c[i][j] += a * matrix_b[k][j];
        }
    }
}

static void multiply_sse2(void)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j += 8) {
            __m128d sum[4] = {0};
            for (int k = 0; k < N; k++) {
                __m128d a = _mm_set1_pd(matrix_a[i][k]);
                for (int v = 0; v < 4; v++) {
                    __m128d b = _mm_load_pd(&matrix_b[k][j + 2 * v]);
                    sum[v] = _mm_add_pd(sum[v], _mm_mul_pd(a, b));
                }
            }
            for (int v = 0; v < 4; v++)
                _mm_store_pd(&matrix_c[i][j + 2 * v], sum[v]);
        }
}

static __attribute__((target("avx2,fma"))) void multiply_avx2(void)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j += 32) {
            __m256d sum[8] = {0};
            for (int k = 0; k < N; k++) {
                __m256d a = _mm256_set1_pd(matrix_a[i][k]);
                for (int v = 0; v < 8; v++) {
                    __m256d b = _mm256_load_pd(&matrix_b[k][j + 4 * v]);
                    sum[v] = _mm256_fmadd_pd(a, b, sum[v]);
                }
            }
            for (int v = 0; v < 8; v++)
                _mm256_store_pd(&matrix_c[i][j + 4 * v], sum[v]);
        }
}

static uint64_t run_scalar(size_t times)
{
    return matrices(times, multiply_scalar);
}

static uint64_t run_sse2(size_t times)
{
    return matrices(times, multiply_sse2);
}

static uint64_t run_avx2(size_t times)
{
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        work_begin();
        printf("the processor has no AVX2 or no FMA\n");
        return 0;
    }
    return matrices(times, multiply_avx2);
}

/* --- n bodies: square roots and divisions --- */

static uint64_t run_nbody(size_t steps)
{
    enum { BODIES = 5 };
    struct body {
        double x[3], v[3], mass;
    } bodies[BODIES];
    uint64_t state = 1;
    for (int i = 0; i < BODIES; i++) {
        for (int d = 0; d < 3; d++) {
            bodies[i].x[d] = (double)work_random(&state) / 4294967296.0 * 20 - 10;
            bodies[i].v[d] = (double)work_random(&state) / 4294967296.0 - 0.5;
        }
        bodies[i].mass = 1.0 / (1 + i);
    }
    work_begin();
    for (size_t s = 0; s < steps; s++) {
        for (int i = 0; i < BODIES; i++)
            for (int j = i + 1; j < BODIES; j++) {
                double delta[3], square = 0.01;
                for (int d = 0; d < 3; d++) {
                    delta[d] = bodies[i].x[d] - bodies[j].x[d];
                    square += delta[d] * delta[d];
                }
                double pull = 0.001 / (square * sqrt(square));
                for (int d = 0; d < 3; d++) {
                    bodies[i].v[d] -= delta[d] * bodies[j].mass * pull;
                    bodies[j].v[d] += delta[d] * bodies[i].mass * pull;
                }
            }
        for (int i = 0; i < BODIES; i++)
            for (int d = 0; d < 3; d++)
                bodies[i].x[d] += 0.001 * bodies[i].v[d];
    }
    return work_hash(0, bodies, sizeof(bodies));
}

/* --- x87: the Mandelbrot set at 80 bits --- */

static uint64_t run_x87(size_t points)
{
    uint64_t sum = 0;
    work_begin();
    for (size_t p = 0; p < points; p++) {
        long double cx = (long double)(p % 251) / 100 - 2, cy = (long double)(p % 241) / 100 - 1.2L;
        long double x = 0, y = 0;
        uint64_t n = 0;
        for (; n < 100 && x * x + y * y < 4; n++) {
            long double t = x * x - y * y + cx;
            y = 2 * x * y + cy;
            x = t;
        }
        sum = sum * 31 + n + (uint64_t)(int64_t)(x * 1e6L);
    }
    return sum;
}

static const struct work works[] = {
    {"matrix-scalar", run_scalar, 60     },
    {"matrix-sse2",   run_sse2,   45     },
    {"matrix-avx2",   run_avx2,   150    },
    {"nbody",         run_nbody,  4000000},
    {"x87",           run_x87,    1500000},
};

WORK_MAIN(works)
