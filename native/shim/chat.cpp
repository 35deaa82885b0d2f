// Chat templates and the replies they ask for, through llama.cpp's common/ (chat/chat.cmake).
#include "internal.h"

#include "chat.h"
#include "chat-peg-parser.h"
#include "bounds.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

namespace {

constexpr size_t MAX_SOURCE = 4 << 20;
constexpr size_t MAX_REQUEST = 32 << 20;
constexpr size_t MAX_REPLY = 64 << 20;
constexpr int MAX_JSON_DEPTH = 256;

enum tag { REASONING = 0, CONTENT = 1, CALL = 2 };

// Runs body with fresh bounds; what it throws is about the template or the reply, not about this process.
template <class Body> int bounded(Body body) noexcept {
    return la::guarded([&] {
        la_bounds::begin();
        const char *&reason = la_bounds::here().reason;
        try {
            body();
        } catch (const la::fault &) {
            throw;
        } catch (const std::bad_alloc &) {
            throw;
        } catch (const std::exception &e) {
            throw la::fault{LA_CHAT, reason != nullptr ? reason : e.what(), 0, 0};
        }
        if (reason != nullptr) {
            throw la::fault{LA_CHAT, reason, 0, 0};  // caught on its way, so what was found may be wrong
        }
    });
}

// Enough of msgpack for one answer.
class packer {
  public:
    void array(size_t n) {
        if (n < 16) {
            put(static_cast<uint8_t>(0x90 | n));
        } else {
            put(0xdd);
            big(static_cast<uint32_t>(n));
        }
    }
    void number(size_t value) {
        if (value < 128) {
            put(static_cast<uint8_t>(value));
        } else {
            put(0xce);
            big(static_cast<uint32_t>(value));
        }
    }
    void bytes(std::string_view text) {
        put(0xc6);
        big(static_cast<uint32_t>(text.size()));
        out_.append(text);
    }
    const std::string &done() const { return out_; }

  private:
    void put(uint8_t byte) { out_.push_back(static_cast<char>(byte)); }
    void big(uint32_t value) {
        for (int shift = 24; shift >= 0; shift -= 8) {
            put(static_cast<uint8_t>(value >> shift));
        }
    }
    std::string out_;
};

struct found {
    tag kind;
    size_t start;
    size_t end;
    bool has_arguments = false;
    bool has_id = false;  // before its arguments
};

bool is_of_call(const std::string &name) { return name.rfind("tool-", 0) == 0; }

// The parts of a reply in order. A call begins where the mapper begins one, or where the node around it does.
void collect(const common_peg_ast_arena &ast, common_peg_ast_id id, const common_peg_ast_node *call,
             std::vector<found> &out) {
    using builder = common_chat_peg_builder;
    const la_bounds::call one;
    const auto &node = ast.get(id);
    if (node.tag == builder::REASONING) {
        out.push_back({REASONING, node.start, node.end, false, false});
    } else if (node.tag == builder::CONTENT) {
        out.push_back({CONTENT, node.start, node.end, false, false});
    } else if (node.tag == builder::TOOL) {
        call = &node;
    } else if (node.tag == builder::TOOL_OPEN) {
        out.push_back({CALL, call == nullptr ? node.start : call->start, call == nullptr ? node.end : call->end, false, false});
    } else if (is_of_call(node.tag) && !out.empty() && out.back().kind == CALL) {
        found &last = out.back();
        last.end = std::max(last.end, node.end);
        last.has_arguments = last.has_arguments || node.tag.rfind(builder::TOOL_ARG, 0) == 0;
        last.has_id = last.has_id || (node.tag == builder::TOOL_ID && !last.has_arguments);
    }
    for (const auto child : node.children) {
        collect(ast, child, call, out);
    }
}

std::unique_ptr<common_chat_peg_mapper> mapper_of(common_chat_format format, common_chat_msg &message) {
    switch (format) {
        case COMMON_CHAT_FORMAT_PEG_GEMMA4: return std::make_unique<common_chat_peg_gemma4_mapper>(message);
        case COMMON_CHAT_FORMAT_PEG_MINIMAX_M3: return std::make_unique<common_chat_peg_minimax_m3_mapper>(message);
        default: return std::make_unique<common_chat_peg_mapper>(message);
    }
}

void require_shallow(const char *text, size_t length) {
    int depth = 0;
    bool in_text = false;
    for (size_t i = 0; i < length; ++i) {
        const char c = text[i];
        if (in_text) {
            if (c == '\\') {
                ++i;
            } else if (c == '"') {
                in_text = false;
            }
        } else if (c == '"') {
            in_text = true;
        } else if (c == '{' || c == '[') {
            if (++depth > MAX_JSON_DEPTH) {
                throw la::fault{LA_CHAT, "the request is nested too deeply", 0, 0};
            }
        } else if (c == '}' || c == ']') {
            --depth;
        }
    }
}

common_chat_templates_inputs inputs_of(const common_json &request, bool can_be_parallel) {
    common_chat_templates_inputs inputs;
    if (request.contains("messages")) {
        inputs.messages = common_chat_msgs_parse_oaicompat(request.at("messages"));
    }
    if (request.contains("tools")) {
        inputs.tools = common_chat_tools_parse_oaicompat(request.at("tools"));
    }
    if (request.contains("continue_final_message")) {
        inputs.continue_final_message = common_chat_continuation_parse(request.at("continue_final_message"));
    }
    if (request.contains("kwargs")) {
        for (const auto &[name, value] : request.at("kwargs").items()) {
            inputs.chat_template_kwargs[name] = value.dump();
        }
    }
    inputs.tool_choice = common_chat_tool_choice_parse_oaicompat(request.value("tool_choice", std::string("auto")));
    inputs.parallel_tool_calls = request.value("parallel_tool_calls", can_be_parallel);
    inputs.enable_thinking = request.value("enable_thinking", true);
    inputs.add_generation_prompt = request.value("add_generation_prompt", true);
    inputs.reasoning_format = COMMON_REASONING_FORMAT_AUTO;
    return inputs;
}

const char *name_of(common_grammar_trigger_type type) {
    switch (type) {
        case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN: return "token";
        case COMMON_GRAMMAR_TRIGGER_TYPE_WORD: return "word";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN: return "pattern";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL: return "whole";
    }
    return "";
}

template <class Texts> common_json list_of(const Texts &texts) {
    auto list = common_json::array();
    for (const auto &text : texts) {
        list.push_back(text);
    }
    return list;
}

std::string facts_of(const common_chat_params &params) {
    auto triggers = common_json::array();
    for (const auto &one : params.grammar_triggers) {
        auto pair = common_json::array();
        pair.push_back(std::string(name_of(one.type)));
        pair.push_back(one.value);
        triggers.push_back(pair);
    }
    common_json facts = common_json::object();
    facts["format"] = std::string(common_chat_format_name(params.format));
    facts["prompt"] = params.prompt;
    facts["generation_prompt"] = params.generation_prompt;
    facts["grammar"] = params.grammar;
    facts["grammar_is_lazy"] = params.grammar_lazy;
    facts["triggers"] = triggers;
    facts["can_think"] = params.supports_thinking;
    facts["thinking_start"] = params.thinking_start_tag;
    facts["thinking_ends"] = list_of(params.thinking_end_tags);
    facts["markers"] = list_of(params.preserved_tokens);
    facts["stops"] = list_of(params.additional_stops);
    facts["delimiters"] = params.message_delimiters.to_json();
    return facts.dump();
}

} // namespace

struct la_chat {
    common_chat_templates_ptr templates;
};

struct la_chat_reader {
    common_chat_format format = COMMON_CHAT_FORMAT_CONTENT_ONLY;
    std::string before;  // what the prompt ends with for the reply to begin after it
    common_peg_arena parser;
    std::string facts;
};

namespace {

std::string read(const la_chat_reader &reader, std::string_view text, bool is_partial) {
    common_peg_parse_context context(reader.before + std::string(text), COMMON_PEG_PARSE_FLAG_LENIENT);
    const auto result = reader.parser.parse(context);
    common_chat_msg message;
    mapper_of(reader.format, message)->from_ast(context.ast, result);
    std::vector<found> parts;
    for (const auto id : result.nodes) {
        collect(context.ast, id, nullptr, parts);
    }
    const auto place = [&](size_t at) { return at > reader.before.size() ? at - reader.before.size() : 0; };
    packer out;
    out.array(6);
    out.number(result.fail() ? 0 : is_partial && result.need_more_input() ? 2 : 1);
    out.number(place(result.end));
    out.bytes(message.reasoning_content);
    out.bytes(message.content);
    out.array(message.tool_calls.size());
    std::vector<found> calls;
    std::copy_if(parts.begin(), parts.end(), std::back_inserter(calls), [](const found &one) { return one.kind == CALL; });
    for (size_t i = 0; i < message.tool_calls.size(); ++i) {
        const auto &call = message.tool_calls[i];
        out.array(3);
        out.bytes(i < calls.size() && calls[i].has_id ? call.id : std::string());
        out.bytes(call.name);
        out.bytes(call.arguments);
    }
    out.array(parts.size());
    for (const auto &part : parts) {
        out.array(3);
        out.number(part.kind);
        out.number(place(part.start));
        out.number(place(part.end));
    }
    return out.done();
}

} // namespace

extern "C" {

int la_chat_new(const char *source, const char *bos, const char *eos, la_chat **out) noexcept {
    return bounded([&] {
        const std::string text(source);
        if (text.empty() || text.size() > MAX_SOURCE) {
            throw la::fault{LA_CHAT, "the template is empty or too long", static_cast<int64_t>(text.size()), MAX_SOURCE};
        }
        auto made = std::make_unique<la_chat>();
        made->templates = common_chat_templates_init(nullptr, text, bos, eos);
        *out = made.release();
    });
}

void la_chat_free(la_chat *chat) noexcept { delete chat; }

int la_chat_reader_new(const la_chat *chat, const char *request, size_t length, la_chat_reader **out) noexcept {
    return bounded([&] {
        if (length > MAX_REQUEST) {
            throw la::fault{LA_CHAT, "the request is too long", static_cast<int64_t>(length), MAX_REQUEST};
        }
        require_shallow(request, length);
        const auto able = common_chat_templates_get_caps(chat->templates.get());
        const auto parallel = able.find("supports_parallel_tool_calls");
        const auto inputs = inputs_of(common_json::parse(std::string(request, length)),
                                      parallel == able.end() || parallel->second);
        const auto params = common_chat_templates_apply(chat->templates.get(), inputs);
        auto made = std::make_unique<la_chat_reader>();
        made->format = params.format;
        made->before = params.generation_prompt;
        made->facts = facts_of(params);
        if (params.parser.empty()) {
            made->parser = build_chat_peg_parser([](common_chat_peg_builder &p) { return p.content(p.rest()) + p.end(); });
            made->before.clear();
        } else {
            made->parser.load(params.parser);
        }
        *out = made.release();
    });
}

void la_chat_reader_free(la_chat_reader *reader) noexcept { delete reader; }

const char *la_chat_reader_facts(const la_chat_reader *reader, size_t *length) noexcept {
    *length = reader->facts.size();
    return reader->facts.data();
}

int la_chat_read(const la_chat_reader *reader, const char *text, size_t length, int is_partial, uint8_t **out,
                 size_t *n_out) noexcept {
    return bounded([&] {
        if (length > MAX_REPLY) {
            throw la::fault{LA_CHAT, "the reply is too long", static_cast<int64_t>(length), MAX_REPLY};
        }
        const std::string packed = read(*reader, {text, length}, is_partial != 0);
        auto *bytes = static_cast<uint8_t *>(std::malloc(packed.size() + 1));
        if (bytes == nullptr) {
            throw std::bad_alloc();
        }
        std::memcpy(bytes, packed.data(), packed.size());
        *out = bytes;
        *n_out = packed.size();
    });
}

void la_bytes_free(uint8_t *bytes) noexcept { std::free(bytes); }

} // extern "C"
