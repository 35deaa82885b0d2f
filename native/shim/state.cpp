// KV payloads of blocks: the layout, saving, checking, restoring.
//
// What llama.cpp writes for one sequence of a plain attention memory (llama-kv-cache.cpp,
// state_write, state_write_meta, state_write_data), integers in the byte order of the machine:
//
//   magic u32 · seq_id i32 · n_stream u32 (1) · n_cells u32
//   per cell:   position i32 · n_seq_id u32 (1) · seq_id i32
//   v_transposed u32 · n_layer u32
//   per layer:  type i32 · row_bytes u64                    · n_cells rows of keys
//   per layer:  type i32 · row_bytes u64                    · n_cells rows of values
//        or, transposed:  type i32 · element u32 · n_embd u32 · n_embd rows of n_cells elements
//
// No version, no model, no checksum. llama.cpp's reader does not check positions and contents, so a
// payload is compared with the layout learned at load before llama.cpp reads it. Every offset below is a
// function of n_cells alone, and the total length is checked first: no read can leave the buffer.
// Which tokens the bytes stand for, and that they are undamaged, is checked by the row's header.
#include "internal.h"

#include <cstring>
#include <memory>

namespace {

constexpr uint64_t FIXED = 16;          // magic, seq_id, n_stream, n_cells
constexpr uint64_t PER_CELL = 12;       // position, n_seq_id, seq_id
constexpr uint64_t AFTER_CELLS = 8;     // v_transposed, n_layer
constexpr uint64_t SECTION_HEADER = sizeof la::section::header;
constexpr uint32_t MAGIC = 0xaf143cd8u; // io_magic in llama-context.cpp
constexpr size_t CELL_COST = 16;        // bytes copied in the time that llama.cpp takes to visit one cell
constexpr size_t JOINED_BYTES = 8 << 20;

template <class T> T read(const uint8_t *at) {
    T value;
    memcpy(&value, at, sizeof value);
    return value;
}

template <class T> void write(uint8_t *at, T value) { memcpy(at, &value, sizeof value); }

// Reads one payload the careful way, when nothing about it is known yet.
class explorer {
  public:
    explorer(const std::vector<uint8_t> &data) : data_(data) {}

    template <class T> bool take(T &out) {
        if (data_.size() - at_ < sizeof(T)) {
            return false;
        }
        out = read<T>(data_.data() + at_);
        at_ += sizeof(T);
        return true;
    }

    bool take_header(uint8_t (&out)[SECTION_HEADER]) {
        if (data_.size() - at_ < SECTION_HEADER) {
            return false;
        }
        memcpy(out, data_.data() + at_, SECTION_HEADER);
        at_ += SECTION_HEADER;
        return true;
    }

    bool skip(uint64_t n) {
        if (data_.size() - at_ < n) {
            return false;
        }
        at_ += n;
        return true;
    }

    bool at_end() const { return at_ == data_.size(); }

  private:
    const std::vector<uint8_t> &data_;
    size_t at_ = 0;
};

bool take_section(explorer &in, bool transposed, uint32_t n_cells, la::layout &into) {
    la::section s{};
    if (!in.take_header(s.header)) {
        return false;
    }
    s.row_bytes = transposed ? uint64_t{read<uint32_t>(s.header + 4)} * read<uint32_t>(s.header + 8)
                             : read<uint64_t>(s.header + 4);
    if (s.row_bytes > (uint64_t{1} << 32) || !in.skip(s.row_bytes * n_cells)) {
        return false;
    }
    into.sections.push_back(s);
    into.bytes_per_token += s.row_bytes;
    return true;
}

bool explore(const std::vector<uint8_t> &payload, int32_t seq, uint32_t n_cells, la::layout &into) {
    explorer in(payload);
    uint32_t magic = 0, n_stream = 0, count = 0, transposed = 0;
    int32_t seq_read = 0;
    if (!(in.take(magic) && in.take(seq_read) && in.take(n_stream) && in.take(count)) || magic != MAGIC ||
        n_stream != 1 || count != n_cells) {
        return false;
    }
    for (uint32_t i = 0; i < n_cells; ++i) {
        int32_t position = 0, owner = 0;
        uint32_t owners = 0;
        if (!(in.take(position) && in.take(owners) && in.take(owner)) ||
            position != static_cast<int32_t>(i) || owners != 1 || owner != seq) {
            return false;
        }
    }
    if (!(in.take(transposed) && in.take(into.n_layer)) || transposed > 1) {
        return false;
    }
    into.v_transposed = transposed == 1;
    for (uint32_t i = 0; i < into.n_layer; ++i) {
        if (!take_section(in, false, n_cells, into)) {
            return false;
        }
    }
    while (!in.at_end()) {  // layers without values (MLA) have no section here
        if (into.sections.size() >= 2 * size_t{into.n_layer} || !take_section(in, into.v_transposed, n_cells, into)) {
            return false;
        }
    }
    return true;
}

[[noreturn]] void refuse(const char *why, int64_t value = 0, int64_t limit = 0) {
    throw la::fault{LA_STATE, why, value, limit};
}

void require_cut(const la_context &c) {
    if (!c.layout.plain) {
        throw la::fault{LA_CANNOT_CUT, "this model's memory cannot be cut into blocks"};
    }
}

// Cells are stored in the order they lie in the pool, which need not be the order of positions.
void check_cells(const uint8_t *cells, int32_t start, uint32_t n) {
    std::vector<bool> seen(n);
    for (uint32_t i = 0; i < n; ++i) {
        const uint8_t *cell = cells + PER_CELL * i;
        const int64_t offset = int64_t{read<int32_t>(cell)} - start;
        if (offset < 0 || offset >= int64_t{n} || seen[static_cast<size_t>(offset)]) {
            refuse("a position is outside the block or there twice", read<int32_t>(cell), start);
        }
        seen[static_cast<size_t>(offset)] = true;
        if (read<uint32_t>(cell + 4) != 1 || read<int32_t>(cell + 8) != 0) {
            refuse("a cell does not belong to exactly one sequence");
        }
    }
}

void check_sections(const la::layout &layout, const uint8_t *at, uint32_t n) {
    for (const la::section &s : layout.sections) {
        if (memcmp(at, s.header, SECTION_HEADER) != 0) {
            refuse("a layer has another type or row size than in this context");
        }
        at += SECTION_HEADER + s.row_bytes * n;
    }
}

void check_block(const la_context &c, const la_block &block) {
    if (block.start < 0 || block.n_tokens < 1) {
        refuse("a block has a start of at least 0 and at least one token", block.start, block.n_tokens);
    }
    const auto n = static_cast<uint32_t>(block.n_tokens);
    if (block.size != la_block_bytes(&c, n)) {
        refuse("the length is not that of a block of so many tokens", static_cast<int64_t>(block.size),
               static_cast<int64_t>(la_block_bytes(&c, n)));
    }
    const uint8_t *p = block.payload;
    if (read<uint32_t>(p) != MAGIC || read<int32_t>(p + 4) != 0 || read<uint32_t>(p + 8) != 1 ||
        read<uint32_t>(p + 12) != n) {
        refuse("the head is not that of a block of so many tokens");
    }
    check_cells(p + FIXED, block.start, n);
    const uint8_t *after = p + FIXED + PER_CELL * n;
    if (read<uint32_t>(after) != (c.layout.v_transposed ? 1u : 0u) || read<uint32_t>(after + 4) != c.layout.n_layer) {
        refuse("the number of layers or the layout of values is another than in this context");
    }
    check_sections(c.layout, after + AFTER_CELLS, n);
}

void check_numbers(const la_context &c, const la_block &block) {
    const auto n = static_cast<uint32_t>(block.n_tokens);
    const uint8_t *at = block.payload + FIXED + PER_CELL * n + AFTER_CELLS;
    for (const la::section &s : c.layout.sections) {
        at += SECTION_HEADER;
        la::require_finite(s, at, s.row_bytes * n);
        at += s.row_bytes * n;
    }
}

void check_chain(const la_context &c, int32_t seq, const la_block *blocks, int32_t n) {
    int64_t end = int64_t{llama_memory_seq_pos_max(c.memory, seq)} + 1;
    for (int32_t i = 0; i < n; ++i) {
        if (blocks[i].start != end) {
            refuse("a block does not start where the sequence ends", blocks[i].start, end);
        }
        check_block(c, blocks[i]);
        if (c.checks_numbers) {
            check_numbers(c, blocks[i]);
        }
        end += blocks[i].n_tokens;
    }
    if (end > int64_t{c.n_ctx}) {
        throw la::fault{LA_TOO_LONG, "the sequence would not fit the context", end, c.n_ctx};
    }
}

void apply(la_context &c, int32_t seq, const la_block &block) {
    // llama.cpp empties the sequence it reads into, so only the first block may go straight there.
    const int32_t target = block.start == 0 ? seq : c.scratch;
    const size_t used = llama_state_seq_set_data(c.handle, block.payload, block.size, target);
    if (used == 0) {
        // All that llama.cpp can refuse was checked before, but for one thing.
        throw la::fault{LA_NO_SPACE, "no free KV cells for this block", block.n_tokens, c.n_ctx};
    }
    if (used != block.size || llama_memory_seq_pos_min(c.memory, target) != block.start ||
        llama_memory_seq_pos_max(c.memory, target) != block.start + block.n_tokens - 1) {
        refuse("llama.cpp read another block than was given");
    }
    if (target != seq) {
        llama_memory_seq_cp(c.memory, c.scratch, seq, -1, -1);
    }
}

// How many blocks from the first on are worth joining into one payload before llama.cpp reads it.
// Why: each payload it reads costs three walks over all cells of the context, about 2.5 ns per cell,
// and joining costs about 0.1 ns per byte (both measured, AMD EPYC). Small blocks in a large context
// are joined, large ones in a small context are read where they lie.
int32_t worth_joining(const la_context &c, const la_block *blocks, int32_t n, size_t capacity) {
    int32_t count = 1;
    size_t size = blocks[0].size;
    while (count < n && !c.layout.v_transposed && blocks[count].size < CELL_COST * c.n_ctx &&
           size + blocks[count].size <= capacity) {
        size += blocks[count++].size;
    }
    return count;
}

// Writes consecutive, checked blocks as one; into is large enough for all of them.
la_block join(const la_context &c, const la_block *blocks, int32_t n, uint8_t *into) {
    uint8_t *out = into;
    const auto append = [&out](const uint8_t *from, size_t size) {
        memcpy(out, from, size);
        out += size;
    };
    uint32_t n_tokens = 0;
    append(blocks[0].payload, FIXED);
    for (int32_t i = 0; i < n; ++i) {
        const auto m = static_cast<uint32_t>(blocks[i].n_tokens);
        append(blocks[i].payload + FIXED, PER_CELL * m);
        n_tokens += m;
    }
    write<uint32_t>(into + 12, n_tokens);
    append(blocks[0].payload + FIXED + PER_CELL * static_cast<uint32_t>(blocks[0].n_tokens), AFTER_CELLS);
    uint64_t headers = 0, row_bytes = 0;  // of the sections before this one, per block and per cell
    for (const la::section &s : c.layout.sections) {
        append(s.header, SECTION_HEADER);
        headers += SECTION_HEADER;
        for (int32_t i = 0; i < n; ++i) {
            const auto m = static_cast<uint32_t>(blocks[i].n_tokens);
            append(blocks[i].payload + FIXED + AFTER_CELLS + headers + (PER_CELL + row_bytes) * m, s.row_bytes * m);
        }
        row_bytes += s.row_bytes;
    }
    return la_block{blocks[0].start, static_cast<int32_t>(n_tokens), into, static_cast<size_t>(out - into)};
}

void apply_all(la_context &c, int32_t seq, const la_block *blocks, int32_t n) {
    std::unique_ptr<uint8_t[]> joined;  // not a vector, which would write zeros first
    for (int32_t i = 0; i < n;) {
        const int32_t count = worth_joining(c, blocks + i, n - i, JOINED_BYTES);
        if (count == 1) {
            apply(c, seq, blocks[i]);
        } else {
            if (joined == nullptr) {
                joined.reset(new uint8_t[JOINED_BYTES]);
            }
            apply(c, seq, join(c, blocks + i, count, joined.get()));
        }
        i += count;
    }
}

} // namespace

void la::require_finite(const la::section &section, const uint8_t *data, size_t n_bytes) {
    int32_t type;
    memcpy(&type, section.header, sizeof type);
    if (!ggml_validate_row_data(static_cast<ggml_type>(type), data, n_bytes)) {
        refuse("a state holds a number that is not finite");
    }
}

void la::learn_layout(la_context &context, int32_t seq, uint32_t n_tokens) {
    la::layout found;
    const size_t size = llama_state_seq_get_size(context.handle, seq);
    std::vector<uint8_t> payload(size);
    const size_t written = llama_state_seq_get_data(context.handle, payload.data(), size, seq);
    found.plain = size > 0 && written == size && !context.recurrent && context.n_swa == 0 &&
                  explore(payload, seq, n_tokens, found);
    if (!found.plain) {
        found = la::layout{};
        found.bytes_per_token = size / n_tokens;  // an estimate, good enough for budgets
    }
    context.layout = std::move(found);
}

extern "C" {

uint64_t la_block_bytes(const la_context *context, uint64_t n_tokens) noexcept {
    const la::layout &layout = context->layout;
    return FIXED + AFTER_CELLS + SECTION_HEADER * layout.sections.size() +
           n_tokens * (PER_CELL + layout.bytes_per_token);
}

int la_save_block(la_context *context, int32_t seq, int32_t start, int32_t end, uint8_t *into,
                  size_t capacity, size_t *written) noexcept {
    return la::guarded([&] {
        la_context &c = *context;
        require_cut(c);
        la::check_seq(c, seq);
        const int32_t held = llama_memory_seq_pos_max(c.memory, seq) + 1;
        if (start < 0 || start >= end || end > held || start < llama_memory_seq_pos_min(c.memory, seq)) {
            throw la::fault{LA_RANGE, "the sequence does not hold this range", end, held};
        }
        const auto n = static_cast<uint32_t>(end - start);
        const uint64_t size = la_block_bytes(&c, n);
        if (size > capacity) {
            throw la::fault{LA_BUFFER, "the buffer is too small for the block", static_cast<int64_t>(capacity),
                            static_cast<int64_t>(size)};
        }
        llama_memory_seq_cp(c.memory, seq, c.scratch, start, end);
        *written = llama_state_seq_get_data(c.handle, into, size, c.scratch);
        llama_memory_seq_rm(c.memory, c.scratch, -1, -1);
        if (*written != size) {
            throw la::fault{LA_RANGE, "the sequence has a hole in this range", end, held};
        }
        // Equal KV must give equal bytes, whichever scratch sequence was used.
        write<int32_t>(into + 4, 0);
        for (uint32_t i = 0; i < n; ++i) {
            write<int32_t>(into + FIXED + PER_CELL * i + 8, 0);
        }
        check_block(c, la_block{start, end - start, into, size});
    });
}

int la_restore_blocks(la_context *context, int32_t seq, const la_block *blocks, int32_t n) noexcept {
    la_context &c = *context;
    const int status = la::guarded([&] {
        require_cut(c);
        la::check_seq(c, seq);
        check_chain(c, seq, blocks, n);
    });
    if (status != LA_OK || n < 1) {
        return status;
    }
    const int applied = la::guarded([&] { apply_all(c, seq, blocks, n); });
    // Once for all blocks: reading the next one empties the scratch sequence by itself.
    llama_memory_seq_rm(c.memory, c.scratch, -1, -1);
    if (applied != LA_OK) {  // the sequence keeps what it had, no cell leaks
        llama_memory_seq_rm(c.memory, seq, blocks[0].start, -1);
    }
    return applied;
}

} // extern "C"
