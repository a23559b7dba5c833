"""The functions of the CPU kernels that Python calls: ``hadamard_transform`` and ``hadamard_rescale``."""

from __future__ import annotations

__all__ = ["ENTRY"]

ENTRY = r"""
// ±1 of (sequency, position) as a sign bit; `lanes` sequencies side by side, then all positions, then the next lanes.
void fill_signs(i64 order, i64 rank, i64 lanes, int32_t* signs) {
    for (i64 s = 0; s < (rank + lanes - 1) / lanes * lanes; s++) {
        u32 gray = u32(s ^ (s >> 1)), row = 0;
        for (i64 bit = 1; bit < order; bit *= 2, gray >>= 1) row = row << 1 | (gray & 1);
        for (i64 i = 0; i < order; i++) {
            const bool negative = __builtin_parity(row & u32(i));
            signs[(s / lanes * order + i) * lanes + s % lanes] = negative ? INT32_MIN : 0;
        }
    }
}

// The sign bit of every token's random sign: the top bit of its hash.
void fill_flips(i64 tokens, i64 seed, int32_t* flips) {
    const u32 word = u32(seed ^ (seed >> 32)) * SEED_MULTIPLIER;
    for (i64 t = 0; t < tokens; t++) {
        u32 h = u32(t) * WEYL + word;
        h ^= h >> 16;
        flips[t] = int32_t(h * MULTIPLIER & 0x80000000u);
    }
}

template <bool accumulate>
void rescale_float(
    const int32_t* x, i64 rows, i64 columns, i64 stride, const float* a, i64 a_step, const float* b, float* out,
    int threads) {
#pragma omp parallel for num_threads(threads)
    for (i64 m = 0; m < rows; m++) {
        const float scale = a[m * a_step];
#pragma omp simd
        for (i64 n = 0; n < columns; n++) {
            const float term = float(x[m * stride + n]) * scale * b[n];
            out[m * columns + n] = accumulate ? out[m * columns + n] + term : term;
        }
    }
}

}  // namespace

// Returns 0, or 1 where memory ran out. type: 0 float32, 1 bfloat16, 2 float16. along_k: k is the contiguous axis.
extern "C" int hadamard_transform(
    const void* x, int type, i64 rows, i64 k, i64 stride, int along_k, i64 order, i64 rank, int qmax,
    float scale_factor, int per_row, int rounding, i64 seed, i64 group, uint8_t* q, i64 width, float* scales,
    float* sums, i64 summed, const i64* signs_seed, const uint8_t* table, int threads) {
    Problem p{x, nullptr, nullptr, q, scales, sums, table, rows, k, stride, width, group, order, rank, summed,
              float(qmax), scale_factor, u32(seed ^ (seed >> 32)) * SEED_MULTIPLIER, type, per_row, rounding, threads};
    if (rounding != STOCHASTIC) p.seed = 0;
    int32_t* signs = (int32_t*)std::malloc(sizeof(int32_t) * order * (rank + LANES));
    int32_t* amaxes = (int32_t*)std::calloc(p.groups(), sizeof(int32_t));
    int32_t* flips = signs_seed ? (int32_t*)std::malloc(sizeof(int32_t) * p.blocks() * order) : nullptr;
    int failed = 1;
    if (signs && amaxes && (flips || !signs_seed)) {
        if (flips) fill_flips(p.blocks() * order, *signs_seed, flips);
        p.flips = flips;
        fill_signs(order, rank, !along_k ? 8 : order < LANES ? order : LANES, signs);
        p.signs = signs;
        failed = along_k ? by_rows(p, amaxes) : by_channels(p, amaxes);
    }
    std::free(signs);
    std::free(flips);
    std::free(amaxes);
    return failed;
}

// out [rows, columns] = x · a[m] · b[n], in that order in float32; into bfloat16 (type 1) or float32, which may add up.
// A float32 out may be x's own memory.
extern "C" void hadamard_rescale(
    const int32_t* x, i64 rows, i64 columns, i64 stride, const float* a, i64 a_step, const float* b, void* out,
    int type, int accumulate, int threads) {
    if (type == 0) {
        if (accumulate) rescale_float<true>(x, rows, columns, stride, a, a_step, b, (float*)out, threads);
        else rescale_float<false>(x, rows, columns, stride, a, a_step, b, (float*)out, threads);
        return;
    }
    uint16_t* narrow = (uint16_t*)out;
#pragma omp parallel for num_threads(threads)
    for (i64 m = 0; m < rows; m++) {
        const float scale = a[m * a_step];
#pragma omp simd
        for (i64 n = 0; n < columns; n++) {
            const float value = float(x[m * stride + n]) * scale * b[n];
            const u32 bits = bits_as<u32>(value), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
            narrow[m * columns + n] = uint16_t(value != value ? 0x7fc0u : rounded);
        }
    }
}
"""
