/* Included before ggml-cpu.c: its calls for operations of special weights reach native/kernels first.
 *
 * A hook returns false for what it leaves to llama.cpp.
 */
#pragma once
#include "ggml.h"
#include "traits.h"
#include "tiled/tiled.h"

struct ggml_compute_params;

/* Computes this thread's part of an operation: attention over cells in the order of positions, and products whose
 * rows do not depend on their number. */
bool la_compute_forward(struct ggml_compute_params *params, struct ggml_tensor *op);
/* Bytes of the work buffer for it. */
bool la_work_size(int n_threads, const struct ggml_tensor *op, size_t *size);
bool la_mul_mat_id_tiled(const struct ggml_compute_params *params, struct ggml_tensor *op, int64_t expert, int64_t n_rows,
                         const int32_t *expert_rows, char *scratch);

#define ggml_cpu_extra_compute_forward la_compute_forward
#define ggml_cpu_extra_work_size la_work_size
#define ggml_compute_forward_mul_mat_id_tiled la_mul_mat_id_tiled
