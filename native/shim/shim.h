/* The whole boundary between Python and llama.cpp.
 *
 * Rules, kept by every function here:
 *   - extern "C" and noexcept: no C++ exception ever crosses;
 *   - every id, length, position and row is checked before llama.cpp sees it, because a wrong one
 *     makes it abort the process;
 *   - the result is an LA_* status (0 is good) unless the comment has something else; the text and the
 *     numbers that explain a failure are kept per thread (la_error_*).
 *
 * One la_context is used by one thread at a time; the caller holds a lock. The only thing another
 * thread may touch is the int32_t behind `abort_flag`.
 */
#ifndef LLAMA_ACTORS_SHIM_H
#define LLAMA_ACTORS_SHIM_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
#define LA_NOEXCEPT noexcept
extern "C" {
#else
#define LA_NOEXCEPT
#endif
/* cdef begin */

enum la_status {
    LA_OK = 0,
    LA_EXCEPTION = 1,   /* an unexpected C++ exception */
    LA_LOAD = 2,        /* llama.cpp refused the model file */
    LA_CONTEXT = 3,     /* no context for this model with these parameters */
    LA_TOKEN = 4,       /* value: the token; limit: n_vocab */
    LA_POSITION = 5,    /* value: the position; limit: the one expected */
    LA_SEQ = 6,         /* value: the sequence; limit: usable sequences */
    LA_ROW = 7,         /* value: the row; limit: rows of the last decode */
    LA_BATCH = 8,       /* value: rows of the batch; limit: the most allowed */
    LA_TOO_LONG = 9,    /* value: tokens the sequence would hold; limit: n_ctx */
    LA_NO_SPACE = 10,   /* no free KV cells */
    LA_ABORTED = 11,    /* the abort flag was raised */
    LA_DECODE = 12,     /* value: what llama_decode returned */
    LA_STATE = 13,      /* a KV payload is not what it should be */
    LA_CANNOT_CUT = 14, /* this model's memory has no addressable cells */
    LA_RANGE = 15,      /* value: a position; limit: the sequence holds positions below this */
    LA_BUFFER = 16,     /* value: bytes given; limit: bytes needed */
    LA_TEXT = 17,       /* a text cannot be tokenised; value: its length (characters), limit: the most */
    LA_NO_VOCABULARY = 18, /* the model has no vocabulary, or lacks a token that it requires */
    LA_GRAMMAR = 20,    /* a grammar cannot be used, or a reply does not follow it */
    LA_STUCK = 21,      /* no token is left to choose from */
    LA_CHAT = 22,       /* a chat template cannot be used, or what is asked of it */
    LA_NO_MEMORY = 30,  /* the model has no KV memory: it embeds or diffuses, and cannot generate */
    LA_ADAPTER = 31,    /* llama.cpp refused the LoRA adapter, or a control vector has no effect */
    LA_OVERRIDE = 32    /* an override cannot be used; value: its number in the list */
};

typedef struct la_model la_model;
typedef struct la_context la_context;
typedef struct la_sampler la_sampler;
typedef struct la_grammar la_grammar;
typedef struct la_adapter la_adapter;
typedef struct la_embedder la_embedder;

/* --- process ------------------------------------------------------------------------------- */
const char *la_source_id(void) LA_NOEXCEPT;
/* Digest of kernels/, which decide about the last bits of KV. */
const char *la_kernels_id(void) LA_NOEXCEPT;
const char *la_system_info(void) LA_NOEXCEPT;
const char *la_device_names(void) LA_NOEXCEPT;
/* Load the best CPU library in folder that works here, and the libraries of GPUs. Does nothing
   where the CPU is linked in, or after the first call. Call it before any other function. */
int la_backends_load(const char *folder) LA_NOEXCEPT;
/* The name of that library, such as "haswell"; "linked" where it is linked in. */
const char *la_cpu_variant(void) LA_NOEXCEPT;
/* Whether a child process survives AMX instructions. */
int la_amx_works(void) LA_NOEXCEPT;
/* Forward log lines of at least this ggml level to stderr too (0 = none; 1 debug .. 4 error). */
void la_log_forward(int level) LA_NOEXCEPT;
/* Copy the last warnings and errors, oldest first, into out; returns the bytes written. */
size_t la_log_tail(char *out, size_t capacity) LA_NOEXCEPT;
void la_log_clear(void) LA_NOEXCEPT;
/* One GPU; integrated ones share the memory of the machine and are not counted. */
typedef struct la_device {
    char name[64];
    uint64_t free;
    uint64_t total;
} la_device;
/* How many GPUs there are; at most capacity of them are written. -1: see la_error_*. */
int32_t la_gpus(la_device *out, int32_t capacity) LA_NOEXCEPT;
/* Whether layers can be put anywhere but on the CPU: on such a GPU, an integrated one, or by RPC. */
int la_offloads(void) LA_NOEXCEPT;
const char *la_error_text(void) LA_NOEXCEPT;
int64_t la_error_value(void) LA_NOEXCEPT;
int64_t la_error_limit(void) LA_NOEXCEPT;

/* --- model --------------------------------------------------------------------------------- */
typedef int (*la_progress)(float done, void *user);  /* 0 cancels the load */

typedef struct la_model_facts {
    int32_t n_vocab;
    int32_t n_ctx_train;
    int32_t n_layer;
    int32_t n_swa;
    int32_t rope_type;
    int32_t recurrent;      /* the memory is, or has, a recurrent part */
    int32_t generates;      /* has a decoder and no encoder */
    int32_t add_bos;
    int32_t bos_token;      /* -1: none */
    int32_t n_embd;
    int32_t n_embd_out;     /* numbers of one embedding */
    int32_t n_head;
    int32_t n_head_kv;
    uint64_t n_params;
    uint64_t n_bytes;
    int32_t n_cls_out;      /* scores of one text, where the model has a head that classifies */
    int32_t add_eos;
    int32_t add_sep;
    int32_t eos_token;      /* -1: none, as with all below */
    int32_t sep_token;
    int32_t fim_pre;        /* fill-in-the-middle: before the prefix */
    int32_t fim_suf;        /* before the suffix */
    int32_t fim_mid;        /* before the middle, which is generated */
    int32_t fim_rep;        /* before the name of the repository */
    int32_t fim_sep;        /* before the name of a file */
} la_model_facts;

/* Borrowed for the length of the call. */
typedef struct la_tensor_override {
    const char *pattern;    /* ECMAScript, searched in names of tensors; the first that fits counts */
    const char *buffer;     /* one of la_buffer_types */
} la_tensor_override;

typedef struct la_kv_override {
    const char *key;        /* at most 127 bytes, as text */
    int32_t kind;           /* llama_model_kv_override_type */
    int64_t whole;          /* the value of kind int and bool */
    double real;
    const char *text;
} la_kv_override;

typedef struct la_model_wishes {
    int32_t n_gpu_layers;   /* negative: all */
    int32_t split_mode;     /* llama_split_mode */
    int32_t main_gpu;
    int32_t n_tensor_split; /* 0: by free memory */
    const float *tensor_split;
    int use_mmap;
    int use_mlock;
    int vocab_only;
    int32_t n_tensor_overrides;
    const la_tensor_override *tensor_overrides;
    int32_t n_kv_overrides;
    const la_kv_override *kv_overrides;
    la_progress progress;   /* may be NULL */
    void *user;
} la_model_wishes;

/* Names of the buffer types of the devices here, one a line; returns and writes as
 * la_model_description. */
int32_t la_buffer_types(char *out, size_t capacity) LA_NOEXCEPT;
/* Whether a pattern is found in one of the names, which stand one a line. LA_OVERRIDE: it is no
 * regular expression. */
int la_pattern_finds(const char *pattern, const char *names, int *found) LA_NOEXCEPT;
/* LA_OVERRIDE: a value of kv_overrides that llama.cpp does not read, or reads as another type. */
int la_model_load(const char *path, const la_model_wishes *wishes, la_model **out) LA_NOEXCEPT;
void la_model_free(la_model *model) LA_NOEXCEPT;
void la_model_describe(const la_model *model, la_model_facts *out) LA_NOEXCEPT;
/* These three return the length of the whole text (-1: absent); at most capacity-1 bytes are
 * written, then a NUL. */
int32_t la_model_description(const la_model *model, char *out, size_t capacity) LA_NOEXCEPT;
int32_t la_model_meta(const la_model *model, const char *key, char *out, size_t capacity) LA_NOEXCEPT;
int32_t la_model_chat_template(const la_model *model, char *out, size_t capacity) LA_NOEXCEPT;
/* Write 1 into out[token] for every end-of-generation token; out has n_vocab bytes. */
void la_model_eog(const la_model *model, uint8_t *out) LA_NOEXCEPT;
/* Writes to *n the number of tokens, or minus the capacity that would do. */
int la_tokenize(const la_model *model, const char *text, size_t length, int32_t *out, int32_t capacity,
                int add_special, int parse_special, int32_t *n) LA_NOEXCEPT;
/* Joins the pieces of n tokens. Writes the bytes of the whole to *n_bytes, and to out only if they
 * fit. Without a vocabulary tokens have no bytes. */
int la_detokenize(const la_model *model, const int32_t *tokens, int32_t n, char *out, int64_t capacity,
                  int special, int64_t *n_bytes) LA_NOEXCEPT;
/* Most memory to take for tokenising a text; 1.3 GiB at most, which is enough for 4 Mi characters
 * of one kind. Before the model is used. */
void la_model_spare_memory(la_model *model, uint64_t n_bytes) LA_NOEXCEPT;
/* The most bytes of a text that one token can stand for. 0: any number, as far as is known. */
int32_t la_token_bytes_max(const la_model *model) LA_NOEXCEPT;

/* --- context ------------------------------------------------------------------------------- */
typedef struct la_rope {
    int32_t scaling;        /* llama_rope_scaling_type; -1: the model's own, as with all below */
    float freq_base;        /* 0 */
    float freq_scale;       /* 0 */
    float yarn_ext_factor;  /* negative, as the next three */
    float yarn_attn_factor;
    float yarn_beta_fast;
    float yarn_beta_slow;
    uint32_t yarn_orig_ctx; /* 0 */
} la_rope;

typedef struct la_context_wishes {
    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_usable;  /* one scratch sequence is added */
    int32_t n_threads;
    int32_t n_threads_batch;
    int32_t type_k;         /* ggml_type */
    int32_t type_v;
    int flash_attn;
    int offload_kqv;
    la_rope rope;
    volatile int32_t *abort_flag;  /* outlives the context; not 0: aborts a running decode */
} la_context_wishes;

typedef struct la_context_facts {
    uint32_t n_ctx;
    uint32_t n_batch;
    int32_t can_cut;           /* plain attention memory, proven by reading a real payload */
    int32_t can_checkpoint;    /* states of whole sequences restore, proven by continuing from one */
    int32_t state_grows;       /* such a state is larger for more tokens */
    int32_t v_transposed;
    uint64_t bytes_per_token;  /* KV data of one cell, all layers */
} la_context_facts;

/* Creates the context and decodes two tokens: proof that decoding works on this machine, and the
 * layout of a KV payload as it really is. The memory is empty afterwards. */
int la_context_new(const la_model *model, const la_context_wishes *wishes, la_context **out) LA_NOEXCEPT;
void la_context_free(la_context *context) LA_NOEXCEPT;
void la_context_describe(const la_context *context, la_context_facts *out) LA_NOEXCEPT;
/* Why this memory can neither be cut nor checkpointed; empty if it can. Lives with the context. */
const char *la_context_unsaved(const la_context *context) LA_NOEXCEPT;
/* Bytes that llama.cpp reports as allocated for the context and its model. */
typedef struct la_memory_use {
    uint64_t host_model;    /* mapped or read */
    uint64_t host_context;
    uint64_t host_compute;
    uint64_t device_model;  /* summed over devices */
    uint64_t device_context;
    uint64_t device_compute;
} la_memory_use;
int la_context_memory(const la_context *context, la_memory_use *out) LA_NOEXCEPT;
/* n columns of one batch; wants[i] != 0: logits of row i are computed. rows: how matrix products compute them, 0 any,
 * 1 each as one among many, 2 each alone (kernels/rows.h). */
int la_decode(la_context *context, int32_t rows, int32_t n, const int32_t *tokens, const int32_t *positions,
              const int32_t *seqs, const int8_t *wants) LA_NOEXCEPT;
/* Borrowed until the next decode: n_vocab floats. */
int la_logits(la_context *context, int32_t row, const float **out) LA_NOEXCEPT;

/* --- sequence ------------------------------------------------------------------------------ */
int la_seq_remove(la_context *context, int32_t seq, int32_t start, int32_t end, int *removed) LA_NOEXCEPT;
int la_seq_copy(la_context *context, int32_t src, int32_t dst, int32_t start, int32_t end) LA_NOEXCEPT;
int la_seq_range(la_context *context, int32_t seq, int32_t *first, int32_t *last) LA_NOEXCEPT;

/* --- state --------------------------------------------------------------------------------- */
typedef struct la_block {
    int32_t start;
    int32_t n_tokens;
    const uint8_t *payload;
    size_t size;
} la_block;

uint64_t la_block_bytes(const la_context *context, uint64_t n_tokens) LA_NOEXCEPT;
int la_save_block(la_context *context, int32_t seq, int32_t start, int32_t end, uint8_t *into,
                  size_t capacity, size_t *written) LA_NOEXCEPT;
/* All blocks are checked before the first is applied; if one cannot be applied, those before it
 * are taken out again. */
int la_restore_blocks(la_context *context, int32_t seq, const la_block *blocks, int32_t n) LA_NOEXCEPT;

/* The state of a whole sequence, for every memory that can_checkpoint. */
int la_checkpoint_bytes(la_context *context, int32_t seq, uint64_t *bytes) LA_NOEXCEPT;
int la_save_checkpoint(la_context *context, int32_t seq, uint8_t *into, size_t capacity,
                       size_t *written) LA_NOEXCEPT;
/* Into an empty sequence, which is empty again if this fails. */
int la_restore_checkpoint(la_context *context, int32_t seq, int32_t n_tokens, const uint8_t *payload,
                          size_t size) LA_NOEXCEPT;

/* --- grammar ------------------------------------------------------------------------------- */
/* Compile rules (GBNF). For any thread, also while another one decodes. Samplers keep what they need of it.
 * shown: control tokens whose text counts for the grammar; the others have none. */
int la_grammar_new(const la_model *model, const char *text, const int32_t *shown, int32_t n_shown,
                   la_grammar **out) LA_NOEXCEPT;
void la_grammar_free(la_grammar *grammar) LA_NOEXCEPT;
uint64_t la_grammar_bytes(const la_grammar *grammar) LA_NOEXCEPT;

/* --- sampler ------------------------------------------------------------------------------- */
typedef struct la_sampling {
    double temperature;
    int32_t top_k;
    double top_p;
    double min_p;
    double typical_p;
    double repetition_penalty;
    double frequency_penalty;
    double presence_penalty;
    int32_t repetition_window;
    double dry_multiplier;
    double dry_base;
    int32_t dry_allowed_length;
    int32_t dry_window;
    double xtc_probability;
    double xtc_threshold;
    int32_t mirostat;
    double mirostat_tau;
    double mirostat_eta;
    uint64_t seed;
    double top_n_sigma;
    double dynatemp_range;
    double dynatemp_exponent;
    int32_t min_keep;
} la_sampling;

/* What may be done to logits, in llama.cpp's order. */
enum la_stage {
    LA_PENALTIES = 0,
    LA_DRY = 1,
    LA_TOP_N_SIGMA = 2,
    LA_TOP_K = 3,
    LA_TYPICAL_P = 4,
    LA_TOP_P = 5,
    LA_MIN_P = 6,
    LA_XTC = 7,
    LA_TEMPERATURE = 8,
    LA_STAGES = 9
};

/* Borrowed for the length of the call. */
typedef struct la_sampling_texts {
    int32_t n_bias;
    const int32_t *bias_tokens;
    const double *bias_values;  /* finite, or minus infinity */
    int32_t n_breakers;
    const char *const *breakers;
    const la_grammar *grammar;  /* of this model; NULL: none */
    const char *grammar_before; /* what the prompt, or the reply so far, holds of the grammar's text */
    size_t n_grammar_before;
    int32_t n_stages;
    const int32_t *stages;      /* la_stage, in the order of use; what is missing is off */
} la_sampling_texts;

int la_sampler_new(const la_model *model, const la_sampling *params, const la_sampling_texts *texts,
                   la_sampler **out) LA_NOEXCEPT;
void la_sampler_free(la_sampler *sampler) LA_NOEXCEPT;
/* is_reply: the tokens were generated, so the grammar moves on with them. */
int la_sampler_accept(la_sampler *sampler, const int32_t *tokens, int32_t n, int is_reply) LA_NOEXCEPT;
int la_sample(la_context *context, int32_t row, la_sampler *sampler, uint64_t index, int32_t *token) LA_NOEXCEPT;
/* The same from n_vocab logits of the caller's, changed meanwhile and as before afterwards. */
int la_sample_from(la_sampler *sampler, float *logits, uint64_t index, int32_t *token) LA_NOEXCEPT;
/* Natural logarithms of the probabilities that n_vocab logits mean at temperature 1: of one token,
 * and of the n likeliest tokens, likeliest first. */
int la_logprobs(const la_model *model, const float *logits, int32_t token, int32_t n, double *of_token,
                int32_t *tokens, double *of_tokens) LA_NOEXCEPT;

/* --- chat ---------------------------------------------------------------------------------- */
/* What llama.cpp's common/ knows of a chat template. Any thread may use one of these; each only one at a time. */
typedef struct la_chat la_chat;
/* How replies to one kind of request are read: with these tools, this choice among them. */
typedef struct la_chat_reader la_chat_reader;

int la_chat_new(const char *source, const char *bos, const char *eos, la_chat **out) LA_NOEXCEPT;
void la_chat_free(la_chat *chat) LA_NOEXCEPT;
/* request: JSON with messages, tools, tool_choice (auto, none, required), parallel_tool_calls (absent: as the template can), enable_thinking,
 * add_generation_prompt, continue_final_message, kwargs. Messages and tools as OpenAI's API has them. */
int la_chat_reader_new(const la_chat *chat, const char *request, size_t length, la_chat_reader **out) LA_NOEXCEPT;
void la_chat_reader_free(la_chat_reader *reader) LA_NOEXCEPT;
/* JSON, which lives as long as the reader. */
const char *la_chat_reader_facts(const la_chat_reader *reader, size_t *length) LA_NOEXCEPT;
/* Reads the bytes of a reply, or of its beginning. *out is msgpack: an array of
 * [status (0 failed, 1 whole, 2 more may follow), end, reasoning, content, [[id, name, arguments], ...],
 * [[tag (0 reasoning, 1 content, 2 tool call), start, end], ...]]; positions count from the reply's first byte. */
int la_chat_read(const la_chat_reader *reader, const char *text, size_t length, int is_partial, uint8_t **out,
                 size_t *n_out) LA_NOEXCEPT;
void la_bytes_free(uint8_t *bytes) LA_NOEXCEPT;

/* --- adapter ------------------------------------------------------------------------------- */
/* Read a LoRA adapter of this model. The caller has checked the file: llama.cpp asserts on metadata
 * of the wrong type and on tensors of the wrong shape. Free it before the model, applied to nothing. */
int la_adapter_load(la_model *model, const char *path, la_adapter **out) LA_NOEXCEPT;
void la_adapter_free(la_adapter *adapter) LA_NOEXCEPT;
/* Apply exactly these from the next decode on; a scale of 0 applies nothing. KV computed before is
 * of other weights: the memory must be empty. */
int la_adapters_apply(la_context *context, int32_t n, la_adapter *const *adapters,
                      const float *scales) LA_NOEXCEPT;

/* Add to what layers first to last compute, from the next decode on: data has n_embd floats for each
 * layer from 1 to n_layer - 1. The memory must be empty. prove: LA_ADAPTER when it changes no logits,
 * and then nothing is added. */
int la_control_vector_apply(la_context *context, const float *data, size_t n, int32_t n_embd, int32_t first,
                            int32_t last, int prove) LA_NOEXCEPT;

/* --- embedder ------------------------------------------------------------------------------ */
typedef struct la_embedder_wishes {
    uint32_t n_tokens;      /* the longest text */
    int32_t n_threads;
    int32_t pooling;        /* llama_pooling_type; -1: the model's own */
    int flash_attn;
    int offload_kqv;
    la_rope rope;
    volatile int32_t *abort_flag;  /* outlives the embedder; not 0: aborts a running call */
} la_embedder_wishes;

/* A small context of its own. Another thread may use another context of the same model meanwhile. */
int la_embedder_new(const la_model *model, const la_embedder_wishes *wishes, la_embedder **out) LA_NOEXCEPT;
void la_embedder_free(la_embedder *embedder) LA_NOEXCEPT;
/* Read one text and write its embeddings: one of n_embd_out floats, or one for each token when the
 * pooling is none; n_cls_out scores when it is rank, which the caller has checked the model can. */
int la_embed(la_embedder *embedder, int32_t n, const int32_t *tokens, float *out, size_t capacity) LA_NOEXCEPT;

/* cdef end */
#ifdef __cplusplus
}
#endif
#endif
