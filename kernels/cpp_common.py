"""What the CPU kernels share: the problem's record, conversions to float32, and the rounding of ``rounding.py`` in C++17.

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
constexpr int LANES = 16, TILE = 64, STRIP = 64;
using F16 = Vector<LANES>::F;
using I16 = Vector<LANES>::I;

struct Half { uint16_t bits; };
struct Bfloat { uint16_t bits; };

template <typename To, typename From> inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline float widen(float x) { return x; }
inline float widen(Bfloat x) { return bits_as<float>(u32(x.bits) << 16); }
inline float widen(Half x) {
    const u32 magnitude = u32(x.bits & 0x7fff) << 13, sign = u32(x.bits & 0x8000) << 16;
    const u32 normal = magnitude + (112u << 23);
    const float small = bits_as<float>(magnitude + (113u << 23)) - 6.103515625e-05f;
    u32 result = magnitude < (1u << 23) ? bits_as<u32>(small) : normal;
    result = magnitude >= (31u << 23) ? magnitude | 0x7f800000u : result;
    return bits_as<float>(result | sign);
}
template <typename V, typename T> inline V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <typename V, typename T> inline void store(T* p, V v) { std::memcpy(p, &v, sizeof v); }

enum Type { FLOAT32, BFLOAT16, FLOAT16 };

struct Problem {
    const void* x;
    const int32_t* signs;  // 0 or the sign bit, in the order that the loops read
    uint8_t* q;
    float* scales;         // [groups, rows] or [groups, 1]
    const uint8_t* table;  // what holds an integer (index: its byte; 128: NaN), null where it holds itself
    i64 rows, k, stride, width, group, order, rank;
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

inline float factor_of(float amax, float qmax) { return qmax / (amax < 1e-30f ? 1e-30f : amax); }
inline float scale_of(float amax, float factor) { return (amax < 1e-30f ? 1e-30f : amax) * factor; }

// The integer is the low byte: adding 1.5 * 2^23 rounds to nearest, half to even.
template <int rounding> inline u32 integer(float v, float factor, u32 counter, float qmax, float nan) {
    float t = v * factor;
    if (rounding != NEAREST) {
        u32 h = rounding == PSEUDO ? bits_as<u32>(v) * WEYL : counter;
        h ^= h >> 16;
        h *= MULTIPLIER;
        t += bits_as<float>((h >> 9) | 0x3f800000u) - 1.5f;
    }
    const float low = t < -qmax ? -qmax : t;
    const float clamped = low > qmax ? qmax : low;
    return bits_as<u32>((t != t ? nan : clamped) + 12582912.0f);
}

inline int32_t magnitude(float v) { return bits_as<int32_t>(v) & 0x7fffffff; }

inline void translate(const Problem& p, uint8_t* q, i64 count) {
    if (p.table)
        for (i64 i = 0; i < count; i++) q[i] = p.table[q[i]];
}
"""
