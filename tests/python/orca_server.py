"""A gRPC server of another language that offers ORCA's out-of-band reports.

It has nothing of ours: grpcio serves, the published xds protos say what is sent.
Prints the port that it listens on, and serves until its standard input ends.
"""

import argparse
import os
import sys
import time
from concurrent import futures

import grpc
from xds.data.orca.v3 import orca_load_report_pb2
from xds.service.orca.v3 import orca_pb2


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", type=float, default=0.25, help="cpu_utilization")
    parser.add_argument("--rps", type=float, default=100.0, help="rps_fractional")
    parser.add_argument("--latency-ms", type=float, default=20.0, help="a named metric")
    parser.add_argument(
        "--min-interval",
        type=float,
        default=30.0,
        help="the least seconds between two reports, as in gRPC's own servers",
    )
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    report = orca_load_report_pb2.OrcaLoadReport(
        cpu_utilization=arguments.cpu,
        rps_fractional=arguments.rps,
        named_metrics={"latency_ms": arguments.latency_ms},
    )

    def stream_core_metrics(request, context):
        wanted = request.report_interval.ToTimedelta().total_seconds()
        while context.is_active():
            yield report
            time.sleep(max(wanted, arguments.min_interval))

    # The package has the messages and no stubs: the handler is named by hand.
    service = orca_pb2.DESCRIPTOR.services_by_name["OpenRcaService"]
    handler = grpc.unary_stream_rpc_method_handler(
        stream_core_metrics,
        request_deserializer=orca_pb2.OrcaLoadReportRequest.FromString,
        response_serializer=orca_load_report_pb2.OrcaLoadReport.SerializeToString,
    )
    handlers = {"StreamCoreMetrics": handler}
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service.full_name, handlers)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)

    sys.stdin.read()
    # Without waiting for the threads that sleep until their next report.
    os._exit(0)


if __name__ == "__main__":
    main()
