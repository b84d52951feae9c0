"""The shared encoder: any text model of transformers with the configured pooling, and its language-model head.

Built on it: the heads of downstream tasks (`heads`) and the joint objective (`objective`).
"""

import contextlib
import inspect
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, modeling_outputs
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .backbones import NEW_HEAD, as_decoder, build_encoder, first_position, native_head
from .configuration_simmim import SimMIMConfig
from .loading import explaining_weights
from .pooling import SimMIMPooling, SimMIMTokenTable, TokenStates, encode
from .st_format import write_modules
from .unpadding import ATTENTION, Unpadding
from .views import check_integers

logger = logging.get_logger(__name__)

OF_POOLING = [r"pooler\.query$", r"pooler\.lexicon\."]  # weights of the pooling, as patterns


def give_usual_mode(weights: Iterable[Path]) -> None:
    """Gives saved weights the file mode of their configuration: safetensors ignores the umask, and writes files that
    no other user can read."""
    for file in weights:
        for name in ("config.json", "adapter_config.json"):
            if file.with_name(name).exists():
                shutil.copymode(file.with_name(name), file)


class SimMIMPreTrainedModel(PreTrainedModel):
    config_class = SimMIMConfig
    config: SimMIMConfig
    base_model_prefix = "simmim"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Zero-initialised modules (direct parameters only). Exception: `SimMIMTokenTable.state_scale`.
    _zero_at_first: tuple[type[nn.Module], ...] = (SimMIMPooling, SimMIMTokenTable)
    _reads_vectors = True  # whether the class uses the vectors of sequences, or those of tokens only
    # Other classes leave over the weights that only pre-training needs.
    _keys_to_ignore_on_load_unexpected = [r"^projection\.", r"^lm_head\.", *OF_POOLING]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, from safetensors only: a pickle can execute code when it is opened.

        Raises:
            OSError: there are no weights in safetensors, or the file is damaged.
        """
        kwargs["use_safetensors"] = True
        with explaining_weights(pretrained_model_name_or_path):
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded
        if isinstance(loaded, tuple):  # with `output_loading_info`
            model = loaded[0]
        model._freeze_unused()  # again: loading makes every parameter trainable
        return loaded

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs):
        """As in transformers, with the files that `SentenceTransformer(save_directory)` needs for the same vectors."""
        if is_main_process and self._reads_vectors and not os.path.isfile(save_directory):
            write_modules(self.config, save_directory)  # before the upload, where there is one
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        give_usual_mode(Path(save_directory).glob("*.safetensors"))

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
        if isinstance(module, self._zero_at_first):
            for parameter in module.parameters(recurse=False):
                nn.init.zeros_(parameter)
        if isinstance(module, SimMIMTokenTable):
            nn.init.constant_(module.state_scale, module.STATE_SCALE)

    def __getattr__(self, name: str):
        # A method `generate` would make transformers take every class of remote code for one that can.
        if name == "generate":
            raise AttributeError(
                f"`{type(self).__name__}` reads in both directions and cannot generate from left to right. Load the "
                "checkpoint with `AutoModelForCausalLM`, or fill gaps with `SimMIMForMaskedLM.infill`."
            )
        return super().__getattr__(name)

    def _requested_outputs(self) -> dict[str, bool]:
        """The outputs that the configuration requests of every forward; the backbone does not know it."""
        return {name: True for name in ("output_hidden_states", "output_attentions") if getattr(self.config, name)}

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.encoder.set_input_embeddings(value)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Module:
        """As in transformers; the token table of the pooling grows with that of the backbone."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        lexicon = self.base_model.pooler.lexicon
        if lexicon is not None:
            lexicon.table = self._get_resized_embeddings(lexicon.table, embeddings.num_embeddings)
        self._freeze_unused()
        return embeddings


class Encoded(NamedTuple):
    """A batch as the encoder has read it, without padding.

    Attributes:
        states: (tokens, hidden) each
        unpadding: leads back to the (rows, length) grid
        hidden_states, attentions: of every layer, (rows, length, hidden) and (rows, heads, length, length), on request
    """

    states: TokenStates
    unpadding: Unpadding
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class SimMIMModel(SimMIMPreTrainedModel):
    """The shared encoder: any text model of transformers, with the configured pooling."""

    accepts_loss_kwargs = False

    def __init__(self, config: SimMIMConfig, is_decoder: bool = False):
        super().__init__(config)
        text_config = config.text_config
        if is_decoder:
            text_config = as_decoder(text_config)
        self.encoder = build_encoder(text_config)
        self.pooler = SimMIMPooling(config)
        # Without layers there is one set of token vectors, and nothing to take the mean of.
        has_layers = getattr(text_config, "num_hidden_layers", 1) > 0
        self._pools_first = config.pooled_layers == "first_last" and has_layers
        if self.encoder.config._attn_implementation == "sdpa" and self.encoder._supports_attention_backend:
            self.encoder.config._attn_implementation = ATTENTION
        self._parameters_of_forward = set(inspect.signature(self.encoder.forward).parameters)
        if not hasattr(text_config, "type_vocab_size"):
            self._parameters_of_forward.discard("token_type_ids")  # GPT-2 would look them up among its words
        # A decoder in transformers: its direction is a switch, and needs no mask.
        self.causal_by_nature = any(getattr(module, "is_causal", False) for module in self.encoder.modules())
        self.first_position = first_position(self.encoder)
        self._can_unpad: bool | None = None  # None: not tried yet
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
        compute_pooled: bool = True,
        **kwargs,
    ) -> modeling_outputs.BaseModelOutputWithPooling:
        """
        Args:
            input_ids: (batch, length)
            attention_mask: (batch, length), 1 for real tokens; padding may be on either side
            token_type_ids, position_ids: (batch, length); ignored by a backbone that has none
            inputs_embeds: (batch, length, embedding), instead of `input_ids`
            is_causal: read from left to right only; by default so for a model trained with the causal loss alone
            compute_pooled: make the vectors; with `first_last` the backbone keeps the states of all its layers for
                them

        Returns:
            `last_hidden_state` (batch, length, hidden) and `pooler_output` (batch, dim), the configured pooling, whose
            width is `config.embedding_dim`.

        Raises:
            ValueError: neither `input_ids` nor `inputs_embeds`.
        """
        inputs = inputs_embeds if input_ids is None else input_ids  # (batch, length) or (batch, length, embedding)
        if inputs is None:
            raise ValueError("Give `input_ids` or `inputs_embeds`.")
        if input_ids is not None:
            check_integers("input_ids", input_ids)
        if attention_mask is None:  # no padding
            attention_mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        if is_causal is None:
            is_causal = self.config.objective.is_causal
        kwargs = {**self._requested_outputs(), **kwargs}
        is_plain = input_ids is not None and position_ids is None and not any(kwargs.values())
        if is_plain and is_causal and not self.causal_by_nature and self.reads_unpadded(inputs.device):
            # An encoder with sliding windows is causal only in the attention of this package.
            encoded = self.token_states(input_ids, attention_mask, token_type_ids, is_causal)
            states = encoded.states.map(encoded.unpadding.pad)  # (tokens, hidden) -> (batch, length, hidden)
            outputs = ModelOutput()
        else:
            kwargs |= {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
            outputs = self._encode_padded(
                input_ids, attention_mask, token_type_ids, is_causal, compute_pooled, **kwargs
            )
            states = self._states(outputs, input_ids)  # (batch, length, hidden) each
        pooled = None
        if compute_pooled:
            pooled = self.pooler(states, attention_mask)  # (batch, length, hidden) -> (batch, dim)
        hidden_states = outputs.get("hidden_states")
        if self._pools_first and not kwargs.get("output_hidden_states", self.encoder.config.output_hidden_states):
            hidden_states = None  # kept for the pooling only
        return modeling_outputs.BaseModelOutputWithPooling(
            last_hidden_state=states.last,
            pooler_output=pooled,
            hidden_states=hidden_states,
            attentions=outputs.get("attentions"),
        )

    def token_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        is_causal: bool | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Encoded:
        """The hidden states of the real tokens only, computed without padding where the backbone allows it.

        Args:
            input_ids, attention_mask, token_type_ids: (batch, length)
            output_hidden_states, output_attentions: return those of every layer too, which takes a pass with padding
        """
        unpadding = Unpadding.from_mask(attention_mask)
        if is_causal is None:
            is_causal = self.config.objective.is_causal
        self.prove_direction(is_causal, input_ids.device)
        needs_padding = output_hidden_states or output_attentions
        if self.reads_unpadded(input_ids.device) and not needs_padding:
            states = self._encode_unpadded(input_ids, unpadding, token_type_ids, is_causal)  # (tokens, hidden) each
            return Encoded(states, unpadding)
        # With padding, which then falls away: (batch, length, hidden) -> (tokens, hidden).
        requested = {}
        if output_hidden_states:
            requested["output_hidden_states"] = True
        if output_attentions:
            requested["output_attentions"] = True
        outputs = self._encode_padded(input_ids, attention_mask, token_type_ids, is_causal, **requested)
        encoded = Encoded(self._states(outputs, input_ids).map(unpadding.unpad), unpadding)
        if output_hidden_states:  # the pooling may have requested them for itself
            encoded = encoded._replace(hidden_states=outputs.get("hidden_states"))
        if output_attentions:
            encoded = encoded._replace(attentions=outputs.get("attentions"))
        return encoded

    def _states(self, outputs: ModelOutput, input_ids: torch.Tensor | None) -> TokenStates:
        """The states of (rows, length) tokens that the heads and the pooling take of the backbone's output."""
        states = TokenStates(outputs.last_hidden_state)  # (rows, length, hidden)
        if self._pools_first and outputs.get("hidden_states"):
            states = states._replace(first=outputs.hidden_states[0])  # (rows, length, hidden)
        if self.pooler.lexicon is not None:
            states = states._replace(input_ids=input_ids)  # (rows, length), looked up in the token table
        return states

    def _encode_unpadded(
        self,
        input_ids: torch.Tensor,
        unpadding: Unpadding,
        token_type_ids: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> TokenStates:
        """(rows, length) ids -> states of the real tokens, (tokens, hidden) each."""
        # (rows, length) -> (1, tokens): to the backbone all rows together are one long row.
        columns = {"input_ids": unpadding.unpad(input_ids)[None]}
        if token_type_ids is not None:
            columns["token_type_ids"] = unpadding.unpad(token_type_ids)[None]
        position_ids = (unpadding.positions + self.first_position)[None]  # (1, tokens), from the start in each row
        # Every backbone passes a mask of four dimensions on as it is; the attention of this package needs none.
        no_mask = torch.ones(1, 1, 1, 1, device=input_ids.device)
        outputs = self.encoder(
            **self.accepted_inputs(**columns, use_cache=False),
            position_ids=position_ids,
            attention_mask=no_mask,
            is_causal=is_causal,
            unpadding=unpadding,
            **self._outputs_for_pooling(),
        )
        states = self._states(outputs, columns["input_ids"])  # (1, tokens, hidden) each
        return states.map(lambda x: x[0])  # (1, tokens, hidden) -> (tokens, hidden)

    def _encode_padded(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        is_causal: bool = False,
        compute_pooled: bool = True,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> ModelOutput:
        """(rows, length) ids -> the output of the backbone, of (rows, length) positions."""
        if position_ids is None:
            position_ids = self.positions(attention_mask)  # (rows, length)
        if self.causal_by_nature:
            kwargs["is_causal"] = is_causal  # transformers makes the mask
        elif is_causal:
            attention_mask = self._causal_mask(attention_mask)  # (rows, 1, length, length)
        kwargs |= self._outputs_for_pooling(compute_pooled)
        return self.encoder(
            **self.accepted_inputs(token_type_ids=token_type_ids, position_ids=position_ids, use_cache=False),
            input_ids=input_ids,
            attention_mask=attention_mask,
            **kwargs,
        )

    def _outputs_for_pooling(self, compute_pooled: bool = True) -> dict[str, bool]:
        """The outputs that the pooling requests of the encoder."""
        if compute_pooled and self._pools_first:
            return {"output_hidden_states": True}
        return {}

    def positions(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, length), counted over the real tokens, so that padding on the left changes nothing."""
        return (attention_mask.long().cumsum(1) - 1).clamp(min=0) + self.first_position

    def _causal_mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, length) -> the additive (batch, 1, length, length) mask of a pass from left to right."""
        family = self.config.text_config.model_type
        if getattr(self.config.text_config, "sliding_window", None):
            raise ValueError(
                f"A `{family}` with sliding windows reads from left to right only with the attention of this package: "
                "load the model without `attn_implementation`, or with 'sdpa'."
            )
        length = attention_mask.shape[1]
        # (queries, keys), true up to the diagonal
        is_past = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
        # A key is visible where it is real and not ahead of the query.
        is_visible = attention_mask.bool()[:, None, None, :] & is_past  # (batch, 1, length, length)
        # 0 where visible, and the lowest number elsewhere; -inf would be NaN in a row without any key.
        scores = torch.zeros_like(is_visible, dtype=self.dtype)
        return scores.masked_fill(~is_visible, torch.finfo(self.dtype).min)

    def accepted_inputs(self, **inputs: Any) -> dict[str, Any]:
        """The inputs that are not None, and that the backbone's forward has by name."""
        return {k: v for k, v in inputs.items() if v is not None and k in self._parameters_of_forward}

    def reads_unpadded(self, device: torch.device) -> bool:
        """Whether the backbone reads sequences without padding."""
        if self.encoder.config._attn_implementation != ATTENTION:
            return False
        if self._can_unpad is None:
            self._can_unpad = self._try_unpadded(device)
        return self._can_unpad

    @torch.no_grad()
    def prove_direction(self, is_causal: bool, device: torch.device) -> None:
        """Tries once whether the backbone obeys `is_causal`: some read one way only, and ignore it silently.

        Raises:
            ValueError: it does not, it cannot read a text, or all texts are alike to it.
        """
        has_no_layers = getattr(self.config.text_config, "num_hidden_layers", None) == 0  # no token sees another
        if is_causal in self._proven_directions or has_no_layers:
            return
        self._proven_directions.add(is_causal)
        # Two texts that differ in their last token: (1, 6) each.
        text = torch.arange(6, device=device)[None] % self.config.vocab_size
        other = text.clone()
        other[0, -1] = 3 % self.config.vocab_size
        mask = torch.ones_like(text)
        family = self.config.text_config.model_type
        try:
            with _evaluating(self, device):
                states = self.token_states(text, mask, is_causal=is_causal).states.last  # (6, hidden)
                other_states = self.token_states(other, mask, is_causal=is_causal).states.last
        except Exception as error:
            self._proven_directions.remove(is_causal)
            direction = "from left to right" if is_causal else "in both directions"
            raise ValueError(f"The backbone `{family}` cannot read a sequence {direction}: {error}") from error
        # The token that differs must have another state.
        if torch.equal(states[-1], other_states[-1]):
            raise ValueError(
                f"The backbone `{family}` gives the same vectors whatever it reads: its weights are all alike, or an "
                "option such as the epsilon of its norms is out of proportion."
            )
        # The first token has another state exactly where it sees the last one.
        sees_last_token = not torch.equal(states[0], other_states[0])
        if is_causal and sees_last_token:
            raise ValueError(
                f"The backbone `{family}` looks ahead even when it is asked to read from left to right. "
                "Set `clm_weight` to 0, or choose another backbone."
            )
        if not is_causal and not sees_last_token:
            raise ValueError(
                f"The backbone `{family}` only reads from left to right: two of the terms would see half of each "
                "text. Use the objective `clm`, or choose another backbone."
            )

    @torch.no_grad()
    def _try_unpadded(self, device: torch.device) -> bool:
        """Whether the backbone gives the same result with and without padding, on two rows of unequal length."""
        attention_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=device)
        input_ids = torch.arange(10, device=device).view(2, 5) % self.config.vocab_size
        unpadding = Unpadding.from_mask(attention_mask)
        reason = None
        try:
            with _evaluating(self, device):
                unpadded = self._encode_unpadded(input_ids, unpadding).last  # (tokens, hidden)
                padded = self._encode_padded(input_ids, attention_mask).last_hidden_state  # (2, 5, hidden)
            expected = unpadding.unpad(padded)  # (tokens, hidden)
            # Relative to the norm of all states; half precision is that much coarser.
            tolerance = 5e-2
            if unpadded.dtype in (torch.float32, torch.float64):
                tolerance = 1e-4
            difference = (unpadded - expected).float().norm()
            if not difference <= tolerance * expected.float().norm():  # NaN included
                reason = "its results differ"
            elif not unpadding.calls:
                reason = "its attention does not see them"
        except Exception as error:  # any fault: the backbone can still read padded batches
            reason = str(error) or type(error).__name__
        if reason is None:
            return True
        logger.warning_once(
            f"The backbone `{self.config.text_config.model_type}` cannot read sequences without padding ({reason}); "
            "it reads padded batches, with the same result."
        )
        return False


# The language-model head


class SimMIMLMHead(nn.Module):
    """Token logits from hidden states, in the shape of the backbone family's own head so that its weights fit."""

    def __init__(self, config: SimMIMConfig):
        super().__init__()
        text_config = config.text_config
        head = native_head(text_config) or NEW_HEAD
        # ELECTRA's embeddings are narrower than its layers, and the projection is tied to them.
        width = getattr(text_config, "embedding_size", text_config.hidden_size)
        self.has_transform = head.dense is not None
        if self.has_transform:
            has_dense_bias = getattr(text_config, "classifier_bias", True)
            has_norm_bias = getattr(text_config, "norm_bias", True)
            self.dense = nn.Linear(text_config.hidden_size, width, bias=has_dense_bias)
            self.activation = ACT2FN[head.activation(text_config)]
            self.norm = nn.LayerNorm(width, eps=head.eps(text_config), bias=has_norm_bias)
        self.decoder = nn.Linear(width, text_config.vocab_size, bias=head.bias(text_config))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> (..., vocab)"""
        return self.decoder(self.transform(hidden))

    def transform(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> (..., width of the embeddings)"""
        if not self.has_transform:
            return hidden
        hidden = self.activation(self.dense(hidden))  # (..., width)
        return self.norm(hidden)


class SimMIMWithLMHead(SimMIMPreTrainedModel):
    """The shared encoder with a language-model head that is tied to the input embeddings."""

    _keys_to_ignore_on_load_unexpected = [r"^projection\.", *OF_POOLING]

    def __init__(self, config: SimMIMConfig, is_decoder: bool = False):
        super().__init__(config)
        self.simmim = SimMIMModel(config, is_decoder)
        self.lm_head = SimMIMLMHead(config)
        # Per instance: the name of the embedding differs between families.
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
        # (1, 6), the last ids of the vocabulary: none of them is padding.
        ids = self.config.vocab_size - 1 - torch.arange(6, device=native.device)[None]
        with _evaluating(native, native.device), _evaluating(self, native.device):
            hidden = self.base_model(ids, is_causal=is_causal).last_hidden_state  # (1, 6, hidden)
            ours = self.lm_head(hidden)  # (1, 6, vocab)
            theirs = native(input_ids=ids).logits  # (1, 6, vocab)
        return torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3)


@contextlib.contextmanager
def _evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Dropout and autocast off; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
