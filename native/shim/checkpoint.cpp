// Whole-sequence states: for memories that cannot be cut into blocks.
//
// llama.cpp's state of one sequence is a magic, a sequence id, and the parts of the memory one after
// the other. How many parts, and of which kind, follows from the memory (llama_model::create_memory):
//
//   plain [A] · sliding window [A A] · recurrent [R] · hybrid [A R] · hybrid with a window [A A R]
//
//   A  n_stream u32 (1) · n_cells u32 · cells · v_transposed u32 · n_layer u32 · keys · values
//      (see state.cpp); the second A, or the only one of a model with a window, holds only the cells
//      that are still inside the window
//   R  n_cells u32 (1) · position i32 · n_seq_id u32 (0) · s_transposed u32 (0) · n_layer u32
//      per layer with a state:  type i32 · row_bytes u64 · the row     first all R, then all S
//
// Which of these a model has is not looked up anywhere: every composition is tried on a real state,
// the one that explains every byte is taken, and then it is proved that a restored state continues
// as the original did (la::learn_checkpoint). A memory that none explains (2D positions, indexer
// caches, states of other builds) is neither cut nor checkpointed.
//
// llama.cpp's reader aborts the process for some states (two recurrent cells), leaks cells for others
// (positions out of range) and accepts all contents; NaN in a recurrent state even outlives its
// sequence. So every field with a known value is compared with it before llama.cpp reads the bytes.
#include "internal.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

constexpr uint32_t MAGIC = 0xaf143cd8u;    // io_magic in llama-context.cpp
constexpr uint32_t MAX_LAYERS = 1u << 16;
constexpr uint64_t MAX_ROW_BYTES = uint64_t{1} << 40;

[[noreturn]] void refuse(const char *why, int64_t value = 0, int64_t limit = 0) {
    throw la::fault{LA_STATE, why, value, limit};
}

// A position in a buffer; every step is checked against its end.
class cursor {
  public:
    cursor(const uint8_t *data, size_t size) : at_(data), left_(size) {}

    template <class T> T take() {
        T value;
        memcpy(&value, step(sizeof value), sizeof value);
        return value;
    }

    const uint8_t *step(uint64_t n) {
        if (n > left_) {
            refuse("the state ends early");
        }
        const uint8_t *here = at_;
        at_ += n;
        left_ -= n;
        return here;
    }

    bool at_end() const { return left_ == 0; }

  private:
    const uint8_t *at_;
    size_t left_;
};

// --- learning ----------------------------------------------------------------------------------

la::section learn_section(cursor &in, bool transposed, uint32_t n_cells) {
    la::section s{};
    memcpy(s.header, in.step(sizeof s.header), sizeof s.header);
    uint32_t small[2];
    memcpy(small, s.header + 4, sizeof small);
    memcpy(&s.row_bytes, s.header + 4, sizeof s.row_bytes);
    if (transposed) {
        s.row_bytes = uint64_t{small[0]} * small[1];
    }
    if (s.row_bytes > MAX_ROW_BYTES) {
        refuse("a row is larger than any");
    }
    in.step(s.row_bytes * n_cells);
    return s;
}

la::part learn_attention(cursor &in, int32_t seq, uint32_t n, bool has_values) {
    la::part out;
    if (in.take<uint32_t>() != 1 || in.take<uint32_t>() != n) {
        refuse("no attention part");
    }
    for (uint32_t i = 0; i < n; ++i) {
        if (in.take<int32_t>() != static_cast<int32_t>(i) || in.take<uint32_t>() != 1 || in.take<int32_t>() != seq) {
            refuse("no attention cell");
        }
    }
    const auto transposed = in.take<uint32_t>();
    out.n_layer = in.take<uint32_t>();
    if (transposed > 1 || out.n_layer > MAX_LAYERS) {
        refuse("no attention part");
    }
    out.transposed = transposed == 1;
    for (uint32_t i = 0; i < out.n_layer; ++i) {
        out.sections.push_back(learn_section(in, false, n));
    }
    for (uint32_t i = 0; has_values && i < out.n_layer; ++i) {
        out.sections.push_back(learn_section(in, out.transposed, n));
    }
    return out;
}

la::part learn_recurrent(cursor &in, uint32_t n) {
    la::part out;
    out.recurrent = true;
    if (in.take<uint32_t>() != 1 || in.take<int32_t>() != static_cast<int32_t>(n) - 1 || in.take<uint32_t>() != 0 ||
        in.take<uint32_t>() != 0) {
        refuse("no recurrent part");
    }
    out.n_layer = in.take<uint32_t>();
    if (out.n_layer > MAX_LAYERS) {
        refuse("no recurrent part");
    }
    while (!in.at_end()) {
        out.sections.push_back(learn_section(in, false, 1));
    }
    if (out.sections.size() % 2 != 0 || out.sections.size() > 2 * size_t{out.n_layer}) {
        refuse("not as many R as S states");
    }
    return out;
}

bool learn_parts(const std::vector<uint8_t> &state, int32_t seq, uint32_t n, const char *kinds, bool has_values,
                 std::vector<la::part> &out) {
    try {
        cursor in(state.data(), state.size());
        std::vector<la::part> found;
        if (in.take<uint32_t>() != MAGIC || in.take<int32_t>() != seq) {
            return false;
        }
        for (const char *kind = kinds; *kind != '\0'; ++kind) {
            found.push_back(*kind == 'R' ? learn_recurrent(in, n) : learn_attention(in, seq, n, has_values));
        }
        if (!in.at_end()) {
            return false;
        }
        out = std::move(found);
        return true;
    } catch (const la::fault &) {
        return false;
    }
}

std::vector<uint8_t> state_of(la_context &c, int32_t seq) {
    std::vector<uint8_t> state(llama_state_seq_get_size(c.handle, seq));
    if (state.empty() || llama_state_seq_get_data(c.handle, state.data(), state.size(), seq) != state.size()) {
        refuse("llama.cpp gives no state of this sequence");
    }
    return state;
}

void find_parts(la_context &c, int32_t seq, uint32_t n) {
    const std::vector<uint8_t> state = state_of(c, seq);
    for (const bool has_values : {true, false}) {  // MLA caches hold no values
        for (const char *kinds : {"A", "AA", "R", "AR", "AAR"}) {
            if (learn_parts(state, seq, n, kinds, has_values, c.parts)) {
                la::part *last_attention = nullptr;
                for (la::part &part : c.parts) {
                    last_attention = part.recurrent ? last_attention : &part;
                }
                if (last_attention != nullptr) {
                    last_attention->windowed = c.n_swa > 0;
                }
                return;
            }
        }
    }
    refuse("the memory of this model is stored in a way that this build does not support");
}

// --- checking ----------------------------------------------------------------------------------

// Cells lie in the order of the pool. The cells must be the last n_cells of n positions, each once.
int32_t check_cells(cursor &in, uint32_t n_cells, uint32_t n, uint8_t *writable, const uint8_t *base) {
    std::vector<bool> seen(n_cells);
    const int64_t first = int64_t{n} - n_cells;
    for (uint32_t i = 0; i < n_cells; ++i) {
        const auto position = in.take<int32_t>();
        const int64_t offset = position - first;
        if (offset < 0 || offset >= int64_t{n_cells} || seen[static_cast<size_t>(offset)]) {
            refuse("a position is outside the sequence or there twice", position, n);
        }
        seen[static_cast<size_t>(offset)] = true;
        const auto owners = in.take<uint32_t>();
        const uint8_t *owner = in.step(4);
        if (writable != nullptr) {
            memset(writable + (owner - base), 0, 4);  // equal states must be equal whatever their sequence
        }
        if (owners != 1 || (writable == nullptr && (owner[0] | owner[1] | owner[2] | owner[3]) != 0)) {
            refuse("a cell does not belong to exactly one sequence");
        }
    }
    return static_cast<int32_t>(first);
}

void check_sections(const la::part &part, cursor &in, uint32_t n_cells, bool numbers) {
    for (const la::section &s : part.sections) {
        if (memcmp(in.step(sizeof s.header), s.header, sizeof s.header) != 0) {
            refuse("a layer has another type or row size than in this context");
        }
        const uint8_t *data = in.step(s.row_bytes * n_cells);
        if (part.recurrent || numbers) {
            la::require_finite(s, data, s.row_bytes * n_cells);
        }
    }
}

int32_t check_part(const la_context &c, const la::part &part, cursor &in, uint32_t n, uint8_t *writable,
                   const uint8_t *base) {
    int32_t first = static_cast<int32_t>(n) - 1;
    uint32_t n_cells = 1;
    if (part.recurrent) {
        if (in.take<uint32_t>() != 1 || in.take<int32_t>() != first || in.take<uint32_t>() != 0) {
            refuse("a recurrent part is one cell, at the last position", first);
        }
    } else {
        if (in.take<uint32_t>() != 1) {
            refuse("an attention part has one stream");
        }
        n_cells = in.take<uint32_t>();
        // The next token sees n_swa - 1 cells behind it; the one before those may be gone already.
        const uint32_t least =
            part.windowed ? std::min(n, static_cast<uint32_t>(std::max(c.n_swa - 1, 1))) : n;
        if (n_cells < least || n_cells > n) {
            refuse("an attention part does not hold the cells that the next token needs", n_cells, least);
        }
        first = check_cells(in, n_cells, n, writable, base);
    }
    if (in.take<uint32_t>() != (part.transposed ? 1u : 0u) || in.take<uint32_t>() != part.n_layer) {
        refuse("the number of layers or the layout of values is another than in this context");
    }
    check_sections(part, in, n_cells, c.checks_numbers && writable == nullptr);
    return first;
}

// Compares a state with what this context would write; returns the later result of llama_memory_seq_pos_min.
// writable: the same bytes, to blank out ids.
int32_t check_state(const la_context &c, const uint8_t *data, size_t size, uint32_t n, uint8_t *writable) {
    cursor in(data, size);
    if (in.take<uint32_t>() != MAGIC) {
        refuse("no state of a sequence");
    }
    const uint8_t *seq = in.step(4);
    if (writable != nullptr) {
        memset(writable + (seq - data), 0, 4);
    } else if ((seq[0] | seq[1] | seq[2] | seq[3]) != 0) {
        refuse("no state of a sequence");
    }
    int32_t first = 0;
    for (const la::part &part : c.parts) {
        first = std::max(first, check_part(c, part, in, n, writable, data));
    }
    if (!in.at_end()) {
        refuse("the state has bytes after its end");
    }
    return first;
}

void require_checkpoints(const la_context &c) {
    if (c.parts.empty()) {
        throw la::fault{LA_CANNOT_CUT, "this model's memory cannot be saved"};
    }
}

uint32_t held_tokens(const la_context &c, int32_t seq) {
    const int32_t last = llama_memory_seq_pos_max(c.memory, seq);
    if (last < 0) {
        throw la::fault{LA_RANGE, "the sequence holds nothing", 0, 0};
    }
    return static_cast<uint32_t>(last) + 1;
}

// Into an empty sequence; checked before and after, and undone by the caller if this throws.
void restore(la_context &c, int32_t seq, uint32_t n, const uint8_t *data, size_t size) {
    const int32_t first = check_state(c, data, size, n, nullptr);
    const size_t used = llama_state_seq_set_data(c.handle, data, size, seq);
    if (used == 0) {
        // All that llama.cpp can refuse was checked before, but for one thing.
        throw la::fault{LA_NO_SPACE, "no free KV cells for this state", n, c.n_ctx};
    }
    if (used != size || llama_memory_seq_pos_max(c.memory, seq) != static_cast<int32_t>(n) - 1 ||
        llama_memory_seq_pos_min(c.memory, seq) != first) {
        refuse("llama.cpp read another state than was given");
    }
}

std::vector<float> next_logits(la_context &c, int32_t seq, int32_t position) {
    llama_token token = 0;
    int32_t one = 1;
    int8_t wants = 1;
    llama_seq_id *seqs = &seq;
    const llama_batch batch{1, &token, nullptr, &position, &one, &seqs, &wants};
    if (llama_decode(c.handle, batch) != 0) {
        refuse("the token after a checkpoint could not be decoded");
    }
    const float *logits = llama_get_logits_ith(c.handle, 0);
    if (logits == nullptr) {
        refuse("no logits after a checkpoint");
    }
    return {logits, logits + c.model->n_vocab};
}

void prove_restore(la_context &c, int32_t seq, uint32_t n) {
    std::vector<uint8_t> state = state_of(c, seq);
    check_state(c, state.data(), state.size(), n, state.data());
    const std::vector<float> expected = next_logits(c, seq, static_cast<int32_t>(n));
    restore(c, c.scratch, n, state.data(), state.size());
    const std::vector<float> restored = next_logits(c, c.scratch, static_cast<int32_t>(n));
    for (size_t i = 0; i < expected.size(); ++i) {
        // Equal on every memory known; the slack is for devices that sum in another order.
        if (!(std::fabs(expected[i] - restored[i]) <= 1e-3f * (1.0f + std::fabs(expected[i])))) {
            refuse("a restored state does not continue as its original");
        }
    }
}

} // namespace

// Determines the kind of memory from one real state, and proves it by continuing. seq holds n tokens.
void la::learn_checkpoint(la_context &c, int32_t seq, uint32_t n) {
    const int status = la::guarded([&] {
        find_parts(c, seq, n);
        if (!c.layout.plain) {  // blocks have tests of their own, and such a load stays short
            prove_restore(c, seq, n);
        }
    });
    if (status != LA_OK) {
        c.parts.clear();
        c.unsaved = la_error_text();
    }
}

extern "C" {

const char *la_context_unsaved(const la_context *context) noexcept {
    return context->layout.plain ? "" : context->unsaved.c_str();
}

int la_checkpoint_bytes(la_context *context, int32_t seq, uint64_t *bytes) noexcept {
    return la::guarded([&] {
        require_checkpoints(*context);
        la::check_seq(*context, seq);
        held_tokens(*context, seq);
        *bytes = llama_state_seq_get_size(context->handle, seq);
    });
}

int la_save_checkpoint(la_context *context, int32_t seq, uint8_t *into, size_t capacity, size_t *written) noexcept {
    return la::guarded([&] {
        la_context &c = *context;
        require_checkpoints(c);
        la::check_seq(c, seq);
        const uint32_t n = held_tokens(c, seq);
        const size_t size = llama_state_seq_get_size(c.handle, seq);
        if (size > capacity) {
            throw la::fault{LA_BUFFER, "the buffer is too small for the state", static_cast<int64_t>(capacity),
                            static_cast<int64_t>(size)};
        }
        if (llama_state_seq_get_data(c.handle, into, size, seq) != size) {
            refuse("llama.cpp gives no state of this sequence");
        }
        check_state(c, into, size, n, into);
        *written = size;
    });
}

int la_restore_checkpoint(la_context *context, int32_t seq, int32_t n_tokens, const uint8_t *payload,
                          size_t size) noexcept {
    la_context &c = *context;
    const int status = la::guarded([&] {
        require_checkpoints(c);
        la::check_seq(c, seq);
        if (n_tokens < 1) {
            refuse("a state is that of at least one token", n_tokens);
        }
        if (static_cast<uint32_t>(n_tokens) > c.n_ctx) {
            throw la::fault{LA_TOO_LONG, "the sequence would not fit the context", n_tokens, c.n_ctx};
        }
        const int32_t last = llama_memory_seq_pos_max(c.memory, seq);
        if (last >= 0) {
            throw la::fault{LA_POSITION, "a checkpoint is restored into an empty sequence", 0, last + 1};
        }
    });
    if (status != LA_OK) {
        return status;
    }
    const int restored = la::guarded([&] { restore(c, seq, static_cast<uint32_t>(n_tokens), payload, size); });
    if (restored != LA_OK) {
        llama_memory_seq_rm(c.memory, seq, -1, -1);  // also what pos_max does not show
    }
    return restored;
}

} // extern "C"
