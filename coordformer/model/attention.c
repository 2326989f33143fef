/* Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.

   Attention within segments, and its gradients, for narrow heads: a head of ESM-2's 8M has 16 numbers, too few for a
   library's products of matrices. One segment and head after the other, whose keys and values stay in the cache, eight
   queries at a time. Arithmetic is in float32. Each number of a result is a sum in one order, whatever the number of
   threads. */

#include "kernels.h"
#include <stdlib.h>

#define LANES 16
#define ROWS 8  /* queries at a time */
#define TILE 32 /* keys at a time */

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t whole_lanes __attribute__((vector_size(4 * LANES)));

struct attention { /* rows of `query`, `key` and `value` are `of_..._row` numbers apart, the others heads x dim */
    const void *query, *key, *value;    /* (tokens, heads, dim) */
    const int32_t *bounds;              /* (segments + 1,) tokens before each */
    void *output;                       /* (tokens, heads, dim) */
    float *norms;                       /* (tokens, heads): logarithms of the sums of exponentials */
    const void *of_output;              /* gradients: (tokens, heads, dim) each */
    void *of_query, *of_key, *of_value;
    int64_t segments, longest, heads, dim, query_row, key_row, value_row, threads;
};

INLINE lanes all(float x) { return x - (lanes){0}; }
INLINE lanes larger(lanes a, lanes b) {
    whole_lanes first = a > b;
    return (lanes)((first & (whole_lanes)a) | (~first & (whole_lanes)b));
}

/* e^x for x <= 0, to seven digits. */
INLINE lanes exponential(lanes x) {
    x = larger(x, all(-80.f));
    whole_lanes power = __builtin_convertvector(x * 1.44269504f - .5f, whole_lanes); /* towards zero */
    lanes whole = __builtin_convertvector(power, lanes); /* e^x = 2^whole e^rest, |rest| < .35 */
    lanes rest = x - whole * 0.693145752f - whole * 1.42860677e-6f;
    lanes value = 1.f + rest * (1.f + rest * (0.5f + rest * (0.166666667f + rest * (0.0416666667f
                + rest * (0.00833333333f + rest * 0.00138888889f)))));
    return value * (lanes)((power + 127) << 23);
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

struct part { /* a head of a segment, and where its numbers come to lie */
    long first, count, head, dim, wide, room; /* `wide` and `room` are multiples of what is computed at once */
    int half;
};

/* A head in float32: token after token, (room, wide), and with `columns` number after number, (dim, room), too. What is
   beyond is zero. */
INLINE void bring(struct part p, const void *values, long row, float *rows, float *columns) {
    long count = p.count, dim = p.dim, wide = p.wide, room = p.room;
    int half = p.half;
    const void *from = (const char *)values + (p.first * row + p.head * dim) * (half ? 2 : 4);
    for (long j = 0; j < count; j++)
        for (long c = 0; c < dim; c++) rows[j * wide + c] = get(from, j * row + c, half);
    for (long j = 0; j < count; j++)
        for (long c = dim; c < wide; c++) rows[j * wide + c] = 0;
    memset(rows + count * wide, 0, (room - count) * wide * sizeof(float));
    if (columns)
        for (long c = 0; c < dim; c++)
            for (long j = 0; j < room; j++) columns[c * room + j] = rows[j * wide + c];
}

/* Products of eight rows with all columns: (ROWS, room). */
INLINE void products(const float *rows, const float *columns, long dim, long wide, long room, float *to) {
    for (long j = 0; j < room; j += TILE)
        for (long half = 0; half < ROWS; half += ROWS / 2) {
            lanes sums[ROWS / 2][TILE / LANES] = {0};
            for (long c = 0; c < dim; c++) {
                lanes column[TILE / LANES];
                for (int v = 0; v < TILE / LANES; v++) column[v] = *(const lanes *)(columns + c * room + j + v * LANES);
                for (int r = 0; r < ROWS / 2; r++)
                    for (int v = 0; v < TILE / LANES; v++) sums[r][v] += rows[(half + r) * wide + c] * column[v];
            }
            for (int r = 0; r < ROWS / 2; r++)
                for (int v = 0; v < TILE / LANES; v++) *(lanes *)(to + (half + r) * room + j + v * LANES) = sums[r][v];
        }
}

/* Sums of rows, weighed: (ROWS, room) and (room, wide) to (ROWS, wide). */
INLINE void weighed_sums(const float *weights, const float *rows, long count, long wide, long room, float *to) {
    for (long c = 0; c < wide; c += LANES) {
        lanes sums[ROWS] = {0};
        for (long j = 0; j < count; j++) {
            lanes row = *(const lanes *)(rows + j * wide + c);
            for (int r = 0; r < ROWS; r++) sums[r] += weights[r * room + j] * row;
        }
        for (int r = 0; r < ROWS; r++) *(lanes *)(to + r * wide + c) = sums[r];
    }
}

/* The same rows, weighed, added to each of the others: (ROWS, room) and (ROWS, wide) to (room, wide). */
INLINE void add_weighed(const float *weights, const float *rows, long count, long wide, long room, float *to) {
    for (long c = 0; c < wide; c += LANES) {
        lanes row[ROWS];
        for (int r = 0; r < ROWS; r++) row[r] = *(const lanes *)(rows + r * wide + c);
        for (long j = 0; j < count; j++) {
            lanes sum = *(lanes *)(to + j * wide + c);
            for (int r = 0; r < ROWS; r++) sum += weights[r * room + j] * row[r];
            *(lanes *)(to + j * wide + c) = sum;
        }
    }
}

INLINE long multiple(long number, long of) { return (number + of - 1) / of * of; }

INLINE void forward(const struct attention *m, long segment, long head, float *place, int half) {
    long dim = m->dim, wide = multiple(dim, LANES), first = m->bounds[segment], count = m->bounds[segment + 1] - first;
    long room = multiple(count, TILE), out = m->heads * dim;
    struct part part = {first, count, head, dim, wide, room, half};
    float *query = place, *key = query + room * wide, *value = key + room * wide, *columns = value + room * wide;
    float *weights = columns + dim * room, *sums = weights + ROWS * room;
    bring(part, m->query, m->query_row, query, 0);
    bring(part, m->key, m->key_row, key, columns);
    bring(part, m->value, m->value_row, value, 0);
    for (long i = 0; i < count; i += ROWS) {
        long own = (first + i) * out + head * dim;
        products(query + i * wide, columns, dim, wide, room, weights);
        float shares[ROWS];
        for (int r = 0; r < ROWS; r++) {
            float *row = weights + r * room;
            for (long j = count; j < room; j++) row[j] = -1e30f;
            lanes largest = all(-1e30f), sum = {0};
            for (long j = 0; j < room; j += LANES) largest = larger(largest, *(lanes *)(row + j));
            float top = largest_of(largest);
            for (long j = 0; j < room; j += LANES) {
                lanes x = exponential(*(lanes *)(row + j) - top);
                *(lanes *)(row + j) = x;
                sum += x;
            }
            float total = sum_of(sum);
            shares[r] = 1.f / total;
            if (i + r < count) m->norms[(first + i + r) * m->heads + head] = top + logf(total);
        }
        weighed_sums(weights, value, count, wide, room, sums);
        for (int r = 0; r < ROWS && i + r < count; r++)
            for (long c = 0; c < dim; c++) put(m->output, own + r * out + c, sums[r * wide + c] * shares[r], half);
    }
}

INLINE void backward(const struct attention *m, long segment, long head, float *place, int half) {
    long dim = m->dim, wide = multiple(dim, LANES), first = m->bounds[segment], count = m->bounds[segment + 1] - first;
    long room = multiple(count, TILE), out = m->heads * dim;
    struct part part = {first, count, head, dim, wide, room, half};
    float *query = place, *key = query + room * wide, *value = key + room * wide, *columns = value + room * wide;
    float *value_columns = columns + dim * room, *of_output = value_columns + dim * room;
    float *of_key = of_output + room * wide, *of_value = of_key + room * wide;
    float *weights = of_value + room * wide, *of_weights = weights + ROWS * room, *sums = of_weights + ROWS * room;
    bring(part, m->query, m->query_row, query, 0);
    bring(part, m->key, m->key_row, key, columns);
    bring(part, m->value, m->value_row, value, value_columns);
    bring(part, m->of_output, out, of_output, 0);
    memset(of_key, 0, 2 * room * wide * sizeof(float));
    for (long i = 0; i < count; i += ROWS) {
        long own = (first + i) * out + head * dim;
        products(query + i * wide, columns, dim, wide, room, weights);
        products(of_output + i * wide, value_columns, dim, wide, room, of_weights);
        for (int r = 0; r < ROWS; r++) {
            float *row = weights + r * room, *of_row = of_weights + r * room, shared = 0, norm = 0;
            int there = i + r < count;
            if (there) {
                norm = m->norms[(first + i + r) * m->heads + head];
                for (long c = 0; c < dim; c++)
                    shared += of_output[(i + r) * wide + c] * get(m->output, own + r * out + c, half);
            }
            for (long j = 0; j < room; j += LANES) {
                lanes x = *(lanes *)(row + j) - norm;
                x = exponential(x) * (float)there;
                *(lanes *)(row + j) = x;
                *(lanes *)(of_row + j) = x * (*(lanes *)(of_row + j) - shared);
            }
        }
        weighed_sums(of_weights, key, count, wide, room, sums);
        add_weighed(of_weights, query + i * wide, count, wide, room, of_key);
        add_weighed(weights, of_output + i * wide, count, wide, room, of_value);
        for (int r = 0; r < ROWS && i + r < count; r++)
            for (long c = 0; c < dim; c++) put(m->of_query, own + r * out + c, sums[r * wide + c], half);
    }
    for (long j = 0; j < count; j++)
        for (long c = 0; c < dim; c++) {
            put(m->of_key, (first + j) * out + head * dim + c, of_key[j * wide + c], half);
            put(m->of_value, (first + j) * out + head * dim + c, of_value[j * wide + c], half);
        }
}

/* Heads of the most usual sizes are constants of the loops. */
#define FOR_SIZES(function, half)                                                                                      \
    struct attention own = *m;                                                                                         \
    if (own.dim == 16) own.dim = 16, function(&own, i / own.heads, i % own.heads, place, half);                        \
    else if (own.dim == 32) own.dim = 32, function(&own, i / own.heads, i % own.heads, place, half);                   \
    else function(&own, i / own.heads, i % own.heads, place, half);

#define FOR_EACH_HEAD(name, function, half)                                                                            \
    void name(const struct attention *m) {                                                                             \
        long room = multiple(m->longest, TILE), wide = multiple(m->dim, LANES);                                        \
        size_t bytes = multiple(((8 * wide + 2 * ROWS) * room + ROWS * wide) * sizeof(float), 64);                     \
        _Pragma("omp parallel num_threads(m->threads)") {                                                              \
            float *place = aligned_alloc(64, bytes);                                                                   \
            _Pragma("omp for schedule(dynamic)") for (long i = 0; i < m->segments * m->heads; i++) {                   \
                FOR_SIZES(function, half)                                                                              \
            }                                                                                                          \
            free(place);                                                                                               \
        }                                                                                                              \
    }

FOR_EACH_HEAD(attention_float32, forward, 0)
FOR_EACH_HEAD(attention_bfloat16, forward, 1)
FOR_EACH_HEAD(attention_backward_float32, backward, 0)
FOR_EACH_HEAD(attention_backward_bfloat16, backward, 1)
