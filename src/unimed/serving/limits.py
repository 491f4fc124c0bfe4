"""How much a server takes on at once, and how large a single request may be."""

from dataclasses import dataclass

from unimed import answering


@dataclass(frozen=True)
class Limits:
    """Bounds of one server process; what is above them is refused with the bound in the reason."""

    batch: int = 16
    """Answers decoded together."""

    queue: int = 64
    """Requests that wait for a place in the batch, those that are still being received or read included."""

    timeout_s: float = 60.0
    """From a request's first byte to its answer's last; also how long a server that is told to end waits for what it has taken on."""

    max_new_tokens: int = answering.MAX_NEW_TOKENS
    """Of an answer, its reasoning included."""

    image_bytes: int = 2**24
    pixels: int = answering.MAX_PIXELS

    @property
    def room(self) -> int:
        """Requests that a server has in its hands at most."""
        return self.batch + self.queue

    @property
    def image_characters(self) -> int:
        """Of the largest image as base64."""
        return 4 * -(-self.image_bytes // 3)

    @property
    def body_bytes(self) -> int:
        """Of a request with the largest image, and with regions and a question as long as they may be."""
        return self.image_characters + 2**20
