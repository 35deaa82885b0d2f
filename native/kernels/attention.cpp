// Part of every CPU backend. Attention in which a row's numbers depend on the tokens of its own sequence alone.
//
// llama.cpp adds over the cells of the whole pool, in their order and in pieces that depend on the number of cells,
// rows and threads. So idle sequences, other rows and where a cell lies change the last bits of every row. Here the keys
// and values of a row are taken in the order of their positions, in chunks that begin at multiples of 64. Each chunk is
// added by itself, always in the same order, and the sums of the chunks are merged from the first to the last. Which
// thread computes which chunk, and beside which other rows, makes no difference.
//
// Rows that follow one another in a sequence, and the heads that share keys and values, are computed together.
#include "cells.h"
#include "operations.h"

#include "common.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "simd-mappings.h"
#include "vec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr int chunk_tokens = 64;
constexpr int tile_queries = 64;
// A batch of at most so many rows is split by chunks: so there is enough to share out, and memory is read in its order.
constexpr int64_t split_rows = 16;
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// --- lanes ----------------------------------------------------------------------------------------

#if defined(GGML_SIMD) && !defined(__ARM_FEATURE_SVE) && !defined(__riscv_v_intrinsic)
using lanes = GGML_F32_VEC;
constexpr int n_lanes = GGML_F32_EPR;
inline lanes zero() { return GGML_F32_VEC_ZERO; }
inline lanes load(const float *p) { return GGML_F32_VEC_LOAD(p); }
inline void store(float *p, lanes v) { GGML_F32_VEC_STORE(p, v); }
inline lanes all(float x) { return GGML_F32_VEC_SET1(x); }
inline lanes fma(lanes sum, lanes a, lanes b) { return GGML_F32_VEC_FMA(sum, a, b); }
inline lanes mul(lanes a, lanes b) { return GGML_F32_VEC_MUL(a, b); }
#else
struct lanes {
    float v[4];
};
constexpr int n_lanes = 4;
inline lanes zero() { return lanes{{0, 0, 0, 0}}; }
inline lanes load(const float *p) { return lanes{{p[0], p[1], p[2], p[3]}}; }
inline void store(float *p, lanes a) { std::copy(a.v, a.v + 4, p); }
inline lanes all(float x) { return lanes{{x, x, x, x}}; }
inline lanes fma(lanes sum, lanes a, lanes b) {
    for (int i = 0; i < 4; ++i) {
        sum.v[i] += a.v[i] * b.v[i];
    }
    return sum;
}
inline lanes mul(lanes a, lanes b) {
    for (int i = 0; i < 4; ++i) {
        a.v[i] *= b.v[i];
    }
    return a;
}
#endif

// Four sums, each over the lanes of one vector.
#if defined(__AVX__)
inline __m128 fold(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}
#if defined(__AVX512F__)
inline __m256 halve(__m512 a) {
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
    return _mm256_add_ps(_mm512_castps512_ps256(a), high);
}
inline void store_sums(float *out, lanes a, lanes b, lanes c, lanes d) {
    _mm_storeu_ps(out, fold(halve(a), halve(b), halve(c), halve(d)));
}
#else
inline void store_sums(float *out, lanes a, lanes b, lanes c, lanes d) { _mm_storeu_ps(out, fold(a, b, c, d)); }
#endif
#else
inline float sum(lanes a) {
    float v[n_lanes];
    store(v, a);
    for (int n = n_lanes / 2; n > 0; n /= 2) {
        for (int i = 0; i < n; ++i) {
            v[i] += v[i + n];
        }
    }
    return v[0];
}
inline void store_sums(float *out, lanes a, lanes b, lanes c, lanes d) {
    out[0] = sum(a);
    out[1] = sum(b);
    out[2] = sum(c);
    out[3] = sum(d);
}
#endif

#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int block_rows = 4;
#else
constexpr int block_rows = 2;
#endif
constexpr int block_keys = 4;

inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

// Rows of keys or values, as lanes: numbers of 32 bits, or of 16 bits where the processor converts them while loading.
struct floats {
    static lanes at(const char *row, int64_t i) { return load(reinterpret_cast<const float *>(row) + i); }
};
#if defined(__AVX512F__)
#define LA_LOADS_HALVES 1
struct halves {
    static lanes at(const char *row, int64_t i) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(row + 2 * i)));
    }
};
#elif defined(__AVX__) && defined(__F16C__)
#define LA_LOADS_HALVES 1
struct halves {
    static lanes at(const char *row, int64_t i) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(row + 2 * i)));
    }
};
#endif

// --- matrix products ------------------------------------------------------------------------------

// scores[i][j] of R queries and keys from..to - 1, a multiple of four; n numbers each, a multiple of 16.
template <int R, class Row>
void score_rows(float *scores, const float *queries, const char *const *keys, int64_t n, int from, int to) {
    for (int j = from; j < to; j += block_keys) {
        lanes sums[R][block_keys];
        for (int i = 0; i < R; ++i) {
            for (int k = 0; k < block_keys; ++k) {
                sums[i][k] = zero();
            }
        }
        const char *const some_keys[block_keys] = {keys[j], keys[j + 1], keys[j + 2], keys[j + 3]};
#pragma GCC unroll 4
        for (int64_t d = 0; d < n; d += n_lanes) {
            lanes some[block_keys];
            for (int k = 0; k < block_keys; ++k) {
                some[k] = Row::at(some_keys[k], d);
            }
            for (int i = 0; i < R; ++i) {
                const lanes query = load(queries + i * n + d);
                for (int k = 0; k < block_keys; ++k) {
                    sums[i][k] = fma(sums[i][k], query, some[k]);
                }
            }
        }
        for (int i = 0; i < R; ++i) {
            store_sums(scores + i * chunk_tokens + j, sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
        }
    }
}

// out[i][d] = sum over tokens from..to - 1, in their order, of weights[i][j] times values[j][d], for V times n_lanes
// numbers from `at` on.
template <int R, int V, class Row>
void weigh_block(float *out, const float *weights, const char *const *values, int64_t n, int64_t at, int from, int to) {
    lanes sums[R][V];
    for (int i = 0; i < R; ++i) {
        for (int v = 0; v < V; ++v) {
            sums[i][v] = zero();
        }
    }
    for (int j = from; j < to; ++j) {
        lanes some[V];
        for (int v = 0; v < V; ++v) {
            some[v] = Row::at(values[j], at + v * n_lanes);
        }
        for (int i = 0; i < R; ++i) {
            const lanes weight = all(weights[i * chunk_tokens + j]);
            for (int v = 0; v < V; ++v) {
                sums[i][v] = fma(sums[i][v], some[v], weight);
            }
        }
    }
    for (int i = 0; i < R; ++i) {
        for (int v = 0; v < V; ++v) {
            store(out + i * n + at + v * n_lanes, sums[i][v]);
        }
    }
}

template <int R, class Row>
void weigh_rows(float *out, const float *weights, const char *const *values, int64_t n, int from, int to) {
    constexpr int wide = 4;
    int64_t d = 0;
    for (; d + wide * n_lanes <= n; d += wide * n_lanes) {
        weigh_block<R, wide, Row>(out, weights, values, n, d, from, to);
    }
    for (; d < n; d += n_lanes) {
        weigh_block<R, 1, Row>(out, weights, values, n, d, from, to);
    }
}

template <class Row>
void score(float *scores, const float *queries, const char *const *keys, int64_t n, int n_queries, int from, int to) {
    int i = 0;
    for (; i + block_rows <= n_queries; i += block_rows) {
        score_rows<block_rows, Row>(scores + i * chunk_tokens, queries + i * n, keys, n, from, to);
    }
    for (; i < n_queries; ++i) {
        score_rows<1, Row>(scores + i * chunk_tokens, queries + i * n, keys, n, from, to);
    }
}

template <class Row>
void weigh(float *out, const float *weights, const char *const *values, int64_t n, int n_queries, int from, int to) {
    int i = 0;
    for (; i + block_rows <= n_queries; i += block_rows) {
        weigh_rows<block_rows, Row>(out + i * n, weights + i * chunk_tokens, values, n, from, to);
    }
    for (; i < n_queries; ++i) {
        weigh_rows<1, Row>(out + i * n, weights + i * chunk_tokens, values, n, from, to);
    }
}

// --- what is asked for ----------------------------------------------------------------------------

struct problem {
    const ggml_tensor *q, *k, *v, *mask, *sinks;
    ggml_tensor *out;
    const la_cells *cells;
    int64_t n_rows, n_cells, n_heads, n_kv_heads, group;
    int64_t dk, dv, pdk, pdv;
    int64_t max_chunks;
    float scale, softcap;

    const ggml_fp16_t *mask_of(int64_t row) const {
        return reinterpret_cast<const ggml_fp16_t *>(static_cast<const char *>(mask->data) + row * mask->nb[1]);
    }
};

const la_cells *cells_of(const ggml_tensor *k) {
    while (k->view_src == nullptr && (k->op == GGML_OP_CPY || k->op == GGML_OP_CONT || k->op == GGML_OP_DUP)) {
        k = k->src[0];  // keys of another type are converted in each step
    }
    const ggml_tensor *root = k->view_src == nullptr ? k : k->view_src;
    const la_cells *cells = static_cast<const la_cells *>(root->extra);
    return cells != nullptr && cells->magic == LA_CELLS_MAGIC ? cells : nullptr;
}

bool can_read(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 ||
           ggml_get_type_traits(type)->to_float != nullptr;
}

// False: llama.cpp computes it, for a context that is not ours or a mask that is more than a range of positions.
bool describe(const ggml_tensor *op, problem &p) {
    p.q = op->src[0], p.k = op->src[1], p.v = op->src[2], p.mask = op->src[3], p.sinks = op->src[4];
    p.out = const_cast<ggml_tensor *>(op);
    float max_bias = 0.0f;
    std::memcpy(&p.scale, op->op_params, sizeof(float));
    std::memcpy(&max_bias, op->op_params + 1, sizeof(float));
    std::memcpy(&p.softcap, op->op_params + 2, sizeof(float));
    if (p.mask == nullptr || p.mask->type != GGML_TYPE_F16 || max_bias != 0.0f || p.q->type != GGML_TYPE_F32 ||
        p.q->ne[3] != 1 || p.mask->ne[2] != 1 || p.mask->ne[3] != 1 || !can_read(p.k->type) || !can_read(p.v->type) ||
        p.v->nb[0] != ggml_type_size(p.v->type)) {
        return false;
    }
    p.cells = cells_of(p.k);
    if (p.cells == nullptr) {
        return false;
    }
    p.n_rows = p.q->ne[1], p.n_heads = p.q->ne[2], p.n_cells = p.k->ne[1], p.n_kv_heads = p.k->ne[2];
    if (p.v->ne[2] != p.n_kv_heads || p.n_heads % p.n_kv_heads != 0) {
        return false;
    }
    p.group = p.n_heads / p.n_kv_heads;
    p.dk = p.k->ne[0], p.dv = p.v->ne[0], p.pdk = padded(p.dk), p.pdv = padded(p.dv);
    p.max_chunks = p.n_cells / chunk_tokens + 2;
    if (p.softcap != 0.0f) {
        p.scale /= p.softcap;
    }
    return true;
}

// --- which tokens a row sees ----------------------------------------------------------------------

// Rows of one sequence that follow one another.
struct run {
    int64_t first_row, n_rows;
    int64_t base;      // position of the first entry of its cells, a multiple of a chunk
    size_t cells_at;   // its cells by position, in view::cells; -1 before the first that any of these rows sees
};

struct tile {
    size_t run;
    int64_t first_row, n_rows;
    int64_t first_chunk, n_chunks;
};

// Every thread works this out for itself: it takes microseconds, less than waiting for another one.
struct view {
    std::vector<int32_t> positions;
    std::vector<run> runs;
    std::vector<int32_t> cells;
    std::vector<int32_t> low, high;  // first and last position that a row sees
    std::vector<int32_t> own;        // the cell at its last position
    std::vector<tile> tiles;

    bool build(const problem &p);

  private:
    bool scan(const problem &p, int64_t row);
    bool continues(const problem &p, int64_t row);
    std::vector<std::pair<int32_t, int32_t>> seen_;  // position, cell
};

constexpr ggml_fp16_t is_seen = 0;  // the mask adds nothing
constexpr ggml_fp16_t is_masked = 0xFC00;

// Start a run with this row.
bool view::scan(const problem &p, int64_t row) {
    const ggml_fp16_t *mask = p.mask_of(row);
    int32_t low_at = std::numeric_limits<int32_t>::max(), high_at = -1;
    seen_.clear();
    for (int64_t i = 0; i < p.n_cells; ++i) {
        if (mask[i] == is_masked) {
            continue;
        }
        const int32_t at = positions[static_cast<size_t>(i)];
        if (mask[i] != is_seen || at < 0) {
            return false;
        }
        seen_.emplace_back(at, static_cast<int32_t>(i));
        low_at = std::min(low_at, at);
        high_at = std::max(high_at, at);
    }
    if (seen_.empty() || high_at - low_at + 1 != static_cast<int32_t>(seen_.size())) {
        return false;  // not a range, or two cells at one position
    }
    const int64_t base = low_at / chunk_tokens * chunk_tokens;
    runs.push_back(run{row, 1, base, cells.size()});
    cells.resize(cells.size() + static_cast<size_t>(high_at - base + 1), -1);
    int32_t *mine = cells.data() + runs.back().cells_at;
    for (const auto &[at, cell] : seen_) {
        mine[at - base] = cell;
    }
    low.push_back(low_at);
    high.push_back(high_at);
    own.push_back(mine[high_at - base]);
    return true;
}

// Whether this row is the next token of the last run; adds it if so.
bool view::continues(const problem &p, int64_t row) {
    const int32_t before = own.back(), at = high.back() + 1;
    const ggml_fp16_t *mask = p.mask_of(row);
    int64_t cell = before + 1;
    if (mask[before] != is_seen) {
        return false;
    }
    if (cell >= p.n_cells || mask[cell] != is_seen || positions[static_cast<size_t>(cell)] != at) {
        // Its cell lies somewhere else. A cell that it sees at this position is of the same sequence.
        cell = 0;
        while (cell < p.n_cells && (mask[cell] != is_seen || positions[static_cast<size_t>(cell)] != at)) {
            ++cell;
        }
        if (cell == p.n_cells) {
            return false;
        }
    }
    run &last = runs.back();
    const int32_t *mine = cells.data() + last.cells_at;
    int32_t low_at = low.back();
    while (low_at < at && mask[mine[low_at - last.base]] != is_seen) {
        ++low_at;  // a sliding window has left it behind
    }
    cells.push_back(static_cast<int32_t>(cell));
    low.push_back(low_at);
    high.push_back(at);
    own.push_back(static_cast<int32_t>(cell));
    ++last.n_rows;
    return true;
}

bool view::build(const problem &p) {
    positions.resize(static_cast<size_t>(p.n_cells));
    p.cells->positions(p.cells, static_cast<int32_t>(p.n_cells), positions.data());
    runs.clear(), cells.clear(), low.clear(), high.clear(), own.clear(), tiles.clear();
    for (int64_t row = 0; row < p.n_rows; ++row) {
        if ((row == 0 || !continues(p, row)) && !scan(p, row)) {
            return false;
        }
    }
    const int64_t most = std::max<int64_t>(1, tile_queries / p.group);
    for (size_t r = 0; r < runs.size(); ++r) {
        for (int64_t at = 0; at < runs[r].n_rows; at += most) {
            const int64_t first = runs[r].first_row + at, n = std::min(most, runs[r].n_rows - at);
            const int64_t begin = low[static_cast<size_t>(first)] / chunk_tokens;
            const int64_t end = high[static_cast<size_t>(first + n - 1)] / chunk_tokens + 1;
            tiles.push_back(tile{r, first, n, begin, end - begin});
        }
    }
    return true;
}

// --- one tile -------------------------------------------------------------------------------------

// Buffers of one thread.
struct workspace {
    view seen;
    std::vector<float> memory;
    float *queries, *rows, *scores, *part, *total, *part_max, *part_sum, *max, *sum;

    void reserve(const problem &p, int64_t n_queries) {
        const int64_t sizes[] = {n_queries * p.pdk, chunk_tokens * std::max(p.pdk, p.pdv), n_queries * chunk_tokens, n_queries * p.pdv,
                                 n_queries * p.pdv, n_queries, n_queries, n_queries, n_queries};
        float **const parts[] = {&queries, &rows, &scores, &part, &total, &part_max, &part_sum, &max, &sum};
        int64_t needed = 0;
        for (const int64_t size : sizes) {
            needed += padded(size);
        }
        if (memory.size() < static_cast<size_t>(needed)) {
            memory.resize(static_cast<size_t>(needed));
        }
        float *at = memory.data();
        for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); ++i) {
            *parts[i] = at;
            at += padded(sizes[i]);
        }
    }
};

void to_floats(const char *from, ggml_type type, float *to, int64_t n) {
    switch (type) {
        case GGML_TYPE_F32: std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float)); break;
        case GGML_TYPE_F16: ggml_cpu_fp16_to_fp32(reinterpret_cast<const ggml_fp16_t *>(from), to, n); break;
        case GGML_TYPE_BF16: ggml_cpu_bf16_to_fp32(reinterpret_cast<const ggml_bf16_t *>(from), to, n); break;
        default: ggml_get_type_traits(type)->to_float(from, to, n); break;
    }
}

// Keys or values of the tokens of a chunk, for one head.
struct chunk_rows {
    const char *of[chunk_tokens];  // each token's numbers
    bool are_halves = false;

    // Of tokens from..to - 1, where they lie if they can be read there, else converted into `memory`.
    void take(const ggml_tensor *t, int64_t head, const int32_t *cells, int from, int to, float *memory, int64_t width,
              bool in_place) {
        const char *base = static_cast<const char *>(t->data) + head * static_cast<int64_t>(t->nb[2]);
        const int64_t n = t->ne[0];
#ifdef LA_LOADS_HALVES
        are_halves = in_place && t->type == GGML_TYPE_F16 && n == width;
#else
        (void) in_place;
#endif
        for (int j = from; j < to; ++j) {
            const char *row = base + cells[j] * static_cast<int64_t>(t->nb[1]);
            if (are_halves) {
                of[j] = row;
                continue;
            }
            float *copy = memory + j * width;
            to_floats(row, t->type, copy, n);
            std::fill(copy + n, copy + width, 0.0f);
            of[j] = reinterpret_cast<const char *>(copy);
        }
        // Blocks of four begin before the first and end behind the last: what is computed there is masked.
        for (int j = from / block_keys * block_keys; j < from; ++j) {
            of[j] = of[from];
        }
        for (int j = to; j % block_keys != 0; ++j) {
            of[j] = of[to - 1];
        }
    }
};

void score(float *scores, const float *queries, const chunk_rows &keys, int64_t n, int n_queries, int from, int to) {
#ifdef LA_LOADS_HALVES
    if (keys.are_halves) {
        score<halves>(scores, queries, keys.of, n, n_queries, from, to);
        return;
    }
#endif
    score<floats>(scores, queries, keys.of, n, n_queries, from, to);
}

void weigh(float *out, const float *weights, const chunk_rows &values, int64_t n, int n_queries, int from, int to) {
#ifdef LA_LOADS_HALVES
    if (values.are_halves) {
        weigh<halves>(out, weights, values.of, n, n_queries, from, to);
        return;
    }
#endif
    weigh<floats>(out, weights, values.of, n, n_queries, from, to);
}

// The queries of kv heads first..last - 1, one kv head after the other: for each row, those of its group of heads.
void load_queries(const problem &p, const tile &t, int64_t first, int64_t last, float *out) {
    const int64_t per_head = t.n_rows * p.group;
    for (int64_t i = 0; i < per_head * (last - first); ++i) {
        const int64_t row = t.first_row + i % per_head / p.group;
        const int64_t head = (first + i / per_head) * p.group + i % p.group;
        const char *from = static_cast<const char *>(p.q->data) + row * static_cast<int64_t>(p.q->nb[1]) +
                           head * static_cast<int64_t>(p.q->nb[2]);
        std::memcpy(out + i * p.pdk, from, static_cast<size_t>(p.dk) * sizeof(float));
        std::fill(out + i * p.pdk + p.dk, out + (i + 1) * p.pdk, 0.0f);
    }
}

// Scores to weights: largest score and sum of weights of each query; the sum is 0 where it sees nothing of the chunk.
void soften(const problem &p, const view &seen, const tile &t, int64_t chunk, workspace &w, int64_t n_queries, int from,
            int to) {
    for (int64_t i = 0; i < n_queries; ++i) {
        const size_t row = static_cast<size_t>(t.first_row + i / p.group % t.n_rows);
        const int first = static_cast<int>(std::max<int64_t>(from, seen.low[row] - chunk * chunk_tokens));
        const int end = static_cast<int>(std::min<int64_t>(to, seen.high[row] - chunk * chunk_tokens + 1));
        float *scores = w.scores + i * chunk_tokens;
        if (first >= end) {
            w.part_sum[i] = 0.0f;
            std::fill(scores, scores + chunk_tokens, 0.0f);
            continue;
        }
        ggml_vec_scale_f32(chunk_tokens, scores, p.scale);
        if (p.softcap != 0.0f) {
            ggml_vec_tanh_f32(chunk_tokens, scores, scores);
            ggml_vec_scale_f32(chunk_tokens, scores, p.softcap);
        }
        std::fill(scores, scores + first, minus_infinity);
        std::fill(scores + end, scores + chunk_tokens, minus_infinity);
        ggml_vec_max_f32(chunk_tokens, &w.part_max[i], scores);
        w.part_sum[i] = static_cast<float>(ggml_vec_soft_max_f32(chunk_tokens, scores, scores, w.part_max[i]));
    }
}

// Bring the numbers of these tokens and heads into the processor's cache, in the order in which they lie in memory. One
// head's numbers lie too far apart for it to foresee them.
void touch(const ggml_tensor *t, int64_t first, int64_t last, const int32_t *cells, int from, int to) {
    constexpr int64_t line_bytes = 64;
    const char *base = static_cast<const char *>(t->data) + first * static_cast<int64_t>(t->nb[2]);
    const int64_t n_bytes = (last - first - 1) * static_cast<int64_t>(t->nb[2]) +
                            static_cast<int64_t>(ggml_row_size(t->type, t->ne[0]));
    int sum = 0;
    for (int j = from; j < to; ++j) {
        const volatile char *row = base + cells[j] * static_cast<int64_t>(t->nb[1]);
        for (int64_t i = 0; i < n_bytes; i += line_bytes) {
            sum += row[i];
        }
    }
    (void) sum;
}

// The sums of one chunk, for the queries of kv heads first..last - 1, head by head in the workspace. A chunk that few
// queries read is read where it lies.
void compute_chunk(const problem &p, const view &seen, const tile &t, int64_t first, int64_t last, int64_t chunk,
                   workspace &w, bool few) {
    const run &r = seen.runs[t.run];
    const int64_t begin = chunk * chunk_tokens, high = seen.high[static_cast<size_t>(t.first_row + t.n_rows - 1)];
    const int64_t low = seen.low[static_cast<size_t>(t.first_row)];
    const int from = static_cast<int>(std::max<int64_t>(0, low - begin));
    const int to = static_cast<int>(std::min<int64_t>(chunk_tokens, high - begin + 1));
    const int key_from = from / block_keys * block_keys, key_to = (to + block_keys - 1) / block_keys * block_keys;
    const int32_t *cells = seen.cells.data() + r.cells_at + (begin - r.base);
    const int64_t per_head = t.n_rows * p.group, n_queries = per_head * (last - first);
    const int n = static_cast<int>(per_head);
    const bool in_place = few && n <= 2 * block_rows;  // else each block of queries would convert it again
    if (few) {
        touch(p.k, first, last, cells, from, to);
        touch(p.v, first, last, cells, from, to);
    }
    if (key_from > 0 || key_to < chunk_tokens) {
        std::fill(w.scores, w.scores + n_queries * chunk_tokens, 0.0f);
    }
    chunk_rows rows;
    for (int64_t head = first; head < last; ++head) {
        rows.take(p.k, head, cells, from, to, w.rows, p.pdk, in_place);
        score(w.scores + (head - first) * per_head * chunk_tokens, w.queries + (head - first) * per_head * p.pdk, rows, p.pdk,
              n, key_from, key_to);
    }
    soften(p, seen, t, chunk, w, n_queries, from, to);
    for (int64_t head = first; head < last; ++head) {
        rows.take(p.v, head, cells, from, to, w.rows, p.pdv, in_place);
        weigh(w.part + (head - first) * per_head * p.pdv, w.scores + (head - first) * per_head * chunk_tokens, rows, p.pdv, n,
              from, to);
    }
}

// Add the sums of a later chunk to those of the chunks before it.
void merge(float *total, float &max, float &sum, const float *part, float part_max, float part_sum, int64_t n) {
    if (part_sum == 0.0f) {
        return;
    }
    const float most = std::max(max, part_max);
    const float keep = std::exp(max - most), take = std::exp(part_max - most);
    const lanes keeps = all(keep), takes = all(take);
    for (int64_t d = 0; d < n; d += n_lanes) {
        store(total + d, fma(mul(load(total + d), keeps), load(part + d), takes));
    }
    // Two steps, so that no compiler joins them in one place and not in another.
    const volatile float kept = sum * keep;
    const volatile float taken = part_sum * take;
    sum = kept + taken;
    max = most;
}

void write_row(const problem &p, int64_t row, int64_t head, float *total, float max, float sum) {
    if (p.sinks != nullptr) {
        const float sink = static_cast<const float *>(p.sinks->data)[head];
        const float most = std::max(max, sink);
        const float keep = std::exp(max - most);
        ggml_vec_scale_f32(static_cast<int>(p.pdv), total, keep);
        const volatile float kept = sum * keep;
        sum = kept + std::exp(sink - most);
    }
    const float share = sum == 0.0f ? 0.0f : 1.0f / sum;
    float *out = reinterpret_cast<float *>(static_cast<char *>(p.out->data) + row * static_cast<int64_t>(p.out->nb[2]) +
                                           head * static_cast<int64_t>(p.out->nb[1]));
    ggml_vec_scale_f32(static_cast<int>(p.pdv), total, share);
    std::memcpy(out, total, static_cast<size_t>(p.dv) * sizeof(float));
}

void compute_tile(const problem &p, const view &seen, const tile &t, int64_t kv_head, workspace &w) {
    const int64_t n_queries = t.n_rows * p.group;
    w.reserve(p, n_queries);
    load_queries(p, t, kv_head, kv_head + 1, w.queries);
    std::fill(w.total, w.total + n_queries * p.pdv, 0.0f);
    std::fill(w.max, w.max + n_queries, minus_infinity);
    std::fill(w.sum, w.sum + n_queries, 0.0f);
    for (int64_t chunk = t.first_chunk; chunk < t.first_chunk + t.n_chunks; ++chunk) {
        compute_chunk(p, seen, t, kv_head, kv_head + 1, chunk, w, false);
        for (int64_t i = 0; i < n_queries; ++i) {
            merge(w.total + i * p.pdv, w.max[i], w.sum[i], w.part + i * p.pdv, w.part_max[i], w.part_sum[i], p.pdv);
        }
    }
    for (int64_t i = 0; i < n_queries; ++i) {
        write_row(p, t.first_row + i / p.group, kv_head * p.group + i % p.group, w.total + i * p.pdv, w.max[i], w.sum[i]);
    }
}

// --- few rows -------------------------------------------------------------------------------------

// The sums of each chunk of each row and head, in the work buffer: largest score, sum of weights, weighted values.
struct parts {
    float *at;
    int64_t stride, max_chunks, n_heads;

    float *of(int64_t row, int64_t head, int64_t chunk) const {
        return at + ((row * n_heads + head) * max_chunks + chunk) * stride;
    }
};

void compute_part(const problem &p, const view &seen, const tile &t, int64_t first, int64_t last, int64_t chunk,
                  workspace &w, const parts &shared) {
    const int64_t per_head = t.n_rows * p.group, n_queries = per_head * (last - first);
    w.reserve(p, n_queries);
    load_queries(p, t, first, last, w.queries);
    compute_chunk(p, seen, t, first, last, t.first_chunk + chunk, w, true);
    for (int64_t i = 0; i < n_queries; ++i) {
        const int64_t head = (first + i / per_head) * p.group + i % p.group;
        float *to = shared.of(t.first_row + i % per_head / p.group, head, chunk);
        to[0] = w.part_max[i];
        to[1] = w.part_sum[i];
        std::memcpy(to + 16, w.part + i * p.pdv, static_cast<size_t>(p.pdv) * sizeof(float));
    }
}

void merge_parts(const problem &p, const tile &t, int64_t row, int64_t head, workspace &w, const parts &shared) {
    std::fill(w.total, w.total + p.pdv, 0.0f);
    float max = minus_infinity, sum = 0.0f;
    for (int64_t chunk = 0; chunk < t.n_chunks; ++chunk) {
        const float *from = shared.of(row, head, chunk);
        merge(w.total, max, sum, from + 16, from[0], from[1], p.pdv);
    }
    write_row(p, row, head, w.total, max, sum);
}

size_t parts_bytes(const problem &p) {
    if (p.n_rows > split_rows) {
        return 0;
    }
    return static_cast<size_t>(p.n_rows * p.n_heads * p.max_chunks * (16 + p.pdv)) * sizeof(float) + 64;
}

void compute_split(const ggml_compute_params *params, const problem &p, workspace &w) {
    const uintptr_t aligned = (reinterpret_cast<uintptr_t>(params->wdata) + 63) & ~static_cast<uintptr_t>(63);
    const parts shared{reinterpret_cast<float *>(aligned), 16 + p.pdv, p.max_chunks, p.n_heads};
    const std::vector<tile> &tiles = w.seen.tiles;
    int64_t n_chunks = 0;
    for (const tile &t : tiles) {
        n_chunks += t.n_chunks;
    }
    // All heads of a chunk lie side by side in memory, so one thread takes them, unless there are few chunks.
    const int64_t heads_each = n_chunks < 2 * params->nth ? 1 : p.n_kv_heads, per_chunk = p.n_kv_heads / heads_each;
    for (int64_t unit = params->ith; unit < n_chunks * per_chunk; unit = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        int64_t chunk = unit / per_chunk;
        size_t which = 0;
        while (chunk >= tiles[which].n_chunks) {
            chunk -= tiles[which].n_chunks;
            ++which;
        }
        const int64_t first = unit % per_chunk * heads_each;
        compute_part(p, w.seen, tiles[which], first, first + heads_each, chunk, w, shared);
    }
    ggml_barrier(params->threadpool);
    w.reserve(p, 1);
    int64_t next = params->ith, index = 0;
    for (const tile &t : tiles) {
        for (int64_t row = t.first_row; row < t.first_row + t.n_rows; ++row) {
            for (int64_t head = 0; head < p.n_heads; ++head, ++index) {
                if (index == next) {
                    merge_parts(p, t, row, head, w, shared);
                    next += params->nth;
                }
            }
        }
    }
}

} // namespace

bool la::attention(const ggml_compute_params *params, ggml_tensor *op) {
    static thread_local workspace w;
    problem p{};
    if (!describe(op, p) || !w.seen.build(p)) {
        return false;  // all threads find the same
    }
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    if (p.n_rows <= split_rows) {
        compute_split(params, p, w);
        return true;
    }
    const int64_t n_tiles = static_cast<int64_t>(w.seen.tiles.size()), n_units = n_tiles * p.n_kv_heads;
    for (int64_t unit = params->ith; unit < n_units; unit = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        // The last tiles see most: they are computed first, so that no thread waits for one of them.
        compute_tile(p, w.seen, w.seen.tiles[static_cast<size_t>(n_tiles - 1 - unit / p.n_kv_heads)], unit % p.n_kv_heads, w);
    }
    return true;
}

size_t la::attention_bytes(int n_threads, const ggml_tensor *op) {
    problem p{};
    if (!describe(op, p)) {
        return 0;
    }
    // What llama.cpp plans, which computes what is not done here.
    const size_t prefill = sizeof(float) * static_cast<size_t>((GGML_FA_TILE_Q * p.dk + 2 * GGML_FA_TILE_Q * GGML_FA_TILE_KV +
                                                                GGML_FA_TILE_Q * p.dv + GGML_FA_TILE_KV * p.dv +
                                                                GGML_FA_TILE_KV * p.dk + 64) * n_threads);
    const size_t decode = sizeof(float) * static_cast<size_t>(p.n_heads * n_threads * (2 + p.dv) +
                                                              n_threads * (p.dk + 2 * p.dv + 64));
    return std::max({prefill, decode, parts_bytes(p)});
}
