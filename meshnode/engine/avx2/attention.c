/* Causal attention over pages of keys and values, with grouped queries: the online softmax of flash attention (arXiv:2205.14135).

Every query goes through the keys before it in blocks of 32, which begin at position 0, 32, 64 and so on; in a block all sums are
taken in one order. So its bits depend on nothing but itself and these keys and values: not on the chunk it came in, nor on how
long the context of others is, nor on the threads. */

#include "kernels.h"
#ifdef MESHNODE_AVX2

#include <stdlib.h>

enum { KEYS = 32, QUERIES = 24 };

/* What some rows of a session have seen so far, for one head of keys: `count` queries, and for each the largest score, the sum
   of exp(score - largest), and the values weighted by it. */
typedef struct {
    float *keys, *values;  /* [KEYS][size], a block of them */
    float *largest, *total; /* [count] */
    float *weighted; /* [count][size] */
} Scratch;

static uint16_t *page_of(const Attention *a, int is_value, long page, long head) {
    return a->memory + ((is_value * a->pages + page) * a->kv_heads + head) * a->page * a->size;
}

/* (a + bi)(c + di) for each pair of floats. */
AVX2 static inline __m256 turned(__m256 x, const float *rotation) {
    __m256 r = _mm256_loadu_ps(rotation), swapped = _mm256_permute_ps(x, 0xb1);
    return _mm256_fmaddsub_ps(x, _mm256_moveldup_ps(r), _mm256_mul_ps(swapped, _mm256_movehdup_ps(r)));
}

/* Turn the queries and keys of a row; keep the queries, and write the keys and values to their page. */
AVX2 static void cache_row(const Attention *a, long row, long position, const int64_t *table) {
    long page = table[position / a->page], slot = position % a->page;
    const uint16_t *from = a->fused + row * (a->query_heads + 2 * a->kv_heads) * a->size;
    const float *rotation = a->rotations + row * a->size;
    float *query = a->queries + row * a->query_heads * a->size;
    for (long head = 0; head < a->query_heads; head++, from += a->size, query += a->size)
        for (long i = 0; i < a->size; i += 8) _mm256_storeu_ps(query + i, turned(load_bfloat16(from + i), rotation + i));
    for (long head = 0; head < a->kv_heads; head++, from += a->size) {
        uint16_t *to = page_of(a, 0, page, head) + slot * a->size;
        for (long i = 0; i < a->size; i += 8) store_bfloat16(to + i, turned(load_bfloat16(from + i), rotation + i));
    }
    for (long head = 0; head < a->kv_heads; head++, from += a->size) {
        uint16_t *to = page_of(a, 1, page, head) + slot * a->size;
        for (long i = 0; i < a->size; i += 8) _mm_storeu_si128((__m128i *)(to + i), _mm_loadu_si128((const __m128i *)(from + i)));
    }
}

AVX2 static void widen(const uint16_t *from, float *to, long count) {
    for (long i = 0; i < count; i += 8) _mm256_storeu_ps(to + i, load_bfloat16(from + i));
}

/* The products of a query with 8 keys, which lie one after the other. */
AVX2 static inline __m256 scores_of(const float *query, const float *keys, long size) {
    __m256 s[8];
    for (int key = 0; key < 8; key++) s[key] = _mm256_setzero_ps();
    for (long i = 0; i < size; i += 8) {
        __m256 q = _mm256_loadu_ps(query + i);
        for (int key = 0; key < 8; key++) s[key] = _mm256_fmadd_ps(q, _mm256_loadu_ps(keys + key * size + i), s[key]);
    }
    __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
    __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(s[4], s[5]), _mm256_hadd_ps(s[6], s[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

AVX2 static inline float largest_of(__m256 values) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

/* weighted = weighted * fade + sum of weight * value, `count` of them. */
AVX2 static void add_values(float *weighted, float fade, const float *weights, const float *values, long count, long size) {
    const __m256 f = _mm256_set1_ps(fade);
    long i = 0;
    for (; i + 64 <= size; i += 64) {
        __m256 sums[8];
        for (int lane = 0; lane < 8; lane++) sums[lane] = _mm256_mul_ps(f, _mm256_loadu_ps(weighted + i + 8 * lane));
        for (long key = 0; key < count; key++) {
            __m256 weight = _mm256_set1_ps(weights[key]);
            for (int lane = 0; lane < 8; lane++)
                sums[lane] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(values + key * size + i + 8 * lane), sums[lane]);
        }
        for (int lane = 0; lane < 8; lane++) _mm256_storeu_ps(weighted + i + 8 * lane, sums[lane]);
    }
    for (; i < size; i += 8) {
        __m256 sum = _mm256_mul_ps(f, _mm256_loadu_ps(weighted + i));
        for (long key = 0; key < count; key++)
            sum = _mm256_fmadd_ps(_mm256_set1_ps(weights[key]), _mm256_loadu_ps(values + key * size + i), sum);
        _mm256_storeu_ps(weighted + i, sum);
    }
}

/* Let a query see the first `count` keys of a block. */
AVX2 static void see(const Scratch *s, long which, const float *query, long count, long size) {
    const __m256 none = _mm256_set1_ps(-__builtin_inff());
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256 scores[KEYS / 8], top = none, total = _mm256_setzero_ps(), there[KEYS / 8];
    float weights[KEYS];
    for (int i = 0; i < KEYS / 8; i++) {
        there[i] = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)count - 8 * i), lanes));
        if (8 * i >= count) continue;
        scores[i] = _mm256_blendv_ps(none, scores_of(query, s->keys + 8 * i * size, size), there[i]);
        top = _mm256_max_ps(top, scores[i]);
    }
    float before = s->largest[which], largest = largest_of(top) > before ? largest_of(top) : before;
    float fade = _mm256_cvtss_f32(exponential(_mm256_set1_ps(before - largest)));
    for (int i = 0; 8 * i < count; i++) {
        __m256 weight = _mm256_and_ps(exponential(_mm256_sub_ps(scores[i], _mm256_set1_ps(largest))), there[i]);
        total = _mm256_add_ps(total, weight);
        _mm256_storeu_ps(weights + 8 * i, weight);
    }
    s->largest[which] = largest;
    s->total[which] = s->total[which] * fade + sum_of(total);
    add_values(s->weighted + which * size, fade, weights, s->values, count, size);
}

/* Attend from `count` rows, the first of them at `position`, to one head of keys. */
AVX2 static void attend_rows(const Attention *a, const Scratch *s, long row, long count, long position, const int64_t *table, long head) {
    long group = a->query_heads / a->kv_heads, width = a->query_heads * a->size, queries = count * group;
    for (long i = 0; i < queries; i++) {
        s->largest[i] = -__builtin_inff();
        s->total[i] = 0;
    }
    for (long i = 0; i < queries * a->size; i++) s->weighted[i] = 0;
    for (long key = 0; key < position + count; key += KEYS) {
        long offset = key % a->page * a->size, left = position + count - key, known = left < KEYS ? (left + 7) / 8 * 8 : KEYS;
        widen(page_of(a, 0, table[key / a->page], head) + offset, s->keys, known * a->size);
        widen(page_of(a, 1, table[key / a->page], head) + offset, s->values, known * a->size);
        for (long i = 0; i < queries; i++) {
            long seen = position + i / group + 1 - key;
            const float *query = a->queries + (row + i / group) * width + (head * group + i % group) * a->size;
            if (seen > 0) see(s, i, query, seen < KEYS ? seen : KEYS, a->size);
        }
    }
    for (long i = 0; i < queries; i++) {
        __m256 whole = _mm256_set1_ps(s->total[i]);
        uint16_t *out = a->out + (row + i / group) * width + (head * group + i % group) * a->size;
        for (long j = 0; j < a->size; j += 8) store_bfloat16(out + j, _mm256_div_ps(_mm256_loadu_ps(s->weighted + i * a->size + j), whole));
    }
}

static void cache_part(void *attention, long me, long team) {
    const Attention *a = attention;
    for (const Span *span = a->spans; span < a->spans + a->count; span++)
        for (long row = 0; row < span->count; row++)
            if ((span->row + row) % team == me) cache_row(a, span->row + row, span->position + row, a->tables + span->table);
}

static void attend_part(void *attention, long me, long team) {
    Attention *a = attention;
    long group = a->query_heads / a->kv_heads, rows = group < QUERIES ? QUERIES / group : 1, turn = 0;
    float *memory = malloc(sizeof(float) * (2 * KEYS * a->size + rows * group * (2 + a->size)));
    if (!memory) {
        a->is_short = 1; /* whoever else writes it writes the same */
        return;
    }
    float *largest = memory + 2 * KEYS * a->size, *total = largest + rows * group;
    Scratch s = {memory, memory + KEYS * a->size, largest, total, total + rows * group};
    for (const Span *span = a->spans; span < a->spans + a->count; span++)
        for (long row = 0; row < span->count; row += rows)
            for (long head = 0; head < a->kv_heads; head++) {
                if (turn++ % team != me) continue;
                long count = span->count - row < rows ? span->count - row : rows;
                attend_rows(a, &s, span->row + row, count, span->position + row, a->tables + span->table, head);
            }
    free(memory);
}

int attend(Attention *a, unsigned threads) {
    long work = 0;
    for (const Span *span = a->spans; span < a->spans + a->count; span++) work += span->count * (span->position + span->count);
    unsigned team = work * a->query_heads < 4096 ? 1 : threads; /* below some 60 us one thread is as fast */
    in_team(cache_part, a, a->n < 8 ? 1 : team);
    in_team(attend_part, a, team);
    return !a->is_short;
}

#endif
