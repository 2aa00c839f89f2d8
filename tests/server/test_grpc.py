"""TEI's gRPC API over real sockets: the answers of the HTTP API, its limits and its errors, in gRPC's words."""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import transformers
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from rerankd import Reranker
from rerankd.cli.hosting import Named, check_grpc, open_pool
from rerankd.cli.start import Launch, _grpc, _start
from rerankd.compat.flags import UsageProblem
from rerankd.core import EngineDead, text_content
from rerankd.limits import RequestLimits
from rerankd.options import LoadOptions
from rerankd.server.run import ListenError, bind
from rerankd.server.settings import Residence, Settings
from rerankd.server.tls import Tls
from tests.conftest import MakeCheckpoint
from tests.embedding_checkpoints import embedder
from tests.server.fakes import MODEL, FakeReranker, fake_score
from tests.server.grpc_running import Both, both, stubs, tei
from tests.server.launched import SERVE, launched
from tests.server.test_clients_that_leave import until

QUERY = "what is panda?"
TEXTS = ["hi", "The giant panda is a bear.", "Bread rises in the oven.", "panda panda", "oven"]
LONG = "panda eats bamboo " * 400
Code = grpc.StatusCode
Start = Callable[..., Both]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Servers of folders, each of which is started once."""
    servers: dict[Path, Both] = {}
    with ExitStack() as stack:

        def started(folder: Path) -> Both:
            if folder not in servers:
                reranker = stack.enter_context(Reranker(folder, device="cpu", dtype="float32"))
                servers[folder] = stack.enter_context(both(reranker, Settings(names=("m",))))
            return servers[folder]

        yield started


@pytest.fixture(scope="module")
def fake() -> FakeReranker:
    return FakeReranker()


@pytest.fixture(scope="module")
def server(fake: FakeReranker) -> Iterator[Both]:
    with both(fake, Settings(names=(MODEL,), max_body=1 << 16, limits=RequestLimits(documents=20))) as server:
        yield server


def post(server: Both, path: str, **body: Any) -> Any:
    answer = requests.post(f"{server.url}/tei{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def pairs(ranks: Any) -> list[tuple[int, float]]:
    """Places and scores, of messages or of JSON. The last digits of a score depend on the batch, and so on time."""
    rows = [(one["index"], one["score"]) if isinstance(one, dict) else (one.index, one.score) for one in ranks]
    return [(index, pytest.approx(score, abs=1e-5)) for index, score in rows]


def refused(call: Callable[[], Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    return failed.value


@pytest.mark.parametrize("raw_scores", [False, True])
def test_ranks_are_those_of_http(start: Start, bert_checkpoint: Path, raw_scores: bool) -> None:
    server = start(bert_checkpoint)
    wanted = post(server, "/rerank", query=QUERY, texts=TEXTS, raw_scores=raw_scores)
    assert len({round(one["score"], 3) for one in wanted}) == 5
    message = tei.RerankRequest(query=QUERY, texts=TEXTS, raw_scores=raw_scores, return_text=True)
    reply = server.Rerank.Rerank(message)
    assert pairs(reply.ranks) == pairs(wanted)
    assert [one.text for one in reply.ranks] == [TEXTS[one["index"]] for one in wanted]
    spent = reply.metadata
    assert spent.compute_chars == len(QUERY) * 5 + sum(map(len, TEXTS))
    assert spent.compute_tokens > 5 * 5
    assert spent.total_time_ns >= spent.inference_time_ns > 0
    assert spent.tokenization_time_ns > 0

    # A stream of texts has the same answer, and what its first message asks for.
    messages = [
        tei.RerankStreamRequest(query=QUERY, text=text, raw_scores=raw_scores if number == 0 else not raw_scores)
        for number, text in enumerate(TEXTS)
    ]
    streamed = server.Rerank.RerankStream(iter(messages))
    assert pairs(streamed.ranks) == pairs(wanted)
    assert not any(one.HasField("text") for one in streamed.ranks)
    assert (streamed.metadata.compute_tokens, streamed.metadata.compute_chars) == (
        spent.compute_tokens, spent.compute_chars,
    )  # fmt: skip


def test_a_stream_of_several_queries_is_ranked_as_a_whole(start: Start, bert_checkpoint: Path) -> None:
    server = start(bert_checkpoint)
    queries = [QUERY, "bread", QUERY, "bread", "hello"]
    messages = [
        tei.RerankStreamRequest(query=query, text=text, return_text=True)
        for query, text in zip(queries, TEXTS, strict=True)
    ]
    ranks = server.Rerank.RerankStream(iter(messages)).ranks
    asked = zip(queries, TEXTS, strict=True)
    alone = [post(server, "/rerank", query=query, texts=[text])[0]["score"] for query, text in asked]
    assert {one.index: one.score for one in ranks} == pytest.approx(dict(enumerate(alone)), abs=1e-5)
    scores = [one.score for one in ranks]
    assert scores == sorted(scores, reverse=True)
    assert [one.text for one in ranks] == [TEXTS[one.index] for one in ranks]


def test_texts_are_cut_where_they_may_be(start: Start, bert_checkpoint: Path) -> None:
    server = start(bert_checkpoint)
    failed = refused(lambda: server.Rerank.Rerank(tei.RerankRequest(query=QUERY, texts=["hi", LONG])))
    assert failed.code() == Code.INVALID_ARGUMENT
    assert failed.details().startswith("texts[1]: ")
    found = {}
    for side in ("Right", "Left"):
        direction = tei.TruncationDirection.Value(f"TRUNCATION_DIRECTION_{side.upper()}")
        texts = [f"bread {LONG} oven", "hi"]
        message = tei.RerankRequest(query=QUERY, texts=texts, truncate=True, truncation_direction=direction)
        reply, call = server.Rerank.Rerank.with_call(message)
        assert dict(call.trailing_metadata())["x-rerankd-truncated"] == "documents 0"
        wanted = post(server, "/rerank", query=QUERY, texts=texts, truncation_direction=side)
        assert pairs(reply.ranks) == pairs(wanted)
        found[side] = {one.index: one.score for one in reply.ranks}[0]
    assert found["Left"] != found["Right"]


def test_labels_are_those_of_http(start: Start, bert_two_labels_checkpoint: Path) -> None:
    server = start(bert_two_labels_checkpoint)

    def labels(rows: Any) -> list[Any]:  # the last digits depend on the batch, and so on time
        rows = [(one["label"], one["score"]) if isinstance(one, dict) else (one.label, one.score) for one in rows]
        return [(label, pytest.approx(score, abs=1e-5)) for label, score in rows]

    for raw_scores in (False, True):
        replies = list(
            server.Predict.PredictStream(tei.PredictRequest(inputs=text, raw_scores=raw_scores) for text in TEXTS)
        )
        assert len(replies) == len(TEXTS)
        for text, reply in zip(TEXTS, replies, strict=True):
            wanted = post(server, "/predict", inputs=text, raw_scores=raw_scores)
            alone = server.Predict.Predict(tei.PredictRequest(inputs=text, raw_scores=raw_scores))
            assert labels(reply.predictions) == labels(alone.predictions) == labels(wanted)
    pair = [QUERY, TEXTS[1]]
    wanted = post(server, "/predict", inputs=pair)
    reply = server.Predict.PredictPair(tei.PredictPairRequest(inputs=pair))
    assert labels(reply.predictions) == labels(wanted)
    assert reply.metadata.compute_chars == len(QUERY) + len(TEXTS[1])
    (streamed,) = server.Predict.PredictPairStream(iter([tei.PredictPairRequest(inputs=pair)]))
    assert labels(streamed.predictions) == labels(wanted)
    for wrong in ([], ["a", "b", "c"]):
        failed = refused(lambda wrong=wrong: server.Predict.PredictPair(tei.PredictPairRequest(inputs=wrong)))
        assert failed.code() == Code.INVALID_ARGUMENT
    failed = refused(lambda: server.Embed.Embed(tei.EmbedRequest(inputs="a")))
    assert failed.code() == Code.FAILED_PRECONDITION, "the model is of another kind"


def test_embeddings_are_those_of_http(start: Start, make_checkpoint: MakeCheckpoint) -> None:
    prompts = {"query": "query: ", "document": "passage: "}
    server = start(make_checkpoint(embedder, prompts=prompts, normalize=False))
    for options in ({}, {"normalize": False}, {"normalize": True, "dimensions": 8}, {"prompt_name": "query"}):
        wanted = [post(server, "/embed", inputs=text, **options)[0] for text in TEXTS]
        streamed = list(server.Embed.EmbedStream(tei.EmbedRequest(inputs=text, **options) for text in TEXTS))
        for text, vector, reply in zip(TEXTS, wanted, streamed, strict=True):
            assert list(reply.embeddings) == pytest.approx(vector, rel=1e-5, abs=1e-6)
            alone = server.Embed.Embed(tei.EmbedRequest(inputs=text, **options))
            assert list(alone.embeddings) == pytest.approx(vector, rel=1e-5, abs=1e-6)
            assert alone.metadata.compute_chars == len(text)
    for message in (tei.EmbedRequest(inputs="a", prompt_name="other"), tei.EmbedRequest(inputs="a", dimensions=10**6)):
        assert refused(lambda message=message: server.Embed.Embed(message)).code() == Code.INVALID_ARGUMENT


def test_tokens_are_the_tokenizers(start: Start, bert_checkpoint: Path) -> None:
    server = start(bert_checkpoint)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert_checkpoint)
    for text in ("The giant panda", "熊猫 is panda, née"):
        for special in (True, False):
            encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
            (reply,) = server.Tokenize.TokenizeStream(
                iter([tei.EncodeRequest(inputs=text, add_special_tokens=special)])
            )
            assert reply == server.Tokenize.Tokenize(tei.EncodeRequest(inputs=text, add_special_tokens=special))
            assert [one.id for one in reply.tokens] == encoded["input_ids"]
            assert [one.special for one in reply.tokens].count(True) == (2 if special else 0)
            for one, (start_, stop) in zip(reply.tokens, encoded["offset_mapping"], strict=True):
                if one.special:
                    assert one.text in ("[CLS]", "[SEP]")
                    assert not one.HasField("start")
                else:
                    assert one.text == text[start_:stop]
                    assert text.encode()[one.start : one.stop].decode() == one.text
            for skip in (True, False):
                message = tei.DecodeRequest(ids=encoded["input_ids"], skip_special_tokens=skip)
                wanted = tokenizer.decode(encoded["input_ids"], skip_special_tokens=skip)
                assert server.Tokenize.Decode(message).text == wanted
                assert [one.text for one in server.Tokenize.DecodeStream(iter([message] * 3))] == [wanted] * 3
                assert post(server, "/decode", ids=[encoded["input_ids"]], skip_special_tokens=skip) == [wanted]
    assert post(server, "/tokenize", inputs=["hi", "é"])[1][1]["stop"] == 2
    for message in (tei.DecodeRequest(ids=[10**6]), tei.DecodeRequest()):
        assert refused(lambda message=message: server.Tokenize.Decode(message)).code() == Code.INVALID_ARGUMENT
    prompted = tei.EncodeRequest(inputs="a", prompt_name="query")
    assert refused(lambda: server.Tokenize.Tokenize(prompted)).details().startswith("prompt_name: ")


def test_info_is_https(server: Both) -> None:
    wanted = requests.get(f"{server.url}/tei/info", timeout=30).json()
    info = server.Info.Info(tei.InfoRequest())
    assert info.model_type == tei.MODEL_TYPE_RERANKER
    for name in ("version", "model_id", "model_dtype", "max_input_length", "max_client_batch_size"):
        assert getattr(info, name) == wanted[name]
    assert not info.HasField("model_sha")


def test_a_stream_is_answered_in_its_order_and_ends_with_the_first_error(server: Both) -> None:
    def messages() -> Iterator[Any]:
        for number in range(300):
            yield tei.PredictRequest(inputs=f"text {number}")

    replies = [one.predictions[0].score for one in server.Predict.PredictStream(messages())]
    assert replies == [server.Predict.Predict(one).predictions[0].score for one in messages()]
    sent = [tei.PredictRequest(inputs=text) for text in ("a", "b", "word " * 600, "c")]
    answers = server.Predict.PredictStream(iter(sent))
    assert len([next(answers), next(answers)]) == 2
    failed = refused(lambda: next(answers))
    assert failed.code() == Code.INVALID_ARGUMENT
    assert failed.details().startswith("inputs")


@pytest.mark.parametrize(
    ("message", "code", "details"),
    [
        (tei.RerankRequest(query="a"), Code.INVALID_ARGUMENT, "texts: must hold at least one text."),
        (tei.RerankRequest(query="a", texts=["b"] * 21), Code.INVALID_ARGUMENT, "texts: holds more than 20 documents"),
        (tei.RerankRequest(query="a", texts=["\x01" * 20000]), Code.INVALID_ARGUMENT, "The body is larger than"),
        (tei.RerankRequest(query="a", texts=["b" * 70000]), Code.RESOURCE_EXHAUSTED, "message larger than max"),
        (tei.RerankRequest(query="break", texts=["b"]), Code.FAILED_PRECONDITION, "The server failed on this request"),
    ],
)
def test_errors_have_teis_codes(server: Both, message: Any, code: Any, details: str) -> None:
    failed = refused(lambda: server.Rerank.Rerank(message))
    assert failed.code() == code
    assert details in failed.details()
    if code == Code.RESOURCE_EXHAUSTED:
        return
    texts = [tei.RerankStreamRequest(query=message.query, text=text) for text in message.texts]
    failed = refused(lambda: server.Rerank.RerankStream(iter(texts)))
    assert failed.code() == code


def test_a_stream_is_no_larger_than_a_message(server: Both) -> None:
    texts = (tei.RerankStreamRequest(query="a", text="b" * 10000) for _ in range(10))
    assert refused(lambda: server.Rerank.RerankStream(texts)).details().startswith("The stream is larger than")


def test_methods_that_are_not_there_are_unimplemented(server: Both) -> None:
    for method in ("/tei.v1.Embed/EmbedAll", "/tei.v1.Embed/EmbedSparse", "/tei.v1.Other/Other"):
        call = server.channel.unary_unary(method)
        assert refused(lambda call=call: call(b"")).code() == Code.UNIMPLEMENTED


@pytest.mark.parametrize("leave", ["cancel", "deadline", "stream"])
def test_a_client_that_leaves_frees_its_place(leave: str) -> None:
    fake = FakeReranker()
    with both(fake, Settings(names=(MODEL,))) as server:
        message = tei.RerankRequest(query="wait", texts=["b"])
        running = lambda: requests.get(f"{server.url}/load", timeout=30).json()["server_load"]  # noqa: E731
        if leave == "deadline":
            failed = refused(lambda: server.Rerank.Rerank(message, timeout=0.3))
            assert failed.code() == Code.DEADLINE_EXCEEDED
        else:
            call = server.Rerank.Rerank.future(message)
            if leave == "stream":
                streamed = tei.RerankStreamRequest(query="wait", text="b")
                call.cancel()
                call = server.Rerank.RerankStream.future(iter([streamed]))
            assert fake.waiting.wait(30)
            until(lambda: running() == 1)
            call.cancel()
        until(lambda: fake.cancelled >= 1 and running() == 0)
        counted = requests.get(f"{server.url}/metrics", timeout=30).text
        assert 'status="499"' in counted


def test_a_full_server_is_exhausted_and_a_stream_waits() -> None:
    fake = FakeReranker()
    with both(fake, Settings(names=(MODEL,), max_calls=1)) as server:
        waiting = server.Rerank.Rerank.future(tei.RerankRequest(query="wait", texts=["b"]))
        assert fake.waiting.wait(30)
        failed = refused(lambda: server.Rerank.Rerank(tei.RerankRequest(query="a", texts=["b"])))
        assert failed.code() == Code.RESOURCE_EXHAUSTED
        assert int(dict(failed.trailing_metadata())["retry-after"]) >= 1
        streamed = server.Predict.PredictStream(iter([tei.PredictRequest(inputs="a")]))
        until(lambda: 'route="/tei/predict",status="429"' in requests.get(f"{server.url}/metrics", timeout=30).text)
        fake.gate.set()
        assert len(waiting.result(30).ranks) == 1
        assert len(next(streamed).predictions) == 2


def test_keys_and_what_needs_none() -> None:
    message = tei.RerankRequest(query="a", texts=["b"])
    key = [("authorization", "Bearer k")]
    with both(FakeReranker(), Settings(names=(MODEL,), keys=("k",))) as server:
        for metadata in ([], [("authorization", "Bearer wrong")]):
            failed = refused(lambda metadata=metadata: server.Rerank.Rerank(message, metadata=metadata))
            assert failed.code() == Code.UNAUTHENTICATED
            each = server.Predict.PredictStream(iter([tei.PredictRequest(inputs="a")]), metadata=metadata)
            assert refused(lambda each=each: next(each)).code() == Code.UNAUTHENTICATED
        assert server.Rerank.Rerank(message, metadata=key).ranks[0].score == pytest.approx(
            fake_score(text_content("a"), text_content("b"))
        )
        checks = health_pb2_grpc.HealthStub(server.channel)
        assert checks.Check(health_pb2.HealthCheckRequest()).status == 1
        with pytest.raises(Exception, match="UNIMPLEMENTED"):
            ProtoReflectionDescriptorDatabase(server.channel).get_services()
    with both(FakeReranker(), Settings(names=(MODEL,), keys=("k",), protect_all=True)) as server:
        checks = health_pb2_grpc.HealthStub(server.channel)
        failed = refused(lambda: checks.Check(health_pb2.HealthCheckRequest()))
        assert failed.code() == Code.UNAUTHENTICATED
        assert checks.Check(health_pb2.HealthCheckRequest(), metadata=key).status == 1


def test_reflection_describes_the_services(server: Both) -> None:
    database = ProtoReflectionDescriptorDatabase(server.channel)
    assert "tei.v1.Rerank" in database.get_services()
    assert "grpc.health.v1.Health" in database.get_services()
    file = database.FindFileContainingSymbol("tei.v1.RerankStreamRequest")
    assert {service.name for service in file.service} == {"Info", "Embed", "Predict", "Rerank", "Tokenize"}


def test_health_is_that_of_the_server() -> None:
    fake = FakeReranker()
    with both(fake, Settings(names=(MODEL,))) as server:
        checks = health_pb2_grpc.HealthStub(server.channel)
        ask = health_pb2.HealthCheckRequest
        for name in ("", "tei.v1.Rerank", "tei.v1.Embed", "grpc.health.v1.Health"):
            assert checks.Check(ask(service=name)).status == health_pb2.HealthCheckResponse.SERVING
        assert refused(lambda: checks.Check(ask(service="other"))).code() == Code.NOT_FOUND
        watched = checks.Watch(ask())
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        assert next(checks.Watch(ask(service="other"))).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        fake.failure = EngineDead("its thread is gone")
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert checks.Check(ask()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        failed = refused(lambda: server.Rerank.Rerank(tei.RerankRequest(query="a", texts=["b"])))
        assert failed.code() == Code.UNAVAILABLE


def test_the_end_answers_what_is_in_flight_and_refuses_the_rest() -> None:
    fake = FakeReranker()
    with both(fake, Settings(names=(MODEL,))) as server:
        watched = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        waiting = server.Rerank.Rerank.future(tei.RerankRequest(query="wait", texts=["b"]))
        assert fake.waiting.wait(30)
        # A stream that its client holds open keeps no server.
        hold = threading.Event()

        def held() -> Iterator[Any]:
            yield tei.PredictRequest(inputs="a")
            hold.wait(60)

        streamed = server.Predict.PredictStream(held())
        assert len(next(streamed).predictions) == 2
        server.server.drain()
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        failed = refused(lambda: server.Rerank.Rerank(tei.RerankRequest(query="a", texts=["b"])))
        assert failed.code() == Code.UNAVAILABLE
        fake.gate.set()
        assert len(waiting.result(30).ranks) == 1
        hold.set()


def test_calls_are_counted_and_have_ids(server: Both, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "rerankd.access"):
        metadata = [("x-request-id", "mine"), ("content-encoding", "gzip"), ("some-bin", b"\x00\xff")]
        _, call = server.Rerank.Rerank.with_call(tei.RerankRequest(query="a", texts=["b"]), metadata=metadata)
    assert dict(call.trailing_metadata())["x-request-id"] == "mine"
    (line,) = [record for record in caplog.records if record.name == "rerankd.access"]
    assert line.request_id == "mine"  # type: ignore[attr-defined]
    assert '"POST /tei/rerank HTTP/2" 200' in line.getMessage()
    assert line.client == "127.0.0.1"  # type: ignore[attr-defined]
    counted = requests.get(f"{server.url}/metrics", timeout=30).text
    assert 'rerankd_requests_total{dialect="tei",route="/tei/rerank",status="200"}' in counted


def test_the_command_serves_it_over_tls_for_clients_with_a_certificate(bert_checkpoint: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    own = authority.issue_cert("client.example")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    roots, key = authority.cert_pem.bytes(), own.private_key_pem.bytes()
    chain = b"".join(blob.bytes() for blob in own.cert_chain_pems)
    flags = ["--ssl-certfile", str(tmp_path / "server.pem"), "--ssl-ca-certs", str(tmp_path / "ca.pem")]
    flags += ["--ssl-cert-reqs", str(int(ssl.CERT_REQUIRED)), "--grpc-port", "0", "--api-key", "k"]
    with launched(SERVE, str(bert_checkpoint), *flags) as server:
        assert server.process.stdout is not None
        said = next(line for line in server.process.stdout if line.startswith("TEI's gRPC API: "))
        address = said.rpartition(" ")[2].strip()
        message = tei.RerankRequest(query=QUERY, texts=TEXTS)
        bearer = [("authorization", "Bearer k")]
        for credentials in (grpc.ssl_channel_credentials(roots), None):
            opened = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
            with opened as channel:
                failed = refused(lambda: stubs(channel).Rerank.Rerank(message, metadata=bearer))
                assert failed.code() == Code.UNAVAILABLE
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(roots, key, chain)) as channel:
            assert refused(lambda: stubs(channel).Rerank.Rerank(message)).code() == Code.UNAUTHENTICATED
            reply = stubs(channel).Rerank.Rerank(message, metadata=bearer)
        wanted = requests.post(
            f"{server.url}/tei/rerank", json={"query": QUERY, "texts": TEXTS}, headers={"Authorization": "Bearer k"},
            verify=str(tmp_path / "ca.pem"), cert=str(tmp_path / "client.pem"), timeout=60,
        )  # fmt: skip
        assert pairs(reply.ranks) == pairs(wanted.json())


def test_what_cannot_be_served_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app: Any = None
    settings = Settings(names=(MODEL,))
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=r"another program listens there; .* another port with --grpc-port"):
            check_grpc("127.0.0.1", port, None)
        # Before the model, which there is not, is looked for.
        with pytest.raises(ListenError, match="--grpc-port"):
            _start(Launch("/no/such/model", port=0, grpc_port=port), (), {})
    for tls, why in ((Tls(str(tmp_path / "missing")), "missing"), (Tls("c", password="p"), "with a password")):
        with pytest.raises(ListenError, match=why):
            check_grpc("127.0.0.1", 0, tls)
    monkeypatch.setitem(sys.modules, "grpc_health.v1", None)
    monkeypatch.delitem(sys.modules, "rerankd.server.tei_grpc.server")
    pool: Any = None
    with pytest.raises(UsageProblem, match=r"pip install 'rerankd\[grpc\]'"):
        check_grpc("127.0.0.1", 0, None)
    assert _grpc(Launch("m"), app, pool, settings, None) is None


def test_the_model_of_the_metadata_answers(bert_checkpoint: Path, roberta_checkpoint: Path) -> None:
    named = [
        Named((name,), LoadOptions(str(folder), device="cpu", dtype="float32"))
        for name, folder in (("one", bert_checkpoint), ("two", roberta_checkpoint))
    ]
    pool = open_pool(named, Residence())
    try:
        with both(pool, Settings(names=("one",))) as server:
            message, found = tei.RerankRequest(query=QUERY, texts=TEXTS), {}
            for name in ("one", "two"):
                metadata = [("model", name)]
                wanted = post(server, "/rerank", query=QUERY, texts=TEXTS, model=name)
                found[name] = pairs(server.Rerank.Rerank(message, metadata=metadata).ranks)
                assert found[name] == pairs(wanted)
                assert server.Info.Info(tei.InfoRequest(), metadata=metadata).model_id.endswith(
                    str(named[name == "two"].options.model)
                )
            assert found["one"] != found["two"]
            failed = refused(lambda: server.Rerank.Rerank(message, metadata=[("model", "other")]))
            assert failed.code() == Code.NOT_FOUND
    finally:
        pool.close()
