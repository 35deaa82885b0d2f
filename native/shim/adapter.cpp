// LoRA adapters: read, applied to a context, freed. Control vectors: applied to a context.
#include "internal.h"

#include <vector>

struct la_adapter {
    llama_adapter_lora *handle = nullptr;
};

namespace {

// The logits behind one token. The memory is empty before and afterwards.
std::vector<float> first_logits(la_context &c) {
    llama_token token = llama_vocab_bos(c.model->vocab);
    token = token == LLAMA_TOKEN_NULL ? 0 : token;
    llama_pos position = 0;
    int32_t n_seqs = 1;
    llama_seq_id zero = 0;
    llama_seq_id *seq = &zero;
    int8_t wants = 1;
    const llama_batch batch{1, &token, nullptr, &position, &n_seqs, &seq, &wants};
    const int32_t code = llama_decode(c.handle, batch);
    if (code != 0) {
        throw la::fault{LA_CONTEXT, "a decode failed with code " + std::to_string(code)};
    }
    const float *row = llama_get_logits_ith(c.handle, 0);
    if (row == nullptr) {
        throw la::fault{LA_CONTEXT, "llama.cpp made no logits"};
    }
    std::vector<float> logits(row, row + c.model->n_vocab);
    llama_memory_clear(c.memory, true);
    return logits;
}

void set_control_vector(la_context &c, const float *data, size_t n, int32_t n_embd, int32_t first, int32_t last) {
    if (llama_set_adapter_cvec(c.handle, data, n, n_embd, first, last) != 0) {
        throw la::fault{LA_ADAPTER, "llama.cpp did not apply the control vector"};
    }
}

} // namespace

extern "C" {

int la_adapter_load(la_model *model, const char *path, la_adapter **out) noexcept {
    return la::guarded([&] {
        llama_adapter_lora *handle = llama_adapter_lora_init(model->handle, path);
        if (handle == nullptr) {
            throw la::fault{LA_ADAPTER, "llama.cpp refused the adapter"};
        }
        if (llama_adapter_get_alora_n_invocation_tokens(handle) > 0) {
            // Its weights count only behind certain tokens; applied everywhere they are wrong.
            llama_adapter_lora_free(handle);
            throw la::fault{LA_ADAPTER, "it is an activated LoRA (aLoRA), which is not supported"};
        }
        *out = new (std::nothrow) la_adapter{handle};
        if (*out == nullptr) {
            llama_adapter_lora_free(handle);
            throw std::bad_alloc();
        }
    });
}

void la_adapter_free(la_adapter *adapter) noexcept {
    if (adapter != nullptr) {
        llama_adapter_lora_free(adapter->handle);
        delete adapter;
    }
}

int la_adapters_apply(la_context *context, int32_t n, la_adapter *const *adapters, const float *scales) noexcept {
    return la::guarded([&] {
        std::vector<llama_adapter_lora *> handles;
        std::vector<float> factors;
        for (int32_t i = 0; i < n; ++i) {
            handles.push_back(adapters[i]->handle);
            factors.push_back(scales[i]);
        }
        if (llama_set_adapters_lora(context->handle, handles.data(), handles.size(), factors.data()) != 0) {
            throw la::fault{LA_ADAPTER, "llama.cpp did not apply the adapters"};
        }
    });
}

int la_control_vector_apply(la_context *context, const float *data, size_t n, int32_t n_embd, int32_t first,
                            int32_t last, int prove) noexcept {
    return la::guarded([&] {
        la_context &c = *context;
        const llama_model *model = c.model->handle;
        // llama.cpp keeps numbers of an earlier vector where this one has none.
        const auto n_layer = static_cast<size_t>(llama_model_n_layer(model));
        if (n_embd != llama_model_n_embd(model) || n_layer < 2 || n != (n_layer - 1) * static_cast<size_t>(n_embd)) {
            throw la::fault{LA_ADAPTER, "the control vector has another shape than the model"};
        }
        c.has_logits.clear();
        const std::vector<float> before = prove != 0 ? first_logits(c) : std::vector<float>();
        set_control_vector(c, data, n, n_embd, first, last);
        // Not every architecture's graph adds it, and llama.cpp reports nothing then.
        if (prove != 0 && first_logits(c) == before) {
            set_control_vector(c, nullptr, 0, 0, 0, 0);
            throw la::fault{LA_ADAPTER, "the control vector changes nothing: this architecture applies none, or "
                                        "its numbers are too small"};
        }
    });
}

} // extern "C"
