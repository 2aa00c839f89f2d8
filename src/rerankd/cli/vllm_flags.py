"""Flags of `vllm serve` that rerankd does not share, of vLLM 0.8.5 to 0.32.

Names and arity as in vLLM's `engine/arg_utils.py`, `entrypoints/openai/cli_args.py` (later `entrypoints/launchers/`)
and `entrypoints/cli/serve.py`.
"""

from __future__ import annotations

from rerankd.cli import peer

_IGNORED = {
    peer.ALWAYS_SCORES: """
        convert= enable-flash-late-interaction model-impl= override-pooler-config= pooler-config= runner=
        skip-tokenizer-init task=
    """,
    peer.OWN_TEMPLATES: """
        chat-template-content-format= response-role= tokenizer-mode= trust-request-chat-template
    """,
    peer.NO_REMOTE_CODE: """
        code-revision= trust-remote-code
    """,
    peer.NO_CACHE: """
        block-size= calculate-kv-scales cp-kv-cache-interleave-size= dcp-kv-cache-interleave-size=
        disable-hybrid-kv-cache-manager enable-mamba-cache-stochastic-rounding
        enable-mamba-shared-prefix-checkpoint enable-prefix-caching engram-config=
        kv-cache-dtype-skip-layers=+ kv-cache-dtype= kv-cache-memory-bytes= kv-cache-metrics
        kv-cache-metrics-sample= kv-events-config= kv-offloading-backend= kv-offloading-size=
        kv-sharing-fast-prefill kv-transfer-config= mamba-backend= mamba-block-size= mamba-cache-dtype=
        mamba-cache-mode= mamba-cache-philox-rounds= mamba-ssm-cache-dtype= mamba-ssu-algorithm=
        num-gpu-blocks-override= prefix-cache-retention-interval= prefix-caching-hash-algo=
        prefix-match-unit= replayssm-buffer-len= sparse-indexer-topk-backend= swa-bounded-replay
        use-replayssm use-v2-block-manager
    """,
    peer.OWN_BATCHING: """
        async-scheduling disable-async-output-proc disable-frontend-multiprocessing enable-chunked-prefill
        long-prefill-token-threshold-adaptive long-prefill-token-threshold= max-long-partial-prefills=
        max-num-active-seqs= max-num-partial-prefills=
        max-num-scheduled-tokens= max-num-seqs= num-scheduler-steps= preemption-mode=
        prefill-schedule-interval= renderer-num-workers= scheduler-delay-factor= scheduler-reserve-full-isl
        scheduling-policy= tokenizer-pool-extra-config= tokenizer-pool-size= tokenizer-pool-type=
    """,
    peer.OWN_MEMORY: """
        cpu-offload-gb= cpu-offload-params=+ device-memory-utilization= enable-cumem-allocator
        enable-sleep-mode offload-backend= offload-group-size= offload-num-in-group=
        offload-params=+ offload-prefetch-step= sleep-mode-offload-cudagraph
        sleep-preserve-parameter-names=+ swap-space=
    """,
    peer.OWN_KERNELS: """
        O= ac= additional-config= attention-backend= attention-config= cc= compilation-config=
        cuda-graph-sizes=+ cudagraph-capture-sizes=+ cudagraph-metrics dc= disable-cascade-attn
        disable-sliding-window enable-flashinfer-autotune enforce-eager gdn-prefill-backend= ir-op-priority=
        jit-monitor-mode= jit-monitor-verbose kda-decode-backend= kda-prefill-backend= kernel-config=
        linear-backend= max-context-len-to-capture= max-cudagraph-capture-size= max-seq-len-to-capture=
        moe-backend= optimization-level= override-attention-dtype= override-neuron-config= performance-mode=
    """,
    peer.ONE_DEVICE: """
        all2all-backend= cpu-distributed-timeout-seconds= data-parallel-address= data-parallel-backend=
        data-parallel-external-lb data-parallel-hybrid-lb data-parallel-multi-port-external-lb
        data-parallel-rank= data-parallel-rpc-port= data-parallel-start-rank= data-parallel-supervisor-port=
        dbo-decode-token-threshold= dbo-prefill-token-threshold= dcp-comm-backend= dcp-q-replicate
        disable-custom-all-reduce disable-nccl-for-dp-synchronization distributed-executor-backend=
        distributed-timeout-seconds= dp-supervisor-probe-failure-threshold= dp-supervisor-probe-interval-s=
        dp-supervisor-probe-timeout-s= dp-sync-interval= dpa= dpb= dpe dph dpm dpn= dpp= dpr=
        ec-manager-config= ec-transfer-config= elastic-ep-max-dp-size= enable-dbo enable-elastic-ep
        enable-ep-weight-filter enable-eplb enable-expert-parallel enable-fault-tolerance enable-hc-sp
        enable-nccl-comm-suspend enable-scale-out ep eplb-config= eplb-log-balancedness eplb-step-interval=
        eplb-window-size= expert-placement-strategy= fault-tolerance-config= master-addr= master-port=
        node-rank= num-redundant-experts= numa-bind numa-bind-cpus=+ numa-bind-nodes=+ r=
        ray-workers-use-nsight ubatch-size=
    """,
    peer.OWN_LOADING: """
        allow-deprecated-quantization config-format= ignore-patterns=+ load-format=
        max-parallel-loading-workers= model-loader-extra-config= pt-load-map-location=
        safetensors-load-strategy= safetensors-prefetch-block-size= safetensors-prefetch-num-threads=
        use-tqdm-on-load weight-transfer-config=
    """,
    peer.NO_LORA: """
        enable-lora-bias enable-mixed-moe-lora-format enable-moe-shared-loras enable-tower-connector-lora
        fully-sharded-loras long-lora-scaling-factors= lora-dtype= lora-extra-vocab-size=
        lora-target-modules=+ max-cpu-loras= max-lora-cls-labels= max-lora-rank= max-loras=
        max-prompt-adapter-token= max-prompt-adapters= specialize-active-lora
    """,
    peer.NO_GENERATION: """
        anthropic-disabled-thinking-effort= aux-output-config= cohere-format= cohere-is-reasoning-model
        diffusion-config= enable-auto-tool-choice enable-batch-sharded-sampling enable-force-include-usage
        enable-reasoning enable-return-routed-experts exclude-tools-when-tool-choice-none generation-config=
        guided-decoding-backend= logits-processor-pattern= logprobs-mode= max-logprobs=
        multi-step-stream-outputs num-lookahead-slots= num-speculative-tokens= override-generation-config=
        per-request-spec-decode-metrics= reasoning-config= reasoning-parser-plugin= reasoning-parser=
        return-sampling-mask return-tokens-as-token-ids sc= seed= spec-method= spec-model= spec-tokens=
        speculative-config= speculative-model= sse-keep-alive-interval= stream-interval=
        structured-outputs-config= tool-call-parser= tool-parser-plugin= tool-server= tool-strict-level=
        use-fp64-gumbel watermark-config= watermark=
    """,
    peer.OWN_MEDIA: """
        disable-chunked-mm-input
        disable-mm-preprocessor-cache enable-mm-embeds enable-multimodal-encoder-data-parallel
        enable-shm-tensor-arena interleave-mm-strings language-model-only limit-mm-per-prompt=
        media-io-kwargs= mm-device-do-normalize mm-encoder-attn-backend= mm-encoder-attn-dtype=
        mm-encoder-fp8-scale-path= mm-encoder-fp8-scale-save-margin= mm-encoder-fp8-scale-save-path=
        mm-encoder-only mm-encoder-tp-mode= mm-hasher-algorithm= mm-ipc-gpu-memory-gb=
        mm-processor-cache-gb= mm-processor-cache-type= mm-processor-device=
        mm-shm-cache-max-object-size-mb= mm-tensor-ipc= skip-mm-profiling trust-request-mm-kwargs
        video-pruning-method= video-pruning-rate=
    """,
    peer.OWN_LOGS: """
        aggregate-engine-logging collect-detailed-traces=+ custom-histogram-buckets=
        disable-access-log-for-endpoints= disable-log-requests disable-log-stats
        enable-layerwise-nvtx-tracing enable-log-deltas enable-log-outputs enable-log-requests
        enable-logging-iteration-details enable-mfu-metrics enable-offline-docs enable-per-request-metrics
        enable-prompt-tokens-details enable-request-id-headers enable-server-load-tracking
        enable-tokenizer-info-endpoint enable-trace-replay fail-on-environ-validation fingerprint-mode=
        fingerprint-value= h11-max-header-count= h11-max-incomplete-event-size= log-config-file=
        log-error-stack logging-config= max-log-len= profiler-config=
        show-hidden-metrics-for-version=
    """,
}

_REFUSED = (
    peer.Refused(
        """
        pipeline-parallel-size= pp= data-parallel-size= dp= data-parallel-size-local=
        dpl= prefill-context-parallel-size= pcp= decode-context-parallel-size= dcp= nnodes= n= api-server-count=
        asc=
        """,
        peer.ONE_PROCESS,
        harmless=("1",),
    ),
    peer.Refused("headless", peer.ONE_PROCESS),
    peer.Refused("device-ids=", "choose one with --device, as in --device cuda:1"),
    peer.Refused("grpc grpc-port= tokens-only", peer.PLAIN_HTTP),
    peer.Refused("ssl-ciphers= enable-ssl-refresh", peer.PLAIN_TLS),
    peer.Refused("quantization-config=", peer.NO_QUANTIZATION, harmless=("none", "None", "null")),
    peer.Refused("tokenizer= hf-config-path=", "it is read from the model's own folder", harmless=("{model}",)),
    peer.Refused("tokenizer-revision=", "weights and tokenizer are of one revision; give --revision"),
    peer.Refused("config=", "give the flags on the command line"),
    peer.Refused("hf-token=", "set HF_TOKEN in the environment, where no process list shows it"),
    peer.Refused("download-dir=", "set HF_HOME in the environment to choose where models are kept"),
    peer.Refused("rope-scaling= rope-theta=", "give it in --hf-overrides"),
    peer.Refused("default-chat-template-kwargs=", "give the instruction with --default-instruction"),
    peer.Refused("allowed-media-domains=+", peer.ANY_PUBLIC),
    peer.Refused("enable-prompt-embeds", "documents are texts; leave it out"),
    peer.Refused(
        """
        enable-lora lora-modules=+ default-mm-loras= prompt-adapters=+ enable-prompt-adapter
        qlora-adapter-name-or-path=
        """,
        peer.NO_ADAPTERS,
    ),
    peer.Refused(
        """
        middleware=+ worker-cls= worker-extension-cls= scheduler-cls= io-processor-plugin= logits-processors=+
        model-class-overrides=
        """,
        peer.NO_PLUGINS,
    ),
)

VLLM = peer.Peer("vLLM", _IGNORED, _REFUSED)
