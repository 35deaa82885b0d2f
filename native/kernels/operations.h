// The operations that are computed here instead of by llama.cpp. See hooks.h.
#pragma once
#include "ggml.h"

#include <cstddef>

struct ggml_compute_params;

namespace la {

// A matrix product whose rows do not depend on how many there are, see rows.h; false: llama.cpp computes it.
bool product(ggml_compute_params *params, ggml_tensor *op);
// Bytes of the work buffer that product() needs for this operation; 0: not more than llama.cpp plans.
size_t product_bytes(int n_threads, const ggml_tensor *op);

// Attention of a batch in which a row depends on its own sequence alone; false: not for this operation.
bool attention(const ggml_compute_params *params, ggml_tensor *op);
size_t attention_bytes(int n_threads, const ggml_tensor *op);

} // namespace la
