"""`carechain storage`: what lies here and how it fares; reading it back, bringing what is missing, giving back space."""

import contextlib
import datetime as dt
import itertools
import re
from collections.abc import Iterator
from typing import Annotated

import typer

from node.cli.bench import size_bytes
from node.cli.client import Client
from node.cli.output import Document, facts, progress, say, table
from node.cli.session import HomeOption, JsonOption, Session, noun
from protocol.errors import CarechainError, Refused, Unavailable

app = noun("storage", "Stored chunks: their replication and health.")

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


@app.command()
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show what is stored here, in how many replicas, what is not as it should be, and how it grows."""
    session = Session.start(home, as_json)
    session.output.document(Client(session.home).get("/v1/storage"), _show_status)


@app.command()
def scrub(
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate",
            metavar="SIZE/s",
            help="Read no faster, for example 50M/s [default: as other work leaves it].",
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every stored chunk back now, and repair what is bad; exit 1 when something stays so.

    Joins a scrub that was asked for before. Ctrl-C leaves it going on in the daemon.
    """
    session = Session.start(home, as_json)
    fields = {} if rate is None else {"rate": _rate(rate)}
    parts = Client(session.home).lines("/v1/storage/scrub", **fields)
    try:
        result = _scrubbed(parts)
    except KeyboardInterrupt:
        raise CarechainError(
            "no longer watching; the scrub goes on in the daemon, see carechain storage status"
        ) from None
    session.output.document(result, _show_scrub)
    if not result["ok"]:
        raise CarechainError(_scrub_failure(result))


@app.command()
def repair(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Look now for what is missing here or with other members, and bring it there; exit 1 when something stays missing."""
    session = Session.start(home, as_json)
    titles = {"records": "Looking at records", "missing": "Bringing what is missing"}
    result = _followed(Client(session.home).lines("/v1/storage/repair"), titles)
    session.output.document(result, _show_repair)
    for member in result["unhelpful"]:
        session.output.notice(f"{member['facility']} could not help: {member['reason']}")
    if not result["ok"]:
        raise CarechainError(_repair_failure(result))


@app.command()
def reclaim(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Give back the space of what was deleted or abandoned; exit 1 when some of it cannot be given back."""
    session = Session.start(home, as_json)
    titles = {
        "chunks": "Looking for abandoned chunks",
        "abandoned": "Deleting them",
        "tables": "Rewriting tables",
    }
    result = _followed(Client(session.home).lines("/v1/storage/reclaim"), titles)
    session.output.document(result, _show_reclaim)
    if not result["ok"]:
        raise CarechainError(
            f"{result['unreclaimed']} deleted chunks lie beside damaged payloads and keep their space; "
            "carechain run --rebuild payloads gives it back"
        )


# --- following ------------------------------------------------------------------------------------------------------


def _scrubbed(parts: Iterator[Document]) -> Document:
    """Show the bytes read, the rate and the time left; return the result."""
    first = next(parts, {})
    total = first.get("progress", {}).get("of_bytes")
    with progress("Scrubbing", total, in_bytes=True) as show:
        for part in itertools.chain([first], parts):
            if "result" in part:
                result: Document = part["result"]
                return result
            show(int(part.get("progress", {}).get("bytes", 0)))
    raise _broken_off()


def _followed(parts: Iterator[Document], titles: dict[str, str]) -> Document:
    """Show the progress of each part on a terminal, and return the result."""
    with contextlib.ExitStack() as bars:
        shown = ""
        for part in parts:
            if "result" in part:
                result: Document = part["result"]
                return result
            step = part["progress"]
            if step["part"] != shown:
                bars.close()
                shown = step["part"]
                show = bars.enter_context(progress(titles.get(shown, shown), step.get("total")))
            show(int(step["done"]))
    raise _broken_off()


def _broken_off() -> Unavailable:
    return Unavailable(
        "the answer broke off before its end; repeat it, and see the daemon's log if it stays so"
    )


def _rate(text: str) -> int:
    match = re.fullmatch(r"(.+?)(?:/s)?", text.strip())
    try:
        return size_bytes(match[1] if match is not None else text)
    except Refused:
        raise Refused(f"'{text}' is not a rate; give bytes per second, for example 50M/s") from None


# --- showing --------------------------------------------------------------------------------------------------------


def _show_status(document: Document) -> None:
    growth, scrubbing = document.get("growth") or {}, document.get("scrub") or {}
    rows = [
        ("records", f"{document.get('records', 0)}, {document.get('own_records', 0)} of them our own"),
        ("chunks", document["chunks"]),
        ("bytes", size_text(document["bytes"])),
        ("padding", _padding(document)),
        ("under replicated", document["under_replicated"]),
        ("corrupt", document["corrupt"]),
        ("quarantined", document.get("quarantined")),
        ("lacking records", document.get("lacking")),
        ("pending records", document.get("pending")),
        ("erased, pending", document.get("erased_pending")),
        ("files", _files(document)),
        *((f"compaction of {name}", _levels(found)) for name, found in document.get("databases", {}).items()),
        ("free", _free(document)),
        ("growth", _growth(growth)),
        ("surplus chunks", document.get("surplus")),
        ("compared", _time(document.get("compared_ms")) or "not yet"),
        ("scrub", _walk(scrubbing.get("walk")) or "not running"),
        ("last scrub", _walk(scrubbing.get("last")) or "never"),
    ]
    table(("storage", ""), rows, empty="")
    replicas = document.get("replicas") or {}
    if replicas:
        say()
        most = max(replicas.values())
        shown = [(count, chunks, "#" * -(-30 * chunks // most)) for count, chunks in replicas.items()]
        table(("replicas", "own chunks", ""), shown, empty="")
    if document.get("challenges"):
        say()
        names = ("facility", "asked", "lacking", "silent", "wrong", "trusted")
        table(
            ("challenged", *names[1:]),
            ([member[name] for name in names] for member in document["challenges"]),
            empty="",
        )
    for problem in document.get("problems", ()):
        say(f"! {problem}")


def _files(document: Document) -> str:
    held, overhead = document.get("unreclaimed", 0), document.get("file_overhead", 0.0)
    more = f", {overhead:.0%} more than is stored" if overhead >= 0.01 else ""
    return (
        size_text(document.get("file_bytes", 0))
        + more
        + (f", {held} deleted chunks among them" if held else "")
    )


def _padding(document: Document) -> str:
    own, most = document.get("padding_overhead", 0.0), document.get("padding_overhead_max", 0.0)
    return f"{own:.1%} of our own records, at most {most:.1%} of all"


def _levels(database: Document) -> str:
    parts = [
        f"{level['files']} files in level {level['level']}" for level in database["levels"] if level["files"]
    ]
    written = sum(level["written_bytes"] for level in database["levels"])
    state = "under way" if database["compacting"] else "idle"
    return f"{state}; {', '.join(parts) or 'no files'}; {size_text(written)} written since the start"


def _free(document: Document) -> str:
    free, share = document.get("free_bytes", 0), document.get("free_share", 0.0)
    return (
        f"{size_text(free)} ({share:.0%}); records are refused below {document.get('reserve_share', 0.0):.0%}"
    )


def _growth(growth: Document) -> str:
    rate = growth.get("bytes_per_day")
    if rate is None:
        return "not known yet"
    text = f"{'-' if rate < 0 else ''}{size_text(abs(rate))} a day, over {growth['over_days']} days"
    left = growth.get("days_left")
    return text if left is None else f"{text}; room for {left} days"


def _walk(walk: Document | None) -> str:
    if not walk:
        return ""
    found = f"{walk['bad']} bad, {walk['repaired']} repaired"
    if walk.get("ended_ms"):
        return f"{_time(walk['ended_ms'])}: {walk['chunks']} chunks, {found}"
    limit = f" at {size_text(walk['rate'])}/s at most" if walk.get("rate") else ""
    left = walk.get("seconds_left")
    time_left = f", {dt.timedelta(seconds=left)} left" if left is not None else ""
    return f"{size_text(walk['bytes'])} of {size_text(walk['of_bytes'])}{limit}{time_left}: {found}"


def _time(unix_ms: int | None) -> str:
    return f"{dt.datetime.fromtimestamp(unix_ms / 1000, dt.UTC):%Y-%m-%d %H:%MZ}" if unix_ms else ""


def _show_scrub(document: Document) -> None:
    facts((name, document[name]) for name in ("chunks", "bytes", "bad", "repaired", "corrupt"))
    for name in document["damaged"]:
        say(f"! {name} is damaged and on no member that answers now")


def _show_repair(document: Document) -> None:
    names = ("records", "fetched", "sent", "lacking", "under_replicated", "corrupt")
    facts((name.replace("_", " "), document[name]) for name in names)


def _show_reclaim(document: Document) -> None:
    facts(
        [
            ("given back", size_text(document["reclaimed_bytes"])),
            ("abandoned chunks", document["abandoned"]),
            ("files", size_text(document["file_bytes"])),
            ("stored", size_text(document["bytes"])),
        ]
    )


def _scrub_failure(result: Document) -> str:
    if result["problems"]:
        return f"the scrub cannot go on: {result['problems'][0]}"
    away = f" ({', '.join(result['away'])} not connected)" if result["away"] else ""
    return (
        f"{result['corrupt']} damaged chunks are on no member that answers now{away}; "
        "they are asked for again every few seconds, see carechain storage status"
    )


def _repair_failure(result: Document) -> str:
    left = [
        f"{result[name]} {words}"
        for name, words in (
            ("lacking", "records are not whole here"),
            ("under_replicated", "chunks have too few replicas"),
            ("corrupt", "chunks are damaged"),
        )
        if result[name]
    ]
    if not left:
        return f"the repair cannot go on: {result['problems'][0] if result['problems'] else 'see the log'}"
    helpless = ", ".join(member["facility"] for member in result["unhelpful"])
    who = f" ({helpless} could not help)" if helpless else ""
    return f"{' and '.join(left)}{who}; the daemon goes on trying, see carechain storage status"


def size_text(size: int) -> str:
    """Return a number of bytes for people, such as 1.5 GiB."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size} bytes" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"
