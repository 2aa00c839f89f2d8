"""`python -m rerankd.launch_server`: SGLang's command line."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from rerankd.cli import door, options
from rerankd.cli.options import BackendName, DialectName, HubName, LogFormatName, LogLevel
from rerankd.cli.start import MEDIA, Launch, Media, TracesTo, start
from rerankd.compat.peers import SGLANG
from rerankd.compat.variables import SGLANG_VARIABLES
from rerankd.limits import RequestLimits
from rerankd.media.limits import Limits


def launch_server(
    ctx: typer.Context,
    model_path: Annotated[
        str | None,
        typer.Option(
            "--model-path",
            "--model",
            help="A folder, or an id on the hub. [default: the embedded model where its package is installed]",
        ),
    ] = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 30000,
    served_model_name: options.Names = None,
    dialect: options.DialectFlag = DialectName.sglang,
    max_body_mb: options.MaxBody = 64.0,
    max_bodies_mb: options.MaxBodies = 256.0,
    body_timeout: options.BodyTimeout = 60.0,
    max_request_values: options.MaxValues = options.LIMITS.values,
    max_request_documents: options.MaxDocuments = options.LIMITS.documents,
    max_request_characters: options.MaxCharacters = options.LIMITS.characters,
    max_request_parts: options.MaxParts = options.LIMITS.parts,
    max_request_fields: options.MaxFields = options.LIMITS.fields,
    max_request_labels: options.MaxLabels = options.LIMITS.labels,
    max_request_chunks: options.MaxChunks = options.LIMITS.chunks,
    max_request_tokens: options.MaxTokens = options.LIMITS.tokens,
    log_level: Annotated[LogLevel, typer.Option(help="How much is logged.")] = (LogLevel.info),
    log_format: options.LogFormat = LogFormatName.text,
    max_calls: Annotated[
        int | None,
        typer.Option(
            "--max-concurrent-requests",
            min=1,
            help="Calls answered at a time, those that wait included; more get 429. [default: any number]",
        ),
    ] = None,
    max_queued_calls: Annotated[
        int,
        typer.Option("--max-queued-requests", min=1, help="Calls that wait for the model; further ones get 429."),
    ] = 1000,
    max_queued_tokens: options.MaxQueuedTokens = None,
    request_timeout: options.RequestTimeout = 0.0,
    enable_trace: Annotated[
        bool, typer.Option("--enable-trace", help="Send OpenTelemetry traces to --otlp-traces-endpoint.")
    ] = False,
    otlp_traces_endpoint: Annotated[
        str,
        typer.Option("--otlp-traces-endpoint", "--oltp-traces-endpoint", help="Takes OTLP over gRPC."),
    ] = "localhost:4317",
    engine_timeout: options.EngineTimeout = 300.0,
    keep_alive: options.KeepAlive = 75.0,
    shutdown_timeout: options.ShutdownTimeout = 10.0,
    revision: options.Revision = None,
    hub: options.HubFlag = HubName.huggingface,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    gpu_memory_utilization: options.MemoryShare = None,
    tensor_parallel_size: options.TensorParallel = 1,
    backend: options.BackendFlag = BackendName.auto,
    context_length: Annotated[
        int | None,
        typer.Option(
            parser=options.token_count, metavar="TOKENS", help="Tokens of one prompt. [default: the model's limit]"
        ),
    ] = None,
    max_prefill_tokens: Annotated[
        int | None,
        typer.Option(parser=options.token_count, metavar="TOKENS", help="Tokens of one batch. [default: the device's]"),
    ] = None,
    json_model_override_args: Annotated[
        dict[str, object] | None,
        typer.Option(
            parser=options.json_object, metavar="JSON", help="Entries laid over the model's config.json; seldom needed."
        ),
    ] = None,
    recipe: options.Recipe = None,
    chat_template: options.Template = None,
    default_instruction: options.Instruction = None,
    disable_playground: options.DisablePlayground = False,
    allowed_local_media_path: options.LocalMedia = None,
    allow_private_media: options.PrivateMedia = False,
    media_timeout: options.MediaTimeout = MEDIA.timeout,
    media_decode_timeout: options.MediaDecodeTimeout = MEDIA.decode_timeout,
    media_memory_mb: options.MediaMemory = MEDIA.memory / (1 << 20),
    min_pixels: options.MinPixels = None,
    max_pixels: options.MaxPixels = None,
    api_key: door.ApiKeys = None,
    api_key_file: door.ApiKeyFile = None,
    protect_all: door.ProtectAll = False,
    allowed_origins: door.Origins = None,
    allowed_methods: door.Methods = None,
    allowed_headers: door.Headers = None,
    allow_credentials: door.Credentials = False,
    ssl_keyfile: door.SslKeyfile = None,
    ssl_keyfile_password: door.SslKeyfilePassword = None,
    ssl_certfile: door.SslCertfile = None,
    ssl_ca_certs: door.SslCaCerts = None,
    ssl_cert_reqs: door.SslCertReqs = 0,
    root_path: door.RootPath = "",
    uds: door.Uds = None,
) -> None:
    """Serve a reranker over HTTP, with SGLang's flags and API."""
    start(
        Launch(
            model=model_path,
            names=tuple(served_model_name or ()),
            host=host,
            port=port,
            dialect=dialect.value,
            log_level=log_level.value,
            max_body=int(max_body_mb * (1 << 20)),
            max_bodies=int(max_bodies_mb * (1 << 20)),
            body_timeout=body_timeout,
            request_limits=RequestLimits(
                values=max_request_values,
                documents=max_request_documents,
                characters=max_request_characters,
                parts=max_request_parts,
                fields=max_request_fields,
                labels=max_request_labels,
                chunks=max_request_chunks,
                tokens=max_request_tokens,
            ),
            log_format=log_format.value,
            max_calls=max_calls,
            max_queued_calls=max_queued_calls,
            max_queued_tokens=max_queued_tokens or options.QUEUED_TOKENS,
            request_timeout=request_timeout,
            # SGLang's endpoint is a bare host and port, called without TLS.
            traces=TracesTo(otlp_traces_endpoint, {"insecure": True}) if enable_trace else None,
            shutdown_timeout=shutdown_timeout,
            engine_timeout=engine_timeout,
            keep_alive=keep_alive,
            revision=revision,
            hub=hub.value,
            device=device,
            dtype=dtype,
            quantization=quantization,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
            backend=backend.value,
            max_model_len=context_length,
            max_batch_tokens=max_prefill_tokens,
            hf_overrides=json_model_override_args or {},
            recipe=recipe,
            chat_template=chat_template,
            playground=not disable_playground,
            default_instruction=default_instruction,
            media=Media(
                tuple(allowed_local_media_path or ()),
                allow_private_media,
                Limits(
                    timeout=media_timeout,
                    decode_timeout=media_decode_timeout,
                    memory=int(media_memory_mb * (1 << 20)),
                ),
                min_pixels,
                max_pixels,
            ),
            door=door.Door(
                api_keys=tuple(api_key or ()),
                api_key_file=api_key_file,
                protect_all=protect_all,
                allowed_origins=allowed_origins or (),
                allowed_methods=allowed_methods or ("*",),
                allowed_headers=allowed_headers or ("*",),
                allow_credentials=allow_credentials,
                ssl_keyfile=ssl_keyfile,
                ssl_keyfile_password=ssl_keyfile_password,
                ssl_certfile=ssl_certfile,
                ssl_ca_certs=ssl_ca_certs,
                ssl_cert_reqs=ssl_cert_reqs,
                root_path=root_path,
                uds=uds,
            ),
        ),
        [*SGLANG.judge(ctx.obj, model_path or ""), *SGLANG_VARIABLES.notes(os.environ)],
    )
