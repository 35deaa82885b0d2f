// A context: decoding batches and moving sequences. Everything is checked here first.
#include "internal.h"
#include "llama-ext.h"  // llama_get_memory_breakdown

#include <algorithm>
#include <memory>

namespace {

bool should_abort(void *flag) noexcept {
    return __atomic_load_n(static_cast<volatile int32_t *>(flag), __ATOMIC_RELAXED) != 0;
}

llama_context_params context_params(const la_context_wishes &wishes) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = wishes.n_ctx;
    params.n_seq_max = wishes.n_seq_usable + 1;
    // llama.cpp plans one row of logits for each sequence, and aborts when they do not fit a batch.
    params.n_batch = std::max(wishes.n_batch, params.n_seq_max);
    params.n_ubatch = std::max(wishes.n_ubatch, params.n_seq_max);
    params.n_threads = wishes.n_threads;
    params.n_threads_batch = wishes.n_threads_batch;
    la::override_rope(params, wishes.rope);
    params.type_k = static_cast<ggml_type>(wishes.type_k);
    params.type_v = static_cast<ggml_type>(wishes.type_v);
    // Never AUTO: it is resolved per device at run time and decides the layout of saved values.
    params.flash_attn_type = wishes.flash_attn ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.offload_kqv = wishes.offload_kqv != 0;
    params.kv_unified = true;  // ranges of cells can then be copied and saved
    params.no_perf = true;
    params.abort_callback = should_abort;
    params.abort_callback_data = const_cast<int32_t *>(wishes.abort_flag);
    return params;
}

// Why: one decode shows that this CPU can run what was compiled (see AMX in docs/building.md),
// and the payload it leaves shows how this memory is stored.
void prove(la_context &context) {
    const llama_token bos = llama_vocab_bos(context.model->vocab);
    int32_t tokens[2] = {bos == LLAMA_TOKEN_NULL ? 0 : bos, 0};
    int32_t n_seq_id[2] = {1, 1};
    llama_pos positions[2] = {0, 1};
    llama_seq_id zero = 0;
    llama_seq_id *seqs[2] = {&zero, &zero};
    int8_t wants[2] = {0, 1};
    const int32_t n = context.n_batch < 2 ? 1 : 2;
    const llama_batch batch{n, tokens, nullptr, positions, n_seq_id, seqs, wants};
    const int32_t code = llama_decode(context.handle, batch);
    if (code != 0) {
        throw la::fault{LA_CONTEXT, "the first decode failed with code " + std::to_string(code)};
    }
    llama_synchronize(context.handle);
    la::learn_layout(context, 0, static_cast<uint32_t>(n));
    la::learn_checkpoint(context, 0, static_cast<uint32_t>(n));
    llama_memory_clear(context.memory, true);
}

// Every row must continue its sequence: llama.cpp refuses gaps late and repeats not at all.
void check_batch(la_context &c, int32_t n, const int32_t *tokens, const int32_t *positions, const int32_t *seqs) {
    if (n < 1 || static_cast<uint32_t>(n) > c.n_batch) {
        throw la::fault{LA_BATCH, "a batch holds between 1 and n_batch rows", n, c.n_batch};
    }
    std::fill(c.next_position.begin(), c.next_position.end(), -1);
    for (int32_t i = 0; i < n; ++i) {
        if (tokens[i] < 0 || tokens[i] >= c.model->n_vocab) {
            throw la::fault{LA_TOKEN, "not a token of this vocabulary", tokens[i], c.model->n_vocab};
        }
        la::check_seq(c, seqs[i]);
        int32_t &next = c.next_position[static_cast<size_t>(seqs[i])];
        if (next < 0) {
            next = llama_memory_seq_pos_max(c.memory, seqs[i]) + 1;
        }
        if (positions[i] != next) {
            throw la::fault{LA_POSITION, "positions of a sequence follow one another", positions[i], next};
        }
        if (static_cast<uint32_t>(next) >= c.n_ctx) {
            throw la::fault{LA_TOO_LONG, "the sequence would not fit the context", static_cast<int64_t>(next) + 1, c.n_ctx};
        }
        ++next;
    }
}

void check_decode(int32_t code) {
    switch (code) {
        case 0: return;
        case 1: throw la::fault{LA_NO_SPACE, "no free KV cells for this batch"};
        case 2: throw la::fault{LA_ABORTED, "the abort flag was raised"};
        default: throw la::fault{LA_DECODE, "llama_decode failed", code};
    }
}

// Why: llama.cpp empties a recurrent cell by multiplying it with 0, and NaN stays NaN; the next
// sequence in that cell would fail, too. Only wiping all of the memory helps, so this is done when no
// sequence holds anything.
bool is_empty(const la_context &c) {
    for (int32_t seq = 0; seq < c.n_seq_usable; ++seq) {
        if (llama_memory_seq_pos_max(c.memory, seq) >= 0) {
            return false;
        }
    }
    return true;
}

} // namespace

void la::override_rope(llama_context_params &params, const la_rope &rope) {
    params.rope_scaling_type = static_cast<llama_rope_scaling_type>(rope.scaling);
    params.rope_freq_base = rope.freq_base;
    params.rope_freq_scale = rope.freq_scale;
    params.yarn_ext_factor = rope.yarn_ext_factor;
    params.yarn_attn_factor = rope.yarn_attn_factor;
    params.yarn_beta_fast = rope.yarn_beta_fast;
    params.yarn_beta_slow = rope.yarn_beta_slow;
    params.yarn_orig_ctx = rope.yarn_orig_ctx;
}

void la::check_seq(const la_context &context, int32_t seq) {
    if (seq < 0 || seq >= context.n_seq_usable) {
        throw la::fault{LA_SEQ, "no such sequence", seq, context.n_seq_usable};
    }
}

extern "C" {

int la_context_new(const la_model *model, const la_context_wishes *wishes, la_context **out) noexcept {
    return la::guarded([&] {
        auto context = std::unique_ptr<la_context, void (*)(la_context *)>(new la_context(), la_context_free);
        context->model = model;
        context->handle = llama_init_from_model(model->handle, context_params(*wishes));
        if (context->handle == nullptr) {
            throw la::fault{LA_CONTEXT, "llama.cpp could not create the context"};
        }
        context->threads.attach(context->handle, wishes->n_threads, wishes->n_threads_batch);
        context->memory = llama_get_memory(context->handle);
        if (context->memory == nullptr) {
            throw la::fault{LA_NO_MEMORY, "the model has no KV memory: it embeds or diffuses and cannot generate"};
        }
        context->n_ctx = llama_n_ctx(context->handle);
        context->n_batch = llama_n_batch(context->handle);
        context->n_seq_usable = static_cast<int32_t>(wishes->n_seq_usable);
        context->scratch = context->n_seq_usable;
        context->n_swa = llama_model_n_swa(model->handle);
        context->recurrent = llama_model_is_recurrent(model->handle) || llama_model_is_hybrid(model->handle);
        // The CPU's flash attention leaves out what a sequence may not see; all others multiply it by 0.
        la::share_cells(*context);
        context->checks_numbers = !wishes->flash_attn || llama_supports_gpu_offload();
        context->one_seq.assign(context->n_batch, 1);
        context->seq_of_row.resize(context->n_batch);
        context->next_position.resize(wishes->n_seq_usable);
        context->has_logits.reserve(context->n_batch);
        prove(*context);
        *out = context.release();
    });
}

void la_context_free(la_context *context) noexcept {
    if (context != nullptr) {
        if (context->handle != nullptr) {
            llama_free(context->handle);
        }
        delete context;
    }
}

void la_context_describe(const la_context *c, la_context_facts *out) noexcept {
    const bool grows = std::any_of(c->parts.begin(), c->parts.end(), [](const la::part &p) { return !p.recurrent; });
    *out = la_context_facts{c->n_ctx,  c->n_batch, c->layout.plain, !c->parts.empty(),
                            grows, c->layout.v_transposed, c->layout.bytes_per_token};
}

int la_context_memory(const la_context *context, la_memory_use *out) noexcept {
    return la::guarded([&] {
        *out = la_memory_use{};
        for (const auto &[kind, used] : llama_get_memory_breakdown(context->handle)) {
            // Weights repacked for the CPU lie in a buffer that is not marked as the host's.
            const ggml_backend_dev_t device = ggml_backend_buft_get_device(kind);
            const bool host = device == nullptr || ggml_backend_buft_is_host(kind) ||
                              ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
            (host ? out->host_model : out->device_model) += used.model;
            (host ? out->host_context : out->device_context) += used.context;
            (host ? out->host_compute : out->device_compute) += used.compute;
        }
    });
}

int la_decode(la_context *context, int32_t rows, int32_t n, const int32_t *tokens, const int32_t *positions,
              const int32_t *seqs, const int8_t *wants) noexcept {
    return la::guarded([&] {
        la_context &c = *context;
        check_batch(c, n, tokens, positions, seqs);
        for (int32_t i = 0; i < n; ++i) {
            c.seq_of_row[static_cast<size_t>(i)] = const_cast<llama_seq_id *>(seqs + i);
        }
        c.has_logits.clear();  // also when it fails: no row of an earlier decode may be read then
        const llama_batch batch{n,
                                const_cast<llama_token *>(tokens),
                                nullptr,
                                const_cast<llama_pos *>(positions),
                                c.one_seq.data(),
                                c.seq_of_row.data(),
                                const_cast<int8_t *>(wants)};
        const la::rows_chosen chosen(c.threads, rows);
        check_decode(llama_decode(c.handle, batch));
        c.has_logits.assign(wants, wants + n);
    });
}

int la_logits(la_context *context, int32_t row, const float **out) noexcept {
    return la::guarded([&] {
        const auto n = static_cast<int64_t>(context->has_logits.size());
        if (row < 0 || row >= n || context->has_logits[static_cast<size_t>(row)] == 0) {
            throw la::fault{LA_ROW, "the last decode made no logits for this row", row, n};
        }
        *out = llama_get_logits_ith(context->handle, row);
        if (*out == nullptr) {
            throw la::fault{LA_ROW, "llama.cpp holds no logits for this row", row, n};
        }
    });
}

int la_seq_remove(la_context *context, int32_t seq, int32_t start, int32_t end, int *removed) noexcept {
    return la::guarded([&] {
        la::check_seq(*context, seq);
        const int32_t from = std::max(start, 0);
        const int32_t first = llama_memory_seq_pos_min(context->memory, seq);
        const int32_t last = llama_memory_seq_pos_max(context->memory, seq);
        // A sliding window has already dropped what the tokens before `from` would attend to;
        // llama.cpp would report success and then compute something else.
        const bool window_is_gone = context->n_swa > 0 && from > 0 && from <= last &&
                                    first > std::max(0, from - context->n_swa);
        *removed = !window_is_gone && llama_memory_seq_rm(context->memory, seq, from, end < 0 ? -1 : end);
        if (context->spoiled && is_empty(*context)) {
            llama_memory_clear(context->memory, true);
            context->spoiled = false;
        }
    });
}

int la_seq_copy(la_context *context, int32_t src, int32_t dst, int32_t start, int32_t end) noexcept {
    return la::guarded([&] {
        la::check_seq(*context, src);
        la::check_seq(*context, dst);
        const int32_t from = std::max(start, 0);
        const int32_t source_end = llama_memory_seq_pos_max(context->memory, src) + 1;
        const int32_t to = end < 0 ? source_end : end;
        const int32_t destination_end = llama_memory_seq_pos_max(context->memory, dst) + 1;
        if (src == dst || to <= from) {
            return;
        }
        // A recurrent state has only its last position: its first one does not show holes.
        const int32_t source_start = context->layout.plain ? llama_memory_seq_pos_min(context->memory, src) : 0;
        if (to > source_end || from < source_start) {
            throw la::fault{LA_RANGE, "the source does not hold this range", to, source_end};
        }
        if (destination_end != from) {
            throw la::fault{LA_POSITION, "a copy continues its destination", from, destination_end};
        }
        if (!context->layout.plain && (from > 0 || to < source_end)) {
            throw la::fault{LA_CANNOT_CUT, "only whole sequences of this model can be copied"};
        }
        llama_memory_seq_cp(context->memory, src, dst, from, to == source_end ? -1 : to);
    });
}

int la_seq_range(la_context *context, int32_t seq, int32_t *first, int32_t *last) noexcept {
    return la::guarded([&] {
        la::check_seq(*context, seq);
        *first = llama_memory_seq_pos_min(context->memory, seq);
        *last = llama_memory_seq_pos_max(context->memory, seq);
    });
}

} // extern "C"
