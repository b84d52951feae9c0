"""The joint objective of SimMIM: the views of a batch that are read, and the terms of the loss."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .backbones import adjust_backbone
from .configuration_simmim import (
    VECTOR_OPTIONS,
    Objective,
    SimMIMConfig,
    current_options,
    options_of_objective,
)
from .encoder import SimMIMWithLMHead
from .loading import HUB_OPTIONS, WEIGHT_OPTIONS, load_native, pop_given, take_head
from .losses import (
    IGNORE_INDEX,
    contrastive_loss,
    count_correct,
    global_means,
    linear_cross_entropy,
    token_cross_entropy,
)
from .st_format import source_pooling
from .views import View, check_batch, next_tokens, required_column, stack_views

TERMS = ("mlm_loss", "contrastive_loss", "clm_loss")
# Logits that are in memory together. A CPU takes few, which stay in its caches and need no new memory; a GPU many.
LOGITS_AT_ONCE = 2**26
LOGITS_AT_ONCE_CPU = 2**22

Sums = dict[str, tuple[torch.Tensor, torch.Tensor]]  # of each term, and of its accuracy: the sum, and the count


def weight_of(term: str) -> str:
    """The option of `SimMIMConfig` that weights a term of `TERMS`."""
    return term.replace("_loss", "_weight")


@dataclass
class SimMIMForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: the weighted sum of the terms, a scalar
        mlm_loss, contrastive_loss, clm_loss: the unweighted terms, scalars; None where the weight is 0
        logits: (batch, length, vocab), only without labels
        original_embeds, masked_embeds: (batch, dim), the two vectors of a sequence that the contrastive loss compares;
            with `corrupted_views="both"` those of the masked copy and of the corrupted positive
        mlm_accuracy: share of the corrupted positions whose original token has the highest logit
        contrastive_accuracy: share of the originals whose own copy is the nearest candidate
        hidden_states, attentions: of every layer, on request
        counts: the denominators of terms and accuracies on this process, scalars by the name of the output
        num_tokens: tokens that the encoder has read, of all views and without padding, a scalar
    """

    loss: torch.Tensor | None = None
    mlm_loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    clm_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    original_embeds: torch.Tensor | None = None
    masked_embeds: torch.Tensor | None = None
    mlm_accuracy: torch.Tensor | None = None
    contrastive_accuracy: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    counts: dict[str, torch.Tensor] | None = None
    num_tokens: torch.Tensor | None = None


class Pass(NamedTuple):
    """What a pass of rows through the encoder gives.

    Attributes:
        embeddings: (rows, dim), the vectors that the contrastive loss compares, or (rows, 0)
        loss_sum: the summed cross-entropy of the predicted tokens, a scalar
        num_correct, num_predicted: how many predictions were right, and of how many, scalars
        hidden_states, attentions: of every layer, on request
    """

    embeddings: torch.Tensor
    loss_sum: torch.Tensor
    num_correct: torch.Tensor
    num_predicted: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class Terms(NamedTuple):
    """The terms of a batch on this process, before the means.

    Attributes:
        sums: the sum and the count of each term and accuracy, scalars
        anchors, positives: (batch, dim), where the contrastive term is computed
        hidden_states, attentions: of every layer, on request
    """

    sums: Sums
    anchors: torch.Tensor | None
    positives: torch.Tensor | None
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None


class SimMIMProjection(nn.Module):
    """MLP between the pooled vector and the contrastive loss (SimCLR, Chen et al. 2020); dropped after training."""

    def __init__(self, config: SimMIMConfig):
        super().__init__()
        self.dense = nn.Linear(config.embedding_dim, config.embedding_dim)
        self.out = nn.Linear(config.embedding_dim, config.projection_dim)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(batch, dim) -> (batch, projection_dim)"""
        hidden = F.relu(self.dense(pooled))  # (batch, dim)
        return self.out(hidden)


class SimMIMForPreTraining(SimMIMWithLMHead):
    """The joint objective: masked-token prediction and a contrastive loss over a sequence and its masked copy.

    The default of `SimMIMConfig` is the form of the article, the objective `simmim`; the objective `snippets` makes
    better vectors, and costs no more than masked-token prediction alone.
    """

    # The terms are means, so a Trainer has to divide them by the number of accumulation steps itself.
    accepts_loss_kwargs = False
    # How many sequences go through the encoder at a time in training, None for all at once: less memory for more time,
    # with the same loss and gradients.
    chunk_size: int | None = None
    # Whether the language-model head has random weights, because the source of the encoder had none.
    head_is_new = False

    def __init__(self, config: SimMIMConfig):
        super().__init__(config)
        self.projection = None
        if config.projection_dim is not None:
            self.projection = SimMIMProjection(config)
        pooler_learns = any(True for _ in self.simmim.pooler.parameters())
        if config.contrastive_gradient == "pooler" and self.projection is None and not pooler_learns:
            raise ValueError(
                "`contrastive_gradient` is 'pooler', which has nothing to learn: give "
                "`pooled_layers='table_and_last'`, `pooling='attention'` or both."
            )
        self.post_init()

    def _freeze_unused(self) -> None:
        config = self.config
        if not config.mlm_weight and not config.clm_weight:
            for name, parameter in self.lm_head.named_parameters():
                # A tied projection is the input embedding, which other terms teach.
                parameter.requires_grad_(name == "decoder.weight" and config.tie_word_embeddings)
        if not config.contrastive_weight:
            self.simmim.pooler.requires_grad_(False)
            if self.projection is not None:
                self.projection.requires_grad_(False)
        if not config.teaches_encoder:
            self.simmim.encoder.requires_grad_(False)

    @classmethod
    def from_backbone(
        cls,
        pretrained_model_name_or_path: str,
        num_hidden_layers: int | None = None,
        dropout: float | None = None,
        objective: str | None = None,
        **options: Any,
    ) -> "SimMIMForPreTraining":
        """Starts from any encoder or decoder of transformers, and from its language-model head where it has one.

        `objective="snippets"` is a good choice; without an objective it is the form of the article, `simmim`.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id; a SimMIM checkpoint is continued, and new where an
                option gives a token table or projection of it another size
            num_hidden_layers: of the backbone's layers, only the first so many; 0 leaves a bag of words, whose vectors
                know nothing of each other
            dropout: of the backbone, wherever its family has one. Default: that of its configuration
            objective: one of `OBJECTIVES`, without its pooling: the vectors stay those of the backbone
            options: options of `from_pretrained`, and options of `SimMIMConfig`. Of the former there are `revision`,
                `subfolder`, `cache_dir`, `force_download`, `local_files_only`, `token` and `trust_remote_code`, by
                which files are found, and `dtype`, `device_map` and `attn_implementation`. The default of `pooling` is
                that of a sentence-transformers model, else `"mean"`

        Raises:
            ValueError: an option or objective that does not exist, more layers than there are, a dropout that cannot
                be, a backbone that is not a text model, or a sentence-transformers model whose vectors cannot be
                made here.
        """
        # Three kinds of options: by which files are found, for the weights, of the configuration.
        name = pretrained_model_name_or_path
        options = current_options(options)
        hub_options = pop_given(options, HUB_OPTIONS)
        loading_options = hub_options | pop_given(options, WEIGHT_OPTIONS)
        if objective is not None:
            preset = options_of_objective(objective)
            # A backbone keeps its vectors, and options of the caller come last.
            preset = {key: value for key, value in preset.items() if key not in VECTOR_OPTIONS}
            options = preset | options
        # The backbone, or a whole SimMIM model.
        source_config = AutoConfig.from_pretrained(name, **hub_options)
        adjust_backbone(source_config.get_text_config(), num_hidden_layers, dropout)
        if source_config.model_type == SimMIMConfig.model_type:
            return cls._continue(name, source_config, options, loading_options)
        options.setdefault("tie_word_embeddings", getattr(source_config, "tie_word_embeddings", True))
        if "pooling" not in options:
            file_options = {key: value for key, value in hub_options.items() if key != "trust_remote_code"}
            options["pooling"] = source_pooling(name, **file_options) or SimMIMConfig.pooling
        # The backbone in its own class has the head, and knows the names of its weights.
        config = SimMIMConfig(text_config=source_config, **options)
        native, missing = load_native(name, source_config, **loading_options)
        # `simmim export` writes it, so that transformers' own class reads a decoder in both directions.
        native.config.__dict__.pop("is_causal", None)
        config.text_config = native.config
        # Ours, with the same weights: encoder and head.
        model = cls(config).to(device=native.device, dtype=native.dtype)
        model.simmim.encoder.load_state_dict(native.base_model.state_dict(), strict=False)
        model.head_is_new = not take_head(model, native, missing, is_causal=model.simmim.causal_by_nature)
        return model.eval()

    @classmethod
    def _continue(
        cls, name: str, source_config: PreTrainedConfig, options: dict[str, Any], loading_options: dict[str, Any]
    ) -> "SimMIMForPreTraining":
        """A SimMIM checkpoint with other options; parameters of another size are drawn anew."""
        config = SimMIMConfig(**{**source_config.to_dict(), **options})
        sizes = ("embedding_dim", "token_table_dim", "projection_dim")
        is_resized = any(getattr(config, size) != getattr(source_config, size) for size in sizes)
        return cls.from_pretrained(name, config=config, ignore_mismatched_sizes=is_resized, **loading_options)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        masked_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        positive_input_ids: torch.Tensor | None = None,
        positive_attention_mask: torch.Tensor | None = None,
        negative_input_ids: torch.Tensor | None = None,
        negative_attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        objective: Objective | None = None,
        **kwargs,
    ) -> SimMIMForPreTrainingOutput:
        """
        Args:
            input_ids: (batch, length), the original sequences
            attention_mask: (batch, length), 1 for real tokens, shared by both views
            masked_input_ids: (batch, length), the corrupted copies
            labels: (batch, length), the original token ids at corrupted positions and -100 elsewhere
            positive_input_ids, positive_attention_mask: (batch, positive length), the other view of each sequence,
                where `positive_view` or `corrupted_views` needs one of its own
            positive_labels: (batch, positive length), as `labels`, where both views are corrupted
            negative_input_ids, negative_attention_mask: (negatives, negative length), explicit hard negatives, which
                every row is compared with
            token_type_ids: (batch, length)
            objective: which terms are computed, and their weights. Default: that of the configuration

        Returns:
            With `labels` or `masked_input_ids` the loss and its terms; without them `logits`, as a masked LM. With
            `output_hidden_states` or `output_attentions` also those of the views that are read for the loss, all views
            below each other in the order of `views`: (views * batch, length, hidden) each. They are read with padding,
            and all at once.

        Raises:
            ValueError: a view that the objective needs is not given, or a column is of another shape or type.
            TypeError: an input that only the masked LM has, such as `position_ids`, together with `labels`.
        """
        # Without labels: a masked LM.
        if labels is None and masked_input_ids is None:
            columns = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            return self._predict_all(columns, **kwargs)
        # No parameter of its own: Trainer takes all with `label` in their name for labels that every batch must have.
        positive_labels = kwargs.pop("positive_labels", None)
        requested = {
            name: bool(kwargs.pop(name, getattr(self.config, name)))
            for name in ("output_hidden_states", "output_attentions")
        }
        unread = {name for name, value in kwargs.items() if value is not None and value is not False}
        unread.discard("return_dict")
        if unread:
            names = ", ".join(sorted(unread))
            raise TypeError(f"{type(self).__name__} with a loss does not read {names}: leave it out.")
        # The views that the objective reads: (batch, length) each.
        objective = self._objective(objective)
        views = self.views(
            objective,
            input_ids=input_ids,
            attention_mask=attention_mask,
            masked_input_ids=masked_input_ids,
            labels=labels,
            positive_input_ids=positive_input_ids,
            positive_attention_mask=positive_attention_mask,
            positive_labels=positive_labels,
            negative_input_ids=negative_input_ids,
            negative_attention_mask=negative_attention_mask,
            token_type_ids=token_type_ids,
        )
        terms = self._terms(views, objective, **requested)
        # Sums and counts -> means over all processes, scalars.
        means = global_means(terms.sums)
        losses = {name: means[name] for name in TERMS if name in means}
        return SimMIMForPreTrainingOutput(
            loss=self.weighted_sum(losses, objective),
            original_embeds=terms.anchors,
            masked_embeds=terms.positives,
            **means,
            hidden_states=terms.hidden_states,
            attentions=terms.attentions,
            counts={name: count for name, (_, count) in terms.sums.items()},
            num_tokens=torch.stack([view.num_tokens for view in views]).sum(),
        )

    def weighted_sum(self, terms: dict[str, torch.Tensor], objective: Objective | None = None) -> torch.Tensor:
        """The loss, from its terms by name (`TERMS`)."""
        objective = self._objective(objective)
        weighted = [getattr(objective, weight_of(name)) * term for name, term in terms.items()]
        return sum(weighted)

    def views(self, objective: Objective | None = None, **batch: torch.Tensor | None) -> list[View]:
        """The views of a batch that a forward reads, in order: a term of weight 0 reads nothing.

        Args:
            objective, batch: as in `forward`

        Raises:
            ValueError: a view that the objective needs is not given, or a column is of another shape or type.
        """
        objective = self._objective(objective)
        check_batch(batch)
        original = View.from_batch("original", batch)
        views = []
        # The uncorrupted text is the anchor, unless both views are corrupted.
        if objective.contrastive_weight and not objective.corrupts_both:
            views.append(original)
        # The masked copy, predicted where masked tokens are learned.
        if objective.reads_masked:
            masked = required_column(batch, "masked_input_ids", "needs the masked copy")
            targets = None
            if objective.mlm_weight:
                targets = required_column(batch, "labels", "needs the masked copy")
            views.append(original._replace(name="masked", input_ids=masked, targets=targets))
        # The positive, where it is not the masked copy.
        if objective.contrastive_weight and objective.positive_view == "dropout":
            views.append(views[0]._replace(name="positive"))  # the same tokens under another dropout mask
        elif objective.contrastive_weight and not objective.masked_is_positive:
            views.append(_positive_view(objective, batch))
        if objective.contrastive_weight and batch.get("negative_input_ids") is not None:
            views.append(View.from_batch("negatives", batch, "negative_"))
        if objective.clm_weight:
            views.append(original._replace(name="causal", targets=next_tokens(original)))
        return views

    def counts(self, objective: Objective | None = None, **batch: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """As `counts` of the output, without a forward: for gradient accumulation, which has to know them before.

        Args:
            batch: as in `forward`
        """
        objective = self._objective(objective)
        counts: dict[str, torch.Tensor] = {}
        views = self.views(objective, **batch)
        predicted_views = [view for view in views if view.targets is not None]
        num_predicted = {view.name: view.is_predicted.sum() for view in predicted_views}
        causal = num_predicted.pop("causal", None)
        if num_predicted:
            counts["mlm_loss"] = torch.stack(list(num_predicted.values())).sum()
            counts["mlm_accuracy"] = counts["mlm_loss"]
        if causal is not None:
            counts["clm_loss"] = causal
        if objective.contrastive_weight:
            rows = _count_rows(views[0].input_ids)
            counts["contrastive_loss"] = rows
            counts["contrastive_accuracy"] = rows
        return counts

    def _objective(self, objective: Objective | None) -> Objective:
        if objective is None:
            return self.config.objective
        return objective

    def _predict_all(self, columns: dict[str, torch.Tensor | None], **kwargs) -> SimMIMForPreTrainingOutput:
        """Logits of every position, (batch, length, vocab), as a masked LM."""
        outputs = self.simmim(**columns, compute_pooled=False, return_dict=True, **kwargs)
        logits = self.lm_head(outputs.last_hidden_state)  # (batch, length, hidden) -> (batch, length, vocab)
        return SimMIMForPreTrainingOutput(
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _terms(self, views: list[View], objective: Objective, **requested: bool) -> Terms:
        """The sums and counts of all terms, by a pass of all views together and one from left to right."""
        bidirectional = [view for view in views if view.name != "causal"]
        causal = [view for view in views if view.name == "causal"]
        sums: Sums = {}
        passes = []
        anchors = None
        positives = None
        if bidirectional:
            # One pass of all views below each other: (views * batch, longest length).
            read = self._read_in_chunks(
                stack_views(bidirectional),
                rows_at_once=len(bidirectional),
                is_causal=False,
                compute_pooled=bool(objective.contrastive_weight),
                compute_token_loss=bool(objective.mlm_weight),
                **requested,
            )
            passes.append(read)
            requested = {}  # the states of the first pass are those that are returned
            if objective.mlm_weight:
                sums["mlm_loss"] = (read.loss_sum, read.num_predicted)
                sums["mlm_accuracy"] = (read.num_correct, read.num_predicted)
            if objective.contrastive_weight:
                anchors, positives, hard_negatives = _compared(read.embeddings, bidirectional, objective)
                sums |= self._contrast(anchors, positives, hard_negatives)
        # The causal term is a pass of its own: each token sees those on its left only.
        for view in causal:
            read = self._read_in_chunks(
                view, rows_at_once=1, is_causal=True, compute_pooled=False, compute_token_loss=True, **requested
            )
            passes.append(read)
            sums["clm_loss"] = (read.loss_sum, read.num_predicted)
        return Terms(sums, anchors, positives, passes[0].hidden_states, passes[0].attentions)

    def _read_in_chunks(self, view: View, *, rows_at_once: int, **options: Any) -> Pass:
        """`_read` over all rows, or over `chunk_size * rows_at_once` rows at a time with only its results kept.

        A chunk is computed again in backward, with the same dropout, so that memory stays that of one chunk and the
        gradient is exact (GradCache, Gao et al. 2021, without a second training loop).
        """
        read: Callable[[View], Pass] = functools.partial(self._read, **options)
        keeps_states = options.get("output_hidden_states") or options.get("output_attentions")
        if self.chunk_size is None or keeps_states:  # states of all chunks would need the memory that chunks save
            return read(view)
        size = self.chunk_size * rows_at_once
        passes = []
        for start in range(0, max(len(view.input_ids), 1), size):
            # The tensors have to be a positional argument: `checkpoint` looks only there for the devices whose random
            # numbers, those of dropout, it has to replay.
            passes.append(checkpoint(read, view.rows(start, start + size), use_reentrant=False))
        # Vectors one below the other, (rows, dim); sums and counts added up.
        return Pass(
            embeddings=torch.cat([part.embeddings for part in passes]),
            loss_sum=torch.stack([part.loss_sum for part in passes]).sum(0),
            num_correct=torch.stack([part.num_correct for part in passes]).sum(0),
            num_predicted=torch.stack([part.num_predicted for part in passes]).sum(0),
        )

    def _read(
        self,
        view: View,
        *,
        is_causal: bool,
        compute_pooled: bool,
        compute_token_loss: bool,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Pass:
        """The rows of a view, (rows, length), through the encoder, and the predicted positions through the head."""
        num_rows = len(view.input_ids)
        if num_rows == 0:
            # Of a process that has none left: it reads one, or its parameters would have no gradient.
            view = view.with_empty_row()
        # nonzero() waits for a GPU: here, before the kernels of the encoder are queued.
        is_predicted = view.is_predicted  # (rows, length)
        predicted = is_predicted.flatten().nonzero().squeeze(1)  # (predicted,), places in the flattened batch
        num_predicted = is_predicted.sum()
        # The encoder, once over all real tokens.
        encoded = self.simmim.token_states(
            view.input_ids,
            view.attention_mask,
            view.token_type_ids,
            is_causal,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        hidden = encoded.states.last  # (tokens, hidden), without padding
        embeddings = hidden.new_empty(len(view.input_ids), 0)  # (rows, 0)
        if compute_pooled:
            states = encoded.states
            if self.config.contrastive_gradient == "pooler":
                # The contrastive gradient ends here: pooling and projection learn from it, the encoder does not.
                states = states.map(torch.Tensor.detach)
            # (tokens, hidden) -> (rows, dim)
            embeddings = self.simmim.pooler.unpadded(states, encoded.unpadding, view.attention_mask)
            if self.projection is not None:
                embeddings = self.projection(embeddings)  # (rows, projection_dim)
        # The language-model head.
        loss_sum = hidden.new_zeros(())
        num_correct = num_predicted.float()
        if compute_token_loss:
            # Logits are made for the predicted tokens only: (tokens, hidden) -> (predicted, hidden).
            states_to_predict = encoded.unpadding.select(hidden, predicted)
            targets = view.filled("targets", IGNORE_INDEX)  # (rows, length)
            targets = targets.flatten().index_select(0, predicted)  # (predicted,)
            loss_sum, num_correct = self._predict(states_to_predict, targets)
        return Pass(
            embeddings[:num_rows], loss_sum, num_correct, num_predicted, encoded.hidden_states, encoded.attentions
        )

    def _predict(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed cross-entropy of (tokens, hidden) against (tokens,), and how many of them are right."""
        decoder = self.lm_head.decoder
        if type(decoder) is not nn.Linear:  # such as one with an adapter
            logits = self.lm_head(hidden)  # (tokens, vocab)
            return token_cross_entropy(logits, targets), count_correct(logits, targets)
        # Also where nothing is predicted: the head needs its gradient of zero under DistributedDataParallel.
        logits_at_once = LOGITS_AT_ONCE
        if hidden.device.type == "cpu":
            logits_at_once = LOGITS_AT_ONCE_CPU
        tokens_at_once = max(1, logits_at_once // self.config.vocab_size)
        # The transform of all tokens, and then projection and loss of a part of them at a time.
        states = self.lm_head.transform(hidden)  # (tokens, width of the embeddings)
        return linear_cross_entropy(states, decoder.weight, decoder.bias, targets, tokens_at_once)

    def _contrast(self, anchors: torch.Tensor, positives: torch.Tensor, hard_negatives: torch.Tensor) -> Sums:
        """The contrastive loss and accuracy of (batch, dim) anchors, as the configuration has them."""
        config = self.config
        # One side may be held fixed (SimSiam, Chen & He 2021).
        if config.stop_gradient == "original":
            anchors = anchors.detach()
        elif config.stop_gradient == "positive":
            positives = positives.detach()
        sums = contrastive_loss(
            anchors,
            positives,
            hard_negatives,
            temperature=config.temperature,
            similarity=config.similarity,
            form=config.contrastive_loss,
            symmetric=config.symmetric,
            negatives=config.negatives,
            gather=config.gather_negatives,
        )
        rows = _count_rows(anchors)
        return {"contrastive_loss": (sums.loss_sum, rows), "contrastive_accuracy": (sums.num_correct, rows)}


def _positive_view(objective: Objective, batch: dict[str, torch.Tensor | None]) -> View:
    """The positive that the collator makes: cropped, deleted, span, snippet, or a second masked copy."""
    options = f"positive_view={objective.positive_view!r}, corrupted_views={objective.corrupted_views!r}"
    reason = f"has {options}"
    of_collator = f"(tokenizer, {options})"
    required_column(batch, "positive_input_ids", reason, of_collator)
    view = View.from_batch("positive", batch, "positive_")
    if objective.corrupts_both and objective.mlm_weight:
        view = view._replace(targets=required_column(batch, "positive_labels", reason, of_collator))
    return view


def _compared(
    embeddings: torch.Tensor, views: list[View], objective: Objective
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Anchors and positives, (batch, dim) each, and hard negatives, (negatives, dim).

    Args:
        embeddings: (rows of all views, dim), in the order of `views`
    """
    parts = embeddings.split([len(view.input_ids) for view in views])  # (rows, dim) of each view
    by_name = {view.name: part for view, part in zip(views, parts, strict=True)}
    # Without an uncorrupted text the masked copy is the anchor; without a view of its own, the positive.
    anchor = "masked" if objective.corrupts_both else "original"
    positive = "masked" if objective.masked_is_positive else "positive"
    hard_negatives = by_name.get("negatives", embeddings[:0])
    return by_name[anchor], by_name[positive], hard_negatives


def _count_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The number of rows as a scalar tensor."""
    return torch.tensor(len(tensor), device=tensor.device)
