"""Pictures and conversations in, tensors out; and masks back to the pictures they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from unimed.data import images
from unimed.data.records import REGION
from unimed.errors import InputError
from unimed.model.canvas import NO_TILES, Grid, choose, cut, squares
from unimed.model.configuration import UniMedConfig
from unimed.model.letterbox import Letterbox

IMAGE = "<image>"
Message = dict[str, Any]
Size = Sequence[int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Picture:
    """An image with the regions marked in it, in the order in which the text speaks of them."""

    image: Image.Image
    regions: tuple[Bool[np.ndarray, "height width"], ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.height, self.image.width


class UniMedProcessor(ProcessorMixin):
    """Turns text with `<image>` and `<region>` placeholders and pictures into model inputs.

    Pictures are fitted into a square of `image_size` pixels with the aspect kept and, where there are `canvases`, also into the one
    that suits them best, cut into tiles of that size; `tile_size` is a tile's side as the ViT sees it. RGB lies in [0, 1]; every
    region adds one channel behind the colours, because trainers that know only `pixel_values` must carry regions too.
    """

    # Unchecked, because from_pretrained reads the arguments' names from the code object, which a checking wrapper would hide.
    @no_type_check
    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, image_size: int, tile_size: int, tokens_per_view: int,
        canvases: Sequence[Grid] = (), chat_template: str | None = None, **kwargs: Any,
    ):  # fmt: skip
        super().__init__(tokenizer, chat_template=chat_template)
        self.image_size, self.tile_size, self.tokens_per_view, self.canvases = image_size, tile_size, tokens_per_view, canvases

    @classmethod
    def of(cls, config: UniMedConfig, tokenizer: PreTrainedTokenizerBase) -> "UniMedProcessor":
        """The processor that feeds a model of this configuration."""
        return cls(tokenizer, config.image_size, config.vision_config.image_size, config.tokens_per_view, config.canvases)

    def __call__(
        self,
        images: Sequence[Any] | None = None,
        text: str | Sequence[str] | None = None,
        padding: bool | str = False,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """`input_ids`, `attention_mask` and, with images, `pixel_values` and `image_sizes` (height, width, in pixels).

        `images` holds one picture per `<image>`, flat or nested by text. Raises InputError when counts differ.
        """
        texts = [text] if isinstance(text, str) else list(text or ())
        pictures = [picture(item) for item in _flat(images or ())]
        self._check_counts(texts, pictures)
        kwargs |= {"padding": padding, "return_tensors": return_tensors, "add_special_tokens": False}
        sizes = iter([item.size for item in pictures])
        encoded = self.tokenizer([self.expand(item, list(islice(sizes, item.count(IMAGE)))) for item in texts], **kwargs)
        fields = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        if pictures:
            fields["pixel_values"] = self.pixels(pictures)
            fields["image_sizes"] = torch.tensor([item.size for item in pictures])
        return BatchFeature(fields)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the model reads."""
        return ["input_ids", "attention_mask", "pixel_values", "image_sizes"]

    def _check_counts(self, texts: Sequence[str], pictures: Sequence[Picture]) -> None:
        found, rest = sum(item.count(IMAGE) for item in texts), iter(pictures)
        if found != len(pictures):
            raise InputError(f"expected one picture per {IMAGE}, found {found} in the text and {len(pictures)} pictures")
        for item in texts:
            regions, masks = item.count(REGION), sum(len(own.regions) for own in islice(rest, item.count(IMAGE)))
            if regions != masks:
                raise InputError(f"expected one mask per {REGION}, found {regions} in the text and {masks} masks")

    def expand(self, text: str, sizes: Sequence[Size]) -> str:
        """The text with as many image tokens per image as the model needs; `sizes` holds each image's height and width.

        Raises InputError when counts differ.
        """
        before, *after = text.split(IMAGE)
        if len(after) != len(sizes):
            raise InputError(f"expected the size of each {IMAGE}, found {len(after)} in the text and {len(sizes)} sizes")
        return before + "".join(IMAGE * self.tokens(size) + part for size, part in zip(sizes, after, strict=True))

    def tokens(self, size: Size) -> int:
        """Image tokens for a picture of a height and width."""
        return self.tokens_per_view * squares(self.grid(size))

    def grid(self, size: Size) -> Grid:
        """The grid of tiles for a picture of a height and width."""
        height, width = size
        return choose(height, width, self.canvases, self.tile_size)

    def pixels(self, pictures: Sequence[Picture]) -> Float[Tensor, "image *view channel size size"]:
        """Pictures as one tensor: three colour channels, then as many region channels as the picture with most regions has.

        With canvases each picture has several views, the square and then its tiles, and as many empty ones as another has more.
        """
        grids = [self.grid(item.size) for item in pictures]
        depth, views = 3 + max(len(item.regions) for item in pictures), max(map(squares, grids))
        made = torch.zeros(len(pictures), views, depth, self.image_size, self.image_size)
        for own, item, grid in zip(made, pictures, grids, strict=True):
            self._show(item, (1, 1), own[:1])
            if grid != NO_TILES:
                self._show(item, grid, own[1 : squares(grid)])
        return made if self.canvases else made[:, 0]

    def _show(self, item: Picture, grid: Grid, views: Float[Tensor, "square channel size size"]) -> None:
        """Write a picture and its regions, in a frame of squares, into these; written once, as a batch may be gigabytes."""
        box = Letterbox(*item.size, self.image_size, grid)
        colours = cut(torch.from_numpy(box.image(item.image)).permute(2, 0, 1)[None], grid)
        for view, colour in zip(views, colours, strict=True):
            torch.div(colour, 255, out=view[:3])
        for channel, mask in enumerate(item.regions, 3):
            views[:, channel] = cut(torch.from_numpy(box.mask(mask))[None, None], grid)[:, 0]

    def target(self, mask: Bool[np.ndarray, "height width"]) -> Float[Tensor, "size size"]:
        """A target mask in the model's square frame, as coverage in [0, 1]."""
        height, width = mask.shape
        return torch.from_numpy(Letterbox(height, width, self.image_size).mask(mask))

    def masks(
        self, logits: Float[Tensor, "mask low low"], sizes: Int[Tensor, "mask 2"], threshold: float = 0.5
    ) -> list[Bool[np.ndarray, "height width"]]:
        """Masks at the size of their pictures: probability of at least `threshold`."""
        cut = float(np.log(threshold / (1 - threshold)))
        pairs = zip(logits, sizes.tolist(), strict=True)
        return [(Letterbox(h, w, self.image_size).unmask(low.unsqueeze(0))[0] >= cut).cpu().numpy() for low, (h, w) in pairs]

    def apply_chat_template(
        self, conversation: list, tokenize: bool = False, return_dict: bool = False, add_generation_prompt: bool = False, **kwargs: Any
    ) -> Any:
        """Conversations as the tokenizer's own template writes them; content parts become text with placeholders."""
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = conversation if batched else [conversation]
        kwargs = {"add_generation_prompt": add_generation_prompt, "chat_template": kwargs.get("chat_template")}
        texts = [self.tokenizer.apply_chat_template([_plain(m) for m in c], tokenize=False, **kwargs) for c in conversations]
        if not tokenize:
            return texts if batched else texts[0]
        pictures = [part["image"] for c in conversations for m in c for part in _parts(m) if part.get("image") is not None]
        encoded = self(images=pictures, text=texts)
        return encoded if return_dict else encoded["input_ids"]


def picture(item: Any) -> Picture:
    """The item as a picture; a bare image has no regions. Raises InputError for an empty region."""
    found = item if isinstance(item, Picture) else Picture(item)
    if not all(mask.any() for mask in found.regions):
        raise InputError("expected regions of at least one pixel, found an empty one")
    return Picture(images.rgb(found.image), found.regions)


def _flat(images: Sequence[Any]) -> list[Any]:
    return [image for item in images for image in (_flat(item) if isinstance(item, (list, tuple)) else [item]) if image is not None]


def _parts(message: Message) -> list[dict[str, Any]]:
    return message["content"] if isinstance(message["content"], list) else []


def _plain(message: Message) -> Message:
    """A message whose content is one string, with `<image>` where an image part stood."""
    if not isinstance(message["content"], list):
        return message
    words = {"image": lambda part: IMAGE + "\n", "text": lambda part: part["text"]}
    return {**message, "content": "".join(words[part["type"]](part) for part in message["content"])}
