/* Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.

   Numbers in float32 or bfloat16, for the C code that `kernels.py` compiles. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline)) /* so that `half` and the like are constants of the loops */

INLINE float get(const void *values, long at, int half) {
    if (!half) return ((const float *)values)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)values)[at] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE void put(void *values, long at, float value, int half) {
    if (!half) {
        ((float *)values)[at] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    ((uint16_t *)values)[at] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16); /* to nearest, ties to even */
}
