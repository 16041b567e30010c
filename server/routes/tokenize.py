"""``POST /tokenize`` and ``POST /detokenize``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ladle.server.fields.token_ids import require_known
from ladle.server.http.json_request import JsonRoute
from ladle.server.native.tokenize_requests import DetokenizeRequest, TokenizeRequest
from ladle.server.prompts import tokens_of_chat, tokens_of_text
from ladle.server.replies.reply_types import Detokenized, Tokenized
from ladle.server.routes import answers, reader_of, serving_of, state_of

_FEW = 1000  # tokens that are looked up on the event loop: the hand-over would cost more

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/tokenize",
    summary="Text or messages to token ids",
    responses=answers(Tokenized, 400, 401, 404, 413, 415, 429, 503),
    response_model=None,
)
async def tokenize(body: TokenizeRequest, request: Request) -> JSONResponse:
    """The tokens that a generating endpoint would make of it. Nothing is generated."""
    serving = serving_of(request, body.model)
    reader = reader_of(request, generates=False)
    if body.messages is not None:
        form = body.chat_form(state_of(request).settings.special_tokens_in_messages)
        tools = [tool.definition() for tool in body.tools or ()]
        ids = await tokens_of_chat(serving, reader, body.messages, tools, form)
    else:
        assert body.prompt is not None, "the schema has checked it"
        ids = await tokens_of_text(serving, reader, body.prompt, body.add_special_tokens is not False)

    def response() -> JSONResponse:
        reply: Tokenized = {
            "count": len(ids),
            "max_model_len": serving.engine.max_context,
            "tokens": list(ids),
            "token_strs": [serving.tokens.text(token) for token in ids] if body.return_token_strs else None,
        }
        return JSONResponse(reply)

    return response() if len(ids) <= _FEW else await reader.aside(response)


@router.post(
    "/detokenize",
    summary="Token ids to text",
    responses=answers(Detokenized, 400, 401, 404, 413, 415, 429, 503),
    response_model=None,
)
async def detokenize(body: DetokenizeRequest, request: Request) -> JSONResponse:
    """Special tokens by their names, unless they are to be skipped."""
    serving = serving_of(request, body.model)

    def response() -> JSONResponse:
        require_known(body.tokens, serving.vocabulary, "tokens")
        skipped = bool(body.skip_special_tokens)
        # A batch of one: unlike a single decode it lets other threads run meanwhile.
        decode = serving.engine.tokenizer.backend_tokenizer.decode_batch
        reply: Detokenized = {"prompt": decode([list(body.tokens)], skip_special_tokens=skipped)[0]}
        return JSONResponse(reply)

    few = len(body.tokens) <= _FEW
    return response() if few else await reader_of(request, generates=False).aside(response)
