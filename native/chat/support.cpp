// The few functions that chat*.cpp of llama.cpp's common/ needs from its common.cpp and log.cpp, which
// bring downloads, samplers and threads with them.
#include "common.h"
#include "log.h"

#include "bounds.h"

#include <stdexcept>

std::string string_join(const std::vector<std::string> &values, const std::string &separator) {
    std::string out;
    for (size_t i = 0; i < values.size(); ++i) {
        la_bounds::grow(values[i].size() + separator.size());
        la_bounds::fits(out.size());
        out += i == 0 ? values[i] : separator + values[i];
    }
    return out;
}

std::string string_repeat(const std::string &text, size_t n) {
    std::string out;
    la_bounds::fits(n);
    la_bounds::grow(text.size() * n);
    out.reserve(text.size() * n);
    for (size_t i = 0; i < n; ++i) {
        out += text;
    }
    return out;
}

void string_replace_all(std::string &text, const std::string &search, const std::string &replacement) {
    if (search.empty()) {
        return;
    }
    for (size_t at = text.find(search); at != std::string::npos; at = text.find(search, at + replacement.size())) {
        la_bounds::grow(replacement.size());
        la_bounds::fits(text.size());
        text.replace(at, search.size(), replacement);
    }
}

std::vector<std::string> string_split(const std::string &text, const std::string &delimiter) {
    std::vector<std::string> parts;
    size_t from = 0;
    for (size_t at = text.find(delimiter); at != std::string::npos; at = text.find(delimiter, from)) {
        parts.push_back(text.substr(from, at - from));
        from = at + delimiter.size();
    }
    parts.push_back(text.substr(from));
    return parts;
}

// Only with a model, which is never given here.
std::string common_token_to_piece(const struct llama_vocab *, llama_token, bool) {
    throw std::logic_error("templates are read without a vocabulary");
}

std::vector<llama_token> common_tokenize(const struct llama_vocab *, const std::string &, bool, bool) {
    throw std::logic_error("templates are read without a vocabulary");
}

// Its warnings become notes of a reply or errors; nothing is written.
int common_log_get_verbosity_thold() { return -1; }
struct common_log *common_log_main() { return nullptr; }
void common_log_add(struct common_log *, enum ggml_log_level, const char *, ...) {}
