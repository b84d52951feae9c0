"""The shared encoder: any text model of transformers with the configured pooling, and its language-model head.

Built on it: the heads of downstream tasks (`heads`) and the joint objective (`objective`).
"""

import contextlib
import inspect
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, modeling_outputs
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .backbones import NEW_HEAD, as_decoder, build_encoder, explaining_weights, first_position, native_head
from .configuration_simmim import SimMIMConfig
from .packing import ATTENTION, Packing
from .readings import check_integers
from .vectors import SimMIMLexicon, SimMIMPooling, TokenStates, encode, write_modules

logger = logging.get_logger(__name__)

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
OF_POOLING = [r"pooler\.query$", r"pooler\.lexicon\."]  # that another pooling does not have
STATES = {"hidden_states": "output_hidden_states", "attentions": "output_attentions"}  # and what asks for them


def give_usual_mode(weights: Iterable[Path]) -> None:
    """Lets those read saved weights who may read the configuration beside them: safetensors ignores the umask, and
    lets no other user read what it writes."""
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
    # Modules whose own parameters, not those of their parts, are 0 before training; but for the scale of a lexicon.
    _zero_at_first: tuple[type[nn.Module], ...] = (SimMIMPooling, SimMIMLexicon)
    _reads_vectors = True  # whether the class uses the vectors of sequences, or those of tokens only
    # What is needed in pre-training only may be left over in other classes.
    _keys_to_ignore_on_load_unexpected = [r"^projection\.", r"^lm_head\.", *OF_POOLING]

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
        if isinstance(module, SimMIMLexicon):
            nn.init.constant_(module.state_scale, module.STATE_SCALE)

    def __getattr__(self, name: str):
        # A method `generate` would make transformers take every class of remote code for one that can.
        if name == "generate":
            raise AttributeError(
                f"`{type(self).__name__}` reads in both directions and cannot generate from left to right. Load the "
                "checkpoint with `AutoModelForCausalLM`, or fill gaps with `SimMIMForMaskedLM.infill`."
            )
        return super().__getattr__(name)

    def _asked_for(self) -> dict[str, bool]:
        """What the own configuration asks of every forward; the backbone knows its own only."""
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
            `last_hidden_state` (batch, length, hidden) and `pooler_output` (batch, dim), the configured pooling, whose
            width is `config.vector_size`.
        """
        inputs = input_ids if input_ids is not None else inputs_embeds
        if inputs is None:
            raise ValueError("Give `input_ids` or `inputs_embeds`.")
        if input_ids is not None:
            check_integers("input_ids", input_ids)
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
            states = self._states(outputs, input_ids)
        hidden_states = outputs.get("hidden_states")
        if self._pools_first and not kwargs.get("output_hidden_states", self.encoder.config.output_hidden_states):
            hidden_states = None  # nobody else asked for them
        return modeling_outputs.BaseModelOutputWithPooling(
            last_hidden_state=states.last,
            pooler_output=self.pooler(states, attention_mask) if pools else None,
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
        return self._states(read, input_ids).each(packing.pack), packing  # (batch, length, hidden) -> (tokens, hidden)

    def _states(self, outputs: ModelOutput, input_ids: torch.Tensor | None) -> TokenStates:
        """What the backbone returned for (rows, length) tokens, as the heads and the pooling take it."""
        first = outputs.hidden_states[0] if self._pools_first and outputs.get("hidden_states") else None
        return TokenStates(outputs.last_hidden_state, first, None if self.pooler.lexicon is None else input_ids)

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
        states = self._states(outputs, columns["input_ids"])
        return states.each(lambda states: states[0])  # (1, tokens, hidden) -> (tokens, hidden)

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

    _keys_to_ignore_on_load_unexpected = [r"^projection\.", *OF_POOLING]

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
