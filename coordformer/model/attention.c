/* Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.

   Attention within segments, and its gradients, for narrow heads: a head of ESM-2's 8M has 16 numbers, too few for a
   library's products of matrices. One segment and head after the other; of these a block of queries and a tile of keys
   at a time, which the nearest cache holds, so that no number of a pair is ever in memory. Arithmetic is in float32.
   Each number of a result is a sum in one order, whatever the number of threads. */

#include "kernels.h"
#include <stdlib.h>

/* Numbers of a register, registers of a row, and rows for each step of a product: as many sums as hide the time that
   one takes, and as the processor has registers for. */
#if defined(__AVX512F__)
#define LANES 16
#define STEP 8
#elif defined(__AVX__)
#define LANES 8
#define STEP 4
#else
#define LANES 4
#define STEP 4
#endif
#define UNIT 16 /* numbers of a row at a time */
#if defined(__x86_64__) && LANES < UNIT
#define IN_REGISTER(x) __asm__("" : "+x"(x)) /* or GCC loads it anew for each product */
#else
#define IN_REGISTER(x)
#endif
#define PARTS (UNIT / LANES)
#define ROWS 16  /* queries of a block */
#define TILE 256 /* keys of a tile */
#define PITCH (TILE + UNIT) /* from row to row of pairs: odd units, so that rows lie in all sets of the cache */
#define LOG2E 1.44269504f

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t whole_lanes __attribute__((vector_size(4 * LANES)));

struct attention { /* rows of `query`, `key` and `value` are `of_..._row` numbers apart, the others heads x dim */
    const void *query, *key, *value;    /* (tokens, heads, dim) */
    const int32_t *bounds;              /* (segments + 1,) tokens before each */
    void *output;                       /* (tokens, heads, dim) */
    float *norms;                       /* (tokens, heads): base-2 logarithms of the sums of exponentials */
    const void *of_output;              /* gradients: (tokens, heads, dim) each */
    void *of_query, *of_key, *of_value;
    int64_t segments, longest, heads, dim, query_row, key_row, value_row, threads;
};

INLINE lanes all(float x) { return x - (lanes){0}; }
INLINE lanes larger(lanes a, lanes b) {
    for (int c = 0; c < LANES; c++) a[c] = a[c] > b[c] ? a[c] : b[c];
    return a;
}

/* 2^x for x <= 0, to seven digits: a whole power, and a polynomial for the rest between -.5 and .5. */
INLINE lanes exponential(lanes x) {
    x = larger(x, all(-120.f));
    whole_lanes power = __builtin_convertvector(x - .5f, whole_lanes); /* towards zero */
    lanes rest = x - __builtin_convertvector(power, lanes);
    lanes value = 1.000000072f + rest * (0.693146967f + rest * (0.240221197f + rest * (0.055507133f
                + rest * (0.009675541f + rest * 0.001327647f))));
    return (lanes)((whole_lanes)value + (power << 23));
}

INLINE float sum_of(lanes x) {
    float sum = 0;
    for (int c = 0; c < LANES; c++) sum += x[c];
    return sum;
}

INLINE float largest_of(lanes x) {
    float largest = x[0];
    for (int c = 1; c < LANES; c++) largest = x[c] > largest ? x[c] : largest;
    return largest;
}

/* Products of matrices, small ones: `to` (rows, columns) is, or with `add` grows by, a (rows, count) times b (count,
   columns). Neighbors in a row of `a` are `a_step` numbers apart. `rows` is a multiple of STEP, `columns` of UNIT. */
INLINE void multiply(const float *a, long a_row, long a_step, const float *b, long b_row, long count, float *to,
                     long to_row, long rows, long columns, int add) {
    for (long r = 0; r < rows; r += STEP)
        for (long c = 0; c < columns; c += UNIT) {
            const float *weights = a + r * a_row, *values = b + c;
            float *place = to + r * to_row + c;
            lanes sums[STEP][PARTS] = {0};
            if (add)
                for (int i = 0; i < STEP; i++)
                    for (int v = 0; v < PARTS; v++) sums[i][v] = *(lanes *)(place + i * to_row + v * LANES);
            for (long k = 0; k < count; k++) {
                lanes row[PARTS];
                for (int v = 0; v < PARTS; v++) {
                    row[v] = *(const lanes *)(values + k * b_row + v * LANES);
                    IN_REGISTER(row[v]);
                }
                for (int i = 0; i < STEP; i++)
                    for (int v = 0; v < PARTS; v++) sums[i][v] += weights[i * a_row + k * a_step] * row[v];
            }
            for (int i = 0; i < STEP; i++)
                for (int v = 0; v < PARTS; v++) *(lanes *)(place + i * to_row + v * LANES) = sums[i][v];
        }
}

INLINE long multiple(long number, long of) { return (number + of - 1) / of * of; }
INLINE long smaller(long a, long b) { return a < b ? a : b; }

struct part { /* a head of a segment; its numbers come to lie in (room, wide), multiples of what is computed at once */
    long first, count, dim, wide, room, pitch, at, out;
    int half;
};

INLINE struct part part_of(const struct attention *m, long segment, long head, long wide, int half) {
    long first = m->bounds[segment], count = m->bounds[segment + 1] - first, room = multiple(count, ROWS);
    return (struct part){first, count, m->dim, wide, room, room | UNIT, head * m->dim, m->heads * m->dim, half};
}

/* A head in float32: token after token, (room, wide), and with `columns` number after number, (wide, pitch), too. What
   is beyond is zero. */
INLINE void bring(struct part p, const void *values, long row, float *rows, float *columns) {
    memset(rows, 0, p.room * p.wide * sizeof(float));
    for (long j = 0; j < p.count; j++)
        for (long c = 0; c < p.dim; c++) rows[j * p.wide + c] = get(values, (p.first + j) * row + p.at + c, p.half);
    if (columns)
        for (long c = 0; c < p.wide; c++)
            for (long j = 0; j < p.room; j++) columns[c * p.pitch + j] = rows[j * p.wide + c];
}

/* Tokens of a head back to where all heads are. */
INLINE void take(struct part p, const float *rows, void *values) {
    for (long j = 0; j < p.count; j++)
        for (long c = 0; c < p.dim; c++)
            put(values, (p.first + j) * p.out + p.at + c, rows[j * p.wide + c], p.half);
}

INLINE void forward(const struct attention *m, struct part p, long head, float *place) {
    long count = p.count, wide = p.wide, pitch = p.pitch, size = p.room * wide;
    float *query = place, *key = query + size, *value = key + size, *output = value + size, *columns = output + size;
    float *weights = columns + wide * pitch;
    bring(p, m->query, m->query_row, query, 0);
    bring(p, m->key, m->key_row, key, columns);
    bring(p, m->value, m->value_row, value, 0);
    memset(output, 0, size * sizeof(float));
    for (long i = 0; i < count; i += ROWS) {
        float tops[ROWS];
        lanes totals[ROWS];
        for (int r = 0; r < ROWS; r++) tops[r] = -1e30f, totals[r] = all(0);
        for (long first = 0; first < count; first += TILE) {
            long there = smaller(TILE, count - first), tile = multiple(there, UNIT);
            multiply(query + i * wide, wide, 1, columns + first, pitch, wide, weights, PITCH, ROWS, tile, 0);
            for (int r = 0; r < ROWS; r++) {
                float *row = weights + r * PITCH;
                for (long j = there; j < tile; j++) row[j] = -1e30f;
                lanes largest = all(tops[r]);
                for (long j = 0; j < tile; j += LANES) largest = larger(*(lanes *)(row + j), largest);
                float top = largest_of(largest);
                if (top > tops[r]) { /* what was summed so far was relative to the largest so far */
                    lanes share = exponential(all((tops[r] - top) * LOG2E));
                    totals[r] *= share;
                    for (long c = 0; c < wide; c += LANES) *(lanes *)(output + (i + r) * wide + c) *= share;
                    tops[r] = top;
                }
                for (long j = 0; j < tile; j += LANES) {
                    lanes x = exponential(*(lanes *)(row + j) * LOG2E - top * LOG2E);
                    *(lanes *)(row + j) = x;
                    totals[r] += x;
                }
            }
            multiply(weights, PITCH, 1, value + first * wide, wide, there, output + i * wide, wide, ROWS, wide, 1);
        }
        for (int r = 0; r < ROWS && i + r < count; r++) {
            float total = sum_of(totals[r]);
            for (long c = 0; c < wide; c++) output[(i + r) * wide + c] /= total;
            m->norms[(p.first + i + r) * m->heads + head] = tops[r] * LOG2E + log2f(total);
        }
    }
    take(p, output, m->output);
}

INLINE void backward(const struct attention *m, struct part p, long head, float *place) {
    long count = p.count, wide = p.wide, pitch = p.pitch, size = p.room * wide;
    float *query = place, *key = query + size, *value = key + size, *of_output = value + size;
    float *of_query = of_output + size, *of_key = of_query + size, *of_value = of_key + size;
    float *columns = of_value + size, *value_columns = columns + wide * pitch, *norms = value_columns + wide * pitch;
    float *shared = norms + p.room, *weights = shared + p.room, *of_weights = weights + ROWS * PITCH;
    bring(p, m->query, m->query_row, query, 0);
    bring(p, m->key, m->key_row, key, columns);
    bring(p, m->value, m->value_row, value, value_columns);
    bring(p, m->of_output, p.out, of_output, 0);
    memset(of_query, 0, 3 * size * sizeof(float));
    memset(norms, 0, 2 * p.room * sizeof(float));
    for (long i = 0; i < count; i++) {
        norms[i] = m->norms[(p.first + i) * m->heads + head];
        for (long c = 0; c < p.dim; c++)
            shared[i] += of_output[i * wide + c] * get(m->output, (p.first + i) * p.out + p.at + c, p.half);
    }
    for (long first = 0; first < count; first += TILE) {
        long there = smaller(TILE, count - first), tile = multiple(there, UNIT);
        for (long i = 0; i < count; i += ROWS) {
            const float *queries = query + i * wide, *of_outputs = of_output + i * wide;
            multiply(queries, wide, 1, columns + first, pitch, wide, weights, PITCH, ROWS, tile, 0);
            multiply(of_outputs, wide, 1, value_columns + first, pitch, wide, of_weights, PITCH, ROWS, tile, 0);
            for (int r = 0; r < ROWS; r++)
                for (long j = 0; j < tile; j += LANES) {
                    lanes *weight = (lanes *)(weights + r * PITCH + j);
                    lanes *of_weight = (lanes *)(of_weights + r * PITCH + j);
                    *weight = exponential(*weight * LOG2E - norms[i + r]);
                    *of_weight = *weight * (*of_weight - shared[i + r]);
                }
            multiply(of_weights, PITCH, 1, key + first * wide, wide, there, of_query + i * wide, wide, ROWS, wide, 1);
            multiply(of_weights, 1, PITCH, queries, wide, ROWS, of_key + first * wide, wide, tile, wide, 1);
            multiply(weights, 1, PITCH, of_outputs, wide, ROWS, of_value + first * wide, wide, tile, wide, 1);
        }
    }
    take(p, of_query, m->of_query);
    take(p, of_key, m->of_key);
    take(p, of_value, m->of_value);
}

/* Each head of each segment; not 0 where memory is at its end. The width is a constant of the loops, in steps of UNIT up to
   packing.WIDEST. */
#define FOR_EACH_HEAD(name, function)                                                                                  \
    static int name(const struct attention *m, int half) {                                                             \
        long room = multiple(m->longest, ROWS), wide = multiple(m->dim, UNIT);                                         \
        size_t bytes = multiple(((9 * wide + 2) * (room + UNIT) + 2 * ROWS * PITCH) * sizeof(float), 64);              \
        int failed = 0;                                                                                                \
        _Pragma("omp parallel num_threads(m->threads)") {                                                              \
            float *place = aligned_alloc(64, bytes);                                                                   \
            if (!place) {                                                                                              \
                _Pragma("omp atomic write") failed = 1;                                                                \
            }                                                                                                          \
            _Pragma("omp for schedule(dynamic)") for (long i = 0; i < m->segments * m->heads; i++) {                   \
                long segment = i / m->heads, head = i % m->heads;                                                      \
                if (!place) continue;                                                                                  \
                switch (wide) {                                                                                        \
                case 16: function(m, part_of(m, segment, head, 16, half), head, place); break;                         \
                case 32: function(m, part_of(m, segment, head, 32, half), head, place); break;                         \
                case 48: function(m, part_of(m, segment, head, 48, half), head, place); break;                         \
                case 64: function(m, part_of(m, segment, head, 64, half), head, place); break;                         \
                }                                                                                                      \
            }                                                                                                          \
            free(place);                                                                                               \
        }                                                                                                              \
        return failed;                                                                                                 \
    }

FOR_EACH_HEAD(each_forward, forward)
FOR_EACH_HEAD(each_backward, backward)

int attention_float32(const struct attention *m) { return each_forward(m, 0); }
int attention_bfloat16(const struct attention *m) { return each_forward(m, 1); }
int attention_backward_float32(const struct attention *m) { return each_backward(m, 0); }
int attention_backward_bfloat16(const struct attention *m) { return each_backward(m, 1); }
