// The cells of a context's attention caches, shared with the attention kernel (kernels/cells.h).
#include "internal.h"

#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"

namespace {

void write_positions(const la_cells *self, int32_t n, int32_t *out) {
    const auto &cells = *static_cast<const llama_kv_cells *>(self->cells);
    for (int32_t i = 0; i < n; ++i) {
        const auto cell = static_cast<uint32_t>(i);
        out[i] = cells.is_empty(cell) ? -1 : cells.pos_get(cell);
    }
}

void share(la_context &context, const llama_kv_cache *cache) {
    if (cache == nullptr || cache->get_n_stream() != 1) {
        return;
    }
    auto cells = std::make_unique<la_cells>(la_cells{LA_CELLS_MAGIC, &cache->get_cells(0), write_positions});
    for (const uint32_t layer : cache->get_layer_ids()) {
        ggml_tensor *keys = cache->get_k_storage(static_cast<int32_t>(layer));
        // Backends of GPUs use the field themselves, and have attention of their own.
        if (keys != nullptr && keys->extra == nullptr && keys->buffer != nullptr && ggml_backend_buffer_is_host(keys->buffer)) {
            keys->extra = cells.get();
        }
    }
    context.cells.push_back(std::move(cells));
}

void share(la_context &context, const llama_kv_cache_iswa *caches) {
    share(context, caches->get_base());
    share(context, caches->get_swa());
}

} // namespace

void la::share_cells(la_context &context) {
    llama_memory_i *memory = context.memory;
    if (const auto *cache = dynamic_cast<llama_kv_cache *>(memory)) {
        share(context, cache);
    } else if (const auto *caches = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
        share(context, caches);
    } else if (const auto *hybrid = dynamic_cast<llama_memory_hybrid *>(memory)) {
        share(context, hybrid->get_mem_attn());
    } else if (const auto *both = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        share(context, both->get_mem_attn());
    }
}
