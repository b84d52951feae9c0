"""The joint objective of SimMIM: what a batch is read as, and the terms of the loss."""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .backbones import adjust_backbone, load_native, native_head, source_pooling
from .configuration_simmim import VECTOR_OPTIONS, Objective, SimMIMConfig, options_of_objective
from .encoder import STATES, SimMIMWithLMHead
from .losses import (
    IGNORE_INDEX,
    contrastive_cross_entropy,
    gather,
    global_means,
    linear_cross_entropy,
    similarity_matrix,
    token_cross_entropy,
)
from .readings import Reading, check_batch, needed, next_tokens, stack

logger = logging.get_logger(__name__)

TERMS = ("mlm_loss", "contrastive_loss", "clm_loss")
# A CPU takes small pieces, which stay in its caches and need no new memory; a GPU large ones.
LOGITS_AT_ONCE, LOGITS_AT_ONCE_CPU = 2**26, 2**22


def weight_of(term: str) -> str:
    """The option of `SimMIMConfig` that weights a term of `TERMS`."""
    return term.replace("_loss", "_weight")


@dataclass
class SimMIMForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: the weighted sum of the terms, a scalar
        mlm_loss, contrastive_loss, clm_loss: the unweighted terms, scalars; None where the weight is 0
        logits: (batch, length, vocab), only where no loss was asked for
        original_embeds, masked_embeds: (batch, dim), the two vectors of a sequence that the contrastive loss compares;
            with `corrupted_views="both"` those of the masked copy and of the corrupted positive
        mlm_accuracy: share of the corrupted positions whose original token has the highest logit
        contrastive_accuracy: share of the originals whose own copy is the nearest candidate
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


class SimMIMProjection(nn.Module):
    """MLP between the pooled vector and the contrastive loss (SimCLR, Chen et al. 2020); dropped after training."""

    def __init__(self, config: SimMIMConfig):
        super().__init__()
        self.dense = nn.Linear(config.vector_size, config.vector_size)
        self.out = nn.Linear(config.vector_size, config.projection_dim)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(batch, dim) -> (batch, projection_dim)"""
        return self.out(nn.functional.relu(self.dense(pooled)))


class SimMIMForPreTraining(SimMIMWithLMHead):
    """The joint objective: masked-token prediction and a contrastive loss over a sequence and its masked copy."""

    # The terms are means, so a Trainer has to divide them by the number of accumulation steps itself.
    accepts_loss_kwargs = False
    # How many sequences go through the encoder at a time in training, None for all at once: memory against time, with
    # the same loss and gradients.
    chunk_size: int | None = None
    # Whether the language-model head has random weights, because the source of the encoder had none.
    head_is_new = False

    def __init__(self, config: SimMIMConfig):
        super().__init__(config)
        self.projection = SimMIMProjection(config) if config.projection_dim is not None else None
        learns = self.projection is not None or [*self.simmim.pooler.parameters()]
        if config.contrastive_gradient == "pooler" and not learns:
            raise ValueError(
                "`contrastive_gradient` is 'pooler', which has nothing to learn: give `pooled_layers='lexical_last'`, "
                "`pooling='attention'` or both."
            )
        self.post_init()

    def _freeze_unused(self) -> None:
        config = self.config
        if not config.mlm_weight and not config.clm_weight:
            for name, parameter in self.lm_head.named_parameters():
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
        *,
        dtype: str | torch.dtype | None = None,
        device_map: str | dict | None = None,
        attn_implementation: str | None = None,
        revision: str = "main",
        subfolder: str = "",
        cache_dir: str | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        trust_remote_code: bool | None = None,
        **config_options,
    ) -> "SimMIMForPreTraining":
        """Starts from any encoder or decoder of transformers, and from its language-model head where it has one.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id; a SimMIM checkpoint is continued, and new where an
                option gives a token table or projection of it another size
            num_hidden_layers: of the backbone's layers, only the first so many; 0 leaves a bag of words, whose vectors
                know nothing of each other
            dropout: of the backbone, wherever its family has one. Default: what its configuration says
            objective: one of `OBJECTIVES`, without what it says of the pooling: the vectors stay what they are
            dtype, device_map, attn_implementation: as in `from_pretrained` of transformers
            revision, subfolder, cache_dir, force_download, local_files_only, token, trust_remote_code: as there too
            config_options: options of `SimMIMConfig`. Default of `pooling`: that of a sentence-transformers model,
                else `"mean"`

        Raises:
            ValueError: an option or objective that does not exist, more layers than there are, a dropout that cannot
                be, a backbone that is not a text model, or a sentence-transformers model whose vectors cannot be
                made here.
        """
        name, options = pretrained_model_name_or_path, config_options
        files = {"revision": revision, "subfolder": subfolder, "cache_dir": cache_dir, "token": token}
        files |= {"force_download": force_download, "local_files_only": local_files_only}
        finding = {**files, "trust_remote_code": trust_remote_code}
        loading = {"dtype": dtype, "device_map": device_map, "attn_implementation": attn_implementation}
        loading = {**finding, **{option: value for option, value in loading.items() if value is not None}}
        if objective is not None:
            preset = options_of_objective(objective)
            options = {**{key: value for key, value in preset.items() if key not in VECTOR_OPTIONS}, **options}
        text_config = AutoConfig.from_pretrained(name, **finding)
        adjust_backbone(text_config.get_text_config(), num_hidden_layers, dropout)
        if text_config.model_type == SimMIMConfig.model_type:
            config = SimMIMConfig(**{**text_config.to_dict(), **options})
            before, after = ((c.vector_size, c.lexicon_size, c.projection_dim) for c in (text_config, config))
            return cls.from_pretrained(name, config=config, ignore_mismatched_sizes=before != after, **loading)
        options.setdefault("tie_word_embeddings", getattr(text_config, "tie_word_embeddings", True))
        if "pooling" not in options:
            options["pooling"] = source_pooling(name, **files) or SimMIMConfig.pooling
        config = SimMIMConfig(text_config=text_config, **options)
        native, info = load_native(name, text_config, **loading)
        # `simmim export` writes it, so that transformers' own class reads a decoder in both directions.
        native.config.__dict__.pop("is_causal", None)
        config.text_config = native.config
        model = cls(config).to(device=native.device, dtype=native.dtype)
        model.simmim.encoder.load_state_dict(native.base_model.state_dict(), strict=False)
        model._take_head(native, info["missing_keys"])
        return model.eval()

    def _take_head(self, native: PreTrainedModel, missing: set[str]) -> None:
        """Copies the language-model head of `native`, or says why there is none to copy."""
        head, family = native_head(native.config), native.config.model_type
        if head is None or native.get_output_embeddings() is None:
            logger.warning(f"No language-model head of `{family}` is known here: a new one is trained from scratch.")
            self.head_is_new = True
            return
        if any(key.startswith(theirs + ".") for key in missing for theirs in head.parts().values()):
            logger.warning("This checkpoint has no language-model head: a new one is trained from scratch.")
            self.head_is_new = True
            return
        untied = native.get_input_embeddings().weight is not native.get_output_embeddings().weight
        for ours, theirs in head.parts().items():
            state = native.get_submodule(theirs).state_dict()
            if ours == "decoder" and untied and self.config.tie_word_embeddings:
                del state["weight"]  # it would overwrite the input embeddings
            getattr(self.lm_head, ours).load_state_dict(state, strict=False)
        if not self.has_logits_of(native, is_causal=self.simmim._causal_by_nature):
            logger.warning(
                f"The language-model head of `{family}` is kept, but not all that it computes (such as a bias, a "
                "scale or a cap on its logits): its predictions differ at first."
            )

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
                where `positive_view` or `corrupted_views` asks for one of its own
            positive_labels: (batch, positive length), as `labels`, where both views are corrupted
            negative_input_ids, negative_attention_mask: (negatives, negative length), explicit hard negatives, which
                every row sees
            token_type_ids: (batch, length)
            objective: which terms are computed, and their weights. Default: that of the configuration

        Returns:
            With `labels` or `masked_input_ids` the loss and its terms; without them `logits`, as a masked LM. With
            `output_hidden_states` or `output_attentions` also those of what was read for the loss, all views under
            each other in the order of `readings`: (readings * batch, length, hidden) each. They are read with
            padding, and all at once.

        Raises:
            ValueError: a view that the objective needs is not given, or a column is of another shape or type.
            TypeError: an input that only the masked LM has, such as `position_ids`, beside `labels`.
        """
        if labels is None and masked_input_ids is None:
            columns = input_ids, attention_mask, token_type_ids
            outputs = self.simmim(*columns, pools=False, return_dict=True, **kwargs)
            return SimMIMForPreTrainingOutput(
                logits=self.lm_head(outputs.last_hidden_state),
                hidden_states=outputs.hidden_states,
                attentions=outputs.attentions,
            )
        # No parameter of its own: Trainer takes all with `label` in their name for labels that every batch must have.
        positive_labels = kwargs.pop("positive_labels", None)
        asked = {**self._asked_for(), **{name: kwargs.pop(name, None) for name in STATES.values() if name in kwargs}}
        outputs = {name: None for name, option in STATES.items() if asked.get(option)}
        given = {name for name, value in kwargs.items() if value is not None and value is not False}
        unread = sorted(given - {"return_dict"})
        if unread:
            raise TypeError(f"{type(self).__name__} with a loss does not read {', '.join(unread)}: leave it out.")
        objective = self.config.objective if objective is None else objective
        readings = self.readings(
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
        both_ways = [reading for reading in readings if reading.name != "causal"]
        terms, embeds = self._siamese_terms(both_ways, objective, outputs) if both_ways else ({}, {})
        if objective.clm_weight:
            kept = {} if both_ways else outputs
            _, total, _, count = self._read_in_chunks(
                **readings[-1].columns(), rows_at_once=1, is_causal=True, predicts=True, outputs=kept
            )
            terms["clm_loss"] = total, count
        means = global_means(terms)
        return SimMIMForPreTrainingOutput(
            loss=self.weighted_sum({name: means[name] for name in TERMS if name in means}, objective),
            original_embeds=embeds.get("original"),
            masked_embeds=embeds.get("positive"),
            **means,
            **outputs,
        )

    def weighted_sum(self, terms: dict[str, torch.Tensor], objective: Objective | None = None) -> torch.Tensor:
        """The loss, from its terms by name (`TERMS`)."""
        objective = self.config.objective if objective is None else objective
        return sum(getattr(objective, weight_of(name)) * term for name, term in terms.items())

    def readings(self, objective: Objective | None = None, **batch: torch.Tensor | None) -> list[Reading]:
        """What a forward on a batch reads, in order: a term of weight 0 reads nothing.

        Args:
            objective, batch: as in `forward`

        Raises:
            ValueError: a view that the objective needs is not given, or a column is of another shape or type.
        """
        objective = self.config.objective if objective is None else objective
        check_batch(batch)
        original = Reading.of("original", batch)
        readings = []
        if objective.contrastive_weight and not objective.corrupts_both:
            readings.append(original)
        if objective.reads_masked:
            ids = needed(batch, "masked_input_ids", "needs the masked copy")
            targets = needed(batch, "labels", "needs the masked copy") if objective.mlm_weight else None
            readings.append(original._replace(name="masked", input_ids=ids, targets=targets))
        if objective.contrastive_weight and objective.positive_view == "dropout":
            readings.append(readings[0]._replace(name="positive"))
        elif objective.contrastive_weight and not objective.masked_is_positive:
            options = f"positive_view={objective.positive_view!r}, corrupted_views={objective.corrupted_views!r}"
            required = functools.partial(needed, batch, reason=f"has {options}", options=f"(tokenizer, {options})")
            required("positive_input_ids")
            targets = required("positive_labels") if objective.corrupts_both and objective.mlm_weight else None
            readings.append(Reading.of("positive", batch, "positive_")._replace(targets=targets))
        if objective.contrastive_weight and batch.get("negative_input_ids") is not None:
            readings.append(Reading.of("negatives", batch, "negative_"))
        if objective.clm_weight:
            readings.append(original._replace(name="causal", targets=next_tokens(original)))
        return readings

    def counts(self, objective: Objective | None = None, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """What each term, and its accuracy, is a mean over: corrupted positions, sequences, next tokens.

        Args:
            batch: as in `forward`

        Returns:
            Scalars by the name of the output, of the terms that the objective has.
        """
        counts = {}
        objective = self.config.objective if objective is None else objective
        for reading in self.readings(**batch, objective=objective):
            if reading.name == "causal":
                counts["clm_loss"] = reading.is_predicted.sum()
            elif reading.targets is not None:
                counts["mlm_loss"] = counts.get("mlm_loss", 0) + reading.is_predicted.sum()
                counts["mlm_accuracy"] = counts["mlm_loss"]
        if objective.contrastive_weight:
            rows = torch.tensor(len(batch["input_ids"]), device=batch["input_ids"].device)
            counts["contrastive_loss"] = counts["contrastive_accuracy"] = rows
        return counts

    def _siamese_terms(self, readings: list[Reading], objective: Objective, outputs: dict) -> tuple[dict, dict]:
        """All readings through the encoder at once, then the (sum, count) of each term and the compared vectors; those
        of `STATES` that have a key in `outputs` are put there."""
        batch, columns = len(readings[0].input_ids), readings[0].columns()
        if readings[0].token_type_ids is None:
            columns.pop("token_type_ids")
        fills = {**dict.fromkeys(columns, 0), "targets": IGNORE_INDEX}
        # Under each other: (readings * batch, longest length); hard negatives come last and are of another number.
        rows = {
            name: stack([reading.filled(name, fill) for reading in readings], fill) for name, fill in fills.items()
        }
        wanted = {"pools": bool(objective.contrastive_weight), "predicts": bool(objective.mlm_weight)}
        pooled, total, correct, count = self._read_in_chunks(
            **rows, rows_at_once=len(readings), **wanted, outputs=outputs
        )
        terms, embeds = {}, {}
        if objective.mlm_weight:
            terms |= {"mlm_loss": (total, count), "mlm_accuracy": (correct, count)}
        if objective.contrastive_weight:
            names = [reading.name for reading in readings if reading.name != "negatives"]
            parts = [pooled[i * batch : (i + 1) * batch] for i in range(len(names))]
            vectors = dict(zip(names, parts, strict=True))  # (batch, dim) each
            embeds = {
                "original": vectors["masked" if objective.corrupts_both else "original"],
                "positive": vectors["masked" if objective.masked_is_positive else "positive"],
            }
            negatives = pooled[batch * len(names) :]  # (negatives, dim)
            terms |= self._contrastive_terms(embeds["original"], embeds["positive"], negatives)
        return terms, embeds

    def _read_in_chunks(
        self, *, rows_at_once: int, outputs: dict, is_causal=False, pools=False, predicts=False, **columns
    ):
        """`_read` over all rows, or over `chunk_size * rows_at_once` rows at a time with only its results kept.

        A chunk is computed again in backward, with the same dropout, so that memory stays that of one chunk and the
        gradient is exact (GradCache, Gao et al. 2021, without a second training loop).
        """
        read = functools.partial(self._read, is_causal=is_causal, pools=pools, predicts=predicts, outputs=outputs)
        if self.chunk_size is None or outputs:  # whose memory would be that of all chunks
            return read(**columns)
        size, rows = self.chunk_size * rows_at_once, len(columns["input_ids"])
        results = []
        for start in range(0, max(rows, 1), size):
            chunk = {name: None if x is None else x[start : start + size] for name, x in columns.items()}
            results.append(checkpoint(read, **chunk, use_reentrant=False))
        vectors, totals, corrects, counts = zip(*results, strict=True)
        return torch.cat(vectors), *(torch.stack(sums).sum(0) for sums in (totals, corrects, counts))

    def _read(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        targets: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        *,
        is_causal: bool,
        pools: bool,
        predicts: bool,
        outputs: dict,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows (rows, length) of a `Reading` through the encoder, and the predicted positions through the head.

        Returns:
            The vectors (rows, dim) that the contrastive loss compares, or (rows, 0); the summed cross-entropy; how
            many predictions were right, and of how many.
        """
        rows = len(input_ids)
        if not rows:  # of a process that has none left: it reads one, or its parameters would have no gradient
            input_ids = F.pad(input_ids, (0, 0, 0, 1))  # (1, length), also below
            attention_mask = F.pad(attention_mask, (0, 0, 0, 1), value=1)
            targets = F.pad(targets, (0, 0, 0, 1), value=IGNORE_INDEX)
            if token_type_ids is not None:
                token_type_ids = F.pad(token_type_ids, (0, 0, 0, 1))
        # Before the encoder: a GPU tells how many there are once it has done all that it was given.
        is_predicted = (targets != IGNORE_INDEX) & attention_mask.bool()  # (rows, length)
        predicted, count = is_predicted.flatten().nonzero().squeeze(1), is_predicted.sum()  # (predicted,), ()
        states, packing = self.simmim.token_states(input_ids, attention_mask, token_type_ids, is_causal, outputs)
        hidden = states.last  # (tokens, hidden)
        vectors = hidden.new_empty(len(input_ids), 0)
        if pools:
            if self.config.contrastive_gradient == "pooler":
                states = states.each(torch.Tensor.detach)
            vectors = self.simmim.pooler.packed(states, packing, attention_mask)  # (rows, dim)
            if self.projection is not None:
                vectors = self.projection(vectors)  # (rows, projection_dim)
        vectors = vectors[:rows]
        if not predicts:
            return vectors, hidden.new_zeros(()), count.float(), count
        states = packing.select(hidden, predicted)  # (predicted, hidden)
        total, correct = self._predict(states, targets.flatten().index_select(0, predicted))
        return vectors, total, correct, count

    def _predict(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed cross-entropy of (tokens, hidden) against (tokens,), and how many of them are right."""
        decoder = self.lm_head.decoder
        if type(decoder) is not nn.Linear:  # such as one with an adapter
            logits = self.lm_head(hidden)
            return token_cross_entropy(logits, targets), _correct(logits, targets)[0]
        # Also where nothing is predicted: the head needs its gradient of zero under DistributedDataParallel.
        at_once = LOGITS_AT_ONCE_CPU if hidden.device.type == "cpu" else LOGITS_AT_ONCE
        tokens_at_once = max(1, at_once // self.config.vocab_size)
        states = self.lm_head.transform(hidden)  # (tokens, width of the embeddings)
        return linear_cross_entropy(states, decoder.weight, decoder.bias, targets, tokens_at_once)

    def _contrastive_terms(self, rows, positives, negatives) -> dict[str, tuple[torch.Tensor, int]]:
        """The sums of the contrastive loss and accuracy.

        Args:
            rows, positives: (batch, dim)
            negatives: (negatives, dim), explicit ones
        """
        config = self.config
        if config.stop_gradient == "original":
            rows = rows.detach()
        elif config.stop_gradient == "positive":
            positives = positives.detach()
        total, scores, targets = self._contrast(rows, positives, negatives)
        if config.symmetric:
            total = (total + self._contrast(positives, rows, negatives[:0])[0]) / 2
        return {"contrastive_loss": (total, len(rows)), "contrastive_accuracy": _correct(scores, targets)}

    def _contrast(self, rows, positives, negatives) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Each row against the candidates of all processes: the summed loss, the scores of the positives and of the
        hard negatives, and which of them is the row's own."""
        config, offset, both_views = self.config, 0, self.config.negatives == "both_views"
        candidates = [positives, *([rows] if both_views else []), negatives]
        if config.gather_negatives:
            gathered = [gather(vectors) for vectors in candidates]
            candidates, offset = [vectors for vectors, _ in gathered], gathered[0][1]
        # (rows, candidates): the positives of all processes, their rows or none, hard negatives
        scores = similarity_matrix(rows, torch.cat(candidates), config.similarity) / config.temperature
        targets = torch.arange(offset, offset + len(rows), device=rows.device)  # (rows,)
        first = len(candidates[0])
        itself = first + targets if both_views else None  # (rows,)
        total = contrastive_cross_entropy(scores, targets, config.contrastive_loss, left_out=itself)
        # The accuracy asks every form of the loss the same: without the rows among the candidates.
        hard = scores[:, 2 * first if both_views else first :]  # (rows, negatives)
        return total, torch.cat([scores[:, :first], hard], dim=1), targets


def _correct(scores: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, int]:
    """How many rows of `scores` (rows, choices) have their highest value at `targets` (rows,), and of how many."""
    return (scores.detach().argmax(-1) == targets).sum().float(), len(targets)
