"""The CPU kernel for inputs whose rows of the result ("channels") are contiguous, tokens × channels for instance.

A thread takes a strip of channels: its transform stays in the second-level cache between the two phases, and the result
is transposed through a tile of 64 columns, so that whole cache lines of q are written.
"""

from __future__ import annotations

__all__ = ["CHANNELS"]

CHANNELS = r"""
constexpr int TILE = 64, STRIP = 64;

// ---- rows ("channels") contiguous ---------------------------------------------------------------------------------

constexpr int32_t NO_FLIPS[128] = {};

// One block of `order` by 16 channels into `rank` rows of v, `pitch` apart; `rows` of the block exist.
template <typename T>
inline void channel_block(
    const Problem& p, const T* x, i64 stride, i64 rows, const int32_t* flips, float* v, i64 pitch) {
    for (i64 s = 0; s < p.rank; s += 8) {
        const int32_t* signs = p.signs + s * p.order;
        F16 sums[8] = {};
        for (i64 i = 0; i < rows; i++) {
            const I16 value = (I16)widen(x + i * stride) ^ flips[i];
            for (int j = 0; j < 8; j++) sums[j] += (F16)(value ^ (I16{} + signs[i * 8 + j]));
        }
        const int count = p.rank - s < 8 ? int(p.rank - s) : 8;
        if (count == 8)
            for (int j = 0; j < 8; j++) store(v + (s + j) * pitch, sums[j]);
        else
            for (int j = 0; j < count; j++) store(v + (s + j) * pitch, sums[j]);
    }
}

// One group of a strip: channels [c, c + channels), transformed into v [count, pitch].
template <typename T> void channel_group(const Problem& p, i64 g, i64 c, i64 channels, float* v, i64 pitch) {
    const i64 first = g * p.blocks_per_group();
    for (i64 b = 0; b < p.blocks_of(g); b++) {
        const i64 token = (first + b) * p.order, rows = p.k - token < p.order ? p.k - token : p.order;
        const T* x = (const T*)p.x + token * p.stride + c;
        for (i64 i = 0; i < p.order && token + p.order + i < p.k; i++)
            for (i64 o = 0; o < channels; o += 64 / i64(sizeof(T)))
                __builtin_prefetch(x + (p.order + i) * p.stride + o, 0, 2);
        const int32_t* flips = p.flips ? p.flips + token : NO_FLIPS;
        float* out = v + b * p.rank * pitch;
        for (i64 o = 0; o < channels; o += LANES) {
            if (o + LANES <= channels && p.rank <= 8) {
                channel_block(p, x + o, p.stride, rows, flips, out + o, pitch);
                continue;
            }
            float wide[128 * LANES];
            const i64 lanes = channels - o < LANES ? channels - o : LANES;
            for (i64 i = 0; i < rows; i++) {
                const T* from = x + i * p.stride + o;
                store(wide + i * LANES, lanes == LANES ? widen(from) : widen(from, lanes));
            }
            channel_block(p, wide, LANES, rows, flips, out + o, pitch);
        }
    }
}

// The sums of the tokens of one group of a strip.
template <typename T> void channel_sums(const Problem& p, i64 g, i64 c, i64 channels) {
    const i64 first = g * p.blocks_per_group() * p.order, end = first + p.blocks_of(g) * p.order;
    for (i64 token = first; token < end && token < p.k; token++) {
        const T* x = (const T*)p.x + token * p.stride + c;
        float* sums = p.sums + token / p.summed * p.rows + c;
        float value[LANES];
        for (i64 o = 0; o < channels; o += LANES) {
            const i64 lanes = channels - o < LANES ? channels - o : LANES;
            store(value, lanes == LANES ? widen(x + o) : widen(x + o, lanes));
            for (i64 i = 0; i < lanes; i++) sums[o + i] += value[i];
        }
    }
}

void channel_sums(const Problem& p, i64 g, i64 c, i64 channels) {
    switch (p.type) {
        case FLOAT32: return channel_sums<float>(p, g, c, channels);
        case BFLOAT16: return channel_sums<Bfloat>(p, g, c, channels);
        default: return channel_sums<Half>(p, g, c, channels);
    }
}

// v [count, pitch] to q[c + channel, column...]: four columns make a word, 16 words per channel a line of q.
template <int rounding>
void round_channels(
    const Problem& p, const float* v, i64 pitch, i64 count, const float* factors, i64 c, i64 channels, i64 column) {
    const float qmax = p.qmax, nan = p.table ? -128.0f : 0.0f;
    u32 tile[TILE / 4 * STRIP], base[STRIP];
    for (i64 o = 0; o < pitch; o++) base[o] = (u32(c + o) * u32(p.width) + u32(column)) * WEYL + p.seed;
    for (i64 start = 0; start < count; start += TILE) {
        const i64 wanted = count - start < TILE ? count - start : TILE;
        for (i64 j = 0; j < wanted; j += 4) {
            const float* a = v + (start + j) * pitch;
            const u32 step = u32(start + j) * WEYL;
            u32* words = tile + j / 4 * STRIP;
            for (i64 o = 0; o < pitch; o += LANES) {
                const U16 h = load<U16>(base + o) + step;
                const F16 f = load<F16>(factors + o);
                U16 word = {};
                for (u32 i = 0; i < 4; i++) {
                    const F16 value = load<F16>(a + i * pitch + o);
                    word |= (integers<rounding>(value, f, h + i * WEYL, qmax, nan) & 255u) << (8 * i);
                }
                store(words + o, word);
            }
        }
        for (i64 o = 0; o < channels; o++) {
            u32 line[TILE / 4];
            for (int j = 0; j < TILE / 4; j++) line[j] = tile[j * STRIP + o];
            translate(p, (uint8_t*)line, wanted);
            uint8_t* q = p.q + (c + o) * p.width + column + start;
            if (wanted == TILE) std::memcpy(q, line, TILE);
            else std::memcpy(q, line, wanted);
        }
    }
}

void transform_channels(const Problem& p, i64 g, i64 c, i64 channels, float* v, i64 pitch) {
    switch (p.type) {
        case FLOAT32: return channel_group<float>(p, g, c, channels, v, pitch);
        case BFLOAT16: return channel_group<Bfloat>(p, g, c, channels, v, pitch);
        default: return channel_group<Half>(p, g, c, channels, v, pitch);
    }
}

void round_channels(
    const Problem& p, const float* v, i64 pitch, i64 count, const float* factors, i64 c, i64 channels, i64 column) {
    switch (p.rounding) {
        case NEAREST: return round_channels<NEAREST>(p, v, pitch, count, factors, c, channels, column);
        case STOCHASTIC: return round_channels<STOCHASTIC>(p, v, pitch, count, factors, c, channels, column);
        default: return round_channels<PSEUDO>(p, v, pitch, count, factors, c, channels, column);
    }
}

int by_channels(const Problem& p, int32_t* amaxes) {
    const i64 groups = p.groups(), largest_count = p.blocks_per_group() * p.rank;
    i64 strip = (p.rows / p.threads + LANES - 1) / LANES * LANES;
    strip = strip > STRIP ? STRIP : strip < LANES ? LANES : strip;
    const i64 strips = (p.rows + strip - 1) / strip;
    const bool two_phases = !p.per_row;
    int failed = 0;
    for (int phase = two_phases ? 0 : 1; phase < 2; phase++) {
#pragma omp parallel num_threads(p.threads) reduction(| : failed)
        {
            // Three rows more: the last word of a group reads up to three columns that it does not write.
            float* v = (float*)std::calloc((largest_count + 3) * strip, sizeof(float));
            failed |= !v;
#pragma omp for schedule(dynamic, 1)
            for (i64 task = 0; task < strips * groups; task++) {
                if (!v) continue;
                const i64 g = task % groups, c = task / groups * strip;
                const i64 channels = p.rows - c < strip ? p.rows - c : strip, count = p.blocks_of(g) * p.rank;
                const i64 pitch = (channels + LANES - 1) / LANES * LANES;
                transform_channels(p, g, c, channels, v, pitch);
                int32_t largest[STRIP] = {}, most = 0;
                float factors[STRIP];
                if (!two_phases || !phase)
                    for (i64 j = 0; j < count; j++) {
                        const float* a = v + j * pitch;
                        for (i64 o = 0; o < pitch; o += LANES)
                            store(largest + o, larger_magnitude(load<I16>(largest + o), load<F16>(a + o)));
                    }
                for (i64 o = 0; o < channels; o++) most = largest[o] > most ? largest[o] : most;
                if (!phase) {
#pragma omp critical
                    amaxes[g] = most > amaxes[g] ? most : amaxes[g];
                    continue;
                }
                if (p.sums) channel_sums(p, g, c, channels);
                for (i64 o = 0; o < pitch; o++) {
                    const float amax = bits_as<float>(two_phases ? amaxes[g] : largest[o]);
                    factors[o] = factor_of(amax, p.qmax, p.rounding);
                    if (o < channels && (p.per_row || c + o == 0))
                        p.scales[p.per_row ? g * p.rows + c + o : g] = scale_of(amax, p.scale_factor);
                }
                const i64 column = g * p.blocks_per_group() * p.rank, end = column + count;
                round_channels(p, v, pitch, count, factors, c, channels, column);
                if (g == groups - 1)
                    for (i64 o = 0; o < channels; o++) std::memset(p.q + (c + o) * p.width + end, 0, p.width - end);
            }
            std::free(v);
        }
    }
    return failed;
}

// ---- the functions that Python calls ------------------------------------------------------------------------------
"""
