// LoRA adapters: read, applied to a context, freed.
#include "internal.h"

#include <vector>

struct la_adapter {
    llama_adapter_lora *handle = nullptr;
};

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

} // extern "C"
