"""The protocol, one file per conversation: requests are imperatives, replies are facts.

Every message is small (64 KiB at most): KV bytes stay in shared memory or files, and a payload
that may be big travels as a :class:`~actors.messages.payload.Payload`. A request carries ``ref``, a
string that its sender chose; whatever answers it carries the same ``ref``.

Each conversation is imported when one of its messages is first named here: a command needs few.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from actors.messages.adapters import (
        AdapterNotChanged,
        AdaptersChanged,
        AdaptersInUse,
        AdaptersListed,
        AdapterStatus,
        ListAdapters,
        LoadAdapter,
        SetAdapterScale,
        UnloadAdapter,
    )
    from actors.messages.cache import (
        BytesEvicted,
        CopyFailed,
        CopyRow,
        DescribeTier,
        DropFiles,
        EvictBytes,
        FilesDropped,
        ForgetLive,
        ListNamespaces,
        ListRows,
        LookupPrefix,
        NamespacesListed,
        NoMoreCopies,
        PersistNow,
        PersistState,
        PrefetchEnded,
        PrefetchPrefix,
        PrefixResolved,
        PromoteRows,
        QuarantineFile,
        ReadAhead,
        ReleaseLease,
        Removal,
        RemoveRows,
        ReserveRows,
        ResolveParent,
        RowCopied,
        RowRejected,
        RowsFound,
        RowShown,
        RowsListed,
        RowsPromoted,
        RowsRemoved,
        RowsReserved,
        RowsWritten,
        RowWanted,
        ShowRow,
        StoredRow,
        TierChanged,
        TierDescribed,
        WatchTier,
        WriterStops,
        WriteTails,
    )
    from actors.messages.completion import (
        Accepted,
        CacheReport,
        CallerGone,
        Cancel,
        CancelRun,
        Complete,
        Completed,
        CompletionFailed,
        Divergence,
        Grammar,
        HitKind,
        PrefillProgress,
        Priority,
        Queued,
        RequestEnded,
        Resumed,
        Run,
        SpanEnded,
        Speculation,
        StillRunning,
        Submit,
        Timings,
        TokensDelivered,
        ToolCallDelivered,
        Usage,
    )
    from actors.messages.control import (
        EndSession,
        EvictLive,
        ListSessions,
        LiveEvicted,
        MatchPrefix,
        PrefixMatched,
        SessionEnded,
        SessionsListed,
        SessionStatus,
    )
    from actors.messages.embedding import (
        Embed,
        Embedded,
        EmbeddingPage,
        EmbedFailed,
        NoVram,
        ReportVram,
        Rerank,
        Reranked,
        VramReported,
    )
    from actors.messages.exact import Exact
    from actors.messages.finish_reasons import FailReason, FailureFacts, FinishReason, Limit
    from actors.messages.loading import (
        Drain,
        Drained,
        ListWantedModels,
        LoadFailure,
        LoadModel,
        ModelLoaded,
        ModelLoading,
        ModelNotLoaded,
        ModelUnloaded,
        UnloadModel,
        WantedModelsListed,
    )
    from actors.messages.pressure import (
        CheckPressure,
        PressureChecked,
        PressureRefused,
        PressureSet,
        SetPressure,
    )
    from actors.messages.prompts import (
        Continuation,
        ConversationPrompt,
        InfillPrompt,
        Prompt,
        TextPrompt,
        TokenPrompt,
        payload_of,
        with_payload,
    )
    from actors.messages.questions import Answer, Ask
    from actors.messages.replay import NoteReply, ResolveText, TextResolved
    from actors.messages.residency import (
        HoldModel,
        KeepAliveSet,
        KnownModel,
        ListModels,
        ListModelUse,
        ModelAwaited,
        ModelHeld,
        ModelsListed,
        ModelState,
        ModelUse,
        ModelUseListed,
        NeedModel,
        ReleaseModel,
        SetKeepAlive,
    )
    from actors.messages.speculation import Verified, Verify, draft_tokens
    from actors.messages.text import (
        ApplyChatTemplate,
        ChatPart,
        ChatTemplateApplied,
        Detokenize,
        Detokenized,
        TextRefused,
        ThinkingVerified,
        Tokenize,
        Tokenized,
        VerifyThinking,
    )
    from actors.messages.text_kind import TextKind

__all__ = [
    "Accepted",
    "AdapterNotChanged",
    "AdapterStatus",
    "AdaptersChanged",
    "AdaptersInUse",
    "AdaptersListed",
    "Answer",
    "ApplyChatTemplate",
    "Ask",
    "BytesEvicted",
    "CacheReport",
    "CallerGone",
    "Cancel",
    "CancelRun",
    "ChatPart",
    "ChatTemplateApplied",
    "CheckPressure",
    "Complete",
    "Completed",
    "CompletionFailed",
    "Continuation",
    "ConversationPrompt",
    "CopyFailed",
    "CopyRow",
    "DescribeTier",
    "Detokenize",
    "Detokenized",
    "Divergence",
    "Drain",
    "Drained",
    "DropFiles",
    "Embed",
    "EmbedFailed",
    "Embedded",
    "EmbeddingPage",
    "EndSession",
    "EvictBytes",
    "EvictLive",
    "Exact",
    "FailReason",
    "FailureFacts",
    "FilesDropped",
    "FinishReason",
    "ForgetLive",
    "Grammar",
    "HitKind",
    "HoldModel",
    "InfillPrompt",
    "KeepAliveSet",
    "KnownModel",
    "Limit",
    "ListAdapters",
    "ListModelUse",
    "ListModels",
    "ListNamespaces",
    "ListRows",
    "ListSessions",
    "ListWantedModels",
    "LiveEvicted",
    "LoadAdapter",
    "LoadFailure",
    "LoadModel",
    "LookupPrefix",
    "MatchPrefix",
    "ModelAwaited",
    "ModelHeld",
    "ModelLoaded",
    "ModelLoading",
    "ModelNotLoaded",
    "ModelState",
    "ModelUnloaded",
    "ModelUse",
    "ModelUseListed",
    "ModelsListed",
    "NamespacesListed",
    "NeedModel",
    "NoMoreCopies",
    "NoVram",
    "NoteReply",
    "PersistNow",
    "PersistState",
    "PrefetchEnded",
    "PrefetchPrefix",
    "PrefillProgress",
    "PrefixMatched",
    "PrefixResolved",
    "PressureChecked",
    "PressureRefused",
    "PressureSet",
    "Priority",
    "PromoteRows",
    "Prompt",
    "QuarantineFile",
    "Queued",
    "ReadAhead",
    "ReleaseLease",
    "ReleaseModel",
    "Removal",
    "RemoveRows",
    "ReportVram",
    "RequestEnded",
    "Rerank",
    "Reranked",
    "ReserveRows",
    "ResolveParent",
    "ResolveText",
    "Resumed",
    "RowCopied",
    "RowRejected",
    "RowShown",
    "RowWanted",
    "RowsFound",
    "RowsListed",
    "RowsPromoted",
    "RowsRemoved",
    "RowsReserved",
    "RowsWritten",
    "Run",
    "SessionEnded",
    "SessionStatus",
    "SessionsListed",
    "SetAdapterScale",
    "SetKeepAlive",
    "SetPressure",
    "ShowRow",
    "SpanEnded",
    "Speculation",
    "StillRunning",
    "StoredRow",
    "Submit",
    "TextKind",
    "TextPrompt",
    "TextRefused",
    "TextResolved",
    "ThinkingVerified",
    "TierChanged",
    "TierDescribed",
    "Timings",
    "TokenPrompt",
    "Tokenize",
    "Tokenized",
    "TokensDelivered",
    "ToolCallDelivered",
    "UnloadAdapter",
    "UnloadModel",
    "Usage",
    "Verified",
    "Verify",
    "VerifyThinking",
    "VramReported",
    "WantedModelsListed",
    "WatchTier",
    "WriteTails",
    "WriterStops",
    "draft_tokens",
    "payload_of",
    "with_payload",
]

_HOMES: Final = {
    name: f"actors.messages.{module}"
    for module, names in {
        "adapters": (
            "AdapterNotChanged AdaptersChanged AdaptersInUse AdaptersListed AdapterStatus "
            "ListAdapters LoadAdapter SetAdapterScale UnloadAdapter"
        ),
        "cache": (
            "BytesEvicted CopyFailed CopyRow DescribeTier DropFiles EvictBytes FilesDropped "
            "ForgetLive ListNamespaces ListRows LookupPrefix NamespacesListed NoMoreCopies "
            "PersistNow PersistState PrefetchEnded PrefetchPrefix PrefixResolved PromoteRows "
            "QuarantineFile ReadAhead ReleaseLease Removal RemoveRows ReserveRows ResolveParent "
            "RowCopied RowRejected RowsFound RowShown RowsListed RowsPromoted RowsRemoved "
            "RowsReserved RowsWritten RowWanted ShowRow StoredRow TierChanged TierDescribed "
            "WatchTier WriterStops WriteTails"
        ),
        "completion": (
            "Accepted CacheReport CallerGone Cancel CancelRun Complete Completed "
            "CompletionFailed Divergence Grammar HitKind PrefillProgress Priority Queued "
            "RequestEnded Resumed Run SpanEnded Speculation StillRunning Submit Timings "
            "TokensDelivered ToolCallDelivered Usage"
        ),
        "embedding": (
            "Embed Embedded EmbeddingPage EmbedFailed NoVram ReportVram Rerank Reranked "
            "VramReported"
        ),
        "exact": "Exact",
        "finish_reasons": "FailReason FailureFacts FinishReason Limit",
        "loading": (
            "Drain Drained ListWantedModels LoadFailure LoadModel ModelLoaded ModelLoading "
            "ModelNotLoaded ModelUnloaded UnloadModel WantedModelsListed"
        ),
        "pressure": "CheckPressure PressureChecked PressureRefused PressureSet SetPressure",
        "prompts": (
            "Continuation ConversationPrompt InfillPrompt Prompt TextPrompt TokenPrompt payload_of "
            "with_payload"
        ),
        "questions": "Answer Ask",
        "replay": "NoteReply ResolveText TextResolved",
        "residency": (
            "HoldModel KeepAliveSet KnownModel ListModels ListModelUse ModelAwaited ModelHeld "
            "ModelsListed ModelState ModelUse ModelUseListed NeedModel ReleaseModel SetKeepAlive"
        ),
        "speculation": "Verified Verify draft_tokens",
        "control": (
            "EndSession EvictLive ListSessions LiveEvicted MatchPrefix PrefixMatched SessionEnded "
            "SessionsListed SessionStatus"
        ),
        "text": (
            "ApplyChatTemplate ChatPart ChatTemplateApplied Detokenize Detokenized TextRefused "
            "ThinkingVerified Tokenize Tokenized VerifyThinking"
        ),
        "text_kind": "TextKind",
    }.items()
    for name in names.split()
}
"""Where each message is defined."""


if not TYPE_CHECKING:  # a type checker has the names from the imports above, and refuses others

    def __getattr__(name: str) -> Any:
        """A message, when it is first used."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(home), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


def preload() -> None:
    """Import every message: for a process that forks others, which then share the memory."""
    for name, module in _HOMES.items():
        globals()[name] = getattr(importlib.import_module(module), name)
