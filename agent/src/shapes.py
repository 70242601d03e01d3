"""Names of shapes that have no class."""

from __future__ import annotations

from typing import Any

from .book import Book

MaybeNone = Any  # None only at times when nobody asks
Deployment = dict[str, Any]  # an entry of Router.model_list
Data = dict[str, Any]  # what a client sent, or what LiteLLM made of it
Body = tuple[float, Data, str]  # when it came to the proxy's door, what counts of it (ASKED), call type
Policy = dict[str, Any]  # the JSON of docs/protocol.md
Answer = list[Any]  # of the ledger for one book: state, grant, share, pool, budget, safe
Node = tuple[str, int]
Needs = list["tuple[Book, float]"]
Row = list[dict[str, Any]]  # deployment, original {tpm, rpm}, last written {tpm, rpm}
