"""What the arguments of LiteLLM's hooks and events say of a call: the adapter's part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .shapes import Data

# LITTELM_INTERNAL_HEALTH_SERVICE_ACCOUNT_NAME in LiteLLM's constants.py (1.82.6 to 1.106.2)
HEALTH_CHECK = "litellm-internal-health-check"


def metadata_of(kwargs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All that came with a call, in whichever place its route has it. A client's may be of any type."""
    params = kwargs.get("litellm_params") or {}
    for found in (params.get("metadata"), params.get("litellm_metadata"), kwargs.get("metadata")):
        if isinstance(found, dict):
            yield found


def tokens_of_passed(kwargs: Data, logged: Mapping[str, Any]) -> int:
    """What a provider's answer to a pass-through route says that it used; 0 if that can't be read."""
    body = (kwargs.get("passthrough_logging_payload") or {}).get("response_body")
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return int(logged.get("total_tokens") or 0)
    parts = (usage.get("input_tokens") or 0) + (usage.get("output_tokens") or 0)
    return int(usage.get("total_tokens") or parts)


def original_id(kwargs: Data) -> str:
    """The deployment that a call with a client's own key was routed by: LiteLLM makes another of it
    (Router._handle_clientside_credential)."""
    params = kwargs.get("litellm_params") or {}
    for place in (params, params.get("metadata") or {}, params.get("litellm_metadata") or {}):
        found = (place.get("model_info") or {}).get("original_model_id")
        if found:
            return str(found)
    return ""


def is_of_an_earlier_attempt(kwargs: Mapping[str, Any]) -> bool:
    """Whether the usage may be what a stream had come to when it broke: LiteLLM tells that of the attempt
    after it, too (Logging._record_partial_usage_for_failure, from 1.92 on)."""
    return kwargs.get("combined_usage_object") is not None


def is_health_check(kwargs: Mapping[str, Any]) -> bool:
    """Whether LiteLLM asks a deployment for its health: past the router (litellm.ahealth_check)."""
    tags = [metadata.get("tags") for metadata in metadata_of(kwargs)]
    return any(isinstance(some, (list, tuple)) and HEALTH_CHECK in some for some in tags)


def same_call(call: Any, data: Mapping[str, Any]) -> bool:
    """Whether these arguments of a hook are of the call that LiteLLM made this object for: some hooks get it,
    some its `model_call_details`."""
    other = data.get("litellm_logging_obj")
    return getattr(call, "model_call_details", data) is data if other is None else other is call


def stream_began(data: Mapping[str, Any]) -> bool:
    """Whether a part of the answer came: then the provider has counted the call, whatever it says now."""
    details = getattr(data.get("litellm_logging_obj"), "model_call_details", data)
    return bool(details.get("completion_start_time") or details.get("combined_usage_object"))
