"""A request that has come whole is counted, limited and answered as one that went through the application."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Scope

from provisioning.api.application import new_application
from provisioning.api.cut_off import CutOff
from provisioning.api.est import MAXIMUM_BODY, Answer, EstResponder
from provisioning.api.metrics import Metrics
from provisioning.api.whole_requests import WholeRequests
from provisioning.config import Settings
from provisioning.errors import Code, Refused
from tests.support.asgi import through
from tests.support.panic import a_panic

PATH = "/.well-known/est/simpleenroll"
CREDENTIAL = b"Basic " + base64.b64encode(b"meter-1:fgt_token")


class Enrolment:
    """Raises what it is told to; it is asked nothing else here."""

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure
        self.asked = 0

    async def enrol(self, *_: Any) -> None:
        self.asked += 1
        raise self.failure


def scope(client: str = "192.0.2.1", path: str = PATH) -> Scope:
    headers = [(b"content-type", b"application/pkcs10"), (b"authorization", CREDENTIAL)]
    return {"type": "http", "method": "POST", "path": path, "headers": headers, "client": (client, 1), "extensions": {}}


def both(enrolment: Enrolment, **settings: float) -> tuple[WholeRequests, Any, Metrics]:
    """Return what answers whole requests, the application, and what both count in."""
    metrics = Metrics()

    def devices(answer: Answer) -> EstResponder:
        parts: Any = {"enrolment": enrolment, "authorities": None, "signer": None}
        return EstResponder(answer, **parts)

    configured = Settings().model_copy(update=settings)
    app = new_application(configured, metrics, port="https", devices=devices)
    return app.state.whole, app, metrics


async def answer(whole: WholeRequests, asked: Scope, body: bytes) -> Response:
    """Return the answer without the application."""
    answering = whole.answering(asked, body)
    assert answering is not None
    return await answering


@pytest.mark.parametrize(
    "target",
    ["/.well-known/est/simpleenroll", "/.well-known/est/north/simplereenroll", "/.well-known/est/serverkeygen"],
)
def test_only_what_names_an_operation_just_so_is_taken(target: str) -> None:
    whole, _, _ = both(Enrolment(Refused(Code.TOKEN_USED, "used")))
    assert whole.takes(b"POST", target.encode(), MAXIMUM_BODY)
    assert not whole.takes(b"POST", target.encode(), MAXIMUM_BODY + 1)
    assert not whole.takes(b"PUT", target.encode(), 0)
    for other in (f"{target}?x", f"{target}/", f"/x{target}", f"https://localhost{target}", target.replace("s", "%73")):
        assert not whole.takes(b"POST", other.encode(), 0)
    assert not whole.takes(b"POST", target.replace("est/", "est/ü/").encode(), 0)


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (Refused(Code.TOKEN_USED, "used"), 401),
        (Refused(Code.UNAVAILABLE, "later"), 503),
        (asyncio.CancelledError("by the stop"), 503),
    ],
)
@pytest.mark.parametrize("path", [PATH, "/.well-known/est/north/simpleenroll", "/.well-known/est/-/simpleenroll"])
async def test_both_ways_give_the_same_answer_and_count_it(failure: BaseException, status: int, path: str) -> None:
    whole, app, metrics = both(Enrolment(failure))
    body = base64.b64encode(b"no request")
    first, second = await answer(whole, scope(path=path), body), await through(app, scope(path=path), body)
    assert first.status_code == (404 if "/-/" in path else status)
    assert (first.status_code, first.body) == (second.status_code, second.body)
    assert sorted(first.raw_headers) == sorted(second.raw_headers)
    route = path if path == PATH else "/.well-known/est/{label}/simpleenroll"
    labels = {"port": "https", "method": "POST", "route": route, "status": str(first.status_code)}
    assert metrics.registry.get_sample_value("fleet_provisioning_requests_total", labels) == 2


async def test_what_the_stop_cuts_off_may_be_asked_again_and_is_no_fault(capfd: pytest.CaptureFixture[str]) -> None:
    whole, app, _ = both(Enrolment(asyncio.CancelledError("by the stop")))
    body = base64.b64encode(b"no request")
    for told in (await answer(whole, scope(), body), await through(app, scope(), body)):
        assert (told.status_code, bytes(told.body)) == (503, b"UNAVAILABLE: the service is stopping: try again\n")
        assert told.headers["retry-after"]
    assert "Traceback" not in "".join(capfd.readouterr())


async def test_an_answer_that_has_begun_when_it_is_cut_off_is_not_followed_by_another() -> None:
    sent: list[Any] = []

    async def begins(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise asyncio.CancelledError

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(asyncio.CancelledError):
        await CutOff(begins, answer=lambda _path, _refusal: Response())(scope(), receive, send)
    assert len(sent) == 1


@pytest.mark.parametrize("fault", [ZeroDivisionError("a detail"), a_panic()])
async def test_a_fault_of_ours_is_answered_without_detail(fault: BaseException) -> None:
    whole, _, metrics = both(Enrolment(fault))
    told = await answer(whole, scope(), base64.b64encode(b"no request"))
    assert (told.status_code, bytes(told.body)) == (500, b"INTERNAL: internal error; the service's log says why\n")
    refusals = metrics.registry.get_sample_value("fleet_provisioning_refusals_total", {"code": "INTERNAL"})
    assert refusals == 1


async def test_a_caller_has_one_bucket_whichever_way_his_requests_take() -> None:
    enrolment = Enrolment(Refused(Code.TOKEN_USED, "used"))
    whole, app, _ = both(enrolment, requests_per_second=0.001, request_burst=3)
    body = base64.b64encode(b"no request")
    statuses = [(await answer(whole, scope(), body)).status_code, (await through(app, scope(), body)).status_code]
    statuses += [(await answer(whole, scope(), body)).status_code for _ in range(2)]
    statuses.append((await through(app, scope(), body)).status_code)
    assert statuses == [401, 401, 401, 429, 429]
    assert enrolment.asked == 3
    refused = await answer(whole, scope(), body)
    assert refused.headers["retry-after"]
    assert (await answer(whole, scope("192.0.2.2"), body)).status_code == 401
