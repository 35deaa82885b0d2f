"""The kind of a GGUF file, by its header: a model, or a file that is used with one.

All share one format and are easily mixed up. llama.cpp's error names a missing tensor or key then;
the error from here names the kind of file, and how to use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from native.errors import NotAModel
from native.gguf_header import GgufSummary


class FileKind(Enum):
    """The kinds that are distinguished; a file of no other kind counts as a model."""

    MODEL = "a model"
    ADAPTER = "a LoRA adapter"
    PROJECTOR = "a multimodal projector (mmproj)"
    IMATRIX = "an importance matrix (imatrix)"
    CONTROL_VECTOR = "a control vector"
    VOCABULARY = "only a vocabulary, without weights"


_TYPES = {
    "adapter": FileKind.ADAPTER,
    "mmproj": FileKind.PROJECTOR,
    "clip-vision": FileKind.PROJECTOR,
    "imatrix": FileKind.IMATRIX,
}
_ARCHITECTURES = {
    "clip": FileKind.PROJECTOR,
    "imatrix": FileKind.IMATRIX,
    "controlvector": FileKind.CONTROL_VECTOR,
}
_PREFIXES = {
    "adapter.": FileKind.ADAPTER,
    "clip.": FileKind.PROJECTOR,
    "imatrix.": FileKind.IMATRIX,
    "controlvector.": FileKind.CONTROL_VECTOR,
}
_LORA = (".lora_a", ".lora_b", "_norm.weight")
_WHAT_TO_DO = {
    FileKind.ADAPTER: (
        "load the model that it was made for, and this with it: lora=[[PATH, 1.0]], --lora PATH, "
        "or load_adapter() while the model runs"
    ),
    FileKind.PROJECTOR: (
        "load the model that it belongs to, without it: images and audio are not supported yet"
    ),
    FileKind.IMATRIX: (
        "it holds statistics for quantising a model; load the model that was made with it"
    ),
    FileKind.CONTROL_VECTOR: (
        "load the model that it was made for, and this with it: control_vectors=[[PATH, 1.0]], "
        "or --control-vector PATH"
    ),
    FileKind.VOCABULARY: "load it with vocab_only=True (--vocab-only) to tokenise",
}


def kind_of(files: Sequence[GgufSummary]) -> FileKind:
    """The kind of a file, given the headers of all its splits."""
    first = files[0]
    named = _TYPES.get(str(first.metadata.get("general.type", "")))
    named = named or _ARCHITECTURES.get(first.architecture)
    if named is not None:
        return named
    if not first.architecture:
        for prefix, kind in _PREFIXES.items():
            if any(key.startswith(prefix) for key in first.kinds):
                return kind
    if first.tensors and all(name.endswith(_LORA) for name in first.tensors):
        return FileKind.ADAPTER
    if any(key.startswith("tokenizer.ggml.") for key in first.kinds) and not any(
        one.n_tensors for one in files
    ):
        return FileKind.VOCABULARY
    return FileKind.MODEL


def require_model(files: Sequence[GgufSummary], *, vocab_only: bool = False) -> None:
    """``NotAModel`` if the file, given as a model, is of another kind."""
    kind = kind_of(files)
    if kind is FileKind.MODEL or (kind is FileKind.VOCABULARY and vocab_only):
        return
    raise NotAModel(files[0].path, kind.value, _WHAT_TO_DO[kind])


def why_no_adapter(file: GgufSummary) -> str:
    """Why a file that was given as an adapter is none; empty if it may be one."""
    kind = kind_of([file])
    if kind is FileKind.ADAPTER:
        return ""
    if kind is FileKind.MODEL:
        return "it is a model, not an adapter: load it as one, with an id of its own"
    return f"it is {kind.value}, not an adapter"


def why_no_control_vector(file: GgufSummary) -> str:
    """Why a file that was given as a control vector is none; empty if it may be one."""
    kind = kind_of([file])
    if kind is FileKind.CONTROL_VECTOR:
        return ""
    return f"it is {kind.value}, not a control vector"
