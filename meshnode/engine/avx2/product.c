/* Exact products of weights of four or eight bits and activations of 15 bits. `layers/digit_linear.py` says what for.

Weights lie in tiles of 8 outputs. A tile is a run of groups of 32 columns, of 160 bytes each for codes of four bits:

    128 bytes  codes: byte 32 p + 4 i + k has, of output i, column 4 p + k in its low half and column 16 + 4 p + k in its high one
     16 bytes  float16 [8], the scale of each output
     16 bytes  float16 [8], the minimum of each output: weight = code * scale + minimum

Codes of eight bits are two planes of four, code = 16 high + low: 128 bytes for the high halves come before those for the low ones.

A group of 32 activations has a step of its own, 1 / 16256 of the largest, and becomes 32 high and 32 low digits:
u = 128 high + low, where high is within 127 and low within 64. A code is at most 15, so two products are at most 3810 and the eight
pairs of a group at most 30480: sums of 16 bits hold them, whatever they are, and nothing rounds before the step and the
scale come in. These are applied group by group in one order, so that a row's bits do not depend on how many rows go with it. */

#include "kernels.h"
#ifdef MESHNODE_AVX2

#include <stdlib.h>

enum { GROUP = 32, TILE = 8, PLANE = 128, AFFINE = 32, DIGITS = 2 * GROUP, ROWS = 32, AHEAD = 1600 };

#define PAIRS(digits, index, codes) _mm256_maddubs_epi16(codes, _mm256_set1_epi32(((const int32_t *)(digits))[index]))

AVX2 static void split_group(const uint16_t *values, int8_t *digits, float *step, float *sum) {
    __m256i bits[4], largest = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        bits[i] = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(values + 8 * i))), 16);
        largest = _mm256_max_epi32(largest, _mm256_and_si256(bits[i], _mm256_set1_epi32(0x7fffffff)));
    }
    /* As integers, so that a NaN, whose bits are above those of infinity, is the largest of all. */
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    float top = _mm_cvtss_f32(_mm_castsi128_ps(half));
    int is_finite = _mm_cvtsi128_si32(half) < 0x7f800000, is_some = is_finite && top > 1e-30f;
    __m256 scale = _mm256_set1_ps(is_some ? 16256 / top : 0);
    __m256i total = _mm256_setzero_si256(), high[4], low[4];
    for (int i = 0; i < 4; i++) {
        __m256i u = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(bits[i]), scale));
        total = _mm256_add_epi32(total, u);
        high[i] = _mm256_srai_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(64)), 7);
        low[i] = _mm256_sub_epi32(u, _mm256_slli_epi32(high[i], 7));
    }
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int digit = 0; digit < 2; digit++) {
        const __m256i *wide = digit ? low : high;
        __m256i narrow = _mm256_packs_epi16(_mm256_packs_epi32(wide[0], wide[1]), _mm256_packs_epi32(wide[2], wide[3]));
        _mm256_storeu_si256((__m256i *)(digits + GROUP * digit), _mm256_permutevar8x32_epi32(narrow, order));
    }
    half = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    *step = !is_finite ? __builtin_nanf("") : is_some ? top / 16256 : 0;
    *sum = *step * _mm_cvtsi128_si32(half);
}

static void split_rows(const Product *p, long begin, long end) {
    for (long row = begin; row < end; row++)
        for (long group = 0; group < p->groups; group++) {
            long at = group * p->n + row;
            split_group(p->rows + GROUP * (row * p->groups + group), p->digits + DIGITS * at, p->step + at, p->sum + at);
        }
}

AVX2 static void store(const Product *p, long row, long tile, __m256 sums) {
    long at = row * p->outputs + TILE * tile;
    if (p->as_float) {
        _mm256_storeu_ps((float *)p->out + at, sums);
        return;
    }
    store_bfloat16((uint16_t *)p->out + at, sums);
}

AVX2 static inline __m256i dot(const __m256i *codes, const int8_t *digits) {
    __m256i even = PAIRS(digits, 0, codes[0]), odd = PAIRS(digits, 1, codes[1]);
    for (int i = 2; i < 8; i += 2) {
        even = _mm256_add_epi16(even, PAIRS(digits, i, codes[i]));
        odd = _mm256_add_epi16(odd, PAIRS(digits, i + 1, codes[i + 1]));
    }
    return _mm256_madd_epi16(_mm256_add_epi16(even, odd), _mm256_set1_epi16(1));
}

AVX2 static inline void unpack(const uint8_t *plane, __m256i *codes) {
    for (int i = 0; i < 4; i++) {
        __m256i packed = _mm256_loadu_si256((const __m256i *)(plane + 32 * i));
        codes[i] = _mm256_and_si256(packed, _mm256_set1_epi8(15));
        codes[4 + i] = _mm256_and_si256(_mm256_srli_epi16(packed, 4), _mm256_set1_epi8(15));
    }
}

/* The exact products of a plane with both digits. */
AVX2 static inline __m256i exact(const __m256i *codes, const int8_t *digits) {
    return _mm256_add_epi32(_mm256_slli_epi32(dot(codes, digits), 7), dot(codes, digits + GROUP));
}

/* One tile for up to ROWS rows, whose sums stay in the first cache. */
AVX2 static inline void multiply_tile(const Product *p, long tile, long begin, long count, int planes) {
    const long group_bytes = planes * PLANE + AFFINE;
    const uint8_t *weights = p->tiles + tile * p->groups * group_bytes;
    __m256 sums[ROWS];
    __m256i high[ROWS];
    for (long row = 0; row < count; row++) sums[row] = _mm256_setzero_ps();
    for (long group = 0; group < p->groups; group++, weights += group_bytes) {
        for (int line = 0; line < group_bytes; line += 64) _mm_prefetch((const char *)weights + AHEAD + line, _MM_HINT_T0);
        long at = group * p->n + begin;
        const int8_t *digits = p->digits + DIGITS * at;
        __m256i codes[8];
        if (planes == 2) {
            unpack(weights, codes);
            for (long row = 0; row < count; row++) high[row] = _mm256_slli_epi32(exact(codes, digits + DIGITS * row), 4);
        }
        const uint8_t *affine = weights + planes * PLANE;
        unpack(affine - PLANE, codes);
        __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)affine));
        __m256 minimum = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(affine + 16)));
        for (long row = 0; row < count; row++, digits += DIGITS) {
            __m256i whole = exact(codes, digits);
            if (planes == 2) whole = _mm256_add_epi32(whole, high[row]);
            __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(whole), scale);
            sums[row] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(p->sum[at + row]), sums[row]);
            sums[row] = _mm256_fmadd_ps(scaled, _mm256_set1_ps(p->step[at + row]), sums[row]);
        }
    }
    for (long row = 0; row < count; row++) store(p, begin + row, tile, sums[row]);
}

AVX2 static void multiply_tiles(const Product *p, long begin, long end) {
    for (long row = 0; row < p->n; row += ROWS) {
        long count = p->n - row < ROWS ? p->n - row : ROWS;
        for (long tile = begin; tile < end; tile++) {
            if (p->bits == 4)
                multiply_tile(p, tile, row, count, 1);
            else
                multiply_tile(p, tile, row, count, 2);
        }
    }
}

static void split_part(void *product, long me, long team) {
    const Product *p = product;
    split_rows(p, p->n * me / team, p->n * (me + 1) / team);
}

static void multiply_part(void *product, long me, long team) {
    const Product *p = product;
    long tiles = p->outputs / TILE;
    multiply_tiles(p, tiles * me / team, tiles * (me + 1) / team);
}

int multiply(Product *p, unsigned threads) {
    size_t digits = (size_t)p->n * p->groups * DIGITS, floats = (size_t)p->n * p->groups * sizeof(float);
    char *scratch = malloc(digits + 2 * floats);
    if (!scratch) return 0;
    p->digits = (int8_t *)scratch;
    p->step = (float *)(scratch + digits);
    p->sum = (float *)(scratch + digits + floats);
    in_team(split_part, p, p->n < 8 ? 1 : threads);
    in_team(multiply_part, p, threads);
    free(scratch);
    return 1;
}

#endif
