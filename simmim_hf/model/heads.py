"""SimMIM for downstream tasks: gaps, generation, classes of texts and of tokens, choices, questions and answers."""

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedConfig, modeling_outputs
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .backbones import can_be_decoder
from .configuration_simmim import SimMIMConfig
from .encoder import SimMIMModel, SimMIMPreTrainedModel, SimMIMWithLMHead
from .losses import IGNORE_INDEX, global_means, token_cross_entropy
from .unpadding import ATTENTION, Past
from .views import check_integers, check_shape

logger = logging.get_logger(__name__)

Columns = dict[str, torch.Tensor | None]  # the inputs of `SimMIMModel.forward` by name
ONE_A_TOKEN = "one for each token"  # the reason of a shape


class SimMIMWithLabels(SimMIMPreTrainedModel):
    """The forward of the models with `logits` and `labels`; each class says the shapes of both."""

    accepts_loss_kwargs = False
    output_class: type[ModelOutput]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> ModelOutput:
        """
        Args:
            input_ids, attention_mask, token_type_ids, position_ids: (batch, length), see `SimMIMModel.forward`
            inputs_embeds: (batch, length, embedding), instead of `input_ids`
            labels: the targets of the prediction

        Returns:
            `logits`, and with `labels` the mean `loss`.
        """
        columns = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        logits, outputs = self._logits(columns, compute_pooled=self._reads_vectors, return_dict=True, **kwargs)
        loss = None
        if labels is not None:
            loss = self._loss(logits, labels)
        return self.output_class(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _logits(self, columns: Columns, **kwargs) -> tuple[torch.Tensor, ModelOutput]:
        raise NotImplementedError

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class SimMIMForMaskedLM(SimMIMWithLabels, SimMIMWithLMHead):
    """Masked language modelling alone: for fill-mask and for further masked-only training.

    `logits` are (batch, length, vocab); `labels` (batch, length), original token ids where to predict, -100 elsewhere.
    """

    _reads_vectors = False
    output_class = modeling_outputs.MaskedLMOutput

    def __init__(self, config: SimMIMConfig):
        super().__init__(config)
        self.post_init()

    def _logits(self, columns: Columns, **kwargs) -> tuple[torch.Tensor, ModelOutput]:
        outputs = self.simmim(**columns, **kwargs)
        # (batch, length, hidden) -> (batch, length, vocab)
        return self.lm_head(outputs.last_hidden_state), outputs

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        check_shape("labels", labels, logits.shape[:-1], reason=ONE_A_TOKEN)
        check_integers("labels", labels)
        is_predicted = labels != IGNORE_INDEX  # (batch, length)
        # (batch, length, vocab) and (batch, length) -> (predicted, vocab) and (predicted,)
        total = token_cross_entropy(logits[is_predicted], labels[is_predicted])
        return global_means({"loss": (total, is_predicted.sum())})["loss"]

    @torch.no_grad()
    def infill(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        mask_token_id: int,
        num_steps: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        suppress_tokens: list[int] | None = None,
        **inputs,
    ) -> torch.Tensor:
        """Fills all gaps, the most certain first: mask-predict (Ghazvininejad et al. 2019, section 3).

        A step predicts every open gap; of all gaps, the least certain share `1 - step / num_steps` is opened again.

        Args:
            input_ids, attention_mask: (batch, length)
            mask_token_id: the token of every gap
            num_steps: 1 fills all at once. Default: as many as a text has gaps.
            temperature: 0 takes the likeliest token, above 0 draws one
            top_k: draw from the so many likeliest only
            suppress_tokens: never fill in these; `tokenizer.all_special_ids` is a good choice

        Returns:
            (batch, length), the input ids with filled gaps.

        Raises:
            ValueError: there is no gap, or an option out of range.
        """
        suppressed = {mask_token_id, *(suppress_tokens or ())}
        if not suppressed < set(range(self.config.vocab_size)):
            raise ValueError(
                f"`mask_token_id` is {mask_token_id} and `suppress_tokens` {suppress_tokens}: they must be token ids, "
                f"below the vocabulary size of {self.config.vocab_size}, and leave a token to fill in."
            )
        gaps = input_ids == mask_token_id
        if not gaps.any():
            raise ValueError(f"No text has a gap: `input_ids` does not hold the mask token {mask_token_id}.")
        is_below_1 = any(number is not None and number < 1 for number in (top_k, num_steps))
        if temperature < 0 or is_below_1:
            raise ValueError(
                f"`temperature` is {temperature}, `top_k` {top_k} and `num_steps` {num_steps}: the first must be 0 or "
                "above, the others 1 or above."
            )
        num_gaps = gaps.sum(1)  # (batch,)
        steps = num_gaps.clamp(min=1)  # (batch,), of each text: one gap a step
        if num_steps is not None:
            steps = torch.full_like(num_gaps, num_steps)
        filled = input_ids.clone()
        certainty = torch.ones_like(input_ids, dtype=torch.float32)
        for step in range(1, int(steps.max()) + 1):
            is_open = filled == mask_token_id  # (batch, length)
            outputs = self(filled, attention_mask, return_dict=True, **inputs)
            logits = outputs.logits[is_open].float()  # (batch, length, vocab) -> (gaps, vocab)
            logits[:, list(suppressed)] = -torch.inf
            probabilities = logits.softmax(-1)  # (gaps, vocab)
            tokens = _choose_tokens(logits, temperature, top_k)  # (gaps,)
            # Fill every open gap, and note how certain each was: (gaps,) -> (batch, length).
            filled[is_open] = tokens
            certainty[is_open] = probabilities.gather(1, tokens[:, None])[:, 0]
            # Rank the gaps of each text from the least certain; other tokens come last.
            of_gaps = certainty.masked_fill(~gaps, torch.inf)  # (batch, length)
            rank = of_gaps.argsort(dim=1, stable=True).argsort(1)  # (batch, length)
            num_reopened = num_gaps * (steps - step).clamp(min=0) // steps  # (batch,)
            filled[rank < num_reopened[:, None]] = mask_token_id  # none after the last step
        return filled


def _choose_tokens(logits: torch.Tensor, temperature: float, top_k: int | None) -> torch.Tensor:
    """(gaps, vocab) -> (gaps,), the likeliest tokens at temperature 0, else drawn ones."""
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None and top_k < logits.shape[1]:
        lowest_kept = logits.topk(top_k).values[:, -1:]  # (gaps, 1)
        logits = logits.masked_fill(logits < lowest_kept, -torch.inf)
    probabilities = (logits / temperature).softmax(-1)  # (gaps, vocab)
    return probabilities.multinomial(1)[:, 0]


class SimMIMGenerationConfig(GenerationConfig):
    """Options of `generate`, without the `temperature` of the model's config, which is of the contrastive loss."""

    @classmethod
    def from_model_config(cls, model_config: PreTrainedConfig | dict) -> "SimMIMGenerationConfig":
        if not isinstance(model_config, dict):
            model_config = model_config.to_dict()
        options = {name: value for name, value in model_config.items() if name != "temperature"}
        return super().from_model_config(options)


class SimMIMForCausalLM(SimMIMWithLMHead, GenerationMixin):
    """The same encoder and head read from left to right, with a cache of keys and values: for `generate`.

    Where transformers has no decoder of the family, the attention of this package keeps them.

    Raises:
        ValueError: a backbone that neither has a decoder nor lets another attention function in.
    """

    _reads_vectors = False
    generation_config_class = SimMIMGenerationConfig

    def __init__(self, config: SimMIMConfig):
        super().__init__(config, is_decoder=True)
        self.post_init()
        self._has_native_cache = can_be_decoder(config.text_config.model_type)
        self._check_backbone(self.simmim.encoder.config._attn_implementation == ATTENTION)
        # A checkpoint of this class, or of an objective with the causal term, has learned this direction.
        self._reads_from_left_to_right = type(self).__name__ in (config.architectures or ()) or config.clm_weight > 0

    def _check_backbone(self, packs: bool) -> None:
        if not self._has_native_cache and not packs:
            raise ValueError(
                f"The backbone `{self.config.text_config.model_type}` cannot generate: transformers has no decoder of "
                "this family, and this package's attention does not fit it (or `attn_implementation` forbids it). "
                "Take one that can, such as `modernbert`, `bert`, `roberta`, or a decoder such as `llama` or `qwen3`."
            )

    def adjust_generation_fn(
        self, generation_config, from_auto_class, from_pipeline, name_or_path, *, trust_remote_code, **kwargs
    ):
        """Where a checkpoint has no `generation_config.json`, transformers would read all of `config.json` for it."""
        if generation_config is None:
            try:
                generation_config = GenerationConfig.from_pretrained(name_or_path, **kwargs)
            except OSError:
                generation_config = self.generation_config
        kwargs["trust_remote_code"] = trust_remote_code
        super().adjust_generation_fn(generation_config, from_auto_class, from_pipeline, name_or_path, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> modeling_outputs.CausalLMOutputWithPast:
        """
        Args:
            input_ids, token_type_ids: (batch, length)
            attention_mask: (batch, cached length + length), 1 for real tokens; padding may be on either side
            labels: (batch, length), the input ids, -100 where nothing is to be learned; shifted here
            logits_to_keep: compute the logits of so many last positions only, 0 for all

        Returns:
            `logits` (batch, length, vocab), with `labels` the mean `loss`, and `past_key_values`.
        """
        inputs = inputs_embeds if input_ids is None else input_ids  # (batch, length) or (batch, length, embedding)
        if inputs is None:
            raise ValueError("Give `input_ids` or `inputs_embeds`.")
        if input_ids is not None:
            check_integers("input_ids", input_ids)
        if past_key_values is not None and past_key_values.is_compileable:
            # `generate` replaces the mask by one of four dimensions, or by none, and the padding is lost.
            raise ValueError(
                f"A `{type(past_key_values).__name__}` cannot be used: positions are counted from an attention mask "
                "per token. Generate with the default cache, without `cache_implementation`."
            )
        batch, length = inputs.shape[:2]
        if attention_mask is None:  # no padding, also among the cached tokens
            cached = 0
            if past_key_values is not None:
                cached = past_key_values.get_seq_length()
            attention_mask = torch.ones(batch, cached + length, dtype=torch.long, device=inputs.device)
        # No parameter of its own: `generate` would give positions from 0 to every model that names one.
        position_ids = kwargs.pop("position_ids", None)
        if position_ids is None:
            # (batch, cached length + length) -> (batch, length), those of the new tokens
            position_ids = self.simmim.positions(attention_mask)[:, -length:]
        if self._has_native_cache:
            kwargs |= {"past_key_values": past_key_values, "use_cache": use_cache}
        else:
            self._check_backbone(self.simmim.reads_unpadded(inputs.device))
            if use_cache is None:
                use_cache = not self.training
            if use_cache and past_key_values is None:
                past_key_values = DynamicCache()
            kwargs["past"] = Past(attention_mask, past_key_values)
            attention_mask = torch.ones(1, 1, 1, 1, device=inputs.device)  # see `SimMIMModel._encode_unpadded`
        outputs = self.simmim.encoder(
            **self.simmim.accepted_inputs(token_type_ids=token_type_ids, position_ids=position_ids),
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **{**self._requested_outputs(), **kwargs},
        )
        # In generation only the last position is predicted.
        kept = logits_to_keep
        if isinstance(logits_to_keep, int):
            kept = slice(-logits_to_keep, None)  # -0 is the first position: all of them
        logits = self.lm_head(outputs.last_hidden_state[:, kept])  # (batch, kept, hidden) -> (batch, kept, vocab)
        loss = None
        if labels is not None:
            check_shape("labels", labels, logits.shape[:-1], reason=ONE_A_TOKEN)
            check_integers("labels", labels)
            self._reads_from_left_to_right |= self.training
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        if self._has_native_cache:
            past_key_values = outputs.past_key_values
        return modeling_outputs.CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def generate(self, *args, **kwargs):
        """As in transformers; warns where the weights have only ever read in both directions."""
        if not self._reads_from_left_to_right:
            logger.warning_once(
                "This checkpoint was trained to read in both directions (`clm_weight` is 0), and what it generates "
                "makes little sense. Fine-tune it with `SimMIMForCausalLM` first, or pre-train with `clm_weight` "
                "above 0 (objective `fused` or `clm`)."
            )
        if not self._has_native_cache and kwargs.get("use_cache") is not False:
            # The one that `generate` makes by itself is a key short of the encoder's sliding windows.
            kwargs.setdefault("past_key_values", DynamicCache())
        return GenerationMixin.generate(self, *args, **kwargs)


# Heads of downstream tasks


class SimMIMWithNewHead(SimMIMPreTrainedModel):
    """The shared encoder with a linear layer for a downstream task, the only part that pre-training does not give."""

    accepts_loss_kwargs = False
    head_name = "classifier"
    num_outputs: int | None = None  # by default one for each label

    def __init__(self, config: SimMIMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.simmim = SimMIMModel(config)
        text_config = config.text_config
        dropout = getattr(text_config, "classifier_dropout", None)
        if dropout is None:
            dropout = getattr(text_config, "hidden_dropout_prob", 0.0)
        self.dropout = nn.Dropout(dropout)
        width = config.hidden_size
        if self._reads_vectors:
            width = config.embedding_dim  # wider by the token table
        setattr(self, self.head_name, nn.Linear(width, self.num_outputs or config.num_labels))
        self.post_init()


def _check_labels(labels: torch.Tensor, num_labels: int) -> None:
    """Raises a ValueError for a class that does not exist; on a GPU it would end the process without a reason."""
    # (wrong,), in any shape of labels
    is_outside = (labels < 0) | (labels >= num_labels)
    wrong = labels[is_outside & (labels != IGNORE_INDEX)]
    if wrong.numel():
        raise ValueError(
            f"`labels` holds {wrong[0].item()}, but there are {num_labels} to choose from, 0 to {num_labels - 1}. "
            "Renumber them, or load a classifier with `num_labels=` the number of classes."
        )


class SimMIMForSequenceClassification(SimMIMWithLabels, SimMIMWithNewHead):
    """Classes, several labels at once, or a number for each text, from its pooled vector.

    `logits` are (batch, labels); `labels` (batch,) classes or, for one label, numbers; (batch, labels) of 0.0 and 1.0
    for several at once. `config.problem_type` says which, or is found from their type.
    """

    output_class = modeling_outputs.SequenceClassifierOutput

    def _logits(self, columns: Columns, **kwargs) -> tuple[torch.Tensor, ModelOutput]:
        inputs = columns["input_ids"]
        if inputs is None:
            inputs = columns["inputs_embeds"]
        padding_is_known = columns["attention_mask"] is not None or self.config.pad_token_id is not None
        if inputs is not None and len(inputs) > 1 and not padding_is_known:
            raise ValueError(
                f"A batch of {len(inputs)} texts without `attention_mask`, and the model has no `pad_token_id`: "
                "padding cannot be told from text. Give the tokenizer a `pad_token`, set "
                "`model.config.pad_token_id`, and pass the `attention_mask` that the tokenizer makes."
            )
        outputs = self.simmim(**columns, **kwargs)
        # (batch, dim) -> (batch, labels)
        return self.classifier(self.dropout(outputs.pooler_output)), outputs

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        batch = len(logits)
        reason = "one for each text, or for each text and label"
        check_shape("labels", labels, (batch,), (batch, 1), logits.shape, reason=reason)
        if self.num_labels > 1 and not labels.is_floating_point():
            _check_labels(labels, self.num_labels)
        return self.loss_function(pooled_logits=logits, labels=labels, config=self.config)


class SimMIMForTokenClassification(SimMIMWithLabels, SimMIMWithNewHead):
    """A class for each token.

    `logits` are (batch, length, labels); `labels` (batch, length), -100 where a token has none.
    """

    _reads_vectors = False
    output_class = modeling_outputs.TokenClassifierOutput

    def _logits(self, columns: Columns, **kwargs) -> tuple[torch.Tensor, ModelOutput]:
        outputs = self.simmim(**columns, **kwargs)
        # (batch, length, hidden) -> (batch, length, labels)
        return self.classifier(self.dropout(outputs.last_hidden_state)), outputs

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        check_shape("labels", labels, logits.shape[:-1], reason=ONE_A_TOKEN)
        check_integers("labels", labels)
        _check_labels(labels, self.num_labels)
        return self.loss_function(logits, labels, self.config)


class SimMIMForMultipleChoice(SimMIMWithLabels, SimMIMWithNewHead):
    """The best of several continuations of a text.

    The inputs are (batch, choices, length); `logits` (batch, choices); `labels` (batch,), which choice is right.
    """

    output_class = modeling_outputs.MultipleChoiceModelOutput
    num_outputs = 1

    def _logits(self, columns: Columns, **kwargs) -> tuple[torch.Tensor, ModelOutput]:
        given = {name: x for name, x in columns.items() if x is not None}  # (batch, choices, length) each
        # Each continuation is read by itself: (batch, choices, length) -> (batch * choices, length).
        rows = {name: x.flatten(0, 1) for name, x in given.items()}
        outputs = self.simmim(**rows, **kwargs)
        scores = self.classifier(self.dropout(outputs.pooler_output))  # (batch * choices, 1)
        batch, choices = next(iter(given.values())).shape[:2]
        return scores.view(batch, choices), outputs  # the choices of a text compete in one softmax

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        check_shape("labels", labels, (len(logits),), reason="one for each row of choices")
        check_integers("labels", labels)
        _check_labels(labels, num_labels=logits.shape[1])
        return nn.functional.cross_entropy(logits.float(), labels)


class SimMIMForQuestionAnswering(SimMIMWithNewHead):
    """Where in a text the answer to a question begins and ends."""

    _reads_vectors = False
    head_name = "qa_outputs"
    num_outputs = 2

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs,
    ) -> modeling_outputs.QuestionAnsweringModelOutput:
        """
        Args:
            input_ids, attention_mask, token_type_ids, position_ids: (batch, length), question and text
            start_positions, end_positions: (batch,) token positions; one beyond the length is ignored

        Returns:
            `start_logits` and `end_logits` (batch, length), and with positions the mean `loss`.
        """
        outputs = self.simmim(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            compute_pooled=False,
            return_dict=True,
            **kwargs,
        )
        logits = self.qa_outputs(self.dropout(outputs.last_hidden_state))  # (batch, length, 2)
        start_logits, end_logits = logits.unbind(-1)  # (batch, length) each
        loss = None
        if start_positions is not None and end_positions is not None:
            batch = len(start_logits)
            positions = {"start_positions": start_positions, "end_positions": end_positions}
            for name, column in positions.items():
                check_shape(name, column, (batch,), (batch, 1), reason="one for each text")
                check_integers(name, column)
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return modeling_outputs.QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
