"""SimMIM for text: one encoder of transformers, read twice, with a language-model head and a contrastive term.

From top to bottom: the encoder, its language-model head, the heads of downstream tasks, the joint objective.
"""

import contextlib
import functools
import inspect
import os
import sys
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    Cache,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    modeling_outputs,
)
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .backbones import (
    NEW_HEAD,
    adjust_backbone,
    as_decoder,
    build_encoder,
    can_be_decoder,
    explaining_weights,
    first_position,
    load_native,
    native_head,
    source_pooling,
)
from .configuration_simmim import VECTOR_OPTIONS, Objective, SimMIMConfig, options_of_objective
from .losses import (
    contrastive_cross_entropy,
    gather,
    global_means,
    linear_cross_entropy,
    similarity_matrix,
    token_cross_entropy,
)
from .packing import ATTENTION, Packing, Past
from .vectors import SimMIMPooling, encode, write_modules

logger = logging.get_logger(__name__)

IGNORE_INDEX = -100
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
STATES = {"hidden_states": "output_hidden_states", "attentions": "output_attentions"}  # and what asks for them
TERMS = ("mlm_loss", "contrastive_loss", "clm_loss")
# A CPU takes small pieces, which stay in its caches and need no new memory; a GPU large ones.
LOGITS_AT_ONCE, LOGITS_AT_ONCE_CPU = 2**26, 2**22

# `from_pretrained` options of transformers, told apart from those of `SimMIMConfig` in `from_backbone`.
FINDING = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")
LOADING_OPTIONS = (*FINDING, "attn_implementation", "device_map", "dtype")


def weight_of(term: str) -> str:
    """The option of `SimMIMConfig` that weights a term of `TERMS`."""
    return term.replace("_loss", "_weight")


# The encoder


class SimMIMPreTrainedModel(PreTrainedModel):
    config_class = SimMIMConfig
    config: SimMIMConfig
    base_model_prefix = "simmim"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _reads_vectors = True  # whether the class uses the vectors of sequences, or those of tokens only
    # What is needed in pre-training only may be left over in other classes.
    _keys_to_ignore_on_load_unexpected = [r"^projection\.", r"^uncertainty\.", r"^lm_head\.", r"pooler\.query$"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, from safetensors only: a pickle can execute code when it is opened.

        Raises:
            OSError: there are no weights in safetensors, or the file is damaged.
        """
        with explaining_weights(pretrained_model_name_or_path):
            loaded = super().from_pretrained(
                pretrained_model_name_or_path, *args, **{**kwargs, "use_safetensors": True}
            )
        # transformers makes every parameter trainable.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze_unused()
        return loaded

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs):
        """As in transformers, with what `SentenceTransformer(save_directory)` needs to give the same vectors."""
        if is_main_process and self._reads_vectors and not os.path.isfile(save_directory):
            write_modules(self.config, save_directory)  # before the upload, where there is one
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

    encode = encode  # texts to vectors

    def post_init(self):
        super().post_init()
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        """Parameters that no loss reaches would stop DistributedDataParallel."""
        if not self._reads_vectors:
            self.base_model.pooler.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (SimMIMUncertainty, SimMIMPooling)):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)

    def generate(self, *args, **kwargs):
        """Explains that only `SimMIMForCausalLM` generates."""
        raise TypeError(
            f"`{type(self).__name__}` reads in both directions and cannot generate from left to right. Load the "
            "checkpoint with `AutoModelForCausalLM`, or fill gaps with `SimMIMForMaskedLM.infill`."
        )

    def _asked_for(self) -> dict[str, bool]:
        """What the own configuration asks of every forward; the backbone knows its own only."""
        return {name: True for name in ("output_hidden_states", "output_attentions") if getattr(self.config, name)}

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.encoder.set_input_embeddings(value)


class TokenStates(NamedTuple):
    """Token vectors: those of the last layer, and those that are pooled."""

    last: torch.Tensor
    pooled: torch.Tensor

    def each(self, function) -> "TokenStates":
        """The results of a function, which is called once where both are the same."""
        last = function(self.last)
        return TokenStates(last, last if self.pooled is self.last else function(self.pooled))


class SimMIMModel(SimMIMPreTrainedModel):
    """The shared encoder: any text model of transformers, with the configured pooling."""

    accepts_loss_kwargs = False

    def __init__(self, config: SimMIMConfig, is_decoder: bool = False):
        super().__init__(config)
        text_config = as_decoder(config.text_config) if is_decoder else config.text_config
        self.encoder = build_encoder(text_config)
        self.pooler = SimMIMPooling(config)
        # Without layers there is one set of token vectors.
        self._pools_first = config.pooled_layers == "first_last" and getattr(text_config, "num_hidden_layers", 1) > 0
        if self.encoder.config._attn_implementation == "sdpa" and self.encoder._supports_attention_backend:
            self.encoder.config._attn_implementation = ATTENTION
        self._parameters_of_forward = set(inspect.signature(self.encoder.forward).parameters)
        if not hasattr(text_config, "type_vocab_size"):
            self._parameters_of_forward.discard("token_type_ids")  # GPT-2 would look them up among its words
        self._causal_by_nature = any(getattr(module, "is_causal", False) for module in self.encoder.modules())
        self.first_position = first_position(self.encoder)
        self._can_pack: bool | None = None
        self._proven_directions: set[bool] = set()
        self.post_init()

    @property
    def max_length(self) -> int:
        """The longest sequence, in tokens, that the backbone has positions for."""
        return getattr(self.config.text_config, "max_position_embeddings", sys.maxsize) - self.first_position

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_causal: bool | None = None,
        pools: bool = True,
        **kwargs,
    ) -> modeling_outputs.BaseModelOutputWithPooling:
        """
        Args:
            input_ids: (batch, length)
            attention_mask: (batch, length), 1 for real tokens; padding may stand on either side
            token_type_ids, position_ids: (batch, length); ignored by a backbone that has none
            inputs_embeds: (batch, length, embedding), instead of `input_ids`
            is_causal: read from left to right only; by default so for a model trained with the causal loss alone
            pools: make the vectors; with `first_last` the backbone then keeps the states of all its layers for them

        Returns:
            `last_hidden_state` (batch, length, hidden) and `pooler_output` (batch, hidden), the configured pooling.
        """
        inputs = input_ids if input_ids is not None else inputs_embeds
        if inputs is None:
            raise ValueError("Give `input_ids` or `inputs_embeds`.")
        if attention_mask is None:
            attention_mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        kwargs = {**self._asked_for(), **kwargs}
        is_causal = self.config.objective.is_causal if is_causal is None else is_causal
        plain = input_ids is not None and position_ids is None and not any(kwargs.values())
        if plain and is_causal and not self._causal_by_nature and self._packs(input_ids.device):
            states, packing = self.token_states(input_ids, attention_mask, token_type_ids, is_causal)
            states, outputs = states.each(packing.unpack), ModelOutput()  # (batch, length, hidden) each
        else:
            given = {"position_ids": position_ids, "inputs_embeds": inputs_embeds, **kwargs}
            outputs = self._encode_padded(input_ids, attention_mask, token_type_ids, is_causal, pools, **given)
            states = self._states(outputs, pools)
        hidden_states = outputs.get("hidden_states")
        if self._pools_first and not kwargs.get("output_hidden_states", self.encoder.config.output_hidden_states):
            hidden_states = None  # nobody else asked for them
        return modeling_outputs.BaseModelOutputWithPooling(
            last_hidden_state=states.last,
            pooler_output=self.pooler(states.pooled, attention_mask) if pools else None,
            hidden_states=hidden_states,
            attentions=outputs.get("attentions"),
        )

    def token_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        is_causal: bool | None = None,
        outputs: dict | None = None,
    ) -> tuple[TokenStates, Packing]:
        """The hidden states of the real tokens only, computed without padding where the backbone allows it.

        Args:
            input_ids, attention_mask, token_type_ids: (batch, length)
            outputs: those of `STATES` that it has as keys are put into it, which takes a reading with padding

        Returns:
            (tokens, hidden) each, and the packing that leads back to the (batch, length) grid.
        """
        packing = Packing.of(attention_mask)
        is_causal = self.config.objective.is_causal if is_causal is None else is_causal
        self.prove_direction(is_causal, input_ids.device)
        if self._packs(input_ids.device) and not outputs:
            return self._encode_packed(input_ids, packing, token_type_ids, is_causal), packing
        options = {STATES[name]: True for name in outputs or {}}
        read = self._encode_padded(input_ids, attention_mask, token_type_ids, is_causal, **options)
        for name in outputs or {}:
            outputs[name] = read.get(name)
        return self._states(read).each(packing.pack), packing  # (batch, length, hidden) -> (tokens, hidden)

    def _states(self, outputs: ModelOutput, pools: bool = True) -> TokenStates:
        """What the backbone returned, as the heads and the pooling take it."""
        last = outputs.last_hidden_state
        return TokenStates(last, (outputs.hidden_states[0] + last) / 2 if pools and self._pools_first else last)

    def _encode_packed(self, input_ids, packing, token_type_ids=None, is_causal=False) -> TokenStates:
        columns = {"input_ids": input_ids, "token_type_ids": token_type_ids}  # (batch, length)
        columns = {name: packing.pack(x)[None] for name, x in columns.items() if x is not None}  # (1, tokens)
        outputs = self.encoder(
            **self._accepted(**columns, use_cache=False),
            position_ids=(packing.positions + self.first_position)[None],
            # A mask of four dimensions is passed on as it is by every backbone; the attention needs none.
            attention_mask=torch.ones(1, 1, 1, 1, device=input_ids.device),
            is_causal=is_causal,
            packing=packing,
            **self._for_pooling(),
        )
        return self._states(outputs).each(lambda states: states[0])  # (1, tokens, hidden) -> (tokens, hidden)

    def _encode_padded(
        self, input_ids, attention_mask, token_type_ids=None, is_causal=False, pools=True, position_ids=None, **kwargs
    ) -> ModelOutput:
        if position_ids is None:
            position_ids = self._positions(attention_mask)
        if self._causal_by_nature:
            kwargs["is_causal"] = is_causal
        elif is_causal:
            attention_mask = self._causal_mask(attention_mask)
        return self.encoder(
            **self._accepted(token_type_ids=token_type_ids, position_ids=position_ids, use_cache=False),
            input_ids=input_ids,
            attention_mask=attention_mask,
            **{**kwargs, **self._for_pooling(pools)},
        )

    def _for_pooling(self, pools: bool = True) -> dict[str, bool]:
        """What the pooling asks of the encoder."""
        return {"output_hidden_states": True} if pools and self._pools_first else {}

    def _positions(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, length), counted over the real tokens, so that padding on the left changes nothing."""
        return (attention_mask.long().cumsum(1) - 1).clamp(min=0) + self.first_position

    def _causal_mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, length) -> the additive (batch, 1, length, length) mask of a left-to-right reading."""
        if getattr(self.config.text_config, "sliding_window", None):
            raise ValueError(
                f"A `{self.config.text_config.model_type}` with sliding windows reads from left to right only with "
                "the attention of this package: load the model without `attn_implementation`, or with 'sdpa'."
            )
        length, dtype = attention_mask.shape[1], self.dtype
        past = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
        visible = attention_mask.bool()[:, None, None, :] & past  # (batch, 1, length, length)
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)

    def _accepted(self, **inputs) -> dict:
        """The inputs that are given and that this backbone's forward knows by name."""
        return {k: v for k, v in inputs.items() if v is not None and k in self._parameters_of_forward}

    def _packs(self, device: torch.device) -> bool:
        """Whether the backbone reads sequences without padding."""
        if self.encoder.config._attn_implementation != ATTENTION:
            return False
        if self._can_pack is None:
            self._can_pack = self._try_to_pack(device)
        return self._can_pack

    @torch.no_grad()
    def prove_direction(self, is_causal: bool, device: torch.device) -> None:
        """Tries once whether the backbone obeys `is_causal`: some can read one way only, and ignore it silently.

        Raises:
            ValueError: it does not, it cannot read a text, or what it reads changes nothing.
        """
        without_layers = getattr(self.config.text_config, "num_hidden_layers", None) == 0  # no token sees another
        if is_causal in self._proven_directions or without_layers:
            return
        self._proven_directions.add(is_causal)
        text = torch.arange(6, device=device)[None] % self.config.vocab_size
        other = text.clone()
        other[0, -1] = 3 % self.config.vocab_size
        family, mask = self.config.text_config.model_type, torch.ones_like(text)
        try:
            with _evaluating(self, device):
                read = (self.token_states(ids, mask, is_causal=is_causal)[0].last for ids in (text, other))
                first, second = read  # (6, hidden) each
        except Exception as error:
            self._proven_directions.remove(is_causal)
            way = "from left to right" if is_causal else "in both directions"
            raise ValueError(f"The backbone `{family}` cannot read a sequence {way}: {error}") from error
        if torch.equal(first[-1], second[-1]):  # of the token that differs
            raise ValueError(
                f"The backbone `{family}` gives the same vectors whatever it reads: its weights are all alike, or an "
                "option such as the epsilon of its norms is out of proportion."
            )
        if torch.equal(first[0], second[0]) != is_causal:
            raise ValueError(
                f"The backbone `{family}` looks ahead even when it is asked to read from left to right. "
                "Set `clm_weight` to 0, or choose another backbone."
                if is_causal
                else f"The backbone `{family}` only reads from left to right: two of the terms would see half of each "
                "text. Use the objective `clm`, or choose another backbone."
            )

    @torch.no_grad()
    def _try_to_pack(self, device: torch.device) -> bool:
        """Whether the backbone gives the same result packed and padded, on two sequences of unequal length."""
        attention_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=device)
        input_ids = torch.arange(10, device=device).view(2, 5) % self.config.vocab_size
        packing = Packing.of(attention_mask)
        try:
            with _evaluating(self, device):
                packed = self._encode_packed(input_ids, packing).last
                padded = self._encode_padded(input_ids, attention_mask).last_hidden_state
                padded = packing.pack(padded)  # (rows, length, hidden) -> (tokens, hidden), as `packed`
            tolerance = 1e-4 if packed.dtype in (torch.float32, torch.float64) else 5e-2
            difference, size = (x.float().norm() for x in (packed - padded, padded))
            reason = None if difference <= tolerance * size else "its results differ"
        except Exception as error:  # whatever it is that this backbone cannot do, it can still read padded batches
            reason = str(error)
        if reason is not None or not packing.calls:
            logger.warning_once(
                f"The backbone `{self.config.text_config.model_type}` cannot read sequences without padding "
                f"({reason or 'its attention does not see them'}); it reads padded batches, with the same result."
            )
            return False
        return True


# The language-model head


class SimMIMLMHead(nn.Module):
    """Token logits from hidden states, in the shape of the backbone family's own head so that its weights fit."""

    def __init__(self, config: SimMIMConfig):
        super().__init__()
        text_config = config.text_config
        head = native_head(text_config) or NEW_HEAD
        width = getattr(text_config, "embedding_size", text_config.hidden_size)
        self.has_transform = head.dense is not None
        if self.has_transform:
            self.dense = nn.Linear(text_config.hidden_size, width, bias=getattr(text_config, "classifier_bias", True))
            self.activation = ACT2FN[head.activation(text_config)]
            self.norm = nn.LayerNorm(width, eps=head.eps(text_config), bias=getattr(text_config, "norm_bias", True))
        self.decoder = nn.Linear(width, text_config.vocab_size, bias=head.bias(text_config))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> (..., vocab)"""
        return self.decoder(self.transform(hidden))

    def transform(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> (..., width of the embeddings)"""
        return self.norm(self.activation(self.dense(hidden))) if self.has_transform else hidden


class SimMIMWithLMHead(SimMIMPreTrainedModel):
    """The shared encoder with a language-model head that is tied to the input embeddings."""

    _keys_to_ignore_on_load_unexpected = [r"^projection\.", r"^uncertainty\.", r"pooler\.query$"]

    def __init__(self, config: SimMIMConfig, is_decoder: bool = False):
        super().__init__(config)
        self.simmim = SimMIMModel(config, is_decoder)
        self.lm_head = SimMIMLMHead(config)
        embedding = self.get_input_embeddings().weight
        name = next(name for name, parameter in self.named_parameters() if parameter is embedding)
        self._tied_weights_keys = {"lm_head.decoder.weight": name}

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head.decoder = value

    @torch.no_grad()
    def has_logits_of(self, native: PreTrainedModel, is_causal: bool | None = None) -> bool:
        """Whether `native` predicts the same: a family's head may compute more than a transform and a projection."""
        ids = self.config.vocab_size - 1 - torch.arange(6, device=native.device)[None]  # none of them is padding
        with _evaluating(native, native.device), _evaluating(self, native.device):
            ours = self.lm_head(self.base_model(ids, is_causal=is_causal).last_hidden_state)  # (1, 6, vocab)
            return torch.allclose(ours, native(input_ids=ids).logits, atol=1e-3, rtol=1e-3)


class SimMIMWithLabels(SimMIMPreTrainedModel):
    """The forward of the models that answer with `logits` and learn by `labels`; each tells the shapes of both."""

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
            labels: what is to be predicted

        Returns:
            `logits`, and with `labels` the mean `loss`.
        """
        given = input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        columns = dict(zip(INPUTS, given, strict=True))
        logits, outputs = self._read(columns, pools=self._reads_vectors, return_dict=True, **kwargs)
        return self.output_class(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class SimMIMForMaskedLM(SimMIMWithLabels, SimMIMWithLMHead):
    """Masked language modelling alone: for fill-mask and for further masked-only training.

    `logits` are (batch, length, vocab); `labels` (batch, length), original token ids where to predict, -100 elsewhere.
    """

    _reads_vectors = False
    output_class = modeling_outputs.MaskedLMOutput

    def __init__(self, config: SimMIMConfig):
        super().__init__(config)
        self.post_init()

    def _read(self, columns: dict, **kwargs) -> tuple[torch.Tensor, ModelOutput]:
        outputs = self.simmim(**columns, **kwargs)
        return self.lm_head(outputs.last_hidden_state), outputs  # (batch, length, vocab)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        predicted = labels != IGNORE_INDEX  # (batch, length)
        total = token_cross_entropy(logits[predicted], labels[predicted])  # of (tokens, vocab) and (tokens,)
        return global_means({"loss": (total, predicted.sum())})["loss"]

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
            mask_token_id: the token that stands in every gap
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
        if temperature < 0 or (top_k is not None and top_k < 1) or (num_steps is not None and num_steps < 1):
            raise ValueError(
                f"`temperature` is {temperature}, `top_k` {top_k} and `num_steps` {num_steps}: the first must be 0 or "
                "above, the others 1 or above."
            )
        num_gaps = gaps.sum(1)
        steps = num_gaps.clamp(min=1) if num_steps is None else torch.full_like(num_gaps, num_steps)
        filled, certainty = input_ids.clone(), torch.ones_like(input_ids, dtype=torch.float32)
        for step in range(1, int(steps.max()) + 1):
            opened = filled == mask_token_id  # (batch, length)
            logits = self(filled, attention_mask, return_dict=True, **inputs).logits[opened].float()  # (gaps, vocab)
            logits[:, list(suppressed)] = -torch.inf
            probabilities = logits.softmax(-1)
            if temperature == 0:
                tokens = logits.argmax(-1)
            else:
                if top_k is not None and top_k < logits.shape[1]:
                    logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
                tokens = (logits / temperature).softmax(-1).multinomial(1)[:, 0]
            filled[opened] = tokens
            certainty[opened] = probabilities.gather(1, tokens[:, None])[:, 0]
            # Rank the gaps of each text from the least certain; other tokens come last.
            rank = certainty.masked_fill(~gaps, torch.inf).argsort(dim=1, stable=True).argsort(1)
            reopened = rank < (num_gaps * (steps - step).clamp(min=0) // steps)[:, None]
            filled[reopened] = mask_token_id
        return filled


class SimMIMGenerationConfig(GenerationConfig):
    """Options of `generate`, without the `temperature` of the model's config, which is of the contrastive loss."""

    @classmethod
    def from_model_config(cls, model_config: PreTrainedConfig | dict) -> "SimMIMGenerationConfig":
        options = model_config if isinstance(model_config, dict) else model_config.to_dict()
        return super().from_model_config({name: value for name, value in options.items() if name != "temperature"})


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
        # A checkpoint of this class, or one whose objective has the causal term, has learned this direction.
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
            attention_mask: (batch, cached length + length), 1 for real tokens; padding may stand on either side
            labels: (batch, length), the input ids, -100 where nothing is to be learned; shifted here
            logits_to_keep: compute the logits of so many last positions only, 0 for all

        Returns:
            `logits` (batch, length, vocab), with `labels` the mean `loss`, and `past_key_values`.
        """
        inputs = input_ids if input_ids is not None else inputs_embeds
        if inputs is None:
            raise ValueError("Give `input_ids` or `inputs_embeds`.")
        if past_key_values is not None and past_key_values.is_compileable:
            # `generate` replaces the mask by one of four dimensions, or by none, and the padding is lost.
            raise ValueError(
                f"A `{type(past_key_values).__name__}` cannot be used: positions are counted from an attention mask "
                "per token. Generate with the default cache, without `cache_implementation`."
            )
        batch, length = inputs.shape[:2]
        if attention_mask is None:
            cached = past_key_values.get_seq_length() if past_key_values is not None else 0
            attention_mask = torch.ones(batch, cached + length, dtype=torch.long, device=inputs.device)
        # No parameter of its own: `generate` would give positions from 0 to every model that names one.
        position_ids = kwargs.pop("position_ids", None)
        if position_ids is None:
            position_ids = self.simmim._positions(attention_mask)[:, -length:]
        if self._has_native_cache:
            kwargs |= {"past_key_values": past_key_values, "use_cache": use_cache}
        else:
            self._check_backbone(self.simmim._packs(inputs.device))
            use_cache = not self.training if use_cache is None else use_cache
            if use_cache and past_key_values is None:
                past_key_values = DynamicCache()
            kwargs["past"] = Past(attention_mask, past_key_values)
            attention_mask = torch.ones(1, 1, 1, 1, device=inputs.device)  # see `SimMIMModel._encode_packed`
        outputs = self.simmim.encoder(
            **self.simmim._accepted(token_type_ids=token_type_ids, position_ids=position_ids),
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **{**self._asked_for(), **kwargs},
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            self._reads_from_left_to_right |= self.training
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return modeling_outputs.CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values if self._has_native_cache else past_key_values,
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
        self.dropout = nn.Dropout(getattr(text_config, "hidden_dropout_prob", 0.0) if dropout is None else dropout)
        setattr(self, self.head_name, nn.Linear(config.hidden_size, self.num_outputs or config.num_labels))
        self.post_init()


def _check_labels(labels: torch.Tensor, num_labels: int) -> None:
    """Raises a ValueError for a class that does not exist; on a GPU it would end the process without a reason."""
    wrong = labels[(labels != IGNORE_INDEX) & ((labels < 0) | (labels >= num_labels))]
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

    def _read(self, columns: dict, **kwargs) -> tuple[torch.Tensor, ModelOutput]:
        given = columns["input_ids"] if columns["input_ids"] is not None else columns["inputs_embeds"]
        padding_is_known = columns["attention_mask"] is not None or self.config.pad_token_id is not None
        if given is not None and len(given) > 1 and not padding_is_known:
            raise ValueError(
                f"A batch of {len(given)} texts without `attention_mask`, and the model has no `pad_token_id`: "
                "padding cannot be told from text. Give the tokenizer a `pad_token`, set "
                "`model.config.pad_token_id`, and pass the `attention_mask` that the tokenizer makes."
            )
        outputs = self.simmim(**columns, **kwargs)
        return self.classifier(self.dropout(outputs.pooler_output)), outputs  # (batch, labels)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.num_labels > 1 and not labels.is_floating_point():
            _check_labels(labels, self.num_labels)
        return self.loss_function(pooled_logits=logits, labels=labels, config=self.config)


class SimMIMForTokenClassification(SimMIMWithLabels, SimMIMWithNewHead):
    """A class for each token.

    `logits` are (batch, length, labels); `labels` (batch, length), -100 where a token has none.
    """

    _reads_vectors = False
    output_class = modeling_outputs.TokenClassifierOutput

    def _read(self, columns: dict, **kwargs) -> tuple[torch.Tensor, ModelOutput]:
        outputs = self.simmim(**columns, **kwargs)
        return self.classifier(self.dropout(outputs.last_hidden_state)), outputs  # (batch, length, labels)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        _check_labels(labels, self.num_labels)
        return self.loss_function(logits, labels, self.config)


class SimMIMForMultipleChoice(SimMIMWithLabels, SimMIMWithNewHead):
    """The best of several continuations of a text.

    The inputs are (batch, choices, length); `logits` (batch, choices); `labels` (batch,), which choice is right.
    """

    output_class = modeling_outputs.MultipleChoiceModelOutput
    num_outputs = 1

    def _read(self, columns: dict, **kwargs) -> tuple[torch.Tensor, ModelOutput]:
        columns = {name: x for name, x in columns.items() if x is not None}  # (batch, choices, length) each
        outputs = self.simmim(**{name: x.flatten(0, 1) for name, x in columns.items()}, **kwargs)
        scores = self.classifier(self.dropout(outputs.pooler_output))  # (batch * choices, 1)
        return scores.view(next(iter(columns.values())).shape[:2]), outputs  # (batch, choices)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
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
        columns = input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        outputs = self.simmim(*columns, pools=False, return_dict=True, **kwargs)
        # (batch, length, 2) -> (batch, length) each
        start_logits, end_logits = self.qa_outputs(self.dropout(outputs.last_hidden_state)).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return modeling_outputs.QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# The joint objective


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


class Reading(NamedTuple):
    """One pass of sequences through the encoder, and what is predicted in it.

    Attributes:
        name: `original`, `masked`, `positive`, `negatives`, or `causal` for one from left to right
        input_ids, attention_mask, token_type_ids: (rows, length)
        targets: (rows, length), the token to predict at each position, -100 for none
    """

    name: str
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor | None = None
    targets: torch.Tensor | None = None

    @classmethod
    def of(cls, name: str, batch: dict, prefix: str = "") -> "Reading":
        """The columns of a batch whose names begin with `prefix`."""
        input_ids, mask = batch[f"{prefix}input_ids"], batch.get(f"{prefix}attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        return cls(name, input_ids, mask, batch.get(f"{prefix}token_type_ids"))

    def columns(self) -> dict[str, torch.Tensor | None]:
        return {name: column for name, column in self._asdict().items() if name != "name"}

    @property
    def is_predicted(self) -> torch.Tensor:
        """(rows, length), bool"""
        return (self.filled("targets", IGNORE_INDEX) != IGNORE_INDEX) & self.attention_mask.bool()

    def filled(self, name: str, fill: int) -> torch.Tensor:
        """(rows, length), a column, or `fill` everywhere where there is none"""
        column = getattr(self, name)
        return torch.full_like(self.input_ids, fill) if column is None else column


class SimMIMProjection(nn.Module):
    """MLP between the pooled vector and the contrastive loss (SimCLR, Chen et al. 2020); dropped after training."""

    def __init__(self, config: SimMIMConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.projection_dim)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(batch, hidden) -> (batch, projection_dim)"""
        return self.out(nn.functional.relu(self.dense(pooled)))


class SimMIMUncertainty(nn.Module):
    """A learned log-variance for each term of the loss (Kendall, Gal & Cipolla 2018, equation 10)."""

    def __init__(self, config: SimMIMConfig):
        super().__init__()
        for name in TERMS:
            if getattr(config, weight_of(name)):
                self.register_parameter(name, nn.Parameter(torch.zeros(())))

    def forward(self, name: str, loss: torch.Tensor) -> torch.Tensor:
        log_variance = self.get_parameter(name)
        return (-log_variance).exp() * loss + log_variance / 2


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
        self.uncertainty = SimMIMUncertainty(config) if config.uncertainty_weighting else None
        self.post_init()

    def resize_token_embeddings(self, *args, **kwargs):
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self._freeze_unused()
        return embeddings

    def _freeze_unused(self) -> None:
        config = self.config
        if not config.mlm_weight and not config.clm_weight:
            for name, parameter in self.lm_head.named_parameters():
                parameter.requires_grad_(name == "decoder.weight" and config.tie_word_embeddings)
        if not config.contrastive_weight:
            self.simmim.pooler.requires_grad_(False)
            if self.projection is not None:
                self.projection.requires_grad_(False)

    @classmethod
    def from_backbone(
        cls,
        pretrained_model_name_or_path: str,
        num_hidden_layers: int | None = None,
        dropout: float | None = None,
        objective: str | None = None,
        **kwargs,
    ) -> "SimMIMForPreTraining":
        """Starts from any encoder or decoder of transformers, and from its language-model head where it has one.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id; a SimMIM checkpoint is continued
            num_hidden_layers: of the backbone's layers, only the first so many; 0 leaves a bag of words, whose vectors
                know nothing of each other
            dropout: of the backbone, wherever its family has one. Default: what its configuration says
            objective: one of `OBJECTIVES`, without what it says of the pooling: the vectors stay what they are
            kwargs: options of `SimMIMConfig`, and of `from_pretrained` such as `revision` or `dtype`. Default of
                `pooling`: that of a sentence-transformers model, else `"mean"`

        Raises:
            ValueError: an option or objective that does not exist, more layers than there are, a dropout that cannot
                be, a backbone that is not a text model, or a sentence-transformers model whose vectors cannot be
                made here.
        """
        loading = {name: kwargs.pop(name) for name in LOADING_OPTIONS if name in kwargs}
        if objective is not None:
            preset = options_of_objective(objective)
            kwargs = {**{k: v for k, v in preset.items() if k not in VECTOR_OPTIONS}, **kwargs}
        text_config = AutoConfig.from_pretrained(
            pretrained_model_name_or_path, **{k: v for k, v in loading.items() if k not in ("dtype", "device_map")}
        )
        adjust_backbone(text_config.get_text_config(), num_hidden_layers, dropout)
        if text_config.model_type == SimMIMConfig.model_type:
            config = SimMIMConfig(**{**text_config.to_dict(), **kwargs})
            return cls.from_pretrained(pretrained_model_name_or_path, config=config, **loading)
        kwargs.setdefault("tie_word_embeddings", getattr(text_config, "tie_word_embeddings", True))
        if "pooling" not in kwargs:
            finding = {
                name: value for name, value in loading.items() if name in FINDING and name != "trust_remote_code"
            }
            kwargs["pooling"] = source_pooling(pretrained_model_name_or_path, **finding) or SimMIMConfig.pooling
        config = SimMIMConfig(text_config=text_config, **kwargs)
        native, info = load_native(pretrained_model_name_or_path, text_config, **loading)
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
        queue_embeds: torch.Tensor | None = None,
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
            queue_embeds: (queue, 2, dim), the `original_embeds` and `masked_embeds` of earlier batches, more
                negatives without a gradient (cross-batch memory, Wang et al. 2020, arXiv 1912.06798)

        Returns:
            With `labels` or `masked_input_ids` the loss and its terms; without them `logits`, as a masked LM. With
            `output_hidden_states` or `output_attentions` also those of what was read for the loss, all views under
            each other in the order of `readings`: (readings * batch, length, hidden) each. They are read with
            padding, and all at once.

        Raises:
            ValueError: a view that the objective needs is not given.
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
        terms, embeds = self._siamese_terms(both_ways, objective, queue_embeds, outputs) if both_ways else ({}, {})
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
        if objective.uncertainty_weighting:
            terms = {name: self.uncertainty(name, term) for name, term in terms.items()}
        return sum(getattr(objective, weight_of(name)) * term for name, term in terms.items())

    def readings(self, objective: Objective | None = None, **batch: torch.Tensor | None) -> list[Reading]:
        """What a forward on a batch reads, in order: a term of weight 0 reads nothing.

        Args:
            objective, batch: as in `forward`

        Raises:
            ValueError: a view that the objective needs is not given.
        """
        objective = self.config.objective if objective is None else objective
        original = Reading.of("original", batch)
        readings = []
        if objective.contrastive_weight and not objective.corrupts_both:
            readings.append(original)
        if objective.reads_masked:
            ids = _required(batch, "masked_input_ids", "needs the masked copy")
            targets = _required(batch, "labels", "needs the masked copy") if objective.mlm_weight else None
            readings.append(original._replace(name="masked", input_ids=ids, targets=targets))
        if objective.contrastive_weight and objective.positive_view == "dropout":
            readings.append(readings[0]._replace(name="positive"))
        elif objective.contrastive_weight and not objective.masked_is_positive:
            options = f"positive_view={objective.positive_view!r}, corrupted_views={objective.corrupted_views!r}"
            required = functools.partial(_required, batch, reason=f"has {options}", options=f"(tokenizer, {options})")
            required("positive_input_ids")
            targets = required("positive_labels") if objective.corrupts_both and objective.mlm_weight else None
            readings.append(Reading.of("positive", batch, "positive_")._replace(targets=targets))
        if objective.contrastive_weight and batch.get("negative_input_ids") is not None:
            readings.append(Reading.of("negatives", batch, "negative_"))
        if objective.clm_weight:
            readings.append(original._replace(name="causal", targets=_next_tokens(original)))
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

    def _siamese_terms(
        self, readings: list[Reading], objective: Objective, queue: torch.Tensor | None, outputs: dict
    ) -> tuple[dict, dict]:
        """All readings through the encoder at once, then the (sum, count) of each term and the compared vectors; those
        of `STATES` that have a key in `outputs` are put there."""
        batch, columns = len(readings[0].input_ids), readings[0].columns()
        if readings[0].token_type_ids is None:
            columns.pop("token_type_ids")
        fills = {**dict.fromkeys(columns, 0), "targets": IGNORE_INDEX}
        # Under each other: (readings * batch, longest length); hard negatives come last and are of another number.
        rows = {
            name: _stack([reading.filled(name, fill) for reading in readings], fill) for name, fill in fills.items()
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
            vectors = dict(zip(names, pooled.split(batch), strict=False))  # (batch, dim) each
            embeds = {
                "original": vectors["masked" if objective.corrupts_both else "original"],
                "positive": vectors["masked" if objective.masked_is_positive else "positive"],
            }
            negatives = pooled[batch * len(names) :]  # (negatives, dim)
            queue = pooled.new_empty(0, 2, pooled.shape[1]) if queue is None else queue
            terms |= self._contrastive_terms(embeds["original"], embeds["positive"], negatives, queue)
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
        for start in range(0, rows, size):
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
        # Before the encoder: a GPU tells how many there are once it has done all that it was given.
        is_predicted = (targets != IGNORE_INDEX) & attention_mask.bool()  # (rows, length)
        predicted, count = is_predicted.flatten().nonzero().squeeze(1), is_predicted.sum()  # (predicted,), ()
        states, packing = self.simmim.token_states(input_ids, attention_mask, token_type_ids, is_causal, outputs)
        hidden = states.last  # (tokens, hidden)
        vectors = hidden.new_empty(len(input_ids), 0)
        if pools:
            vectors = self.simmim.pooler.packed(states.pooled, packing, attention_mask)  # (rows, hidden)
            if self.projection is not None:
                vectors = self.projection(vectors)  # (rows, projection_dim)
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

    def _contrastive_terms(self, rows, positives, negatives, queue) -> dict[str, tuple[torch.Tensor, int]]:
        """The sums of the contrastive loss and accuracy.

        Args:
            rows, positives: (batch, dim)
            negatives: (negatives, dim), explicit ones
            queue: (queue, 2, dim), earlier rows and positives, equal in all processes
        """
        config = self.config
        if config.stop_gradient == "original":
            rows = rows.detach()
        elif config.stop_gradient == "positive":
            positives = positives.detach()
        total, scores, targets = self._contrast(rows, positives, negatives, queue)
        if config.symmetric:
            total = (total + self._contrast(positives, rows, negatives[:0], queue.flip(1))[0]) / 2
        return {"contrastive_loss": (total, len(rows)), "contrastive_accuracy": _correct(scores, targets)}

    def _contrast(self, rows, positives, negatives, queue) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Each row against the candidates of all processes and the queue: the summed loss, the scores of the positives
        and of the hard negatives, and which of them is the row's own."""
        config, offset, both_views = self.config, 0, self.config.negatives == "both_views"
        candidates = [positives, *([rows] if both_views else []), negatives]
        if config.gather_negatives:
            gathered = [gather(vectors) for vectors in candidates]
            candidates, offset = [vectors for vectors, _ in gathered], gathered[0][1]
        queued = queue.flatten(0, 1) if both_views else queue[:, 1]  # (queued, dim)
        # (rows, candidates): the positives of all processes, their rows or none, hard negatives, those of the queue
        scores = similarity_matrix(rows, torch.cat([*candidates, queued]), config.similarity) / config.temperature
        targets = torch.arange(offset, offset + len(rows), device=rows.device)  # (rows,)
        first = len(candidates[0])
        itself = first + targets if both_views else None  # (rows,)
        total = contrastive_cross_entropy(scores, targets, config.contrastive_loss, left_out=itself)
        # The accuracy asks every form of the loss the same: without the rows, or a queue, among the candidates.
        hard = scores[:, 2 * first if both_views else first : scores.shape[1] - len(queued)]  # (rows, negatives)
        return total, torch.cat([scores[:, :first], hard], dim=1), targets


@contextlib.contextmanager
def _evaluating(model: nn.Module, device: torch.device):
    """Dropout and autocast off; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _required(batch: dict, name: str, reason: str, options: str = "") -> torch.Tensor:
    if batch.get(name) is None:
        raise ValueError(
            f"`{name}` is missing, and the objective {reason}: make the batches with `DataCollatorForSimMIM{options}`."
        )
    return batch[name]


def _next_tokens(reading: Reading) -> torch.Tensor:
    """(rows, length): the token that follows each, -100 where there is none."""
    ids, real = reading.input_ids, reading.attention_mask.bool()
    targets = torch.full_like(ids, IGNORE_INDEX)
    targets[:, :-1] = torch.where(real[:, :-1] & real[:, 1:], ids[:, 1:], IGNORE_INDEX)
    return targets


def _stack(tensors: list[torch.Tensor], fill: int = 0) -> torch.Tensor:
    """Rows of several (rows, length) tensors under each other, padded on the right to one length."""
    length = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=fill) for tensor in tensors])


def _correct(scores: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, int]:
    """How many rows of `scores` (rows, choices) have their highest value at `targets` (rows,), and of how many."""
    return (scores.detach().argmax(-1) == targets).sum().float(), len(targets)
