"""Flags of `python -m sglang.launch_server` that rerankd does not share, of SGLang 0.4.6 to 0.5.23.

Names and arity as in SGLang's `srt/server_args.py` and `srt/arg_groups/fields/`.
"""

from __future__ import annotations

from rerankd.cli import peer

_IGNORED = {
    peer.ALWAYS_SCORES: """
        enable-mis is-embedding model-impl= multi-item-scoring-delimiter= skip-tokenizer-init
    """,
    peer.OWN_TEMPLATES: """
        allow-auto-truncate completion-template= tokenizer-backend= tokenizer-mode=
        trust-request-chat-template
    """,
    peer.NO_REMOTE_CODE: """
        trust-remote-code
    """,
    peer.NO_CACHE: """
        c128-page-size= disable-chunked-prefix-cache disable-hicache-numa-detect disable-hybrid-swa-memory
        disable-radix-cache enable-cache-report enable-flexkv enable-hicache enable-hierarchical-cache
        enable-hisparse enable-int8-mamba-checkpoint enable-kv-cache-sharding enable-linear-replayssm
        enable-linker-mla-dedup enable-lmcache enable-mamba-cache-stochastic-rounding
        enable-page-major-kv-layout enable-session-radix-cache enable-unified-cache-external-linker
        flexkv-config-file= hicache-host-memory-fraction= hicache-host-memory-mode= hicache-io-backend=
        hicache-mem-layout= hicache-ratio= hicache-size= hicache-storage-backend-extra-config=
        hicache-storage-backend= hicache-storage-prefetch-policy=
        hicache-storage-prefetch-retry-max-attempts= hicache-storage-prefetch-retry-poll-interval=
        hicache-write-policy= hierarchical-sparse-attention-extra-config= hisparse-config=
        hybrid-kvcache-ratio int8-mamba-ckpt-size= kv-cache-dtype= kv-canary-real-data=
        kv-canary-sweep-interval= kv-canary= kv-events-config= linear-replayssm-cache-len=
        lmcache-config-file= mamba-backend= mamba-cache-philox-rounds= mamba-full-memory-ratio=
        mamba-max-states-per-path= mamba-radix-cache-strategy= mamba-scheduler-strategy= mamba-ssm-dtype=
        mamba-track-interval= max-mamba-cache-size= page-size= prefill-kv-cache-dequant-dtype=
        prefill-only-disable-kv-cache qsa-indexer-dtype= radix-cache-backend= radix-eviction-policy-config=
        radix-eviction-policy= swa-full-tokens-ratio= swa-prefix-tails=
        unified-cache-external-linker-backend= unified-cache-external-linker-config=
    """,
    peer.OWN_BATCHING: """
        abort-on-priority-when-disabled batch-notify-size= chunked-prefill-size= default-priority-value=
        disable-overlap-schedule disable-priority-preemption dynamic-batch-tokenizer-batch-size=
        dynamic-batch-tokenizer-batch-timeout= enable-dynamic-batch-tokenizer enable-dynamic-chunking
        enable-http-worker-reuseport enable-mixed-chunk enable-prefill-delayer enable-priority-scheduling
        enable-tokenizer-batch-encode max-micro-batch-size= max-running-requests=
        max-total-tokens= min-free-slots-delay= optimistic-prefill-attempts= pp-async-batch-depth=
        pp-max-micro-batch-size= prefill-decode-interval-min-bs= prefill-decode-interval=
        prefill-delayer-forward-passes-buckets=+ prefill-delayer-max-delay-ms=
        prefill-delayer-max-delay-passes= prefill-delayer-queue-min-ratio=
        prefill-delayer-token-usage-low-watermark= prefill-delayer-wait-seconds-buckets=+
        prefill-max-requests= prefill-round-robin-balance priority-scheduling-preemption-threshold=
        retraction-policy= schedule-conservativeness= schedule-low-priority-values-first schedule-policy=
        scheduler-recv-interval= tokenizer-worker-num=
    """,
    peer.OWN_MEMORY: """
        cpu-offload-gb= enable-draft-weights-cpu-backup enable-memory-saver enable-unified-memory
        enable-weights-cpu-backup offload-group-size= offload-mode=
        offload-num-in-group= offload-prefetch-step= ple-offload-backend= ple-offload-dir=
        ple-offload-embedding sleep-on-idle
    """,
    peer.OWN_KERNELS: """
        attention-backend= bf16-gemm-backend= cuda-graph-backend-decode= cuda-graph-backend-prefill=
        cuda-graph-bs-decode=+ cuda-graph-bs-prefill=+ cuda-graph-bs=+ cuda-graph-config=
        cuda-graph-max-bs-decode= cuda-graph-max-bs-prefill= cuda-graph-max-bs=
        cuda-graph-max-seq-len-prefill= cuda-graph-prefill-max-context= debug-cuda-graph
        decode-attention-backend= disable-aiter-allreduce-fusion-in-decode disable-cuda-graph
        disable-cuda-graph-padding disable-decode-cuda-graph disable-flashinfer-autotune
        disable-prefill-cuda-graph ds-channel-config-path= ds-heavy-channel-num= ds-heavy-channel-type=
        ds-heavy-token-num= ds-sparse-decode-threshold= dsa-decode-backend= dsa-paged-mqa-logits-backend=
        dsa-prefill-backend= dsa-topk-backend= dsa-triton-union= dsv4-attn-backend= dsv4-prefill-backend=
        enable-amd-monokernel enable-cudagraph-gc enable-deepseek-v4-fp4-indexer
        enable-deterministic-inference enable-double-sparsity enable-dsa-cache-layer-split
        enable-dsa-fused-indexer enable-flashinfer-mla enable-flashmla enable-fused-qk-norm-rope
        enable-lean-attention enable-nan-detection enable-nvidia-megakernel enable-piecewise-cuda-graph
        enable-profile-cuda-graph enable-tf32-matmul enable-torch-compile enable-torch-compile-debug-mode
        flashinfer-a2a-dispatch-type= flashinfer-autotune-skip-ops=+ flashinfer-mla-disable-ragged
        fp4-gemm-backend= fp8-gemm-backend= kt-cpuinfer= kt-method= kt-threadpool-count= kt-weight-path=
        linear-attn-backend= linear-attn-decode-backend= linear-attn-prefill-backend=
        linear-attn-verify-backend= monokernel-backend nsa-decode-backend= nsa-decode= nsa-prefill-backend=
        nsa-prefill= piecewise-cuda-graph-compiler= piecewise-cuda-graph-max-tokens=
        piecewise-cuda-graph-tokens=+ prefill-attention-backend= sm-group-num= torch-compile-max-bs=
        triton-attention-num-kv-splits= triton-attention-reduce-in-fp32 triton-attention-split-tile-size=
    """,
    peer.ONE_DEVICE: """
        boundary-reduction= cp-strategy= dcp-comm-backend= dcp-replicate-q-proj deepep-config=
        deepep-dispatcher-output-dtype= deepep-mode= deepep-v2-mode=
        disable-aiter-allreduce-fusion-in-prefill disable-attn-tp-gather disable-custom-all-reduce
        disable-flashinfer-cutlass-moe-fp4-allgather disable-shared-experts-fusion
        disaggregation-bootstrap-port= disaggregation-decode-allocation-policy= disaggregation-decode-dp=
        disaggregation-decode-enable-fake-auto disaggregation-decode-enable-offload-kvcache
        disaggregation-decode-enable-radix-cache disaggregation-decode-extra-slots=
        disaggregation-decode-host-receive-threshold= disaggregation-decode-polling-interval=
        disaggregation-decode-retraction-backup= disaggregation-decode-tp= disaggregation-enable-kv-checksum
        disaggregation-ib-device= disaggregation-prefill-pp= disaggregation-transfer-backend=
        dist-init-addr= dist-timeout= elastic-ep-backend= elastic-ep-initial-size= elastic-ep-join-mode=
        elastic-ep-join-rank-offset= elastic-ep-scale-timeout= enable-aiter-allreduce-fusion
        enable-attn-tp-input-scattered enable-cp-decode-attn-tp enable-deepep-moe enable-dense-mlp-attn-tp
        enable-dp-attention enable-dp-attention-local-control-broadcast enable-elastic-expert-backup
        enable-ep-moe enable-eplb enable-expert-distribution-metrics enable-flashinfer-allreduce-fusion
        enable-flashinfer-cutedsl-moe enable-flashinfer-cutlass-moe enable-flashinfer-mxfp4-moe
        enable-flashinfer-trtllm-moe enable-fused-moe-sum-all-reduce enable-layernorm-sp
        enable-megamoe-for-layernorm-sp enable-mscclpp enable-nccl-nvls enable-nsa-prefill-context-parallel
        enable-p2p-check enable-paged-experts enable-pd-role-switch enable-pdmux enable-prefill-cp
        enable-quant-communications enable-scattered-sconv enable-shared-experts-attn-tp
        enable-single-batch-overlap enable-symm-mem enable-torch-symm-mem enable-triton-kernel-moe
        enable-two-batch-overlap enable-w4a4-mxfp4-megamoe enable-waterfill
        enforce-disable-flashinfer-allreduce-fusion enforce-shared-experts-fusion
        engine-info-bootstrap-port= ep-dispatch-algorithm= ep-num-redundant-experts= ep-size= ep=
        eplb-algorithm= eplb-min-rebalancing-utilization-threshold= eplb-rebalance-layers-per-chunk=
        eplb-rebalance-num-iterations= expert-balancedness-report-mode=
        expert-distribution-recorder-buffer-size= expert-distribution-recorder-mode= expert-parallel-size=
        flashinfer-allreduce-fusion-backend= flashinfer-mxfp4-moe-precision= fuseep-mode= gpu-id-step=
        init-expert-location= kt-max-deferred-experts-per-token= kt-num-gpu-experts= load-balance-method=
        load-publish-endpoint= load-snapshot-publish-interval= load-watch-interval= max-ep-size=
        moe-a2a-backend= moe-data-parallel-size= moe-dense-tp-size= moe-dp-size= moe-runner-backend=
        mooncake-ib-device= n-share-experts-fusion= nccl-init-addr= nccl-port= node-rank=
        nsa-prefill-cp-mode= numa-node=+ paged-experts-num-resident= pdmux-config-path= pre-warm-nccl
        remote-instance-weight-loader-backend= remote-instance-weight-loader-seed-instance-ip=
        remote-instance-weight-loader-seed-instance-service-port=
        remote-instance-weight-loader-send-weights-group-ports=
        remote-instance-weight-loader-start-seed-via-transfer-engine shared-experts-tp-size=
        tbo-token-distribution-threshold=
    """,
    peer.OWN_LOADING: """
        checkpoint-engine-wait-weights-before-ready delete-ckpt-after-loading load-format= model-checksum=
        model-config-parser= model-loader-extra-config= modelexpress-config=
        modelopt-checkpoint-restore-path= modelopt-checkpoint-save-path= modelopt-export-path=
        quantization-param-path= rl-on-policy-target= rl-quant-profile= startup-weight-load-mode=
        weight-cache-mode= weight-cache-socket= weight-cache-timeout= weight-loader-disable-mmap
        weight-loader-drop-cache-after-load weight-loader-prefetch-checkpoints
        weight-loader-prefetch-num-threads= weight-version=
    """,
    peer.NO_LORA: """
        enable-lora-overlap-loading experts-shared-outer-loras lora-backend= lora-drain-wait-threshold=
        lora-eviction-policy= lora-strict-loading lora-target-modules=+ lora-use-virtual-experts
        max-loaded-loras= max-lora-chunk-size= max-lora-rank= max-loras-per-batch=
    """,
    peer.NO_GENERATION: """
        asr-max-buffer-seconds= asr-max-concurrent-sessions= constrained-json-disable-any-whitespace
        constrained-json-max-whitespace-cnt= constrained-json-whitespace-pattern= decode-log-interval=
        decoupled-spec-bind-endpoint= decoupled-spec-connect-endpoints= decoupled-spec-rank=
        decoupled-spec-role= decrypted-draft-config-file= detokenizer-worker-num=
        disable-outlines-disk-cache disable-tokenizer-batch-decode dllm-algorithm-config= dllm-algorithm=
        dllm-fdfo enable-custom-logit-processor enable-decoder-swa-bounded-replay enable-dp-lm-head
        enable-fp32-lm-head enable-linear-replayssm-spec enable-multi-layer-eagle enable-response-store
        enable-return-aux-hidden-states enable-return-hidden-states enable-return-indexer-topk
        enable-return-routed-experts enable-streaming-session enable-strict-thinking
        enable-tp-lm-head-all-to-all enable-watermark file-storage-path= grammar-backend=
        incremental-streaming-output mlx-enable-sampling num-continuous-decode-steps=
        num-reserved-decode-tokens= preferred-sampling-params= random-seed= reasoning-parser=
        return-aux-hidden-state-layer-ids=+ return-hidden-states-mode= return-input-ids return-output-ids
        sampling-backend= sampling-defaults= sampling-mask-max-tokens= spec-trace-dir=
        speculative-accept-threshold-acc= speculative-accept-threshold-single= speculative-adaptive
        speculative-adaptive-config= speculative-algorithm= speculative-attention-mode=
        speculative-dflash-block-size= speculative-domino-candidate-pool-size=
        speculative-draft-attention-backend= speculative-draft-kv-cache-dtype=
        speculative-draft-load-format= speculative-draft-model-path= speculative-draft-model-quantization=
        speculative-draft-model-revision= speculative-draft-model= speculative-draft-sink-size=
        speculative-draft-window-size= speculative-dsa-topk-backend=
        speculative-dspark-align-verify-tokens-to-graph-tier speculative-dspark-block-size=
        speculative-dspark-confidence-sts-path= speculative-dspark-sps-table-path= speculative-eagle-topk=
        speculative-enable-w4a4-mxfp4-megamoe speculative-moe-a2a-backend= speculative-moe-runner-backend=
        speculative-ngram-branch-length= speculative-ngram-capacity=
        speculative-ngram-external-corpus-max-tokens= speculative-ngram-external-corpus-path=
        speculative-ngram-external-sam-budget= speculative-ngram-match-type=
        speculative-ngram-max-bfs-breadth= speculative-ngram-max-match-window-size=
        speculative-ngram-max-trie-depth= speculative-ngram-min-bfs-breadth=
        speculative-ngram-min-match-window-size= speculative-num-draft-tokens= speculative-num-steps=
        speculative-token-map= speculative-use-block-verification speculative-use-rejection-sampling
        stream-interval= stream-output stream-response-default-include-usage strip-thinking-cache
        tool-call-parser= tool-server= watermark-config=
    """,
    peer.OWN_MEDIA: """
        disable-fast-image-processor enable-adaptive-dispatch-to-encoder
        enable-broadcast-mm-inputs-process enable-encoder-swa-bounded-replay enable-mm-global-cache
        enable-multimodal enable-precise-embedding-interpolation enable-prefix-mm-cache
        encoder-bootstrap-port= encoder-register-urls=+ encoder-transfer-backend= encoder-urls=+
        image-processor-backend= keep-mm-feature-on-device language-model-only limit-mm-data-per-request=
        media-url-max-file-size-mb= mm-attention-backend= mm-enable-dp-encoder mm-feature-transport=
        mm-global-cache-backend= mm-io-worker-num= mm-max-concurrent-calls= mm-per-request-timeout=
        mm-preprocess-cache-size-mb= mm-processor-worker-num= trust-mm-content-hashes
    """,
    peer.OWN_WARM_UP: """
        skip-server-warmup warmups=
    """,
    peer.OWN_LOGS: """
        bucket-e2e-request-latency=+ bucket-inter-token-latency=+ bucket-time-to-first-token=+
        collect-tokens-histogram context-bucket= crash-dump-folder= custom-sigquit-handler=
        debug-tensor-dump-inject= debug-tensor-dump-input-file= debug-tensor-dump-layers=+
        debug-tensor-dump-output-folder= debug-tensor-dump-prefill-only enable-forward-pass-metrics
        enable-layerwise-nvtx-marker enable-metrics enable-metrics-for-all-schedulers enable-mfu-metrics
        enable-request-time-stats-logging export-metrics-to-file export-metrics-to-file-dir=
        extra-metric-labels= forward-pass-metrics-ipc-name= forward-pass-metrics-worker-id=
        gated-launch-port= gc-threshold=+ gc-warning-threshold-secs= generation-tokens-buckets=+
        log-level-http= log-requests log-requests-format= log-requests-level= log-requests-target=+
        msprobe-dump-config= otlp-service-name=
        prompt-tokens-buckets=+ show-time-cost soft-watchdog-timeout=
        tokenizer-metrics-allowed-custom-labels=+ tokenizer-metrics-custom-labels-header= trace-modules=
        uvicorn-access-log-exclude-prefixes=+
    """,
}

_REFUSED = (
    peer.Refused(
        """
        pipeline-parallel-size= pp-size= pp= data-parallel-size= dp-size= dp=
        nnodes= attention-context-parallel-size= attn-cp-size= attention-data-parallel-size= attn-dp-size=
        decode-context-parallel-size= dcp-size= dwdp-size=
        """,
        peer.ONE_PROCESS,
        harmless=("1",),
    ),
    peer.Refused("base-gpu-id=", "choose one with --device, as in --device cuda:1", harmless=("0",)),
    peer.Refused("disaggregation-mode=", peer.ONE_PROCESS, harmless=("null",)),
    peer.Refused("encoder-only language-only use-ray", peer.ONE_PROCESS),
    peer.Refused(
        """
        grpc-mode grpc-port= grpc-http-sidecar-port= grpc-response-timeout-secs= smg-grpc-mode
        smg-http-sidecar-port= sidecar= sidecar-args= enable-http2 http2-initial-connection-window-size=
        http2-max-concurrent-streams=
        """,
        peer.PLAIN_HTTP,
    ),
    peer.Refused("enable-ssl-refresh", peer.PLAIN_TLS),
    peer.Refused("admin-api-key=", peer.NO_ADMIN),
    peer.Refused("modelopt-quant= quantize-and-serve", peer.NO_QUANTIZATION, harmless=("none", "None")),
    peer.Refused("torchao-config=", peer.NO_QUANTIZATION, harmless=("",)),
    peer.Refused("tokenizer-path=", "it is read from the model's own folder", harmless=("{model}",)),
    peer.Refused("config=", "give the flags on the command line"),
    peer.Refused("decrypted-config-file=", "config.json is read from the model's own folder"),
    peer.Refused("download-dir=", "set HF_HOME in the environment to choose where models are kept"),
    peer.Refused("default-chat-template-kwargs=", "give the instruction with --default-instruction"),
    peer.Refused("hf-chat-template-name=", "give the template's file with --chat-template"),
    peer.Refused("enable-lora lora-paths=+ uno-lora-path=", peer.NO_ADAPTERS),
    peer.Refused("allowed-media-domains=+", peer.ANY_PUBLIC),
    peer.Refused("mm-process-config=", "give --min-pixels and --max-pixels", harmless=("{{}}",)),
    peer.Refused("custom-weight-loader=+ forward-hooks=", peer.NO_PLUGINS),
)

SGLANG = peer.Peer("SGLang", _IGNORED, _REFUSED)
