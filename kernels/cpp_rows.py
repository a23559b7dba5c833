"""The CPU kernel for inputs whose transformed axis is contiguous: a row stays in the first-level cache meanwhile.

The sums run in the order of the transformed axis, as a matrix product's do, one addition per entry of the ±1 matrix, so
that they equal ``walsh.block_transform`` bit for bit where the library's product sums in that order, too.
"""

from __future__ import annotations

__all__ = ["ROWS"]

ROWS = r"""
// ---- k contiguous -------------------------------------------------------------------------------------------------

template <int W, int B> inline void row_blocks(const Problem& p, const float* x, float* v) {
    using F = typename Vector<W>::F;
    using I = typename Vector<W>::I;
    for (i64 j = 0; j < p.rank; j += W) {
        const int32_t* signs = p.signs + j * p.order;
        F sums[B] = {};
        for (i64 i = 0; i < p.order; i++) {
            const I sign = load<I>(signs + i * W);
            for (int b = 0; b < B; b++) sums[b] += (F)((I{} + bits_as<int32_t>(x[b * p.order + i])) ^ sign);
        }
        for (int b = 0; b < B; b++)  // a last store past the rank is overwritten by the next block
            store(v + b * p.rank + j, sums[b]);
    }
}

template <int W> void transform_row(const Problem& p, const float* x, i64 blocks, float* v) {
    i64 b = 0;
    if (p.rank % W == 0)
        for (; b + 4 <= blocks; b += 4) row_blocks<W, 4>(p, x + b * p.order, v + b * p.rank);
    for (; b < blocks; b++) row_blocks<W, 1>(p, x + b * p.order, v + b * p.rank);
}

int32_t largest_in(const float* v, i64 count) {
    I16 largest = {};
    for (i64 i = 0; i < count; i += LANES) largest = larger_magnitude(largest, load<F16>(v + i));
    return largest_of(largest);
}

template <int rounding>
void round_row(const Problem& p, const float* v, i64 count, float factor, i64 first, uint8_t* q) {
    const float qmax = p.qmax, nan = p.table ? -128.0f : 0.0f;
    const F16 factors = F16{} + factor;
    U16 counter = (lane_numbers() + u32(first)) * WEYL + p.seed;
    for (i64 i = 0; i < count; i += LANES, counter += LANES * WEYL) {
        const U16 words = integers<rounding>(load<F16>(v + i), factors, counter, qmax, nan);
        const Bytes bytes = __builtin_convertvector(words, Bytes);
        if (i + LANES <= count) store(q + i, bytes);
        else std::memcpy(q + i, &bytes, count - i);
    }
}

void transform_row(const Problem& p, const float* x, i64 blocks, float* v) {
    switch (p.order) {
        case 2: return transform_row<2>(p, x, blocks, v);
        case 4: return transform_row<4>(p, x, blocks, v);
        case 8: return transform_row<8>(p, x, blocks, v);
        default: return transform_row<LANES>(p, x, blocks, v);
    }
}

void round_row(const Problem& p, const float* v, i64 count, float factor, i64 first, uint8_t* q) {
    switch (p.rounding) {
        case NEAREST: return round_row<NEAREST>(p, v, count, factor, first, q);
        case STOCHASTIC: return round_row<STOCHASTIC>(p, v, count, factor, first, q);
        default: return round_row<PSEUDO>(p, v, count, factor, first, q);
    }
}

template <typename T> void widen_row(const T* x, i64 count, float* out) {
    i64 i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, widen(x + i));
    if (i < count) store(out + i, widen(x + i, count - i));
}

void widen_row(const Problem& p, i64 row, float* out) {
    switch (p.type) {
        case FLOAT32: return widen_row((const float*)p.x + row * p.stride, p.k, out);
        case BFLOAT16: return widen_row((const Bfloat*)p.x + row * p.stride, p.k, out);
        default: return widen_row((const Half*)p.x + row * p.stride, p.k, out);
    }
}

int by_rows(const Problem& p, int32_t* amaxes) {
    const i64 length = p.blocks() * p.order, groups = p.groups();
    const bool direct = p.type == FLOAT32 && length == p.k && !p.flips, two_phases = !p.per_row;
    int failed = 0;
    for (int phase = two_phases ? 0 : 1; phase < 2; phase++) {
#pragma omp parallel num_threads(p.threads) reduction(| : failed)
        {
            float* buffer = (float*)std::malloc(sizeof(float) * 2 * (length + LANES));
            failed |= !buffer;
#pragma omp for schedule(dynamic, 8)
            for (i64 row = 0; row < p.rows; row++) {
                if (!buffer) continue;
                const float* input = (const float*)p.x + row * p.stride;
                float* v = buffer + length + LANES;
                if (!direct) {
                    widen_row(p, row, buffer);
                    if (length > p.k) std::memset(buffer + p.k, 0, sizeof(float) * (length - p.k));
                    input = buffer;
                }
                if (p.sums && phase)
                    for (i64 i = 0; i < p.k; i++) p.sums[i / p.summed * p.rows + row] += input[i];
                if (p.flips) {
                    for (i64 i = 0; i < length; i++)
                        buffer[i] = bits_as<float>(bits_as<int32_t>(buffer[i]) ^ p.flips[i]);
                }
                i64 done = 0;
                for (i64 g = 0; g < groups; g++) {
                    const i64 blocks = p.blocks_of(g), count = blocks * p.rank;
                    transform_row(p, input + g * p.group, blocks, v);
                    store(v + count, F16{});  // whole vectors from here on
                    int32_t largest = 0;
                    if (two_phases && phase) {
                        largest = amaxes[g];
                    } else {
                        largest = largest_in(v, count);
                    }
                    if (!phase) {
#pragma omp critical
                        amaxes[g] = largest > amaxes[g] ? largest : amaxes[g];
                        continue;
                    }
                    const float amax = bits_as<float>(largest);
                    uint8_t* q = p.q + row * p.width + done;
                    round_row(p, v, count, factor_of(amax, p.qmax, p.rounding), row * p.width + done, q);
                    translate(p, q, count);
                    p.scales[p.per_row ? g * p.rows + row : g] = scale_of(amax, p.scale_factor);
                    done += count;
                }
                if (phase) std::memset(p.q + row * p.width + done, 0, p.width - done);
            }
            std::free(buffer);
        }
    }
    return failed;
}
"""
