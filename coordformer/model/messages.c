/* Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.

   Sums of messages over the edges of a graph, and their gradients: what `MessagePassing` does between its products of
   matrices, without a number of an edge being written and read again.

   A message from sender j to receiver i is SiLU(received[i] + sent[j] + edge[ij]), and with a gate it is multiplied by
   gate_sent[j] + gate_edge[ij]. Arithmetic is in float32. Each number of a result is a sum in one order, whatever the
   number of threads. */

#include "kernels.h"

#define TILE 256 /* columns that are summed at once, in the first-level cache */

/* 1 / (1 + e^-x) to seven digits; a loop over it becomes vector instructions, one over `expf` does not everywhere. */
INLINE float sigmoid(float x) {
    x = x > 80.f ? 80.f : x < -80.f ? -80.f : x;
    float whole = __builtin_rintf(x * -1.44269504f); /* e^-x = 2^whole e^rest, |rest| < .35 */
    float rest = -x - whole * 0.693145752f - whole * 1.42860677e-6f;
    float power = 1.f + rest * (1.f + rest * (0.5f + rest * (0.166666667f + rest * (0.0416666667f
                + rest * (0.00833333333f + rest * 0.00138888889f)))));
    uint32_t bits = (uint32_t)((int32_t)whole + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return 1.f / (1.f + power * scale);
}

struct messages { /* of `count` residues from `first`, with k neighbors each, in rows of `residues`; see `Messages` */
    const void *received, *sent, *gate_sent; /* (rows, residues, width); without a gate NULL, as `gate_edge` */
    void *edge, *gate_edge;                  /* (count, k, width), `stride` numbers apart; `backward` overwrites them */
    const int64_t *near;                     /* (count, k): residues of the first row */
    const uint8_t *exist;                    /* (count, k) */
    void *sums;                              /* (rows, residues, width) */
    void *of_received;                       /* (residues, width) */
    float *of_sent, *of_gate_sent;           /* (residues, width), to which is added */
    int64_t rows, residues, first, count, k, width, stride, threads;
};

/* The sums of messages to the ith residue, in each of the rows, which share the graph. */
INLINE void forward(const struct messages *m, long i, int half, int gated) {
    const void *received = m->received, *sent = m->sent, *gate_sent = m->gate_sent, *edge = m->edge;
    const void *gate_edge = m->gate_edge;
    long width = m->width;
    for (long row = 0; row < m->rows; row++)
        for (long start = 0; start < width; start += TILE) {
            long end = start + TILE < width ? start + TILE : width;
            long own = (row * m->residues + m->first + i) * width;
            float sum[TILE] = {0};
            for (long each = i * m->k; each < (i + 1) * m->k; each++) {
                if (!m->exist[each]) continue;
                long from = (row * m->residues + m->near[each]) * width, at = each * m->stride;
                for (long c = start; c < end; c++) {
                    float x = get(received, own + c, half) + get(sent, from + c, half) + get(edge, at + c, half);
                    float message = x * sigmoid(x);
                    if (gated) message *= get(gate_sent, from + c, half) + get(gate_edge, at + c, half);
                    sum[c - start] += message;
                }
            }
            for (long c = start; c < end; c++) put(m->sums, own + c, sum[c - start], half);
        }
}

/* From the gradient of `sums`, of one row, those of what was received and sent, and in place of `edge` those of it: in
   some of the columns, for a sender has many receivers. */
INLINE void backward(const struct messages *m, long start, long end, int half, int gated) {
    const void *received = m->received, *sent = m->sent, *gate_sent = m->gate_sent, *sums = m->sums;
    void *edge = m->edge, *gate_edge = m->gate_edge;
    float *of_sent = m->of_sent, *of_gate_sent = m->of_gate_sent;
    for (long i = 0; i < m->count; i++) {
        long own = (m->first + i) * m->width;
        float sum[TILE] = {0};
        for (long each = i * m->k; each < (i + 1) * m->k; each++) {
            long from = m->near[each] * m->width, at = each * m->stride;
            float there = m->exist[each];
#pragma GCC ivdep
            for (long c = start; c < end; c++) {
                float x = get(received, own + c, half) + get(sent, from + c, half) + get(edge, at + c, half);
                float share = sigmoid(x), silu = x * share, of_message = there * get(sums, own + c, half);
                float of_x = of_message * share * (1.f + x - silu);
                if (gated) {
                    of_x *= get(gate_sent, from + c, half) + get(gate_edge, at + c, half);
                    put(gate_edge, at + c, of_message * silu, half);
                    of_gate_sent[from + c] += of_message * silu;
                }
                put(edge, at + c, of_x, half);
                of_sent[from + c] += of_x;
                sum[c - start] += of_x;
            }
        }
        for (long c = start; c < end; c++) put(m->of_received, own + c, sum[c - start], half);
    }
}

#define FOR_EACH_TYPE(suffix, half)                                                                                    \
    int forward_##suffix(const struct messages *m) {                                                                   \
        _Pragma("omp parallel for num_threads(m->threads)") for (long i = 0; i < m->count; i++) {                      \
            if (m->gate_sent) forward(m, i, half, 1);                                                                  \
            else forward(m, i, half, 0);                                                                               \
        }                                                                                                              \
        return 0;                                                                                                      \
    }                                                                                                                  \
    int backward_##suffix(const struct messages *m) {                                                                  \
        long width = m->width, part = ((width + m->threads - 1) / m->threads + 15) / 16 * 16;                          \
        if (part > TILE) part = TILE;                                                                                  \
        _Pragma("omp parallel for num_threads(m->threads)") for (long start = 0; start < width; start += part) {       \
            long end = start + part < width ? start + part : width;                                                    \
            if (m->gate_sent) backward(m, start, end, half, 1);                                                        \
            else backward(m, start, end, half, 0);                                                                     \
        }                                                                                                              \
        return 0;                                                                                                      \
    }

FOR_EACH_TYPE(float32, 0)
FOR_EACH_TYPE(bfloat16, 1)
