"""What a request and its answer look like on the wire; OpenAPI shows these classes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unimed import NOTICE

QUESTION_CHARACTERS, REGIONS, RLE_CHARACTERS = 4000, 8, 2**16
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAIklEQVR4nGNsaGhgIAUwkaR6VMOohqGkgQW/dENDA5n+UEsDAN1wAiVGeYmDAAAAAElFTkSuQmCC"
"""A grey PNG of 16 x 16 pixels, for examples."""

Extent = Annotated[int, Field(ge=1, le=2**26)]


class Mask(BaseModel):
    """A mask as COCO run lengths of an image's own pixels, as `pycocotools.mask.decode` reads it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    size: list[Extent] = Field(min_length=2, max_length=2, description="Height and width of the image.", examples=[[16, 16]])
    counts: str = Field(description="Compressed run lengths, column by column.", examples=["0P8"])


class MarkedMask(Mask):
    """A region drawn as a mask."""

    counts: str = Field(min_length=1, max_length=RLE_CHARACTERS, description="Compressed run lengths, column by column.", examples=["0P8"])


class AnswerRequest(BaseModel):
    """A question about one image. The image travels in the request: the server opens no file and no address for anybody."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"image": PIXEL, "question": "Is there a nodule?"},
                {"image": PIXEL, "question": "Which structure lies in <region>?", "regions": ["box:2,2,8,8"], "think": True},
            ]
        },
    )

    image: str = Field(min_length=1, description="A PNG or JPEG as base64, grey or in colour, of any shape, stored upright.")
    question: str = Field(
        min_length=1,
        max_length=QUESTION_CHARACTERS,
        description="Plain text. `<region>` stands for a region; those that it does not name are added at its end.",
    )
    regions: list[Annotated[str, Field(max_length=64)] | MarkedMask] = Field(
        default=[], max_length=REGIONS, description="In pixels of the image: `box:x,y,width,height`, `point:x,y`, or a mask."
    )
    think: bool = Field(default=False, description="Ask for the reasoning before the answer; for reasoners.")
    stream: bool = Field(default=False, description="Answer with server-sent events: the reasoning as it is written, then the rest.")


class Use(BaseModel):
    """The share that an expert has in a layer."""

    layer: int
    expert: str
    share: float


class Answer(BaseModel):
    """The answer to a question."""

    answer: str
    reasoning: str = Field(description="Empty when the model gave none in due form.")
    masks: list[Mask] = Field(description="One for each `<SEG>` in the answer, in order, of the image's own size.")
    router: list[Use] = Field(description="How much of each expert the routers chose for this question; empty for a model without routers.")
    model: str = Field(description="The version that answered.")
    request_id: str
    notice: str = NOTICE


class Problem(BaseModel):
    """Why there is no answer (RFC 9457)."""

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(description="What the status means.")
    status: int
    detail: str = Field(description="One sentence: what was expected, what was found.")
    request_id: str


class Readiness(BaseModel):
    """Whether requests should be sent here."""

    ready: bool
    model: str = Field(description="The version that answers.")
    requests: int = Field(description="Requests in hand.")
    failure: str | None = Field(description="Why a newer version could not be taken over, if so.")


WHEN = {
    400: "The body is no JSON.",
    401: "The bearer token is missing or another.",
    408: "The request did not arrive in time.",
    413: "The request is larger than the server takes.",
    415: "The content type is not application/json.",
    422: "The image, the question or a region cannot be used; `detail` says why.",
    429: "The queue is full; try again after as many seconds as `Retry-After` says.",
    500: "A defect of the server; its log tells more under the request's id.",
    503: "The server should get no requests now.",
    504: "There was no answer in time.",
}
"""What each status means here."""


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of responses that tell of a problem."""
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {status: {"description": WHEN[status], "content": content} for status in statuses}
