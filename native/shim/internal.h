// Shared by the shim's own files. Nothing here is visible to Python.
#pragma once

#include "cells.h"
#include "llama.h"
#include "shim.h"

#include <exception>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

namespace la {

struct sampler_shelf;  // grammar.cpp
std::shared_ptr<sampler_shelf> make_shelf();

// Thrown inside the shim, caught by guarded() at its edge.
struct fault {
    int status;
    std::string text;
    int64_t value = 0;
    int64_t limit = 0;
};

int report(int status, const char *text, int64_t value = 0, int64_t limit = 0) noexcept;

// Runs body; whatever it throws becomes a status and a kept explanation.
template <class Body> int guarded(Body body) noexcept {
    try {
        body();
        return LA_OK;
    } catch (const fault &f) {
        return report(f.status, f.text.c_str(), f.value, f.limit);
    } catch (const std::bad_alloc &) {
        return report(LA_EXCEPTION, "out of memory");
    } catch (const std::exception &e) {
        return report(LA_EXCEPTION, e.what());
    } catch (...) {
        return report(LA_EXCEPTION, "an exception of an unknown type");
    }
}

// What llama.cpp's log reports of overridden metadata while this lives: it ignores what it cannot use.
class overrides_read {
  public:
    explicit overrides_read(bool watches);
    overrides_read(const overrides_read &) = delete;
    overrides_read &operator=(const overrides_read &) = delete;
    ~overrides_read();
    bool has_read(const std::string &key) const;
    // The type as which a key was read in vain; empty if it was not.
    std::string wanted_type(const std::string &key) const;
};

// Compute threads that live as long as a context. Without them ggml starts and joins threads in each step.
class compute_threads {
  public:
    compute_threads() = default;
    compute_threads(const compute_threads &) = delete;
    compute_threads &operator=(const compute_threads &) = delete;
    ~compute_threads();
    void attach(llama_context *context, int n_threads, int n_threads_batch);
    void compute_rows(int32_t how);

  private:
    ggml_threadpool_t step_ = nullptr;
    ggml_threadpool_t batch_ = nullptr;  // the same pool where both have as many threads
};

// How a decode computes its rows, see kernels/rows.h.
class rows_chosen {
  public:
    rows_chosen(compute_threads &threads, int32_t how) : threads_(threads) { threads_.compute_rows(how); }
    rows_chosen(const rows_chosen &) = delete;
    rows_chosen &operator=(const rows_chosen &) = delete;
    ~rows_chosen() { threads_.compute_rows(0); }

  private:
    compute_threads &threads_;
};

// Tell the attention kernel at which positions the cells of this context's memory stand.
void share_cells(la_context &context);

// One run of equal rows in a KV payload: the keys or the values of one layer.
struct section {
    uint8_t header[12];   // type and row size exactly as llama.cpp writes them
    uint64_t row_bytes;   // bytes per cell
};

// Where everything lies in a payload of n cells. Learned from a real one, see state.cpp.
struct layout {
    bool plain = false;
    bool v_transposed = false;
    uint32_t n_layer = 0;
    std::vector<section> sections;
    uint64_t bytes_per_token = 0;
};

void learn_layout(la_context &context, int32_t seq, uint32_t n_tokens);

// One part of the state of a whole sequence: an attention cache or a recurrent memory.
struct part {
    bool recurrent = false;
    bool windowed = false;    // holds only the cells inside a sliding window
    bool transposed = false;
    uint32_t n_layer = 0;
    std::vector<section> sections;
};

// LA_STATE if any of n numbers of a section is infinite or none at all. data: n_bytes of whole rows.
void require_finite(const section &section, const uint8_t *data, size_t n_bytes);

// After learn_layout. Decodes one more token in seq and one in the scratch sequence.
void learn_checkpoint(la_context &context, int32_t seq, uint32_t n_tokens);

void override_rope(llama_context_params &params, const la_rope &rope);

// A token that is found in a text before anything else is read.
struct special {
    std::string text;
    bool only_if_parsed;  // found only where control tokens are to be read
    bool strips_right;    // takes the blanks behind it too
};

std::vector<special> special_tokens(const llama_vocab *vocab);

// A fault if there are no texts of tokens: most queries about them would abort.
void require_vocabulary(const la_model &model);

// As llama_tokenize; a fault where the text cannot be tokenised. However long a run of one kind of
// character is, this does not overflow the stack.
int32_t tokenize(const la_model &model, std::string_view text, int32_t *out, int32_t capacity, bool add_special,
                 bool parse_special);

// seq < 0 or not usable by callers: a fault.
void check_seq(const la_context &context, int32_t seq);

} // namespace la

struct la_model {
    llama_model *handle = nullptr;
    const llama_vocab *vocab = nullptr;
    int32_t n_vocab = 0;
    std::vector<la::special> specials;
    int64_t max_run = 4 << 20;  // characters; a longer run of one kind is not tokenised
    std::shared_ptr<la::sampler_shelf> shelf = la::make_shelf();  // what its samplers share
    bool vocab_only = false;  // llama.cpp has read no shape: most queries about it would abort
};

struct la_context {
    const la_model *model = nullptr;
    la::compute_threads threads;  // la_context_free frees the handle first
    llama_context *handle = nullptr;
    llama_memory_t memory = nullptr;
    std::vector<std::unique_ptr<la_cells>> cells;  // of each attention cache; its tensors point here
    uint32_t n_ctx = 0;
    uint32_t n_batch = 0;
    int32_t n_seq_usable = 0;
    int32_t scratch = 0;      // the one sequence callers cannot name
    int32_t n_swa = 0;
    bool recurrent = false;
    bool checks_numbers = false;  // one that is not finite would reach other sequences
    bool spoiled = false;         // logits were not finite: what made them may outlive its sequence
    la::layout layout;
    std::vector<la::part> parts;  // of a whole sequence's state; none: it cannot be saved
    std::string unsaved;          // why there are none
    // Columns that llama_batch needs besides the caller's, prepared once.
    std::vector<int32_t> one_seq;
    std::vector<llama_seq_id *> seq_of_row;
    std::vector<int32_t> next_position;   // per sequence, while a batch is checked
    std::vector<int8_t> has_logits;       // per row of the last good decode
};
