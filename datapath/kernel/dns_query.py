# SPDX-License-Identifier: Apache-2.0
"""Questions to name servers, by a socket of the calling thread's namespace."""

from __future__ import annotations

from typing import NamedTuple

from datapath.errors import ConfigError, quoted

_PATIENCE = 5.0  # seconds, as the C library has


class Reply(NamedTuple):
    """`status`: the response code's name; `records` of the type that was asked for: their data."""

    status: str
    records: tuple[str, ...]


def check_type(text: str) -> str:
    """The mnemonic of a record's type, in capitals. ConfigError: there is none such."""
    import dns.rdatatype

    try:
        return dns.rdatatype.to_text(dns.rdatatype.from_text(text))
    except (dns.rdatatype.UnknownRdatatype, ValueError):
        raise ConfigError(f"{quoted(text)} is no type of DNS records: A, AAAA, PTR, MX, TXT are") from None


def ask(server: str, name: str, kind: str, patience: float = _PATIENCE) -> Reply | None:
    """Asks a server, whose address may have a `%` and a device behind it, by UDP, and by TCP if the answer is too long.
    None: it has not answered in as many seconds, or cannot be reached."""
    import dns.exception
    import dns.message
    import dns.name
    import dns.query
    import dns.rcode
    import dns.rdatatype

    wanted = dns.rdatatype.from_text(kind)
    question = dns.message.make_query(dns.name.from_text(name), wanted)
    try:
        answer, _ = dns.query.udp_with_fallback(question, server, timeout=patience)
    except (dns.exception.DNSException, OSError):
        return None
    found = (record for rrset in answer.answer if rrset.rdtype == wanted for record in rrset)
    return Reply(dns.rcode.to_text(answer.rcode()), tuple(record.to_text() for record in found))
