"""Environment variables of vLLM and SGLang: those that stand for a flag here, and why others have no effect.

Names and meanings as in vLLM 0.32's `vllm/envs.py` and SGLang 0.5.23's `srt/environ.py`. HF_HOME, HF_TOKEN, OTEL_* and
the other variables of libraries are those libraries' own and are left to them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass

from rerankd.cli import peer

NO_ADDRESS = "it says nothing of where to listen; give --host and --port"
ONE_TIMEOUT = "one limit holds for images and videos; give --media-timeout"
NOT_TRACKED = "nothing of what is done here is sent to anyone"
HF_CACHE = "set HF_HOME to choose where models are kept"
OWN_THREADS = "OMP_NUM_THREADS says how many threads compute, and taskset or numactl on which cores"
CHOOSE_DEVICE = "choose one with --device"
WITHIN_POSITIONS = "no prompt is longer than the model has positions for"
NAMES_ARE_GIVEN = "give the names that clients use with --served-model-name"
GIVE_FOLDER = "give the model's folder in place of its id"
NO_ADMIN_ROUTES = "there are no routes for developers"
GIVE_KEY = "give the key with --api-key, --api-key-file or RERANKD_API_KEY"
GIVE_PIXELS = "give --max-pixels"
OWN_SPANS = "set OpenTelemetry's own OTEL_* variables"
OWN_PROBES = "/health asks nothing of the model, /health_generate has it score a pair"
DOCS_BY_SERVE = "rerankd serve --dialect sglang --disable-fastapi-docs leaves the documentation out"
PLAIN_BODIES = "bodies are read as they are sent, and headers change nothing of a request"

PREFIXES = ("VLLM_", "SGLANG_", "SGL_")
LEVELS = ("critical", "error", "warning", "info", "debug")


@dataclass(frozen=True, slots=True)
class StandsFor:
    """A variable that stands for a flag.

    flags: the flag and its other names; one of them on the command line wins
    value: the flag's value for the variable's; None for one that asks for nothing. Raises ValueError for nonsense.
    """

    flags: tuple[str, ...]
    value: Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Variables:
    """The variables of one program.

    honoured: name -> the flag that it stands for
    ignored: reason -> names
    """

    program: str
    honoured: Mapping[str, StandsFor]
    ignored: Mapping[str, str]

    def arguments(self, environ: Mapping[str, str], given: Container[str]) -> list[str]:
        """The flags that the environment stands for, but those that are given."""
        found = []
        for name, stands_for in self.honoured.items():
            if name in environ and not any(flag in given for flag in stands_for.flags):
                value = _value(stands_for, environ[name])
                found += [] if value is None else [stands_for.flags[0], value]
        return found

    def notes(self, environ: Mapping[str, str]) -> Iterator[str]:
        """A line for each variable that is set and has no effect, one for all of those of which nothing is known."""
        why = {name: reason for reason, names in self.ignored.items() for name in names.split()}
        unknown = []
        for name in sorted(name for name, value in environ.items() if value):
            if name in why:
                yield f"{name} is {self.program}'s and has no effect here: {why[name]}."
            elif name in self.honoured:
                try:
                    self.honoured[name].value(environ[name])
                except ValueError as error:
                    yield f"{name} is not read: {error}."
            elif name.startswith(PREFIXES):
                unknown.append(name)
        if unknown:
            yield f"Not read: {', '.join(unknown)}."


def _value(stands_for: StandsFor, text: str) -> str | None:
    try:
        return stands_for.value(text)
    except ValueError:
        return None


def _modelscope(text: str) -> str | None:
    """`modelscope` for a yes."""
    if text.strip().lower() in ("true", "1", "yes", "y"):
        return "modelscope"
    if text.strip().lower() in ("false", "0", "no", "n", ""):
        return None
    raise ValueError(f"{text!r} is neither true nor false")


def _level(text: str) -> str | None:
    level = {"warn": "warning", "fatal": "critical"}.get(text.lower(), text.lower())
    if level and level not in LEVELS:
        raise ValueError(f"{text!r} is none of {', '.join(LEVELS)}")
    return level or None


def _seconds(text: str) -> str | None:
    if not text:
        return None
    if not 0 < float(text) < float("inf"):
        raise ValueError(f"{text!r} is no number of seconds")
    return text


USE_MODELSCOPE = "VLLM_USE_MODELSCOPE"

VLLM_VARIABLES = Variables(
    "vLLM",
    {
        USE_MODELSCOPE: StandsFor(("--hub",), _modelscope),
        # An empty one is refused where keys are read: it must not leave the door open.
        "VLLM_API_KEY": StandsFor(("--api-key",), str),
        "VLLM_LOGGING_LEVEL": StandsFor(("--log-level", "--uvicorn-log-level"), _level),
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": StandsFor(("--timeout-keep-alive",), _seconds),
    },
    {
        NO_ADDRESS: """
            VLLM_HOST_IP VLLM_PORT VLLM_LOOPBACK_IP VLLM_RPC_BASE_PATH
        """,
        ONE_TIMEOUT: """
            VLLM_IMAGE_FETCH_TIMEOUT VLLM_VIDEO_FETCH_TIMEOUT
        """,
        peer.OWN_MEDIA: """
            VLLM_MAX_IMAGE_PIXELS VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB VLLM_MEDIA_CACHE VLLM_MEDIA_CACHE_MAX_SIZE_MB
            VLLM_MEDIA_CACHE_TTL_HOURS VLLM_MEDIA_FETCH_MAX_RETRIES VLLM_MEDIA_LOADING_THREAD_COUNT
            VLLM_MEDIA_URL_ALLOW_REDIRECTS VLLM_MM_INPUT_CACHE_GIB VLLM_VIDEO_LOADER_BACKEND
        """,
        peer.OWN_LOGS: """
            VLLM_CONFIGURE_LOGGING VLLM_DEBUG_LOG_API_SERVER_RESPONSE VLLM_DISABLE_LOG_LOGO VLLM_LOGGING_COLOR
            VLLM_LOGGING_CONFIG_PATH VLLM_LOGGING_PREFIX VLLM_LOGGING_STREAM VLLM_LOG_BATCHSIZE_INTERVAL
            VLLM_LOG_MODEL_INSPECTION VLLM_LOG_STATS_INTERVAL VLLM_TRACE_FUNCTION
        """,
        NOT_TRACKED: """
            VLLM_DO_NOT_TRACK VLLM_NO_USAGE_STATS VLLM_USAGE_SOURCE VLLM_USAGE_STATS_SERVER
        """,
        HF_CACHE: """
            VLLM_ASSETS_CACHE VLLM_CACHE_ROOT VLLM_CONFIG_ROOT
        """,
        peer.NO_CACHE: """
            VLLM_CPU_KVCACHE_SPACE VLLM_KV_CACHE_LAYOUT
        """,
        OWN_THREADS: """
            VLLM_CPU_NUM_OF_RESERVED_CPU VLLM_CPU_OMP_THREADS_BIND
        """,
        CHOOSE_DEVICE: """
            VLLM_TARGET_DEVICE
        """,
        peer.OWN_KERNELS: """
            VLLM_ATTENTION_BACKEND VLLM_BATCH_INVARIANT VLLM_DISABLED_KERNELS VLLM_DISABLE_COMPILE_CACHE
            VLLM_FLASH_ATTN_VERSION VLLM_FLOAT32_MATMUL_PRECISION VLLM_ROCM_USE_AITER VLLM_USE_DEEP_GEMM
            VLLM_USE_TRITON_AWQ VLLM_USE_TRITON_FLASH_ATTN
        """,
        peer.ONE_DEVICE: """
            VLLM_ENABLE_V1_MULTIPROCESSING VLLM_ENGINE_ITERATION_TIMEOUT_S VLLM_ENGINE_READY_TIMEOUT_S
            VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS VLLM_KEEP_ALIVE_ON_ENGINE_DEATH VLLM_PP_LAYER_PARTITION
            VLLM_RPC_TIMEOUT VLLM_USE_RUST_FRONTEND VLLM_USE_V1 VLLM_USE_V2_MODEL_RUNNER
            VLLM_WORKER_MULTIPROC_METHOD VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS
        """,
        peer.NO_LORA: """
            VLLM_ALLOW_RUNTIME_LORA_UPDATING VLLM_LORA_RESOLVER_CACHE_DIR VLLM_LORA_RESOLVER_HF_REPO_LIST
        """,
        peer.NO_PLUGINS: """
            VLLM_MEDIA_CONNECTOR VLLM_PLUGINS
        """,
        WITHIN_POSITIONS: """
            VLLM_ALLOW_LONG_MAX_MODEL_LEN
        """,
        NAMES_ARE_GIVEN: """
            VLLM_SKIP_MODEL_NAME_VALIDATION
        """,
        GIVE_FOLDER: """
            VLLM_MODEL_REDIRECT_PATH
        """,
        NO_ADMIN_ROUTES: """
            VLLM_SERVER_DEV_MODE
        """,
    },
)

SGLANG_VARIABLES = Variables(
    "SGLang",
    {
        "SGLANG_USE_MODELSCOPE": StandsFor(("--hub",), _modelscope),
        "SGLANG_TIMEOUT_KEEP_ALIVE": StandsFor(("--timeout-keep-alive",), _seconds),
    },
    {
        NO_ADDRESS: """
            SGLANG_GRPC_PORT SGLANG_HOST_IP SGLANG_LOCAL_IP_NIC SGLANG_PORT
        """,
        GIVE_KEY: """
            SGLANG_API_KEY
        """,
        GIVE_PIXELS: """
            SGLANG_IMAGE_MAX_PIXELS
        """,
        peer.OWN_MEDIA: """
            SGLANG_IO_WORKERS SGLANG_MM_FEATURE_CACHE_MB SGLANG_MM_LOAD_MAX_RETRIES SGLANG_RESIZE_RESAMPLE
            SGLANG_VLM_CACHE_SIZE_MB
        """,
        peer.OWN_LOGS: """
            SGLANG_JIT_LOG_LEVEL SGLANG_LOGGING_CONFIG_PATH SGLANG_LOG_FORWARD_ITERS SGLANG_LOG_GC SGLANG_LOG_MS
            SGLANG_LOG_REQUEST_EXCEEDED_MS SGLANG_LOG_REQUEST_HEADERS SGLANG_LOG_SCHEDULER_STATUS_INTERVAL
            SGLANG_LOG_SCHEDULER_STATUS_TARGET SGLANG_PROFILE_RECORD_SHAPES SGLANG_PROFILE_WITH_STACK
            SGLANG_TORCH_PROFILER_DIR
        """,
        OWN_SPANS: """
            SGLANG_OTLP_EXPORTER_MAX_EXPORT_BATCH_SIZE SGLANG_OTLP_EXPORTER_SCHEDULE_DELAY_MILLIS SGLANG_TRACE_LEVEL
        """,
        HF_CACHE: """
            SGLANG_CACHE_DIR
        """,
        peer.NO_CACHE: """
            SGLANG_CHUNKED_PREFIX_CACHE_THRESHOLD SGLANG_RADIX_FORCE_MISS
        """,
        peer.OWN_BATCHING: """
            SGLANG_EMPTY_CACHE_INTERVAL SGLANG_INIT_NEW_TOKEN_RATIO SGLANG_REQ_RUNNING_TIMEOUT
            SGLANG_REQ_WAITING_TIMEOUT
        """,
        OWN_THREADS: """
            SGLANG_AUTO_NUMA_BIND SGLANG_CPU_OMP_THREADS_BIND SGLANG_SET_CPU_AFFINITY
        """,
        CHOOSE_DEVICE: """
            SGLANG_USE_CPU_ENGINE
        """,
        peer.OWN_KERNELS: """
            SGLANG_ENABLE_DETERMINISTIC_INFERENCE SGLANG_ENABLE_JIT_DEEPGEMM SGLANG_ENABLE_TORCH_COMPILE
            SGLANG_USE_AITER
        """,
        peer.OWN_WARM_UP: """
            SGLANG_WARMUP_TIMEOUT
        """,
        OWN_PROBES: """
            SGLANG_DIAG_BYPASS_HEALTH_GENERATE SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION
        """,
        peer.NO_PLUGINS: """
            SGLANG_EXTERNAL_MM_MODEL_ARCH SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE SGLANG_EXTERNAL_MODEL_PACKAGE
            SGLANG_PLUGINS
        """,
        WITHIN_POSITIONS: """
            SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN
        """,
        DOCS_BY_SERVE: """
            DISABLE_OPENAPI_DOC
        """,
        PLAIN_BODIES: """
            SGLANG_ENABLE_REQUEST_DECOMPRESSION SGLANG_ENABLE_REQUEST_HEADER_OVERRIDES
        """,
    },
)


def modelscope(environ: Mapping[str, str]) -> bool:
    """Whether vLLM would look a model up on ModelScope."""
    return bool(VLLM_VARIABLES.arguments({name: environ[name] for name in environ.keys() & {USE_MODELSCOPE}}, ()))
