"""Requests as they go over the wire: signed with botocore's own signer, or broken on purpose."""

import datetime
import http.client
import json

import botocore.auth
import botocore.awsrequest
import botocore.credentials

TARGETS = {
    "ecs": "AmazonEC2ContainerServiceV20141113",
    "logs": "Logs_20140328",
    "berth": "Berth_20261101",
}
TIME_FORMAT = "%Y%m%dT%H%M%SZ"


class WireError(Exception):
    """An answer that is an error."""

    def __init__(self, status, body):
        super().__init__(f"{status}: {body}")
        self.status, self.name, self.message = status, body.get("__type"), body.get("message")


class _SignerOfAnotherTime(botocore.auth.SigV4Auth):
    """Signs as if it were another time: botocore takes the time from the clock."""

    def __init__(self, *arguments, at):
        super().__init__(*arguments)
        self._at = at.strftime(TIME_FORMAT)

    def add_auth(self, request):
        request.context["timestamp"] = self._at
        self._modify_request_before_signing(request)
        canonical = self.canonical_request(request)
        signature = self.signature(self.string_to_sign(request, canonical), request)
        self._inject_signature_to_request(request, signature)


class Wire:
    def __init__(self, host, port, access_key, secret_key, region="us-east-1"):
        self.host, self.port, self.region = host, port, region
        self.credentials = botocore.credentials.Credentials(access_key, secret_key)

    def headers(self, service, operation, body, credentials=None, at=None, region=None):
        """The headers of a signed request."""
        request = botocore.awsrequest.AWSRequest(
            method="POST",
            url=f"http://{self.host}:{self.port}/",
            data=body,
            headers={
                "Content-Type": "application/x-amz-json-1.1",
                "X-Amz-Target": f"{TARGETS[service]}.{operation}",
                "Host": f"{self.host}:{self.port}",
            },
        )
        signer = _SignerOfAnotherTime(
            credentials or self.credentials,
            service,
            region or self.region,
            at=at or datetime.datetime.now(datetime.timezone.utc),
        )
        signer.add_auth(request)
        return dict(request.headers.items())

    def send(self, headers, body, timeout=120):
        """Status and body of whatever comes back."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request("POST", "/", body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def call(self, service, operation, payload=None, **signing):
        body = payload if isinstance(payload, bytes) else json.dumps(payload or {}).encode()
        status, answer = self.send(self.headers(service, operation, body, **signing), body)
        document = json.loads(answer)
        if status != 200:
            raise WireError(status, document)
        return document

    def berth(self, operation, **payload):
        """One of the daemon's own operations."""
        return self.call("berth", operation, payload)
