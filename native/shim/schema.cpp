// A JSON schema becomes a grammar by llama.cpp's own converter, compiled from its source as it is.
// The three helpers it wants from upstream's big common.cpp are here, written anew.
#include "sampling.h"

#include "converter/common.h"
#include "json-schema-to-grammar.h"

namespace {

thread_local std::string ignored;  // what the converter could not express, in its own words

} // namespace

std::string string_join(const std::vector<std::string> &parts, const std::string &between) {
    std::string joined;
    for (size_t i = 0; i < parts.size(); ++i) {
        joined += (i == 0 ? "" : between) + parts[i];
    }
    return joined;
}

std::vector<std::string> string_split(const std::string &text, const std::string &at) {
    std::vector<std::string> parts;
    size_t from = 0;
    for (size_t to; (to = text.find(at, from)) != std::string::npos; from = to + at.size()) {
        parts.push_back(text.substr(from, to - from));
    }
    parts.push_back(text.substr(from));
    return parts;
}

std::string string_repeat(const std::string &text, size_t times) {
    std::string repeated;
    for (size_t i = 0; i < times; ++i) {
        repeated += text;
    }
    return repeated;
}

void la_converter_ignores(const char *what) {
    ignored = what;
    const std::string boast = ", accepting any string";  // it may, we do not
    for (size_t at; (at = ignored.find(boast)) != std::string::npos;) {
        ignored.erase(at, boast.size());
    }
}

std::string la::schema_to_grammar(const char *schema) {
    ignored.clear();
    std::string rules;
    try {
        rules = json_schema_to_grammar(common_json::parse(schema), true);
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception &e) {
        const std::string why = e.what();
        throw fault{LA_GRAMMAR, why.size() <= 300 ? why : why.substr(0, 300) + "...", 0, 0};
    }
    if (!ignored.empty()) {  // a reply that only seems to follow its schema is worse than none
        throw fault{LA_GRAMMAR, ignored.size() <= 300 ? ignored : ignored.substr(0, 300) + "...", 0, 0};
    }
    return rules;
}
