"""The routes of `audit receipt` and `audit update` on the local socket: files travel as base64 beside what they are about."""

import base64
from collections.abc import Mapping
from typing import Any

from starlette.routing import Route

from node.receipt_proofs import ReceiptProofs
from node.telemetry import Metrics
from node.update_proofs import UpdateProofs
from node.web.answers import Fields, WrongUsage, call


def receipt_routes(receipts: ReceiptProofs, updates: UpdateProofs, metrics: Metrics) -> list[Route]:
    """Return the routes that make proofs for people outside of the network."""

    async def receipt(fields: Fields) -> Mapping[str, Any]:
        made = await receipts.make(fields.text("transaction"), told=not fields.flag("leaf_only"))
        return {
            "transaction": made.receipt.txid.hex(),
            "verdict": made.receipt.verdict,
            "network": made.finding.network.hex(),
            "height": made.finding.height,
            "index": made.finding.index,
            "time_ms": made.finding.time_ms,
            "receipt": base64.b64encode(made.data).decode(),
        }

    async def update(fields: Fields) -> Mapping[str, Any]:
        since = fields.number("since")
        if since < 0:
            raise WrongUsage("the field 'since' is no height")
        height, data = updates.make(since)
        return {"since": since, "height": height, "update": base64.b64encode(data).decode()}

    return [call("/v1/audit/receipt", receipt, metrics), call("/v1/audit/update", update, metrics)]
