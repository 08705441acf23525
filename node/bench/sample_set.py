"""What `carechain bench storage` stores, made from a fixed seed so that it is the same every time.

The set is that of the design's storage page: three quarters incompressible (images), one quarter NDJSON. Beside it,
laboratory results of 2 KiB, each another one: HL7 v2 messages, which are kept as they are, and FHIR, which is sorted.
"""

import json
from collections.abc import Iterator

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocol import limits

_INCOMPRESSIBLE = 3 / 4
_FILE_BYTES = 64 * limits.MIB
BLOCK_BYTES = 4 * limits.MIB
"""What `ingest` gathers before it hands on."""
_NDJSON_BYTES = 8 * limits.MIB
_SEED = bytes(range(32))
_SMALL_BYTES = 2 * limits.KIB


def files(set_bytes: int) -> Iterator[Iterator[bytes]]:
    """Yield the files of the set, each as blocks.

    The bytes repeat after some MiB, which no step can use: it is beyond zstd's window, and equal plaintext never gives
    equal chunks. So making them costs nothing while the clock runs.
    """
    noise = incompressible(min(_FILE_BYTES, set_bytes) // 2)
    images = int(set_bytes * _INCOMPRESSIBLE)
    for start in range(0, images, _FILE_BYTES):
        yield blocks(noise, min(_FILE_BYTES, images - start))
    yield blocks(_ndjson(min(_NDJSON_BYTES, set_bytes)), set_bytes - images)


def blocks(pattern: bytes, size: int) -> Iterator[bytes]:
    """Yield so many bytes of a pattern over and over, as `ingest` would gather them; no block reaches over its end."""
    view, start = memoryview(pattern), 0
    while start < size:
        offset = start % len(pattern)
        block = bytes(view[offset : offset + min(BLOCK_BYTES, size - start)])
        yield block
        start += len(block)


def incompressible(size: int) -> bytes:
    """Return noise."""
    encryptor = Cipher(algorithms.AES(_SEED), modes.CTR(bytes(16))).encryptor()
    return encryptor.update(bytes(size))


def _ndjson(size: int) -> bytes:
    """Return lines of laboratory results that differ as real ones do: ids, times and values."""
    lines: list[bytes] = []
    total = 0
    digits = incompressible(size // 8).hex()
    for number in range(size):
        offset = number * 48 % (len(digits) - 48)
        part = digits[offset : offset + 48]
        line = (
            f'{{"resourceType":"Observation","id":"{part[:32]}","status":"final","category":[{{"coding":[{{"system":'
            f'"http://terminology.hl7.org/CodeSystem/observation-category","code":"laboratory"}}]}}],"code":{{"coding":'
            f'[{{"system":"http://loinc.org","code":"{2000 + number % 7000}-{number % 10}"}}]}},"subject":{{"reference":'
            f'"Patient/{number % 1000}"}},"effectiveDateTime":"2024-{number % 12 + 1:02}-{number % 28 + 1:02}T08:'
            f'{number % 60:02}:00Z","valueQuantity":{{"value":{int(part[32:38], 16) / 1000},"unit":"mg/dL"}}}}\n'
        ).encode()
        lines.append(line)
        total += len(line)
        if total >= size:
            break
    return b"".join(lines)[:size]


def laboratory_result(number: int) -> bytes:
    """Return one FHIR Observation of 2 KiB, a blood count of several components, unlike that of any other number."""
    components = [
        {
            "code": {"coding": [{"system": "http://loinc.org", "code": f"{700 + part}-{part}"}]},
            "valueQuantity": {"value": (number * 31 + part * 7) % 10_000 / 100, "unit": "g/dL"},
        }
        for part in range(13)
    ]
    resource = {
        "resourceType": "Observation",
        "id": f"bench-{number}",
        "status": "final",
        "category": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/observation-category",
                        "code": "laboratory",
                    }
                ]
            }
        ],
        "code": {"coding": [{"system": "http://loinc.org", "code": "58410-2"}]},
        "subject": {"reference": f"Patient/{number % 1000}"},
        "component": components,
    }
    # White space after the last brace: JSON allows it.
    return json.dumps(resource).encode().ljust(_SMALL_BYTES)


def laboratory_message(number: int) -> bytes:
    """Return one HL7 v2 result of 2 KiB, unlike that of any other number."""
    lines = [
        f"MSH|^~\\&|LAB|BENCH|EHR|BENCH|20240102030405||ORU^R01|{number}|P|2.5.1",
        f"PID|1||{number % 1000}^^^BENCH||Bench^Patient",
    ]
    while sum(map(len, lines)) + len(lines) < _SMALL_BYTES - 80:
        part = len(lines)
        lines.append(
            f"OBX|{part}|NM|{700 + part}-{part}^Component {part}^LN||{(number * 31 + part) % 9973 / 100}|g/dL|||||F"
        )
    return "\r".join(lines).encode().ljust(_SMALL_BYTES, b"\r")
