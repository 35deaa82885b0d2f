"""How to load a model: every option, checked on construction, then frozen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from native import _checks
from native.errors import InvalidParam
from native.overrides import (
    MetadataOverride,
    TensorOverride,
    expert_overrides,
    metadata_overrides,
    tensor_overrides,
)

KV_TYPES = ("f16", "f32", "bf16", "q4_0", "q5_0", "q5_1", "q8_0")
"""KV cache types that llama.cpp can write rows of (ggml type names)."""

SPLIT_MODES = ("none", "layer", "row")
"""How a model is spread over several GPUs."""

ROPE_SCALINGS = ("model", "none", "linear", "yarn", "longrope")
"""Position scaling; ``model`` means: that of the model file."""

POOLINGS = ("model", "none", "mean", "cls", "last")
"""How the vectors of a text's tokens become one; ``model``: that of the model file."""

MAX_SEQUENCES = 255
"""llama.cpp allows 256 (LLAMA_MAX_SEQ); one of them is the scratch sequence."""

ALL_LAYERS = -1
MAX_CTX = 1 << 24
_MAX_DEVICES = 16  # of llama.cpp
_MAX_ADAPTERS = 64
_MAX_LAYERS = 512  # of llama.cpp
_MAX_SCALE = 1000.0
_BIG = 1e12

Adapter = tuple[str, float]
"""Path of a LoRA adapter or of a control vector, and its scale."""


@dataclass(frozen=True, slots=True)
class ModelParams:
    """How to load a model. Counts are tokens unless noted otherwise.

    ``n_ctx`` is the pool of KV cells all sequences share (llama.cpp rounds it up to 256); 0 means
    the length the model was trained with, or less if memory is short. ``n_ubatch``, rows computed
    at once, is capped at ``n_batch``; both are raised to what a step of all sequences needs.
    ``n_seq_max`` counts usable sequences, the backend adds one scratch sequence itself.
    ``n_threads`` None means: physical cores this process may use;
    ``n_threads_batch``, for prompts, None means: the same.

    ``n_gpu_layers`` negative means all that there are; without a GPU it does nothing. ``main_gpu``
    counts when ``split_mode`` is ``none``; ``tensor_split`` gives shares per GPU, empty: by free
    memory.

    Rope and YaRN values of None are the model's own. ``vocab_only`` loads no weights: the model
    tokenises and does nothing else. ``lora`` lists adapters to apply from the start.
    ``control_vectors`` lists files whose vectors, times their scales, are added to what the layers
    compute, in ``control_vector_layers`` (first and last, from 1) or in all that they have.

    ``override_tensors`` places tensors, ``PATTERN=BUFFER``, the first pattern that fits counts;
    ``cpu_moe`` keeps all expert weights on the CPU, ``n_cpu_moe`` those of so many first layers.
    ``override_kv`` replaces metadata of the file, ``KEY=TYPE:VALUE``.

    ``draft_path`` names a small model of the same vocabulary, for speculation; adapters, control
    vectors and overrides do not hold for it. ``embed_tokens`` is the longest text that can be
    embedded, ``pooling`` how its vectors become one.
    ``check_memory`` False loads even what is estimated not to fit.
    """

    n_ctx: int = 4096
    n_batch: int = 512
    n_ubatch: int = 512
    n_seq_max: int = 8
    n_threads: int | None = None
    n_threads_batch: int | None = None
    n_gpu_layers: int = ALL_LAYERS
    main_gpu: int = 0
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: bool = True
    use_mmap: bool = True
    use_mlock: bool = False
    rope_scaling: str = "model"
    rope_freq_base: float | None = None
    rope_freq_scale: float | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    yarn_orig_ctx: int | None = None
    vocab_only: bool = False
    lora: tuple[Adapter, ...] = ()
    control_vectors: tuple[Adapter, ...] = ()
    control_vector_layers: tuple[int, int] | None = None
    override_tensors: tuple[str, ...] = ()
    n_cpu_moe: int = 0
    cpu_moe: bool = False
    override_kv: tuple[str, ...] = ()
    draft_path: str | None = None
    embed_tokens: int = 2048
    pooling: str = "model"
    check_memory: bool = True

    def __post_init__(self) -> None:
        _checks.whole("n_ctx", self.n_ctx, 0, MAX_CTX)
        _checks.whole("n_batch", self.n_batch, 1, MAX_CTX)
        _checks.whole("n_ubatch", self.n_ubatch, 1, MAX_CTX)
        _checks.whole("n_seq_max", self.n_seq_max, 1, MAX_SEQUENCES)
        _checks.whole("embed_tokens", self.embed_tokens, 1, MAX_CTX)
        for name in ("n_threads", "n_threads_batch"):
            if getattr(self, name) is not None:
                _checks.whole(name, getattr(self, name), 1, 512)  # GGML_MAX_N_THREADS; more aborts
        for name in ("type_k", "type_v"):
            _checks.one_of(name, getattr(self, name), KV_TYPES)
        for name in (
            "flash_attn",
            "use_mmap",
            "use_mlock",
            "vocab_only",
            "check_memory",
            "cpu_moe",
        ):
            _checks.flag(name, getattr(self, name))
        if not self.flash_attn and self.type_v not in {"f16", "f32", "bf16"}:
            raise InvalidParam("type_v", self.type_v, "quantised values need flash_attn=True")
        _checks.one_of("pooling", self.pooling, POOLINGS)
        self._check_devices()
        self._check_rope()
        object.__setattr__(self, "lora", _adapters("lora", self.lora))
        self._check_control_vectors()
        self._check_overrides()
        if self.draft_path is not None:
            _checks.path("draft_path", self.draft_path)
        if self.vocab_only and self.lora:
            raise InvalidParam("lora", self.lora, "no adapters with vocab_only=True")

    def _check_control_vectors(self) -> None:
        given = _adapters("control_vectors", self.control_vectors)
        object.__setattr__(self, "control_vectors", given)
        if self.vocab_only and given:
            raise InvalidParam("control_vectors", given, "none with vocab_only=True")
        layers: Any = self.control_vector_layers
        if layers is None:
            return
        if not isinstance(layers, list | tuple) or len(layers) != 2:
            wanted = "two numbers of layers, the first and the last, counted from 1"
            raise InvalidParam("control_vector_layers", layers, wanted)
        for layer in layers:
            _checks.whole("control_vector_layers", layer, 1, _MAX_LAYERS)
        if layers[0] > layers[1]:
            raise InvalidParam("control_vector_layers", layers, "the first, then the last")
        if not given:
            wanted = "control_vectors beside it: without them it does nothing"
            raise InvalidParam("control_vector_layers", layers, wanted)
        object.__setattr__(self, "control_vector_layers", tuple(layers))

    def _check_overrides(self) -> None:
        _checks.whole("n_cpu_moe", self.n_cpu_moe, 0, _MAX_LAYERS)
        for name, read in (
            ("override_tensors", tensor_overrides),
            ("override_kv", metadata_overrides),
        ):
            texts = tuple(str(one) for one in read(name, getattr(self, name)))
            object.__setattr__(self, name, texts)

    def _check_devices(self) -> None:
        _checks.whole("n_gpu_layers", self.n_gpu_layers, -100_000, 100_000)
        object.__setattr__(self, "n_gpu_layers", max(ALL_LAYERS, self.n_gpu_layers))
        _checks.whole("main_gpu", self.main_gpu, 0, _MAX_DEVICES - 1)
        _checks.one_of("split_mode", self.split_mode, SPLIT_MODES)
        shares: Any = self.tensor_split
        if not isinstance(shares, list | tuple) or len(shares) > _MAX_DEVICES:
            raise InvalidParam("tensor_split", shares, f"at most {_MAX_DEVICES} numbers")
        for share in shares:
            _checks.real("tensor_split", share, 0.0, _BIG)
        if shares and not any(shares):
            raise InvalidParam("tensor_split", shares, "at least one number above 0")
        # Lists come from TOML and JSON.
        object.__setattr__(self, "tensor_split", tuple(float(share) for share in shares))

    def _check_rope(self) -> None:
        _checks.one_of("rope_scaling", self.rope_scaling, ROPE_SCALINGS)
        for name in ("rope_freq_base", "rope_freq_scale"):
            if getattr(self, name) is not None:
                _checks.real(name, getattr(self, name), 0.0, _BIG, above=True)
        for name in ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"):
            if getattr(self, name) is not None:
                _checks.real(name, getattr(self, name), 0.0, _BIG)
        if self.yarn_orig_ctx is not None:
            _checks.whole("yarn_orig_ctx", self.yarn_orig_ctx, 1, MAX_CTX)

    @property
    def rope_overrides(self) -> tuple[tuple[str, str], ...]:
        """The values that are not the model's own, as text; all of them change the KV."""
        given = [] if self.rope_scaling == "model" else [("rope_scaling", self.rope_scaling)]
        for name in _ROPE_NUMBERS:
            value = getattr(self, name)
            if value is not None:
                given.append((name, repr(value if name == "yarn_orig_ctx" else float(value))))
        return tuple(given)

    @property
    def tensor_overrides(self) -> tuple[TensorOverride, ...]:
        """Where tensors go, in order of precedence: what is named first, then the experts."""
        experts = expert_overrides(self.n_cpu_moe, cpu_moe=self.cpu_moe)
        return (*tensor_overrides("override_tensors", self.override_tensors), *experts)

    @property
    def metadata_overrides(self) -> tuple[MetadataOverride, ...]:
        """What replaces the file's own metadata."""
        return metadata_overrides("override_kv", self.override_kv)

    def for_draft(self) -> ModelParams:
        """Those of the draft model: without what is made for this model alone."""
        return replace(
            self,
            draft_path=None,
            lora=(),
            control_vectors=(),
            control_vector_layers=None,
            override_tensors=(),
            n_cpu_moe=0,
            cpu_moe=False,
            override_kv=(),
        )

    def with_n_ctx(self, n_ctx: int) -> ModelParams:
        """The same with another context size."""
        return replace(self, n_ctx=n_ctx)


_ROPE_NUMBERS = (
    "rope_freq_base",
    "rope_freq_scale",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_orig_ctx",
)


def check_scale(scale: object, name: str = "scale") -> None:
    """Refuse a scale that no adapter can have. 0 applies nothing."""
    _checks.real(name, scale, -_MAX_SCALE, _MAX_SCALE)


def _adapters(name: str, given: Any) -> tuple[Adapter, ...]:
    """Paths, or pairs of path and scale, in the one form."""
    wanted = "a list of paths, or of pairs (path, scale)"
    if not isinstance(given, list | tuple) or len(given) > _MAX_ADAPTERS:
        raise InvalidParam(name, given, f"{wanted}, at most {_MAX_ADAPTERS}")
    adapters: list[Adapter] = []
    for entry in given:
        where, scale = (entry, 1.0) if isinstance(entry, str) else _pair(name, entry, wanted)
        _checks.path(name, where)
        check_scale(scale, name)
        adapters.append((where, float(scale)))
    return tuple(adapters)


def _pair(name: str, entry: Any, wanted: str) -> tuple[Any, Any]:
    if not isinstance(entry, list | tuple) or len(entry) != 2:
        raise InvalidParam(name, entry, wanted)
    return entry[0], entry[1]
