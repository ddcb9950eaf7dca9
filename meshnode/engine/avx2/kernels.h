/* What the kernels share. All are for x86-64 with AVX2; elsewhere the module says that there are none. */

#ifndef MESHNODE_KERNELS_H
#define MESHNODE_KERNELS_H

#if defined(__x86_64__) && defined(__GNUC__)
#define MESHNODE_AVX2
#include <immintrin.h>
#include <stdint.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))

/* Run `part(what, me, team)` on up to `threads` threads, and return when all are done. `team.c` says which threads. */
typedef void Part(void *what, long me, long team);
void in_team(Part *part, void *what, unsigned threads);

/* Activations of a product, group by group: digits [groups][n][2][32], step and sum (of step * u) [groups][n]. */
typedef struct {
    const uint16_t *rows; /* bfloat16 [n][32 * groups] */
    const uint8_t *tiles;
    void *out; /* [n][outputs], float or bfloat16 */
    int8_t *digits;
    float *step, *sum;
    long n, groups, outputs;
    int bits, as_float;
} Product;

/* Returns 0 where there is no memory for the digits. */
int multiply(Product *product, unsigned threads);

/* Consecutive rows of a session: the first is row `row` of the step, at `position`; its pages are in the tables from `table` on. */
typedef struct {
    int64_t row, count, position, table;
} Span;

/* The attention of a step in one block. `size` is a multiple of 8, `page` one of 32; a head's positions lie one after the other. */
typedef struct {
    const uint16_t *fused; /* bfloat16 [n][query_heads + 2 kv_heads][size]: queries, keys, values */
    const float *rotations; /* [n][size / 2][2], what queries and keys are multiplied by as complex numbers */
    uint16_t *memory; /* bfloat16 [2][pages][kv_heads][page][size]: keys, values */
    const Span *spans; /* [count] */
    const int64_t *tables;
    float *queries; /* scratch [n][query_heads][size] */
    uint16_t *out; /* bfloat16 [n][query_heads][size] */
    long n, count, query_heads, kv_heads, size, pages, page;
    int is_short; /* of memory */
} Attention;

/* Writes the rows' keys and values to their pages and attends. Returns 0 where there is no memory for a few blocks of keys. */
int attend(Attention *attention, unsigned threads);

/* bfloat16 rows of `columns`, a multiple of 8. */
typedef struct {
    const uint16_t *rows; /* [n][columns]; for `gate` [n][2][columns], the gate and then the up projection */
    const float *weight; /* [columns]; for `gate` nothing, as the next */
    float epsilon;
    uint16_t *out; /* [n][columns] */
    long n, columns;
} Rows;

/* x / sqrt(mean(x**2) + epsilon) * weight */
void normalise(Rows *rows, unsigned threads);

/* silu(gate) * up */
void gate(Rows *rows, unsigned threads);

AVX2 static inline __m256 load_bfloat16(const uint16_t *from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16));
}

/* To the nearest, ties to even. NaN stays NaN if the highest bit of its mantissa is set, as in all that arithmetic makes. */
AVX2 static inline void store_bfloat16(uint16_t *to, __m256 values) {
    __m256i bits = _mm256_castps_si256(values), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    bits = _mm256_blendv_epi8(rounded, bits, _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q)));
    bits = _mm256_srli_epi32(bits, 16);
    _mm_storeu_si128((__m128i *)to, _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1)));
}

AVX2 static inline float sum_of(__m256 values) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* exp, within 2 units in the last place: 2**n * p(r), where x = n ln 2 + r and |r| <= ln 2 / 2 (the series of Cephes' expf).
   It is 1.2e-38 below -87.3 and infinite above 88.37. */
AVX2 static inline __m256 exponential(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(-87.3f), _mm256_min_ps(_mm256_set1_ps(88.8f), x)); /* in this order, so that NaN goes through */
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1)));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

#endif
#endif
