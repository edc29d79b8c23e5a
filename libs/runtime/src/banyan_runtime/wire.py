"""Every verb of the mesh on one page; a test holds it against `proto/`."""

from __future__ import annotations

from banyan.v1 import calls_pb2, kv_pb2, router_pb2, worker_pb2
from banyan_runtime.rpc import BidiStream, ClientStream, ServerStream, Unary

CONVERSE = BidiStream("/banyan.v1.Calls/Converse", calls_pb2.CallBatch, calls_pb2.AnswerBatch)

PLACE = Unary("/banyan.v1.Router/Place", router_pb2.PlaceRequest, router_pb2.PlaceResponse)
VIEW = Unary("/banyan.v1.Router/View", router_pb2.ViewRequest, router_pb2.ViewResponse)

WATCH = ServerStream("/banyan.v1.Worker/Watch", worker_pb2.WatchRequest, worker_pb2.WorkerReport)
PREFILL = Unary("/banyan.v1.Worker/Prefill", worker_pb2.PrefillRequest, worker_pb2.Admission)
DECODE = Unary("/banyan.v1.Worker/Decode", worker_pb2.DecodeRequest, worker_pb2.Admission)
TOKENS = BidiStream("/banyan.v1.Worker/Tokens", worker_pb2.TokensRequest, worker_pb2.TokensReport)
PULL = ServerStream("/banyan.v1.Worker/Pull", worker_pb2.PullRequest, kv_pb2.KvPages)
RELEASE = Unary("/banyan.v1.Worker/Release", worker_pb2.ReleaseRequest, worker_pb2.ReleaseResponse)
DRAIN = Unary("/banyan.v1.Worker/Drain", worker_pb2.DrainRequest, worker_pb2.DrainResponse)

STORE_HAS = Unary("/banyan.v1.KvStore/Has", kv_pb2.HasRequest, kv_pb2.HasResponse)
STORE_GET = ServerStream("/banyan.v1.KvStore/Get", kv_pb2.GetRequest, kv_pb2.KvPages)
STORE_PUT = ClientStream("/banyan.v1.KvStore/Put", kv_pb2.KvPages, kv_pb2.PutResponse)
STORE_STATS = Unary("/banyan.v1.KvStore/Stats", kv_pb2.StatsRequest, kv_pb2.StatsResponse)
