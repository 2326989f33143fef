/* Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.

   What `InvariantPointAttention` does before and after attention, with their gradients, in one pass over the tokens each.
   There the formulas are, in PyTorch. */

#include "kernels.h"

struct points { /* sizes: `dim` of a head's states, `wide` of what it attends with, `row` of a token's `states` */
    void *states;                              /* (tokens, row): queries, keys, values, and points of each in turn */
    const float *cos, *sin;                    /* (positions, dim / 2), repeated; or NULL */
    const float *rotations, *translations;     /* (places, 3, 3) and (places, 3), repeated */
    const uint8_t *observed;                   /* (places,) */
    const float *strength, *missing;           /* (heads,) */
    float *inputs;                             /* (3, tokens, heads, wide): queries, keys, values */
    float *of_heads;                           /* (tokens, heads, 2): gradients of `strength` and `missing` */
    float *attended;                           /* (tokens, heads, wide) */
    float *features;                           /* (tokens, heads x (4 x value_points + 1)) */
    int64_t tokens, heads, dim, wide, row, positions, places, key_points, value_points, threads;
};

/* A point in its residue's frame to space; nothing of a residue that is not observed. */
INLINE void place(const void *states, long at, const float *r, const float *t, float seen, float *x, int half) {
    float a = get(states, at, half), b = get(states, at + 1, half), c = get(states, at + 2, half);
    for (int i = 0; i < 3; i++) x[i] = seen * (r[3 * i] * a + r[3 * i + 1] * b + r[3 * i + 2] * c + t[i]);
}

/* And the gradient of the point from that of its place. */
INLINE void put_gradient(void *states, long at, const float *r, float seen, const float *of_x, int half) {
    for (int i = 0; i < 3; i++) put(states, at + i, seen * (r[i] * of_x[0] + r[3 + i] * of_x[1] + r[6 + i] * of_x[2]), half);
}

/* `states` to `inputs`. */
INLINE void attention_inputs(const struct points *m, long token, int half) {
    long dim = m->dim, half_dim = dim / 2, heads = m->heads, wide = m->wide, n = m->key_points;
    const float *r = m->rotations + token % m->places * 9, *t = m->translations + token % m->places * 3;
    const float *cos = m->cos + token % m->positions * half_dim, *sin = m->sin + token % m->positions * half_dim;
    float seen = m->observed[token % m->places];
    for (int kind = 0; kind < 3; kind++) {
        long points = kind < 2 ? n : m->value_points;
        for (long head = 0; head < heads; head++) {
            float *to = m->inputs + ((kind * m->tokens + token) * heads + head) * wide;
            long from = token * m->row + (kind * heads + head) * dim;
            if (kind < 2 && m->cos)
                for (long c = 0; c < half_dim; c++) {
                    float first = get(m->states, from + c, half), second = get(m->states, from + half_dim + c, half);
                    to[c] = first * cos[c] - second * sin[c];
                    to[half_dim + c] = second * cos[c] + first * sin[c];
                }
            else
                for (long c = 0; c < dim; c++) to[c] = get(m->states, from + c, half);
            from = token * m->row + 3 * heads * dim + (kind * heads * n + head * points) * 3;
            float strength = m->strength[head], square = 0, scale = kind == 0 ? strength : 1;
            to += dim;
            for (long p = 0; p < points; p++, to += 3) {
                float x[3];
                place(m->states, from + 3 * p, r, t, seen, x, half);
                for (int i = 0; i < 3; i++) to[i] = scale * x[i], square += x[i] * x[i];
            }
            float distance = -0.5f * strength * square;
            long left = wide - dim - 3 * points;
            for (long c = 0; c < left; c++) to[c] = 0;
            if (kind == 0) to[0] = seen, to[1] = distance;
            if (kind == 1) to[0] = seen ? distance : m->missing[head], to[1] = seen;
            if (kind == 2) to[0] = seen;
        }
    }
}

/* The gradient of `inputs`, which is there, to those of `states`, in place of them, and to `of_heads`. */
INLINE void attention_inputs_backward(const struct points *m, long token, int half) {
    long dim = m->dim, half_dim = dim / 2, heads = m->heads, wide = m->wide, n = m->key_points;
    const float *r = m->rotations + token % m->places * 9, *t = m->translations + token % m->places * 3;
    const float *cos = m->cos + token % m->positions * half_dim, *sin = m->sin + token % m->positions * half_dim;
    float seen = m->observed[token % m->places];
    for (long head = 0; head < heads; head++) {
        float strength = m->strength[head], of_strength = 0, of_missing = 0;
        for (int kind = 0; kind < 3; kind++) {
            long points = kind < 2 ? n : m->value_points;
            const float *of = m->inputs + ((kind * m->tokens + token) * heads + head) * wide;
            long to = token * m->row + (kind * heads + head) * dim;
            if (kind < 2 && m->cos)
                for (long c = 0; c < half_dim; c++) {
                    put(m->states, to + c, of[c] * cos[c] + of[half_dim + c] * sin[c], half);
                    put(m->states, to + half_dim + c, of[half_dim + c] * cos[c] - of[c] * sin[c], half);
                }
            else
                for (long c = 0; c < dim; c++) put(m->states, to + c, of[c], half);
            to = token * m->row + 3 * heads * dim + (kind * heads * n + head * points) * 3;
            of += dim;
            float of_distance = kind == 0 ? of[3 * n + 1] : kind == 1 ? seen * of[3 * n] : 0, square = 0;
            float scale = kind == 0 ? strength : 1;
            if (kind == 1 && !seen) of_missing = of[3 * n];
            for (long p = 0; p < points; p++) {
                float x[3], of_x[3];
                place(m->states, to + 3 * p, r, t, seen, x, half);
                for (int i = 0; i < 3; i++) {
                    of_x[i] = scale * of[3 * p + i] - strength * of_distance * x[i];
                    square += x[i] * x[i];
                    if (kind == 0) of_strength += of[3 * p + i] * x[i];
                }
                put_gradient(m->states, to + 3 * p, r, seen, of_x, half);
            }
            of_strength -= 0.5f * of_distance * square;
        }
        m->of_heads[(token * heads + head) * 2] = of_strength;
        m->of_heads[(token * heads + head) * 2 + 1] = of_missing;
    }
}

/* The points of `attended` to `features`: in the residue's frame, then their norms, then their share. */
INLINE void attention_features(const struct points *m, long token) {
    long points = m->value_points, heads = m->heads;
    const float *r = m->rotations + token % m->places * 9, *t = m->translations + token % m->places * 3;
    float seen = m->observed[token % m->places];
    float *to = m->features + token * heads * (4 * points + 1), *norms = to + heads * points * 3;
    float *shares = norms + heads * points;
    for (long head = 0; head < heads; head++) {
        const float *from = m->attended + (token * heads + head) * m->wide + m->dim;
        float share = from[3 * points];
        shares[head] = seen * share;
        for (long p = 0; p < points; p++, from += 3, to += 3, norms++) {
            float x[3], square = 1e-6f;
            for (int i = 0; i < 3; i++) x[i] = from[i] - share * t[i], square += x[i] * x[i];
            for (int i = 0; i < 3; i++) to[i] = seen * (r[i] * x[0] + r[3 + i] * x[1] + r[6 + i] * x[2]);
            *norms = seen * sqrtf(square);
        }
    }
}

/* The gradient of `features`, which is there, to that of `attended`, in place of its points; states are left as they are. */
INLINE void attention_features_backward(const struct points *m, long token) {
    long points = m->value_points, heads = m->heads;
    const float *r = m->rotations + token % m->places * 9, *t = m->translations + token % m->places * 3;
    float seen = m->observed[token % m->places];
    const float *of = m->features + token * heads * (4 * points + 1), *of_norms = of + heads * points * 3;
    const float *of_shares = of_norms + heads * points;
    for (long head = 0; head < heads; head++) {
        float *at = m->attended + (token * heads + head) * m->wide + m->dim;
        float share = at[3 * points], of_share = seen * of_shares[head];
        for (long p = 0; p < points; p++, at += 3, of += 3, of_norms++) {
            float x[3], square = 1e-6f;
            for (int i = 0; i < 3; i++) x[i] = at[i] - share * t[i], square += x[i] * x[i];
            float of_square = *of_norms / sqrtf(square);
            for (int i = 0; i < 3; i++) {
                at[i] = seen * (r[3 * i] * of[0] + r[3 * i + 1] * of[1] + r[3 * i + 2] * of[2] + of_square * x[i]);
                of_share -= at[i] * t[i];
            }
        }
        at[0] = of_share;
    }
}

#define FOR_EACH_TOKEN(name, call)                                                                                     \
    int name(const struct points *m) {                                                                                 \
        _Pragma("omp parallel for num_threads(m->threads)") for (long i = 0; i < m->tokens; i++) call;                 \
        return 0;                                                                                                      \
    }

FOR_EACH_TOKEN(attention_inputs_float32, attention_inputs(m, i, 0))
FOR_EACH_TOKEN(attention_inputs_bfloat16, attention_inputs(m, i, 1))
FOR_EACH_TOKEN(attention_inputs_backward_float32, attention_inputs_backward(m, i, 0))
FOR_EACH_TOKEN(attention_inputs_backward_bfloat16, attention_inputs_backward(m, i, 1))
FOR_EACH_TOKEN(attention_features_float32, attention_features(m, i))
FOR_EACH_TOKEN(attention_features_backward_float32, attention_features_backward(m, i))
