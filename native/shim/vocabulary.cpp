// Text to tokens and back.
//
// Several pre-tokenizers of llama.cpp are patterns for std::regex, which recurses once or more per
// character that a pattern matches: with libstdc++ 320 bytes of stack for each. A run of 26,000
// letters, blanks or signs overflows an ordinary stack of 8 MiB and ends the process. So a text that
// could need more than what is left of the caller's stack is tokenised on a thread with a stack that
// is sized by the text. That stack is virtual memory: only the pages that a run needs are ever touched.
#include "internal.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <exception>
#include <functional>
#include <string_view>

namespace {

constexpr size_t STACK_PER_CHAR = 2048;       // measured: 320; nested loops and other compilers take more
constexpr size_t STACK_MEASURED = 320;
constexpr size_t STACK_BASE = 1 << 20;        // for everything that does not grow with the text
constexpr size_t DIRECT_BASE = 128 << 10;     // the same, of a text that is short
constexpr int64_t SLOW_RUN_LIMIT = 4096;      // characters, where their square costs 8 ns and more
constexpr size_t SPECIALS_AT_ONCE = 1024;     // their number squared, times 5 ns
constexpr int64_t SLOWER_RUN_LIMIT = 1 << 18; // the same, where it costs less than 0.2 ns

bool begins_character(char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }

size_t characters_of(const std::string_view text) {
    return static_cast<size_t>(std::count_if(text.begin(), text.end(), begins_character));
}

// Bytes of the blank at the beginning of a text; 0 where there is none. With lines: also their ends.
size_t blank(const std::string_view text, bool with_lines) {
    static const std::string_view others[] = {
        "\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81",
        "\xe2\x80\x82", "\xe2\x80\x83", "\xe2\x80\x84", "\xe2\x80\x85", "\xe2\x80\x86",
        "\xe2\x80\x87", "\xe2\x80\x88", "\xe2\x80\x89", "\xe2\x80\x8a", "\xe2\x80\xa8",
        "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80",
    };
    const char c = text.empty() ? 'x' : text.front();
    if (c == ' ' || c == '\t' || c == '\v' || c == '\f') {
        return 1;
    }
    if (c == '\n' || c == '\r') {
        return with_lines ? 1 : 0;
    }
    for (const std::string_view other : others) {
        if (text.substr(0, other.size()) == other) {
            return other.size();
        }
    }
    return 0;
}

// Bytes of the decimal digit at the beginning of a text; 0 where there is none.
size_t digit(const std::string_view text) { return !text.empty() && text[0] >= '0' && text[0] <= '9' ? 1 : 0; }

size_t anything_else(const std::string_view text) {
    if (text.empty() || blank(text, true) != 0) {
        return 0;
    }
    size_t n = 1;
    while (n < text.size() && !begins_character(text[n])) {
        ++n;
    }
    return n;
}

// Characters of the longest run of one kind that `counts`, which is given what follows the run.
template <class Kind, class Counts> int64_t longest_run(const std::string_view text, Kind kind, Counts counts) {
    int64_t longest = 0;
    for (size_t at = 0; at < text.size();) {
        int64_t run = 0;
        while (const size_t n = kind(text.substr(at))) {
            at += n;
            ++run;
        }
        if (run > longest && counts(text.substr(at))) {
            longest = run;
        }
        ++at;  // what ended the run; further bytes of that character begin no other
    }
    return longest;
}

bool always(std::string_view) { return true; }

std::string meta(const la_model &model, const char *key) {
    char out[64] = "";
    llama_model_meta_val_str(model.handle, key, out, sizeof out);
    return out;
}

// Bytes between here and the end of this thread's stack; 0 where that is not known.
size_t stack_left() {
    thread_local char *lowest = nullptr;
    thread_local bool is_known = false;
    if (!is_known) {
        pthread_attr_t attributes;
        is_known = true;
        if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
            void *start = nullptr;
            size_t size = 0;
            size_t guard = 0;
            if (pthread_attr_getstack(&attributes, &start, &size) == 0 &&
                pthread_attr_getguardsize(&attributes, &guard) == 0) {
                lowest = static_cast<char *>(start) + guard;
            }
            pthread_attr_destroy(&attributes);
        }
    }
    const char here = 0;
    return lowest == nullptr || &here < lowest ? 0 : static_cast<size_t>(&here - lowest);
}

// Memory for a stack, with a page at its end that cannot be touched.
struct stack {
    explicit stack(size_t wanted) : size(wanted) {
        memory = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
        if (memory == MAP_FAILED) {
            throw la::fault{LA_TEXT,
                            "the address space of this process has no room for the stack that a text of so many "
                            "characters may need (see `ulimit -v` and vm.overcommit_memory); shorten the text"};
        }
        madvise(memory, size, MADV_NOHUGEPAGE);
        mprotect(memory, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);
    }
    ~stack() { munmap(memory, size); }
    stack(const stack &) = delete;
    stack &operator=(const stack &) = delete;

    void *memory = nullptr;
    size_t size = 0;
};

struct call {
    const std::function<void()> &body;
    std::exception_ptr thrown;
};

void *run_call(void *user) {
    auto *what = static_cast<call *>(user);
    try {
        what->body();
    } catch (...) {  // thrown again by the thread that waits
        what->thrown = std::current_exception();
    }
    return nullptr;
}

void on_own_stack(size_t n_bytes, const std::function<void()> &body) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const stack memory((n_bytes + page - 1) / page * page);
    call what{body, nullptr};
    pthread_attr_t attributes;
    pthread_t thread;
    // Signals are left to the threads of Python.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, memory.memory, memory.size);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&thread, &attributes, run_call, &what);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
    if (failed != 0) {
        throw la::fault{LA_TEXT,
                        std::string("no thread could be started to tokenise it (") + strerror(failed) +
                            "); raise the limit on processes, or shorten the text"};
    }
    pthread_join(thread, nullptr);
    if (what.thrown) {
        std::rethrow_exception(what.thrown);
    }
}

[[noreturn]] void refuse_run(const char *what, int64_t run, int64_t limit) {
    throw la::fault{LA_TEXT, what, run, limit};
}

// Three pre-tokenizers look from each character of a run to its end: the time grows with the square
// of its length. Two of them are quick where something follows that they split off before.
void require_quick(const std::string &pre, const std::string_view text) {
    const auto any_blank = [](std::string_view at) { return blank(at, true); };
    const auto blank_of_line = [](std::string_view at) { return blank(at, false); };
    const auto slow_behind = [](std::string_view rest) {
        return !rest.empty() && (static_cast<unsigned char>(rest[0]) >= 0x80 || digit(rest) != 0 || rest[0] < ' ') &&
               rest[0] != '\n' && rest[0] != '\r';
    };
    int64_t run = 0;
    if (pre == "superbpe" && (run = longest_run(text, digit, always)) > SLOW_RUN_LIMIT) {
        refuse_run("this model's pre-tokenizer takes too long for a run of so many digits", run, SLOW_RUN_LIMIT);
    }
    if (pre == "deepseek-llm" && (run = longest_run(text, blank_of_line, slow_behind)) > SLOW_RUN_LIMIT) {
        refuse_run("this model's pre-tokenizer takes too long for a run of so many blanks", run, SLOW_RUN_LIMIT);
    }
    if (pre == "jais-2" && (run = longest_run(text, any_blank, always)) > SLOWER_RUN_LIMIT) {
        refuse_run("this model's pre-tokenizer takes too long for a run of so many blanks", run, SLOWER_RUN_LIMIT);
    }
}

// Refuses runs that would take too much memory, or minutes. Only patterns recurse, and only some
// models' texts are split by them: which, only llama.cpp can tell.
void require_bearable(const la_model &model, const std::string_view text) {
    if (llama_vocab_type(model.vocab) != LLAMA_VOCAB_TYPE_BPE) {
        return;
    }
    const auto any_blank = [](std::string_view at) { return blank(at, true); };
    const int64_t run = std::max(longest_run(text, any_blank, always), longest_run(text, anything_else, always));
    if (run > model.max_run) {
        refuse_run("a run of so many characters, all blanks or none of them a blank, takes too much memory", run,
                   model.max_run);
    }
    if (run > SLOW_RUN_LIMIT) {
        require_quick(meta(model, "tokenizer.ggml.pre"), text);
    }
}

// llama.cpp aborts the process where a token is to be added that the vocabulary lacks.
void require_special(const llama_vocab *vocab, bool add_special) {
    const enum llama_vocab_type type = llama_vocab_type(vocab);
    const bool needs_both = type == LLAMA_VOCAB_TYPE_WPM;
    const llama_token end = needs_both ? llama_vocab_sep(vocab) : llama_vocab_eos(vocab);
    if (add_special && ((llama_vocab_bos(vocab) == LLAMA_TOKEN_NULL && (needs_both || llama_vocab_get_add_bos(vocab))) ||
                        (end == LLAMA_TOKEN_NULL && (needs_both || llama_vocab_get_add_eos(vocab))))) {
        throw la::fault{LA_NO_VOCABULARY,
                        "this model file requires a token around each text and does not name it; tokenise without "
                        "add_special"};
    }
}

// Ends of parts of a text that can be tokenised one by one; none where it is better done at once.
//
// llama.cpp finds each token that is read first, control tokens and those a file defines, in a list
// that it walks from its beginning: the time grows with the square of their number. A text may be cut
// behind such a token where no other overlaps it, so that it is found whatever is found before.
std::vector<size_t> cuts_of(const la_model &model, const std::string_view text, bool parse_special) {
    struct hit {
        size_t start;
        size_t end;
        bool strips_right;
    };
    std::vector<hit> hits;
    std::vector<size_t> cuts;
    if (text.size() < 2 * SPECIALS_AT_ONCE) {
        return cuts;
    }
    for (const la::special &special : model.specials) {
        if (special.only_if_parsed && !parse_special) {
            continue;
        }
        for (size_t at = text.find(special.text); at != std::string_view::npos; at = text.find(special.text, at + 1)) {
            hits.push_back({at, at + special.text.size(), special.strips_right});
        }
    }
    if (hits.size() <= SPECIALS_AT_ONCE) {
        return cuts;
    }
    std::sort(hits.begin(), hits.end(), [](const hit &a, const hit &b) { return a.start < b.start; });
    size_t reached = 0;
    size_t since = 0;
    for (size_t i = 0; i < hits.size(); ++i) {
        const bool is_alone = hits[i].start >= reached && (i + 1 == hits.size() || hits[i + 1].start >= hits[i].end);
        reached = std::max(reached, hits[i].end);
        if (++since >= SPECIALS_AT_ONCE / 2 && is_alone && !hits[i].strips_right) {
            cuts.push_back(hits[i].end);
            since = 0;
        }
    }
    if (!cuts.empty() && cuts.back() != text.size()) {
        cuts.push_back(text.size());
    }
    return cuts;
}

int32_t tokenize_part(const la_model &model, const std::string_view text, int32_t *out, int32_t capacity,
                      bool add_special, bool parse_special) {
    int32_t n = 0;
    const auto body = [&] {
        n = llama_tokenize(model.vocab, text.data(), static_cast<int32_t>(text.size()), out, capacity, add_special,
                           parse_special);
    };
    const size_t needed = characters_of(text) * STACK_PER_CHAR;
    if (needed + DIRECT_BASE <= stack_left()) {
        body();
    } else {
        require_bearable(model, text);
        on_own_stack(needed + STACK_BASE, body);
    }
    if (n == INT32_MIN) {
        throw la::fault{LA_TOO_LONG, "the text makes more tokens than 31 bits can count",
                        static_cast<int64_t>(text.size()), INT32_MAX};
    }
    return n;
}

} // namespace

std::vector<la::special> la::special_tokens(const llama_vocab *vocab) {
    std::vector<special> found;
    if (llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_BPE && llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_SPM) {
        return found;
    }
    const int control = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN;
    for (int32_t token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
        const int attributes = llama_vocab_get_attr(vocab, token);
        const char *text = llama_vocab_get_text(vocab, token);
        if ((attributes & (control | LLAMA_TOKEN_ATTR_USER_DEFINED)) != 0 && text[0] != '\0') {
            found.push_back({text, (attributes & control) != 0, (attributes & LLAMA_TOKEN_ATTR_RSTRIP) != 0});
        }
    }
    return found;
}

void la::require_vocabulary(const la_model &model) {
    if (llama_vocab_type(model.vocab) == LLAMA_VOCAB_TYPE_NONE) {
        throw la::fault{LA_NO_VOCABULARY, "this model file holds no vocabulary; send token ids, and no rules for text"};
    }
}

int32_t la::tokenize(const la_model &model, const std::string_view text, int32_t *out, int32_t capacity,
                     bool add_special, bool parse_special) {
    require_vocabulary(model);
    require_special(model.vocab, add_special);
    if (text.size() > INT32_MAX) {
        refuse_run("a text of so many bytes is too long", static_cast<int64_t>(text.size()), INT32_MAX);
    }
    const auto cuts = cuts_of(model, text, parse_special);
    if (cuts.empty()) {
        return tokenize_part(model, text, out, capacity, add_special, parse_special);
    }
    // The tokens that the model requires around a text, then the parts, each as if between two tokens.
    std::vector<int32_t> around(8);
    const int32_t n_around = tokenize_part(model, {}, around.data(), static_cast<int32_t>(around.size()), add_special, false);
    const auto n_before = std::min<int32_t>(n_around, llama_vocab_get_add_bos(model.vocab) ? 1 : 0);
    std::vector<int32_t> tokens(around.begin(), around.begin() + n_before);
    size_t at = 0;
    for (size_t cut : cuts) {
        const std::string_view part = text.substr(at, cut - at);
        const size_t known = tokens.size();
        tokens.resize(known + part.size() + 8);
        const int32_t n = tokenize_part(model, part, tokens.data() + known, static_cast<int32_t>(part.size() + 8), false,
                                        parse_special);
        if (n < 0) {
            throw la::fault{LA_TEXT, "a part of it has more tokens than bytes"};
        }
        tokens.resize(known + static_cast<size_t>(n));
        at = cut;
    }
    tokens.insert(tokens.end(), around.begin() + n_before, around.begin() + n_around);
    const auto n = static_cast<int32_t>(tokens.size());
    if (n > capacity) {
        return -n;
    }
    std::copy(tokens.begin(), tokens.end(), out);
    return n;
}

extern "C" {

int la_tokenize(const la_model *model, const char *text, size_t length, int32_t *out, int32_t capacity,
                int add_special, int parse_special, int32_t *n) noexcept {
    return la::guarded([&] {
        *n = la::tokenize(*model, {text, length}, out, capacity, add_special != 0, parse_special != 0);
    });
}

int la_detokenize(const la_model *model, const int32_t *tokens, int32_t n, char *out, int64_t capacity,
                  int special, int64_t *n_bytes) noexcept {
    return la::guarded([&] {
        *n_bytes = 0;
        if (llama_vocab_type(model->vocab) == LLAMA_VOCAB_TYPE_NONE) {
            return;  // its tokens stand for no text
        }
        char small[512];
        std::vector<char> large;
        int64_t used = 0;
        for (int32_t i = 0; i < n; ++i) {
            if (tokens[i] < 0 || tokens[i] >= model->n_vocab) {
                throw la::fault{LA_TOKEN, "not a token of this vocabulary", tokens[i], model->n_vocab};
            }
            const char *piece = small;
            int32_t size = llama_token_to_piece(model->vocab, tokens[i], small, sizeof small, 0, special != 0);
            if (size < 0) {  // longer than the small buffer
                large.resize(static_cast<size_t>(-static_cast<int64_t>(size)));
                size = llama_token_to_piece(model->vocab, tokens[i], large.data(),
                                            static_cast<int32_t>(large.size()), 0, special != 0);
                piece = large.data();
            }
            if (size > 0 && used + size <= capacity) {
                memcpy(out + used, piece, static_cast<size_t>(size));
            }
            used += std::max(size, 0);
        }
        *n_bytes = used;
    });
}

void la_model_spare_memory(la_model *model, uint64_t n_bytes) noexcept {
    const uint64_t characters = std::max<uint64_t>(n_bytes / STACK_MEASURED, SLOW_RUN_LIMIT);
    model->max_run = static_cast<int64_t>(std::min<uint64_t>(characters, static_cast<uint64_t>(model->max_run)));
}

int32_t la_token_bytes_max(const la_model *model) noexcept {
    int32_t most = 0;
    const int status = la::guarded([&] {
        const enum llama_vocab_type type = llama_vocab_type(model->vocab);
        const std::string kind = meta(*model, "tokenizer.ggml.model");
        if (!(type == LLAMA_VOCAB_TYPE_BPE && kind == "gpt2") && !(type == LLAMA_VOCAB_TYPE_SPM && kind == "llama")) {
            return;  // these normalise a text, or read an unknown word as one token
        }
        size_t longest = 0;
        std::string piece;
        std::vector<bool> known(256, false);
        for (int32_t token = 0; token < model->n_vocab; ++token) {
            const int attributes = llama_vocab_get_attr(model->vocab, token);
            if ((attributes & (LLAMA_TOKEN_ATTR_LSTRIP | LLAMA_TOKEN_ATTR_RSTRIP)) != 0) {
                return;  // blanks beside it vanish
            }
            piece.resize(64);
            int32_t size = llama_token_to_piece(model->vocab, token, piece.data(), 64, 0, true);
            if (size < 0) {
                piece.resize(static_cast<size_t>(-static_cast<int64_t>(size)));
                size = llama_token_to_piece(model->vocab, token, piece.data(), -size, 0, true);
            }
            piece.resize(static_cast<size_t>(std::max(size, 0)));
            if (size == 1 && (attributes & (LLAMA_TOKEN_ATTR_NORMAL | LLAMA_TOKEN_ATTR_BYTE)) != 0) {
                known[static_cast<unsigned char>(piece[0])] = true;
            }
            // A text that was generated has U+FFFD, three bytes, for each byte that is no character.
            // In the file a blank has two or three bytes, and may stand in a text as it does there.
            const auto n_ascii = std::count_if(piece.begin(), piece.end(), [](char c) { return (c & 0x80) == 0; });
            const size_t bytes = std::max(piece.size() * 3 - static_cast<size_t>(n_ascii) * 2,
                                          strlen(llama_vocab_get_text(model->vocab, token)));
            longest = std::max(longest, bytes);
        }
        if (std::find(known.begin(), known.end(), false) == known.end()) {
            most = static_cast<int32_t>(std::min<size_t>(longest, INT32_MAX));  // else a byte that no token has is left out
        }
    });
    return status == LA_OK ? most : 0;
}

} // extern "C"
