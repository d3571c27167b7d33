# SPDX-License-Identifier: Apache-2.0
"""What becomes of a packet, said in plain Python: from SCENARIOS, DESIGN, the contract (abi.h) and the RFCs.

`Reference` takes the packets of one topology in the order in which they arrive at the hooks, keeps the connections
that they make, and says of each what must happen: an `Expected`. Written to be read beside the scenarios, it
shares nothing with the programs: no table, no order of checks. Where several refusals apply to one packet, any of
their reasons will do. A module a subject: what a container sends (`container`), and asks (`questions`), what arrives
from outside (`outside`) and from the host (`gateway`), what all of them share (`forwarding`), and what they ask:
`routes`, `nat`, `fragments`, `connections`, `errors`, `addresses`.

Decided here, as no document says it:
- Checksums of what passes are not verified, only kept as right or as wrong as they were (RFC 1624): the receiver
  looks. The same goes for the lengths that UDP and TCP state of themselves.
- An address without a route is the host's to refuse (decision 6), as are blackholes.
- Nothing ages: times matter to the GC alone, and no run lasts as long.
"""

from __future__ import annotations

from tests.model.container import FromContainer
from tests.model.gateway import FromHost
from tests.model.outside import FromOutside


class Reference(FromContainer, FromOutside, FromHost):
    pass
