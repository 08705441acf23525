"""Logs say what happened and never about whom."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog

from node import telemetry
from node.telemetry import LogFormat
from protocol.errors import Unavailable


@contextmanager
def configured(log_format: LogFormat = "json") -> Iterator[Any]:
    """Send logs to the standard error of this moment: the one that capsys holds during a test."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    telemetry.configure(level="info", log_format=log_format)
    try:
        yield structlog.get_logger()
    finally:
        structlog.reset_defaults()
        root.handlers[:] = before
        root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, error = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in error.splitlines()]


def test_only_known_fields_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    with configured() as log:
        log.info(
            "record committed",
            height=7,
            record=b"\xab\xcd",
            name="Jane Doe",
            birth_date="1970-01-01",
            user="dr who",
        )
    (line,) = lines(capsys)
    assert set(line) == {"event", "level", "timestamp", "height", "record"}
    assert line["record"] == "abcd"


def test_an_unexpected_error_is_logged_without_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    with configured() as log:
        try:
            int("Jane Doe")
        except ValueError as error:
            log.warning("a call failed", exc_info=error)
    (line,) = lines(capsys)
    assert "Jane" not in json.dumps(line)
    assert line["error_type"] == "ValueError"
    assert line["error_at"].startswith("test_telemetry.py:")


def test_the_sentence_of_our_own_error_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with configured() as log:
        log.warning("retrying", exc_info=Unavailable("no replica answers"))
    assert lines(capsys)[0]["error"] == "no replica answers"


def test_libraries_lose_what_was_filled_in(capsys: pytest.CaptureFixture[str]) -> None:
    with configured():
        logging.getLogger("lib").warning("peer %s said %s", "12D3", "Jane Doe")
        logging.getLogger("lib").error("Jane Doe again")
        logging.getLogger("lib").info("too quiet to be heard")
    templated, literal = lines(capsys)
    assert templated["reason"] == "peer %s said %s"
    assert "Jane" not in json.dumps([templated, literal])
    assert literal["reason"].startswith("test_telemetry:")


def test_text_format_is_one_line_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    with configured("text") as log:
        log.info("elected", leader="12D3", exc_info=KeyError("x"))
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "elected" in error


def test_metrics_count_requests_by_route_and_show_the_report() -> None:
    metrics = telemetry.Metrics()
    metrics.count_request("/v1/status", 200)
    text = metrics.render(
        {"height": 7, "peers": [{"connected": True}, {"connected": False}], "problems": ["x"]}
    ).decode()
    assert 'carechain_api_requests_total{route="/v1/status",status="200"} 1.0' in text
    assert "carechain_height 7.0" in text
    assert "carechain_peers_connected 1.0" in text
    assert "carechain_problems 1.0" in text
