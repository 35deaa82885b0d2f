// Embeddings: a small context of its own, never the one that holds the sequences of requests.
#include "internal.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

struct la_embedder {
    const la_model *model = nullptr;
    llama_context *handle = nullptr;
    int32_t n_tokens = 0;
    int32_t pooling = 0;
    // Columns of a batch, prepared once.
    std::vector<int32_t> positions;
    std::vector<int32_t> one_seq;
    std::vector<llama_seq_id *> seqs;
    std::vector<int8_t> wants;
    llama_seq_id zero = 0;
};

namespace {

bool should_abort(void *flag) noexcept {
    return __atomic_load_n(static_cast<volatile int32_t *>(flag), __ATOMIC_RELAXED) != 0;
}

llama_context_params embedder_params(const la_embedder_wishes &wishes) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = wishes.n_tokens;
    // Pooling, and attention to what comes later, need the whole text in one piece.
    params.n_batch = wishes.n_tokens;
    params.n_ubatch = wishes.n_tokens;
    params.n_seq_max = 1;
    params.n_threads = wishes.n_threads;
    params.n_threads_batch = wishes.n_threads;
    params.pooling_type = static_cast<enum llama_pooling_type>(wishes.pooling);
    // Nothing of this context is ever saved, so its layout may be what suits the device.
    params.flash_attn_type = wishes.flash_attn ? LLAMA_FLASH_ATTN_TYPE_AUTO : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.offload_kqv = wishes.offload_kqv != 0;
    la::override_rope(params, wishes.rope);
    params.embeddings = true;
    params.no_perf = true;
    params.abort_callback = should_abort;
    params.abort_callback_data = const_cast<int32_t *>(wishes.abort_flag);
    return params;
}

void compute(la_embedder &e, int32_t n, const int32_t *tokens) {
    llama_memory_t memory = llama_get_memory(e.handle);
    if (memory != nullptr) {
        llama_memory_clear(memory, false);
    }
    const llama_batch batch{n, const_cast<llama_token *>(tokens), nullptr, e.positions.data(), e.one_seq.data(),
                            e.seqs.data(), e.wants.data()};
    const bool encodes = memory == nullptr || !llama_model_has_decoder(e.model->handle);
    const int32_t code = encodes ? llama_encode(e.handle, batch) : llama_decode(e.handle, batch);
    switch (code) {
        case 0: break;
        case 1: throw la::fault{LA_NO_SPACE, "no free KV cells for this text"};
        case 2: throw la::fault{LA_ABORTED, "the abort flag was raised"};
        default: throw la::fault{LA_DECODE, "llama.cpp could not embed the text", code};
    }
    llama_synchronize(e.handle);
}

} // namespace

extern "C" {

int la_embedder_new(const la_model *model, const la_embedder_wishes *wishes, la_embedder **out) noexcept {
    return la::guarded([&] {
        auto e = std::unique_ptr<la_embedder, void (*)(la_embedder *)>(new la_embedder(), la_embedder_free);
        e->model = model;
        e->handle = llama_init_from_model(model->handle, embedder_params(*wishes));
        if (e->handle == nullptr) {
            throw la::fault{LA_CONTEXT, "llama.cpp could not create the context for embeddings"};
        }
        e->n_tokens = static_cast<int32_t>(wishes->n_tokens);
        e->pooling = llama_pooling_type(e->handle);
        const size_t n = wishes->n_tokens;
        e->positions.resize(n);
        std::iota(e->positions.begin(), e->positions.end(), 0);
        e->one_seq.assign(n, 1);
        e->seqs.assign(n, &e->zero);
        e->wants.assign(n, 1);
        *out = e.release();
    });
}

void la_embedder_free(la_embedder *embedder) noexcept {
    if (embedder != nullptr) {
        if (embedder->handle != nullptr) {
            llama_free(embedder->handle);
        }
        delete embedder;
    }
}

int la_embed(la_embedder *embedder, int32_t n, const int32_t *tokens, float *out, size_t capacity) noexcept {
    return la::guarded([&] {
        la_embedder &e = *embedder;
        if (n < 1 || n > e.n_tokens) {
            throw la::fault{LA_TOO_LONG, "the text does not fit the context for embeddings", n, e.n_tokens};
        }
        for (int32_t i = 0; i < n; ++i) {
            if (tokens[i] < 0 || tokens[i] >= e.model->n_vocab) {
                throw la::fault{LA_TOKEN, "not a token of this vocabulary", tokens[i], e.model->n_vocab};
            }
        }
        const bool ranks = e.pooling == LLAMA_POOLING_TYPE_RANK;
        const auto n_embd = static_cast<size_t>(ranks ? llama_model_n_cls_out(e.model->handle)
                                                      : llama_model_n_embd_out(e.model->handle));
        const bool each = e.pooling == LLAMA_POOLING_TYPE_NONE;
        const size_t needed = n_embd * (each ? static_cast<size_t>(n) : 1);
        if (capacity < needed) {
            throw la::fault{LA_BUFFER, "the buffer is too small", static_cast<int64_t>(capacity * sizeof(float)),
                            static_cast<int64_t>(needed * sizeof(float))};
        }
        compute(e, n, tokens);
        for (int32_t i = 0; i < (each ? n : 1); ++i) {
            const float *row = each ? llama_get_embeddings_ith(e.handle, i) : llama_get_embeddings_seq(e.handle, 0);
            if (row == nullptr) {
                throw la::fault{LA_DECODE, "llama.cpp made no embedding of the text"};
            }
            std::copy_n(row, n_embd, out + static_cast<size_t>(i) * n_embd);
        }
        if (!std::all_of(out, out + needed, [](float x) { return std::isfinite(x); })) {
            throw la::fault{LA_DECODE, "the embedding has numbers that are not finite"};
        }
    });
}

} // extern "C"
