// Part of every CPU backend. A product of a batch is handed to llama.cpp's kernels in such groups of rows that each row is
// computed by the same kernel, whatever their number is.
#include "operations.h"
#include "rows.h"

#include "common.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "tiled/tiled.h"
#include "traits.h"

#include <algorithm>
#include <cstring>

extern "C" {
void ggml_compute_forward_mul_mat(const ggml_compute_params *params, ggml_tensor *dst);
}

namespace {

// Repacked weights are multiplied with four rows at a time, and the rest one by one.
constexpr int64_t repacked_group = 4;
// From so many rows on llama.cpp's tiled kernel computes K-quants (ggml_tiled_min_batch).
constexpr int64_t tiled_rows = 8;
// llamafile_sgemm leaves fewer to the kernel for one row: 2 on x86, up to 8 on ARM.
#if defined(__x86_64__) || defined(_M_X64)
constexpr int64_t sgemm_rows = 2;
#else
constexpr int64_t sgemm_rows = 8;
#endif

// A product of weights with the rows of a batch.
bool is_of_batch(const ggml_tensor *op) {
    const ggml_tensor *weights = op->src[0], *rows = op->src[1];
    return op->op == GGML_OP_MUL_MAT && weights->ne[2] == 1 && weights->ne[3] == 1 && rows->ne[3] == 1 &&
           rows->type == GGML_TYPE_F32 && op->type == GGML_TYPE_F32 && rows->nb[0] == sizeof(float) &&
           op->nb[0] == sizeof(float) && ggml_is_contiguous(weights);
}

// Whether the rows of all planes, which are sequences in recurrent models, lie behind one another.
bool is_flat(const ggml_tensor *t) { return t->ne[2] == 1 || t->nb[2] == static_cast<size_t>(t->ne[1]) * t->nb[1]; }

bool is_flat_product(const ggml_tensor *op) { return is_flat(op) && is_flat(op->src[1]); }

bool is_repacked(const ggml_tensor *weights) { return weights->extra != nullptr; }

bool is_tiled(const ggml_tensor *weights) {
    switch (weights->type) {
        case GGML_TYPE_Q6_K:
        case GGML_TYPE_Q5_K:
        case GGML_TYPE_Q4_K:
        case GGML_TYPE_Q3_K:
        case GGML_TYPE_Q2_K:
        case GGML_TYPE_IQ4_XS:
        case GGML_TYPE_IQ2_XXS:
        case GGML_TYPE_IQ2_XS:
        case GGML_TYPE_IQ2_S:
        case GGML_TYPE_IQ3_XXS:
        case GGML_TYPE_IQ3_S:
        case GGML_TYPE_IQ1_S:
        case GGML_TYPE_IQ1_M: return true;
        default: return false;
    }
}

// Fewer rows than this are computed in another way than many. tests/model/test_native_rows.py judges it.
int64_t many(const ggml_tensor *weights) {
    if (is_repacked(weights)) {
        return repacked_group;
    }
    if (is_tiled(weights)) {
        return tiled_rows;
    }
    switch (weights->type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_IQ4_NL: return sgemm_rows;
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q5_0:
#if defined(__AVX2__)
            return 1;  // both kernels add block by block, in the same order
#else
            return sgemm_rows;
#endif
        default: return 1;  // has one kernel only
    }
}

// The same product of other rows.
struct part {
    ggml_tensor rows;
    ggml_tensor op;

    part(const ggml_tensor *whole, int64_t n, char *from, size_t from_stride, char *to, size_t to_stride)
        : rows(*whole->src[1]), op(*whole) {
        shape(rows, n, 1, from, from_stride);
        shape(op, n, 1, to, to_stride);
        op.src[1] = &rows;
    }

    // Each row as a plane of its own: kernels for groups of rows never see more than one.
    void spread() {
        shape(rows, 1, rows.ne[1], static_cast<char *>(rows.data), rows.nb[1]);
        shape(op, 1, op.ne[1], static_cast<char *>(op.data), op.nb[1]);
    }

  private:
    static void shape(ggml_tensor &t, int64_t n, int64_t n_planes, char *data, size_t stride) {
        t.data = data;
        t.ne[1] = n;
        t.ne[2] = n_planes;
        t.ne[3] = 1;
        t.nb[1] = stride;
        t.nb[2] = static_cast<size_t>(n) * stride;
        t.nb[3] = t.nb[2] * static_cast<size_t>(n_planes);
        t.view_src = nullptr;
    }
};

void compute(ggml_compute_params *params, ggml_tensor *op) {
    if (!ggml_cpu_extra_compute_forward(params, op)) {
        ggml_compute_forward_mul_mat(params, op);
    }
}

// What llama.cpp plans for a product of n rows.
size_t planned_bytes(int n_threads, const ggml_tensor *op, int64_t n) {
    part p(op, n, nullptr, op->src[1]->ne[0] * sizeof(float), nullptr, op->ne[0] * sizeof(float));
    size_t bytes = 0;
    if (ggml_cpu_extra_work_size(n_threads, &p.op, &bytes)) {
        return GGML_PAD(bytes, 64);
    }
    const ggml_type type = ggml_get_type_traits_cpu(op->src[0]->type)->vec_dot_type;
    bytes = type == GGML_TYPE_F32 ? 0 : ggml_row_size(type, op->src[1]->ne[0] * n);
    return GGML_PAD(GGML_PAD(bytes, 64) + ggml_tiled_wdata_size(n_threads, &p.op), 64);
}

// Fewer rows than a group: some of them again, until it is one.
void compute_few(ggml_compute_params *params, ggml_tensor *op, int64_t group) {
    const ggml_tensor *rows = op->src[1];
    const int64_t n = rows->ne[1];
    const size_t row_bytes = rows->ne[0] * sizeof(float), out_bytes = op->ne[0] * sizeof(float);
    const size_t planned = planned_bytes(params->nth, op, group);
    char *copies = static_cast<char *>(params->wdata) + planned;
    char *results = copies + GGML_PAD(group * row_bytes, 64);
    if (params->ith == 0) {
        for (int64_t i = 0; i < group; ++i) {
            const int64_t from = std::min(i, n - 1);
            std::memcpy(copies + i * row_bytes, static_cast<const char *>(rows->data) + from * rows->nb[1], row_bytes);
        }
    }
    ggml_barrier(params->threadpool);
    part p(op, group, copies, row_bytes, results, out_bytes);
    ggml_compute_params inner = *params;
    inner.wsize = planned;
    compute(&inner, &p.op);
    ggml_barrier(params->threadpool);
    const int64_t first = op->ne[0] * params->ith / params->nth, last = op->ne[0] * (params->ith + 1) / params->nth;
    for (int64_t i = 0; i < n; ++i) {
        std::memcpy(static_cast<char *>(op->data) + i * op->nb[1] + first * sizeof(float),
                    results + i * out_bytes + first * sizeof(float), (last - first) * sizeof(float));
    }
}

// Whole groups, and then the last rows once more as a group of which the first were computed already.
void compute_groups(ggml_compute_params *params, ggml_tensor *op, int64_t group) {
    const ggml_tensor *rows = op->src[1];
    const int64_t n = rows->ne[1];
    char *from = static_cast<char *>(rows->data), *to = static_cast<char *>(op->data);
    part whole(op, n - n % group, from, rows->nb[1], to, op->nb[1]);
    compute(params, &whole.op);
    ggml_barrier(params->threadpool);
    const int64_t at = n - group;
    part last(op, group, from + at * rows->nb[1], rows->nb[1], to + at * op->nb[1], op->nb[1]);
    compute(params, &last.op);
}

} // namespace

namespace {

// All rows of a plane, or of all planes if they lie behind one another.
part of_plane(const ggml_tensor *op, int64_t plane) {
    const ggml_tensor *rows = op->src[1];
    const int64_t n = is_flat_product(op) ? rows->ne[1] * rows->ne[2] : rows->ne[1];
    return part(op, n, static_cast<char *>(rows->data) + plane * rows->nb[2], rows->nb[1],
                static_cast<char *>(op->data) + plane * op->nb[2], op->nb[1]);
}

void compute_many(ggml_compute_params *params, ggml_tensor *op) {
    const int64_t group = many(op->src[0]), n = op->src[1]->ne[1];
    if (n < group) {
        compute_few(params, op, group);
    } else if (is_repacked(op->src[0]) && n % group != 0) {
        compute_groups(params, op, group);
    } else {
        compute(params, op);
    }
}

} // namespace

bool la::product(ggml_compute_params *params, ggml_tensor *op) {
    if (!is_of_batch(op)) {
        return false;
    }
    const int how = la_rows_of(params->threadpool);
    if (how == LA_ROWS_ANY) {
        return false;
    }
    const int64_t n_planes = is_flat_product(op) ? 1 : op->src[1]->ne[2];
    for (int64_t plane = 0; plane < n_planes; ++plane) {
        if (plane > 0) {
            ggml_barrier(params->threadpool);  // the work buffer is used again
        }
        part p = of_plane(op, plane);
        if (how == LA_ROWS_MANY) {
            compute_many(params, &p.op);
        } else {
            p.spread();
            compute(params, &p.op);
        }
    }
    return true;
}

size_t la::product_bytes(int n_threads, const ggml_tensor *op) {
    if (!is_of_batch(op)) {
        return 0;
    }
    const ggml_tensor *rows = op->src[1];
    const int64_t group = many(op->src[0]), n_all = rows->ne[1] * rows->ne[2];
    if ((is_flat_product(op) ? n_all : rows->ne[1]) >= group) {
        return 0;
    }
    // As much as llama.cpp plans for all planes, too: it computes them at once where rows may be any.
    return planned_bytes(n_threads, op, std::max(group, n_all)) + GGML_PAD(group * rows->ne[0] * sizeof(float), 64) +
           group * op->ne[0] * sizeof(float);
}

extern "C" bool la_mul_mat_id_tiled(const ggml_compute_params *params, ggml_tensor *op, int64_t expert, int64_t n_rows,
                                    const int32_t *expert_rows, char *scratch) {
    const int rows = la_rows_of(params->threadpool);
    if (rows == LA_ROWS_ALONE) {
        return false;
    }
    if (rows == LA_ROWS_ANY || n_rows >= tiled_rows) {
        return ggml_compute_forward_mul_mat_id_tiled(params, op, expert, n_rows, expert_rows, scratch);
    }
    int32_t repeated[2 * tiled_rows];
    for (int64_t i = 0; i < tiled_rows; ++i) {
        const int64_t from = std::min(i, n_rows - 1);
        repeated[2 * i] = expert_rows[2 * from];
        repeated[2 * i + 1] = expert_rows[2 * from + 1];
    }
    return ggml_compute_forward_mul_mat_id_tiled(params, op, expert, tiled_rows, repeated, scratch);
}

extern "C" bool la_compute_forward(ggml_compute_params *params, ggml_tensor *op) {
    switch (op->op) {
        case GGML_OP_MUL_MAT:
            if (la::product(params, op)) {
                return true;
            }
            break;
        case GGML_OP_FLASH_ATTN_EXT:
            if (la::attention(params, op)) {
                return true;
            }
            break;
        default: break;
    }
    return ggml_cpu_extra_compute_forward(params, op);
}

extern "C" bool la_work_size(int n_threads, const ggml_tensor *op, size_t *size) {
    const size_t needed = op->op == GGML_OP_MUL_MAT          ? la::product_bytes(n_threads, op)
                          : op->op == GGML_OP_FLASH_ATTN_EXT ? la::attention_bytes(n_threads, op)
                                                             : 0;
    const bool is_planned = ggml_cpu_extra_work_size(n_threads, op, size);
    if (needed == 0) {
        return is_planned;
    }
    *size = std::max(is_planned ? *size : 0, needed);
    return true;
}
