// Loading a model, and its vocabulary.
#include "internal.h"

#include <algorithm>
#include <climits>
#include <cstring>

namespace {

struct progress_hook {
    la_progress call;
    void *user;
};

bool on_progress(float done, void *user) noexcept {
    const auto *hook = static_cast<const progress_hook *>(user);
    return hook->call(done, hook->user) != 0;
}

llama_load_mode load_mode(bool mmap, bool mlock) {
    if (mmap) {
        return mlock ? LLAMA_LOAD_MODE_MMAP_MLOCK : LLAMA_LOAD_MODE_MMAP;
    }
    return mlock ? LLAMA_LOAD_MODE_MLOCK : LLAMA_LOAD_MODE_NONE;
}

int32_t copy_text(const char *text, char *out, size_t capacity) noexcept {
    if (text == nullptr) {
        return -1;
    }
    const size_t length = strlen(text);
    if (capacity > 0) {
        const size_t n = std::min(length, capacity - 1);
        memcpy(out, text, n);
        out[n] = '\0';
    }
    return length > INT32_MAX ? -1 : static_cast<int32_t>(length);
}

} // namespace

extern "C" {

int la_model_load(const char *path, const la_model_wishes *wishes, la_model **out) noexcept {
    return la::guarded([&] {
        llama_model_params params = llama_model_default_params();
        progress_hook hook{wishes->progress, wishes->user};
        params.n_gpu_layers = wishes->n_gpu_layers;
        params.split_mode = static_cast<llama_split_mode>(wishes->split_mode);
        params.main_gpu = wishes->main_gpu;
        params.load_mode = load_mode(wishes->use_mmap != 0, wishes->use_mlock != 0);
        params.vocab_only = wishes->vocab_only != 0;
        // llama.cpp reads llama_max_devices() numbers, however many there are.
        std::vector<float> shares(llama_max_devices(), 0.0f);
        if (wishes->n_tensor_split > 0) {
            std::copy_n(wishes->tensor_split, std::min<size_t>(shares.size(), wishes->n_tensor_split), shares.begin());
            params.tensor_split = shares.data();
        }
        if (wishes->progress != nullptr) {
            params.progress_callback = on_progress;
            params.progress_callback_user_data = &hook;
        }
        llama_model *handle = llama_model_load_from_file(path, params);
        if (handle == nullptr) {
            throw la::fault{LA_LOAD, "llama.cpp refused the file"};
        }
        const llama_vocab *vocab = llama_model_get_vocab(handle);
        try {
            *out = new la_model{handle, vocab, llama_vocab_n_tokens(vocab), la::special_tokens(vocab)};
        } catch (...) {
            llama_model_free(handle);
            throw;
        }
        (*out)->vocab_only = wishes->vocab_only != 0;
    });
}

void la_model_free(la_model *model) noexcept {
    if (model != nullptr) {
        llama_model_free(model->handle);
        delete model;
    }
}

void la_model_describe(const la_model *model, la_model_facts *out) noexcept {
    const llama_model *m = model->handle;
    const llama_token bos = llama_vocab_bos(model->vocab);
    if (model->vocab_only) {
        *out = la_model_facts{};
        out->n_vocab = model->n_vocab;
        out->add_bos = llama_vocab_get_add_bos(model->vocab);
        out->bos_token = bos == LLAMA_TOKEN_NULL ? -1 : bos;
        return;
    }
    *out = la_model_facts{
        model->n_vocab,
        llama_model_n_ctx_train(m),
        llama_model_n_layer(m),
        llama_model_n_swa(m),
        llama_model_rope_type(m),
        llama_model_is_recurrent(m) || llama_model_is_hybrid(m),
        llama_model_has_decoder(m) && !llama_model_has_encoder(m),
        llama_vocab_get_add_bos(model->vocab),
        bos == LLAMA_TOKEN_NULL ? -1 : bos,
        llama_model_n_embd(m),
        llama_model_n_embd_out(m),
        llama_model_n_head(m),
        llama_model_n_head_kv(m),
        llama_model_n_params(m),
        llama_model_size(m),
    };
}

int32_t la_model_description(const la_model *model, char *out, size_t capacity) noexcept {
    return llama_model_desc(model->handle, out, capacity);
}

int32_t la_model_meta(const la_model *model, const char *key, char *out, size_t capacity) noexcept {
    return llama_model_meta_val_str(model->handle, key, out, capacity);
}

int32_t la_model_chat_template(const la_model *model, char *out, size_t capacity) noexcept {
    return copy_text(llama_model_chat_template(model->handle, nullptr), out, capacity);
}

void la_model_eog(const la_model *model, uint8_t *out) noexcept {
    for (int32_t token = 0; token < model->n_vocab; ++token) {
        out[token] = llama_vocab_is_eog(model->vocab, token) ? 1 : 0;
    }
}

} // extern "C"
