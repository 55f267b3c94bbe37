"""A client of Session Manager's data channels, from the format that its agent and plugin publish: a terminal over a websocket.

Run as a program it stands in for the `session-manager-plugin` that the aws CLI calls. It does what that one does on the wire;
it is not that one, which no package registry has.
"""

import hashlib
import json
import re
import select
import struct
import sys
import time
import uuid

import websocket

# Header length, type, schema, created, sequence, flags, two halves of the id, digest, payload's type, payload's length.
HEADER = struct.Struct(">I32sIQqQ8s8s32sII")
INPUT, OUTPUT = "input_stream_data", "output_stream_data"
DATA, SIZE, HANDSHAKE_REQUEST, HANDSHAKE_RESPONSE, HANDSHAKE_COMPLETE, FLAG = 1, 3, 5, 6, 7, 10
SECONDS = 120
# The plugin's pieces of input.
PIECE = 1024


def encode(kind, sequence, payload_type, payload, flags=0, identifier=None):
    identifier = (identifier or uuid.uuid4()).bytes
    digest = hashlib.sha256(payload).digest()
    created = int(time.time() * 1000)
    fields = (116, kind.encode().ljust(32), 1, created, sequence, flags, identifier[8:], identifier[:8], digest)
    return HEADER.pack(*fields, payload_type, len(payload)) + payload


class Message:
    def __init__(self, data):
        length, kind, schema, created, self.sequence, self.flags, low, high, digest, self.payload_type, size = HEADER.unpack(
            data[: HEADER.size]
        )
        self.payload = data[HEADER.size :]
        self.kind = kind.decode().rstrip("\0 ")
        self.id = uuid.UUID(bytes=high + low)
        assert (length, schema, size) == (116, 1, len(self.payload)) and created > 0
        assert digest == hashlib.sha256(self.payload).digest()


class Terminal:
    """One session: attached, then typed into and read from, until it is closed."""

    def __init__(self, session, columns=80, rows=24):
        """`session` is what ExecuteCommand answers with that name. Returns once the handshake is complete."""
        self.heard, self.closed = b"", None
        self._sent, self._expected, self._early, self._unacknowledged = 0, 0, {}, {}
        self._ready = False
        self.socket = websocket.create_connection(session["streamUrl"], timeout=SECONDS)
        opening = {
            "MessageSchemaVersion": "1.0",
            "RequestId": str(uuid.uuid4()),
            "TokenValue": session["tokenValue"],
            "ClientId": str(uuid.uuid4()),
            "ClientVersion": "1.2.0.0",
        }
        self.socket.send(json.dumps(opening))
        self._until(lambda: self._ready or self.closed is not None)
        if self.closed is None:
            self.resize(columns, rows)

    def type(self, data):
        for start in range(0, len(data), PIECE):
            self._send(DATA, data[start : start + PIECE])

    def resize(self, columns, rows):
        self._send(SIZE, json.dumps({"cols": columns, "rows": rows}).encode())

    def expect(self, pattern):
        """The output so far, once it has this; the next call looks behind it."""
        self._until(lambda: re.search(pattern, self.heard) or self.closed is not None)
        found = re.search(pattern, self.heard)
        assert found, f"{pattern!r} did not come: {self.heard!r}, {self.closed!r}"
        before, self.heard = self.heard[: found.end()], self.heard[found.end() :]
        return before

    def end(self):
        """The rest of the output, and what the user is told of the end; nothing where the command has ended."""
        self._until(lambda: self.closed is not None)
        rest, self.heard = self.heard, b""
        return rest, self.closed

    def hang_up(self):
        self.socket.close()

    def step(self, seconds):
        """Reads what comes within so many seconds, if anything does, and sends again what nobody acknowledged."""
        self.socket.settimeout(seconds)
        try:
            opcode, data = self.socket.recv_data()
        except websocket.WebSocketTimeoutException:
            pass
        else:
            assert opcode == websocket.ABNF.OPCODE_BINARY, f"the session was closed: {opcode} {data!r}"
            self._take(Message(data))
        for sequence, (sent, data) in list(self._unacknowledged.items())[:1]:
            if time.monotonic() - sent > 1:
                self._unacknowledged[sequence] = (time.monotonic(), data)
                self.socket.send_binary(data)

    def _until(self, done):
        deadline = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < deadline, f"heard {self.heard!r}"
            self.step(1)

    def _send(self, payload_type, payload):
        data = encode(INPUT, self._sent, payload_type, payload)
        self._unacknowledged[self._sent] = (time.monotonic(), data)
        self._sent += 1
        self.socket.send_binary(data)

    def _take(self, message):
        if message.kind == "acknowledge":
            content = json.loads(message.payload)
            assert content["AcknowledgedMessageType"] == INPUT and content["IsSequentialMessage"] is True
            self._unacknowledged.pop(content["AcknowledgedMessageSequenceNumber"], None)
        elif message.kind == "channel_closed":
            self.closed = json.loads(message.payload)["Output"]
        elif message.kind == OUTPUT:
            self._acknowledge(message)
            if message.sequence >= self._expected:
                self._early[message.sequence] = message
            while self._expected in self._early:
                self._output(self._early.pop(self._expected))
                self._expected += 1

    def _acknowledge(self, message):
        content = {
            "AcknowledgedMessageType": message.kind,
            "AcknowledgedMessageId": str(message.id),
            "AcknowledgedMessageSequenceNumber": message.sequence,
            "IsSequentialMessage": True,
        }
        self.socket.send_binary(encode("acknowledge", 0, 0, json.dumps(content).encode(), flags=3))

    def _output(self, message):
        if message.payload_type == DATA:
            self.heard += message.payload
        elif message.payload_type == HANDSHAKE_REQUEST:
            actions = json.loads(message.payload)["RequestedClientActions"]
            assert [action["ActionType"] for action in actions] == ["SessionType"], actions
            assert actions[0]["ActionParameters"]["SessionType"] in ("Standard_Stream", "InteractiveCommands")
            done = {"ActionType": "SessionType", "ActionStatus": 1, "ActionResult": None, "Error": ""}
            response = {"ClientVersion": "1.2.0.0", "ProcessedClientActions": [done], "Errors": []}
            self._send(HANDSHAKE_RESPONSE, json.dumps(response).encode())
        elif message.payload_type == HANDSHAKE_COMPLETE:
            self._ready = True


def main(arguments):
    if not arguments:
        print("\nThe Session Manager plugin was installed successfully. Use the AWS CLI to start a session.\n")
        return
    session, _region, operation, _profile, request, endpoint = arguments
    session, request = json.loads(session), json.loads(request)
    assert operation == "StartSession" and request["Target"].startswith("ecs:") and endpoint
    print(f"\nStarting session with SessionId: {session['sessionId']}", flush=True)
    # The CLI passes ExecuteCommand's session on as it is; the plugin reads names without regard to case.
    terminal = Terminal(session)
    open_input = True
    while terminal.closed is None:
        if open_input and select.select([sys.stdin], [], [], 0)[0]:
            data = sys.stdin.buffer.raw.read(PIECE)
            open_input = bool(data)
            terminal.type(data)
        terminal.step(0.1)
        sys.stdout.buffer.write(terminal.heard)
        sys.stdout.flush()
        terminal.heard = b""
    if terminal.closed:
        print(f"\n\nSessionId: {session['sessionId']} : {terminal.closed}\n")
    else:
        print(f"\n\nExiting session with sessionId: {session['sessionId']}.\n")


if __name__ == "__main__":
    main(sys.argv[1:])
