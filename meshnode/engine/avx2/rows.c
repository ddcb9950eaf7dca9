/* What torch takes several calls for, row by row; each row by itself, so that its bits do not depend on its neighbours. */

#include "kernels.h"
#ifdef MESHNODE_AVX2

enum { WORTH = 1 << 15 }; /* values below which one thread is as fast as a team */

AVX2 static void normalise_part(void *rows, long me, long team) {
    const Rows *r = rows;
    for (long row = r->n * me / team; row < r->n * (me + 1) / team; row++) {
        const uint16_t *from = r->rows + row * r->columns;
        uint16_t *to = r->out + row * r->columns;
        __m256 squares = _mm256_setzero_ps();
        for (long i = 0; i < r->columns; i += 8) {
            __m256 x = load_bfloat16(from + i);
            squares = _mm256_fmadd_ps(x, x, squares);
        }
        __m256 scale = _mm256_set1_ps(1 / __builtin_sqrtf(sum_of(squares) / r->columns + r->epsilon));
        for (long i = 0; i < r->columns; i += 8)
            store_bfloat16(to + i, _mm256_mul_ps(_mm256_mul_ps(load_bfloat16(from + i), scale), _mm256_loadu_ps(r->weight + i)));
    }
}

AVX2 static void gate_part(void *rows, long me, long team) {
    const Rows *r = rows;
    const __m256 one = _mm256_set1_ps(1), zero = _mm256_setzero_ps();
    for (long row = r->n * me / team; row < r->n * (me + 1) / team; row++) {
        const uint16_t *from = r->rows + 2 * row * r->columns, *up = from + r->columns;
        uint16_t *to = r->out + row * r->columns;
        for (long i = 0; i < r->columns; i += 8) {
            __m256 x = load_bfloat16(from + i);
            __m256 silu = _mm256_div_ps(x, _mm256_add_ps(one, exponential(_mm256_sub_ps(zero, x))));
            store_bfloat16(to + i, _mm256_mul_ps(silu, load_bfloat16(up + i)));
        }
    }
}

void normalise(Rows *rows, unsigned threads) { in_team(normalise_part, rows, rows->n * rows->columns < WORTH ? 1 : threads); }

void gate(Rows *rows, unsigned threads) { in_team(gate_part, rows, rows->n * rows->columns < WORTH ? 1 : threads); }

#endif
