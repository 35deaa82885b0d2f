"""Write the trained network and its tokenizer as one GGUF file, and read its weights back."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer

from examples.train_demo_model.chat_template import CHAT_TEMPLATE
from examples.train_demo_model.model import NORM_EPS, Storyteller
from examples.train_demo_model.tokenizer import SPECIALS, pieces

Q8, F16, F32 = (
    gguf.GGMLQuantizationType.Q8_0,
    gguf.GGMLQuantizationType.F16,
    gguf.GGMLQuantizationType.F32,
)
FILE_TYPES = {
    Q8: gguf.LlamaFileType.MOSTLY_Q8_0,
    F16: gguf.LlamaFileType.MOSTLY_F16,
    F32: gguf.LlamaFileType.ALL_F32,
}


def write_gguf(
    path: Path,
    model: Storyteller,
    tokenizer: Tokenizer,
    kind: gguf.GGMLQuantizationType = Q8,
) -> None:
    """Write to ``path``: matrices as ``kind``, norms as F32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, model, kind)
    _add_tokenizer(writer, tokenizer)
    for name, tensor in model.state_dict().items():
        array = np.ascontiguousarray(tensor.detach().float().numpy())
        stored = F32 if array.ndim < 2 else kind
        writer.add_tensor(name, gguf.quants.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that ``write_gguf`` wrote, as float32, by name."""
    return {
        one.name: torch.from_numpy(np.array(gguf.quants.dequantize(one.data, one.tensor_type)))
        for one in gguf.GGUFReader(path).tensors
    }


def _describe(writer: gguf.GGUFWriter, model: Storyteller, kind: gguf.GGMLQuantizationType) -> None:
    shape = model.shape
    writer.add_name("llama-actors demo storyteller")
    writer.add_license("MIT")
    writer.add_description("Tells short stories; trained by this project on text it generates.")
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocab)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    parts = pieces(tokenizer)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(parts.tokens)
    writer.add_token_types([control if t in SPECIALS else normal for t in parts.tokens])
    writer.add_token_merges(parts.merges)
    writer.add_bos_token_id(parts.bos)
    writer.add_eos_token_id(parts.eos)
    writer.add_eot_token_id(parts.end)
    writer.add_pad_token_id(parts.eos)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
