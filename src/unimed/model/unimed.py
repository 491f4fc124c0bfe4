"""Uni-MedVLM assembled: hybrid encoder, projector, language model with experts, and masks for `<SEG>` tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, interpolate
from transformers import AutoModel, Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast

from unimed.model import experts, views, words
from unimed.model.canvas import Grid
from unimed.model.configuration import UniMedConfig
from unimed.model.grounding import Grounding, image_of_each
from unimed.model.packing import Packing, fill, prompts
from unimed.model.pretrained import UniMedOutput, UniMedPreTrainedModel
from unimed.model.vision import HybridEncoder, Projector


class UniMedModel(UniMedPreTrainedModel):
    """The backbone: text in which images and regions have become vectors, read by the language model.

    Images are merged here and not in the head's forward, because reinforcement-learning trainers call the backbone alone.
    """

    def __init__(self, config: UniMedConfig):
        super().__init__(config)
        self.encoder = HybridEncoder(config)
        self.projector = Projector(config.vision_config.hidden_size, config.text_config.hidden_size, config.pixel_shuffle)
        self.language_model = AutoModel.from_config(config.text_config)
        if config.experts:
            experts.install(self.language_model, config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's embedding table."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's embedding table."""
        self.language_model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Int[Tensor, "batch seq_so_far"] | None = None,
        position_ids: Int[Tensor, "batch seq"] | None = None,
        past_key_values: Cache | None = None,
        pixel_values: Float[Tensor, "image *view channel size size"] | None = None,
        image_sizes: Int[Tensor, "image 2"] | None = None,
        seg_input: Float[Tensor, " width"] | None = None,
        use_cache: bool | None = None,
        packing: Packing | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the language model's final norm.

        `pixel_values` holds RGB in [0, 1] and, in further channels, one region mask each, in the order of their `<region>`
        tokens; all-zero channels are padding. With canvases it holds views, and `image_sizes` says which canvas each image has.
        With `packing`, which knows the canvases too, the text is one packed sequence, read within `attention.packed`.
        """
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            # As `generate` counts: padding takes no position, so a cache filled here can be continued there.
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        embeds = self.embedded(input_ids, seg_input)
        if packing is not None:
            kwargs["packing"] = packing
        if pixel_values is not None and packing is not None:
            seen = views.laid(self.config, pixel_values, packing.grids)
            embeds = fill(embeds, self._features(seen), seen, packing)
        elif pixel_values is not None:
            embeds = self._with_images(embeds, input_ids, views.read(self.config, pixel_values, image_sizes))
        elif bool((input_ids == self.config.image_token_id).any()):
            raise ValueError("expected pixel_values for the image tokens of the text, found none")
        if self.config.experts:
            two = attention_mask is not None and attention_mask.dim() == 2
            mask = attention_mask[:, -input_ids.shape[1] :].bool() if two else torch.ones_like(input_ids, dtype=torch.bool)
            kwargs["prompt"] = prompts(input_ids, mask, self.config, packing)
        return self.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )

    def embedded(self, input_ids: Int[Tensor, "batch seq"], seg_input: Float[Tensor, " width"] | None) -> Float[Tensor, "batch seq width"]:
        """The words' vectors, with `<SEG>`'s own in its place where it is given."""
        embeds = self.get_input_embeddings()(input_ids)
        if seg_input is None:
            return embeds
        return torch.where((input_ids == self.config.seg_token_id).unsqueeze(-1), seg_input.to(embeds.dtype), embeds)

    def image_features(
        self,
        square: Float[Tensor, "image 3 size size"],
        tiles: Float[Tensor, "image tile 3 size size"] | None = None,
        grids: Sequence[Grid] = (),
    ) -> Float[Tensor, "view token width"]:
        """The vectors of every view in the language model's width, image by image: its square, then its tiles."""
        return self.projector(self.encoder(square, tiles, grids))

    def _features(self, seen: views.Views) -> Float[Tensor, "view token width"]:
        return self.image_features(seen.square.to(self.dtype), seen.tiles.to(self.dtype), seen.grids)

    def _with_images(
        self, embeds: Float[Tensor, "batch seq width"], input_ids: Int[Tensor, "batch seq"], seen: views.Views
    ) -> Float[Tensor, "batch seq width"]:
        """The embeddings with image and region placeholders filled in, in order of appearance."""
        features = self._features(seen).to(embeds.dtype)
        regions = seen.regions(features, *seen.marked)
        for token, vectors in ((self.config.image_token_id, features), (self.config.region_token_id, regions)):
            slots = input_ids == token
            if int(slots.sum()) != vectors.shape[:-1].numel():
                name = "image" if token == self.config.image_token_id else "region"
                raise ValueError(f"expected {vectors.shape[:-1].numel()} {name} tokens for the pixels given, found {int(slots.sum())}")
            embeds = embeds.masked_scatter(slots.unsqueeze(-1), vectors)
        return embeds


class UniMedForConditionalGeneration(UniMedPreTrainedModel, GenerationMixin):
    """Answers in words and, for every `<SEG>` among them, a mask."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: UniMedConfig):
        super().__init__(config)
        self.model = UniMedModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.grounding = Grounding(config)
        # Placeholders stand for what is given; generated ones would ask for pixels that nobody has.
        self.generation_config.suppress_tokens = [config.image_token_id, config.region_token_id]
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head over the vocabulary."""
        return self.lm_head

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Int[Tensor, "batch seq_so_far"] | None = None,
        pixel_values: Float[Tensor, "image *view channel size size"] | None = None,
        image_sizes: Int[Tensor, "image 2"] | None = None,
        labels: Int[Tensor, "batch seq"] | None = None,
        segment: bool = False,
        logits_to_keep: int = 0,
        packing: Packing | None = None,
        **kwargs: Any,
    ) -> UniMedOutput:
        """Next-token logits; with `labels` also their mean cross-entropy; with `segment` also mask logits for every `<SEG>`.

        `image_sizes` is named because `generate` refuses what no signature names.
        """
        read = {"input_ids": input_ids, "attention_mask": attention_mask, "packing": packing}
        images = {"pixel_values": pixel_values, "image_sizes": image_sizes}
        outputs = self.model(**read, **images, seg_input=self.grounding.seg_input, **kwargs)
        hidden = outputs.last_hidden_state
        if packing is not None:
            return self._packed(hidden[0], pixel_values if segment else None, packing)
        kept = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
        loss = None
        if labels is not None:
            # Rows without a label cost a vocabulary-wide product each, so only labelled ones reach the head.
            target = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
            rows = target != -100
            loss = cross_entropy(self.logits(hidden[rows]).float(), target[rows])
            kept = hidden[:, -1:]
        seen = views.read(self.config, pixel_values, image_sizes) if segment and pixel_values is not None else None
        masks = None if seen is None else self._masks(hidden, input_ids, seen)
        return UniMedOutput(loss=loss, logits=self.logits(kept), past_key_values=outputs.past_key_values, mask_logits=masks)

    def _packed(
        self,
        hidden: Float[Tensor, "position width"],
        pixel_values: Float[Tensor, "image *view channel size size"] | None,
        packing: Packing,
    ) -> UniMedOutput:
        """The loss on the labelled words of a packed sequence and, with pixels, mask logits for its `<SEG>`s."""
        trained = [side for side in (self.lm_head.weight, self.grounding.seg_output) if side.requires_grad]
        loss = words.loss(self.logits, hidden[packing.predicting], packing.wanted, trained)
        if pixel_values is None or not packing.pointing.shape[1]:
            return UniMedOutput(loss=loss)
        position, row = packing.pointing
        square = views.laid(self.config, pixel_values, packing.grids).square[packing.shown]
        return UniMedOutput(loss=loss, mask_logits=self.grounding(self._shown(square), hidden[position], row))

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Every text `expand_size` times, each copy with all its images; transformers would repeat image by image."""
        images = {name: kwargs.pop(name) for name in ("pixel_values", "image_sizes") if kwargs.get(name) is not None}
        if "pixel_values" in images and input_ids is not None:
            seen = views.read(self.config, images["pixel_values"], images.get("image_sizes"))
            images = views.copied(images, seen.of_texts(input_ids == self.config.image_token_id), expand_size)
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs | images

    def logits(self, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocabulary"]:
        """Logits over the vocabulary, with `<SEG>`'s own row in its place."""
        logits = self.lm_head(hidden)
        seg = (hidden @ self.grounding.seg_output.to(hidden.dtype)).unsqueeze(-1)
        column = torch.arange(logits.shape[-1], device=logits.device) == self.config.seg_token_id
        return torch.where(column, seg, logits)

    def _masks(
        self, hidden: Float[Tensor, "batch seq width"], input_ids: Int[Tensor, "batch seq"], seen: views.Views
    ) -> Float[Tensor, "mask low low"]:
        """Mask logits for every `<SEG>` of the batch, row by row, each on the square view of the last image before it."""
        tokens = input_ids == self.config.seg_token_id
        image = image_of_each(tokens, input_ids == self.config.image_token_id, seen.tokens)
        used, row = image.unique(return_inverse=True)
        return self.grounding(self._shown(seen.square[used]), hidden[tokens], row)

    def _shown(self, square: Float[Tensor, "image 3 size size"]) -> Float[Tensor, "image 3 small small"]:
        """Images as the mask encoder sees them."""
        size, colours = self.config.mask_config.image_size, square.to(self.dtype)
        return adaptive_avg_pool2d(colours, size) if colours.shape[-1] >= size else interpolate(colours, size)

    @torch.no_grad()
    def write_seg_rows(self) -> None:
        """Copy `<SEG>`'s rows into the language model's tables, for code that reads the tables alone."""
        seg = self.config.seg_token_id
        self.model.get_input_embeddings().weight[seg] = self.grounding.seg_input
        self.lm_head.weight[seg] = self.grounding.seg_output
