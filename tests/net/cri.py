# SPDX-License-Identifier: Apache-2.0
"""A client of the Container Runtime Interface, as a process: a JSON line for each request and each answer.

gRPC has threads, and the tests fork.
"""

from __future__ import annotations

import json
import sys

import grpc
from google.protobuf import json_format

PROTO = "tests/net/cri.proto"  # below the folder that the process starts in


def main() -> None:
    """Requests on stdin have service, method, request and timeout (seconds), answers have answer or error."""
    messages, services = grpc.protos_and_services(PROTO)
    channel = grpc.insecure_channel(f"unix:{sys.argv[1]}")
    for line in sys.stdin:
        asked = json.loads(line)
        stub = getattr(services, f"{asked['service']}Stub")(channel)
        request = json_format.ParseDict(asked["request"], getattr(messages, f"{asked['method']}Request")())
        try:
            answer = getattr(stub, asked["method"])(request, timeout=asked["timeout"], wait_for_ready=True)
            said = {"answer": json_format.MessageToDict(answer, preserving_proto_field_name=True)}
        except grpc.RpcError as error:
            said = {"error": error.details()}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
