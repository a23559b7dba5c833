"""What the CPU kernels share: the problem's record, conversions to float32, the rounding of ``rounding.py`` in C++17.

The vectors are the compiler's vector types, so that any instruction set serves; no header of torch is needed.
"""

from __future__ import annotations

__all__ = ["COMMON"]

COMMON = r"""
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <omp.h>

namespace {

using i64 = int64_t;
using u32 = uint32_t;

template <int W> struct Vector {  // W lanes
    typedef float F __attribute__((vector_size(4 * W)));
    typedef int32_t I __attribute__((vector_size(4 * W)));
};
constexpr int LANES = 16;
using F16 = Vector<LANES>::F;
using I16 = Vector<LANES>::I;
typedef u32 U16 __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

struct Half { uint16_t bits; };
struct Bfloat { uint16_t bits; };

template <typename To, typename From> inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
template <typename V, typename T> inline V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <typename V, typename T> inline void store(T* p, V v) { std::memcpy(p, &v, sizeof v); }

// 16 elements as float32.
inline F16 widen(const float* p) { return load<F16>(p); }
inline F16 widen(const Bfloat* p) { return (F16)(__builtin_convertvector(load<Halves>(p), U16) << 16); }
inline F16 widen(const Half* p) {
    const U16 h = __builtin_convertvector(load<Halves>(p), U16), magnitude = (h & 0x7fffu) << 13;
    const F16 subnormal = (F16)(magnitude + (113u << 23)) - 6.103515625e-05f;
    U16 result = magnitude < (1u << 23) ? (U16)subnormal : magnitude + (112u << 23);
    result = magnitude >= (31u << 23) ? magnitude | 0x7f800000u : result;
    return (F16)(result | (h & 0x8000u) << 16);
}
template <typename T> inline F16 widen(const T* p, i64 count) {  // zeros after the first `count`
    T padded[LANES] = {};
    std::memcpy(padded, p, sizeof(T) * (count < LANES ? count : LANES));
    return widen(padded);
}

enum Type { FLOAT32, BFLOAT16, FLOAT16 };

struct Problem {
    const void* x;
    const int32_t* signs;  // 0 or the sign bit, in the order that the loops read
    const int32_t* flips;  // 0 or the sign bit of every token along k, whole blocks; null where all are 0
    uint8_t* q;
    float* scales;         // [groups, rows] or [groups, 1]
    float* sums;           // [parts of `summed` columns of x, rows], starts as zeros; null where not wanted
    const uint8_t* table;  // what holds an integer (index: its byte; 128: NaN), null where it holds itself
    i64 rows, k, stride, width, group, order, rank, summed;
    float qmax, scale_factor;
    u32 seed;
    int type, per_row, rounding, threads;

    i64 blocks() const { return (k + order - 1) / order; }
    i64 blocks_per_group() const { return group ? group / order : blocks(); }
    i64 groups() const { return group ? (k + group - 1) / group : 1; }
    i64 blocks_of(i64 g) const {
        const i64 left = blocks() - g * blocks_per_group();
        return left < blocks_per_group() ? left : blocks_per_group();
    }
};

enum Rounding { NEAREST, STOCHASTIC, PSEUDO };
constexpr u32 WEYL = @WEYL@u, MULTIPLIER = @MULTIPLIER@u, SEED_MULTIPLIER = @SEED_MULTIPLIER@u;

inline float factor_of(float amax, float qmax, int rounding) {
    const float top = rounding == NEAREST ? qmax : float(double(qmax) * @HEADROOM@);
    return top / (amax < 1e-30f ? 1e-30f : amax);
}
inline float scale_of(float amax, float factor) { return (amax < 1e-30f ? 1e-30f : amax) * factor; }

// The integers are the low bytes: adding 1.5 * 2^23 rounds to nearest, half to even.
template <int rounding> inline U16 integers(F16 v, F16 factor, U16 counter, float qmax, float nan) {
    F16 t = v * factor;
    if (rounding != NEAREST) {
        U16 h = rounding == PSEUDO ? (U16)v * WEYL : counter;
        h ^= h >> 16;
        h *= MULTIPLIER;
        t += (F16)((h >> 9) | 0x3f800000u) - 1.5f;
    }
    const F16 top = F16{} + qmax, low = t < -top ? -top : t, clamped = low > top ? top : low;
    return (U16)((t != t ? F16{} + nan : clamped) + 12582912.0f);
}

inline I16 larger_magnitude(I16 largest, F16 v) {
    const I16 magnitude = (I16)v & 0x7fffffff;
    return magnitude > largest ? magnitude : largest;
}
inline int32_t largest_of(I16 lanes) {
    int32_t largest = 0;
    for (int i = 0; i < LANES; i++) largest = lanes[i] > largest ? lanes[i] : largest;
    return largest;
}
inline U16 lane_numbers() { return U16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

inline void translate(const Problem& p, uint8_t* q, i64 count) {
    if (p.table)
        for (i64 i = 0; i < count; i++) q[i] = p.table[q[i]];
}
"""
