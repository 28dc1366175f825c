"""Why Kafka's client cannot connect, in words that name the setting to look at instead of the library's state."""

from __future__ import annotations

SILENCE = "nothing comes back; if the port wants TLS or a user, KAFKA_SECURITY_PROTOCOL must say so"

_REASONS = (
    (
        "invalid credentials",
        "the broker knows no such user with this password; look at KAFKA_USERNAME and KAFKA_PASSWORD",
    ),
    (
        "username or password",
        "the broker knows no such user with this password; look at KAFKA_USERNAME and KAFKA_PASSWORD",
    ),
    ("supported mechanisms:  ", "the broker wants no user at this port; look at KAFKA_SECURITY_PROTOCOL and the port"),
    ("mechanism handshake failed", "the broker does not know KAFKA_SASL_MECHANISM{mechanisms}"),
    (
        "certificate verify failed",
        "the broker's certificate is signed by no authority that is known here; KAFKA_CA_FILE must name it",
    ),
    ("ca.location failed", "KAFKA_CA_FILE cannot be read, or holds no certificate"),
    (
        "ipaddress mismatch",
        "the broker's certificate is for another host; name the host in KAFKA_BROKERS as the certificate does",
    ),
    (
        "hostname mismatch",
        "the broker's certificate is for another host; name the host in KAFKA_BROKERS as the certificate does",
    ),
    ("in state ssl_handshake", "the port speaks no TLS, it seems; look at KAFKA_SECURITY_PROTOCOL and the port"),
    (
        "while requesting apiversion",
        "the broker hangs up; if the port wants TLS or a user, KAFKA_SECURITY_PROTOCOL must say so",
    ),
    ("waiting for controller", SILENCE),
    ("must be set", "KAFKA_USERNAME and KAFKA_PASSWORD must be set for this KAFKA_SECURITY_PROTOCOL"),
    ("connection refused", "nothing listens there; look at the host and the port"),
    ("failed to resolve", "there is no host of that name"),
)


def in_plain_words(reason: str) -> str:
    """What the library says of a connection, or the same in words of ours where it is a usual mistake."""
    low = reason.lower()
    for part, words in _REASONS:
        if part in low:
            known = reason.partition("supported mechanisms: ")[2].partition(" ")[0]
            return words.format(mechanisms=f"; it knows {known.replace(',', ', ')}" if known else "")
    return reason


def code_of(error: Exception) -> int | None:
    """Kafka's code, if it is an error of its client's."""
    from confluent_kafka import KafkaException

    return int(error.args[0].code()) if isinstance(error, KafkaException) else None
