// Loading a model, and its vocabulary.
#include "internal.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <regex>

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

ggml_backend_buffer_type_t buffer_type(const std::string &name) {
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        const ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(ggml_backend_dev_get(i));
        if (type != nullptr && name == ggml_backend_buft_name(type)) {
            return type;
        }
    }
    return nullptr;
}

// Ends with an entry of nothing, as llama.cpp requires.
std::vector<llama_model_tensor_buft_override> tensor_overrides(const la_model_wishes &wishes) {
    std::vector<llama_model_tensor_buft_override> found;
    for (int32_t i = 0; i < wishes.n_tensor_overrides; ++i) {
        const la_tensor_override &one = wishes.tensor_overrides[i];
        const ggml_backend_buffer_type_t type = buffer_type(one.buffer);
        if (type == nullptr) {
            throw la::fault{LA_OVERRIDE, "no such buffer type", i};
        }
        found.push_back({one.pattern, type});
    }
    found.push_back({nullptr, nullptr});
    return found;
}

template <size_t N> void copy_into(char (&out)[N], const char *text) {
    if (strlen(text) >= N) {
        throw la::fault{LA_OVERRIDE, "a key or a text is too long"};
    }
    strcpy(out, text);
}

std::vector<llama_model_kv_override> kv_overrides(const la_model_wishes &wishes) {
    std::vector<llama_model_kv_override> found;
    for (int32_t i = 0; i < wishes.n_kv_overrides; ++i) {
        const la_kv_override &one = wishes.kv_overrides[i];
        llama_model_kv_override entry{};
        entry.tag = static_cast<llama_model_kv_override_type>(one.kind);
        copy_into(entry.key, one.key);
        switch (entry.tag) {
            case LLAMA_KV_OVERRIDE_TYPE_INT: entry.val_i64 = one.whole; break;
            case LLAMA_KV_OVERRIDE_TYPE_FLOAT: entry.val_f64 = one.real; break;
            case LLAMA_KV_OVERRIDE_TYPE_BOOL: entry.val_bool = one.whole != 0; break;
            case LLAMA_KV_OVERRIDE_TYPE_STR: copy_into(entry.val_str, one.text); break;
        }
        found.push_back(entry);
    }
    found.push_back({});
    return found;
}

// llama.cpp ignores a key that it does not read, and a value of another type, with a line in its log.
void require_read(const la_model_wishes &wishes, const la::overrides_read &log) {
    for (int32_t i = 0; i < wishes.n_kv_overrides; ++i) {
        const std::string key = wishes.kv_overrides[i].key;
        const std::string type = log.wanted_type(key);
        if (!type.empty()) {
            throw la::fault{LA_OVERRIDE, "llama.cpp reads this key as a value of type " + type, i};
        }
        if (!log.has_read(key)) {
            throw la::fault{LA_OVERRIDE, "llama.cpp reads no such key for this model", i};
        }
    }
}

int32_t token_or_none(llama_token token) noexcept { return token == LLAMA_TOKEN_NULL ? -1 : token; }

void describe_vocabulary(const llama_vocab *vocab, la_model_facts &out) noexcept {
    out.add_bos = llama_vocab_get_add_bos(vocab);
    out.add_eos = llama_vocab_get_add_eos(vocab);
    out.add_sep = llama_vocab_get_add_sep(vocab);
    out.bos_token = token_or_none(llama_vocab_bos(vocab));
    out.eos_token = token_or_none(llama_vocab_eos(vocab));
    out.sep_token = token_or_none(llama_vocab_sep(vocab));
    out.fim_pre = token_or_none(llama_vocab_fim_pre(vocab));
    out.fim_suf = token_or_none(llama_vocab_fim_suf(vocab));
    out.fim_mid = token_or_none(llama_vocab_fim_mid(vocab));
    out.fim_rep = token_or_none(llama_vocab_fim_rep(vocab));
    out.fim_sep = token_or_none(llama_vocab_fim_sep(vocab));
}

} // namespace

extern "C" {

int32_t la_buffer_types(char *out, size_t capacity) noexcept {
    int32_t length = -1;
    la::guarded([&] {
        std::string names;
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            const ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(ggml_backend_dev_get(i));
            const std::string name = type == nullptr ? "" : ggml_backend_buft_name(type);
            if (!name.empty() && ("\n" + names + "\n").find("\n" + name + "\n") == std::string::npos) {
                names += (names.empty() ? "" : "\n") + name;
            }
        }
        length = copy_text(names.c_str(), out, capacity);
    });
    return length;
}

int la_pattern_finds(const char *pattern, const char *names, int *found) noexcept {
    return la::guarded([&] {
        try {
            const std::regex expression(pattern);
            *found = 0;
            for (const char *at = names; *at != '\0' && *found == 0;) {
                const char *end = at + strcspn(at, "\n");
                *found = std::regex_search(at, end, expression);
                at = *end == '\0' ? end : end + 1;
            }
        } catch (const std::regex_error &error) {
            throw la::fault{LA_OVERRIDE, std::string("no regular expression: ") + error.what()};
        }
    });
}

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
        const auto placed = tensor_overrides(*wishes);
        const auto replaced = kv_overrides(*wishes);
        if (wishes->n_tensor_overrides > 0) {
            params.tensor_buft_overrides = placed.data();
        }
        if (wishes->n_kv_overrides > 0) {
            params.kv_overrides = replaced.data();
        }
        if (wishes->progress != nullptr) {
            params.progress_callback = on_progress;
            params.progress_callback_user_data = &hook;
        }
        const la::overrides_read log(wishes->n_kv_overrides > 0);
        llama_model *handle = llama_model_load_from_file(path, params);
        if (handle == nullptr) {
            throw la::fault{LA_LOAD, "llama.cpp refused the file"};
        }
        const llama_vocab *vocab = llama_model_get_vocab(handle);
        try {
            require_read(*wishes, log);
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
    *out = la_model_facts{};
    out->n_vocab = model->n_vocab;
    describe_vocabulary(model->vocab, *out);
    if (model->vocab_only) {
        return;
    }
    out->n_ctx_train = llama_model_n_ctx_train(m);
    out->n_layer = llama_model_n_layer(m);
    out->n_swa = llama_model_n_swa(m);
    out->rope_type = llama_model_rope_type(m);
    out->recurrent = llama_model_is_recurrent(m) || llama_model_is_hybrid(m);
    out->generates = llama_model_has_decoder(m) && !llama_model_has_encoder(m);
    out->n_embd = llama_model_n_embd(m);
    out->n_embd_out = llama_model_n_embd_out(m);
    out->n_head = llama_model_n_head(m);
    out->n_head_kv = llama_model_n_head_kv(m);
    out->n_params = llama_model_n_params(m);
    out->n_bytes = llama_model_size(m);
    out->n_cls_out = static_cast<int32_t>(llama_model_n_cls_out(m));
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
